package connectors_test

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/hooks"
)

const oneMethod = `
connector: acme
base_url: BASE
methods:
  - method: get
    endpoint: /things
`

func TestCall_sendsNothingUnasked(t *testing.T) {
	a := newAPI(t, `
connector: acme
base_url: BASE/api/
methods:
  - method: add
    verb: POST
    endpoint: /things
    body: {name: "<b> & co", n: 1}
`, nil)
	a.must("add")
	got := a.only()
	delete(got.Header, "Accept-Encoding") // the transport's own, undone by it
	want := request{Method: "POST", URI: "/api/things", Host: strings.TrimPrefix(a.URL, "http://"), Body: `{"name":"<b> & co","n":1}`, Header: http.Header{
		"Accept": {"application/json"}, "Content-Type": {"application/json"}, "Content-Length": {"25"}, "User-Agent": got.Header["User-Agent"],
	}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	contains(t, "User-Agent", got.Header.Get("User-Agent"), "stepworker")
}

// The four ways in which the founding document's samples say that a
// credential is dead.
func TestCall_deadCredential(t *testing.T) {
	file := func(auth, script string) string {
		return `
connector: acme
base_url: BASE
auth: ` + auth + `
post_install: {property_lookup_method: login}
parameters:
  - {name: session_id, target: http_header, as: X-Session, property: session}
script: |
  ` + strings.ReplaceAll(script, "\n", "\n  ") + `
methods:
  - method: login
    verb: POST
    endpoint: /login
    response: {fields: [{field: id, system: session_id}]}
  - method: get
    endpoint: /things
`
	}
	oauth2 := "{type: oauth2, token_url: BASE/token}"
	cases := map[string]struct {
		auth, script, body string
		status             int
		kind               credentials.Kind
	}{
		"200 with invalid_grant in the body": {oauth2, `function after_action() {
  if (method_response != null && method_response.error != null && typeof method_response.error !== 'undefined' && method_response.error === 'invalid_grant') {
    throw new AuthRefreshException();
  }
  return true;
}`, `{"error":"invalid_grant"}`, 200, credentials.OAuth2},
		"403 and method_error.error": {oauth2, `function after_error() {
  if (method_error != null && method_error.error != null && method_error.statusCode.toString() === '403') {
    throw new AuthRefreshException();
  }
  return true;
}`, `{"message":"no"}`, 403, credentials.OAuth2},
		"200 with an error code in the body": {"{type: none}", `function after_action() {
  if (method_response != null && method_response.error_code != null && typeof method_response.error_code !== 'undefined' && method_response.error_code === 'You are not logged on.') {
    throw new AuthSessionException();
  }
  return true;
}`, `{"error_code":"You are not logged on."}`, 200, credentials.Session},
		"403 and statusCode": {"{type: none}", `function after_error() {
  if (method_error != null && method_error.statusCode != null && method_error.statusCode.toString() === '403') {
    throw new AuthSessionException();
  }
  return true;
}`, ``, 403, credentials.Session},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, file(c.auth, c.script), answering(c.status, c.body))
			withToken(a.Cred, "the-access-token", "the-refresh-token")
			a.Cred.Secrets.Session = map[string]string{"session_id": "s1"}
			e := a.refused("get")
			if e.Kind != c.kind || e.Version != 7 || e.Status != c.status || e.NoRenewal || e.Unsent || !e.Ran {
				t.Errorf("got %+v", e)
			}
			contains(t, "at", e.At, "acme.yaml:")
		})
	}
}

func TestCall_authExceptionFromTheStepsScriptFailsTheExecution(t *testing.T) {
	for _, class := range []string{"AuthRefreshException", "AuthSessionException"} {
		a := newAPI(t, oneMethod, nil)
		e := a.fails("get", withScript("function after_action() {\n  throw new "+class+"(); }"))
		if e.Kind != "script" || e.Repeat {
			t.Errorf("got %+v", e)
		}
		contains(t, "message", e.Message, "connector scripts")
		if e.At != "step:2:9" && e.At != "step:2:3" {
			t.Errorf("at is %q", e.At)
		}
	}
}

func TestCall_authExceptionsAreForTheCallItself(t *testing.T) {
	for _, class := range []string{"AuthRefreshException", "AuthSessionException"} {
		for event, honoured := range map[string]bool{"before_action": true, "after_action": true, "after_action_paging": true, "action_condition": false} {
			t.Run(class+" in "+event, func(t *testing.T) {
				a := newAPI(t, strings.Replace(oneMethod, "methods:", "auth: {type: oauth2, token_url: BASE/token}\npost_install: {property_lookup_method: get}\nmethods:", 1)+
					"    script: function "+event+"() { throw new "+class+"() }\n", nil)
				withToken(a.Cred, "the-access-token", "")
				if honoured {
					a.refused("get")
					return
				}
				e := a.fails("get")
				if e.Kind != "script" || e.Repeat || e.At == "" {
					t.Errorf("got %+v", e)
				}
				contains(t, "message", e.Message, event)
			})
		}
	}
}

func TestCall_aStepHasNoSayInHowAMethodEnds(t *testing.T) {
	a := newAPI(t, oneMethod, nil)
	if got := a.must("get", withScript(`function action_condition() { return true }`)); got.Exit != nil {
		t.Errorf("got exit %v", *got.Exit)
	}
}

func TestCall_aStepsScriptIsReadBeforeAnythingIsSent(t *testing.T) {
	a := newAPI(t, oneMethod, nil)
	e := a.fails("get", withScript("function after_action() {\n  return tru e;\n}"))
	if e.Kind != "script" || !strings.HasPrefix(e.At, "step:2:") || e.Ran {
		t.Errorf("got %+v", e)
	}
	if n := len(a.requests()); n != 0 {
		t.Errorf("the API saw %d requests", n)
	}
}

func TestCall_theOtherExceptionCannotRenewAnything(t *testing.T) {
	cases := map[string]struct{ auth, class, missing string }{
		"no oauth2": {"none", "AuthRefreshException", "auth.type: oauth2"},
		"no login":  {"none", "AuthSessionException", "post_install.property_lookup_method"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, oneMethod+"    script: |\n      function after_action() { throw new "+c.class+"(); }\n", nil)
			e := a.refused("get")
			if !e.NoRenewal || e.CannotRenew() != "the connector cannot renew it: it has no "+c.missing {
				t.Errorf("got %+v", e)
			}
		})
	}
}

// What a person alone can replace lacks no login: its text names none.
func TestCall_whatAPersonAloneCanReplaceSaysSo(t *testing.T) {
	for auth, what := range map[string]string{
		"{type: api_key}": "an API key", "{type: basic}": "a user name and password",
		"{type: oauth1}": "an OAuth 1.0a token", "{type: auth_fields, fields: [{name: user}]}": "the fields of an account",
	} {
		for _, script := range []string{"throw new AuthRefreshException();", "throw new AuthSessionException();", ""} {
			t.Run(auth+script, func(t *testing.T) {
				on := auth
				if script == "" {
					on = strings.TrimSuffix(auth, "}") + ", refresh_on: [401]}"
				}
				a := newAPI(t, "connector: acme\nbase_url: BASE\nauth: "+on+"\nmethods: [{method: get, endpoint: /things}]\nscript: |\n  function after_error() { "+script+" return true; }\n", answering(401, `{}`))
				a.Cred.Secrets.APIKey, a.Cred.Secrets.HasBasic = credentials.NewSecret("a-key"), true
				a.Cred.Secrets.OAuth1 = &credentials.OAuth1{ConsumerKey: "app", ConsumerSecret: credentials.NewSecret("app-secret")}
				a.Cred.Secrets.Fields = map[string]credentials.Secret{"user": credentials.NewSecret("ann")}
				e := a.refused("get")
				want := "the worker cannot renew " + what + ": a person must put the credential anew (worker credential put)"
				if got := e.CannotRenew(); !e.NoRenewal || got != want {
					t.Errorf("got %q, want %q", got, want)
				}
			})
		}
	}
}

