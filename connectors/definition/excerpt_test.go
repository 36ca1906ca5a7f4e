package definition_test

import (
	"strings"
	"testing"

	"github.com/stepworker/stepworker/connectors/definition"
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
