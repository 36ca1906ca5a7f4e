package connectors_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
)

const tokenConnector = `
connector: acme
base_url: BASE
auth: {type: oauth2, token_url: BASE/token, auth_style: header}
methods: [{method: get, endpoint: /a}]
`

func newTokenAPI(t *testing.T, file string, answer http.HandlerFunc, configure ...func(*connectors.CallerConfig)) *api {
	t.Helper()
	a := newAPI(t, file, answer, configure...)
	a.Cred.Secrets.ClientID, a.Cred.Secrets.ClientSecret = "the-client", credentials.NewSecret("the client/secret")
	withToken(a.Cred, "old-access-token", "old-refresh-token")
	return a
}

func form(t *testing.T, body string) map[string]string {
	t.Helper()
	v, err := url.ParseQuery(body)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for k := range v {
		out[k] = v.Get(k)
	}
	return out
}

func TestRefresh_grants(t *testing.T) {
	cases := map[string]struct {
		auth string
		want map[string]string
	}{
		"authorization_code": {"grant: authorization_code", map[string]string{"grant_type": "refresh_token", "refresh_token": "old-refresh-token"}},
		"client_credentials": {"grant: client_credentials, scopes: [a, b]", map[string]string{"grant_type": "client_credentials", "scope": "a b"}},
		"password":           {"grant: password", map[string]string{"grant_type": "password", "username": "me", "password": "p w"}},
	}
	for name, c := range cases {
		for _, style := range []string{"header", "params"} {
			t.Run(name+", "+style, func(t *testing.T) {
				a := newTokenAPI(t, "connector: acme\nbase_url: BASE\nauth: {type: oauth2, token_url: BASE/token, auth_style: "+style+", "+c.auth+"}\nmethods: [{method: get, endpoint: /a}]\n",
					answering(200, `{"access_token":"new-access-token","refresh_token":"new-refresh-token","token_type":"bearer","expires_in":3600,"instance_url":"https://x"}`))
				a.Cred.Secrets.HasBasic, a.Cred.Secrets.Username, a.Cred.Secrets.Password = true, "me", credentials.NewSecret("p w")
				begun := time.Now()
				got, re := refresh(t, a, credentials.OAuth2)
				if re != nil {
					t.Fatal(re)
				}
				if got.Token.AccessToken.Reveal() != "new-access-token" || got.Token.RefreshToken.Reveal() != "new-refresh-token" || got.Status != 200 {
					t.Errorf("got %+v", got)
				}
				if life := got.Token.Expiry.Sub(begun); life < 59*time.Minute || life > 61*time.Minute {
					t.Errorf("the token lives %v", life)
				}
				contains(t, "raw answer", string(got.TokenRaw), `"instance_url":"https://x"`)
				r := a.only()
				want := map[string]string{}
				for k, v := range c.want {
					want[k] = v
				}
				auth := "Basic " + "dGhlLWNsaWVudDp0aGUrY2xpZW50JTJGc2VjcmV0" // the-client:the+client%2Fsecret
				if style == "params" {
					want["client_id"], want["client_secret"], auth = "the-client", "the client/secret", ""
				}
				if d := cmp.Diff(want, form(t, r.Body)); d != "" || r.Method != "POST" || r.Header.Get("Authorization") != auth ||
					r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" || r.Header.Get("Accept") != "application/json" {
					t.Errorf("sent %+v %s", r, d)
				}
			})
		}
	}
}

