package connectors_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
)

func TestValues(t *testing.T) {
	const file = `
connector: acme
base_url: BASE
parameters:
  - {name: region, target: query_string, value: eu}
  - {name: tenant, target: query_string, property: account}
  - {name: plan, target: query_string, property: partner}
  - {name: domain, target: merge_field, property: account, optional: true}
methods:
  - method: list
    endpoint: /a
    parameters:
      - {name: since, target: query_string, as: updated_since}
      - {name: size, target: query_string, default: 50}
      - {name: state, target: query_string, optional: true}
      - {name: label, target: query_string, value: "{{since}}-{{tenant}}"}
      - {name: nothing, target: query_string, value: "x{{domain}}"}
      - {name: outer, target: query_string, value: "{{label}}!"}
`
	const fixed = "/a?region=eu&tenant=t%201&plan=gold"
	cases := map[string]struct{ parameters, uri, kind, message string }{
		"all from their places":                        {`{"since":"2026"}`, fixed + "&updated_since=2026&size=50&label=2026-t%201&outer=2026-t%201%21", "", ""},
		"the step's over the default":                  {`{"since":"2026","size":7}`, fixed + "&updated_since=2026&size=7&label=2026-t%201&outer=2026-t%201%21", "", ""},
		"fixed and property values are not the step's": {`{"since":"2026","region":"us","tenant":"other","plan":"free"}`, fixed + "&updated_since=2026&size=50&label=2026-t%201&outer=2026-t%201%21", "", ""},
		"what a step brings is data":                   {`{"since":"{{tenant}}","state":"=1+1"}`, fixed + "&updated_since=%7B%7Btenant%7D%7D&size=50&state=%3D1%2B1&label=%7B%7Btenant%7D%7D-t%201&outer=%7B%7Btenant%7D%7D-t%201%21", "", ""},
		"required":                                     {`{}`, "", "input", `"since"`},
		"null is no value":                             {`{"since":null}`, "", "input", `"since"`},
		"unknown":                                      {`{"since":"1","sice":1}`, "", "input", `did you mean "since"`},
		"lists repeat":                                 {`{"since":["a","b"],"state":[]}`, fixed + "&updated_since=a&updated_since=b&size=50&label=%5B%22a%22%2C%22b%22%5D-t%201&outer=%5B%22a%22%2C%22b%22%5D-t%201%21", "", ""},
		"deeper is its JSON":                           {`{"since":"1","state":{"b":[1,"x"],"a":null}}`, fixed + "&updated_since=1&size=50&state=%7B%22b%22%3A%5B1%2C%22x%22%5D%2C%22a%22%3Anull%7D&label=1-t%201&outer=1-t%201%21", "", ""},
		"empty is sent":                                {`{"since":"","state":""}`, fixed + "&updated_since=&size=50&state=&label=-t%201&outer=-t%201%21", "", ""},
		"big numbers":                                  {`{"since":12345678901234567890,"state":true}`, fixed + "&updated_since=12345678901234567890&size=50&state=true&label=12345678901234567890-t%201&outer=12345678901234567890-t%201%21", "", ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, file, nil, func(cfg *connectors.CallerConfig) {
				cfg.Partner = map[string]definition.PartnerSettings{"acme": {Properties: properties(`{"plan":"gold"}`)}}
			})
			a.Cred.Secrets.Properties = properties(`{"tenant":"t 1"}`)
			if c.kind != "" {
				e := a.fails("list", withParameters(c.parameters))
				if e.Kind != c.kind || e.Repeat {
					t.Errorf("got %+v", e)
				}
				contains(t, "message", e.Message, c.message)
				if n := len(a.requests()); n != 0 {
					t.Errorf("the API saw %d requests", n)
				}
				return
			}
			a.must("list", withParameters(c.parameters))
			if got := a.only().URI; got != c.uri {
				t.Errorf("sent\n%s, want\n%s", got, c.uri)
			}
		})
	}
}

