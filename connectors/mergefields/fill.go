package mergefields

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"github.com/stepworker/stepworker/connectors/jsontree"
)

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

var percentEncoded = regexp.MustCompile(`^%[0-9A-Fa-f]{2}`)

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
