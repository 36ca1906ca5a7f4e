package connectors_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v3"
	"github.com/go-jose/go-jose/v3/jwt"
	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/authserver"
)

func newRSAKey(t *testing.T) (*rsa.PrivateKey, credentials.Secret) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key, keyPEM("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))
}

func newECKey(t *testing.T) (*ecdsa.PrivateKey, credentials.Secret) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, keyPEM("PRIVATE KEY", der)
}

func keyPEM(kind string, der []byte) credentials.Secret {
	return credentials.NewSecret(string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})))
}

// verified are an assertion's header and claims, its signature checked.
func verified(t *testing.T, text string, key crypto.PublicKey) (jose.Header, map[string]any) {
	t.Helper()
	token, err := jwt.ParseSigned(text)
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	claims := map[string]any{}
	if err := token.Claims(key, &claims); err != nil {
		t.Fatal(err)
	}
	return token.Headers[0], claims
}

// Which refusals tell of the client, whoever's account it asks for, and which of
// the one account alone.
func TestRefresh_whatTellsOfTheClient(t *testing.T) {
	_, pem := newRSAKey(t)
	for code, of := range map[string]struct{ byToken, byAssertion bool }{
		"invalid_client": {true, true}, "invalid_scope": {true, true}, "unsupported_grant_type": {true, true},
		"unauthorized_client": {true, false}, // an assertion asks in the name of an account
		"invalid_request":     {}, "invalid_target": {}, "invalid_grant": {}, "server_error": {},
	} {
		for grant, want := range map[string]bool{"grant: authorization_code": of.byToken, "grant: jwt_bearer": of.byAssertion} {
			t.Run(code+" "+grant, func(t *testing.T) {
				a := newTokenAPI(t, strings.Replace(tokenConnector, "auth_style: header", "auth_style: header, "+grant, 1), answering(400, `{"error":"`+code+`"}`))
				a.Cred.Secrets.PrivateKey = pem
				if _, err := refresh(t, a, credentials.OAuth2); err == nil || err.Client != want {
					t.Errorf("got %+v, want %v", err, want)
				}
			})
		}
	}
}

// A provider whose clock is ahead refuses what is dated by ours, and tells its time
// by that: the next is dated by its clock.
func TestRefresh_assertionsAreDatedByTheProvidersClock(t *testing.T) {
	key, pem := newRSAKey(t)
	var issued []time.Duration // ahead of our clock
	a := newTokenAPI(t, strings.Replace(tokenConnector, "auth_style: header", "grant: jwt_bearer", 1), func(w http.ResponseWriter, r *http.Request) {
		_, claims := verified(t, r.PostFormValue("assertion"), &key.PublicKey)
		iat, _ := claims["iat"].(float64)
		issued = append(issued, time.Until(time.Unix(int64(iat), 0)).Round(time.Minute))
		w.Header().Set("Date", time.Now().Add(10*time.Minute).UTC().Format(http.TimeFormat))
		if len(issued) == 1 {
			writeJSON(w, 400, `{"error":"invalid_grant","error_description":"Check your iat and exp values in the JWT claim."}`)
			return
		}
		writeJSON(w, 200, `{"access_token":"new-access-token"}`)
	})
	a.Cred.Secrets.PrivateKey = pem
	if _, re := refresh(t, a, credentials.OAuth2); re == nil || re.Verdict != credentials.Transient {
		t.Fatalf("got %+v", re)
	}
	if _, re := refresh(t, a, credentials.OAuth2); re != nil {
		t.Fatal(re)
	}
	if d := cmp.Diff([]time.Duration{0, 10 * time.Minute}, issued); d != "" {
		t.Error(d)
	}
}

// Most providers give no reason by which a wrong time could be told from a dead
// account or a wrong key; that the assertion was misdated is known all the same.
func TestRefresh_aMisdatedAssertionRefusesNobody(t *testing.T) {
	cases := map[string]struct {
		how, body string
		ahead     time.Duration
		then      credentials.Verdict // of an assertion that is dated well
		client    bool
	}{
		"the grant, ahead":         {"grant: jwt_bearer", `{"error":"invalid_grant"}`, 10 * time.Minute, credentials.VerdictRevoked, false},
		"the grant, behind":        {"grant: jwt_bearer", `{"error":"invalid_grant"}`, -10 * time.Minute, credentials.VerdictRevoked, false},
		"the client":               {"auth_style: private_key_jwt", `{"error":"invalid_client"}`, 10 * time.Minute, credentials.VerdictMisconfigured, true},
		"clocks that nearly agree": {"grant: jwt_bearer", `{"error":"invalid_grant"}`, 5 * time.Second, credentials.VerdictRevoked, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, pem := newRSAKey(t)
			a := newTokenAPI(t, strings.Replace(tokenConnector, "auth_style: header", c.how, 1), func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Date", time.Now().Add(c.ahead).UTC().Format(http.TimeFormat))
				writeJSON(w, 400, c.body)
			})
			a.Cred.Secrets.PrivateKey = pem
			if c.ahead.Abs() > time.Minute {
				if _, re := refresh(t, a, credentials.OAuth2); re == nil || re.Verdict != credentials.Transient || re.Client {
					t.Fatalf("misdated: %+v", re)
				}
			}
			if _, re := refresh(t, a, credentials.OAuth2); re == nil || re.Verdict != c.then || re.Client != c.client {
				t.Errorf("dated well: %+v", re)
			}
		})
	}
}

