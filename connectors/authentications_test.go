package connectors_test

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
)

const withFields = `
connector: acme
base_url: BASE
auth:
  type: auth_fields
  fields:
    - {name: user, key: login.user}
    - {name: secret, key: login.secret}
    - {name: tenant, type: integer}
methods:
  - {method: get, endpoint: /things}
  - {method: add, verb: POST, endpoint: /things}
  - {method: form, verb: POST, endpoint: /things, data_type: form, body: {a: 1}}
  - {method: own, verb: PUT, endpoint: /things, body: {tenant: mine, login: {user: somebody}}}
  - {method: drop, verb: DELETE, endpoint: /things}
  - {method: public, verb: POST, endpoint: /things, ignore_auth: true, body: {a: 1}}
  - method: named
    endpoint: "/u/{{user}}"
    headers: {X-Tenant: "{{tenant}}"}
  - method: seen
    verb: POST
    endpoint: /things
    script: |
      function before_action() { action_data.before = JSON.stringify(method_request); method_request = {by: 'script', login: {secret: 's'}}; }
      function after_action() { method_response = {before: action_data.before, after: method_request, value: JSON.parse(method_auth_value)}; }
`

func fieldsAPI(t *testing.T) *api {
	a := newAPI(t, withFields, nil)
	a.Cred.Secrets.Fields = map[string]credentials.Secret{
		"user": credentials.NewSecret("ann"), "secret": credentials.NewSecret("hunter22"), "tenant": credentials.NewSecret("0042")}
	return a
}

func TestAuthFields_standInBodies(t *testing.T) {
	for name, c := range map[string]struct {
		method, step, uri, want string
	}{
		"a body is made":                       {"add", "", "/things", `{"login":{"user":"ann","secret":"hunter22"},"tenant":42}`},
		"beside what the step brings":          {"add", `{"x":1}`, "/things", `{"x":1,"login":{"user":"ann","secret":"hunter22"},"tenant":42}`},
		"not over what the step brings":        {"add", `{"tenant":null}`, "/things", `{"tenant":null,"login":{"user":"ann","secret":"hunter22"}}`},
		"not over what the connector says":     {"own", "", "/things", `{"tenant":"mine","login":{"user":"somebody","secret":"hunter22"}}`},
		"in a form, where depth is JSON":       {"form", "", "/things", `a=1&login=%7B%22user%22%3A%22ann%22%2C%22secret%22%3A%22hunter22%22%7D&tenant=42`},
		"never for a GET without a body":       {"get", "", "/things", ``},
		"nor for a DELETE without one":         {"drop", "", "/things", ``},
		"for a DELETE with one":                {"drop", `{"id":7}`, "/things", `{"id":7,"login":{"user":"ann","secret":"hunter22"},"tenant":42}`},
		"not where authentication is left out": {"public", "", "/things", `{"a":1}`},
		"where merge fields name them":         {"named", "", "/u/ann", ``},
	} {
		t.Run(name, func(t *testing.T) {
			a := fieldsAPI(t)
			a.must(c.method, func(call *connectors.Call) {
				if c.step != "" {
					call.Body = []byte(c.step)
				}
			})
			got := a.only()
			if got.Body != c.want || got.URI != c.uri {
				t.Errorf("%s %s\ngot  %s\nwant %s", got.Method, got.URI, got.Body, c.want)
			}
			if c.method == "named" && got.Header.Get("X-Tenant") != "0042" {
				t.Errorf("X-Tenant: %q", got.Header.Get("X-Tenant"))
			}
		})
	}
}

func TestAuthFields_noScriptSeesThemInTheRequest(t *testing.T) {
	a := fieldsAPI(t)
	answer := a.must("seen")
	if got, want := a.only().Body, `{"by":"script","login":{"secret":"s","user":"ann"},"tenant":42}`; got != want {
		t.Errorf("sent %s, want %s", got, want)
	}
	sameJSON(t, "content", answer.Content, `{"before":"null","after":{"by":"script","login":{"secret":"s"}},"value":{"user":"ann","secret":"hunter22","tenant":"0042"}}`)
}

