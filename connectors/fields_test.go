package connectors_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/connectors"
)

// Locations and types of response fields.
func TestFields_response(t *testing.T) {
	cases := map[string]struct{ field, answer, want string }{
		"a member":                      {"{field: a.b}", `{"a":{"b":1}}`, `1`},
		"of items":                      {"{field: '[l].x'}", `{"l":[{"x":1},{},{"x":null}]}`, `[1,null,null]`},
		"of items of items":             {"{field: '[a].[b].x'}", `{"a":[{"b":[{"x":1},{"x":2}]},{"b":[{"x":3}]}]}`, `[1,2,3]`},
		"of the root list":              {"{field: '[].x'}", `[{"x":1}]`, `[1]`},
		"below an object":               {"{field: 'data.[r].id'}", `{"data":{"r":[{"id":1}]}}`, `[1]`},
		"a list itself":                 {"{field: '[tags]'}", `{"tags":["a",["b"]]}`, `["a",["b"]]`},
		"a name with dots":              {`{field: '[A1].\A2.F\'}`, `{"A1":[{"A2.F":1}]}`, `[1]`},
		"a name in brackets":            {"{field: '[a].b'}", `{"[a]":{"b":1}}`, `1`},
		"brackets, a list before it":    {"{field: '[a].b'}", `{"[a]":{"b":1},"a":[{"b":2}]}`, `[2]`},
		"brackets beside no list":       {"{field: '[a].b'}", `{"[a]":{"b":1},"a":{"b":2}}`, `1`},
		"no list":                       {"{field: '[a].b'}", `{"a":{"b":1}}`, ``},
		"missing":                       {"{field: a.b}", `{"a":1}`, ``},
		"a default":                     {"{field: a.b, type: integer, default: '7'}", `{}`, `7`},
		"a default for items":           {"{field: '[l].x', default: none}", `{"l":[{"x":1},{},{"x":null}]}`, `[1,"none",null]`},
		"a default of a header":         {"{header: X-None, default: d}", `{}`, `"d"`},
		"text":                          {"{field: a, type: text}", `{"a":1.50}`, `"1.50"`},
		"an integer":                    {"{field: a, type: integer}", `{"a":" 007 "}`, `7`},
		"a large integer":               {"{field: a, type: integer}", `{"a":"12345678901234567890123"}`, `12345678901234567890123`},
		"a rounded integer":             {"{field: a, type: integer}", `{"a":"2.5"}`, `3`},
		"a float":                       {"{field: a, type: float}", `{"a":"0.1234567890123456"}`, `0.12345678901235`},
		"a decimal":                     {"{field: a, type: decimal}", `{"a":"12345678901234567890.1234567890126"}`, `12345678901234567890.123456789013`},
		"a decimal of JSON":             {"{field: a, type: decimal}", `{"a":-0.0000000000001}`, `0`},
		"a decimal of a vast exponent":  {"{field: a, type: decimal}", `{"a":1e99999999}`, `1e99999999`},
		"a decimal of a small exponent": {"{field: a, type: decimal}", `{"a":"1e-99999999"}`, `"1e-99999999"`},
		"a decimal that is none":        {"{field: a, type: decimal}", `{"a":"0x1p-2"}`, `"0x1p-2"`},
		"a boolean":                     {"{field: '[a]', type: boolean}", `{"a":["True",0,"1",false,"x"]}`, `[true,false,true,false,"x"]`},
		"undefined":                     {"{field: a, type: undefined}", `{"a":{"b":"1"}}`, `{"b":"1"}`},
		"a file":                        {"{field: a, type: file}", `{"a":"AP8="}`, `"AP8="`},
		"a date":                        {"{field: a, type: datetime}", `{"a":"2026-11-25"}`, `"2026-11-25T00:00:00Z"`},
		"a date in a zone":              {"{field: a, type: datetime}", `{"a":"2026-11-25T10:00:00.250+0200"}`, `"2026-11-25T08:00:00.25Z"`},
		"a date of HTTP":                {"{field: a, type: datetime}", `{"a":"Wed, 25 Nov 2026 10:00:00 GMT"}`, `"2026-11-25T10:00:00Z"`},
		"seconds":                       {"{field: a, type: datetime}", `{"a":1764064800.5}`, `"2025-11-25T10:00:00.5Z"`},
		"milliseconds":                  {"{field: a, type: datetime}", `{"a":"1764064800123"}`, `"2025-11-25T10:00:00.123Z"`},
		"a date of older .NET":          {"{field: a, type: datetime}", `{"a":"/Date(1764064800000+0000)/"}`, `"2025-11-25T10:00:00Z"`},
		"what is no date":               {"{field: '[a]', type: datetime}", `{"a":["soon",20261125,null,{"b":1}]}`, `["soon",20261125,null,{"b":1}]`},
		"a date by its format":          {"{field: a, type: datetime, format: 'dd/MM/yyyy h:mm tt'}", `{"a":"03/12/2026 4:05 pm"}`, `"2026-12-03T16:05:00Z"`},
		"another than the format":       {"{field: a, type: datetime, format: dd/MM/yyyy}", `{"a":"2026-12-03"}`, `"2026-12-03"`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, "connector: acme\nbase_url: BASE\nmethods: [{method: m, endpoint: /a, response: {fields: ["+strings.TrimSuffix(c.field, "}")+", system: V}]}}]\n", answering(200, c.answer))
			got := a.must("m")
			if c.want == "" {
				if got.Fields != nil {
					t.Errorf("got %s, want none", got.Fields)
				}
				return
			}
			if want := `{"V":` + c.want + `}`; string(got.Fields) != want {
				t.Errorf("got %s, want %s", got.Fields, want)
			}
		})
	}
}