func TestRefresh_oddAnswers(t *testing.T) {
	const token = `"access_token":"new-access-token"`
	cases := map[string]struct {
		contentType, body string
		life              time.Duration // 0: not known
		keepsRefresh      bool
	}{
		"float":                  {"application/json", `{` + token + `,"expires_in":3600.0}`, time.Hour, true},
		"float with a rest":      {"application/json", `{` + token + `,"expires_in":3599.7}`, time.Hour, true},
		"text":                   {"application/json", `{` + token + `,"expires_in":"3600"}`, time.Hour, true},
		"empty text":             {"application/json", `{` + token + `,"expires_in":""}`, 0, true},
		"duration":               {"application/json", `{` + token + `,"expires_in":"1h"}`, -1, true},
		"negative":               {"application/json", `{` + token + `,"expires_in":-1}`, -1, true},
		"missing":                {"application/json", `{` + token + `}`, 0, true},
		"null":                   {"application/json", `{` + token + `,"expires_in":null}`, 0, true},
		"an object":              {"application/json", `{` + token + `,"expires_in":{"s":1}}`, 0, true},
		"json as text/plain":     {"text/plain", `{` + token + `,"expires_in":3600}`, time.Hour, true},
		"json as html":           {"text/html; charset=utf-8", `{` + token + `,"expires_in":3600}`, time.Hour, true},
		"no content type":        {"", `{` + token + `,"expires_in":3600}`, time.Hour, true},
		"byte-order mark":        {"application/json", "\ufeff{" + token + `,"expires_in":3600}`, time.Hour, true},
		"form":                   {"application/x-www-form-urlencoded", `access_token=new-access-token&expires_in=3600&scope=a+b`, time.Hour, true},
		"form as text":           {"text/plain", `access_token=new-access-token&expires_in=3600`, time.Hour, true},
		"refresh token empty":    {"application/json", `{` + token + `,"refresh_token":""}`, 0, true},
		"refresh token null":     {"application/json", `{` + token + `,"refresh_token":null}`, 0, true},
		"refresh token new":      {"application/json", `{` + token + `,"refresh_token":"new-refresh-token"}`, 0, false},
		"token type is a number": {"application/json", `{` + token + `,"token_type":1,"scope":["a"]}`, 0, true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newTokenAPI(t, tokenConnector, func(w http.ResponseWriter, _ *http.Request) {
				w.Header()["Content-Type"] = nil
				if c.contentType != "" {
					w.Header().Set("Content-Type", c.contentType)
				}
				_, _ = io.WriteString(w, c.body)
			})
			begun := time.Now()
			got, re := refresh(t, a, credentials.OAuth2)
			if re != nil {
				t.Fatal(re)
			}
			if got.Token.AccessToken.Reveal() != "new-access-token" {
				t.Errorf("got %+v", got)
			}
			// An empty one means that the store keeps the old.
			if r := got.Token.RefreshToken; c.keepsRefresh != (r.Empty() || r.Reveal() == "old-refresh-token") {
				t.Errorf("the refresh token is %q", r.Reveal())
			}
			switch life := got.Token.Expiry.Sub(begun); {
			case c.life < 0: // anything: it was stored, which is what counts
			case c.life == 0 && !got.Token.Expiry.IsZero():
				t.Errorf("the token lives %v", life)
			case c.life > 0 && (life < c.life-time.Minute || life > c.life+time.Minute):
				t.Errorf("the token lives %v", life)
			}
			if n := len(a.requests()); n != 1 {
				t.Errorf("%d token requests", n)
			}
		})
	}
}

