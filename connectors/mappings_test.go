package connectors_test

import (
	"encoding/json"
	"testing"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/credentials"
)

const mappedMethod = `
connector: acme
base_url: BASE
auth: {type: api_key, name: X-Key}
parameters:
  - {name: domain, target: merge_field, property: account}
methods:
  - method: add
    verb: POST
    endpoint: /things
    parameters:
      - {name: price, target: merge_field, optional: true}
      - {name: name, target: merge_field, optional: true}
      - {name: since, target: query_string, optional: true}
      - {name: fixed, target: query_string, value: "1"}
    body: {own: "{{name}}"}
`

func withMappings(m map[string]string) func(*connectors.Call) {
	return func(c *connectors.Call) { c.Mappings = m }
}

func TestMappings(t *testing.T) {
	cases := map[string]struct {
		parameters, body string
		mappings         map[string]string
		uri, sent        string
	}{
		"inline script":         {`{"price":"12.5"}`, `{}`, map[string]string{"body.total": "=({{price}} * 2)"}, "/things?fixed=1", `{"total":25}`},
		"a template":            {`{"name":"a \"b\""}`, `{}`, map[string]string{"body.text": "<{{name}}>"}, "/things?fixed=1", `{"text":"<a \"b\">"}`},
		"one field's type":      {`{"price":{"n":[1]}}`, `{}`, map[string]string{"body.price": "{{price}}"}, "/things?fixed=1", `{"price":{"n":[1]}}`},
		"a parameter":           {`{"name":"x"}`, `{}`, map[string]string{"parameters.since": "=`${'{{name}}'}!`"}, "/things?since=x%21&fixed=1", `{}`},
		"replaces a parameter":  {`{"since":"old"}`, `{}`, map[string]string{"parameters.since": "new"}, "/things?since=new&fixed=1", `{}`},
		"of another as it came": {`{"name":"x","since":"old"}`, `{}`, map[string]string{"parameters.name": "n-{{name}}", "parameters.since": "s-{{name}}"}, "/things?since=s-x&fixed=1", `{}`},
		"the whole body":        {`{}`, `{"a":1}`, map[string]string{"body": "=({b: 2})", "body.c": "3"}, "/things?fixed=1", `{"b":2,"c":"3"}`},
		"the method's own body": {`{"name":"x"}`, ``, map[string]string{"body.total": "=1"}, "/things?fixed=1", `{"own":"x","total":1}`},
		"objects on the way":    {`{}`, `{"a":{"x":1}}`, map[string]string{"body.a.b.c": "=1", `body.\d.e\`: "=2"}, "/things?fixed=1", `{"a":{"x":1,"b":{"c":1}},"d.e":2}`},
		"no value":              {`{"since":"old"}`, `{"a":1}`, map[string]string{"body.b": "{{name}}", "body.c": "=undefined", "parameters.since": "{{price}}"}, "/things?fixed=1", `{"a":1}`},
		"null":                  {`{}`, `{"a":1}`, map[string]string{"body.a": "=null"}, "/things?fixed=1", `{"a":null}`},
		"the system's":          {`{}`, `{}`, map[string]string{"body.a": "{{AccountId}} {{LastSuccessfulRunDate format=yyyy}}", "body.b": "={{TransactionId}} + cycle_id"}, "/things?fixed=1", `{"a":"42 2026","b":"txcy"}`},
		"what it yields is data": {`{"name":"={{price}}"}`, `{}`, map[string]string{"body.a": "{{name}}", "parameters.since": "='=' + '{' + '{price}}'"},
			"/things?since=%3D%7B%7Bprice%7D%7D&fixed=1", `{"a":"={{price}}"}`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, mappedMethod, nil)
			a.Cred.Secrets.Properties, a.Cred.Secrets.APIKey = properties(`{"domain":"d"}`), credentials.NewSecret("the-key")
			a.must("add", withCycle, withParameters(c.parameters), withMappings(c.mappings), func(call *connectors.Call) {
				if c.body != "" {
					call.Body = json.RawMessage(c.body)
				}
			})
			got := a.only()
			if got.URI != c.uri {
				t.Errorf("sent %s, want %s", got.URI, c.uri)
			}
			sameJSON(t, "body", json.RawMessage(got.Body), c.sent)
		})
	}
}

func TestMappings_errors(t *testing.T) {
	cases := map[string]struct{ path, text, kind, at, want string }{
		"an unknown field":        {"body.a", "{{prise}}", "input", "", `unknown merge field {{prise}}; did you mean "price"?`},
		"an unknown one inline":   {"body.a", "={{prices}}", "input", "", `did you mean "price"?`},
		"a secret":                {"body.a", "{{api_key}}", "input", "", "unknown merge field {{api_key}}"},
		"a property":              {"body.a", "{{domain}}", "input", "", "unknown merge field {{domain}}"},
		"a parameter that is not": {"parameters.sinc", "x", "input", "", `method "add" has no parameter "sinc"; did you mean "since"?`},
		"no object on the way":    {"body.a.b", "x", "input", "", `mapping "body.a.b": the body has something else than an object on the way there`},
		"an error":                {"body.t", "=1 +\n  nothing.there", "script", "mappings body.t:2:3", "ReferenceError"},
		"a syntax error":          {"body.t", "='{{name}}' tru", "script", "mappings body.t:1:13", "syntax error"},
		"an exception":            {"body.t", "=(() => { throw new AuthRefreshException() })()", "script", "mappings body.t:1:", "connector scripts"},
		"a limit":                 {"body.t", "=(function f() { return f() })()", "limit", "mappings body.t:1:", "deeper than 500"},
		"a limit of what it is":   {"body.t", "=[...Array(1500)].reduce(x => [x], 1)", "limit", "mappings body.t:1:", "came to a value that is nested deeper than 1000"},
		"a form error":            {"bdy.t", "x", "input", "", "its place is parameters.NAME, body or body.LOCATION"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, mappedMethod, nil)
			a.Cred.Secrets.Properties, a.Cred.Secrets.APIKey = properties(`{"domain":"d"}`), credentials.NewSecret("the-key")
			e := a.fails("add", withParameters(`{"name":"x","price":1}`), withMappings(map[string]string{c.path: c.text}), func(call *connectors.Call) { call.Body = json.RawMessage(`{"a":1}`) })
			if e.Kind != c.kind || len(a.requests()) != 0 {
				t.Errorf("got %+v", e)
			}
			contains(t, "message", e.Message, c.want)
			contains(t, "at", e.At, c.at)
			if c.kind == "script" && e.Detail == "" {
				t.Error("no excerpt")
			}
		})
	}
}

// A merge field that before_action changes is filled again under what is mapped.
func TestMappings_stayWhenMergeFieldsChange(t *testing.T) {
	a := newAPI(t, mappedMethod+"    script: function before_action() { method_request_mergefields.name = 'new'; }\n", nil)
	a.Cred.Secrets.Properties, a.Cred.Secrets.APIKey = properties(`{"domain":"d"}`), credentials.NewSecret("the-key")
	a.must("add", withParameters(`{"name":"x"}`), withMappings(map[string]string{"body.total": "='{{name}}'"}))
	sameJSON(t, "body", json.RawMessage(a.only().Body), `{"own":"new","total":"x"}`)
}
