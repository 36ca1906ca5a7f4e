package credentials

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Redactor masks secrets in text: plain, URL-encoded (either case, either
// space), JSON-escaped (once, or twice), and base64, also inside a longer
// encoded text.
type Redactor struct {
	r     *strings.Replacer
	plain []string // the secrets, the longest first
	forms []string
	min   int
}

// NewRedactor masks every secret of at least min bytes.
func NewRedactor(secrets []string, min int) *Redactor {
	forms := map[string]bool{}
	var plain []string
	for _, s := range secrets {
		if len(s) < min || s == "" {
			continue
		}
		plain = append(plain, s)
		for _, f := range encodings(s) {
			if len(f) >= min {
				forms[f] = true
			}
		}
	}
	if len(forms) == 0 {
		return &Redactor{}
	}
	all := make([]string, 0, len(forms))
	for f := range forms {
		all = append(all, f)
	}
	// The longest first, so that no part of one is left beside a mask.
	longest := func(a, b string) int { return len(b) - len(a) }
	slices.SortFunc(all, longest)
	slices.SortFunc(plain, longest)
	pairs := make([]string, 0, 2*len(all))
	for _, f := range all {
		pairs = append(pairs, f, redacted)
	}
	return &Redactor{strings.NewReplacer(pairs...), plain, all, min}
}

// Cut masks text and cuts it to n bytes. The text may have been cut before: a
// secret that begins at its end and does not end there is masked too.
func (r *Redactor) Cut(s string, n int) string {
	masked := r.String(s)
	if r != nil {
		s = strings.TrimSuffix(masked, "…")
		longest := 0
		for _, f := range r.forms {
			for k := min(len(f)-1, len(s)); k >= r.min && k > longest; k-- {
				if strings.HasSuffix(s, f[:k]) {
					longest = k
				}
			}
		}
		if longest > 0 {
			masked = s[:len(s)-longest] + redacted
		}
	}
	return clipText(masked, n)
}

func encodings(s string) []string {
	q, p := url.QueryEscape(s), url.PathEscape(s)
	// What other languages leave unescaped: encodeURIComponent's marks, and the
	// slash of Python's quote.
	component := percentEncode(s, "-_.!~*'()")
	quoted := percentEncode(s, "-_.~/")
	js, _ := json.Marshal(s)
	escaped := string(js[1 : len(js)-1])
	var plainJSON bytes.Buffer
	enc := json.NewEncoder(&plainJSON)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s)
	unescaped := strings.TrimSuffix(plainJSON.String(), "\n")
	unescaped = unescaped[1 : len(unescaped)-1]
	ascii := asciiJSON(unescaped, "%04x")
	forms := []string{s, escaped, unescaped, strings.ReplaceAll(escaped, "/", `\/`), strings.ReplaceAll(unescaped, "/", `\/`),
		ascii, asciiJSON(unescaped, "%04X"), strings.ReplaceAll(ascii, "/", `\/`)}
	for _, f := range []string{q, p, component, quoted, strings.ReplaceAll(q, "+", "%20"), strings.ReplaceAll(component, "%20", "+")} {
		forms = append(forms, f, lowerHex(f))
	}
	// Inside a longer text the secret begins at any of three places of a
	// base64 group; the characters at its ends depend on its neighbours. A
	// client's secret is form-encoded before (RFC 6749 section 2.3.1).
	for _, plain := range []string{s, q} {
		for _, e := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			for shift := range 3 {
				whole := e.EncodeToString(append(make([]byte, shift), plain...))
				from := (shift*8 + 5) / 6
				to := (shift + len(plain)) * 8 / 6
				forms = append(forms, whole[from:to])
			}
		}
	}
	return forms
}

// percentEncode is RFC 3986 percent-encoding of all but letters, digits and the given marks.
func percentEncode(s, marks string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || strings.IndexByte(marks, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// asciiJSON writes what is not ASCII in JSON text as \uXXXX.
func asciiJSON(s, format string) string {
	var b strings.Builder
	for _, c := range s {
		if c < utf8.RuneSelf {
			b.WriteRune(c)
			continue
		}
		for _, u := range utf16.Encode([]rune{c}) {
			fmt.Fprintf(&b, `\u`+format, u)
		}
	}
	return b.String()
}

func lowerHex(s string) string {
	b := []byte(s)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			copy(b[i+1:i+3], bytes.ToLower(b[i+1:i+3]))
		}
	}
	return string(b)
}

// String masks text.
func (r *Redactor) String(s string) string {
	if r == nil || r.r == nil {
		return s
	}
	return r.escaped(r.r.Replace(s))
}

