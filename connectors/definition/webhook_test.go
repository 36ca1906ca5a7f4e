package definition_test

import (
	"testing"

	"github.com/stepworker/stepworker/internal/definitiontest"

	"github.com/google/go-cmp/cmp"
)

func TestCheck_methodTypes(t *testing.T) {
	const head = "connector: acme\nbase_url: https://acme.example\n"
	cases := map[string]struct {
		file string
		want []string
	}{
		"need no endpoint":     {head + "methods:\n  - {method: a, type: script, body: {}}\n  - {method: b, type: webhook, endpoint: /for/people}\n", nil},
		"an action needs one":  {head + "methods:\n  - {method: a, type: action}\n", []string{`4:5: method "a": key "endpoint" is missing`}},
		"script sends nothing": {head + "methods:\n  - {method: a, type: script, endpoint: /a, verb: GET, retry: safe}\n", []string{"4:31: endpoint has no meaning for a method of type script", "4:45: verb has no meaning for a method of type script", "4:56: retry has no meaning for a method of type script"}},
		"webhook neither":      {head + "methods:\n  - {method: a, type: webhook, body: {}}\n", []string{"4:32: body has no meaning for a method of type webhook"}},
		"no login":             {head + "post_install: {property_lookup_method: a}\nmethods:\n  - {method: a, type: webhook}\n", []string{`3:40: post_install.property_lookup_method names method "a", which is a webhook`}},
		"misspelt":             {head + "methods:\n  - {method: a, type: webhok, endpoint: /a}\n", []string{`4:23: "webhok" is none of action, script, webhook; did you mean "webhook"?`}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(c.want, definitiontest.Check(t, c.file)); d != "" {
				t.Error(d)
			}
		})
	}
}