func TestRefresh_verdicts(t *testing.T) {
	type row struct {
		status  int
		header  string
		body    string
		verdict credentials.Verdict
		after   time.Duration
	}
	oauthError := func(code string) string { return `{"error":"` + code + `"}` }
	cases := map[string]row{
		"200 without a token":        {200, "", `{}`, credentials.Transient, 0},
		"200 with an error":          {200, "", oauthError("invalid_grant"), credentials.VerdictRevoked, 0},
		"200 with a page":            {200, "", `<html>`, credentials.Transient, 0},
		"404":                        {404, "", ``, credentials.VerdictMisconfigured, 0},
		"405":                        {405, "", ``, credentials.VerdictMisconfigured, 0},
		"400 with nothing":           {400, "", ``, credentials.Transient, 0},
		"400 with a page":            {400, "", `<html>blocked</html>`, credentials.Transient, 0},
		"403 with a page":            {403, "", `<html>blocked</html>`, credentials.Transient, 0},
		"unknown error":              {400, "", oauthError("server_on_fire"), credentials.Transient, 0},
		"temporarily_unavailable":    {400, "", oauthError("temporarily_unavailable"), credentials.Transient, 0},
		"500 with invalid_grant":     {500, "", oauthError("invalid_grant"), credentials.Transient, 0},
		"302":                        {302, "", ``, credentials.Transient, 0},
		"429 with Retry-After":       {429, "30", ``, credentials.Transient, 30 * time.Second},
		"503 with Retry-After":       {503, "7", ``, credentials.Transient, 7 * time.Second},
		"nested code":                {400, "", `{"error":{"code":"invalid_grant"}}`, credentials.VerdictRevoked, 0},
		"invalid_grant as a 401":     {401, "", oauthError("invalid_grant"), credentials.VerdictRevoked, 0},
		"invalid_client as a 401":    {401, "", oauthError("invalid_client"), credentials.VerdictMisconfigured, 0},
		"bare 401 of a fixed style":  {401, "", ``, credentials.Transient, 0},
		"form-encoded error":         {400, "", `error=invalid_grant&error_description=x`, credentials.VerdictRevoked, 0},
		"invalid_grant with details": {400, "", `{"error":"invalid_grant","error_description":"old-refresh-token is used up"}`, credentials.VerdictRevoked, 0},
	}
	for _, code := range []string{"invalid_grant", "access_denied", "login_required", "consent_required", "interaction_required"} {
		cases[code] = row{400, "", oauthError(code), credentials.VerdictRevoked, 0}
	}
	for _, code := range []string{"invalid_client", "unauthorized_client", "invalid_scope", "invalid_request", "invalid_target", "unsupported_grant_type"} {
		cases[code] = row{400, "", oauthError(code), credentials.VerdictMisconfigured, 0}
	}
	for _, status := range []int{408, 409, 423, 425, 429, 500, 502, 503, 504} {
		cases[fmt.Sprint(status)] = row{status, "", ``, credentials.Transient, 0}
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newTokenAPI(t, tokenConnector, func(w http.ResponseWriter, _ *http.Request) {
				if c.header != "" {
					w.Header().Set("Retry-After", c.header)
				}
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			})
			_, re := refresh(t, a, credentials.OAuth2)
			if re == nil || re.Verdict != c.verdict || re.Status != c.status || re.RetryAfter != c.after {
				t.Fatalf("got %+v, want %s", re, c.verdict)
			}
			if re.Text == "" || strings.Contains(re.Text, "old-refresh-token") {
				t.Errorf("text is %q", re.Text)
			}
			if n := len(a.requests()); n != 1 {
				t.Errorf("%d token requests", n)
			}
		})
	}
}

func TestRefresh_anAnswerThatNeverCameIsUnknown(t *testing.T) {
	a := newTokenAPI(t, tokenConnector, dropping)
	if _, re := refresh(t, a, credentials.OAuth2); re == nil || re.Verdict != credentials.Unknown {
		t.Errorf("reset: got %+v", re)
	}
	if n := len(a.requests()); n != 1 {
		t.Errorf("%d token requests: the token may be spent", n)
	}
	cut := newTokenAPI(t, tokenConnector, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, `{"access`)
	})
	if _, re := refresh(t, cut, credentials.OAuth2); re == nil || re.Verdict != credentials.Unknown {
		t.Errorf("cut short: got %+v", re)
	}
	arrived, release := make(chan struct{}), make(chan struct{})
	slow := newTokenAPI(t, tokenConnector, func(http.ResponseWriter, *http.Request) { close(arrived); <-release })
	defer close(release)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-arrived; cancel() }()
	_, err := slow.Caller.Refresh(ctx, slow.Def, slow.Cred, credentials.OAuth2)
	if re, ok := err.(*credentials.RefreshError); !ok || re.Verdict != credentials.Unknown {
		t.Errorf("deadline: got %T %v", err, err)
	}
}

func TestRefresh_faultsBeforeSendingAreTransient(t *testing.T) {
	for name, u := range map[string]string{"unknown host": "http://no-such-host.invalid/token", "nobody listens": "http://127.0.0.1:1/token"} {
		a := newTokenAPI(t, strings.ReplaceAll(tokenConnector, "BASE/token", u), nil)
		if _, re := refresh(t, a, credentials.OAuth2); re == nil || re.Verdict != credentials.Transient {
			t.Errorf("%s: got %+v", name, re)
		}
	}
	a := newTokenAPI(t, tokenConnector, nil, func(c *connectors.CallerConfig) { c.AllowPrivate = false })
	if _, re := refresh(t, a, credentials.OAuth2); re == nil || re.Verdict != credentials.VerdictMisconfigured {
		t.Errorf("refused address: got %+v", re)
	}
}

