package connectors

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"
)

var (
	mergeField     = regexp.MustCompile(`\{\{(\+?)\s*([^{}]*?)\s*\}\}`)
	percentEncoded = regexp.MustCompile(`^%[0-9A-Fa-f]{2}`)
	mergeFieldName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*$`)
)

// credentialFields are merge fields that a credential or the system supplies.
var credentialFields = []string{"username", "password", "api_key", "client_id", "client_secret", "access_token",
	"Cyclr_Auth_ApiKey", "Cyclr_Auth_Username", "Cyclr_Auth_Password"}

// part is a piece of a template: text, or a merge field.
type part struct {
	text   string
	name   string // of the merge field, "" for text
	format string // of its date; "" as it is
	raw    bool   // {{+name}}: slashes stay
	// length is how much of the template it takes, in bytes.
	length int
}

var errUnterminated = &expandError{"a merge field is not closed: {{ without }}"}

// splitTemplate cuts a template into text and merge fields. Its errors are
// expandErrors.
func splitTemplate(s string) ([]part, error) {
	var parts []part
	for s != "" {
		loc := mergeField.FindStringSubmatchIndex(s)
		if loc == nil {
			if strings.Contains(s, "{{") {
				return nil, errUnterminated
			}
			return append(parts, part{text: s, length: len(s)}), nil
		}
		head := s[:loc[0]]
		if strings.Contains(head, "{{") {
			return nil, errUnterminated
		}
		if head != "" {
			parts = append(parts, part{text: head, length: len(head)})
		}
		name, format := cutFormat(s[loc[4]:loc[5]])
		if !mergeFieldName.MatchString(name) {
			return nil, &expandError{fmt.Sprintf("{{%s}} is no merge field: a name of A-Z a-z 0-9 _ . - is needed", name)}
		}
		if format == "" && name != s[loc[4]:loc[5]] {
			return nil, &expandError{fmt.Sprintf("{{%s}} says no format, such as yyyy-MM-dd", s[loc[4]:loc[5]])}
		}
		parts = append(parts, part{name: name, format: format, raw: loc[2] != loc[3], length: loc[1] - loc[0]})
		s = s[loc[1]:]
	}
	return parts, nil
}

// splitNamed cuts a URL that a script wrote: only the given merge fields are
// any there, all else is text, whoever brought it in.
func splitNamed(s string, named map[string]bool) []part {
	var parts []part
	begin := 0
	for _, loc := range mergeField.FindAllStringSubmatchIndex(s, -1) {
		name, format := cutFormat(s[loc[4]:loc[5]])
		if !named[name] {
			continue
		}
		if loc[0] > begin {
			parts = append(parts, part{text: s[begin:loc[0]]})
		}
		parts = append(parts, part{name: name, format: format, raw: loc[2] != loc[3]})
		begin = loc[1]
	}
	if begin < len(s) {
		parts = append(parts, part{text: s[begin:]})
	}
	return parts
}

// lookup finds a merge field's value: known says that somebody declares it,
// foreign that a step or a script supplied it.
type lookup func(name string) (value any, known, foreign bool)

// expandError is a template that cannot be filled.
type expandError struct{ text string }

func (e *expandError) Error() string { return e.text }

// expandText fills a template that stands in a header or parameter. ok is
// false when a known field has no value: then the whole is left out.
func expandText(s string, look lookup) (out string, ok bool, err error) {
	if !strings.Contains(s, "{{") {
		return s, true, nil
	}
	parts, err := splitTemplate(s)
	if err != nil {
		return "", false, err
	}
	var b strings.Builder
	for _, p := range parts {
		if p.name == "" {
			b.WriteString(p.text)
			continue
		}
		v, known, _, err := p.value(look)
		if err != nil {
			return "", false, err
		}
		if !known {
			return "", false, &expandError{fmt.Sprintf("unknown merge field {{%s}}", p.name)}
		}
		text, has := scalar(v)
		if !has {
			return "", false, nil
		}
		b.WriteString(text)
	}
	return b.String(), true, nil
}

// expandTree fills a body. A value that is nothing but one merge field keeps
// the type of what replaces it.
func expandTree(v any, look lookup) (out any, ok bool, err error) {
	switch x := v.(type) {
	case string:
		if parts, err := splitTemplate(x); err == nil && len(parts) == 1 && parts[0].name != "" {
			value, known, _, err := parts[0].value(look)
			if err != nil {
				return nil, false, err
			}
			if !known {
				return nil, false, &expandError{fmt.Sprintf("unknown merge field {{%s}}", parts[0].name)}
			}
			return value, value != nil, nil
		}
		return expandText(x, look)
	case *OrderedMap:
		m := &OrderedMap{Values: map[string]any{}}
		for _, k := range x.Keys {
			value, ok, err := expandTree(x.Values[k], look)
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
			value, ok, err := expandTree(e, look)
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

// expandURL fills a URL's template.
func expandURL(s string, look lookup) (string, error) {
	parts, err := splitTemplate(s)
	if err != nil {
		return "", err
	}
	return fillURL(parts, look)
}

// fillURL fills a URL. Each value is escaped for where it stands; in scheme
// and host only what connector, credential and partner settings supply counts.
func fillURL(parts []part, look lookup) (string, error) {
	var b strings.Builder
	for i, p := range parts {
		if p.name == "" {
			b.WriteString(p.text)
			continue
		}
		v, known, foreign, err := p.value(look)
		if err != nil {
			return "", err
		}
		if !known {
			return "", &expandError{fmt.Sprintf("unknown merge field {{%s}} in the URL", p.name)}
		}
		text, has := scalar(v)
		if !has || text == "" {
			return "", &expandError{fmt.Sprintf("merge field {{%s}} has no value, and the URL needs it", p.name)}
		}
		switch sofar := b.String(); {
		case i == 0:
			if foreign {
				return "", &expandError{fmt.Sprintf("{{%s}} begins the URL, so a step cannot supply it", p.name)}
			}
			u, err := url.Parse(text)
			if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
				return "", &expandError{fmt.Sprintf("{{%s}} begins the URL, so it must be an absolute http or https URL", p.name)}
			}
			if len(parts) > 1 {
				follows := parts[1].text
				if u.RawQuery != "" && !strings.HasPrefix(follows, "&") {
					return "", &expandError{fmt.Sprintf("{{%s}} begins the URL, so it must have no query of its own", p.name)}
				}
				if strings.HasPrefix(follows, "/") {
					text = strings.TrimRight(text, "/")
				}
			}
			b.WriteString(text)
		case inHost(sofar):
			if foreign {
				return "", &expandError{fmt.Sprintf("{{%s}} stands in the URL's host, so a step cannot supply it", p.name)}
			}
			if !dnsLabels.MatchString(text) {
				return "", &expandError{fmt.Sprintf("{{%s}} stands in the URL's host, so it must be DNS labels", p.name)}
			}
			b.WriteString(text)
		case strings.Contains(sofar, "?"):
			b.WriteString(escape3986(text))
		default:
			segments := []string{text}
			if p.raw {
				segments = strings.Split(text, "/")
			}
			for j, seg := range segments {
				if seg == "." || seg == ".." {
					return "", &expandError{fmt.Sprintf("merge field {{%s}} is %q, which would lead to another path", p.name, seg)}
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

// inHost says that what follows still belongs to scheme and host.
func inHost(sofar string) bool {
	_, rest, ok := strings.Cut(sofar, "://")
	return !ok || !strings.ContainsAny(rest, "/?#")
}
