package connectors_test

import (
	"strings"
	"testing"

	"github.com/stepworker/stepworker/credentials"
)

func TestCall_detailShowsTheAuthorsLine(t *testing.T) {
	const file = `
connector: acme
base_url: BASE
methods:
  - method: get
    endpoint: /things
    script: |
      function after_action() {
        return nothing.there;
      }
`
	a := newAPI(t, file, nil)
	e := a.fails("get")
	if want := "        return nothing.there;\n               ^"; e.Detail != want {
		t.Errorf("of a connector file: %s\n%s", e.At, e.Detail)
	}
	a = newAPI(t, oneMethod, nil)
	a.Cred.Secrets.APIKey = credentials.NewSecret("key-1234567890")
	e = a.fails("get", withScript("function before_action() {\n\tthrow new Error('key-1234567890');\n}"))
	if want := "\tthrow new Error('[redacted]');\n\t^"; e.Detail != want && !strings.HasPrefix(e.Detail, "\tthrow new Error('[redacted]');\n\t") {
		t.Errorf("of a step's script: %s\n%s", e.At, e.Detail)
	}
	contains(t, "detail", e.Detail, "[redacted]")
	for name, c := range map[string]struct{ script, want string }{
		"the caret beside a mask": {"function before_action() { var k = 'key-1234567890'; throw k; }",
			"function before_action() { var k = '[redacted]'; throw k; }\n" + strings.Repeat(" ", 49) + "^"},
		"the caret in a mask": {"function before_action() { ''['a-key-1234567890'].b } //",
			"function before_action() { ''['a-[redacted]'].b } //"},
	} {
		e = a.fails("get", withScript(c.script))
		if !strings.HasPrefix(e.Detail, c.want) {
			t.Errorf("%s:\n%s\nwant\n%s", name, e.Detail, c.want)
		}
	}
	for pad := range 130 { // wherever a long line is cut
		script := "function before_action() { var k = 'key-1234567890'; " + "if (0) " + strings.Repeat("x", pad+1) + "; throw 1; " + strings.Repeat("y", 200) + "; 'key-1234567890' }"
		if e = a.fails("get", withScript(script)); strings.Contains(e.Detail, "567890") || strings.Contains(e.Detail, "key-12") {
			t.Fatalf("%d: %s", pad, e.Detail)
		}
	}
}