func TestRefresh_withoutWhatItNeedsSendsNothing(t *testing.T) {
	a := newTokenAPI(t, tokenConnector, nil)
	a.Cred.Secrets.OAuth2.RefreshToken = credentials.Secret{}
	if _, re := refresh(t, a, credentials.OAuth2); re == nil || re.Verdict != credentials.VerdictRevoked {
		t.Errorf("no refresh token: got %+v", re)
	}
	cc := newTokenAPI(t, strings.Replace(tokenConnector, "auth_style", "grant: client_credentials, auth_style", 1), nil)
	cc.Cred.Secrets.ClientID = ""
	if _, re := refresh(t, cc, credentials.OAuth2); re == nil || re.Verdict != credentials.VerdictMisconfigured {
		t.Errorf("no client: got %+v", re)
	}
	if n := len(a.requests()) + len(cc.requests()); n != 0 {
		t.Errorf("%d requests", n)
	}
}

// styles remembers like the store does.
type styles struct {
	mu sync.Mutex
	m  map[string]string
}

func (s *styles) AuthStyle(_ context.Context, connector string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[connector], nil
}

func (s *styles) TryAuthStyle(_ context.Context, connector string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m[connector] != "" {
		return false, nil
	}
	s.m[connector] = credentials.StyleTrying
	return true, nil
}

func (s *styles) SetAuthStyle(_ context.Context, connector, style string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.m[connector] = style
	return nil
}

func TestRefresh_autoStyle(t *testing.T) {
	auto := strings.ReplaceAll(tokenConnector, "auth_style: header", "auth_style: auto")
	wants := func(style string, refusal http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			used := "params"
			if r.Header.Get("Authorization") != "" {
				used = "header"
			}
			if used != style {
				refusal(w, r)
				return
			}
			writeJSON(w, 200, `{"access_token":"new-access-token"}`)
		}
	}
	cases := map[string]struct {
		style    string
		refusal  http.HandlerFunc
		requests int
		learned  string
	}{
		"header works":              {"header", nil, 1, "header"},
		"params after 401":          {"params", answering(401, ``), 2, "params"},
		"params after a client":     {"params", answering(400, `{"error":"invalid_client"}`), 2, "params"},
		"not after a refused grant": {"params", answering(400, `{"error":"invalid_grant"}`), 1, ""},
		"not after a 500":           {"params", answering(500, ``), 1, ""},
		"not after no answer":       {"params", dropping, 1, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			known := &styles{m: map[string]string{}}
			a := newTokenAPI(t, auto, wants(c.style, c.refusal), func(cfg *connectors.CallerConfig) { cfg.AuthStyles = known })
			_, re := refresh(t, a, credentials.OAuth2)
			if (re == nil) != (c.learned != "") || known.m["acme"] != c.learned {
				t.Errorf("got %+v, learned %q", re, known.m["acme"])
			}
			if n := len(a.requests()); n != c.requests {
				t.Errorf("%d requests, want %d", n, c.requests)
			}
			if c.learned == "" {
				return
			}
			if _, re := refresh(t, a, credentials.OAuth2); re != nil || len(a.requests()) != 1 {
				t.Error("what was learned is not used")
			}
			// Another process learns it from the store.
			b := newTokenAPI(t, auto, wants(c.style, c.refusal), func(cfg *connectors.CallerConfig) { cfg.AuthStyles = known })
			if _, re := refresh(t, b, credentials.OAuth2); re != nil || len(b.requests()) != 1 {
				t.Error("what was stored is not used")
			}
		})
	}
}

func TestRefresh_aPublicClientSaysItsNameInTheBody(t *testing.T) {
	a := newTokenAPI(t, strings.ReplaceAll(tokenConnector, "auth_style: header", "auth_style: auto"), answering(200, `{"access_token":"new"}`))
	a.Cred.Secrets.ClientSecret = credentials.Secret{}
	if _, re := refresh(t, a, credentials.OAuth2); re != nil {
		t.Fatal(re)
	}
	r := a.only()
	if f := form(t, r.Body); f["client_id"] != "the-client" || r.Header.Get("Authorization") != "" {
		t.Errorf("sent %+v", r)
	}
}

func TestRefresh_partnerSettings(t *testing.T) {
	a := newTokenAPI(t, tokenConnector, answering(200, `{"access_token":"new"}`), func(c *connectors.CallerConfig) {
		c.Partner = map[string]definition.PartnerSettings{"acme": {ClientID: "partner-id", ClientSecret: "partner-secret"}}
	})
	a.Cred.Secrets.ClientID, a.Cred.Secrets.ClientSecret = "", credentials.Secret{}
	if _, re := refresh(t, a, credentials.OAuth2); re != nil {
		t.Fatal(re)
	}
	if got := a.only().Header.Get("Authorization"); got != "Basic cGFydG5lci1pZDpwYXJ0bmVyLXNlY3JldA==" {
		t.Errorf("sent %q", got)
	}
}

