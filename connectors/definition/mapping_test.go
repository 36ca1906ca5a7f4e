package definition_test

import (
	"strings"
	"testing"

	"github.com/stepworker/stepworker/connectors/definition"
)

func TestCheckMapping(t *testing.T) {
	for path, c := range map[string]struct{ text, want string }{
		"body":            {"=1", ""},
		"body.a.b":        {"x {{y}}", ""},
		`body.\a.b\`:      {"=1", ""},
		"parameters.a.b":  {"x", ""}, // a parameter's name may hold a dot
		"parameters":      {"x", "its place is"},
		"body.":           {"x", "its place is"},
		"":                {"x", "its place is"},
		"body.a..b":       {"x", "an empty name"},
		"body.[list].a":   {"x", "a list's items"},
		"body.a":          {"{{x", "not closed"},
		"body.b":          {"={{x", "not closed"},
		"parameters.code": {"=/{{x}}/", "regular expression"},
	} {
		err := definition.CheckMapping(path, c.text)
		if err == nil && c.want != "" {
			t.Errorf("%s: no error", path)
		} else if err != nil && (c.want == "" || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v; it should say %q", path, err, c.want)
		}
	}
}
