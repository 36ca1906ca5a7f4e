package definition

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCheckBeside(t *testing.T) {
	cases := map[string]struct {
		field, answer, want string
	}{
		"there":                   {`field: "[records].id"`, `{"records": [{"id": 1}]}`, ""},
		"there in one item":       {`field: "[records].id"`, `{"records": [{"x": 1}, {"id": 1}]}`, ""},
		"an empty list":           {`field: "[records].id"`, `{"records": []}`, ""},
		"null":                    {`field: "[records].id"`, `{"records": null}`, ""},
		"a list of lists":         {`field: "[a].[b].x"`, `{"a": [{"b": [{"x": 1}]}]}`, ""},
		"no JSON":                 {`field: "[records].id"`, `hello`, ""},
		"optional":                {`field: nope, optional: true`, `{}`, ""},
		"another name":            {`field: "[record].id"`, `{"records": [], "total": 3}`, `in one.txtar answer 2 has no member "record"; it has "records", "total"; did you mean "records"?`},
		"another name below":      {`field: "[records].nme"`, `{"records": [{"name": 1}]}`, `in one.txtar answer 2 has no member "nme" in records; it has "name"; did you mean "name"?`},
		"a list that is not said": {`field: "records.id"`, `{"records": [{"id": 1}]}`, "in one.txtar answer 2 has a list at records: it is written [records]"},
		"a list that is none":     {`field: "[records].id"`, `{"records": {"id": 1}}`, "in one.txtar answer 2 has no list at records: without brackets it is one value"},
		"a list at the root":      {`field: id`, `[{"id": 1}]`, "in one.txtar answer 2 is a list of 1: its items' members are written [].id"},
		"an object at the root":   {`field: "[].id"`, `{"id": 1}`, "in one.txtar answer 2 is no list"},
		"text":                    {`field: a.b`, `{"a": "b"}`, "in one.txtar answer 2 has no members at a"},
		"a header":                {`header: X-Total, system: T`, `{}`, ""},
		"no such header":          {`header: X-Totl, system: T`, `{}`, "in one.txtar answer 2 has no header X-Totl"},
		"no such cookie":          {`cookie: SID, system: T`, `{}`, "in one.txtar answer 2 sets no cookie SID"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "acme.yaml")
			text := "connector: acme\nbase_url: https://acme.example/api\nmethods:\n  - method: m\n    endpoint: /things/{{AccountId}}\n    response: {fields: [{" + c.field + "}]}\n  - {method: other, endpoint: /other, response: {fields: [{field: unseen}]}}\n"
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			beside := func(string) []Recording {
				answer := RecordedAnswer{Number: 2, Verb: "GET", Path: "/api/things/7", Header: http.Header{"X-Total": {"1"}}, Body: c.answer}
				return []Recording{{File: "x/one.txtar", Connector: "acme", Answers: []RecordedAnswer{answer}}, {File: "x/two.txtar", Connector: "other"}}
			}
			found, err := CheckBeside([]string{file}, beside)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, f := range found {
				if !f.Hint || f.Line != 6 {
					t.Errorf("%v", f)
				}
				got += f.Text
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// An answer that hooks write again tells nothing.
func TestCheckBeside_hooksThatWriteTheAnswer(t *testing.T) {
	file := filepath.Join(t.TempDir(), "acme.yaml")
	text := strings.Join([]string{"connector: acme", "base_url: https://acme.example", "methods:", "  - method: m", "    endpoint: /a",
		"    response: {fields: [{field: id}]}", "    script: 'function after_action() { method_response = {id: 1}; }'", ""}, "\n")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	found, err := CheckBeside([]string{file}, func(string) []Recording {
		return []Recording{{File: "one.txtar", Connector: "acme", Answers: []RecordedAnswer{{Number: 1, Verb: "GET", Path: "/a", Body: "{}"}}}}
	})
	if err != nil || found != nil {
		t.Errorf("%v, %v", found, err)
	}
}