func TestValues_aPropertyIsDataToo(t *testing.T) {
	a := newAPI(t, `
connector: acme
base_url: BASE
parameters: [{name: password, target: http_header, as: X-Password, property: account, sensitive: true}]
methods: [{method: m, endpoint: /a}]
`, nil)
	a.Cred.Secrets.Properties = properties(`{"password":"a{{b}}c"}`)
	a.must("m")
	if got := a.only().Header.Get("X-Password"); got != "a{{b}}c" {
		t.Errorf("sent %q", got)
	}
}

func TestValues_beforeActionMaySupplyWhatIsRequired(t *testing.T) {
	const file = `
connector: acme
base_url: BASE
headers: {X-Zone: "z={{zone}}", X-Mine: "{{zone}}"}
parameters:
  - {name: zone, target: merge_field}
  - {name: q, target: query_string, as: query}
  - {name: h, target: http_header, as: X-Required}
  - {name: s, target: script, optional: true}
methods:
  - method: m
    verb: POST
    endpoint: /a/{{zone}}
    body: {zone: "{{zone}}", text: "in {{zone}}"}
    script: "SCRIPT"
  - {method: plain, endpoint: "/a/{{zone}}"}
  - method: needs
    endpoint: /a
    parameters: [{name: s, target: script}]
    script: "function before_action() { script_parameters.s = 1 }"
`
	const all = `method_request_mergefields.zone = 'eu'; method_request_parameters.query = 1; method_request_headers['x-required'] = 'r'`
	cases := map[string]struct{ script, parameters, sent, message string }{
		"everything":               {all, `{}`, `/a/eu?query=1 {"zone":"eu","text":"in eu"} z=eu eu r`, ""},
		"what was there is filled": {`method_request_mergefields.zone = 'us'`, `{"zone":"eu","q":1,"h":"r"}`, `/a/us?query=1 {"zone":"us","text":"in us"} z=us us r`, ""},
		"but not what it touched":  {`method_request_mergefields.zone = 'us'; method_request.zone = 'mine'; method_request_headers['x-mine'] = 'me'`, `{"zone":"eu","q":1,"h":"r"}`, `/a/us?query=1 {"zone":"mine","text":"in eu"} z=us me r`, ""},
		"nor what it put in place": {all + `; method_request_headers['x-mine'] = 'me'`, `{}`, `/a/eu?query=1 {"zone":"eu","text":"in eu"} z=eu me r`, ""},
		"nothing":                  {`true`, `{}`, "", `"zone" is missing`},
		"no query":                 {`method_request_mergefields.zone = 'eu'`, `{"h":"r"}`, "", `"q" is missing`},
		"no header":                {`method_request_headers['X-Other'] = 'eu'`, `{"zone":"eu","q":1}`, "", `"h" is missing`},
		"null":                     {`method_request_mergefields.zone = null`, `{"q":1,"h":"r"}`, "", `"zone" is missing`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, strings.Replace(file, "SCRIPT", "function before_action() { "+c.script+" }", 1), nil)
			if c.message != "" {
				e := a.fails("m", withParameters(c.parameters))
				if e.Kind != "input" || e.Repeat {
					t.Errorf("got %+v", e)
				}
				contains(t, "message", e.Message, c.message)
				return
			}
			a.must("m", withParameters(c.parameters))
			got := a.only()
			if sent := strings.Join([]string{got.URI, got.Body, got.Header.Get("X-Zone"), got.Header.Get("X-Mine"), got.Header.Get("X-Required")}, " "); sent != c.sent {
				t.Errorf("sent\n%s, want\n%s", sent, c.sent)
			}
		})
	}
	t.Run("no script could", func(t *testing.T) {
		if e := newAPI(t, file, nil).fails("plain"); e.Kind != "input" || e.Ran {
			t.Errorf("got %+v", e)
		}
	})
	t.Run("a script's own parameter", func(t *testing.T) {
		if e := newAPI(t, file, nil).fails("needs", withParameters(`{"zone":"eu","q":1,"h":"r"}`)); e.Kind != "input" || e.Ran {
			t.Errorf("got %+v", e)
		}
	})
}

