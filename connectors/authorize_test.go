package connectors_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/oauth2"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/credentials"
)

const codeConnector = `
connector: acme
base_url: BASE
auth: {type: oauth2, authorize_url: "BASE/{{tenant}}/authorize?prompt=consent", token_url: "BASE/{{tenant}}/token", auth_style: header, scopes: [a, b]}
parameters: [{name: tenant, target: merge_field, property: account}, {name: region, target: script, value: eu}]
methods: [{method: get, endpoint: /a}]
`

const redirectURL = "http://127.0.0.1:7/callback"

func newCodeAPI(t *testing.T, script string, answer http.HandlerFunc) *api {
	t.Helper()
	file := codeConnector
	if script != "" {
		file += "script: |\n  " + strings.ReplaceAll(script, "\n", "\n  ") + "\n"
	}
	a := newTokenAPI(t, file, answer)
	a.Cred.Secrets.OAuth2 = nil
	a.Cred.Secrets.Properties = map[string]json.RawMessage{"tenant": json.RawMessage(`"t 1"`)}
	return a
}

// authorize begins an authorization and returns its URL's query too.
func authorize(t *testing.T, a *api) (*connectors.Authorization, url.Values) {
	t.Helper()
	auth, err := a.Caller.Authorize(t.Context(), a.Def, a.Cred, redirectURL)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(auth.URL)
	if err != nil {
		t.Fatal(err)
	}
	return auth, u.Query()
}

func TestAuthorize_codeIsExchangedOnceWithItsVerifier(t *testing.T) {
	a := newCodeAPI(t, "", answering(200, `{"access_token":"first-access-token","refresh_token":"first-refresh-token","expires_in":"3600","team":"x"}`))
	auth, q := authorize(t, a)
	if !strings.HasPrefix(auth.URL, a.URL+"/t%201/authorize?prompt=consent&") || len(auth.State) < 20 {
		t.Errorf("URL %s, state %s", auth.URL, auth.State)
	}
	challenge := q.Get("code_challenge")
	want := url.Values{"prompt": {"consent"}, "response_type": {"code"}, "client_id": {"the-client"}, "redirect_uri": {redirectURL}, "scope": {"a b"},
		"state": {auth.State}, "code_challenge": {challenge}, "code_challenge_method": {"S256"}}
	if d := cmp.Diff(want, q); d != "" {
		t.Error(d)
	}
	if n := len(a.requests()); n != 0 {
		t.Errorf("%d requests", n)
	}
	got, err := a.Caller.ExchangeCode(t.Context(), a.Def, a.Cred, auth, "the-code")
	if err != nil {
		t.Fatal(err)
	}
	if got.Token.AccessToken.Reveal() != "first-access-token" || got.Token.RefreshToken.Reveal() != "first-refresh-token" || got.Token.Expiry.IsZero() || !got.Opened {
		t.Errorf("got %+v", got)
	}
	contains(t, "raw answer", string(got.TokenRaw), `"team":"x"`)
	r := a.only()
	sent := form(t, r.Body)
	if oauth2.S256ChallengeFromVerifier(sent["code_verifier"]) != challenge || r.URI != "/t%201/token" {
		t.Errorf("sent %+v", r)
	}
	delete(sent, "code_verifier")
	if d := cmp.Diff(map[string]string{"grant_type": "authorization_code", "code": "the-code", "redirect_uri": redirectURL}, sent); d != "" {
		t.Error(d)
	}
	if other, _ := authorize(t, a); other.State == auth.State || other.URL == auth.URL {
		t.Error("two authorizations share their state")
	}
}

func TestAuthorize_blanksAreNoPluses(t *testing.T) {
	for _, script := range []string{"", `function before_oauth2_authorise() { method_endpoint = method_endpoint.replace(/state=[^&]*/, 'for=a%20b'); }`} {
		if auth, _ := authorize(t, newCodeAPI(t, script, nil)); !strings.Contains(auth.URL, "scope=a%20b") || strings.Contains(auth.URL, "+") {
			t.Error(auth.URL)
		}
	}
}

