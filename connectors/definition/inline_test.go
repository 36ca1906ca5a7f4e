package definition_test

import (
	"strings"
	"testing"

	"github.com/stepworker/stepworker/internal/definitiontest"
)

func TestCheck_inlineScript(t *testing.T) {
	const head = "connector: acme\nbase_url: https://acme.example\nmethods: [{method: m, endpoint: /a}]\nparameters:\n"
	cases := map[string]struct {
		value string
		want  []string
	}{
		"good":               {`{name: p, target: script, value: "=1 + {{q}}"}`, nil},
		"a syntax error":     {`{name: p, target: script, value: "={{q}} + tru e"}`, []string{"5:52: syntax error"}},
		"after a field":      {`{name: p, target: script, default: "='{{q}}' tru"}`, []string{"5:50: syntax error"}},
		"an unknown field":   {`{name: p, target: script, value: "={{qq}}"}`, []string{`5:38: no parameter declares merge field {{qq}}`}},
		"not closed":         {`{name: p, target: script, value: "={{q + 1"}`, []string{"5:38: a merge field is not closed"}},
		"in a regular one":   {`{name: p, target: script, value: "=/a{{q}}/.test('b')"}`, []string{"5:38: {{q}} stands in a regular expression"}},
		"after a backslash":  {`{name: p, target: script, value: "='\\{{q}}'"}`, []string{"5:38: a backslash stands before {{q}}"}},
		"a dollar before it": {"{name: p, target: script, value: \"=`${{q}}`\"}", nil},
		"in a list":          {`{name: p, target: script, value: ["=tru e"]}`, nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got := definitiontest.Check(t, head+"  - "+c.value+"\n  - {name: q, target: script, value: 1}\n")
			if len(got) != len(c.want) {
				t.Fatalf("got %q", got)
			}
			for i := range got {
				if !strings.HasPrefix(got[i], c.want[i]) {
					t.Errorf("got %q, want %q", got[i], c.want[i])
				}
			}
		})
	}
}