func TestCall_refreshOn(t *testing.T) {
	file := func(auth, script string) string {
		return `
connector: acme
base_url: BASE
auth: {` + auth + `, refresh_on: [401]}
post_install: {property_lookup_method: login}
methods:
  - {method: login, verb: POST, endpoint: /login}
  - method: get
    endpoint: /things
    script: "` + script + `"
`
	}
	run := func(t *testing.T, auth, script string) *api {
		a := newAPI(t, file(auth, script), answering(401, `{}`))
		withToken(a.Cred, "the-access-token", "")
		return a
	}
	oauth2 := "type: oauth2, token_url: BASE/token"
	if e := run(t, oauth2, "").refused("get"); e.Kind != credentials.OAuth2 || e.Status != 401 {
		t.Errorf("oauth2: got %+v", e)
	}
	if e := run(t, "type: none", "").refused("get"); e.Kind != credentials.Session {
		t.Errorf("session: got %+v", e)
	}
	if got := run(t, oauth2, "function after_error() { method_error.isSuccess = true; method_error.content = '{}' }").must("get"); got.StatusCode != 401 {
		t.Errorf("resolved: got %+v", got)
	}
	login := run(t, "type: none", "")
	login.Def.TestMethod, login.Cred.Secrets.Opened = "get", true
	if _, re := refresh(t, login, credentials.Session); re == nil || !strings.Contains(re.Text, "refused with 401") {
		t.Errorf("a login: got %+v", re)
	}
	if re := login.Caller.Test(t.Context(), login.Def, login.Cred); re == nil || !strings.Contains(re.Error(), "refused with 401") {
		t.Errorf("a test: got %+v", re)
	}
	if e := run(t, oauth2, "function after_error() { throw 'mine' }").fails("get"); e.Kind != "script" {
		t.Errorf("thrown: got %+v", e)
	}
}

func TestCall_levelsOrderAndGlobals(t *testing.T) {
	a := newAPI(t, `
connector: acme
base_url: BASE
auth: {type: api_key, name: X-Key}
parameters:
  - {name: region, target: script, value: eu}
  - {name: zone, target: merge_field}
  - {name: since, target: query_string, optional: true}
script: |
  function copy(v) { return JSON.parse(JSON.stringify(v)) }
  function before_action() { action_data.order = (action_data.order || '') + 'C'; }
  function after_action() { action_data.order += 'c'; }
methods:
  - method: add
    verb: POST
    endpoint: /{{zone}}/things
    body: {n: 1}
    script: |
      function before_action() {
        action_data.order = (action_data.order || '') + 'M';
        action_data.before = {
          request: copy(method_request), headers: method_request_headers['x-extra'], parameters: copy(method_request_parameters),
          merge: copy(method_request_mergefields), endpoint: method_endpoint, name: method_name, script: copy(script_parameters),
          variables: cycle_variables, ids: [cycle_id, cycle_step_id, transaction_id, cyclr_account_id, external_account_id],
          auth: method_auth_value, context: script_execution_context
        };
        script_parameters.region = 'us';
        method_request.n++;
        method_request_headers['X-Made'] = 'yes';
        method_request_parameters.made = [1, 2];
        method_request_mergefields.zone = 'b c';
      }
      function after_action() {
        action_data.order += 'm';
        action_data.after = {response: method_response, header: method_response_headers['x-answer'], many: method_response_headers['X-Many'],
          status: statusCode, reason: reasonPhrase, script: script_parameters, request: method_request, merge: method_request_mergefields, endpoint: method_endpoint};
      }
    headers: {X-Extra: "{{zone}}"}
`, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Answer", "a")
		w.Header()["X-Many"] = []string{"1", "2"}
		writeJSON(w, 201, `{"ok":true}`)
	})
	a.Cred.Secrets.APIKey = credentials.NewSecret("the-api-key")
	answer := a.must("add", withParameters(`{"zone":"a","since":"2026"}`), func(c *connectors.Call) {
		c.Cycle = connectors.Cycle{CycleID: "c", CycleStepID: "s", TransactionID: "t", Variables: properties(`{"k":"v"}`)}
		c.Script = `function before_action() { action_data.order += 'S' }
			function after_action() { method_response = {data: action_data} }`
	})
	sameJSON(t, "content", answer.Content, `{"data":{"order":"MCScm",
		"before":{"request":{"n":1},"headers":"a","parameters":{"since":"2026"},"merge":{"zone":"a"},"endpoint":"`+a.URL+`/{{zone}}/things","name":"add",
			"script":{"region":"eu"},"variables":{"k":"v"},"ids":["c","s","t","42","cust-42"],"auth":"the-api-key","context":"RUNNING_TRANSACTION"},
		"after":{"response":{"ok":true},"header":"a","many":["1","2"],"status":201,"reason":"Created","script":{"region":"eu"},"request":{"n":2},"merge":{"zone":"b c"},"endpoint":"`+a.URL+`/b%20c/things"}}}`)
	got := a.only()
	if got.URI != "/b%20c/things?since=2026&made=1&made=2" || got.Body != `{"n":2}` || got.Header.Get("X-Made") != "yes" || got.Header.Get("X-Key") != "the-api-key" {
		t.Errorf("sent %+v", got)
	}
	if answer.StatusCode != 201 || !answer.Ran {
		t.Errorf("got %+v", answer)
	}
}

func TestCall_everyAttemptStartsFromThePristineInput(t *testing.T) {
	a := newAPI(t, `
connector: acme
base_url: BASE
methods:
  - method: add
    verb: POST
    endpoint: /things
    body: {list: [1]}
    script: function before_action() { method_request = [method_request]; method_request_headers.X = 'y' }
`, nil)
	for range 2 {
		a.must("add")
		if got := a.only(); got.Body != `[{"list":[1]}]` {
			t.Errorf("sent %s", got.Body)
		}
	}
	body := json.RawMessage(`{"mine":1}`)
	for range 2 {
		a.must("add", func(c *connectors.Call) { c.Body = body })
		if got := a.only(); got.Body != `[{"mine":1}]` {
			t.Errorf("sent %s", got.Body)
		}
	}
}

