package hooks

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
)

// BenchmarkRun is one event through a hook host: what a step pays twice.
func BenchmarkRun(b *testing.B) {
	script := []Script{{Level: LevelConnector, File: "c.js", Source: `
function before_action() { method_request_headers['X-Request'] = 'bench'; return true; }
function after_action() {
  if (method_response != null && method_response.error === 'invalid_grant') throw new AuthRefreshException();
  return true;
}`}}
	answer := json.RawMessage(`{"id":1,"items":["` + strings.Repeat("x", 1000) + `"]}`)
	for _, ev := range []*Event{
		{Name: "before_action", Scripts: script, Globals: []Global{{Name: "method_request_headers", JSON: json.RawMessage(`{"Accept":"application/json"}`), Write: true, Headers: true}}},
		{Name: "after_action", Scripts: script, Globals: []Global{{Name: "method_response", JSON: answer, Write: true}}},
	} {
		b.Run(ev.Name, func(b *testing.B) {
			e, err := New(Config{})
			if err != nil {
				b.Fatal(err)
			}
			defer e.Close()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := e.Run(context.Background(), ev); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