// A real authorization server takes the assertions of either kind of key, one
// after the other, with no secret and no refresh token.
func TestRefresh_aRealServerTakesAssertions(t *testing.T) {
	rsaKey, rsaPEM := newRSAKey(t)
	ecKey, ecPEM := newECKey(t)
	grants := map[string]string{
		"jwt_bearer":                           "grant: jwt_bearer",
		"jwt_bearer, with a name for the key":  "grant: jwt_bearer, key_id: '{{kid}}'",
		"jwt_bearer and private_key_jwt":       "grant: jwt_bearer, auth_style: private_key_jwt",
		"client_credentials, private_key_jwt":  "grant: client_credentials, auth_style: private_key_jwt",
		"password, private_key_jwt, key named": "grant: password, auth_style: private_key_jwt, key_id: key-1",
	}
	for name, auth := range grants {
		for kind, k := range map[string]struct {
			public crypto.PublicKey
			pem    credentials.Secret
		}{"RSA": {&rsaKey.PublicKey, rsaPEM}, "EC": {&ecKey.PublicKey, ecPEM}} {
			t.Run(name+", "+kind, func(t *testing.T) {
				server, err := authserver.New()
				if err != nil {
					t.Fatal(err)
				}
				if _, _, err := server.Issue("anna"); err != nil { // she is known
					t.Fatal(err)
				}
				a := newAPI(t, "connector: acme\nbase_url: BASE\nauth: {type: oauth2, token_url: BASE/oauth/token, scopes: [api], "+auth+"}\nmethods: [{method: get, endpoint: /a}]\n", server.ServeHTTP)
				server.Trust(k.public, "anna", a.URL+"/oauth/token")
				s := &a.Cred.Secrets
				s.ClientID, s.PrivateKey, s.HasBasic, s.Username, s.Password = authserver.KeyClientID, k.pem, true, "anna", credentials.NewSecret("pw")
				s.Properties = properties(`{"kid":"key-1"}`)
				for range 2 {
					got, re := refresh(t, a, credentials.OAuth2)
					if re != nil {
						t.Fatal(re)
					}
					if !server.Alive(got.Token.AccessToken.Reveal()) || got.Token.Expiry.IsZero() {
						t.Error("the token is no good")
					}
				}
				for _, r := range a.requests() {
					if f := form(t, r.Body); f["client_secret"] != "" || r.Header.Get("Authorization") != "" {
						t.Errorf("sent %v", r)
					}
				}
			})
		}
	}
}

// A refresh token is exchanged under the same proof of the client.
func TestRefresh_aRealServerTakesTheCodeOfAKeyClient(t *testing.T) {
	key, keyText := newRSAKey(t)
	server, err := authserver.New()
	if err != nil {
		t.Fatal(err)
	}
	a := newAPI(t, "connector: acme\nbase_url: BASE\nauth: {type: oauth2, authorize_url: BASE/oauth/authorize, token_url: BASE/oauth/token, scopes: [api], auth_style: private_key_jwt}\nmethods: [{method: get, endpoint: /a}]\n", server.ServeHTTP)
	server.Trust(&key.PublicKey, "anna", a.URL+"/oauth/token")
	a.Cred.Secrets.ClientID, a.Cred.Secrets.PrivateKey = authserver.KeyClientID, keyText
	auth, err := a.Caller.Authorize(t.Context(), a.Def, a.Cred, authserver.Redirect)
	if err != nil {
		t.Fatal(err)
	}
	req := httptest.NewRequest(http.MethodGet, auth.URL, nil)
	req.SetBasicAuth("anna", "")
	rec := httptest.NewRecorder()
	server.ServeHTTP(rec, req)
	back, err := rec.Result().Location()
	if err != nil {
		t.Fatal(err)
	}
	first, err := a.Caller.ExchangeCode(t.Context(), a.Def, a.Cred, auth, back.Query().Get("code"))
	if err != nil {
		t.Fatal(err)
	}
	a.Cred.Secrets.OAuth2 = first.Token
	next, re := refresh(t, a, credentials.OAuth2)
	if re != nil || !server.Alive(next.Token.AccessToken.Reveal()) || next.Token.RefreshToken == first.Token.RefreshToken {
		t.Errorf("the refresh token was not taken: %v", re)
	}
}

