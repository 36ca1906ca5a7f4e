package connectors_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/hooks"
	"github.com/stepworker/stepworker/internal/definitiontest"
)

// inlineConnector has a method whose body is one parameter, and which takes v.
func inlineConnector(value string) string {
	return fmt.Sprintf(`
connector: acme
base_url: BASE
methods:
  - method: get
    verb: POST
    endpoint: /things
    parameters:
      - {name: v, target: merge_field, optional: true}
      - name: computed
        target: merge_field
        value: |-
          %s
    body: {got: "{{computed}}"}
`, strings.ReplaceAll(value, "\n", "\n          "))
}

func TestInline_whatAMergeFieldBecomes(t *testing.T) {
	cases := map[string]struct{ script, v, want string }{
		"a number":                       {`=({{v}} * 2)`, `21`, `{"got":42}`},
		"numeric text":                   {`=({{v}} * 2)`, `"12.5"`, `{"got":25}`},
		"a number below zero":            {`=(5-{{v}})`, `-3`, `{"got":8}`},
		"a number's method":              {`={{v}}.toFixed(1)`, `5`, `{"got":"5.0"}`},
		"text":                           {`={{v}}`, `"a \"b\" 'c'"`, `{"got":"a \"b\" 'c'"}`},
		"leading zeros are no number":    {`={{v}}`, `"007"`, `{"got":"007"}`},
		"digits that a number loses":     {`={{v}}`, `"12345678901234567890"`, `{"got":"12345678901234567890"}`},
		"true":                           {`=!{{v}}`, `true`, `{"got":false}`},
		"an object":                      {`={{v}}.a.b`, `{"a":{"b":1}}`, `{"got":1}`},
		"a list":                         {`={{v}}.length`, `[1,2]`, `{"got":2}`},
		"a prototype is none":            {`=JSON.stringify({{v}})`, `{"__proto__":{"a":1}}`, `{"got":"{\"__proto__\":{\"a\":1}}"}`},
		"in single quotes":               {`='<{{v}}>'`, `"it's \\ \"q\" \u2028 ${1} ` + "`" + `\n"`, `{"got":"<it's \\ \"q\" \u2028 ${1} ` + "`" + `\n>"}`},
		"in double quotes":               {`="<{{v}}>"`, `"\" + 1 + \""`, `{"got":"<\" + 1 + \">"}`},
		"in a template literal":          {"=`<{{v}}>`", `"${1}` + "`" + `"`, `{"got":"<${1}` + "`" + `>"}`},
		"after a dollar":                 {"=`${{v}}`", `"{1}"`, `{"got":"${1}"}`},
		"in a literal it is text":        {`='{{v}}' + 1`, `1`, `{"got":"11"}`},
		"a literal's own backtick":       {"='`${' + '`{{v}}${'", `1`, "{\"got\":\"`${`1${\"}"},
		"a literal's own escapes":        {"='\\`\\'\\\\`{{v}}\\n'", `1`, "{\"got\":\"`'\\\\`1\\n\"}"},
		"nested in a template":           {"=`a${ {b: `c${'{{v}}'}`}.b }d`", "\"`}\"", "{\"got\":\"ac`}d\"}"},
		"in a template's code":           {"=`a${ {{v}} + 1 }`", `1`, `{"got":"a2"}`},
		"in a comment":                   {"=1 /* {{v}} */ + 1 // {{v}}", `"*/ 5 /*\n7"`, `{"got":2}`},
		"after a division":               {"=4 / {{v}} / 2 + '/{{v}}'.length", `1`, `{"got":4}`},
		"after a regular expression":     {"='a\"b'.replace(/[\"/]/, {{v}})", `"\""`, `{"got":"a\"b"}`},
		"statements":                     {"=var n = {{v}};\nn + 1", `1`, `{"got":2}`},
		"no value: what holds it is out": {`={{v}} + 1`, `null`, `{}`},
		"undefined is no value":          {`=undefined`, `1`, `{}`},
		"null is none":                   {`=null`, `1`, `{}`},
		"what it yields is data":         {`='{{v}}'`, `"={{v}}"`, `{"got":"={{v}}"}`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, inlineConnector(c.script), nil)
			a.must("get", withParameters(`{"v":`+c.v+`}`))
			sameJSON(t, "body", json.RawMessage(a.only().Body), c.want)
		})
	}
}

// Whatever a value holds, it stays a value, and the literal it stands in comes
// to exactly it.
func TestInline_aValueIsNeverCode(t *testing.T) {
	a := newAPI(t, inlineConnector("=['{{v}}', \"{{v}}\", `{{v}}`, `${'{{v}}'}`, /* {{v}} */ String({{v}})]"), nil)
	for _, v := range []string{"x", "'", "\"", "`", "\\", "\\'", "${", "${1}", "*/", "\n", "\r\n", "\u2028", "\u2029", "\x00", "'+(()=>{throw 1})()+'", "`+1+`", "/", "</script>", "=1", "{{v}}", "é€😀"} {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		a.must("get", withParameters(`{"v":`+string(raw)+`}`))
		var got struct{ Got []string }
		if err := json.Unmarshal([]byte(a.only().Body), &got); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]string{v, v, v, v, v}, got.Got); d != "" {
			t.Errorf("%q: %s", v, d)
		}
	}
}

