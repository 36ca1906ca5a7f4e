package main

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"hash/fnv"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/credentials"
)

// secretNames gives each secret of a try a name, under which it stands in a
// recording: {{secret.access_token}}, a second one {{secret.access_token.2}}.
type secretNames struct {
	byName  map[string]string
	byValue map[string]string
	short   []string // names of secrets that are too short to be hidden
	// Made when needed, of the secrets known by then: they are dear.
	plain *strings.Replacer
	masks *credentials.Redactor
}

func newSecretNames() *secretNames {
	return &secretNames{byName: map[string]string{}, byValue: map[string]string{}}
}

var notInName = regexp.MustCompile(`[^A-Za-z0-9_.-]`)

// add names a secret, if it has no name yet.
func (s *secretNames) add(all ...connectors.NamedSecret) {
	for _, n := range all {
		if _, known := s.byValue[n.Value]; known {
			continue
		}
		name := notInName.ReplaceAllString(n.Name, "_")
		if len(n.Value) < minSecret {
			if !slices.Contains(s.short, name) {
				s.short = append(s.short, name)
			}
			continue
		}
		if strings.Trim(n.Value, "0123456789") == "" {
			name += ".number" // it may stand in JSON without quotes
		}
		first := name
		for i := 2; ; i++ {
			if _, taken := s.byName[name]; !taken {
				break
			}
			name = fmt.Sprintf("%s.%d", first, i)
		}
		s.know(name, n.Value)
	}
}

// addLikely names what only looks like a secret. One that is a known secret
// and hardly more, as in "SID=" before a session's, has no name of its own: the
// next request that holds it is made of the known one in a replay.
func (s *secretNames) addLikely(all ...connectors.NamedSecret) {
	for _, n := range all {
		hidden := s.replacer().Replace(n.Value)
		if rest := secretField.ReplaceAllString(hidden, ""); rest == hidden || len(rest) >= minSecret {
			s.add(n)
		}
	}
}

func (s *secretNames) know(name, value string) {
	s.byName[name], s.byValue[value] = value, name
	s.plain, s.masks = nil, nil
}

// redactor masks all secrets.
func (s *secretNames) redactor() *credentials.Redactor {
	if s.masks == nil {
		s.masks = credentials.NewRedactor(slices.Collect(maps.Keys(s.byValue)), minSecret)
	}
	return s.masks
}

var base64Text = regexp.MustCompile(`[A-Za-z0-9+/_-]{8,}={0,2}`)