// What providers document: Salesforce's audience is its login host; Google's
// issuer is an e-mail address, and it reads scope among the claims, as DocuSign does.
func TestRefresh_claims(t *testing.T) {
	key, keyText := newRSAKey(t)
	cases := map[string]struct {
		auth   string
		change func(*credentials.Secrets)
		claims map[string]any
		form   map[string]string
		kid    string
	}{
		"defaults": {"", nil, map[string]any{"iss": "the-client", "sub": "anna", "aud": "BASE/token"}, nil, ""},
		"Salesforce": {`audience: "https://{{domain}}.salesforce.com"`, func(s *credentials.Secrets) { s.Properties = properties(`{"domain":"login"}`) },
			map[string]any{"iss": "the-client", "sub": "anna", "aud": "https://login.salesforce.com"}, nil, ""},
		"Google, for itself": {`issuer: "{{client_email}}", scopes: [a, b], key_id: "{{private_key_id}}"`, func(s *credentials.Secrets) {
			s.HasBasic, s.Username, s.ClientID = false, "", ""
			s.Properties = properties(`{"client_email":"x@y.iam.gserviceaccount.com","private_key_id":"k1"}`)
		}, map[string]any{"iss": "x@y.iam.gserviceaccount.com", "aud": "BASE/token", "scope": "a b"}, map[string]string{"scope": "a b"}, "k1"},
		"DocuSign": {`subject: "{{user_id}}", audience: account.docusign.com, claims: {scope: signature impersonation}`,
			func(s *credentials.Secrets) { s.Properties = properties(`{"user_id":"u-1"}`) },
			map[string]any{"iss": "the-client", "sub": "u-1", "aud": "account.docusign.com", "scope": "signature impersonation"}, nil, ""},
		"claims keep their types, and go where they have no value": {`claims: {tenant: "{{n}}", box: {type: [enterprise, "{{kind}}"]}, gone: "{{api_key}}", on: true}`,
			func(s *credentials.Secrets) { s.Properties = properties(`{"n":7,"kind":"k"}`) },
			map[string]any{"iss": "the-client", "sub": "anna", "aud": "BASE/token", "tenant": 7.0, "box": map[string]any{"type": []any{"enterprise", "k"}}, "on": true}, nil, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			auth := ""
			if c.auth != "" {
				auth = ", " + c.auth
			}
			a := newAPI(t, "connector: acme\nbase_url: BASE\nauth: {type: oauth2, grant: jwt_bearer, token_url: BASE/token"+auth+"}\nparameters: [{name: client_email, target: merge_field, property: account}]\nmethods: [{method: get, endpoint: /a}]\n", answering(200, `{"access_token":"new"}`))
			s := &a.Cred.Secrets
			s.ClientID, s.PrivateKey, s.HasBasic, s.Username = "the-client", keyText, true, "anna"
			if c.change != nil {
				c.change(s)
			}
			begun := time.Now().Truncate(time.Second)
			var seen []string
			for range 2 {
				if _, re := refresh(t, a, credentials.OAuth2); re != nil {
					t.Fatal(re)
				}
				f := form(t, a.only().Body)
				header, claims := verified(t, f["assertion"], &key.PublicKey)
				if header.KeyID != c.kid || header.Algorithm != "RS256" {
					t.Errorf("header %+v", header)
				}
				issued, expires := int64(claims["iat"].(float64)), int64(claims["exp"].(float64))
				if now := time.Now().Unix(); issued < begun.Unix()-60 || issued > now || expires <= now || expires-issued > 180 {
					t.Errorf("issued at %d, expires at %d", issued, expires)
				}
				seen = append(seen, claims["jti"].(string))
				delete(claims, "iat")
				delete(claims, "exp")
				delete(claims, "jti")
				if aud, _ := claims["aud"].(string); aud == a.URL+"/token" {
					claims["aud"] = "BASE/token"
				}
				if d := cmp.Diff(c.claims, claims); d != "" {
					t.Error(d)
				}
				delete(f, "assertion")
				want := map[string]string{"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer"}
				for k, v := range c.form {
					want[k] = v
				}
				if d := cmp.Diff(want, f); d != "" {
					t.Error(d)
				}
			}
			if seen[0] == seen[1] || len(seen[0]) < 20 {
				t.Errorf("jti %v", seen)
			}
		})
	}
}

