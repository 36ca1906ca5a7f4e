package connectors_test

import (
	"crypto"
	"crypto/rsa"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mrjones/oauth"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
)

const signedConnector = `
connector: acme
base_url: BASE
auth: {type: oauth1, signature: METHOD}
post_install: {test_auth_method: plain}
methods:
  - {method: plain, endpoint: /plain}
  - {method: query, endpoint: "/query?z=1", parameters: [{name: q, target: query_string}]}
  - {method: form, endpoint: "/form?a=b", verb: POST, data_type: form, parameters: [{name: q, target: query_string}]}
  - {method: json, endpoint: /json, verb: POST}
  - {method: moved, endpoint: /moved}
  - {method: bare, endpoint: /bare, ignore_auth: true}
  - {method: nested, endpoint: /plain}
`

// verifying is a provider whose library checks each signature; it counts those
// that were good and refuses the others.
func verifying(t *testing.T, method string, key *rsa.PrivateKey, good map[string]string) http.HandlerFunc {
	t.Helper()
	sp := oauth.ServiceProvider{SignQueryParams: true}
	provider := oauth.NewProvider(func(consumer string, params map[string]string) (*oauth.Consumer, error) {
		switch method {
		case "RSA-SHA1":
			return oauth.NewRSAConsumer(consumer, key, sp), nil
		case "HMAC-SHA256":
			return oauth.NewCustomConsumer(consumer, "cönsumer secret&", crypto.SHA256, sp, nil), nil
		}
		return oauth.NewConsumer(consumer, "cönsumer secret&", sp), nil
	})
	seen := map[string]bool{}
	return func(w http.ResponseWriter, r *http.Request) {
		header := r.Header.Get("Authorization")
		consumer, err := provider.IsAuthorized(r)
		if err != nil || *consumer != "the-client" || seen[header] || !strings.Contains(header, `oauth_signature_method="`+method+`"`) {
			writeJSON(w, 401, `{}`)
			return
		}
		seen[header] = true // a nonce is used once
		good[r.URL.Path] = header
		if r.URL.Path == "/moved" {
			http.Redirect(w, r, "/there?x=%20y", http.StatusFound)
			return
		}
		writeJSON(w, 200, `{}`)
	}
}