func TestCall_afterError(t *testing.T) {
	type outcome struct {
		Status           int
		Content, Warning string
		Kind             string
		Exit             string
	}
	cases := map[string]struct {
		script string
		want   outcome
	}{
		"untouched":          {`function after_error() {}`, outcome{Kind: "http"}},
		"success":            {`function after_error() { method_error.isSuccess = true; method_error.content = '{"a":1}' }`, outcome{Status: 409, Content: `{"a":1}`}},
		"success keeps body": {`function after_error() { method_error.isSuccess = true }`, outcome{Status: 409, Content: `{"code":"dup"}`}},
		"not an error":       {`function after_error() { method_error.isError = false }`, outcome{Status: 409, Content: `{"code":"dup"}`}},
		"warning":            {`function after_error() { method_error.isError = false; method_error.isWarning = true }`, outcome{Status: 409, Warning: "409"}},
		"warning alone":      {`function after_error() { method_error.isWarning = true }`, outcome{Status: 409, Warning: "409"}},
		"success wins":       {`function after_error() { method_error.isWarning = true; method_error.isSuccess = true; method_error.content = '{}' }`, outcome{Status: 409, Content: `{}`}},
		"skips after_action": {`function after_action() { throw 'no' } function after_error() { method_error.isSuccess = true }`, outcome{Status: 409, Content: `{"code":"dup"}`}},
		"exit": {`function after_error() { method_error.isSuccess = true; method_error.content = '{"left":1}' }
			function action_condition() { return method_response.left === 1 }`, outcome{Status: 409, Content: `{"left":1}`, Exit: "true"}},
		"false exit": {`function after_error() { method_error.isSuccess = true } function action_condition() { return false }`,
			outcome{Status: 409, Content: `{"code":"dup"}`, Exit: "false"}},
		"members that are gone keep their values": {`function after_error() { method_error = {isSuccess: true} }`, outcome{Status: 409, Content: `{"code":"dup"}`}},
		"a member that is gone":                   {`function after_error() { delete method_error.isError }`, outcome{Kind: "http"}},
		"content taken away":                      {`function after_error() { method_error.content = null; method_error.isSuccess = true }`, outcome{Status: 409}},
		"an object as content":                    {`function after_error() { method_error.content = {a: 1}; method_error.isSuccess = true }`, outcome{Status: 409, Content: `{"a":1}`}},
		"null":                                    {`function after_error() { method_error = null }`, outcome{Kind: "script"}},
		"undefined":                               {`function after_error() { method_error = undefined }`, outcome{Kind: "script"}},
		"no object":                               {`function after_error() { method_error = 'mine' }`, outcome{Kind: "script"}},
		"a list":                                  {`function after_error() { method_error = [] }`, outcome{Kind: "script"}},
		"throws":                                  {`function after_error() { throw 'mine' }`, outcome{Kind: "script"}},
		"false":                                   {`function after_error() { return false }`, outcome{Kind: "script"}},
		"every field":                             {`function after_error() { method_error.isSuccess = true; method_error.content = JSON.stringify([typeof method_error.statusCode, method_error.statusCode, method_error.reasonPhrase, method_error.content, method_error.isError, method_error.isWarning, method_error.error != null, method_error.headers['x-reason'], statusCode]) }`, outcome{Status: 409, Content: `["number",409,"Conflict","{\"code\":\"dup\"}",true,false,true,"dup",409]`}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, oneMethod+"    script: |\n      "+strings.ReplaceAll(c.script, "\n", "\n      ")+"\n", func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("X-Reason", "dup")
				writeJSON(w, 409, `{"code":"dup"}`)
			})
			if c.want.Kind != "" {
				if e := a.fails("get"); e.Kind != c.want.Kind || e.StatusCode != 409 {
					t.Errorf("got %+v", e)
				}
				return
			}
			answer := a.must("get")
			got := outcome{Status: answer.StatusCode, Content: string(answer.Content)}
			if answer.Warning != "" {
				got.Warning = "409"
				contains(t, "warning", answer.Warning, "409")
			}
			if answer.Exit != nil {
				got.Exit = fmt.Sprint(*answer.Exit)
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestCall_actionConditionLastLevelDecides(t *testing.T) {
	a := newAPI(t, `
connector: acme
base_url: BASE
script: function action_condition() { return false }
methods:
  - {method: both, endpoint: /a, script: "function action_condition() { return true }"}
  - {method: one, endpoint: /a}
`, nil)
	if got := a.must("both"); got.Exit == nil || !*got.Exit {
		t.Errorf("both: got %v", got.Exit)
	}
	if got := a.must("one"); got.Exit == nil || *got.Exit {
		t.Errorf("one: got %v", got.Exit)
	}
	plain := newAPI(t, oneMethod, nil)
	if got := plain.must("get"); got.Exit != nil {
		t.Errorf("without: got %v", *got.Exit)
	}
}

func TestCall_actionConditionOnlyFalseIsFalse(t *testing.T) {
	for returned, want := range map[string]bool{
		"": true, "return undefined": true, "return null": true, "return 0": true, "return ''": true, "return {a: 1}": true, "return 'false'": true,
		"return new Boolean(false)": true, "return function () {}": true, "return false": false, "return Promise.resolve(false)": false,
	} {
		a := newAPI(t, oneMethod+"    script: \"function action_condition() { "+returned+" }\"\n", nil)
		if got := a.must("get"); got.Exit == nil || *got.Exit != want {
			t.Errorf("%s: got %v", returned, got.Exit)
		}
	}
}

func TestCall_whatIsNoObjectIsTheScriptsError(t *testing.T) {
	for _, name := range []string{"method_request_parameters", "method_request_headers", "method_request_mergefields"} {
		a := newAPI(t, oneMethod+"    script: function before_action() { "+name+" = 'x=1' }\n", nil)
		if e := a.fails("get"); e.Kind != "script" || e.Message != "before_action left "+name+" that are no object" || len(a.requests()) != 0 {
			t.Errorf("%s: got %+v", name, e)
		}
	}
}

func TestCall_beforeActionFalseSendsNothing(t *testing.T) {
	a := newAPI(t, oneMethod+"    script: function before_action() { return false }\n", nil)
	if e := a.fails("get"); e.Kind != "script" || e.Repeat {
		t.Errorf("got %+v", e)
	}
	if seen := a.requests(); len(seen) != 0 {
		t.Errorf("the API saw %+v", seen)
	}
}

func TestCall_actionDataOutlivesTheThrow(t *testing.T) {
	a := newAPI(t, `
connector: acme
base_url: BASE
auth: {type: oauth2, token_url: BASE/token}
script: |
  function before_action() { action_data.tries = (action_data.tries || 0) + 1 }
  function after_action() { action_data.saw = statusCode; throw new AuthRefreshException() }
methods:
  - {method: get, endpoint: /a}
`, nil)
	withToken(a.Cred, "the-access-token", "")
	first := a.refused("get")
	sameJSON(t, "action_data", first.ActionData, `{"tries":1,"saw":200}`)
	second := a.refused("get", func(c *connectors.Call) { c.ActionData = first.ActionData })
	sameJSON(t, "action_data", second.ActionData, `{"tries":2,"saw":200}`)
}

func TestCall_actionDataIsAnObjectAgainAtTheNextEvent(t *testing.T) {
	for _, emptied := range []string{"action_data = null", "action_data = undefined", "delete action_data", "action_data = function () {}"} {
		t.Run(emptied, func(t *testing.T) {
			a := newAPI(t, `
connector: acme
base_url: BASE
script: |
  function before_action() { `+emptied+` }
  function after_action() { action_data.x = 1 }
  function after_action_paging() { method_response = action_data }
methods:
  - {method: get, endpoint: /a}
`, nil)
			sameJSON(t, "content", a.must("get").Content, `{"x":1}`)
		})
	}
}

func TestCall_statuses(t *testing.T) {
	type fact struct {
		Kind          string
		Repeat, Defer bool
		After         time.Duration
	}
	cases := map[string]struct {
		verb, retry, after string
		status             int
		want               fact
	}{
		"404":                        {"GET", "safe", "", 404, fact{Kind: "http"}},
		"401":                        {"GET", "safe", "", 401, fact{Kind: "http"}},
		"408 of GET":                 {"GET", "safe", "", 408, fact{Kind: "http", Repeat: true}},
		"500 of GET":                 {"GET", "safe", "", 500, fact{Kind: "http", Repeat: true}},
		"500 of PUT":                 {"PUT", "safe", "", 500, fact{Kind: "http", Repeat: true}},
		"500 of POST":                {"POST", "safe", "", 500, fact{Kind: "http"}},
		"500 of PATCH":               {"PATCH", "safe", "", 500, fact{Kind: "http"}},
		"500 of POST, always":        {"POST", "always", "", 500, fact{Kind: "http", Repeat: true}},
		"500 of GET, never":          {"GET", "never", "", 500, fact{Kind: "http"}},
		"429":                        {"POST", "never", "", 429, fact{Kind: "rate", Defer: true}},
		"429 with Retry-After":       {"POST", "never", "17", 429, fact{Kind: "rate", Defer: true, After: 17 * time.Second}},
		"503":                        {"GET", "safe", "", 503, fact{Kind: "http", Repeat: true}},
		"503 with Retry-After":       {"POST", "safe", "5", 503, fact{Kind: "rate", Defer: true, After: 5 * time.Second}},
		"503 with a date":            {"POST", "safe", "date", 503, fact{Kind: "rate", Defer: true, After: 90 * time.Second}},
		"429 with senseless waiting": {"GET", "safe", "soon", 429, fact{Kind: "rate", Defer: true}},
		"304":                        {"GET", "safe", "", 304, fact{Kind: "http"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, fmt.Sprintf("connector: acme\nbase_url: BASE\nmethods: [{method: m, verb: %s, endpoint: /a, retry: %s}]\n", c.verb, c.retry),
				func(w http.ResponseWriter, _ *http.Request) {
					now := time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC)
					switch c.after {
					case "":
					case "date":
						w.Header().Set("Date", now.Format(http.TimeFormat))
						w.Header().Set("Retry-After", now.Add(90*time.Second).Format(http.TimeFormat))
					default:
						w.Header().Set("Retry-After", c.after)
					}
					w.WriteHeader(c.status)
				})
			e := a.fails("m")
			if d := cmp.Diff(c.want, fact{e.Kind, e.Repeat, e.Defer, e.RetryAfter}); d != "" || e.StatusCode != c.status {
				t.Errorf("status %d %s", e.StatusCode, d)
			}
		})
	}
}

func TestCall_afterErrorComesBeforeWaiting(t *testing.T) {
	a := newAPI(t, oneMethod+"    script: function after_error() { method_error.isSuccess = true; method_error.content = '{}' }\n", answering(429, ``))
	if got := a.must("get"); got.StatusCode != 429 {
		t.Errorf("got %+v", got)
	}
}

func TestCall_retryLaterDefers(t *testing.T) {
	a := newAPI(t, oneMethod+"    script: function after_action() { throw new RetryLaterException(90, 'the report is not ready') }\n", nil)
	e := a.fails("get")
	if e.Kind != "rate" || !e.Defer || e.RetryAfter != 90*time.Second {
		t.Errorf("got %+v", e)
	}
	contains(t, "message", e.Message, "the report is not ready")
}

// dropping answers nothing: the connection ends after the request was read.
func dropping(w http.ResponseWriter, _ *http.Request) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		_ = conn.Close()
	}
}

