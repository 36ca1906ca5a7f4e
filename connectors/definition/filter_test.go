package definition_test

import (
	"testing"

	"github.com/stepworker/stepworker/internal/definitiontest"

	"github.com/google/go-cmp/cmp"
)

func TestCheck_filterNamesAList(t *testing.T) {
	got := definitiontest.Check(t, `connector: acme
base_url: https://acme.example
methods:
  - method: list
    endpoint: /things
    parameters:
      - {name: since, target: filter_field}
      - {name: until, target: filter_field, as: "[a]b"}
`)
	want := []string{
		`7:9: parameter "since" filters the items of a list: its location (as) must name one, such as [records].updated_at`,
		`8:9: parameter "until" filters the items of a list: its location (as) must name one, such as [records].updated_at`,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}