// A blank is %20 wherever we write one into a URL or a form, in names as in
// values and in a key: not every server takes a plus for one.
func TestBlanks_areWrittenAlike(t *testing.T) {
	a := newAPI(t, `
connector: acme
base_url: BASE
auth: {type: api_key, in: query, name: the key, prefix: "Token "}
parameters: [{name: of all, target: query_string, value: a + b}]
methods:
  - {method: get, endpoint: "/a?x={{n}}", parameters: [{name: n, target: merge_field}]}
  - {method: post, verb: POST, endpoint: /a, data_type: form, body: {a name: a + b}}
`, nil)
	a.Cred.Secrets.APIKey = credentials.NewSecret("k+e y")
	a.must("get", withParameters(`{"n":"1 + 2"}`), withScript(`function before_action() { method_request_parameters['of a script'] = 'c + d'; }`))
	a.must("post")
	const key = "of%20all=a%20%2B%20b&the%20key=Token%20k%2Be%20y"
	want := []string{"/a?x=1%20%2B%202&of%20all=a%20%2B%20b&of%20a%20script=c%20%2B%20d&the%20key=Token%20k%2Be%20y", "/a?" + key}
	var got []string
	sent := a.requests()
	for _, r := range sent {
		got = append(got, r.URI)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if got := sent[1].Body; got != "a%20name=a%20%2B%20b" {
		t.Error(got)
	}
}

func TestHeaders_whatCannotBeSentIsInput(t *testing.T) {
	for name, script := range map[string]string{
		"a name with a blank":       `method_request_headers['X Y'] = 'a'`,
		"a name that is not ASCII":  `method_request_headers['X-É'] = 'a'`,
		"no name":                   `method_request_headers[''] = 'a'`,
		"a value with a line break": `method_request_headers['X-Y'] = 'a\nb'`,
		"a control character":       `method_request_headers['X-Y'] = ['a', 'b\x07']`,
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, oneMethod+"    script: function before_action() { "+script+" }\n", nil)
			if e := a.fails("get"); e.Kind != "input" || e.Repeat {
				t.Errorf("got %+v", e)
			}
			if n := len(a.requests()); n != 0 {
				t.Errorf("the API saw %d requests", n)
			}
		})
	}
}

