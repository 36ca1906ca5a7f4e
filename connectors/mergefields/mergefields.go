package mergefields

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/stepworker/stepworker/connectors/dates"
)

var (
	pattern        = regexp.MustCompile(`\{\{(\+?)\s*([^{}]*?)\s*\}\}`)
	mergeFieldName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*$`)
)

// Part is a piece of a template: text, or a merge field.
type Part struct {
	Text   string
	Name   string // of the merge field, "" for text
	Format string // of its date; "" as it is
	Raw    bool   // {{+name}}: slashes stay
	// Length is how much of the template it takes, in bytes.
	Length int
}

var errUnterminated = &Error{Text: "a merge field is not closed: {{ without }}"}

// Split cuts a template into text and merge fields. Its errors are
// *Error.
func Split(s string) ([]Part, error) {
	var parts []Part
	for s != "" {
		loc := pattern.FindStringSubmatchIndex(s)
		if loc == nil {
			if strings.Contains(s, "{{") {
				return nil, errUnterminated
			}
			return append(parts, Part{Text: s, Length: len(s)}), nil
		}
		head := s[:loc[0]]
		if strings.Contains(head, "{{") {
			return nil, errUnterminated
		}
		if head != "" {
			parts = append(parts, Part{Text: head, Length: len(head)})
		}
		name, format := cutFormat(s[loc[4]:loc[5]])
		if !mergeFieldName.MatchString(name) {
			return nil, &Error{Text: fmt.Sprintf("{{%s}} is no merge field: a name of A-Z a-z 0-9 _ . - is needed", name)}
		}
		if format == "" && name != s[loc[4]:loc[5]] {
			return nil, &Error{Text: fmt.Sprintf("{{%s}} says no format, such as yyyy-MM-dd", s[loc[4]:loc[5]])}
		}
		parts = append(parts, Part{Name: name, Format: format, Raw: loc[2] != loc[3], Length: loc[1] - loc[0]})
		s = s[loc[1]:]
	}
	return parts, nil
}

// SplitNamed cuts a URL that a script wrote: only the given merge fields are
// any there, all else is text, whoever brought it in.
func SplitNamed(s string, named map[string]bool) []Part {
	var parts []Part
	begin := 0
	for _, loc := range pattern.FindAllStringSubmatchIndex(s, -1) {
		name, format := cutFormat(s[loc[4]:loc[5]])
		if !named[name] {
			continue
		}
		if loc[0] > begin {
			parts = append(parts, Part{Text: s[begin:loc[0]]})
		}
		parts = append(parts, Part{Name: name, Format: format, Raw: loc[2] != loc[3]})
		begin = loc[1]
	}
	if begin < len(s) {
		parts = append(parts, Part{Text: s[begin:]})
	}
	return parts
}

// Replace is a template with a text in the place of each merge field: to read
// what stands around them.
func Replace(template, with string) string { return pattern.ReplaceAllString(template, with) }

// A merge field may say the form of its date: {{since format=yyyy-MM-dd}}.
var fieldWithFormat = regexp.MustCompile(`^(\S+)\s+format=(.*)$`)

// cutFormat splits what stands between the braces of a merge field.
func cutFormat(text string) (name, format string) {
	if m := fieldWithFormat.FindStringSubmatch(text); m != nil {
		return m[1], strings.TrimSpace(m[2])
	}
	return text, ""
}

// Lookup finds a merge field's value: known says that somebody declares it,
// foreign that a step or a script supplied it.
type Lookup func(name string) (value any, known, foreign bool)

// Error is a template that cannot be filled.
type Error struct{ Text string }

func (e *Error) Error() string { return e.Text }

// Value looks a merge field up by its name, and writes its date in a format,
// if it has one.
func Value(name, format string, look Lookup) (v any, known, foreign bool, err error) {
	if name == LastRun && format != "" { // to its fractions of a second
		v, known, foreign = look(LastRunForm + format)
		return v, known, foreign, nil
	}
	if v, known, foreign = look(name); format == "" || v == nil {
		return v, known, foreign, nil
	}
	at, ok := dates.Of(v)
	if !ok {
		return nil, known, foreign, &Error{Text: fmt.Sprintf("{{%s format=%s}}: the value of %q is no date", name, format, name)}
	}
	return dates.Format(at, format), known, foreign, nil
}

// value looks a merge field up, and writes its date as it says.
func (p *Part) value(look Lookup) (v any, known, foreign bool, err error) {
	return Value(p.Name, p.Format, look)
}