func withHooks(script string) string {
	return tokenConnector + "script: |\n  " + strings.ReplaceAll(script, "\n", "\n  ") + "\n"
}

func TestRefresh_hooks(t *testing.T) {
	a := newTokenAPI(t, withHooks(`function before_oauth2_refresh() {
  method_request.extra = method_request.grant_type + '!';
  delete method_request.scope;
  method_request_headers['X-Tenant'] = external_account_id;
}
function after_oauth2_refresh() {
  method_response = {access_token: method_response.data.token, expires_in: method_response.data.ttl, kept: 1};
}`), answering(200, `{"data":{"token":"new-access-token","ttl":60}}`))
	got, re := refresh(t, a, credentials.OAuth2)
	if re != nil {
		t.Fatal(re)
	}
	if got.Token.AccessToken.Reveal() != "new-access-token" || got.Token.Expiry.IsZero() {
		t.Errorf("got %+v", got)
	}
	r := a.only()
	if form(t, r.Body)["extra"] != "refresh_token!" || r.Header.Get("X-Tenant") != "cust-42" {
		t.Errorf("sent %+v", r)
	}
}

func TestRefresh_tokenHooksForATokenThatIsNoRefresh(t *testing.T) {
	a := newTokenAPI(t, strings.Replace(withHooks(`function before_oauth2_token() { method_request.audience = 'x' }
function before_oauth2_refresh() { throw 'not this one' }
function after_oauth2_token() { method_response.access_token += '!' }`), "auth_style", "grant: client_credentials, auth_style", 1), answering(200, `{"access_token":"new"}`))
	got, re := refresh(t, a, credentials.OAuth2)
	if re != nil {
		t.Fatal(re)
	}
	if got.Token.AccessToken.Reveal() != "new!" || form(t, a.only().Body)["audience"] != "x" {
		t.Errorf("got %+v", got)
	}
}

func TestRefresh_failuresOfHooks(t *testing.T) {
	cases := map[string]struct {
		script  string
		verdict credentials.Verdict
		after   time.Duration
		sent    int
	}{
		"engine error before": {`function before_oauth2_refresh() { nothing.here }`, credentials.VerdictMisconfigured, 0, 0},
		"engine error after":  {`function after_oauth2_refresh() { nothing.here }`, credentials.VerdictMisconfigured, 0, 1},
		"thrown":              {`function before_oauth2_refresh() { throw 'not now: ' + method_request.refresh_token }`, credentials.Transient, 0, 0},
		"false":               {`function before_oauth2_refresh() { return false }`, credentials.Transient, 0, 0},
		"later":               {`function before_oauth2_refresh() { throw new RetryLaterException(50, 'closed at night') }`, credentials.Transient, 50 * time.Second, 0},
		"cannot refresh":      {`function after_oauth2_refresh() { throw new AuthRefreshException() }`, credentials.VerdictMisconfigured, 0, 1},
		"no object":           {`function before_oauth2_refresh() { method_request = [1] }`, credentials.VerdictMisconfigured, 0, 0},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newTokenAPI(t, withHooks(c.script), answering(200, `{"odd":{"token":"new"}}`))
			_, re := refresh(t, a, credentials.OAuth2)
			if re == nil || re.Verdict != c.verdict || re.RetryAfter != c.after {
				t.Fatalf("got %+v", re)
			}
			if strings.Contains(re.Text, "old-refresh-token") {
				t.Errorf("text is %q", re.Text)
			}
			if n := len(a.requests()); n != c.sent {
				t.Errorf("%d token requests, want %d", n, c.sent)
			}
		})
	}
}