func TestValues_types(t *testing.T) {
	const file = `
connector: acme
base_url: BASE
parameters:
  - {name: size, target: merge_field, type: integer, property: account, optional: true}
methods:
  - method: m
    verb: POST
    endpoint: /a
    parameters:
      - {name: i, target: merge_field, type: integer, optional: true}
      - {name: f, target: merge_field, type: float, optional: true}
      - {name: d, target: merge_field, type: decimal, optional: true}
      - {name: b, target: merge_field, type: boolean, optional: true}
      - {name: t, target: merge_field, type: text, optional: true}
      - {name: w, target: merge_field, type: datetime, optional: true}
      - {name: any, target: merge_field, optional: true}
      - {name: fixed, target: merge_field, type: text, value: 7}
      - {name: assumed, target: merge_field, type: integer, default: "8"}
      - {name: built, target: merge_field, type: integer, value: "{{i}}"}
    body: ["{{i}}", "{{f}}", "{{d}}", "{{b}}", "{{t}}", "{{w}}", "{{any}}", "{{size}}", {fixed: "{{fixed}}", assumed: "{{assumed}}", built: "{{built}}"}]
`
	const rest = `{"fixed":"7","assumed":8}]`
	cases := map[string]struct{ parameters, size, body, message string }{
		"integer":                    {`{"i":5}`, "", `[5,{"fixed":"7","assumed":8,"built":5}]`, ""},
		"integer as text":            {`{"i":"5"}`, "", `[5,{"fixed":"7","assumed":8,"built":5}]`, ""},
		"integer with a point":       {`{"i":5.0}`, "", `[5,{"fixed":"7","assumed":8,"built":5}]`, ""},
		"integer with an exponent":   {`{"i":5e2}`, "", `[500,{"fixed":"7","assumed":8,"built":500}]`, ""},
		"integer with zeros":         {`{"i":"-007"}`, "", `[-7,{"fixed":"7","assumed":8,"built":-7}]`, ""},
		"integers":                   {`{"i":["1",2]}`, "", `[[1,2],{"fixed":"7","assumed":8,"built":[1,2]}]`, ""},
		"big integer":                {`{"i":12345678901234567890}`, "", `[12345678901234567890,{"fixed":"7","assumed":8,"built":12345678901234567890}]`, ""},
		"integer with a fraction":    {`{"i":5.5}`, "", "", `"i"`},
		"integer that is a word":     {`{"i":"five"}`, "", "", "integer"},
		"integer that is true":       {`{"i":true}`, "", "", "integer"},
		"integer that is empty":      {`{"i":""}`, "", "", "integer"},
		"integer in a list":          {`{"i":[1,"x"]}`, "", "", "integer"},
		"integer that is an object":  {`{"i":{"n":1}}`, "", "", "integer"},
		"float":                      {`{"f":"1.50"}`, "", `[1.50,` + rest, ""},
		"float as others write it":   {`{"f":"+.5"}`, "", `[0.5,` + rest, ""},
		"float that is none":         {`{"f":"NaN"}`, "", "", "float"},
		"float without an end":       {`{"f":"1e999"}`, "", "", "float"},
		"float of another base":      {`{"f":"0x10"}`, "", "", "float"},
		"decimal keeps its digits":   {`{"d":"0.12345678901234567890"}`, "", `[0.12345678901234567890,` + rest, ""},
		"decimal that is a list":     {`{"d":[[1]]}`, "", `[[[1]],` + rest, ""},
		"boolean":                    {`{"b":[true,"false",1,"0"]}`, "", `[[true,false,true,false],` + rest, ""},
		"boolean that is yes":        {`{"b":"yes"}`, "", "", "boolean"},
		"boolean that is a number":   {`{"b":2}`, "", "", "boolean"},
		"text":                       {`{"t":[1.50,true,"x"]}`, "", `[["1.50","true","x"],` + rest, ""},
		"text that is an object":     {`{"t":{"a":1}}`, "", "", "text"},
		"datetime":                   {`{"w":20260101}`, "", `["20260101",` + rest, ""},
		"untyped":                    {`{"any":"5"}`, "", `["5",` + rest, ""},
		"a property's type":          {`{}`, `"12"`, `[12,` + rest, ""},
		"a property of another type": {`{}`, `"dozen"`, "", `"size"`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, file, nil)
			if c.size != "" {
				a.Cred.Secrets.Properties = properties(`{"size":` + c.size + `}`)
			}
			if c.message != "" {
				e := a.fails("m", withParameters(c.parameters))
				if e.Kind != "input" || e.Repeat {
					t.Errorf("got %+v", e)
				}
				contains(t, "message", e.Message, c.message)
				return
			}
			a.must("m", withParameters(c.parameters))
			if got := a.only().Body; got != c.body {
				t.Errorf("sent %s, want %s", got, c.body)
			}
		})
	}
}