func TestCall_networkFaults(t *testing.T) {
	file := func(verb, retry, more string) string {
		return fmt.Sprintf("connector: acme\nbase_url: BASE\nmethods: [{method: m, verb: %s, endpoint: /a, retry: %s%s}]\n", verb, retry, more)
	}
	refusing := func(t *testing.T) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return "http://" + l.Addr().String()
	}
	t.Run("nothing was sent: always repeated", func(t *testing.T) {
		a := newAPI(t, strings.ReplaceAll(file("POST", "never", ""), "BASE", refusing(t)), nil)
		if e := a.fails("m"); e.Kind != "network" || !e.Repeat || e.StatusCode != 0 {
			t.Errorf("got %+v", e)
		}
	})
	t.Run("unknown host", func(t *testing.T) {
		a := newAPI(t, strings.ReplaceAll(file("POST", "never", ""), "BASE", "http://no-such-host.invalid"), nil)
		e := a.fails("m")
		if e.Kind != "network" || !e.Repeat {
			t.Errorf("got %+v", e)
		}
		contains(t, "message", e.Message, "no-such-host.invalid")
	})
	for name, c := range map[string]struct {
		verb, retry string
		repeat      bool
	}{"GET": {"GET", "safe", true}, "DELETE": {"DELETE", "safe", true}, "POST": {"POST", "safe", false}, "POST, always": {"POST", "always", true}, "GET, never": {"GET", "never", false}} {
		t.Run("the connection broke: "+name, func(t *testing.T) {
			a := newAPI(t, file(c.verb, c.retry, ""), dropping)
			if e := a.fails("m"); e.Kind != "network" || e.Repeat != c.repeat {
				t.Errorf("got %+v", e)
			}
		})
		t.Run("no answer in time: "+name, func(t *testing.T) {
			release := make(chan struct{})
			a := newAPI(t, file(c.verb, c.retry, ", timeout: 100ms"), func(http.ResponseWriter, *http.Request) { <-release })
			t.Cleanup(func() { close(release) })
			if e := a.fails("m"); e.Kind != "network" || e.Repeat != c.repeat {
				t.Errorf("got %+v", e)
			}
		})
	}
	t.Run("POST is sent once", func(t *testing.T) {
		a := newAPI(t, file("POST", "safe", ""), dropping)
		a.fails("m")
		if n := len(a.requests()); n != 1 {
			t.Errorf("the API saw %d requests", n)
		}
	})
	t.Run("a handler that needs a status does not hide the fault", func(t *testing.T) {
		a := newAPI(t, file("GET", "safe", ", script: \"function after_error() { if (method_error.error != null && method_error.statusCode.toString() === '403') throw new AuthRefreshException() }\""), dropping)
		if e := a.fails("m"); e.Kind != "network" || !e.Repeat {
			t.Errorf("got %+v", e)
		}
	})
	t.Run("after_error sees no status", func(t *testing.T) {
		a := newAPI(t, file("GET", "safe", ", script: \"function after_error() { method_error.isSuccess = true; method_error.content = JSON.stringify([method_error.statusCode, method_error.error != null]) }\""), dropping)
		sameJSON(t, "content", a.must("m").Content, `[null,true]`)
	})
}

func TestCall_content(t *testing.T) {
	cases := map[string]struct {
		dataType, contentType, body string
		content, encoding, kind     string
	}{
		"json":                         {"json", "application/json", `{"b":1,"a":[1.50,9007199254740993]}`, `{"b":1,"a":[1.50,9007199254740993]}`, "", ""},
		"json by another name":         {"json", "application/problem+json; charset=utf-8", `{"a":1}`, `{"a":1}`, "", ""},
		"json without content type":    {"json", "", `{"a":1}`, `{"a":1}`, "", ""},
		"json sent as text":            {"json", "text/plain", `{"a":1}`, `{"a":1}`, "", ""},
		"byte order mark":              {"json", "application/json", "\ufeff{\"a\":1}", `{"a":1}`, "", ""},
		"empty":                        {"json", "application/json", ``, ``, "", ""},
		"html where json is due":       {"json", "text/html", `<html>`, "", "", "http"},
		"broken json":                  {"json", "application/json", `{"a":`, "", "", "http"},
		"text":                         {"plain_text", "text/plain", `hello`, `"hello"`, "", ""},
		"latin-1 text":                 {"plain_text", "text/plain; charset=iso-8859-1", "Zo\xeb", `"Zoë"`, "", ""},
		"latin-1 json":                 {"json", "application/json; charset=iso-8859-1", "{\"a\":\"Zo\xeb\"}", `{"a":"Zoë"}`, "", ""},
		"json that is a string":        {"json", "application/json", `"{\"a\":1}"`, "", "", "http"},
		"a string, not asked for json": {"unknown", "application/json", `"1"`, `"1"`, "", ""},
		"blanks":                       {"json", "application/json", " \r\n", ``, "", ""},
		"blanks as text":               {"json", "text/plain", " \n", ``, "", ""},
		"broken characters in json":    {"json", "application/json", "{\"a\":\"\xeb\"}", "{\"a\":\"\ufffd\"}", "", ""},
		"broken, without a type":       {"json", "", "{\"a\":\"\xeb\"}", "{\"a\":\"\ufffd\"}", "", ""},
		"utf-16":                       {"json", "application/json", "\xff\xfe{\x00}\x00", `{}`, "", ""},
		"utf-16, the other way":        {"json", "application/json; charset=utf-16", "\xfe\xff\x00{\x00}", `{}`, "", ""},
		"utf-16 text":                  {"plain_text", "text/plain", "\xff\xfeZ\x00\xeb\x00", `"Zë"`, "", ""},
		"text without a charset":       {"plain_text", "text/plain", "Zo\xeb \x80", `"Zoë €"`, "", ""},
		"xml without a charset":        {"unknown", "application/xml", "<a>\xeb</a>", `{"a":"ë"}`, "", ""},
		"text without a type":          {"unknown", "", "Zo\xeb", `"Wm/r"`, "base64", ""},
		"form":                         {"unknown", "application/x-www-form-urlencoded", "b=1&a=x+y&b=%C3%A9&c", `{"b":["1","é"],"a":"x y","c":""}`, "", ""},
		"form without a type":          {"form", "", "a=1", `{"a":"1"}`, "", ""},
		"form that is none":            {"unknown", "application/x-www-form-urlencoded", "a=%zz", `"a=%zz"`, "", ""},
		"json where a form is due":     {"form", "application/json", `{"a":1}`, `{"a":1}`, "", ""},
		"binary":                       {"unknown", "application/octet-stream", "\x00\xff\xfe", `"AP/+"`, "base64", ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, fmt.Sprintf("connector: acme\nbase_url: BASE\nmethods: [{method: m, endpoint: /a, data_type: %s}]\n", c.dataType), func(w http.ResponseWriter, _ *http.Request) {
				w.Header()["Content-Type"] = nil
				if c.contentType != "" {
					w.Header().Set("Content-Type", c.contentType)
				}
				_, _ = io.WriteString(w, c.body)
			})
			if c.kind != "" {
				e := a.fails("m")
				if e.Kind != c.kind || e.StatusCode != 200 || e.Repeat {
					t.Errorf("got %+v", e)
				}
				return
			}
			got := a.must("m")
			if string(got.Content) != c.content || got.ContentEncoding != c.encoding {
				t.Errorf("got %s (%q), want %s (%q)", got.Content, got.ContentEncoding, c.content, c.encoding)
			}
		})
	}
}

func TestCall_hooksSeeEmptyBodyAsEmptyString(t *testing.T) {
	a := newAPI(t, oneMethod+"    script: 'function after_action() { method_response = {was: method_response} }'\n", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) })
	sameJSON(t, "content", a.must("get").Content, `{"was":""}`)
}

func TestCall_textLeftByAHookIsParsed(t *testing.T) {
	a := newAPI(t, oneMethod+"    script: function after_action() { method_response = '{\"a\":1}' }\n", nil)
	sameJSON(t, "content", a.must("get").Content, `{"a":1}`)
}

func TestCall_errorsAndHTTPRequestsAreDecodedToo(t *testing.T) {
	a := newAPI(t, oneMethod+`    script: |
      function after_error() {
        method_error.content = JSON.stringify([method_error.content, http_request({url: 'BASE/more'}).content]);
        method_error.isSuccess = statusCode == 409;
      }
`, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		status := 409
		if r.Header.Get("X-Fail") != "" {
			status = 400
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, "Zo\xeb")
	})
	sameJSON(t, "content", a.must("get").Content, `["Zoë","Zoë"]`)
	e := a.fails("get", withScript(`function before_action() { method_request_headers['X-Fail'] = '1' }`))
	contains(t, "detail", e.Detail, "Zoë")
}

func TestCall_gzip(t *testing.T) {
	a := newAPI(t, oneMethod, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Set("Content-Type", "application/json")
		z := gzip.NewWriter(w)
		_, _ = io.WriteString(z, `{"a":1}`)
		_ = z.Close()
	})
	sameJSON(t, "content", a.must("get").Content, `{"a":1}`)
}

