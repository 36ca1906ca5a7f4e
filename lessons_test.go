package stepworker_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The table in docs/credentials.md names tests that exist.
func TestLessons_theTableNamesTestsThatExist(t *testing.T) {
	doc, err := os.ReadFile("docs/credentials.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`([a-z/]+)` `(Test\\w+)` \\|").FindAllStringSubmatch(string(doc), -1)
	if len(named) == 0 {
		t.Fatal("the table is gone")
	}
	for _, n := range named {
		files, err := filepath.Glob(filepath.Join(n[1], "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, f := range files {
			source, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			found = found || strings.Contains(string(source), "func "+n[2]+"(t *testing.T)")
		}
		if !found {
			t.Errorf("%s has no %s", n[1], n[2])
		}
	}
}