func TestAuthorize_hooks(t *testing.T) {
	a := newCodeAPI(t, `function before_oauth2_authorise() {
  method_endpoint += '&audience=' + script_parameters.region + external_account_id + Object.keys(cycle_variables).length;
  action_data.seen = 'authorise';
}
function before_oauth2_token() { method_request.seen = action_data.seen; action_data.seen += ',token' }
function before_oauth2_refresh() { throw 'not this one' }
function after_oauth2_token() { method_response.access_token += action_data.seen }`, answering(200, `{"access_token":"new,"}`))
	auth, q := authorize(t, a)
	if q.Get("audience") != "eucust-420" || q.Get("state") != auth.State {
		t.Errorf("query %v", q)
	}
	got, err := a.Caller.ExchangeCode(t.Context(), a.Def, a.Cred, auth, "the-code")
	if err != nil {
		t.Fatal(err)
	}
	if token := got.Token.AccessToken.Reveal(); token != "new,authorise,token" || form(t, a.only().Body)["seen"] != "authorise" {
		t.Errorf("token %s", token)
	}
}

// A provider that echoes another state than ours would never be believed.
func TestAuthorize_scriptAddsAnotherState(t *testing.T) {
	a := newCodeAPI(t, `function before_oauth2_authorise() { method_endpoint += '&state=mine' }`, answering(200, `{"access_token":"new"}`))
	auth, q := authorize(t, a)
	if d := cmp.Diff([]string{auth.State}, q["state"]); d != "" {
		t.Error(d)
	}
}

func TestAuthorize_theCodeIsASecret(t *testing.T) {
	a := newCodeAPI(t, `function before_oauth2_token() { throw 'saw ' + method_request.code + ' ' + method_request.code_verifier }`, nil)
	auth, _ := authorize(t, a)
	_, err := a.Caller.ExchangeCode(t.Context(), a.Def, a.Cred, auth, "canary-code")
	if err == nil || !strings.Contains(err.Error(), "saw [redacted] [redacted]") {
		t.Errorf("got %v", err)
	}
}

// What a script takes out is missing from the exchange too, but for the state.
func TestAuthorize_scriptTakesParametersOut(t *testing.T) {
	a := newCodeAPI(t, `function before_oauth2_authorise() { method_endpoint = method_endpoint.replace(/&(state|code_challenge|redirect_uri)=[^&]*/g, '') }`,
		answering(200, `{"access_token":"new"}`))
	auth, q := authorize(t, a)
	if q.Get("state") != auth.State || q.Has("code_challenge") || q.Get("prompt") != "consent" {
		t.Errorf("query %v", q)
	}
	if _, err := a.Caller.ExchangeCode(t.Context(), a.Def, a.Cred, auth, "c"); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]string{"grant_type": "authorization_code", "code": "c"}, form(t, a.only().Body)); d != "" {
		t.Error(d)
	}
}

func TestAuthorize_failures(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		change func(*api)
		want   string
	}{
		"false":           {`function before_oauth2_authorise() { return false }`, nil, "before_oauth2_authorise at connector level returned false"},
		"an engine error": {`function before_oauth2_authorise() { nothing.at.all }`, nil, "nothing is not defined"},
		"no web address":  {`function before_oauth2_authorise() { method_endpoint = 'javascript:alert(1)' }`, nil, "that is no http or https URL"},
		"no text":         {`function before_oauth2_authorise() { method_endpoint = {} }`, nil, "that is no http or https URL"},
		"no client":       {"", func(a *api) { a.Cred.Secrets.ClientID = "" }, "there is no client_id"},
		"no property":     {"", func(a *api) { a.Cred.Secrets.Properties = nil }, "auth.authorize_url: merge field {{tenant}} has no value"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newCodeAPI(t, c.script, nil)
			if c.change != nil {
				c.change(a)
			}
			_, err := a.Caller.Authorize(t.Context(), a.Def, a.Cred, redirectURL)
			var verdict *credentials.RefreshError
			if !errors.As(err, &verdict) {
				t.Fatalf("got %T %v", err, err)
			}
			contains(t, "text", verdict.Text, c.want)
		})
	}
}