func TestAuthFields_whatCannotBe(t *testing.T) {
	a := fieldsAPI(t)
	body := func(raw string) func(*connectors.Call) {
		return func(c *connectors.Call) { c.Body = []byte(raw) }
	}
	for raw, want := range map[string]string{
		`[1]`:         "the authentication's fields stand in the body (auth_fields), so the body must be an object",
		`"text"`:      "the authentication's fields stand in the body (auth_fields), so the body must be an object",
		`{"login":7}`: `the authentication's fields stand in the body (auth_fields), and the body has something else than an object on the way to "login.user"`,
	} {
		if e := a.fails("add", body(raw)); e.Kind != "input" || e.Message != want {
			t.Errorf("%s: %s %s", raw, e.Kind, e.Message)
		}
	}
	a.Cred.Secrets.Fields["tenant"] = credentials.NewSecret("north")
	if e := a.fails("add"); e.Kind != "input" || e.Message != `the authentication's fields stand in the body (auth_fields), and field "tenant" of the credential is not of type integer` {
		t.Errorf("%s %s", e.Kind, e.Message)
	}
	delete(a.Cred.Secrets.Fields, "secret")
	a.Cred.Version++
	if e := a.fails("add"); e.Kind != "input" || e.Message != `the credential has no field "secret" (fields), which auth type auth_fields needs` {
		t.Errorf("%s %s", e.Kind, e.Message)
	}
	if n := len(a.requests()); n != 0 {
		t.Errorf("%d requests were sent", n)
	}
}

func TestAuthFields_areSecret(t *testing.T) {
	a := fieldsAPI(t)
	if got := a.Caller.NamedSecrets(a.Def, a.Cred); !slices.Contains(got, connectors.NamedSecret{Name: "secret", Value: "hunter22"}) {
		t.Errorf("%v", got)
	}
	e := a.fails("add", withScript(`function before_action() { throw 'it is ' + JSON.parse(method_auth_value).secret; }`))
	if strings.Contains(e.Message, "hunter22") {
		t.Error(e.Message)
	}
}

func TestAuthFields_logInToo(t *testing.T) {
	a := newAPI(t, `
connector: acme
base_url: BASE
auth: {type: auth_fields, refresh_on: [401], fields: [{name: secret}]}
post_install: {property_lookup_method: login}
parameters: [{name: sid, target: http_header, as: X-Session, property: session}]
methods:
  - {method: login, verb: POST, endpoint: /login, response: {fields: [{field: sid, system: sid}]}}
  - {method: add, verb: POST, endpoint: /things}
`, answering(200, `{"sid":"session-1"}`))
	a.Cred.Secrets.Fields = map[string]credentials.Secret{"secret": credentials.NewSecret("hunter22")}
	if e := a.refused("add"); e.Kind != credentials.Session || e.NoRenewal {
		t.Errorf("%+v", e)
	}
	renewal, re := refresh(t, a, credentials.Session)
	if re != nil || renewal.Session["sid"] != "session-1" {
		t.Fatal(re)
	}
	if got := a.only().Body; got != `{"secret":"hunter22"}` {
		t.Errorf("the login sent %s", got)
	}
}