func TestCall_answerOverTheCap(t *testing.T) {
	small := func(c *connectors.CallerConfig) { c.MaxResponse = 100 }
	t.Run("plain", func(t *testing.T) {
		a := newAPI(t, oneMethod, answering(200, `"`+strings.Repeat("x", 200)+`"`), small)
		if e := a.fails("get"); e.Kind != "limit" || e.Repeat {
			t.Errorf("got %+v", e)
		}
	})
	for _, status := range []int{200, 500} {
		t.Run(fmt.Sprint("no hook runs, ", status), func(t *testing.T) {
			a := newAPI(t, oneMethod+"    script: \"function after_action() { throw 'ran' } function after_error() { throw 'ran' } function after_action_paging() { throw 'ran' }\"\n",
				answering(status, strings.Repeat("x", 200)), small)
			if e := a.fails("get"); e.Kind != "limit" || e.StatusCode != status {
				t.Errorf("got %+v", e)
			}
		})
	}
	t.Run("unpacked", func(t *testing.T) {
		a := newAPI(t, oneMethod, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_, _ = z.Write(make([]byte, 1<<20))
			_ = z.Close()
		}, small)
		if e := a.fails("get"); e.Kind != "limit" {
			t.Errorf("got %+v", e)
		}
	})
}

func TestCall_fields(t *testing.T) {
	a := newAPI(t, `
connector: acme
base_url: BASE
methods:
  - method: get
    endpoint: /a
    response:
      fields:
        - {field: "[records].id", system: Id, type: integer}
        - {field: meta.total, system: Total, type: text}
        - {header: X-Next, system: Next}
`, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Next", "p2")
		writeJSON(w, 200, `{"records":[{"id":"1"},{"name":"none"},{"id":3}],"meta":{"total":3}}`)
	})
	got := a.must("get")
	sameJSON(t, "fields", got.Fields, `{"Id":[1,null,3],"Total":"3","Next":"p2"}`)
	sameJSON(t, "content", got.Content, `{"records":[{"id":"1"},{"name":"none"},{"id":3}],"meta":{"total":3}}`)
}

func TestCall_secretsAreMasked(t *testing.T) {
	const key = "sk-canary/0123456789+abc"
	a := newAPI(t, `
connector: acme
base_url: BASE
auth: {type: api_key, prefix: "Bearer "}
methods:
  - method: fail
    endpoint: /fail
    script: |
      function after_error() { console.log('key', method_auth_value, btoa('k:' + method_auth_value)) }
  - method: throws
    endpoint: /ok
    script: function after_action() { throw 'key ' + method_auth_value }
  - {method: echo, endpoint: /ok}
`, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/fail" {
			writeJSON(w, 400, `{"you sent":"`+r.Header.Get("Authorization")+`"}`)
			return
		}
		writeJSON(w, 200, `{"you sent":"`+r.Header.Get("Authorization")+`"}`)
	})
	a.Cred.Secrets.APIKey = credentials.NewSecret(key)
	clean := func(what, text string) {
		t.Helper()
		if strings.Contains(text, "canary") || strings.Contains(text, "0123456789") || strings.Contains(text, "Y2FuYXJ5") {
			t.Errorf("%s holds the key: %s", what, text)
		}
	}
	e := a.fails("fail")
	clean("detail", e.Detail)
	clean("logs", strings.Join(e.Logs, "\n"))
	contains(t, "detail", e.Detail, "Bearer [redacted]")
	if len(e.Logs) != 1 {
		t.Errorf("logs: %q", e.Logs)
	}
	clean("message", a.fails("throws").Message)
	clean("content", string(a.must("echo").Content))
}

func TestCall_sensitiveValuesOfTheStepAreMasked(t *testing.T) {
	const file = `
connector: acme
base_url: BASE
parameters:
  - {name: mine, target: query_string, sensitive: true, optional: true}
  - {name: built, target: http_header, as: X-Built, sensitive: true, value: "{{tenant}}-canary-built-value"}
  - {name: assumed, target: http_header, as: X-Assumed, sensitive: true, default: canary-default-value}
  - {name: tenant, target: merge_field, property: account}
methods:
  - method: fail
    endpoint: /fail
    script: function after_error() { console.log(JSON.stringify(method_request_parameters)) }
  - method: throws
    endpoint: /ok
    script: function after_action() { throw method_request_headers['X-Built'] + JSON.stringify(method_request_parameters) }
  - {method: echo, endpoint: /ok}
`
	a := newAPI(t, file, func(w http.ResponseWriter, r *http.Request) {
		status := 200
		if r.URL.Path == "/fail" {
			status = 400
		}
		text, _ := json.Marshal(r.RequestURI + " " + r.Header.Get("X-Built") + " " + r.Header.Get("X-Assumed"))
		writeJSON(w, status, `{"seen":`+string(text)+`}`)
	})
	a.Cred.Secrets.Properties = properties(`{"tenant":"t1"}`)
	given := withParameters(`{"mine":["canary one of a list","canary/two of a list"]}`)
	clean := func(what, text string) {
		t.Helper()
		if strings.Contains(text, "canary") || !strings.Contains(text, "[redacted]") {
			t.Errorf("%s is %s", what, text)
		}
	}
	e := a.fails("fail", given)
	clean("detail", e.Detail)
	clean("logs", strings.Join(e.Logs, "\n"))
	clean("message", a.fails("throws", given).Message)
	clean("content", string(a.must("echo", given).Content))
	if got := a.must("echo", withParameters(`{"mine":"short-one"}`)); !strings.Contains(string(got.Content), "short-one") {
		t.Errorf("content masks what has fewer than 16 characters: %s", got.Content)
	}
}

func TestCall_scriptsTextsAreMaskedBeforeTheyAreCut(t *testing.T) {
	const key = "sk-can" // shorter than its mask
	for name, script := range map[string]string{
		"log":     `function before_action() { console.log('x'.repeat(1900) + method_auth_value.repeat(15)) }`,
		"message": `function before_action() { throw 'x'.repeat(1900) + method_auth_value.repeat(15) }`,
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, strings.Replace(oneMethod, "methods:", "auth: {type: api_key}\nmethods:", 1)+"    script: "+script+"\n", answering(400, `{}`))
			a.Cred.Secrets.APIKey = credentials.NewSecret(key)
			e := a.fails("get")
			for _, text := range append(e.Logs, e.Message) {
				if strings.Contains(text, "sk-") || len(text) > 2003 {
					t.Errorf("%d bytes: %s", len(text), text)
				}
			}
		})
	}
}

func TestCall_detailIsCapped(t *testing.T) {
	a := newAPI(t, oneMethod, answering(400, strings.Repeat("é", 10_000)))
	if e := a.fails("get"); len(e.Detail) > 2100 || len(e.Detail) < 1000 {
		t.Errorf("detail has %d bytes", len(e.Detail))
	}
}

func TestCall_sessionNeededFirst(t *testing.T) {
	file := `
connector: acme
base_url: BASE
post_install: {property_lookup_method: login}
parameters:
  - {name: session_id, target: http_header, as: X-Session, property: session, sensitive: true}
methods:
  - {method: login, verb: POST, endpoint: /login}
  - {method: get, endpoint: /a}
  - method: open
    endpoint: /open
    parameters: [{name: session_id, value: CYCLR_IGNORE_PARAMETER}]
`
	a := newAPI(t, file, nil)
	e := a.refused("get")
	if e.Kind != credentials.Session || !e.Unsent || e.Version != 7 || e.NoRenewal {
		t.Errorf("got %+v", e)
	}
	a.must("open")
	if got := a.only(); got.URI != "/open" {
		t.Errorf("sent %+v", got)
	}
	a.Cred.Secrets.Session = map[string]string{"session_id": "s-1"}
	a.must("get")
	if got := a.only(); got.Header.Get("X-Session") != "s-1" {
		t.Errorf("sent %+v", got)
	}
}

