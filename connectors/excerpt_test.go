package connectors_test

import (
	"strings"
	"testing"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
)

func TestExcerpt(t *testing.T) {
	long := strings.Repeat("x", 300)
	cases := map[string]struct {
		source       string
		line, column int
		want         string
	}{
		"a word":           {"var a;\n  b.c();\n", 2, 5, "  b.c();\n    ^"},
		"a tab stays one":  {"\tb.c();", 1, 2, "\tb.c();\n\t^"},
		"in characters":    {"é = ü.x", 1, 5, "é = ü.x\n    ^"},
		"beyond the end":   {"ab", 1, 9, "ab\n  ^"},
		"a Windows line":   {"a\r\nb.c\r\n", 2, 3, "b.c\n  ^"},
		"no such line":     {"a", 2, 1, ""},
		"of a long line":   {long, 1, 200, long[:120] + "\n" + strings.Repeat(" ", 60) + "^"},
		"its end":          {long, 1, 301, long[:120] + "\n" + strings.Repeat(" ", 120) + "^"},
		"without a column": {"ab", 1, 0, "ab\n^"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := definition.Excerpt(c.source, c.line, c.column); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

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
