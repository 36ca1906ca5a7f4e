package definition_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stepworker/stepworker/internal/definitiontest"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/connectors/definition"
)

const unknownTag = " means nothing here: !!str, !!int, !!float, !!bool and !!null are known, of a scalar"

func otherName(name string) string {
	return "a name is a text, and YAML reads " + name + " as something else: write it in quotes (hint)"
}

func TestCheck_findings(t *testing.T) {
	const head = "connector: acme\nbase_url: https://acme.example\n"
	cases := map[string]struct {
		file string
		want []string
	}{
		"none":              {head + "methods: [{method: m, endpoint: /a}]\n", nil},
		"a second document": {head + "methods: [{method: m, endpoint: /a}]\n---\nconnector: other\n", []string{"4:1: a second document: a connector file has one, so what follows here would be ignored"}},
		"one that is empty": {head + "methods: [{method: m, endpoint: /a}]\n---\n", []string{"4:1: a second document: a connector file has one, so what follows here would be ignored"}},
		"an end is none":    {"---\n" + head + "methods: [{method: m, endpoint: /a}]\n...\n", nil},
		"a header twice": {head + "headers: {X-A: 1, x-a: 2}\nmethods:\n  - method: m\n    endpoint: /a\n    headers:\n      Accept: a\n      ACCEPT: b\n",
			[]string{`3:19: key "x-a" stands here twice`, `9:7: key "ACCEPT" stands here twice`}},
		"members twice": {head + "parameters:\n  - {name: p, target: script, value: {a: 1, a: 2}}\nmethods:\n  - method: m\n    endpoint: /a\n    body: {a: 1, A: 1, b: [{c: 1, c: 2}]}\n",
			[]string{`4:45: key "a" stands here twice`, `8:35: key "c" stands here twice`}},
		"nothing to call": {"connector: acme\nbase_url: ''\nmethods: []\n", []string{`2:1: base_url: an absolute http or https URL is needed`, `3:1: methods: there is none`}},
		"a key in the body has a name": {head + "auth: {type: api_key, in: body}\nmethods: [{method: m, endpoint: /a}]\n",
			[]string{`3:7: auth: key "name" is missing: which member of the body is the key?`}},
		"handlers": {head + "script: |\n  function before_webhook() {}\n  function after_action() {}\n  function after_acton() {}\n  var afterAction = function() {}\n  let Before_Action = () => 1\n  const AFTER_ERROR = async function() {}\n  const after_error = 1\n  function helper() {}\n  function inside() { function afterError() {} }\n  var x = 1, actionCondition = () => true\nmethods: [{method: m, endpoint: /a}]\n",
			[]string{
				"6:12: function after_acton handles no event; did you mean after_action? (hint)",
				"7:7: function afterAction handles no event; did you mean after_action? (hint)", "8:7: function Before_Action handles no event; did you mean before_action? (hint)",
				"9:9: function AFTER_ERROR handles no event; did you mean after_error? (hint)", "13:14: function actionCondition handles no event; did you mean action_condition? (hint)",
			}},
		"header names": {head + "auth: {type: api_key, name: 'X Key'}\nheaders: {'X:A': 1}\nparameters:\n  - {name: session id, target: http_header}\nmethods: [{method: m, endpoint: /a, idempotency_header: 'Key:'}]\n",
			[]string{`3:23: "X Key" is no header name`, `4:11: "X:A" is no header name`, `6:5: "session id" is no header name`, `7:57: "Key:" is no header name`}},
		"a session without a login": {head + "parameters: [{name: sid, target: merge_field, property: session}]\nmethods: [{method: m, endpoint: /a}]\n",
			[]string{`1:1: session property "sid": there is no login method to fill it (post_install.property_lookup_method) (hint)`}},
		"a port, a big number and a property": {"connector: a\nbase_url: http://127.0.0.1:{{port}}/{{domain}}\nparameters: [{name: port, target: merge_field, property: account}]\nmethods: [{method: m, endpoint: /a, verb: POST, body: {big: 12345678901234567890}}]\n",
			[]string{`2:11: no parameter declares merge field {{domain}}: each credential must have a property of that name (hint)`}},
		"locations that are empty": {head + "methods: [{method: m, endpoint: /a, request: {fields: [{field: ''}]}, response: {fields: [{field: '', system: A}, {field: null}]}}]\n",
			[]string{`3:64: field is empty: a location is needed, such as [records].id`, `3:99: field is empty: a location is needed, such as [records].id`, `3:123: text is needed here`}},
		"tags": {head + "title: !!str Acme\nheaders: !!map {X: !foo a}\nmethods: !!seq\n  - {method: !!str 5, verb: !!str 'PUT', endpoint: /a, body: {a: !!str 5, b: !!int '5', c: !!float 5, d: !!bool true, e: !!binary aGk=, f: !!str {}, g: !!set {h}, i: !<tag:acme.example,2026:x> 1, j: !!str}}\n",
			[]string{`3:8: tag !!str changes nothing here (hint)`, `4:10: tag !!map changes nothing here (hint)`, `4:20: tag !foo` + unknownTag, `5:10: tag !!seq changes nothing here (hint)`,
				`6:29: tag !!str changes nothing here (hint)`, `6:106: tag !!bool changes nothing here (hint)`, `6:122: tag !!binary` + unknownTag, `6:140: tag !!str` + unknownTag,
				`6:153: tag !!set` + unknownTag, `6:167: tag tag:acme.example,2026:x` + unknownTag}},
		"names that YAML reads as something else": {head + "parameters: [{name: 2026-01-01, target: script}, {name: 'true', target: script}]\nauthentications: [{name: 1.5, auth: {type: auth_fields, fields: [{name: true}]}}]\nmethods: [{method: 5, endpoint: /a}]\n",
			[]string{"3:21: " + otherName("2026-01-01"), "4:26: " + otherName("1.5"), "4:73: " + otherName("true"), "5:20: " + otherName("5")}},
		"a login method that does not exist": {head + "post_install:\n  property_lookup_method: logn\nmethods: [{method: login, endpoint: /a}]\n",
			[]string{`4:27: post_install.property_lookup_method names method "logn", which does not exist; did you mean "login"?`}},
		"a logout method that does not exist": {head + "post_install: {property_lookup_method: login, logout_method: logot}\nmethods: [{method: login, endpoint: /a}, {method: logout, endpoint: /b}]\n",
			[]string{`3:62: post_install.logout_method names method "logot", which does not exist; did you mean "logout"?`}},
		"a logout method that is the login": {head + "post_install: {property_lookup_method: login, logout_method: login}\nmethods: [{method: login, endpoint: /a}]\n",
			[]string{`3:62: post_install.logout_method names method "login", which is the login or the test method`}},
		"a logout method without a login": {head + "post_install: {logout_method: logout}\nmethods: [{method: logout, endpoint: /b}]\n",
			[]string{`3:31: post_install.logout_method: there is no login method (post_install.property_lookup_method) whose session it could end`}},
		"a merge field that the method left out": {head + "parameters: [{name: region, target: merge_field, value: eu}]\nmethods: [{method: m, endpoint: '/{{region}}/{{nobody}}', parameters: [{name: region, value: CYCLR_IGNORE_PARAMETER}]}]\n",
			[]string{`4:33: no parameter declares merge field {{nobody}}: each credential must have a property of that name (hint)`}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(c.want, definitiontest.Check(t, c.file)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestLoad_folders(t *testing.T) {
	const file = "connector: acme\nbase_url: https://acme.example\nmethods: [{method: m, endpoint: /a}]\nnonsense: 1\n"
	dir := t.TempDir()
	real := filepath.Join(dir, "real", "below")
	if err := os.MkdirAll(real, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(real, "acme.yaml"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	link, empty, pipe := filepath.Join(dir, "link"), filepath.Join(dir, "empty"), filepath.Join(dir, "pipe")
	for _, d := range []string{empty, pipe} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("real", link); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(pipe, "acme.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct{ folder, want string }{
		"a folder":               {filepath.Join(dir, "real"), filepath.Join(real, "acme.yaml") + `:4:1: unknown key "nonsense"`},
		"a link to a folder":     {link, filepath.Join(link, "below", "acme.yaml") + `:4:1: unknown key "nonsense"`},
		"nothing in it":          {empty, empty + ":1:1: no connector file (*.yaml, *.yml) in " + empty},
		"nothing that is a file": {pipe, filepath.Join(pipe, "acme.yaml") + ":1:1: it is not a regular file"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, findings, err := definition.Load(c.folder)
			if err != nil {
				t.Fatal(err)
			}
			if len(findings) != 1 || findings[0].String() != c.want || findings[0].Hint {
				t.Errorf("got %v, want %s", findings, c.want)
			}
		})
	}
}

// A place in an inline script is told as its author sees it, however YAML
// wraps the script.
func TestCheck_placesOfInlineScripts(t *testing.T) {
	cases := map[string]struct{ script, want string }{
		"plain":                         {"script: function f() { return tru e }", "4:35"},
		"plain over lines":              {"script: function f() {\n      return tru e\n      }", "5:18"},
		"plain over blank lines":        {"script: function f() {\n\n\n      return tru e }", "7:18"},
		"single quotes":                 {"script: 'function f() { return tru e }'", "4:36"},
		"single quotes in it":           {"script: 'var é = ''it''; function f() { return tru e }'", "4:52"},
		"single quotes over lines":      {"script: 'function f() {\n\n      return ''a'' tru }'", "6:20"},
		"double quotes":                 {"script: \"function f() { return tru e }\"", "4:36"},
		"double quotes over lines":      {"script: \"function f() {\n      return \\\"a\\\" tru }\"", "5:20"},
		"escaped line ends":             {`script: "var a = 1;\n\tfunction f() { return \u0061 e }"`, "4:53"},
		"a line that goes on":           {"script: \"function f() { \\\n        return tru \\\n        e }\"", "6:9"},
		"a line of blanks":              {"script: \"function f() {   \n   \t \n    return tru e }\"", "6:16"},
		"literal":                       {"script: |\n      function f() {\n        return tru e\n      }", "6:20"},
		"literal that begins with one":  {"script: |\n\n      function f() {\n        return tru e\n      }", "7:20"},
		"literal that says its columns": {"script: |2-\n        function f() {\n        return tru e\n      }", "6:20"},
		"literal after a comment":       {"script: | # mine\n      function f() {\n        return tru é e\n      }", "6:20"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			file := "connector: acme\nbase_url: https://acme.example\ntitle: x\n" + c.script + "\nmethods: [{method: m, endpoint: /a}]\n"
			got := definitiontest.Check(t, file)
			if len(got) != 1 || !strings.HasPrefix(got[0], c.want+": syntax error") {
				t.Errorf("got %v, want %s", got, c.want)
			}
		})
	}
	t.Run("in a flow", func(t *testing.T) {
		got := definitiontest.Check(t, "connector: acme\nbase_url: https://acme.example\nmethods: [{method: m, endpoint: /a, script: 'function f() {\n\n return tru e }', verb: GET}]\n")
		if len(got) != 1 || !strings.HasPrefix(got[0], "5:13: syntax error") {
			t.Errorf("got %v", got)
		}
	})
}

func TestUnknownPartners(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "acme.yaml"), []byte("connector: acme\nbase_url: https://acme.example\nmethods: [{method: m, endpoint: /a}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	catalog, _, err := definition.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	got := definition.UnknownPartners(map[string]definition.PartnerSettings{"acme": {}, "acmee": {}, "zzz": {}}, catalog)
	want := []string{`the partner settings name connector "acmee", which does not exist; did you mean "acme"?`, `the partner settings name connector "zzz", which does not exist`}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
