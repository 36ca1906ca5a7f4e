package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/connectors/definition"
)

// Of a recording the last success of each request counts; one that is to fail
// tells nothing, and no more does another kind of archive.
func TestCheck_recordingsBeside(t *testing.T) {
	dir := t.TempDir()
	const first = "-- 1.request --\nGET https://acme.example/items?a={{secret.a}}\n-- 1.response --\n200 OK\n\n{\"error\": \"dead\"}\n-- 2.request --\nPOST /token\n-- 2.response --\n200\n{\"access_token\": \"{{secret.b}}\"}\n" +
		"-- 3.request --\nGET https://acme.example/items?a={{secret.c}}\n-- 3.response --\n200\n{\"record\": [{\"id\": 1}]}\n"
	files := map[string]string{
		"acme.yaml":    "connector: acme\nbase_url: https://acme.example\nmethods:\n  - method: get\n    endpoint: /items\n    response: {fields: [{field: \"[records].id\"}]}\n",
		"failed.txtar": "-- try --\n{\"connector\": \"acme\", \"method\": \"get\"}\n-- 1.request --\nGET /items\n-- 1.response --\n200\n{\"records\": [{\"id\": 1}]}\n-- want --\n{\"status\": \"failed\"}\n",
		"other.txtar":  "-- a.txt --\nhello\n",
		"one.txtar":    "-- try --\n{\"connector\": \"acme\", \"method\": \"get\"}\n" + first,
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	found, err := checkAll(t.Context(), []string{dir})
	if err != nil {
		t.Fatal(err)
	}
	want := []definition.Finding{{File: filepath.Join(dir, "acme.yaml"), Line: 6, Column: 33, Hint: true,
		Text: `in one.txtar answer 3 has no member "records"; it has "record"; did you mean "record"?`}}
	if d := cmp.Diff(want, found); d != "" {
		t.Error(d)
	}
}

func TestOps_schemaForEditors(t *testing.T) {
	w := open(t, "connector: acme\nbase_url: https://acme.example\nmethods: [{method: m, endpoint: /a}]\n")
	if got := w.get(t, "/schema/connector.json"); got != definition.Schema() {
		t.Errorf("got %d bytes, not the schema", len(got))
	}
}
