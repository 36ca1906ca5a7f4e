// Package definitiontest reads the connector files of tests.
package definitiontest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stepworker/stepworker/connectors/definition"
)

// Load reads one connector file; any finding but a hint fails the test.
func Load(t *testing.T, file string) *definition.Connector {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "acme.yaml"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	catalog, findings, err := definition.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		if !f.Hint {
			t.Fatal(f)
		}
	}
	def, ok := catalog.Get("acme")
	if !ok {
		t.Fatal("the file declares no connector acme")
	}
	return def
}

// Check is what definition.Check finds in one connector file, without the file's name.
func Check(t *testing.T, file string) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "acme.yaml")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	findings, err := definition.Check([]string{path})
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, f := range findings {
		text := strings.TrimPrefix(f.String(), path+":")
		if f.Hint {
			text += " (hint)"
		}
		all = append(all, text)
	}
	return all
}