func TestCall_sessionNeededWhereATemplateNamesIt(t *testing.T) {
	file := func(property, install, method string) string {
		return `
connector: acme
base_url: BASE
` + install + `
parameters:
  - {name: sid, target: merge_field, property: session` + property + `}
  - {name: region, target: merge_field, value: "{{area}}-1"}
  - {name: area, target: merge_field, property: account}
methods:
  - {method: login, verb: POST, endpoint: /login, response: {fields: [{field: id, system: sid}]}}
  - {method: m, verb: POST, ` + method + `}
`
	}
	const login, none = "post_install: {property_lookup_method: login}", "title: Acme"
	ignored := ", parameters: [{name: sid, value: CYCLR_IGNORE_PARAMETER}, {name: region, value: CYCLR_IGNORE_PARAMETER}, {name: area, value: CYCLR_IGNORE_PARAMETER}]"
	cases := map[string]struct {
		property, install, method string
		sent                      string // "": a session is needed
		missing                   string
	}{
		"nowhere":                       {"", login, `endpoint: /a, body: {a: 1}`, `/a {"a":1}`, ""},
		"in the URL":                    {"", login, `endpoint: "/a/{{sid}}"`, "", ""},
		"in a header":                   {"", login, `endpoint: /a, headers: {X-Sid: "{{sid}}"}`, "", ""},
		"in the body":                   {"", login, `endpoint: /a, body: {sid: "{{sid}}"}`, "", ""},
		"in a parameter":                {"", login, `endpoint: /a, parameters: [{name: q, target: query_string, value: "{{sid}}"}]`, "", ""},
		"optional is asked for too":     {", optional: true", login, `endpoint: "/a/{{sid}}"`, "", ""},
		"left out, and named":           {"", login, `endpoint: "/a/{{sid}}"` + ignored, "", ""},
		"left out":                      {"", login, `endpoint: /a` + ignored, "/a ", ""},
		"others left out, and named":    {"", login, `endpoint: "/a/{{region}}/{{area}}"` + ignored, "/a/eu-1/eu ", ""},
		"no login method":               {"", none, `endpoint: "/a/{{sid}}"`, "", "post_install.property_lookup_method"},
		"no login method, optional":     {", optional: true", none, `endpoint: /a, body: {sid: "{{sid}}", b: 1}`, `/a {"b":1}`, ""},
		"no login method, not named":    {"", none, `endpoint: /a`, "/a ", ""},
		"the property of the same name": {"", none, `endpoint: /a, body: {u: "{{username}}"}`, `/a {"u":"me"}`, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, file(c.property, c.install, c.method), nil)
			a.Cred.Secrets.Properties = properties(`{"area":"eu","tier":"gold","username":"me"}`)
			if c.sent == "" {
				e := a.refused("m")
				if e.Kind != credentials.Session || !e.Unsent || e.NoRenewal != (c.missing != "") || e.Missing != c.missing {
					t.Errorf("got %+v", e)
				}
				return
			}
			a.must("m")
			if got := a.only(); got.URI+" "+got.Body != c.sent {
				t.Errorf("sent %s %s, want %s", got.URI, got.Body, c.sent)
			}
		})
	}
}

func TestCall_noTokenYet(t *testing.T) {
	a := newAPI(t, "connector: acme\nbase_url: BASE\nauth: {type: oauth2, token_url: BASE/token}\nmethods: [{method: m, endpoint: /a}]\n", nil)
	a.Cred.Secrets.OAuth2 = &credentials.Token{}
	if e := a.refused("m"); e.Kind != credentials.OAuth2 || !e.Unsent {
		t.Errorf("got %+v", e)
	}
	if n := len(a.requests()); n != 0 {
		t.Errorf("the API saw %d requests", n)
	}
}

func TestCall_sessionFoundInTheRefusalItself(t *testing.T) {
	a := newAPI(t, `
connector: acme
base_url: BASE
parameters:
  - {name: token, target: http_header, as: X-Token, property: session}
post_install: {property_lookup_method: login}
methods:
  - {method: login, verb: POST, endpoint: /login}
  - method: get
    endpoint: /a
    script: |
      function after_error() {
        session_properties.token = method_error.headers['x-new-token'];
        throw new AuthSessionException();
      }
`, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-New-Token", "t-2")
		w.WriteHeader(409)
	})
	a.Cred.Secrets.Session = map[string]string{"token": "t-1"}
	if d := cmp.Diff(map[string]string{"token": "t-2"}, a.refused("get").Session); d != "" {
		t.Error(d)
	}
}

// Where a credential is put with its session, that stands among its properties.
func TestCall_aSessionAmongThePropertiesIsMasked(t *testing.T) {
	const session = "canary-0123456789-session"
	a := newAPI(t, `
connector: acme
base_url: BASE
parameters:
  - {name: token, target: http_header, as: X-Token, property: session}
methods:
  - method: get
    endpoint: /a
    script: function after_error() { console.log('sent', session_properties.token) }
`, answering(400, `{"refused":"`+session+`"}`))
	a.Cred.Secrets.Properties = properties(`{"token":"` + session + `"}`)
	e := a.fails("get")
	for what, text := range map[string]string{"detail": e.Detail, "logs": strings.Join(e.Logs, "\n")} {
		if strings.Contains(text, "canary") || !strings.Contains(text, "[redacted]") {
			t.Errorf("%s is %s", what, text)
		}
	}
	if got := a.Caller.NamedSecrets(a.Def, a.Cred); !slices.Contains(got, connectors.NamedSecret{Name: "token", Value: session}) {
		t.Errorf("named secrets: %v", got)
	}
}

// A session that a hook found is a secret from then on, whatever becomes of the call.
func TestCall_aSessionThatAHookFoundIsMasked(t *testing.T) {
	const session = "canary-0123456789-session"
	for name, end := range map[string]string{
		"thrown":  "throw new Error('got ' + token)",
		"refused": "throw new AuthSessionException('got ' + token)",
		"answer":  "method_error.isSuccess = true; method_error.content = JSON.stringify({token: token})",
		"warning": "method_error.isWarning = true",
		"left":    "",
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, `
connector: acme
base_url: BASE
parameters:
  - {name: token, target: http_header, as: X-Token, property: session}
post_install: {property_lookup_method: login}
methods:
  - {method: login, verb: POST, endpoint: /login}
  - method: get
    endpoint: /a
    script: |
      function after_error() {
        console.log('before', method_error.content);
        var token = JSON.parse(method_error.content).token;
        session_properties.token = token;
        console.log('after', token, btoa(token));
        `+end+`;
      }
`, answering(409, `{"token":"`+session+`"}`))
			a.Cred.Secrets.Session = map[string]string{"token": "t-1"}
			answer, err := a.call("get")
			var ce *connectors.CallError
			var auth *connectors.AuthError
			var seen string
			switch {
			case errors.As(err, &auth):
				if auth.Session["token"] != session {
					t.Errorf("the new session is %q", auth.Session)
				}
				seen = auth.Text + auth.Detail + strings.Join(auth.Logs, " ")
			case errors.As(err, &ce):
				seen = ce.Message + ce.Detail + strings.Join(ce.Logs, " ")
			default:
				seen = string(answer.Content) + answer.Warning + strings.Join(answer.Logs, " ")
			}
			if strings.Contains(seen, "canary") || strings.Contains(seen, "MDEyMzQ1Njc4OS") || !strings.Contains(seen, "[redacted]") {
				t.Errorf("shown: %s", seen)
			}
		})
	}
}

func TestCall_aSessionIsNeverTakenFromAStep(t *testing.T) {
	a := newAPI(t, `
connector: acme
base_url: BASE
parameters:
  - {name: token, target: http_header, as: X-Token, property: session}
post_install: {property_lookup_method: login}
methods:
  - {method: login, verb: POST, endpoint: /login}
  - {method: get, endpoint: /a, script: "function after_error() { throw new AuthSessionException() }"}
`, answering(401, ``))
	a.Cred.Secrets.Session = map[string]string{"token": "t-1"}
	e := a.refused("get", withScript(`function before_action() { session_properties.token = 'mine' }`))
	if len(e.Session) != 0 {
		t.Errorf("the step's session was taken: %v", e.Session)
	}
	// What the connector's own script found counts though the step has one too.
	own := newAPI(t, `
connector: acme
base_url: BASE
parameters:
  - {name: token, target: http_header, as: X-Token, property: session}
post_install: {property_lookup_method: login}
methods:
  - {method: login, verb: POST, endpoint: /login}
  - method: get
    endpoint: /a
    script: |
      function before_action() { session_properties.token = 'theirs' }
      function after_error() { throw new AuthSessionException() }
`, answering(401, ``))
	own.Cred.Secrets.Session = map[string]string{"token": "t-1"}
	e = own.refused("get", withScript(`function before_action() { session_properties.token = 'mine' }`))
	if d := cmp.Diff(map[string]string{"token": "theirs"}, e.Session); d != "" {
		t.Error(d)
	}
}

