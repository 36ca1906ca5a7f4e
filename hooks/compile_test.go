package hooks

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/dop251/goja/ast"
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

// The engine's parser takes twice the time for each such level: nobody who only
// looks at the script waits for it.
func TestCheckSource_givesUpOnWhatTakesForEver(t *testing.T) {
	s := Script{Level: LevelConnector, File: "c.js", Source: "var f = " + strings.Repeat("(a=", 18) + "1" + strings.Repeat(")=>1", 18)}
	_, err := within(20*time.Millisecond, s.Source, func() (*ast.Program, error) { return parse("script", s.Source) })
	if !errors.Is(err, errTooLong) {
		t.Fatalf("got %v, want that it takes too long", err)
	}
	if got := CheckSource(&s); len(got) != 1 || got[0].Text != errTooLong.Error() {
		t.Errorf("got %v", got)
	}
	if in := Inspect(&s); in != nil {
		t.Errorf("got %v, want nothing", in)
	}
}
