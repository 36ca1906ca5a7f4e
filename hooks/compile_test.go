package hooks

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A worker reads its connectors' sources itself: what the engine's parser
// panics at is a finding, no crash.
func TestCheckSource_findings(t *testing.T) {
	for name, c := range map[string]struct {
		source string
		want   []SyntaxFinding
	}{
		"none":           {"function before_action() {}", nil},
		"syntax":         {"var a = 1;\nvar b = ;", []SyntaxFinding{{2, 9, "syntax error: Unexpected token ;"}}},
		"parser's panic": {`var a = '\u{10ffff}';`, []SyntaxFinding{{1, 1, `syntax error: the script engine cannot read it: unexpected unicode length while parsing '\u{10ffff}'`}}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, CheckSource(&Script{Source: c.source})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
