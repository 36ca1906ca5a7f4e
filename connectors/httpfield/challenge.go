package httpfield

import (
	"net/http"
	"strings"
)

// challenge is one of WWW-Authenticate (RFC 9110 section 11.6.1).
type challenge struct {
	scheme string            // in lower case
	params map[string]string // names in lower case; nil where it brings a token68
}

// challenges reads every WWW-Authenticate field. One holds several challenges,
// parted by the same comma as a challenge's own parameters, and a parameter may
// be a quoted string with commas in it. From where a field is none of this it is
// left out.
func challenges(h http.Header) (all []challenge) {
	for _, field := range h.Values("WWW-Authenticate") {
		in := scanner(field)
		for {
			in.skip(" \t,")
			word := in.token()
			if word == "" {
				break
			}
			in.skip(" \t")
			if value, ok := in.value(); ok && len(all) > 0 { // a parameter of the challenge before it
				all[len(all)-1].set(word, value)
				continue
			}
			c := challenge{scheme: strings.ToLower(word)}
			rest := in
			if name := rest.token(); name != "" {
				rest.skip(" \t")
				if value, ok := rest.value(); ok {
					in = rest
					c.set(name, value)
				} else { // a token68, padding and all
					in.until(',')
				}
			}
			all = append(all, c)
		}
	}
	return all
}

func (c *challenge) set(name, value string) {
	if c.params == nil {
		c.params = map[string]string{}
	}
	if name = strings.ToLower(name); c.params[name] == "" {
		c.params[name] = value
	}
}

// MissingScope says that an answer refuses a token for its scope alone (RFC
// 6750 section 3.1), and which scopes it asks for, if it tells.
func MissingScope(h http.Header) (scopes []string, missing bool) {
	for _, c := range challenges(h) {
		if c.params["error"] == "insufficient_scope" {
			return strings.Fields(c.params["scope"]), true
		}
	}
	return nil, false
}

// scanner is what is left to read of a field.
type scanner string

func (s *scanner) skip(chars string) { *s = scanner(strings.TrimLeft(string(*s), chars)) }

func (s *scanner) until(end byte) {
	if i := strings.IndexByte(string(*s), end); i >= 0 {
		*s = (*s)[i:]
	} else {
		*s = ""
	}
}

// token reads a token (RFC 9110 section 5.6.2); "" where there is none.
func (s *scanner) token() string {
	i := strings.IndexFunc(string(*s), func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`()<>@,;:\"/[]?={}`, r)
	})
	if i < 0 {
		i = len(*s)
	}
	t := string((*s)[:i])
	*s = (*s)[i:]
	return t
}

// value reads "=" and a token or a quoted string (RFC 9110 section 5.6.4).
// Where neither follows nothing is read.
func (s *scanner) value() (string, bool) {
	rest := *s
	if !strings.HasPrefix(string(rest), "=") {
		return "", false
	}
	rest = rest[1:]
	rest.skip(" \t")
	if !strings.HasPrefix(string(rest), `"`) {
		// Unquoted values with characters of their own are common: taken up to a comma.
		v := rest
		v.until(',')
		value := strings.TrimRight(string(rest[:len(rest)-len(v)]), " \t")
		if value == "" || strings.Trim(value, "=") == "" { // the padding of a token68
			return "", false
		}
		*s = v
		return value, true
	}
	var b strings.Builder
	for i := 1; i < len(rest); i++ {
		switch c := rest[i]; {
		case c == '\\' && i+1 < len(rest):
			i++
			b.WriteByte(rest[i])
		case c == '"':
			*s = rest[i+1:]
			return b.String(), true
		default:
			b.WriteByte(c)
		}
	}
	*s = "" // it never ends
	return b.String(), true
}