// escaped masks secrets of which a JSON writer has escaped any characters by
// their numbers (.NET's writes + as \u002B, Gson = as \u003d), and those in JSON
// that stands in JSON as a text, whatever either writer escapes.
func (r *Redactor) escaped(s string) string {
	if !strings.Contains(s, `\u`) && !strings.Contains(s, `\\`) {
		return s
	}
	return r.below(r.below(s, 1), 2)
}

// below masks what is a secret without so many levels of escapes.
func (r *Redactor) below(s string, levels int) string {
	masked := s
	for range levels {
		masked = unescaped(masked, nil)
	}
	if !slices.ContainsFunc(r.plain, func(p string) bool { return strings.Contains(masked, p) }) {
		return s
	}
	ends := r.spans(masked)
	for below := levels - 1; below >= 0; below-- { // where they are one level up
		text := s
		for range below {
			text = unescaped(text, nil)
		}
		above := make([]int, 0, len(ends))
		n := 0
		unescaped(text, func(at int) {
			for ; len(above) < len(ends) && ends[len(above)] == n; above = append(above, at) {
			}
			n++
		})
		for len(above) < len(ends) {
			above = append(above, len(text))
		}
		ends = above
	}
	var b strings.Builder
	done := 0
	for i := 0; i < len(ends); i += 2 {
		b.WriteString(s[done:ends[i]])
		b.WriteString(redacted)
		done = ends[i+1]
	}
	b.WriteString(s[done:])
	return b.String()
}

// spans are the places of secrets in a text, the beginning and the end of each,
// in order; of those that begin at one place it is the longest's.
func (r *Redactor) spans(text string) (bounds []int) {
	next := make([]int, len(r.plain)) // where each stands next
	for at := 0; ; {
		first := -1
		for i, p := range r.plain {
			if next[i] < at || at == 0 {
				next[i] = len(text)
				if found := strings.Index(text[at:], p); found >= 0 {
					next[i] = at + found
				}
			}
			if next[i] < len(text) && (first < 0 || next[i] < next[first]) {
				first = i
			}
		}
		if first < 0 {
			return bounds
		}
		at = next[first] + len(r.plain[first])
		bounds = append(bounds, next[first], at)
	}
}

// unescaped is JSON text without escapes; of each byte it tells where it comes from.
func unescaped(s string, tell func(at int)) string {
	text := make([]byte, 0, len(s))
	for i := 0; i < len(s); {
		before := len(text)
		c, n := unicodeEscape(s[i:])
		switch {
		case n > 0:
			text = utf8.AppendRune(text, c)
		case s[i] == '\\' && i+1 < len(s) && strings.IndexByte(`"\/`, s[i+1]) >= 0:
			text, n = append(text, s[i+1]), 2
		default:
			text, n = append(text, s[i]), 1
		}
		if tell != nil {
			for range len(text) - before {
				tell(i)
			}
		}
		i += n
	}
	return string(text)
}

// unicodeEscape is the character that \uXXXX, or a pair of them, at the
// beginning of s stands for, and its length; 0 if there is none.
func unicodeEscape(s string) (c rune, length int) {
	unit := func(s string) (rune, bool) {
		if len(s) < 6 || s[:2] != `\u` {
			return 0, false
		}
		n, err := strconv.ParseUint(s[2:6], 16, 16)
		return rune(n), err == nil
	}
	c, ok := unit(s)
	if !ok {
		return 0, 0
	}
	if low, ok := unit(s[6:]); ok && utf16.IsSurrogate(c) {
		if pair := utf16.DecodeRune(c, low); pair != utf8.RuneError {
			return pair, 12
		}
	}
	return c, 6
}

// JSON masks a JSON value. What is masked stands inside strings, so the value
// stays JSON.
func (r *Redactor) JSON(raw json.RawMessage) json.RawMessage {
	if r == nil || r.r == nil || len(raw) == 0 {
		return raw
	}
	masked := json.RawMessage(r.String(string(raw)))
	if !json.Valid(masked) { // a number was a secret, perhaps
		masked = quoteMasks(masked)
	}
	if !json.Valid(masked) {
		masked, _ = json.Marshal(redacted)
	}
	return masked
}

// quoteMasks makes texts of the masks that stand outside of texts in JSON, with
// what is left beside them of a number.
func quoteMasks(s []byte) []byte {
	const number = "0123456789+-.eE"
	out, inText := make([]byte, 0, len(s)+2), false
	for len(s) > 0 {
		n := 1
		switch {
		case inText && s[0] == '\\' && len(s) > 1:
			n = 2
		case s[0] == '"':
			inText = !inText
		case !inText && bytes.HasPrefix(s, []byte(redacted)):
			out = append(bytes.TrimRight(out, number), `"`+redacted+`"`...)
			s = bytes.TrimLeft(s[len(redacted):], number)
			continue
		}
		out, s = append(out, s[:n]...), s[n:]
	}
	return out
}
