package definition_test

import (
	"encoding/json"
	"testing"

	"github.com/stepworker/stepworker/internal/definitiontest"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/connectors/definition"
)

func TestTriggers_choices(t *testing.T) {
	for name, c := range map[string]struct{ key, label, answer, want string }{
		"in order":             {"[accounts].id", "[accounts].name", `{"accounts":[{"id":2,"name":"Two"},{"id":1,"name":"One"}]}`, `[{"key":2,"label":"Two"},{"key":1,"label":"One"}]`},
		"a missing label":      {"[accounts].id", "[accounts].name", `{"accounts":[{"id":"a"},{"name":"b"},{"id":"c","name":null}]}`, `[{"key":"a","label":"a"},{"key":"c","label":"c"}]`},
		"no label at all":      {"[accounts].id", "", `{"accounts":[{"id":"a"}]}`, `[{"key":"a","label":"a"}]`},
		"a list of values":     {"[]", "", `["x","y"]`, `[{"key":"x","label":"x"},{"key":"y","label":"y"}]`},
		"lists in lists":       {"[g].[m].id", "[g].[m].n.t", `{"g":[{"m":[{"id":1,"n":{"t":"A"}},{"id":2}]},{},{"m":[{"id":3,"n":{"t":"C"}}]}]}`, `[{"key":1,"label":"A"},{"key":2,"label":2},{"key":3,"label":"C"}]`},
		"below an object":      {"data.[list].id", "data.[list].name", `{"data":{"list":[{"id":1,"name":"One"}]}}`, `[{"key":1,"label":"One"}]`},
		"nothing to offer":     {"[accounts].id", "", `{"accounts":[]}`, `[]`},
		"an answer without":    {"[accounts].id", "", `{"account":[]}`, `the answer of method "m" has no list at [accounts].id`},
		"an answer that is no": {"[accounts].id", "", ``, `the answer of method "m" is no JSON value`},
	} {
		t.Run(name, func(t *testing.T) {
			trigger := &definition.Trigger{Name: "t", Method: "m", Key: c.key, Label: c.label}
			all, err := trigger.Choices(json.RawMessage(c.answer))
			got := ""
			if err != nil {
				got = err.Error()
			} else if raw, err := json.Marshal(all); err == nil {
				got = string(raw)
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestCheck_triggers(t *testing.T) {
	got := definitiontest.Check(t, `connector: acme
base_url: https://acme.example
post_install: {property_lookup_method: login}
parameters:
  - {name: account, target: query_string, trigger: acounts, title: Account, description: Whose they are}
triggers:
  - {name: accounts, method: list, key: "[accounts].id", label: "[accounts].name"}
  - {name: accounts, method: script, key: "[accounts].id"}
  - {name: a, method: lst, key: "[x].id"}
  - {name: b, method: hook, key: "[x].id"}
  - {name: c, method: login, key: "[x].id"}
  - {name: d, method: list, key: id, label: "[x].name"}
  - {name: e, method: list, key: "[x].id", label: "[y].name"}
  - {name: f, method: list, key: "[x]..id"}
  - {name: g, method: list}
methods:
  - {method: login, verb: POST, endpoint: /login, response: {fields: [{field: s, system: s}]}}
  - {method: list, endpoint: /accounts}
  - {method: script, type: script}
  - {method: hook, type: webhook}
`)
	want := []string{
		`5:52: trigger "acounts" does not exist; did you mean "accounts"?`,
		`8:5: trigger "accounts" is declared twice`,
		`9:23: trigger "a" names method "lst", which does not exist; did you mean "list"?`,
		`10:23: trigger "b" names method "hook", which is a webhook`,
		`11:23: trigger "c" names method "login", which is the login or the logout method`,
		`12:5: trigger "d": key "id" names no list, such as [accounts].id`,
		`13:5: trigger "e": key "[x].id" and label "[y].name" stand in different lists`,
		`14:5: trigger "f": key "[x]..id": an empty name`,
		`15:5: a trigger: key "key" is missing`,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