func TestInline_isDataOfItsTypeAndPlace(t *testing.T) {
	const file = `
connector: acme
base_url: BASE
parameters:
  - {name: token, target: http_header, as: X-Token, value: "='t-' + cyclr_account_id", sensitive: true}
  - {name: twice, target: query_string, value: "={{v}} * 2", type: text}
  - {name: kind, target: query_string, default: "='k'"}
  - {name: seen, target: query_string, value: "=typeof cycle_variables + cycle_id + transaction_id + script_execution_context + last_successful_run_date"}
  - {name: built, target: query_string, value: "<{{twice}}>"}
methods:
  - {method: get, endpoint: /things, parameters: [{name: v, target: merge_field}]}
`
	a := newAPI(t, file, nil)
	a.must("get", withCycle, withParameters(`{"v":3}`))
	got := a.only()
	if got.Header.Get("X-Token") != "t-42" {
		t.Errorf("got %q", got.Header.Get("X-Token"))
	}
	want := "/things?twice=6&kind=k&seen=undefinedcytxRUNNING_TRANSACTION2026-11-25T10%3A00%3A00Z&built=%3C6%3E"
	if got.URI != want {
		t.Errorf("got  %s\nwant %s", got.URI, want)
	}
	a.must("get", withParameters(`{"v":3,"kind":"={{token}}"}`))
	contains(t, "a step's own", a.only().URI, "kind=%3D%7B%7Btoken%7D%7D")
}

func TestInline_builtFromAStepsIsAsForeign(t *testing.T) {
	a := newAPI(t, `
connector: acme
base_url: https://{{host}}.acme.example
parameters:
  - {name: v, target: merge_field}
  - {name: host, target: merge_field, value: "={{v}} + 'x'"}
methods: [{method: get, endpoint: /a}]
`, nil)
	e := a.fails("get", withParameters(`{"v":"evil"}`))
	if e.Kind != "input" {
		t.Errorf("got %+v", e)
	}
	contains(t, "message", e.Message, "a step cannot supply it")
}

// What a step says of its place in a flow is the step's, read as a merge field
// or as a global.
func TestInline_readingTheStepsPlaceIsAsForeign(t *testing.T) {
	for _, name := range []string{"cycle_id", "cycle_step_id", "transaction_id", "method_response_fields_in_use[0]"} {
		a := newAPI(t, `
connector: acme
base_url: https://{{host}}.acme.example
parameters:
  - {name: host, target: merge_field, value: "=`+name+`"}
methods: [{method: get, endpoint: /a}]
`, nil)
		e := a.fails("get", func(c *connectors.Call) {
			c.Cycle = connectors.Cycle{CycleID: "evil", CycleStepID: "evil", TransactionID: "evil"}
			c.FieldsInUse = []string{"evil"}
		})
		if e.Kind != "input" || !strings.Contains(e.Message, "a step cannot supply it") {
			t.Errorf("%s: got %+v", name, e)
		}
	}
}

func TestInline_errorsHaveTheAuthorsPlace(t *testing.T) {
	cases := map[string]struct{ value, at, detail string }{
		"quoted":   {`value: "={{v}} + nothing.there"`, "acme.yaml:9:69", "^"},
		"plain":    {`value: =nothing.there`, "acme.yaml:9:60", "^"},
		"of a val": {`value: "='{{v}}'.x.y"`, "acme.yaml:9:", "^"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, `
connector: acme
base_url: BASE
methods:
  - method: get
    endpoint: /things
    parameters:
      - {name: v, target: merge_field, value: abc}
      - {name: p, target: query_string,            `+c.value+`}
`, nil)
			e := a.fails("get")
			if e.Kind != "script" || len(a.requests()) != 0 {
				t.Errorf("got %+v", e)
			}
			contains(t, "at", e.At, c.at)
			contains(t, "detail", e.Detail, c.detail)
		})
	}
}

// The source does not change with the values, so that hosts compile it once.
func TestInline_manyValues(t *testing.T) {
	a := newAPI(t, inlineConnector("=`<{{v}}>`"), nil)
	for i := range 300 {
		a.must("get", withParameters(fmt.Sprintf(`{"v":"n%d"}`, i)))
	}
	want := `{"got":"<n299>"}`
	if d := cmp.Diff(want, a.requests()[299].Body); d != "" {
		t.Error(d)
	}
}

// Data that inline script is found not to see is what it does not see.
func TestCheck_inlineData(t *testing.T) {
	file := "connector: acme\nbase_url: BASE\nmethods:\n- method: get\n  endpoint: /a\n  parameters:\n"
	for _, d := range hooks.Data {
		file += "  - {name: " + d.Name + ", target: query_string, value: \"=typeof " + d.Name + "\"}\n"
	}
	a := newAPI(t, file, answering(200, "{}"))
	a.must("get")
	sent, err := url.Parse(a.only().URI)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range hooks.Data {
		got := definitiontest.Check(t, "connector: acme\nbase_url: https://acme.example\nmethods:\n- {method: get, endpoint: /a, parameters: [{name: p, target: query_string, value: \"=["+d.Name+"]\"}]}\n")
		if seen := sent.Query().Get(d.Name) != "undefined"; seen != (got == nil) {
			t.Errorf("%s: seen %v, found %v", d.Name, seen, got)
		}
	}
}