// An answer in which no token can be read may have spent the one that was sent.
// It is handed on, and read again, before anything else is sent.
func TestRefresh_anAnswerWithoutATokenIsReadAgain(t *testing.T) {
	const nested = `{"data":{"token":"new-access-token","refresh":"new-refresh-token"}}`
	a := newTokenAPI(t, tokenConnector, answering(200, nested))
	_, re := refresh(t, a, credentials.OAuth2)
	if re == nil || re.Verdict != credentials.Transient || string(re.Answer) != nested {
		t.Fatalf("got %+v", re)
	}
	mended := newTokenAPI(t, withHooks(`function after_oauth2_refresh() {
  method_response = {access_token: method_response.data.token, refresh_token: method_response.data.refresh};
}`), answering(400, `{"error":"invalid_grant"}`))
	mended.Cred.Answer = re.Answer
	got, re := refresh(t, mended, credentials.OAuth2)
	if re != nil || got.Token.AccessToken.Reveal() != "new-access-token" || got.Token.RefreshToken.Reveal() != "new-refresh-token" {
		t.Fatalf("got %+v, %v", got, re)
	}
	if n := len(mended.requests()); n != 0 {
		t.Errorf("%d token requests with a token that may be spent", n)
	}
	mended.Cred.Answer = []byte(`{"data":{}}`)
	if _, re = refresh(t, mended, credentials.OAuth2); re == nil || re.Verdict != credentials.VerdictRevoked || len(mended.requests()) != 1 {
		t.Errorf("an answer of no use keeps it from being asked: %+v", re)
	}
	for name, answer := range map[string]http.HandlerFunc{"an error": answering(200, `{"error":"invalid_grant"}`), "a refusal": answering(400, nested)} {
		if _, re := refresh(t, newTokenAPI(t, tokenConnector, answer), credentials.OAuth2); re == nil || re.Answer != nil {
			t.Errorf("%s is kept: %+v", name, re)
		}
	}
}

// The provider rotated when it answered: a script that stumbles over the
// answer must not lose the token, and its verdict must not be lost either.
func TestRefresh_aTokenIsKeptThoughItsHookFails(t *testing.T) {
	const standard = `{"access_token":"new-access-token","refresh_token":"new-refresh-token"}`
	cases := map[string]struct {
		script, answer string
		problem        *credentials.RefreshError // Text: a part of it
	}{
		"well":         {`return true`, standard, nil},
		"engine error": {`nothing.here`, standard, &credentials.RefreshError{Verdict: credentials.VerdictMisconfigured, Text: "acme.yaml:"}},
		"thrown":       {`throw 'no scope in ' + method_response.refresh_token`, standard, &credentials.RefreshError{Verdict: credentials.Transient, Text: "no scope in [redacted]"}},
		"false":        {`return false`, standard, &credentials.RefreshError{Verdict: credentials.Transient, Text: "after_oauth2_refresh"}},
		"later":        {`throw new RetryLaterException(50, 'not yet')`, standard, &credentials.RefreshError{Verdict: credentials.Transient, Text: "not yet", RetryAfter: 50 * time.Second}},
		"reshaped, then thrown": {`method_response = method_response.data; throw 'no scope'`, `{"data":` + standard + `}`,
			&credentials.RefreshError{Verdict: credentials.Transient, Text: "no scope"}},
		"spoiled": {`method_response = null`, standard, &credentials.RefreshError{Verdict: credentials.VerdictMisconfigured, Text: "after_oauth2_refresh left no access_token"}},
		"made an error": {`method_response = {error: 'invalid_grant', error_description: 'not ' + method_response.access_token}`, standard,
			&credentials.RefreshError{Verdict: credentials.VerdictRevoked, Text: "invalid_grant: not [redacted])"}},
		"spoiled, then thrown": {`method_response = {}; throw 'no scope'`, standard, &credentials.RefreshError{Verdict: credentials.Transient, Text: "no scope"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newTokenAPI(t, withHooks("function after_oauth2_refresh() { "+c.script+" }"), answering(200, c.answer))
			got, re := refresh(t, a, credentials.OAuth2)
			if re != nil || got.Token.RefreshToken.Reveal() != "new-refresh-token" {
				t.Fatalf("got %+v, %v", got, re)
			}
			contains(t, "raw answer", string(got.TokenRaw), "new-access-token")
			if got.Problem == nil || c.problem == nil {
				if (got.Problem == nil) != (c.problem == nil) {
					t.Errorf("the problem is %+v", got.Problem)
				}
				return
			}
			contains(t, "problem", got.Problem.Text, c.problem.Text)
			if p := got.Problem; p.Verdict != c.problem.Verdict || p.RetryAfter != c.problem.RetryAfter || p.Status != 200 {
				t.Errorf("the problem is %+v", p)
			}
		})
	}
}

