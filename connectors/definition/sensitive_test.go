package definition_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
)

// What is sealed is told of every method: the connector's parameters count at
// each, also where one leaves them out. A step that gives one there fails, but
// what it gave stands in its task.
func TestCatalog_sensitive(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"acme.yaml": `
connector: acme
base_url: https://acme.example
parameters: [{name: pin, target: http_header, as: X-Pin, optional: true, sensitive: true}]
methods:
  - {method: pay, endpoint: /, parameters: [{name: code, target: query_string, sensitive: true}, {name: since, target: query_string}]}
  - {method: open, endpoint: /, parameters: [{name: pin, value: CYCLR_IGNORE_PARAMETER}]}
  - {method: show, endpoint: /, parameters: [{name: pin, target: query_string, optional: true}]}
`,
		"other.yaml": `
connector: other
base_url: https://other.example
methods: [{method: pay, endpoint: /, parameters: [{name: token, target: query_string, sensitive: true}]}]
`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	catalog, findings, err := definition.Load(dir)
	if err != nil || len(findings) > 0 {
		t.Fatal(err, findings)
	}
	got := catalog.Sensitive()
	for _, names := range got {
		slices.Sort(names)
	}
	if diff := cmp.Diff(credentials.SensitiveParameters{"pay": {"code", "pin", "token"}, "open": {"pin"}}, got); diff != "" {
		t.Error(diff)
	}
}