func TestCall_authentication(t *testing.T) {
	cases := map[string]struct {
		auth string
		cred func(*credentials.Secrets)
		want func(request) string
		text string
	}{
		"api key": {"{type: api_key}", func(s *credentials.Secrets) { s.APIKey = credentials.NewSecret("k1") }, func(r request) string { return r.Header.Get("Authorization") }, "k1"},
		"api key with prefix": {"{type: api_key, prefix: 'Bearer '}", func(s *credentials.Secrets) { s.APIKey = credentials.NewSecret("k1") },
			func(r request) string { return r.Header.Get("Authorization") }, "Bearer k1"},
		"api key in the query": {"{type: api_key, in: query, name: api_key}", func(s *credentials.Secrets) { s.APIKey = credentials.NewSecret("k 1&") },
			func(r request) string { return r.URI }, "/a?x=1&api_key=k%201%26"},
		"basic": {"{type: basic}", func(s *credentials.Secrets) {
			s.Username, s.Password, s.HasBasic = "u", credentials.NewSecret("p:w"), true
		}, func(r request) string { return r.Header.Get("Authorization") }, "Basic dTpwOnc="},
		"oauth2": {"{type: oauth2, token_url: BASE/token}", func(s *credentials.Secrets) { s.OAuth2 = &credentials.Token{AccessToken: credentials.NewSecret("at")} },
			func(r request) string { return r.Header.Get("Authorization") }, "Bearer at"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, "connector: acme\nbase_url: BASE\nauth: "+c.auth+"\nmethods: [{method: m, endpoint: '/a?x=1'}, {method: open, endpoint: /a, ignore_auth: true}]\n", nil)
			c.cred(&a.Cred.Secrets)
			a.must("m")
			if got := c.want(a.only()); got != c.text && got != strings.ReplaceAll(c.text, "%20", "+") {
				t.Errorf("got %q, want %q", got, c.text)
			}
			a.must("open")
			if got := a.only(); got.Header.Get("Authorization") != "" || got.URI != "/a" {
				t.Errorf("ignore_auth: sent %+v", got)
			}
		})
	}
}

func TestCall_apiKeyInTheBody(t *testing.T) {
	const file = `
connector: acme
base_url: BASE
auth: {type: api_key, in: body, name: key, prefix: "k-"}
methods:
  - {method: json, verb: POST, endpoint: /a, body: {a: 1}}
  - {method: none, verb: POST, endpoint: /a}
  - {method: form, verb: POST, endpoint: /a, data_type: form, body: {a: "x y"}, response: {data_type: json}}
  - {method: list, verb: POST, endpoint: /a, body: [1]}
  - {method: get, endpoint: /a}
  - {method: download, endpoint: /a, data_type: simple_file}
  - {method: search, endpoint: /a, body: {a: 1}}
  - {method: open, verb: POST, endpoint: /a, body: [1], ignore_auth: true}
  - {method: script, verb: POST, endpoint: /a, body: {a: 1}, script: "function before_action() { method_request.key = '' }"}
`
	for method, want := range map[string]string{"json": `{"a":1,"key":"k-1"}`, "none": `{"key":"k-1"}`, "get": "-", "download": "-", "search": `{"a":1,"key":"k-1"}`, "form": "a=x%20y&key=k-1", "open": "[1]", "script": `{"a":1,"key":""}`, "list": ""} {
		t.Run(method, func(t *testing.T) {
			a := newAPI(t, file, nil)
			a.Cred.Secrets.APIKey = credentials.NewSecret("1")
			if want == "" {
				if e := a.fails(method); e.Kind != "input" {
					t.Errorf("got %+v", e)
				}
				return
			}
			a.must(method)
			if got := a.only(); got.Body != strings.TrimPrefix(want, "-") || got.Header.Get("Authorization") != "" {
				t.Errorf("sent %s %v", got.Body, got.Header)
			}
		})
	}
	if e := newAPI(t, file, nil).fails("json"); e.Kind != "input" {
		t.Errorf("without a key: got %+v", e)
	}
}

func TestCall_idempotencyHeaderIsTheExecutionID(t *testing.T) {
	a := newAPI(t, "connector: acme\nbase_url: BASE\nmethods: [{method: m, verb: POST, endpoint: /a, idempotency_header: Idempotency-Key}]\n", nil)
	a.must("m")
	if got := a.only().Header.Get("Idempotency-Key"); got != "e1" {
		t.Errorf("got %q", got)
	}
	a.must("m", func(c *connectors.Call) { c.ExecutionID = "e2" })
	if got := a.only().Header.Get("Idempotency-Key"); got != "e2" {
		t.Errorf("another execution's is %q", got)
	}
	a.must("m", withScript("function before_action() { method_request_headers['idempotency-key'] = 'own'; }"))
	if got := a.only().Header.Values("Idempotency-Key"); !slices.Equal(got, []string{"own"}) {
		t.Errorf("a script's own became %q", got)
	}
}

func TestHTTPRequest(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, 418, `{"auth":"`+r.Header.Get("Authorization")+`","own":"`+r.Header.Get("X-Own")+`"}`)
	}))
	defer other.Close()
	a := newAPI(t, `
connector: acme
base_url: BASE
auth: {type: api_key, prefix: "Bearer "}
parameters: [{name: url, target: script}]
methods:
  - method: m
    endpoint: /a
    script: |
      function after_action() {
        var r = http_request({method: 'POST', url: script_parameters.url, parameters: {q: ['1', 'a b']}, headers: {'X-Own': 'mine'}, data: '{"d":1}'});
        method_response = {status: r.status_code, type: r.headers['content-type'], content: r.content};
      }
`, func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, 200, `{"auth":"`+r.Header.Get("Authorization")+`"}`)
	})
	a.Cred.Secrets.APIKey = credentials.NewSecret("short") // below what content masks
	got := a.must("m", withParameters(fmt.Sprintf(`{"url":%q}`, a.URL+"/more")))
	sameJSON(t, "own host", got.Content, `{"status":200,"type":"application/json","content":"{\"auth\":\"Bearer short\"}"}`)
	seen := a.requests()
	if len(seen) != 2 || seen[1].Method != "POST" || seen[1].URI != "/more?q=1&q=a%20b" && seen[1].URI != "/more?q=1&q=a+b" || seen[1].Body != `{"d":1}` || seen[1].Header.Get("X-Own") != "mine" {
		t.Errorf("sent %+v", seen)
	}
	got = a.must("m", withParameters(fmt.Sprintf(`{"url":%q}`, other.URL)))
	sameJSON(t, "other host", got.Content, `{"status":418,"type":"application/json","content":"{\"auth\":\"\",\"own\":\"mine\"}"}`)
}

func TestHTTPRequest_carriesAuthenticationToTheConnectorsOwnHosts(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, 200, `{"auth":"`+strings.Join(r.Header["Authorization"], "+")+`"}`)
	}))
	defer other.Close()
	a := newAPI(t, `
connector: acme
base_url: BASE
auth: {type: api_key}
methods:
  - method: m
    endpoint: `+other.URL+`/a
    script: |
      function ask(url, headers) { return JSON.parse(http_request({url: url, headers: headers}).content).auth }
      function after_action() {
        method_response = [method_response.auth, ask('BASE/b', {}), ask('`+other.URL+`/b', {}), ask('BASE/b', {authorization: 'mine'}), ask('BASE/b', {Authorization: ''})];
      }
  - {method: empty, endpoint: /a, headers: {Authorization: ""}}
`, func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, 200, `{"auth":"`+strings.Join(r.Header["Authorization"], "+")+`"}`)
	})
	a.Cred.Secrets.APIKey = credentials.NewSecret("k")
	sameJSON(t, "content", a.must("m").Content, `["k","k","k","mine",""]`)
	sameJSON(t, "content", a.must("empty").Content, `{"auth":""}`)
}

func TestHTTPRequest_tellsWhatWasSentAndNoMore(t *testing.T) {
	a := newAPI(t, `
connector: acme
base_url: BASE
auth: {type: api_key, in: query, name: key}
methods:
  - method: m
    endpoint: /a
    script: |
      function after_action() {
        method_response = http_request({method: 'put', url: method_endpoint, parameters: {q: 'a b'}, headers: {'x-own': 'mine'}, data: 'text'}).request;
      }
`, nil)
	a.Cred.Secrets.APIKey = credentials.NewSecret("short") // below what content masks
	got := a.must("m")
	seen := a.requests()
	contains(t, "sent", seen[1].URI, "key=short")
	sameJSON(t, "request", got.Content, fmt.Sprintf(`{"method":"PUT","url":"%s/a?q=a%%20b","headers":{"User-Agent":"stepworker","X-Own":"mine"},"data":"text"}`, a.URL))
}

func TestHTTPRequest_sendsNoMoreThanAnAnswerMayHold(t *testing.T) {
	a := newAPI(t, oneMethod+"    script: |\n      function after_action() { http_request({method: 'POST', url: method_endpoint, data: '12345678901'}); }\n", nil,
		func(c *connectors.CallerConfig) { c.MaxResponse = 10 })
	e := a.fails("get")
	contains(t, "message", e.Message, "data is larger than 10 bytes (--max-response)")
	if n := len(a.requests()); n != 1 || e.Kind != "script" {
		t.Errorf("%d requests, kind %s", n, e.Kind)
	}
}

func TestHTTPRequest_setsNoHost(t *testing.T) {
	a := newAPI(t, oneMethod+"    script: \"function before_action() { http_request({url: 'BASE/b', headers: {host: 'x'}}) }\"\n", nil)
	e := a.fails("get")
	if e.Kind != "script" {
		t.Errorf("got %+v", e)
	}
	contains(t, "message", e.Message, "Host header cannot be set")
}