// XML knows no lists: one element is a list of one, where a location wants it.
func TestFields_xmlListOfOne(t *testing.T) {
	for name, c := range map[string]struct{ answer, want string }{
		"several": {`<r><i id="1"><t>a</t><t>b</t></i><i id="2"><t>c</t></i></r>`, `{"Id":["1","2"],"T":["a","b","c"],"I":2}`},
		"one":     {`<r><i id="1"><t>a</t></i></r>`, `{"Id":["1"],"T":["a"],"I":1}`},
		"none":    {`<r/>`, ``},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, `
connector: acme
base_url: BASE
methods:
  - method: m
    endpoint: /a
    response: {fields: [{field: "r.[i].@id", system: Id}, {field: "r.[i].[t]", system: T}, {field: "r.[i]", system: I}]}
`, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/xml")
				_, _ = w.Write([]byte(c.answer))
			})
			got := a.must("m").Fields
			if c.want == "" {
				if got != nil {
					t.Errorf("got %s", got)
				}
				return
			}
			var fields struct {
				Id, T []string
				I     []json.RawMessage
			}
			if err := json.Unmarshal(got, &fields); err != nil {
				t.Fatal(err)
			}
			id, _ := json.Marshal(fields.Id)
			texts, _ := json.Marshal(fields.T)
			if short := fmt.Sprintf(`{"Id":%s,"T":%s,"I":%d}`, id, texts, len(fields.I)); short != c.want {
				t.Errorf("got %s, want %s", short, c.want)
			}
		})
	}
}

