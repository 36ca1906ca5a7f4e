package definition_test

import (
	"strings"
	"testing"

	"github.com/stepworker/stepworker/internal/definitiontest"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/hooks"
)

func TestCheck_acrossLevels(t *testing.T) {
	got := definitiontest.Check(t, `connector: acme
base_url: https://acme.example
script: |
  const base = 1;
  function helper() { return ofAMethod() + ofNobody(); }
  function after_error() { return helper(); }
methods:
  - method: one
    endpoint: /a
    script: |
      function ofAMethod() { return helper(); }
      function after_error() { http_requst({}); }
      let base = 2;
      on_action = function() {};
  - method: two
    endpoint: /b
    script: |
      function helper() { ofAMethod() }
      onlyOnce = function() {};
`)
	want := []string{
		"5:44: function ofNobody does not exist (hint)",
		"12:32: function http_requst does not exist; did you mean http_request? (hint)",
		"13:11: base is declared at connector level too (FILE:4:9): as const, let or class each level sees its own (hint)",
		"14:7: function on_action handles no event; did you mean after_action? (hint)",
		"18:27: function ofAMethod does not exist (hint)",
	}
	for i := range got {
		if from := strings.Index(got[i], "("); strings.HasPrefix(got[i], "13:") {
			to := strings.Index(got[i], ":4:9)")
			got[i] = got[i][:from+1] + "FILE" + got[i][to:]
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestCheckStep(t *testing.T) {
	cases := map[string]struct {
		source string
		want   []string
	}{
		"nothing":                     {"function before_action() { helperOfTheConnector(); return true; }", nil},
		"almost one of ours":          {"htp_request({})", []string{"step:1:1: function htp_request does not exist; did you mean http_request?"}},
		"an event of connectors":      {"function action_condition() {}\nfunction before_oauth2_token() {}", []string{"step:1:10: action_condition does not run in a step's script: it is for connector scripts", "step:2:10: before_oauth2_token does not run in a step's script: it is for connector scripts"}},
		"an exception of connectors":  {"function after_error() {\n  throw new AuthRefreshException();\n}", []string{"step:2:13: AuthRefreshException is for connector scripts: thrown from a step's script it fails the execution"}},
		"an event in another's words": {"beforeAction = () => true", []string{"step:1:1: function beforeAction handles no event; did you mean before_action?"}},
		"a property of the global":    {"globalThis.after_erorr = function () {};\nthis.after_action = () => true;", []string{"step:1:12: function after_erorr handles no event; did you mean after_error?"}},
		"a helper on the global":      {"globalThis.after_common = () => true;\nfunction after_action() { return globalThis.after_common(); }", nil},
		"an object in other letters":  {"action_data.a = Json.stringify(CryptoJs['MD5']('a'))", []string{"step:1:17: Json does not exist; did you mean JSON?", "step:1:32: CryptoJs does not exist; did you mean CryptoJS?"}},
		"a value in other letters":    {"console.log(action_dta, NaN, undefined, Infinity, method_response)", []string{"step:1:13: action_dta does not exist; did you mean action_data?"}},
		"a name written amiss":        {"function after_action() { if (method_respnse == null) method_respons = {}; method_responses = 1; return method_responses; }", []string{"step:1:31: method_respnse does not exist; did you mean method_response?", "step:1:55: method_respons is written and never read; did you mean method_response?"}},
		"the connector's variables":   {"function after_action() { return date > json.x; }", nil},
		"tried":                       {"try { method_reqest.x = new Dat(); require('crypto') } catch (e) {}", []string{"step:1:7: method_reqest does not exist; did you mean method_request?"}},
		"a comparison with Function":  {"function after_action() { return helper instanceof Function && htp_request({}) }", []string{"step:1:64: function htp_request does not exist; did you mean http_request?"}},
		"another way to call eval":    {"(0, eval)('var method_reqest = 1'); console.log(method_reqest)", nil},
		"data made by a helper":       {"function init() { method_response = JSON.parse(method_error.content); }\nfunction after_error() { init(); return method_response.x; }", nil},
		"data made by a loop":         {"function after_error() { for (method_response of [1]) console.log(method_response); }", nil},
		"data made by another event":  {"function after_action() { method_response = 1; }\nfunction after_error() { return {method_response}; }", []string{"step:2:34: after_error has no method_response: to read it throws a ReferenceError"}},
		"data of another event":       {"function after_error() {\n  return method_response.error;\n}", []string{"step:2:10: after_error has no method_response: to read it throws a ReferenceError"}},
		"objects of their own":        {"x = {}; x.y = 1; try {} catch (e) { e.message }\n(function (root) { root.a(arguments.length, arguments) })({});\nvar helpers = {}; helpers.find = 1; if (typeof lib !== 'undefined') lib.find(x)", nil},
		"a module that is not there":  {"var m = require('moment'), l = require('lodash'), c = require('crypto-js/md5'), z = require('moment-timezone/builds/x');", []string{"step:1:32: require has no module \"lodash\": moment, moment-timezone and crypto-js can be required", "step:1:85: require has no module \"moment-timezone/builds/x\": moment, moment-timezone and crypto-js can be required"}},
		"a require of their own":      {"function require(name) { return {}; }\nvar l = require('lodash');", nil},
		"what no event can call":      {"class after_action {}\nfunction* before_action() {}\nclass Helper {}", []string{"step:1:7: after_action is a class or a generator, which no event can call: make it a function", "step:2:11: before_action is a class or a generator, which no event can call: make it a function"}},
		"what does not parse":         {"function (", []string{"step:1:10: syntax error: Unexpected token ("}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, f := range definition.CheckStep(&hooks.Script{Level: hooks.LevelStep, File: "step", Source: c.source}) {
				got = append(got, f.String())
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// A function that a script uses is a helper, whatever its name looks like: also
// from another level, and as compilers name the bodies of async functions.
func TestCheck_helpersNamedAlmostLikeEvents(t *testing.T) {
	got := definitiontest.Check(t, `connector: acme
base_url: https://acme.example
script: |
  function before_action_impl() { return true; }
  function before_action() { return before_action_impl.apply(this, arguments); }
  function _after_action() { return true; }
  const handlers = {_after_action};
  function after_error_common() { return true; }
  function after_acton() { return true; }
methods:
  - method: one
    endpoint: /a
    script: |
      function after_error() { return after_error_common(); }
`)
	if d := cmp.Diff([]string{"9:12: function after_acton handles no event; did you mean after_action? (hint)"}, got); d != "" {
		t.Error(d)
	}
}

// A token request is made for the connector, whichever method asked for it.
func TestCheck_tokenEventsInAMethod(t *testing.T) {
	got := definitiontest.Check(t, `connector: acme
base_url: https://acme.example
auth: {type: oauth2, token_url: https://acme.example/token}
script: |
  function before_oauth2_refresh() { return true; }
methods:
  - method: one
    endpoint: /a
    script: |
      function before_oauth2_token() { return true; }
      function action_condition() { return true; }
`)
	want := []string{"10:16: before_oauth2_token does not run in a method's script: a token request is the connector's, so it stands at connector level (hint)"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestCheck_inlineCalls(t *testing.T) {
	got := definitiontest.Check(t, `connector: acme
base_url: https://acme.example
script: function helper() {}
parameters:
  - {name: a, target: query_string, value: "=momnt().format()"}
  - {name: b, target: query_string, value: =moment().format() + helper()}
  - {name: c, target: query_string, value: "=http_request({url: 'x'}).content"}
  - {name: d, target: query_string, value: "=var f = function (x) { return btoa(x); }; f({{a}})"}
  - {name: e, target: query_string, value: "=cycle_variables.x + cycle_id"}
  - {name: f, target: query_string, value: "=var action_data = {}; action_data.x = typeof statusCode; action_data"}
methods: [{method: one, endpoint: /a}]
`)
	want := []string{
		"5:46: function momnt does not exist; did you mean moment? (hint)",
		"6:65: function helper does not exist (hint)",
		"7:46: inline script has no http_request: call it in a hook (hint)",
		"9:46: inline script does not see cycle_variables: use it in a hook (hint)",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// Some servers hand the session out in a refusal: that needs no login method.
func TestCheck_sessionWithoutALogin(t *testing.T) {
	const file = "connector: acme\nbase_url: https://acme.example\nparameters: [{name: sid, target: http_header, property: session}]\n"
	if got := definitiontest.Check(t, file+"methods: [{method: one, endpoint: /a, script: 'function after_error() { session_properties.sid = method_error.content; throw new AuthSessionException(); }'}]\n"); got != nil {
		t.Errorf("found %q", got)
	}
	want := []string{`1:1: session property "sid": there is no login method to fill it (post_install.property_lookup_method) (hint)`}
	if d := cmp.Diff(want, definitiontest.Check(t, file+"methods: [{method: one, endpoint: /a}]\n")); d != "" {
		t.Error(d)
	}
}