func TestBody(t *testing.T) {
	const file = `
connector: acme
base_url: BASE
parameters:
  - {name: n, target: merge_field, optional: true}
  - {name: s, target: merge_field, optional: true}
methods:
  - method: json
    verb: POST
    endpoint: /a
    body: {typed: "{{n}}", text: "is {{n}}", missing: "{{s}}", partly: "x{{s}}", list: [1, "{{s}}", "{{n}}"], deep: {a: "{{s}}"}, fixed: null, f: 1.0}
  - method: form
    verb: POST
    endpoint: /a
    data_type: form
    response: {data_type: json}
    body: {a: "{{n}}", b: [1, "x y"], c: {d: 1}, e: "{{s}}", g: null, h: ""}
  - method: text
    verb: PUT
    endpoint: /a
    data_type: plain_text
    response: {data_type: json}
    content_type: text/csv
    body: "a;{{n}}"
  - {method: none, verb: POST, endpoint: /a}
`
	cases := map[string]struct {
		method, parameters, body    string
		wantBody, wantType, message string
	}{
		"json keeps types and leaves out": {"json", `{"n":5}`, "", `{"typed":5,"text":"is 5","list":[1,5],"deep":{},"fixed":null,"f":1.0}`, "application/json", ""},
		"json takes whole values":         {"json", `{"n":{"k":[true]},"s":"\"q\""}`, "", `{"typed":{"k":[true]},"text":"is {\"k\":[true]}","missing":"\"q\"","partly":"x\"q\"","list":[1,"\"q\"",{"k":[true]}],"deep":{"a":"\"q\""},"fixed":null,"f":1.0}`, "application/json", ""},
		"the step's replaces":             {"json", `{}`, `{"z":"{{n}}","a":12345678901234567890}`, `{"z":"{{n}}","a":12345678901234567890}`, "application/json", ""},
		"form":                            {"form", `{"n":"a&b"}`, "", "a=a%26b&b=1&b=x%20y&c=%7B%22d%22%3A1%7D&h=", "application/x-www-form-urlencoded", ""},
		"text":                            {"text", `{"n":"é"}`, "", "a;é", "text/csv", ""},
		"none":                            {"none", `{}`, "", "", "", ""},
		"form of a list":                  {"form", `{}`, `[1]`, "", "", "form"},
		"text of an object":               {"text", `{}`, `{"a":1}`, "", "", "plain_text"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, file, nil)
			change := func(call *connectors.Call) {
				if withParameters(c.parameters)(call); c.body != "" {
					call.Body = json.RawMessage(c.body)
				}
			}
			if c.message != "" {
				e := a.fails(c.method, change)
				if e.Kind != "input" {
					t.Errorf("got %+v", e)
				}
				contains(t, "message", e.Message, c.message)
				return
			}
			a.must(c.method, change)
			got := a.only()
			if got.Body != c.wantBody || got.Header.Get("Content-Type") != c.wantType {
				t.Errorf("sent %s as %q, want %s as %q", got.Body, got.Header.Get("Content-Type"), c.wantBody, c.wantType)
			}
			if _, chunked := got.Header["Transfer-Encoding"]; chunked {
				t.Error("the body has no length")
			}
		})
	}
}

func TestMergeFields_escapedForWhereTheyStand(t *testing.T) {
	const file = `
connector: acme
base_url: BASE/{{+path}}/
headers: {X-All: "{{v}}", X-None: "a{{gone}}"}
parameters:
  - {name: v, target: merge_field}
  - {name: path, target: merge_field, property: account}
  - {name: gone, target: merge_field, optional: true}
methods:
  - {method: m, endpoint: "/s/{{v}}/end?q={{v}}&fixed=1"}
  - {method: needs, endpoint: "/s/{{gone}}"}
`
	cases := map[string]struct{ value, uri, header, message string }{
		"plain":        {`"a"`, "/p/q/s/a/end?q=a&fixed=1", "a", ""},
		"slash":        {`"a/b"`, "/p/q/s/a%2Fb/end?q=a%2Fb&fixed=1", "a/b", ""},
		"reserved":     {`"a?b#c&d=e+f %"`, "/p/q/s/a%3Fb%23c&d=e+f%20%25/end?q=a%3Fb%23c%26d%3De%2Bf%20%25&fixed=1", "a?b#c&d=e+f %", ""},
		"umlaut":       {`"ä"`, "/p/q/s/%C3%A4/end?q=%C3%A4&fixed=1", "ä", ""},
		"number":       {`1.50`, "/p/q/s/1.50/end?q=1.50&fixed=1", "1.50", ""},
		"dots":         {`".."`, "", "", "v"},
		"line break":   {`"a\r\nX-Evil: 1"`, "", "", "line break"},
		"empty in URL": {`""`, "", "", "{{v}}"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, file, nil)
			a.Cred.Secrets.Properties = properties(`{"path":"p/q"}`)
			if c.message != "" {
				e := a.fails("m", withParameters(`{"v":`+c.value+`}`))
				if e.Kind != "input" {
					t.Errorf("got %+v", e)
				}
				contains(t, "message", e.Message, c.message)
				return
			}
			a.must("m", withParameters(`{"v":`+c.value+`}`))
			got := a.only()
			if got.URI != c.uri || got.Header.Get("X-All") != c.header {
				t.Errorf("sent %s with %q, want %s with %q", got.URI, got.Header.Get("X-All"), c.uri, c.header)
			}
			if _, there := got.Header["X-None"]; there {
				t.Error("a header whose merge field has no value was sent")
			}
		})
	}
	a := newAPI(t, file, nil)
	a.Cred.Secrets.Properties = properties(`{"path":"p/q"}`)
	e := a.fails("needs", withParameters(`{"v":1}`))
	contains(t, "message", e.Message, "{{gone}}")
}