// hide puts placeholders in the place of secrets: as they are, URL-encoded,
// JSON-escaped or as XML, and within base64 as {{base64 user:{{secret.password}}}}.
func (s *secretNames) hide(text string) string {
	if !json.Valid([]byte(text)) {
		return s.hideText(text)
	}
	return jsonToken.ReplaceAllStringFunc(text, func(m string) string {
		if wordAsKey.MatchString(m) { // a password may be "password": members keep their names
			return m
		}
		if strings.Contains(m, `\`) {
			// What needs no escape is escaped, or it is JSON in JSON, and all is
			// escaped twice: the secret is seen without.
			text, colon := m[:strings.LastIndexByte(m, '"')+1], m[strings.LastIndexByte(m, '"')+1:]
			var v string
			if json.Unmarshal([]byte(text), &v) == nil {
				if hidden := s.hideText(v); secretField.MatchString(hidden) {
					return string(compact(hidden)) + colon
				}
			}
		}
		return s.hideText(m)
	})
}

var (
	jsonToken = regexp.MustCompile(`"(?:[^"\\]|\\.)*"(?:\s*:)?|[^"\s:,{}\[\]]+`)
	wordAsKey = regexp.MustCompile(`^"[A-Za-z_]{1,20}"\s*:$`)
)

func (s *secretNames) hideText(text string) string {
	plain := s.replacer()
	text = base64Text.ReplaceAllStringFunc(text, func(m string) string {
		for _, form := range []string{"base64", "base64url"} {
			encoding := base64Forms[form]
			decoded, err := encoding.DecodeString(m)
			if err != nil || !utf8.Valid(decoded) || encoding.EncodeToString(decoded) != m {
				continue
			}
			if hidden := plain.Replace(string(decoded)); hidden != string(decoded) {
				return "{{" + form + " " + hidden + "}}"
			}
		}
		return m
	})
	text = outside(base64Field, text, plain.Replace)
	// What else a secret may look like has no placeholder, and is masked.
	return outside(anyField, text, s.redactor().String)
}

var formToken = regexp.MustCompile(`[^=&?#\s]*%[^=&?#\s]*`)

// hideForm is hide for a URL or a form, where base64 may be URL-encoded: its
// padding, which is another one for another secret, belongs to it.
func (s *secretNames) hideForm(text string) string {
	text = formToken.ReplaceAllStringFunc(text, func(m string) string {
		plain, err := url.QueryUnescape(m)
		if err != nil {
			return m
		}
		if hidden := s.hideText(plain); base64Field.MatchString(hidden) {
			return outside(anyField, hidden, url.QueryEscape)
		}
		return m
	})
	return outside(anyField, text, s.hide)
}

// outside changes a text but for the placeholders in it, whose names may be
// what a poor password is.
func outside(fields *regexp.Regexp, text string, change func(string) string) string {
	var b strings.Builder
	from := 0
	for _, at := range fields.FindAllStringIndex(text, -1) {
		b.WriteString(change(text[from:at[0]]))
		b.WriteString(text[at[0]:at[1]])
		from = at[1]
	}
	b.WriteString(change(text[from:]))
	return b.String()
}

var base64Forms = map[string]*base64.Encoding{"base64": base64.StdEncoding, "base64url": base64.RawURLEncoding}

func (s *secretNames) replacer() *strings.Replacer {
	if s.plain != nil {
		return s.plain
	}
	values := slices.Collect(maps.Keys(s.byValue))
	// The longest first, so that no part of one is left beside another's name.
	slices.SortFunc(values, func(a, b string) int { return 2*(len(b)-len(a)) + strings.Compare(a, b) })
	var pairs []string
	for _, v := range values {
		for _, form := range []string{v, url.QueryEscape(v), url.PathEscape(v), strings.ReplaceAll(url.QueryEscape(v), "+", "%20"), jsonEscape(v), inXML.Replace(v), inAttribute.Replace(v)} {
			pairs = append(pairs, form, "{{secret."+s.byValue[v]+"}}")
		}
	}
	s.plain = strings.NewReplacer(pairs...)
	return s.plain
}

// What needs an escape in the XML of bodies, as text and as an attribute.
var (
	inXML       = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "\r", "&#xD;")
	inAttribute = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "\r", "&#xD;", "\n", "&#xA;", "\t", "&#x9;", `"`, "&quot;")
)

func jsonEscape(v string) string {
	raw := compact(v)
	return string(raw[1 : len(raw)-1])
}

var (
	secretField = regexp.MustCompile(`\{\{secret\.([A-Za-z0-9_.-]+)\}\}`)
	anyField    = regexp.MustCompile(base64Field.String() + "|" + secretField.String())
	base64Field = regexp.MustCompile(`\{\{(base64|base64url) ((?:[^{}]|\{\{secret\.[A-Za-z0-9_.-]+\}\})*)\}\}`)
)

// fill puts secrets in the place of placeholders, escaped for where they
// stand. A secret that nobody has given yet is made up.
func (s *secretNames) fill(text string, escape func(string) string) string {
	text = base64Field.ReplaceAllStringFunc(text, func(m string) string {
		field := base64Field.FindStringSubmatch(m)
		return escape(base64Forms[field[1]].EncodeToString([]byte(s.fill(field[2], asItIs))))
	})
	return secretField.ReplaceAllStringFunc(text, func(m string) string {
		name := secretField.FindStringSubmatch(m)[1]
		if _, known := s.byName[name]; !known {
			s.know(name, madeUp(name))
		}
		return escape(s.byName[name])
	})
}

func asItIs(v string) string { return v }

// madeUp is a secret of a replay: but for a key the same in every one, long enough to be
// masked everywhere, and in every encoding as it is.
func madeUp(name string) string {
	if strings.HasPrefix(name, "private_key") {
		return madeUpKey()
	}
	h := fnv.New64a()
	h.Write([]byte(name))
	if strings.Contains(name+".", ".number.") {
		return fmt.Sprintf("9%014d", h.Sum64()%1e14) // as much as a JavaScript number holds
	}
	return fmt.Sprintf("made-up-%s-%016x", strings.ReplaceAll(name, "_", "-"), h.Sum64())
}

// madeUpKey is a private key of a replay, in PEM. It is another one in each: no
// signature of one replay is one of the next.
func madeUpKey() string {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err) // there is no chance to be had
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
}