func TestRefresh_hooksShareActionDataAndSeeTheGlobalsOfEveryEvent(t *testing.T) {
	a := newTokenAPI(t, withHooks(`function before_oauth2_refresh() { action_data.seen = [script_execution_context, transaction_id, cycle_id, cycle_step_id, cyclr_account_id] }
function after_oauth2_refresh() { method_response.scope = action_data.seen.concat(script_execution_context, cycle_id).join() }`), answering(200, `{"access_token":"new"}`))
	got, re := refresh(t, a, credentials.OAuth2)
	if re != nil {
		t.Fatal(re)
	}
	sameJSON(t, "raw answer", got.TokenRaw, `{"access_token":"new","scope":"RUNNING_TRANSACTION,,,,42,RUNNING_TRANSACTION,"}`)
}

func TestRefresh_actionDataIsAnObjectAgainAfterIt(t *testing.T) {
	for _, emptied := range []string{"action_data = null", "delete action_data"} {
		a := newTokenAPI(t, withHooks(`function before_oauth2_refresh() { `+emptied+` }
function after_oauth2_refresh() { action_data.x = 'y'; method_response.scope = action_data.x }`), answering(200, `{"access_token":"new"}`))
		got, re := refresh(t, a, credentials.OAuth2)
		if re != nil || got.Problem != nil {
			t.Fatalf("%s: %v, %+v", emptied, re, got)
		}
		sameJSON(t, "raw answer", got.TokenRaw, `{"access_token":"new","scope":"y"}`)
	}
}

func TestRefresh_hooksSeeInlineScriptParameters(t *testing.T) {
	file := func(value string) string {
		return withHooks("function after_oauth2_refresh() { method_response.scope = [script_parameters.who, last_successful_run_date, method_response_fields.length].join() }") +
			"parameters:\n  - {name: who, target: script, value: \"" + value + "\"}\n"
	}
	a := newTokenAPI(t, file("='account ' + {{AccountId}}"), answering(200, `{"access_token":"new"}`))
	got, re := refresh(t, a, credentials.OAuth2)
	if re != nil {
		t.Fatal(re)
	}
	sameJSON(t, "raw answer", got.TokenRaw, `{"access_token":"new","scope":"account 42,1970-01-01T00:00:00Z,0"}`)

	a = newTokenAPI(t, file("=nothing.there"), answering(200, `{"access_token":"new"}`))
	got, _ = refresh(t, a, credentials.OAuth2)
	if got == nil || got.Problem == nil || got.Problem.Verdict != credentials.VerdictMisconfigured {
		t.Errorf("the token is kept, and the mistake told beside it: got %+v", got)
	}
}

// Script parameters are the same around a token request as in a call: filled,
// of their type, and hidden where they are sensitive.
func TestRefresh_hooksSeeScriptParametersAsCallsDo(t *testing.T) {
	const parameters = `parameters:
  - {name: filled, target: script, value: "{{AccountId}}-x"}
  - {name: typed, target: script, type: integer, value: "={{AccountId}}"}
  - {name: stepless, target: script, value: "{{CycleId}}/{{v}}", optional: true}
  - {name: signed, target: script, sensitive: true, value: "='canary-' + {{AccountId}}"}
  - {name: v, target: merge_field, optional: true}
`
	a := newTokenAPI(t, withHooks("function after_oauth2_refresh() { method_response.scope = JSON.stringify(script_parameters); }")+parameters, answering(200, `{"access_token":"new"}`))
	got, re := refresh(t, a, credentials.OAuth2)
	if re != nil {
		t.Fatal(re)
	}
	sameJSON(t, "raw answer", got.TokenRaw, `{"access_token":"new","scope":"{\"filled\":\"42-x\",\"typed\":42,\"signed\":\"canary-42\"}"}`)

	a = newTokenAPI(t, withHooks("function before_oauth2_refresh() { throw 'saw ' + script_parameters.signed }")+parameters, nil)
	if _, re := refresh(t, a, credentials.OAuth2); re == nil || strings.Contains(re.Text, "canary") || !strings.Contains(re.Text, "saw [redacted]") {
		t.Errorf("got %+v", re)
	}
}