func TestHosts(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, 200, `{"auth":"`+r.Header.Get("Authorization")+`"}`)
	}))
	defer other.Close()
	otherHost := strings.TrimPrefix(other.URL, "http://")
	file := func(hosts, methods string) string {
		return "connector: acme\nbase_url: BASE\nauth: {type: api_key, hosts: [" + hosts + "]}\nparameters:\n  - {name: target, target: merge_field, optional: true}\n  - {name: mine, target: merge_field, property: account, optional: true}\n  - {name: built, target: merge_field, value: \"{{target}}\"}\nmethods:\n" + methods
	}
	key := func(a *api) *api { a.Cred.Secrets.APIKey = credentials.NewSecret("k"); return a }
	refusedInput := func(t *testing.T, a *api, change ...func(*connectors.Call)) {
		t.Helper()
		if e := a.fails("m", change...); e.Kind != "input" || e.Repeat {
			t.Errorf("got kind %s: %s", e.Kind, e.Message)
		}
		if n := len(a.requests()); n != 0 {
			t.Errorf("the API saw %d requests", n)
		}
	}
	quoted := func(s string) string { b, _ := json.Marshal(s); return string(b) }
	for name, field := range map[string]string{"a step cannot begin the URL": "target", "nor by a parameter built from its value": "built"} {
		t.Run(name, func(t *testing.T) {
			a := key(newAPI(t, file("", `  - {method: m, endpoint: "{{`+field+`}}/a"}`), nil))
			a.must("m", withParameters(`{"target":"http://evil.example"}`))
			if got := a.only().URI; got != "/http:%2F%2Fevil.example/a" {
				t.Errorf("sent %s", got)
			}
		})
	}
	t.Run("nor that of the base", func(t *testing.T) {
		a := newAPI(t, strings.Replace(file("", `  - {method: m, endpoint: /a}`), "BASE", `"{{target}}"`, 1), nil)
		refusedInput(t, key(a), withParameters(`{"target":`+quoted(other.URL)+`}`))
	})
	t.Run("a step cannot fill the host", func(t *testing.T) {
		refusedInput(t, key(newAPI(t, file("", `  - {method: m, endpoint: "http://{{target}}/a"}`), nil)), withParameters(`{"target":"evil.example"}`))
	})
	t.Run("a property may begin the URL", func(t *testing.T) {
		a := key(newAPI(t, file("", `  - {method: m, endpoint: "{{mine}}/a"}`), nil))
		a.Cred.Secrets.Properties = properties(`{"mine":` + quoted(other.URL) + `}`)
		sameJSON(t, "content", a.must("m").Content, `{"auth":"k"}`)
	})
	t.Run("a property that is no URL", func(t *testing.T) {
		for _, bad := range []string{"ftp://x", "javascript:alert(1)", "x", "http://u:p@h/", "//h", "http://h/?q=1", "http://h/#f"} {
			a := key(newAPI(t, strings.Replace(file("", `  - {method: m, endpoint: a}`), "BASE", `"{{mine}}"`, 1), nil))
			a.Cred.Secrets.Properties = properties(`{"mine":` + quoted(bad) + `}`)
			refusedInput(t, a)
		}
	})
	for name, c := range map[string]struct{ endpoint, property, uri string }{
		"a property that is none is a segment below the base": {"{{mine}}/a", `"x/y z"`, "/x%2Fy%20z/a"},
		"nor does it lead away":                               {"{{mine}}/a", `"//evil.example"`, "/%2F%2Fevil.example/a"},
		"with slashes kept":                                   {"{{+mine}}/a", `"x/y"`, "/x/y/a"},
		"one that is, alone":                                  {"{{mine}}", `"BASE/p/?x=1"`, "/p/?x=1"},
		"one that is, with a slash":                           {"{{mine}}/a", `"BASE/p/"`, "/p/a"},
		"one that is, with a query":                           {"{{mine}}&y=2", `"BASE/p?x=1"`, "/p?x=1&y=2"},
		"one that is, and then a query":                       {"{{mine}}?y=2", `"BASE/p/"`, "/p/?y=2"},
	} {
		t.Run(name, func(t *testing.T) {
			a := key(newAPI(t, file("", `  - {method: m, endpoint: "`+c.endpoint+`"}`), nil))
			a.Cred.Secrets.Properties = properties(`{"mine":` + strings.Replace(c.property, "BASE", a.URL, 1) + `}`)
			a.must("m")
			if got := a.only().URI; got != c.uri {
				t.Errorf("sent %s, want %s", got, c.uri)
			}
		})
	}
	t.Run("a host must be DNS labels", func(t *testing.T) {
		for _, bad := range []string{"a/b", "a@b", "a:1", "a#", "a?b", "a b", "a\\b", "[::1]", "%41", "a..b", ".a", "a.", "-a", strings.Repeat("a", 64)} {
			a := key(newAPI(t, file("", `  - {method: m, endpoint: "http://{{mine}}.HOST/a"}`), nil))
			a.Cred.Secrets.Properties = properties(`{"mine":` + quoted(bad) + `}`)
			refusedInput(t, a)
		}
	})
	for name, script := range map[string]string{
		"endpoint":        `method_endpoint = 'TARGET/a'`,
		"merge field":     `method_request_mergefields.mine = 'TARGET'`,
		"user in the URL": `method_endpoint = method_endpoint.replace('http://', 'http://x@')`,
	} {
		t.Run("a script cannot lead elsewhere: "+name, func(t *testing.T) {
			endpoint := "/a"
			if name == "merge field" {
				endpoint = "{{mine}}/a"
			}
			a := newAPI(t, file("", "  - method: m\n    endpoint: \""+endpoint+"\"\n    script: \"function before_action() { "+strings.ReplaceAll(script, "TARGET", other.URL)+" }\"\n"), nil)
			a.Cred.Secrets.Properties = properties(`{"mine":` + quoted(a.URL) + `}`)
			refusedInput(t, key(a))
		})
	}
	t.Run("but to auth.hosts", func(t *testing.T) {
		a := key(newAPI(t, file(`"`+otherHost+`"`, "  - method: m\n    endpoint: /a\n    script: \"function before_action() { method_endpoint = '"+other.URL+"/a' }\"\n"), nil))
		sameJSON(t, "content", a.must("m").Content, `{"auth":"k"}`)
	})
	t.Run("on its own host a script may choose the path", func(t *testing.T) {
		a := key(newAPI(t, file("", "  - method: m\n    endpoint: /a\n    script: \"function before_action() { method_endpoint = method_endpoint + '/b' }\"\n"), nil))
		a.must("m")
		if got := a.only().URI; got != "/a/b" {
			t.Errorf("sent %s", got)
		}
	})
}

