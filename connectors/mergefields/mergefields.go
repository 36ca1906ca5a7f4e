package mergefields

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"github.com/stepworker/stepworker/connectors/dates"
	"github.com/stepworker/stepworker/connectors/jsontree"
)

var (
	Pattern        = regexp.MustCompile(`\{\{(\+?)\s*([^{}]*?)\s*\}\}`)
	percentEncoded = regexp.MustCompile(`^%[0-9A-Fa-f]{2}`)
	mergeFieldName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*$`)
)

// Part is a piece of a template: text, or a merge field.
type Part struct {
	Text   string
	Name   string // of the merge field, "" for text
	Format string // of its date; "" as it is
	Raw    bool   // {{+name}}: slashes stay
	// length is how much of the template it takes, in bytes.
	Length int
}

var errUnterminated = &Error{Text: "a merge field is not closed: {{ without }}"}

// Split cuts a template into text and merge fields. Its errors are
// expandErrors.
func Split(s string) ([]Part, error) {
	var parts []Part
	for s != "" {
		loc := Pattern.FindStringSubmatchIndex(s)
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
	for _, loc := range Pattern.FindAllStringSubmatchIndex(s, -1) {
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

// Lookup finds a merge field's value: known says that somebody declares it,
// foreign that a step or a script supplied it.
type Lookup func(name string) (value any, known, foreign bool)

// Error is a template that cannot be filled.
type Error struct{ Text string }

func (e *Error) Error() string { return e.Text }

// Text fills a template that stands in a header or parameter. ok is
// false when a known field has no value: then the whole is left out.
func Text(s string, look Lookup) (out string, ok bool, err error) {
	if !strings.Contains(s, "{{") {
		return s, true, nil
	}
	parts, err := Split(s)
	if err != nil {
		return "", false, err
	}
	var b strings.Builder
	for _, p := range parts {
		if p.Name == "" {
			b.WriteString(p.Text)
			continue
		}
		v, known, _, err := p.value(look)
		if err != nil {
			return "", false, err
		}
		if !known {
			return "", false, &Error{Text: fmt.Sprintf("unknown merge field {{%s}}", p.Name)}
		}
		text, has := jsontree.Text(v)
		if !has {
			return "", false, nil
		}
		b.WriteString(text)
	}
	return b.String(), true, nil
}

// Tree fills a body. A value that is nothing but one merge field keeps
// the type of what replaces it.
func Tree(v any, look Lookup) (out any, ok bool, err error) {
	switch x := v.(type) {
	case string:
		if parts, err := Split(x); err == nil && len(parts) == 1 && parts[0].Name != "" {
			value, known, _, err := parts[0].value(look)
			if err != nil {
				return nil, false, err
			}
			if !known {
				return nil, false, &Error{Text: fmt.Sprintf("unknown merge field {{%s}}", parts[0].Name)}
			}
			return value, value != nil, nil
		}
		return Text(x, look)
	case *jsontree.Object:
		m := &jsontree.Object{Values: map[string]any{}}
		for _, k := range x.Keys {
			value, ok, err := Tree(x.Values[k], look)
			if err != nil {
				return nil, false, err
			}
			if ok {
				m.Set(k, value)
			}
		}
		return m, true, nil
	case []any:
		list := []any{}
		for _, e := range x {
			value, ok, err := Tree(e, look)
			if err != nil {
				return nil, false, err
			}
			if ok {
				list = append(list, value)
			}
		}
		return list, true, nil
	}
	return v, true, nil
}

// dnsLabels are one or more of RFC 1123 section 2.1, of 63 characters at most.
var dnsLabels = regexp.MustCompile(`^` + label + `(\.` + label + `)*$`)

const label = `[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?`

// URL fills a URL's template.
func URL(s string, look Lookup) (string, error) {
	parts, err := Split(s)
	if err != nil {
		return "", err
	}
	return FillURL(parts, look)
}

// FillURL fills a URL. Each value is escaped for where it stands; in scheme
// and host only what connector, credential and partner settings supply counts.
func FillURL(parts []Part, look Lookup) (string, error) {
	var b strings.Builder
	for i, p := range parts {
		if p.Name == "" {
			b.WriteString(p.Text)
			continue
		}
		v, known, foreign, err := p.value(look)
		if err != nil {
			return "", err
		}
		if !known {
			return "", &Error{Text: fmt.Sprintf("unknown merge field {{%s}} in the URL", p.Name)}
		}
		text, has := jsontree.Text(v)
		if !has || text == "" {
			return "", &Error{Text: fmt.Sprintf("merge field {{%s}} has no value, and the URL needs it", p.Name)}
		}
		switch sofar := b.String(); {
		case i == 0:
			if foreign {
				return "", &Error{Text: fmt.Sprintf("{{%s}} begins the URL, so a step cannot supply it", p.Name)}
			}
			u, err := url.Parse(text)
			if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
				return "", &Error{Text: fmt.Sprintf("{{%s}} begins the URL, so it must be an absolute http or https URL", p.Name)}
			}
			if len(parts) > 1 {
				follows := parts[1].Text
				if u.RawQuery != "" && !strings.HasPrefix(follows, "&") {
					return "", &Error{Text: fmt.Sprintf("{{%s}} begins the URL, so it must have no query of its own", p.Name)}
				}
				if strings.HasPrefix(follows, "/") {
					text = strings.TrimRight(text, "/")
				}
			}
			b.WriteString(text)
		case InHost(sofar):
			if foreign {
				return "", &Error{Text: fmt.Sprintf("{{%s}} stands in the URL's host, so a step cannot supply it", p.Name)}
			}
			if !dnsLabels.MatchString(text) {
				return "", &Error{Text: fmt.Sprintf("{{%s}} stands in the URL's host, so it must be DNS labels", p.Name)}
			}
			b.WriteString(text)
		case strings.Contains(sofar, "?"):
			b.WriteString(Escape(text))
		default:
			segments := []string{text}
			if p.Raw {
				segments = strings.Split(text, "/")
			}
			for j, seg := range segments {
				if seg == "." || seg == ".." {
					return "", &Error{Text: fmt.Sprintf("merge field {{%s}} is %q, which would lead to another path", p.Name, seg)}
				}
				if j > 0 {
					b.WriteByte('/')
				}
				b.WriteString(url.PathEscape(seg))
			}
		}
	}
	return legalURL(b.String()), nil
}

// legalURL encodes what cannot stand in a path or a query (RFC 3986 section
// 2). What is percent-encoded already stays.
func legalURL(s string) string {
	_, rest, ok := strings.Cut(s, "://")
	end := strings.IndexAny(rest, "/?#")
	if !ok || end < 0 {
		return s
	}
	begin := len(s) - len(rest) + end
	var b strings.Builder
	b.WriteString(s[:begin])
	for i := begin; i < len(s); i++ {
		c := s[i]
		if c <= ' ' || c >= 0x7f || strings.IndexByte("\"<>\\^`{|}", c) >= 0 || c == '%' && !percentEncoded.MatchString(s[i:]) {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// InHost says that what follows still belongs to scheme and host.
func InHost(sofar string) bool {
	_, rest, ok := strings.Cut(sofar, "://")
	return !ok || !strings.ContainsAny(rest, "/?#")
}

// A merge field may say the form of its date: {{since format=yyyy-MM-dd}}.
var fieldWithFormat = regexp.MustCompile(`^(\S+)\s+format=(.*)$`)

// cutFormat splits what stands between the braces of a merge field.
func cutFormat(text string) (name, format string) {
	if m := fieldWithFormat.FindStringSubmatch(text); m != nil {
		return m[1], strings.TrimSpace(m[2])
	}
	return text, ""
}

// value looks a merge field up, and writes its date as it says.
func (p *Part) value(look Lookup) (v any, known, foreign bool, err error) {
	return Value(p.Name, p.Format, look)
}

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