// A signature tells the time by the provider's clock, once that is known.
func TestOAuth1_timestampByTheProvidersClock(t *testing.T) {
	var stamps []time.Duration // ahead of our clock
	a := newAPI(t, strings.Replace(signedConnector, "METHOD", "HMAC-SHA1", 1), func(w http.ResponseWriter, r *http.Request) {
		_, rest, _ := strings.Cut(r.Header.Get("Authorization"), `oauth_timestamp="`)
		sec, _ := strconv.ParseInt(strings.SplitN(rest, `"`, 2)[0], 10, 64)
		stamps = append(stamps, time.Until(time.Unix(sec, 0)).Round(time.Minute))
		w.Header().Set("Date", time.Now().Add(-10*time.Minute).UTC().Format(http.TimeFormat))
		writeJSON(w, 200, `{}`)
	})
	a.Cred.Secrets.ClientID, a.Cred.Secrets.ClientSecret = "the-client", credentials.NewSecret("a secret")
	for range 2 {
		if _, err := a.call("plain"); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff([]time.Duration{0, -10 * time.Minute}, stamps); d != "" {
		t.Error(d)
	}
}

// Whatever hooks made of the request, what is sent is signed: query, form and
// redirects, and what scripts send to the connector's own host.
func TestOAuth1_theProvidersLibraryTakesTheSignatures(t *testing.T) {
	key, keyText := newRSAKey(t)
	for _, method := range []string{"HMAC-SHA1", "HMAC-SHA256", "RSA-SHA1"} {
		t.Run(method, func(t *testing.T) {
			good := map[string]string{}
			a := newAPI(t, strings.ReplaceAll(signedConnector, "METHOD", method)+`script: |
  function before_action() {
    if (method_name == 'form') {
      method_request.text = 'Ladies + Gentlemen, 100% *sure*~ ü';
      method_request_parameters.added = 'a b&c';
      method_endpoint = method_endpoint.replace('/form', '/changed');
    }
    if (method_name == 'nested') {
      var form = http_request({method: 'POST', url: 'BASE/mine', headers: {'Content-Type': 'application/x-www-form-urlencoded'}, data: 'x=1+2&y=%2F'});
      var get = http_request({method: 'GET', url: 'BASE/mine2', parameters: {p: 'q r'}});
      action_data.status = [form.status_code, get.status_code];
    }
  }
  function after_action() { if (method_name == 'nested') method_response = action_data.status; }
`, verifying(t, method, key, good))
			a.Cred.Secrets.ClientID, a.Cred.Secrets.ClientSecret = "the-client", credentials.NewSecret("cönsumer secret&")
			if method == "RSA-SHA1" {
				a.Cred.Secrets.ClientSecret, a.Cred.Secrets.PrivateKey = credentials.Secret{}, keyText
			}
			a.must("plain")
			a.must("query", withParameters(`{"q":"r s/+ü"}`))
			a.must("form", withParameters(`{"q":"1"}`), func(c *connectors.Call) { c.Body = []byte(`{"n":1}`) })
			a.must("json", func(c *connectors.Call) { c.Body = []byte(`{"n":1}`) })
			a.must("moved")
			answer := a.must("nested")
			sameJSON(t, "what scripts were answered", answer.Content, `[200,200]`)
			for _, path := range []string{"/plain", "/query", "/changed", "/json", "/moved", "/there", "/mine", "/mine2"} {
				if !strings.HasPrefix(good[path], "OAuth oauth_consumer_key=") {
					t.Errorf("%s was not signed well: %q", path, good[path])
				}
			}
		})
	}
}

// The account's own credentials win over the client's; a script's header and
// ignore_auth are left alone; a refusal asks the test method, as with a key.
func TestOAuth1_whoseCredentials(t *testing.T) {
	a := newAPI(t, strings.ReplaceAll(signedConnector, "METHOD", "HMAC-SHA1"), nil, func(c *connectors.CallerConfig) {
		c.Partner = map[string]definition.PartnerSettings{"acme": {ClientID: "partner-key", ClientSecret: "partner-secret"}}
	})
	a.must("plain")
	header := a.only().Header.Get("Authorization")
	contains(t, "header", header, `oauth_consumer_key="partner-key"`)
	if strings.Contains(header, "oauth_token") || strings.Contains(header, "realm") {
		t.Errorf("there is no token: %s", header)
	}
	a.Cred.Secrets.OAuth1 = &credentials.OAuth1{ConsumerKey: "own key", ConsumerSecret: credentials.NewSecret("s"), Token: credentials.NewSecret("the-token"), TokenSecret: credentials.NewSecret("ts"), Realm: "12_SB1"}
	answer := a.must("plain", withScript(`function after_action() { method_response = [method_auth_value]; }`))
	header = a.only().Header.Get("Authorization")
	contains(t, "header", header, `OAuth realm="12_SB1", oauth_consumer_key="own%20key", `)
	contains(t, "header", header, `oauth_token="the-token"`)
	sameJSON(t, "method_auth_value", answer.Content, `["the-token"]`)
	a.must("bare")
	a.must("plain", withScript(`function before_action() { method_request_headers.Authorization = 'mine'; }`))
	if seen := a.requests(); len(seen) != 2 || seen[0].Header.Get("Authorization") != "" || seen[1].Header.Get("Authorization") != "mine" {
		t.Errorf("sent %+v", seen)
	}
	if oauth2, session := a.Caller.CanRefresh(a.Def, a.Cred); oauth2 || session {
		t.Error("there is nothing to renew")
	}
}

// Some servers answer a chunked body with 411.
func TestOAuth1_anEmptyFormIsSentWithItsLength(t *testing.T) {
	var length int64
	a := newAPI(t, strings.ReplaceAll(signedConnector, "METHOD", "HMAC-SHA1"), func(w http.ResponseWriter, r *http.Request) {
		length = r.ContentLength
		writeJSON(w, 200, `{}`)
	})
	a.Cred.Secrets.ClientID, a.Cred.Secrets.ClientSecret = "the-client", credentials.NewSecret("a secret")
	a.must("form", withParameters(`{"q":"1"}`), func(c *connectors.Call) { c.Body = []byte(`{}`) })
	if length != 0 {
		t.Errorf("Content-Length %d, want 0: the body was sent in chunks", length)
	}
}

func TestOAuth1_whatIsMissing(t *testing.T) {
	_, ec := newECKey(t)
	own := func(o credentials.OAuth1) *credentials.OAuth1 { return &o }
	for name, c := range map[string]struct {
		method string
		oauth1 *credentials.OAuth1
		key    credentials.Secret
		want   string
	}{
		"consumer key":    {"HMAC-SHA1", nil, credentials.Secret{}, "the credential has no oauth1.consumer_key, which auth type oauth1 needs"},
		"consumer secret": {"HMAC-SHA256", own(credentials.OAuth1{ConsumerKey: "k"}), credentials.Secret{}, "the credential has no oauth1.consumer_secret, which auth type oauth1 needs"},
		"token secret": {"HMAC-SHA1", own(credentials.OAuth1{ConsumerKey: "k", ConsumerSecret: credentials.NewSecret("s"), Token: credentials.NewSecret("t")}), credentials.Secret{},
			"the credential has no oauth1.token_secret, which auth type oauth1 needs"},
		"private key": {"RSA-SHA1", own(credentials.OAuth1{ConsumerKey: "k"}), credentials.Secret{}, "the credential has no private_key, which auth type oauth1 needs"},
		"RSA key":     {"RSA-SHA1", own(credentials.OAuth1{ConsumerKey: "k"}), ec, "private_key: RSA-SHA1 needs an RSA key"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, strings.ReplaceAll(signedConnector, "METHOD", c.method), nil)
			a.Cred.Secrets.OAuth1, a.Cred.Secrets.PrivateKey = c.oauth1, c.key
			if ce := a.fails("plain"); ce.Kind != "input" || ce.Message != c.want || len(a.requests()) != 0 {
				t.Errorf("%+v", ce)
			}
		})
	}
}
