package credentials

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
	"unsafe"
)

// Redactor masks secrets in text: plain, URL-encoded (either case, either
// space), JSON-escaped, as a page's entities, and base64, also inside a longer
// encoded text, and each of these in another.
type Redactor struct {
	r     *strings.Replacer
	bare  []string // the secrets as they stand in decoded text, the longest first
	forms []string
	min   int
}

// NewRedactor masks every secret of at least min bytes.
func NewRedactor(secrets []string, min int) *Redactor {
	forms := map[string]bool{}
	var texts []string
	for _, s := range secrets {
		if len(s) < min || s == "" {
			continue
		}
		b := bare(s)
		// What stands behind its end may make an escape of that.
		for _, b := range slices.Compact([]string{b, strings.TrimRight(b, `\%&`)}) {
			if len(b) >= min {
				texts = append(texts, b)
			}
		}
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
	slices.SortFunc(texts, longest)
	pairs := make([]string, 0, 2*len(all))
	for _, f := range all {
		pairs = append(pairs, f, redacted)
	}
	return &Redactor{strings.NewReplacer(pairs...), texts, all, min}
}

// Cut masks text and cuts it to n bytes. The text may have been cut before: a
// secret that begins at its end and does not end there is masked too.
func (r *Redactor) Cut(s string, n int) string {
	if r == nil || r.r == nil {
		return clipText(s, n)
	}
	text, dots := strings.CutSuffix(s, "…")
	masked := r.mask(text, true)
	if k := begun(masked, r.forms, r.min); k > 0 {
		masked = masked[:len(masked)-k] + redacted
	} else if dots {
		masked += "…"
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
func (r *Redactor) String(s string) string { return r.mask(s, false) }

func (r *Redactor) mask(s string, cut bool) string {
	if r == nil || r.r == nil {
		return s
	}
	s = r.replace(s)
	return maskAt(s, r.places(s, cut))
}

// replace masks the forms that stand as they are. Text without any is not copied.
func (r *Redactor) replace(s string) string {
	p := pieces{size: len(s)}
	_, _ = r.r.WriteString(&p, s)
	return p.text()
}

// pieces are put together once there are two of them.
type pieces struct {
	size  int
	count int
	first string
	all   strings.Builder
}

func (p *pieces) WriteString(s string) (int, error) {
	switch p.count++; p.count {
	case 1:
		p.first = s
		return len(s), nil
	case 2:
		p.all.Grow(p.size)
		p.all.WriteString(p.first)
	}
	return p.all.WriteString(s)
}

func (p *pieces) Write(b []byte) (int, error) { return p.WriteString(string(b)) }

func (p *pieces) text() string {
	if p.count > 1 {
		return p.all.String()
	}
	return p.first
}

// A large text is decoded window by window, since each level of it is a copy.
// A window takes in so much of the next that a secret which begins in it ends
// in it, in whatever encodings it may be.
const (
	window     = 1 << 20
	windowLeap = 64 << 10
	encodedBy  = 32 // times as long as itself
)

// places are those of encoded secrets in a whole text.
func (r *Redactor) places(s string, cut bool) []int {
	leap := windowLeap
	if len(r.bare) > 0 {
		leap = max(leap, encodedBy*len(r.bare[0])) // the longest
	}
	if len(s) <= window+leap {
		return r.hidden(s, cut, base64Levels)
	}
	var bounds []int
	for from := 0; ; from += window {
		to := min(from+window+leap, len(s))
		for _, b := range r.hidden(s[from:to], cut && to == len(s), base64Levels) {
			bounds = append(bounds, from+b)
		}
		if to == len(s) {
			return merge(bounds)
		}
	}
}

// spans are the places of bare secrets in a text, the beginning and the end of
// each, in order; of those that begin at one place it is the longest's. Of a
// text that was cut, the last may be a secret's beginning.
func (r *Redactor) spans(text string, cut bool) (bounds []int) {
	next := make([]int, len(r.bare)) // where each stands next
	for at := 0; ; {
		first := -1
		for i, p := range r.bare {
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
			break
		}
		at = next[first] + len(r.bare[first])
		bounds = append(bounds, next[first], at)
	}
	for whole := text; cut; { // perhaps within an escape
		if k := begun(whole, r.bare, r.min); k > 0 {
			return merge(append(bounds, len(whole)-k, len(text)))
		}
		end := max(0, len(whole)-12)
		at := cutEscape.FindStringIndex(whole[end:])
		if at == nil {
			break
		}
		whole = whole[:end+at[0]]
	}
	return bounds
}

// cutEscape is the beginning of an escape at a text's end.
var cutEscape = regexp.MustCompile(`(\\(u[0-9a-fA-F]{0,3})?|%[0-9a-fA-F]?|&#?[0-9a-zA-Z]{0,8})$`)

// begun is how much of one of the forms a text ends with, if it is at least min.
func begun(text string, forms []string, min int) (longest int) {
	for _, f := range forms {
		for k := len(f) - 1; k >= min && k > longest; k-- {
			if strings.HasSuffix(text, f[:k]) {
				longest = k
			}
		}
	}
	return longest
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
	text := unsafe.String(unsafe.SliceData(raw), len(raw))
	changed := r.String(text)
	if changed == text {
		return raw
	}
	masked := json.RawMessage(changed)
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