func TestRefresh_newTokensAreMaskedInHookErrors(t *testing.T) {
	a := newTokenAPI(t, withHooks(`function after_oauth2_refresh() { var t = method_response.nested.secret; method_response = {}; throw 'saw ' + JSON.stringify(method_request === undefined) }`),
		answering(200, `{"nested":{"secret":"x"},"id_token":"canary-id-token"}`))
	if _, re := refresh(t, a, credentials.OAuth2); re == nil || strings.Contains(re.Text, "canary") {
		t.Errorf("got %+v", re)
	}
	b := newTokenAPI(t, withHooks(`function after_oauth2_refresh() { throw 'saw ' + method_response.id_token }`), answering(200, `{"id_token":"canary-id-token"}`))
	if _, re := refresh(t, b, credentials.OAuth2); re == nil || strings.Contains(re.Text, "canary") {
		t.Errorf("got %+v", re)
	}
}

func TestRefresh_sessionURLFromProperties(t *testing.T) {
	a := newTokenAPI(t, `
connector: acme
base_url: BASE
auth: {type: oauth2, token_url: "BASE/{{tenant}}/token", auth_style: header}
parameters: [{name: tenant, target: merge_field, property: account}]
methods: [{method: get, endpoint: /a}]
`, answering(200, `{"access_token":"new"}`))
	a.Cred.Secrets.Properties = map[string]json.RawMessage{"tenant": json.RawMessage(`"t/1"`)}
	if _, re := refresh(t, a, credentials.OAuth2); re != nil {
		t.Fatal(re)
	}
	if got := a.only().URI; got != "/t%2F1/token" {
		t.Errorf("sent to %s", got)
	}
}

// What a script logs where no execution runs must be seen as well.
func TestLogger_getsWhatScriptsOfACredentialLog(t *testing.T) {
	var out strings.Builder
	a := newTokenAPI(t, `
connector: acme
base_url: BASE
auth: {type: oauth2, token_url: BASE/token, auth_style: header}
post_install: {property_lookup_method: login, test_auth_method: me}
parameters: [{name: sid, target: http_header, as: X-Sid, property: session}]
script: |
  function before_oauth2_refresh() { console.log('refresh ' + method_request.refresh_token) }
  function after_oauth2_refresh() { console.log('token ' + method_response.access_token) }
methods:
  - {method: login, endpoint: /login, response: {fields: [{field: id, system: sid}]}, script: "function after_action() { console.log('login ' + method_response.id) }"}
  - {method: me, endpoint: /me, script: "function before_action() { console.log('test ' + session_properties.sid); throw 'no' }"}
`, answering(200, `{"access_token":"canary-access","id":"canary-session"}`), func(cfg *connectors.CallerConfig) {
		cfg.Logger = slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
				return slog.Attr{}
			}
			return a
		}}))
	})
	if _, re := refresh(t, a, credentials.OAuth2); re != nil {
		t.Fatal(re)
	}
	if _, re := refresh(t, a, credentials.Session); re == nil {
		t.Fatal("the test method did not fail")
	}
	want := ""
	for _, text := range []string{"refresh", "token", "test", "login"} {
		want += `msg=script credential_id=cust42-acme connector=acme text="` + text + ` [redacted]"` + "\n"
	}
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Error(d)
	}
}

// The clock of a token endpoint is learned from whatever it answers: one that
// refuses a JWT for its times tells the right time beside it.
func TestRefresh_learnsTheProvidersClock(t *testing.T) {
	const behind = -7 * time.Minute
	date, status := "", 400
	a := newTokenAPI(t, tokenConnector, func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Date"] = nil
		if date != "" {
			w.Header().Set("Date", date)
		}
		writeJSON(w, status, `{"error":"invalid_grant"}`)
	})
	expect := func(want time.Duration) {
		t.Helper()
		_, _ = a.Caller.Refresh(t.Context(), a.Def, a.Cred, credentials.OAuth2)
		if got := a.Caller.Skew("acme"); (got - want).Abs() > 2*time.Second {
			t.Errorf("skew is %s, want %s", got, want)
		}
	}
	expect(0)
	date = time.Now().Add(behind).UTC().Format(http.TimeFormat)
	expect(behind)
	status, date = 503, ""
	expect(behind)
	date = time.Now().Add(48 * time.Hour).UTC().Format(http.TimeFormat)
	expect(behind)
	date = time.Now().UTC().Format(http.TimeFormat)
	expect(0)
	if got := a.Caller.Skew("another"); got != 0 {
		t.Errorf("another connector's skew is %s", got)
	}
}