// A client that has a secret too shows it as auth_style says.
func TestRefresh_aSecretBesideTheAssertion(t *testing.T) {
	_, keyText := newRSAKey(t)
	for style, want := range map[string]string{"header": "Basic", "params": "secret", privateKey: "assertion"} {
		a := newTokenAPI(t, strings.ReplaceAll(tokenConnector, "auth_style: header", "grant: jwt_bearer, auth_style: "+style), answering(200, `{"access_token":"new"}`))
		a.Cred.Secrets.PrivateKey = keyText
		if _, re := refresh(t, a, credentials.OAuth2); re != nil {
			t.Fatal(re)
		}
		r := a.only()
		f := form(t, r.Body)
		basic, secret, assertion := r.Header.Get("Authorization") != "", f["client_secret"] != "", f["client_assertion"] != ""
		if basic != (want == "Basic") || secret != (want == "secret") || assertion != (want == "assertion") || !basic && f["client_id"] != "the-client" {
			t.Errorf("%s: %+v", style, f)
		}
	}
}

const privateKey = "private_key_jwt"

func TestRefresh_whatAnAssertionLacks(t *testing.T) {
	_, keyText := newRSAKey(t)
	for name, c := range map[string]struct {
		auth   string
		change func(*credentials.Secrets)
		want   string
	}{
		"no key":            {"grant: jwt_bearer", func(s *credentials.Secrets) { s.PrivateKey = credentials.Secret{} }, "there is no private_key: put one with the credential, or in the partner settings"},
		"no client":         {"grant: jwt_bearer", func(s *credentials.Secrets) { s.ClientID = "" }, "there is no client_id"},
		"no client either":  {"auth_style: private_key_jwt", func(s *credentials.Secrets) { s.ClientID = "" }, "there is no client_id"},
		"no subject":        {"grant: jwt_bearer, subject: '{{user}}'", func(s *credentials.Secrets) {}, `auth.subject: unknown merge field {{user}}`},
		"an empty audience": {"grant: jwt_bearer, audience: '{{api_key}}'", func(s *credentials.Secrets) {}, `auth.audience: a merge field of "{{api_key}}" has no value`},
	} {
		t.Run(name, func(t *testing.T) {
			a := newTokenAPI(t, "connector: acme\nbase_url: BASE\nauth: {type: oauth2, token_url: BASE/token, "+c.auth+"}\nmethods: [{method: get, endpoint: /a}]\n", nil)
			a.Cred.Secrets.PrivateKey = keyText
			c.change(&a.Cred.Secrets)
			_, re := refresh(t, a, credentials.OAuth2)
			if re == nil || re.Verdict != credentials.VerdictMisconfigured || len(a.requests()) != 0 {
				t.Fatalf("got %+v", re)
			}
			contains(t, "text", re.Text, c.want)
		})
	}
}

// The key may be the partner's. Neither it nor an assertion is ever shown.
func TestRefresh_keyAndAssertionsAreMasked(t *testing.T) {
	key, keyText := newRSAKey(t)
	var log strings.Builder
	var assertion string
	a := newTokenAPI(t, withHooks(`function before_oauth2_token() {
  console.log(method_request.assertion + ' ' + method_request.client_assertion);
}`), func(w http.ResponseWriter, r *http.Request) {
		assertion = r.FormValue("assertion")
		writeJSON(w, 400, `{"error":"invalid_grant","error_description":"`+assertion+`"}`)
	}, func(c *connectors.CallerConfig) {
		c.Partner = map[string]definition.PartnerSettings{"acme": {PrivateKey: keyText}}
		c.Logger = slog.New(slog.NewTextHandler(&log, nil))
	})
	a.Def.Auth.Grant, a.Def.Auth.AuthStyle = "jwt_bearer", "private_key_jwt"
	_, re := refresh(t, a, credentials.OAuth2)
	if re == nil || re.Verdict != credentials.VerdictRevoked {
		t.Fatalf("got %+v", re)
	}
	if _, claims := verified(t, assertion, &key.PublicKey); claims["iss"] != "the-client" {
		t.Errorf("claims %v", claims)
	}
	contains(t, "log", log.String(), "[redacted] [redacted]")
	lines := strings.Split(keyText.Reveal(), "\n")
	shown := credentials.NewRedactor(a.Caller.Secrets(a.Def, a.Cred), 6).String(keyText.Reveal() + lines[2])
	for _, secret := range []string{assertion, lines[1], lines[2]} {
		if strings.Contains(re.Text+log.String()+shown, secret) {
			t.Errorf("%q is shown", secret)
		}
	}
}
