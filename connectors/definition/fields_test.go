package definition_test

import (
	"testing"

	"github.com/stepworker/stepworker/internal/definitiontest"

	"github.com/google/go-cmp/cmp"
)

func TestCheck_fields(t *testing.T) {
	const head = "connector: acme\nbase_url: https://acme.example\nmethods:\n  - method: m\n    endpoint: /a\n    verb: POST\n"
	cases := map[string]struct {
		keys string
		want []string
	}{
		"good":                     {"    request: {fields: [{field: '[a].b', type: datetime, format: \"yyyy-MM-dd'T'HH:mm:ss.fffzzz\"}]}\n", nil},
		"a bad location":           {"    request: {fields: [{field: a..b}]}\n", []string{`7:24: field "a..b": an empty name`}},
		"no location":              {"    request: {fields: [{type: text}]}\n", []string{`7:24: a request field needs a location: key "field"`}},
		"a format of no date":      {"    request: {fields: [{field: a, type: text, format: yyyy}]}\n", []string{`7:47: format has a meaning for type datetime alone`}},
		"letters of no format":     {"    response: {fields: [{field: a, system: A, type: datetime, format: YYYY-MM-DD}]}\n", []string{`7:63: format: "YYYY" is none of the words of a date format (yyyy MM dd HH mm ss fff tt zzz and their like); put text in quotes`}},
		"a location twice":         {"    request: {fields: [{field: a}, {field: a}]}\n", []string{`7:36: field "a" stands here twice (hint)`}},
		"a trigger of no name":     {"    request: {fields: [{field: a, trigger: t}]}\n", []string{`7:44: trigger "t" does not exist`}},
		"a root of no XML":         {"    xml_root: r\n", []string{"7:5: xml_root has no meaning for data type json"}},
		"a root that is no name":   {"    data_type: xml\n    xml_root: a b\n", []string{`8:5: xml_root: "a b" is no name of an element`}},
		"an answer of many parts":  {"    response: {data_type: multipart_related}\n", []string{"7:27: response.data_type: multipart_related is of requests; an answer that is a file is a simple_file"}},
		"a field in a description": {"    request: {fields: [{field: a, default: '{{nobody}}'}]}\n", []string{`7:44: no parameter declares merge field {{nobody}}: each credential must have a property of that name (hint)`}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(c.want, definitiontest.Check(t, head+c.keys)); d != "" {
				t.Error(d)
			}
		})
	}
}