func TestHTTPRequest_obeysTheNetworkPolicy(t *testing.T) {
	script := `function before_action() {
      try { http_request({method: 'GET', url: 'http://169.254.169.254/latest/meta-data/'}); action_data.reached = true }
      catch (e) { action_data.error = e.message }
    }
    function after_action() { method_response = action_data }`
	a := newAPI(t, oneMethod+"    script: |\n      "+strings.ReplaceAll(script, "\n", "\n      ")+"\n", nil)
	var got struct {
		Reached bool
		Error   string
	}
	if err := json.Unmarshal(a.must("get").Content, &got); err != nil || got.Reached {
		t.Fatalf("got %+v, %v", got, err)
	}
	contains(t, "error", got.Error, "169.254.169.254")
	uncaught := newAPI(t, oneMethod+"    script: \"function before_action() { http_request({url: 'http://169.254.169.254/'}) }\"\n", nil)
	if e := uncaught.fails("get"); e.Kind != "script" || e.Repeat {
		t.Errorf("got %+v", e)
	}
}

// An answer that is nested deeper than it can be read, or changed, says so: it
// is no text, no malformed JSON, and passes no filter unseen.
func TestCall_anAnswerThatIsNestedTooDeeplySaysSo(t *testing.T) {
	nested := func(depth int) string {
		return `{"records":[` + strings.Repeat(`{"a":[`, depth/2) + `"]}"` + strings.Repeat(`]}`, depth/2) + `]}`
	}
	const method = "connector: acme\nbase_url: BASE\nmethods:\n  - method: get\n    endpoint: /a\n    "
	const filter = "parameters: [{name: least, target: filter_field, as: '[records].n', value: 1}]"
	const beyond, above = "the answer: JSON is nested deeper than 10000", "the answer: JSON is nested deeper than 1000"
	for name, c := range map[string]struct {
		more          string
		depth         int
		kind, message string // "": it is given as it came
	}{
		"deep":                     {"", 9000, "", ""},
		"too deep":                 {"", 100_000, "limit", beyond},
		"too deep for fields":      {"response: {fields: [{field: '[records].a', system: A}]}", 1100, "limit", above},
		"far too deep for fields":  {"response: {fields: [{field: '[records].a', system: A}]}", 100_000, "limit", beyond},
		"too deep for a filter":    {filter, 1100, "limit", above},
		"far too deep for one":     {filter, 100_000, "limit", beyond},
		"too deep for a script":    {"script: function after_action() { method_response.x = 1; }", 1100, "script", "after_action at method level: GoError: method_response: JSON is nested deeper than 1000"},
		"far too deep for scripts": {"script: function after_action() { return true; }", 100_000, "limit", beyond},
		"far too deep for paging":  {"paging: {inbound: true}\n    parameters: [{name: page, target: query_string, value: '{{CYCLR_PAGE_NUMBER}}'}]\n    response: {fields: [{field: '[records].a', system: A}]}", 100_000, "limit", beyond},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, method+c.more+"\n", answering(200, nested(c.depth)))
			if c.kind == "" {
				if answer := a.must("get"); string(answer.Content) != nested(c.depth) {
					t.Error("it was changed")
				}
				return
			}
			if e := a.fails("get"); e.Kind != c.kind || e.Message != c.message || e.Repeat {
				t.Errorf("got %s: %s\nwant %s: %s", e.Kind, e.Message, c.kind, c.message)
			}
		})
	}
	a := newAPI(t, method+"\n", answering(200, `{"a": "`+strings.Repeat("[", 20_000)+`"`)) // cut off, not deep
	if e := a.fails("get"); e.Kind != "http" {
		t.Errorf("got %s: %s", e.Kind, e.Message)
	}
}

func TestCall_everyErrorHasAKind(t *testing.T) {
	file := oneMethod + "    response: {fields: [{field: a, system: A, type: float}]}\n"
	cases := map[string]struct{ body, kind, fields string }{
		"nested too deeply":         {`{"a":` + strings.Repeat("[", 2000) + strings.Repeat("]", 2000) + `}`, "limit", ""},
		"a number that is none":     {`{"a":"NaN"}`, "", `{"A":"NaN"}`},
		"a number without an end":   {`{"a":"-Inf"}`, "", `{"A":"-Inf"}`},
		"a number beyond a float":   {`{"a":"1e999"}`, "", `{"A":"1e999"}`},
		"a number in a list of any": {`{"a":["1.50","NaN"]}`, "", `{"A":[1.5,"NaN"]}`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, file, answering(200, c.body))
			if c.kind != "" {
				if e := a.fails("get"); e.Kind != c.kind || e.StatusCode != 200 {
					t.Errorf("got %+v", e)
				}
				return
			}
			sameJSON(t, "fields", a.must("get").Fields, c.fields)
		})
	}
	t.Run("no hook host", func(t *testing.T) {
		closed, err := hooks.New(hooks.Config{Hosts: 1})
		if err != nil {
			t.Fatal(err)
		}
		_ = closed.Close()
		a := newAPI(t, oneMethod+"    script: function before_action() {}\n", nil, func(cfg *connectors.CallerConfig) { cfg.Engine = closed })
		_, err = a.call("get")
		var host *connectors.HostError
		var ce *connectors.CallError
		if !errors.As(err, &host) || errors.As(err, &ce) {
			t.Errorf("got %s", describe(err))
		}
	})
}

// A missing scope is not expiry (RFC 6750 section 3.1): nothing that a refresh
// brings would have it.
func TestCall_aMissingScopeIsToldApart(t *testing.T) {
	file := func(auth, script string) string {
		return `
connector: acme
base_url: BASE
auth: {` + auth + `}
post_install: {test_auth_method: get}
methods:
  - method: get
    endpoint: /things
    script: "` + script + `"
`
	}
	const oauth2, key = "type: oauth2, token_url: BASE/token", "type: api_key"
	const thrown = "function after_error() { throw new AuthRefreshException() }"
	insufficient := []string{`Bearer realm="api", error="insufficient_scope", error_description="no, not with this", scope="contacts.write"`}
	cases := map[string]struct {
		auth, script string
		status       int
		header       []string
		says         string // "": a refusal as any other
	}{
		"thrown":           {oauth2, thrown, 403, insufficient, `scope "contacts.write"`},
		"session":          {oauth2, "function after_error() { throw new AuthSessionException() }", 403, insufficient, `scope "contacts.write"`},
		"refresh_on":       {oauth2 + ", refresh_on: [403]", "", 403, insufficient, `scope "contacts.write"`},
		"a second header":  {oauth2, thrown, 401, append([]string{`Basic realm="x, error=insufficient_scope"`}, insufficient...), `scope "contacts.write"`},
		"not told which":   {oauth2, thrown, 403, []string{`Bearer error=insufficient_scope`}, `lacks a scope`},
		"several":          {oauth2, thrown, 403, []string{`Bearer error="insufficient_scope", scope="a b"`}, `one of the scopes ["a" "b"]`},
		"of a key":         {key, thrown, 403, insufficient, "give the account that permission"},
		"at a 200":         {oauth2, "function after_action() { throw new AuthRefreshException() }", 200, insufficient, `scope "contacts.write"`},
		"invalid_token":    {oauth2, thrown, 401, []string{`Bearer error="invalid_token", error_description="insufficient_scope"`}, ""},
		"in quotes only":   {oauth2, thrown, 401, []string{`Basic realm="error=insufficient_scope"`}, ""},
		"without a header": {oauth2, thrown, 403, nil, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, file(c.auth, c.script), func(w http.ResponseWriter, _ *http.Request) {
				w.Header()["Www-Authenticate"] = c.header
				writeJSON(w, c.status, `{"message":"no"}`)
			})
			withToken(a.Cred, "the-access-token", "the-refresh-token")
			a.Cred.Secrets.APIKey = credentials.NewSecret("the-key-of-it")
			if c.says == "" {
				a.refused("get")
				return
			}
			e := a.fails("get")
			if e.Kind != "auth" || e.Repeat || e.Defer || e.StatusCode != c.status || !e.Ran {
				t.Errorf("got %+v", e)
			}
			contains(t, "message", e.Message, c.says)
			if re, ok := a.Caller.Test(t.Context(), a.Def, a.Cred).(*credentials.RefreshError); !ok || re.Verdict != credentials.VerdictRevoked {
				t.Errorf("as a test: got %+v", re)
			}
		})
	}
	quiet := newAPI(t, file(oauth2, ""), func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Www-Authenticate"] = insufficient
		writeJSON(w, 403, `{"message":"no"}`)
	})
	withToken(quiet.Cred, "the-access-token", "the-refresh-token")
	if e := quiet.fails("get"); e.Kind != "http" { // nobody takes it for a dead credential
		t.Errorf("got %+v", e)
	}
}
