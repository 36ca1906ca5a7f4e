package connectors_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
)

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// traced has a caller tell what it does, a line for each.
func traced(lines *[]string) func(*connectors.CallerConfig) {
	say := func(format string, args ...any) { *lines = append(*lines, fmt.Sprintf(format, args...)) }
	return func(cfg *connectors.CallerConfig) {
		cfg.Trace = &connectors.Trace{
			Event: func(e connectors.TracedEvent) {
				say("%s %v %s %v", e.Name, e.Levels, e.Result, e.Logs)
				for _, c := range e.Changes {
					say("  %s: %s -> %s", c.Name, c.Old, c.New)
				}
			},
			Secret: func(s connectors.NamedSecret) { say("secret %s %s", s.Name, s.Value) },
		}
		cfg.Transport = func(guarded http.RoundTripper) http.RoundTripper {
			return roundTrip(func(req *http.Request) (*http.Response, error) {
				say("%s: %s %s", connectors.PurposeOf(req.Context()), req.Method, req.URL.Path)
				return guarded.RoundTrip(req)
			})
		}
	}
}

func TestTrace_tellsWhatACallDoes(t *testing.T) {
	var lines []string
	a := newAPI(t, `
connector: acme
base_url: BASE
auth: {type: oauth2, token_url: BASE/token}
post_install: {property_lookup_method: login}
parameters:
  - {name: sid, target: http_header, property: session, optional: true}
  - {name: pin, target: query_string, sensitive: true, optional: true}
script: |
  function before_action() { console.log('hi'); method_request_parameters.x = 1; http_request({url: 'BASE/other'}); return method_name; }
  function before_oauth2_refresh() { method_request.audience = 'a'; }
methods:
  - method: login
    verb: POST
    endpoint: /login
    response: {fields: [{field: id, system: sid}]}
  - method: get
    endpoint: /things
`, func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, 200, map[string]string{"/token": `{"access_token":"second-token","refresh_token":"second-refresh"}`, "/login": `{"id":"session-1"}`, "/things": `{}`, "/other": `{}`}[r.URL.Path])
	}, traced(&lines))
	withToken(a.Cred, "first-token", "first-refresh")
	a.Cred.Secrets.Session = map[string]string{"sid": "session-0"}
	a.must("get", func(c *connectors.Call) {
		c.Parameters = map[string]json.RawMessage{"pin": json.RawMessage(`"secret-pin"`)}
	})
	for _, kind := range []credentials.Kind{credentials.OAuth2, credentials.Session} {
		if _, err := a.Caller.Refresh(t.Context(), a.Def, a.Cred, kind); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		"secret pin secret-pin",
		"http_request: GET /other",
		`before_action [connector] "get" [hi]`,
		`  method_request_parameters: {"pin":"secret-pin"} -> {"pin":"secret-pin","x":1}`,
		"method get: GET /things",
		"before_oauth2_refresh [connector]  []",
		`  method_request: {"grant_type":"refresh_token","refresh_token":"first-refresh"} -> {"grant_type":"refresh_token","refresh_token":"first-refresh","audience":"a"}`,
		"token request: POST /token",
		"secret access_token second-token",
		"secret refresh_token second-refresh",
		"http_request: GET /other",
		`before_action [connector] "login" [hi]`,
		`  method_request_parameters: {} -> {"x":1}`,
		"method login: POST /login",
		"secret sid session-1",
	}
	if d := cmp.Diff(want, lines); d != "" {
		t.Error(d)
	}
}

func TestTrace_tellsLevelsInTheirOrder(t *testing.T) {
	var lines []string
	a := newAPI(t, `
connector: acme
base_url: BASE
script: |
  function before_action() { console.log('connector'); }
  function after_action() { console.log('connector'); }
methods:
  - method: get
    endpoint: /things
    script: |
      function before_action() { console.log('method'); }
      function after_action() { console.log('method'); }
`, answering(200, "{}"), traced(&lines))
	a.must("get")
	want := []string{"before_action [method connector]  [method connector]", "method get: GET /things", "after_action [connector method]  [connector method]"}
	if d := cmp.Diff(want, lines); d != "" {
		t.Error(d)
	}
}

func TestCaller_namesSecrets(t *testing.T) {
	a := newAPI(t, `
connector: acme
base_url: BASE
auth: {type: basic}
parameters:
  - {name: domain, target: merge_field, property: account}
  - {name: app_key, target: http_header, property: account, sensitive: true}
methods: [{method: get, endpoint: /things}]
`, nil)
	s := &a.Cred.Secrets
	s.Username, s.Password, s.HasBasic = "ann", credentials.NewSecret("the-password"), true
	s.Properties = map[string]json.RawMessage{"domain": json.RawMessage(`"eu1"`), "app_key": json.RawMessage(`"the-key"`)}
	got := a.Caller.NamedSecrets(a.Def, a.Cred)
	slices.SortFunc(got, func(a, b connectors.NamedSecret) int { return strings.Compare(a.Name, b.Name) })
	got = slices.Compact(got)
	if d := cmp.Diff([]connectors.NamedSecret{{Name: "app_key", Value: "the-key"}, {Name: "password", Value: "the-password"}}, got); d != "" {
		t.Error(d)
	}
}

// What was sealed is masked, though no parameter is marked sensitive.
func TestPartnerSettings_sealedAreMasked(t *testing.T) {
	partner := definition.PartnerSettings{ClientID: "app-number-7", ClientSecret: "hunter22", Properties: properties(`{"app_key":"k\"ey-of-the-app"}`),
		Sealed: []string{"client_id", "client_secret", "properties.app_key"}}
	a := newAPI(t, `
connector: acme
base_url: BASE
parameters: [{name: app_key, target: http_header, property: partner}]
methods: [{method: get, endpoint: /things}]
`, nil, func(c *connectors.CallerConfig) { c.Partner = map[string]definition.PartnerSettings{"acme": partner} })
	e := a.fails("get", withScript(`function after_action() { throw method_request_headers.app_key + ' of app-number-7'; }`))
	if a.only().Header.Get("app_key") != `k"ey-of-the-app` || strings.Contains(e.Message, "ey-of-the-app") || strings.Contains(e.Message, "number-7") {
		t.Error(e.Message)
	}
	names := []string{}
	for _, n := range a.Caller.NamedSecrets(a.Def, a.Cred) {
		names = append(names, n.Name)
	}
	for _, want := range []string{"client_id", "client_secret", "app_key"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is not among %v", want, names)
		}
	}
}
