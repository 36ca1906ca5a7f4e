package definition_test

import (
	"testing"

	"github.com/stepworker/stepworker/internal/definitiontest"
)

func TestCheck_formats(t *testing.T) {
	got := definitiontest.Check(t, `connector: acme
base_url: https://acme.example
methods:
  - method: get
    endpoint: /{{sincee format=yyyy}}
    parameters:
      - {name: since, target: merge_field}
      - {name: a, target: query_string, value: "{{since format=}}"}
      - {name: b, target: query_string, value: "{{since format=yyyy-MM}}"}
`)
	want := []string{
		`5:15: unknown merge field {{sincee}}; did you mean "since"?`,
		`8:48: {{since format=}} says no format, such as yyyy-MM-dd`,
	}
	if len(got) != len(want) || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %q", got)
	}
}
