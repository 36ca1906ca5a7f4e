package hooks

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The reference names what shows each of its points: all of it is there, and
// no conformance case is without a point.
func TestReference_namesWhatShowsIt(t *testing.T) {
	text, err := os.ReadFile("../docs/hooks.md")
	if err != nil {
		t.Fatal(err)
	}
	cases, err := filepath.Glob("testdata/conformance/*.txtar")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no conformance cases: %v", err)
	}
	for i, c := range cases {
		cases[i] = strings.TrimSuffix(filepath.Base(c), ".txtar")
	}
	tests := goTests(t, "*_test.go", "../connectors/*_test.go", "../credentials/*_test.go", "../jobs/*_test.go")
	named := map[string]bool{}
	begun := false
	for i, line := range strings.Split(string(text), "\n") {
		if begun = begun || line == "## Point by point"; !begun {
			continue
		}
		cells := strings.Split(line, "|")
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| what |") {
			continue
		}
		if len(cells) != 5 {
			t.Fatalf("line %d: a row has three cells", i+1)
		}
		names := regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[3], -1)
		if len(names) == 0 {
			t.Errorf("line %d: nothing shows it", i+1)
		}
		for _, m := range names {
			found := slices.Contains(tests, m[1])
			for _, c := range cases {
				if ok, _ := path.Match(m[1], c); ok {
					found, named[c] = true, true
				}
			}
			if !found {
				t.Errorf("line %d: there is no %s", i+1, m[1])
			}
		}
	}
	for _, c := range cases {
		if !named[c] {
			t.Errorf("no point of the reference names %s", c)
		}
	}
}

func goTests(t *testing.T, patterns ...string) (names []string) {
	t.Helper()
	for _, p := range patterns {
		files, err := filepath.Glob(p)
		if err != nil || len(files) == 0 {
			t.Fatalf("no files %s: %v", p, err)
		}
		for _, f := range files {
			source, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllSubmatch(source, -1) {
				names = append(names, string(m[1]))
			}
		}
	}
	return names
}
