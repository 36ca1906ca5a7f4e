package definition

import (
	"fmt"
	"strings"

	"github.com/stepworker/stepworker/connectors/inline"
	"github.com/stepworker/stepworker/connectors/jsontree"
	"github.com/stepworker/stepworker/connectors/location"
	"github.com/stepworker/stepworker/connectors/mergefields"
	"github.com/stepworker/stepworker/hooks"
)

// Mapping is what a step wants computed: a place of its input, and a template
// or inline script.
type Mapping struct {
	Path      string
	Parameter string          // "" where it is of the body
	Steps     []location.Step // within the body; none: the whole
	Text      string          // a template
	Script    *inline.Script  // instead of text
}

// CheckMapping says what is wrong with the form of one of a step's mappings.
func CheckMapping(path, text string) error {
	_, err := ParseMapping(path, text)
	return err
}

// IsInlineScript says that a mapping's text is JavaScript.
func IsInlineScript(text string) bool { return strings.HasPrefix(text, "=") }

// ParseMapping reads one; its errors say what is wrong with its form.
func ParseMapping(path, text string) (*Mapping, error) {
	m := &Mapping{Path: path, Text: text}
	head, rest, deeper := strings.Cut(path, ".")
	switch {
	case head == "parameters" && rest != "":
		m.Parameter = rest
	case head == "body" && (rest != "" || !deeper):
		var err error
		if m.Steps, err = location.Parse(rest); err != nil {
			return nil, fmt.Errorf("mapping %q: %w", path, err)
		}
		if location.HasList(m.Steps) {
			return nil, fmt.Errorf("mapping %q: nothing can be mapped into a list's items; map the whole list", path)
		}
		if len(m.Steps) > jsontree.MaxDepth {
			return nil, fmt.Errorf("mapping: %w", jsontree.ErrTooDeep)
		}
	default:
		return nil, fmt.Errorf("mapping %q: its place is parameters.NAME, body or body.LOCATION", path)
	}
	var err error
	if IsInlineScript(text) {
		m.Script, err = inline.New(hooks.LevelStep, "mappings "+path, text, func(line, column int) (int, int) { return line, column })
	} else {
		_, err = mergefields.Split(text)
	}
	if err != nil {
		return nil, fmt.Errorf("mapping %q: %w", path, err)
	}
	return m, nil
}