func TestIgnoreAuth_leavesEverythingOut(t *testing.T) {
	const file = `
connector: acme
base_url: BASE
ignore_auth: true
auth: AUTH
methods:
  - method: add
    verb: POST
    endpoint: /things
    body: {a: 1}
    script: |
      function before_action() { http_request({method: 'POST', url: 'BASE/more', headers: {}, data: '{}'}); }
  - {method: with, verb: POST, endpoint: /things, ignore_auth: false, body: {a: 1}}
`
	for name, auth := range map[string]string{
		"a header":     `{type: api_key, name: X-Key}`,
		"a query":      `{type: api_key, in: query, name: key}`,
		"a body":       `{type: api_key, in: body, name: key}`,
		"basic":        `{type: basic}`,
		"oauth1":       `{type: oauth1}`,
		"oauth2":       `{type: oauth2, token_url: BASE/token}`,
		"fields":       `{type: auth_fields, fields: [{name: key}]}`,
		"fields, deep": `{type: auth_fields, fields: [{name: key, key: a.b}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, strings.Replace(file, "AUTH", auth, 1), nil)
			secret := credentials.NewSecret("s3cret-key")
			a.Cred.Secrets = credentials.Secrets{APIKey: secret, Username: "ann", Password: secret, HasBasic: true, Fields: map[string]credentials.Secret{"key": secret},
				ClientID: "app", ClientSecret: secret, OAuth1: &credentials.OAuth1{Token: secret, TokenSecret: secret}, OAuth2: &credentials.Token{AccessToken: secret}}
			a.must("add")
			seen := a.requests()
			if len(seen) != 2 {
				t.Fatalf("%d requests", len(seen))
			}
			for _, r := range seen {
				if text := r.URI + r.Body; r.Header.Get("Authorization")+r.Header.Get("X-Key") != "" || strings.Contains(text, "key") || strings.Contains(text, "s3cret") {
					t.Errorf("%s %s %v %s", r.Method, r.URI, r.Header, r.Body)
				}
			}
			if name == "fields, deep" {
				a.fails("with")
				return
			}
			a.must("with")
			r := a.only()
			if u, _ := url.Parse(r.URI); r.Header.Get("Authorization")+r.Header.Get("X-Key")+u.Query().Get("key") == "" && !strings.Contains(r.Body, "s3cret-key") {
				t.Errorf("a method that does not ignore it has none: %+v", r)
			}
		})
	}
}

const alternatives = `
connector: acme
base_url: BASE
authentications:
  - {name: Key, auth: {type: api_key, name: X-Key}}
  - {name: App, default: true, auth: {type: oauth2, grant: client_credentials, token_url: BASE/token}}
  - {name: Old app, auth: {type: oauth2, grant: client_credentials, token_url: BASE/old/token, hosts: [files.example]}}
methods:
  - {method: get, endpoint: /things}
`

func TestAuthentications_aCredentialHasOne(t *testing.T) {
	a := newAPI(t, alternatives, func(w http.ResponseWriter, r *http.Request) { writeJSON(w, 200, `{"access_token":"new-access"}`) })
	a.Cred.Secrets.APIKey = credentials.NewSecret("the-api-key")
	a.Cred.Secrets.ClientID, a.Cred.Secrets.ClientSecret = "app", credentials.NewSecret("app-secret")
	base := a.Def
	use := func(name string) {
		t.Helper()
		a.Cred.Authentication = name
		var ok bool
		if a.Def, ok = base.For(a.Cred); !ok {
			t.Fatalf("there is no %q", name)
		}
		a.requests()
	}
	use("Key")
	a.must("get")
	if got := a.only().Header.Get("X-Key"); got != "the-api-key" {
		t.Errorf("X-Key: %q", got)
	}
	if oauth2, _ := a.Caller.CanRefresh(a.Def, a.Cred); oauth2 {
		t.Error("a key can be renewed")
	}
	clients := map[string]string{}
	for name, path := range map[string]string{"": "/token", "App": "/token", "Old app": "/old/token"} {
		use(name)
		if e := a.refused("get"); e.Kind != credentials.OAuth2 || !e.Unsent {
			t.Errorf("%q: %+v", name, e)
		}
		if _, re := refresh(t, a, credentials.OAuth2); re != nil {
			t.Fatal(re)
		}
		if got := a.requests()[0].URI; got != path {
			t.Errorf("%q asked %s", name, got)
		}
		clients[name] = a.Caller.RefreshRequest(a.Def, a.Cred, credentials.OAuth2).Client(a.Cred).Key
	}
	if clients[""] == "" || clients[""] != clients["App"] || clients["App"] == clients["Old app"] {
		t.Errorf("refused clients are remembered as %v", clients)
	}
	a.Cred.Authentication = "old ap"
	if _, ok := base.For(a.Cred); ok {
		t.Error("an unknown one was found")
	}
	if got, want := base.LacksAuthentication(a.Cred), `connector "acme" has no authentication "old ap", which the credential names; did you mean "Old app"?`; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

func TestAuthentications_styleIsTheirOwn(t *testing.T) {
	a := newAPI(t, alternatives, func(w http.ResponseWriter, r *http.Request) {
		if _, _, inHeader := r.BasicAuth(); inHeader == (r.URL.Path == "/token") { // /token wants params, /old/token the header
			writeJSON(w, 401, `{"error":"invalid_client"}`)
			return
		}
		writeJSON(w, 200, `{"access_token":"new-access"}`)
	})
	a.Cred.Secrets.ClientID, a.Cred.Secrets.ClientSecret = "app", credentials.NewSecret("app-secret")
	base := a.Def
	for _, name := range []string{"App", "Old app", "App", "Old app"} {
		a.Cred.Authentication = name
		a.Def, _ = base.For(a.Cred)
		if _, re := refresh(t, a, credentials.OAuth2); re != nil {
			t.Errorf("%s: %v", name, re)
		}
	}
	if n := len(a.requests()); n != 5 {
		t.Errorf("%d requests, want 5: only the first of App is made twice", n)
	}
}

func TestClientProperties_areTheCredentialsOwnClient(t *testing.T) {
	a := newAPI(t, alternatives, func(w http.ResponseWriter, r *http.Request) { writeJSON(w, 200, `{"access_token":"new-access"}`) },
		func(c *connectors.CallerConfig) {
			c.Partner = map[string]definition.PartnerSettings{"acme": {ClientID: "partner", ClientSecret: "partner-secret"}}
		})
	asked := func() string {
		t.Helper()
		if _, re := refresh(t, a, credentials.OAuth2); re != nil {
			t.Fatal(re)
		}
		r := http.Request{Header: a.requests()[0].Header}
		id, secret, _ := r.BasicAuth()
		return id + ":" + secret
	}
	if got := asked(); got != "partner:partner-secret" {
		t.Error(got)
	}
	a.Cred.Secrets.Properties = properties(`{"ClientId":"own","ClientSecret":"own-secret"}`)
	a.Cred.Version++
	if got := asked(); got != "own:own-secret" {
		t.Error(got)
	}
	if got := a.Caller.NamedSecrets(a.Def, a.Cred); !slices.Contains(got, connectors.NamedSecret{Name: "client_secret", Value: "own-secret"}) {
		t.Errorf("it is not masked: %v", got)
	}
	a.Cred.Secrets.ClientID, a.Cred.Secrets.ClientSecret = "member", credentials.NewSecret("member-secret")
	if got := asked(); got != "member:member-secret" {
		t.Error(got)
	}
}

// The alternative that a method has no place for harms that method alone, and
// says so.
func TestAlternatives_thatAMethodHasNoPlaceFor(t *testing.T) {
	a := newAPI(t, `
connector: acme
base_url: BASE
authentications:
  - {name: App, auth: {type: none}}
  - {name: Fields, auth: {type: auth_fields, fields: [{name: user}]}}
  - {name: Key, auth: {type: api_key, in: body, name: key}}
methods:
  - {method: add, verb: POST, endpoint: /things}
  - {method: text, verb: POST, endpoint: /text, data_type: plain_text, response: {data_type: json}, body: hello}
`, nil)
	a.Cred.Secrets.APIKey = credentials.NewSecret("the-api-key")
	a.Cred.Secrets.Fields = map[string]credentials.Secret{"user": credentials.NewSecret("ann")}
	base := a.Def
	for name, want := range map[string]string{
		"App":    "",
		"Fields": `the authentication's fields stand in the body (auth_fields), and one of data_type plain_text has no place for them: method "text" cannot be called with this credential`,
		"Key":    `the API key stands in the body (auth.in), and one of data_type plain_text has no place for it: method "text" cannot be called with this credential`,
	} {
		a.Cred.Authentication = name
		a.Def, _ = base.For(a.Cred)
		a.must("add")
		if want == "" {
			a.must("text")
			continue
		}
		if e := a.fails("text"); e.Kind != "input" || e.Message != want {
			t.Errorf("%s: got %q\nwant %q", name, e.Message, want)
		}
	}
}