func TestJoinsBaseAndEndpointWithOneSlash(t *testing.T) {
	for base, endpoints := range map[string]map[string]string{
		"BASE/api":  {"/a": "/api/a", "a": "/api/a", "'?x=1'": "/api?x=1"},
		"BASE/api/": {"/a": "/api/a", "a": "/api/a"},
		"BASE":      {"/a": "/a", "a": "/a"},
	} {
		for endpoint, want := range endpoints {
			a := newAPI(t, "connector: acme\nbase_url: "+base+"\nmethods: [{method: m, endpoint: "+endpoint+"}]\n", nil)
			a.must("m")
			if got := a.only().URI; got != want {
				t.Errorf("%s and %s: sent %s, want %s", base, endpoint, got, want)
			}
		}
	}
}

func TestEndpoint_whatAScriptWroteIsText(t *testing.T) {
	const file = `
connector: acme
base_url: BASE/{{tenant}}
auth: {type: basic}
parameters:
  - {name: tenant, target: merge_field, property: account}
  - {name: zone, target: merge_field, optional: true}
  - {name: pin, target: merge_field, property: account, sensitive: true}
  - {name: q, target: script, optional: true}
methods:
  - method: m
    endpoint: /a?fixed=1
    script: "function before_action() { SCRIPT }"
`
	cases := map[string]struct{ script, parameters, uri string }{
		"untouched":                       {`true`, `{}`, "/t/a?fixed=1"},
		"own merge fields":                {`method_endpoint += '&t={{tenant}}'`, `{}`, "/t/a?fixed=1&t=t"},
		"a merge-field parameter":         {`method_endpoint += '&z={{zone}}'`, `{"zone":"a b"}`, "/t/a?fixed=1&z=a%20b"},
		"one that the script wrote":       {`method_request_mergefields.made = 'x/y'; method_endpoint += '&z={{made}}'`, `{}`, "/t/a?fixed=1&z=x%2Fy"},
		"a sensitive one is text":         {`method_endpoint += '&p=' + script_parameters.q`, `{"q":"{{pin}}"}`, "/t/a?fixed=1&p=%7B%7Bpin%7D%7D"},
		"a secret is none":                {`method_endpoint += '&p={{password}}'`, `{}`, "/t/a?fixed=1&p=%7B%7Bpassword%7D%7D"},
		"nor one that a step brought":     {`method_endpoint += '&p=' + script_parameters.q`, `{"q":"{{password}}"}`, "/t/a?fixed=1&p=%7B%7Bpassword%7D%7D"},
		"nor one out of two halves":       {`method_endpoint += '&p={{pass' + script_parameters.q`, `{"q":"word}}"}`, "/t/a?fixed=1&p=%7B%7Bpassword%7D%7D"},
		"nor in the path":                 {`method_endpoint = method_endpoint.replace('/a', '/a%2Fb/{{api_key}}')`, `{}`, "/t/a%2Fb/%7B%7Bapi_key%7D%7D?fixed=1"},
		"unknown":                         {`method_endpoint += '&p={{nobody}}'`, `{}`, "/t/a?fixed=1&p=%7B%7Bnobody%7D%7D"},
		"no name":                         {`method_endpoint += '&p={{ x y }}'`, `{}`, "/t/a?fixed=1&p=%7B%7B%20x%20y%20%7D%7D"},
		"not closed":                      {`method_endpoint += '&p={{a'`, `{}`, "/t/a?fixed=1&p=%7B%7Ba"},
		"not opened":                      {`method_endpoint += '&p=a}}'`, `{}`, "/t/a?fixed=1&p=a%7D%7D"},
		"illegal in a query":              {`method_endpoint += '&p=' + script_parameters.q`, `{"q":"a b\"<>|\\^` + "`" + `\u0001é"}`, "/t/a?fixed=1&p=a%20b%22%3C%3E%7C%5C%5E%60%01%C3%A9"},
		"encoded already, and a lone one": {`method_endpoint += '&p=%2F%C3%A9&q=100%'`, `{}`, "/t/a?fixed=1&p=%2F%C3%A9&q=100%25"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, strings.Replace(file, "SCRIPT", c.script, 1), nil)
			a.Cred.Secrets.Properties = properties(`{"tenant":"t","pin":"4711"}`)
			a.Cred.Secrets.HasBasic, a.Cred.Secrets.Username, a.Cred.Secrets.Password = true, "me", credentials.NewSecret("the-pass-word")
			a.must("m", withParameters(c.parameters))
			if got := a.only().URI; got != c.uri {
				t.Errorf("sent %s, want %s", got, c.uri)
			}
		})
	}
}