func TestExchangeCode_verdicts(t *testing.T) {
	for name, c := range map[string]struct {
		answer  http.HandlerFunc
		verdict credentials.Verdict
		text    string
	}{
		"a spent code": {answering(400, `{"error":"invalid_grant","error_description":"used"}`), credentials.VerdictRevoked, "invalid_grant: used"},
		"a bad client": {answering(401, `{"error":"invalid_client"}`), credentials.VerdictMisconfigured, "check client_id"},
		"busy":         {answering(503, ``), credentials.Transient, "the token endpoint answered 503"},
		"no answer":    {dropping, credentials.Unknown, "never came"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newCodeAPI(t, "", c.answer)
			auth, _ := authorize(t, a)
			_, err := a.Caller.ExchangeCode(t.Context(), a.Def, a.Cred, auth, "the-code")
			var verdict *credentials.RefreshError
			if !errors.As(err, &verdict) || verdict.Verdict != c.verdict {
				t.Fatalf("got %T %v", err, err)
			}
			contains(t, "text", verdict.Text, c.text)
			if strings.Contains(verdict.Text, "asked again") {
				t.Errorf("nobody asks again: %s", verdict.Text)
			}
			a.only()
		})
	}
}

// The client's style is found out with the code in hand, even while a refresh
// of another account does the same.
func TestExchangeCode_autoStyle(t *testing.T) {
	for _, known := range []string{"", credentials.StyleTrying, credentials.StyleTried} {
		t.Run("known: "+known, func(t *testing.T) {
			s := &styles{m: map[string]string{"acme": known}}
			a := newTokenAPI(t, strings.Replace(strings.Replace(codeConnector, "auth_style: header", "auth_style: auto", 1), "{{tenant}}", "t", 2),
				func(w http.ResponseWriter, r *http.Request) {
					if r.Header.Get("Authorization") != "" {
						writeJSON(w, 401, `{"error":"invalid_client"}`)
						return
					}
					writeJSON(w, 200, `{"access_token":"new"}`)
				}, func(cfg *connectors.CallerConfig) { cfg.AuthStyles = s })
			auth, _ := authorize(t, a)
			if _, err := a.Caller.ExchangeCode(t.Context(), a.Def, a.Cred, auth, "c"); err != nil {
				t.Fatal(err)
			}
			if n := len(a.requests()); n != 2 || s.m["acme"] != "params" {
				t.Errorf("%d requests, learned %q", n, s.m["acme"])
			}
		})
	}
}

// A client that proves itself by an assertion learns the provider's clock with
// the code in hand, too.
func TestExchangeCode_misdatedAssertion(t *testing.T) {
	_, pem := newRSAKey(t)
	asked := 0
	a := newTokenAPI(t, strings.Replace(strings.Replace(codeConnector, "auth_style: header", "auth_style: private_key_jwt", 1), "{{tenant}}", "t", 2),
		func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", time.Now().Add(10*time.Minute).UTC().Format(http.TimeFormat))
			if asked++; asked == 1 {
				writeJSON(w, 400, `{"error":"invalid_grant"}`)
				return
			}
			writeJSON(w, 200, `{"access_token":"new"}`)
		})
	a.Cred.Secrets.PrivateKey = pem
	auth, _ := authorize(t, a)
	if _, err := a.Caller.ExchangeCode(t.Context(), a.Def, a.Cred, auth, "c"); err != nil || asked != 2 {
		t.Errorf("asked %d times: %v", asked, err)
	}
}