// Request fields make the body what the method says.
func TestFields_request(t *testing.T) {
	cases := map[string]struct{ fields, body, want, fails string }{
		"a type":                     {"{field: a, type: integer}", `{"a":"5"}`, `{"a":5}`, ""},
		"a type that cannot be":      {"{field: a.b, type: integer}", `{"a":{"b":"five"}}`, "", `field "a.b" of the body must be of type integer`},
		"each item of a list":        {"{field: '[l].n', type: integer}", `{"l":[{"n":"1"},{},{"n":"2"}]}`, `{"l":[{"n":1},{},{"n":2}]}`, ""},
		"an item that cannot be":     {"{field: '[l].n', type: boolean}", `{"l":[{"n":"1"},{"n":"no"}]}`, "", `field "[l].n" of the body must be of type boolean`},
		"items of items":             {"{field: '[l].[m].n', type: text}", `{"l":[{"m":[{"n":1}]},{"m":[]}]}`, `{"l":[{"m":[{"n":"1"}]},{"m":[]}]}`, ""},
		"a list of scalars":          {"{field: '[l]', type: text}", `{"l":[1,true]}`, `{"l":["1","true"]}`, ""},
		"the root list":              {"{field: '[].n', type: text}", `[{"n":1}]`, `[{"n":"1"}]`, ""},
		"a name with dots":           {`{field: '\a.b\', type: text}`, `{"a.b":1}`, `{"a.b":"1"}`, ""},
		"a name in brackets":         {`{field: '[a].b', type: text}`, `{"[a]":{"b":1}}`, `{"[a]":{"b":"1"}}`, ""},
		"a default":                  {"{field: a.b, default: 1}", `{"z":1}`, `{"z":1,"a":{"b":1}}`, ""},
		"a default, no body":         {"{field: a, default: '{{v}}'}", ``, `{"a":"given"}`, ""},
		"a default, something there": {"{field: a, default: 1}", `{"a":0}`, `{"a":0}`, ""},
		"a default, null there":      {"{field: a, default: 1}", `{"a":null}`, `{"a":null}`, ""},
		"a default of each item":     {"{field: '[l].q', type: integer, default: '1'}", `{"l":[{},{"q":"2"}]}`, `{"l":[{"q":1},{"q":2}]}`, ""},
		"a default of no item":       {"{field: '[l].q', default: 1}", `{}`, `{}`, ""},
		"a default that is a list":   {"{field: '[l]', default: [1]}", `{}`, `{"l":[1]}`, ""},
		"nothing is made":            {"{field: a.b, type: text}", ``, ``, ""},
		"required":                   {"{field: a.b, optional: false}", `{"a":{}}`, "", `field "a.b" of the body is missing`},
		"required, no body":          {"{field: a, optional: false}", ``, "", `field "a" of the body is missing`},
		"required, null":             {"{field: a, optional: false}", `{"a":null}`, "", `field "a" of the body is missing`},
		"required, no object":        {"{field: a.b, optional: false}", `{"a":1}`, "", `field "a.b" of the body is missing`},
		"required of each item":      {"{field: '[l].a', optional: false}", `{"l":[{"a":1},{}]}`, "", `field "[l].a" of the body is missing`},
		"required of no item":        {"{field: '[l].a', optional: false}", `{"l":[]}`, `{"l":[]}`, ""},
		"required, no list":          {"{field: '[l].a', optional: false}", `{}`, "", `field "[l].a" of the body is missing`},
		"required, and a default":    {"{field: a, optional: false, default: 1}", `{}`, `{"a":1}`, ""},
		"required, and there":        {"{field: a, optional: false}", `{"a":""}`, `{"a":""}`, ""},
		"a date by its format":       {"{field: a, type: datetime, format: dd/MM/yyyy}", `{"a":"2026-11-25T10:00:00Z"}`, `{"a":"25/11/2026"}`, ""},
		"a date that has the format": {"{field: a, type: datetime, format: dd/MM/yyyy}", `{"a":"03/12/2026"}`, `{"a":"03/12/2026"}`, ""},
		"a date that is none":        {"{field: a, type: datetime, format: dd/MM/yyyy}", `{"a":"soon"}`, "", `field "a" of the body must be a date`},
		"a date, no format":          {"{field: a, type: datetime}", `{"a":"2026-11-25"}`, `{"a":"2026-11-25"}`, ""},
		"a decimal":                  {"{field: a, type: decimal}", `{"a":"12345678901234567890.1234567890126"}`, `{"a":12345678901234567890.123456789013}`, ""},
		"a float":                    {"{field: a, type: float}", `{"a":1.500}`, `{"a":1.5}`, ""},
		"undefined":                  {"{field: a, type: undefined}", `{"a":{"b":[1]}}`, `{"a":{"b":[1]}}`, ""},
		"values are not enforced":    {"{field: a, values: [x, {value: y}], title: A, description: an a}", `{"a":"z"}`, `{"a":"z"}`, ""},
		"mapped first":               {"{field: m, type: integer}", `{}`, `{"m":7}`, ""},
		"several":                    {"{field: a, default: 1}, {field: a, type: text}", `{}`, `{"a":"1"}`, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, "connector: acme\nbase_url: BASE\nparameters: [{name: v, target: merge_field, value: given}]\nmethods:\n  - method: m\n    endpoint: /a\n    verb: POST\n    request: {fields: ["+c.fields+"]}\n    script: 'function before_action() { action_data.saw = JSON.stringify(method_request); console.log(action_data.saw); }'\n", nil)
			change := func(call *connectors.Call) {
				if c.body != "" {
					call.Body = json.RawMessage(c.body)
				}
				if name == "mapped first" {
					call.Mappings = map[string]string{"body.m": "7"}
				}
			}
			if c.fails != "" {
				e := a.fails("m", change)
				if e.Kind != "input" || e.Ran || len(a.requests()) > 0 {
					t.Errorf("got %+v", e)
				}
				contains(t, "message", e.Message, c.fails)
				return
			}
			answer := a.must("m", change)
			if got := a.only().Body; got != c.want {
				t.Errorf("sent %s, want %s", got, c.want)
			}
			if want := c.want; want != "" && name != "a decimal" { // which JavaScript has no number for
				if d := cmp.Diff([]string{want}, answer.Logs); d != "" {
					t.Errorf("before_action saw: %s", d)
				}
			}
		})
	}
}

func TestFields_webhook(t *testing.T) {
	a := newAPI(t, `
connector: acme
base_url: BASE
methods:
  - method: hook
    type: webhook
    data_type: xml
    request: {fields: [{field: "e.[i].n", system: N, type: integer}, {field: none, optional: false}, {field: kind, default: k}]}
    response: {fields: [{field: e.who, system: Who}]}
`, nil)
	got := a.must("hook", func(call *connectors.Call) {
		call.Webhook = &connectors.Webhook{Body: json.RawMessage(`"<e><i><n>1</n></i><who>ann</who></e>"`)}
	})
	sameJSON(t, "content", got.Content, `{"e":{"i":{"n":"1"},"who":"ann"}}`)
	sameJSON(t, "fields", got.Fields, `{"N":[1],"Who":"ann","kind":"k"}`)
}
