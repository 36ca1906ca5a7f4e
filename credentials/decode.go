package credentials

import (
	"cmp"
	"encoding/base64"
	"html"
	"slices"
	"strings"
	"unicode/utf8"
)

// What is an encoding in an encoding (JSON that is URL-encoded, base64 of JSON,
// an entity in a page that stands in JSON) has no end of forms. So text is
// decoded, level by level, until nothing is left to decode; what a secret
// becomes by the same way is looked for there, and masked where it came from.

const (
	decodeLevels = 10 // of escapes
	base64Levels = 3  // of base64 in base64
	// base64Least is the length of the shortest text that is taken for base64.
	base64Least = 12
)

// decoded is text without one level of JSON's and URLs' escapes and of HTML's
// entities. Of each byte it tells where it comes from.
func decoded(s string, tell func(at int)) string {
	text := make([]byte, 0, len(s))
	for i := 0; i < len(s); {
		n := strings.IndexAny(s[i:], `\%&`)
		if n < 0 {
			n = len(s) - i
		}
		text = append(text, s[i:i+n]...)
		if tell != nil {
			for k := range n {
				tell(i + k)
			}
		}
		if i += n; i == len(s) {
			break
		}
		before := len(text)
		text, n = unescape(text, s[i:])
		if tell != nil {
			for range len(text) - before {
				tell(i)
			}
		}
		i += n
	}
	return string(text)
}

// unescape appends what the escape at the beginning of s stands for, or its
// first byte where there is none, and says how long it is.
func unescape(text []byte, s string) ([]byte, int) {
	switch s[0] {
	case '\\':
		if c, n := unicodeEscape(s); n > 0 {
			return utf8.AppendRune(text, c), n
		}
		if len(s) > 1 {
			if at := strings.IndexByte(`"\/nrtbf`, s[1]); at >= 0 {
				return append(text, "\"\\/\n\r\t\b\f"[at]), 2
			}
		}
	case '%':
		if len(s) > 2 {
			high, low := strings.IndexByte(hexDigits, s[1]), strings.IndexByte(hexDigits, s[2])
			if high >= 0 && low >= 0 {
				return append(text, byte(high%16<<4|low%16)), 3
			}
		}
	case '&':
		if end := strings.IndexByte(s[:min(len(s), 10)], ';'); end > 0 {
			if c := html.UnescapeString(s[:end+1]); len(c) <= end {
				return append(text, c...), end + 1
			}
		}
	}
	return append(text, s[0]), 1
}

// hexDigits are those of either case; a digit's value is its place modulo 16.
const hexDigits = "0123456789abcdef          ABCDEF"

// levels are a text and what it is decoded to, level by level.
func levels(s string) []string {
	all := []string{s}
	for len(all) <= decodeLevels {
		last := all[len(all)-1]
		if !strings.ContainsAny(last, `\%&`) {
			break
		}
		next := decoded(last, nil)
		if len(next) == len(last) { // an escape is longer than what it stands for
			break
		}
		all = append(all, next)
	}
	return all
}

// bare is what text is in the end; a blank may have become a plus.
func bare(s string) string {
	all := levels(s)
	return strings.ReplaceAll(all[len(all)-1], "+", " ")
}

// hidden are the places of encoded secrets in a text, the beginning and the end
// of each, in order. Of one that was cut, a secret may begin at its end.
func (r *Redactor) hidden(s string, cut bool, depth int) []int {
	all := levels(s)
	var bounds []int
	for level := len(all) - 1; level >= 0; level-- {
		text := all[level]
		if level == len(all)-1 {
			bounds = r.spans(strings.ReplaceAll(text, "+", " "), cut)
		}
		if depth > 0 {
			bounds = merge(append(bounds, r.inBase64(text, cut, depth)...))
		}
		if level > 0 {
			bounds = lift(bounds, all[level-1])
		}
	}
	return bounds
}

// lift tells where places of a decoded text are in the text it was decoded from.
func lift(bounds []int, from string) []int {
	if len(bounds) == 0 {
		return nil
	}
	above := make([]int, 0, len(bounds))
	n := 0
	decoded(from, func(at int) {
		for ; len(above) < len(bounds) && bounds[len(above)] == n; above = append(above, at) {
		}
		n++
	})
	for len(above) < len(bounds) {
		above = append(above, len(from))
	}
	return above
}

// merge puts places in order, and makes one of those that overlap.
func merge(bounds []int) []int {
	pairs := slices.Collect(slices.Chunk(bounds, 2))
	slices.SortFunc(pairs, func(a, b []int) int { return cmp.Compare(a[0], b[0]) })
	var out []int
	for _, p := range pairs {
		if n := len(out); n > 0 && p[0] <= out[n-1] {
			out[n-1] = max(out[n-1], p[1])
		} else if p[0] < p[1] {
			out = append(out, p...)
		}
	}
	return out
}

func isBase64(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c == '+' || c == '/' || c == '-' || c == '_'
}

var standardAlphabet = strings.NewReplacer("-", "+", "_", "/")

// inBase64 are the places of secrets in parts of a text that may be base64.
func (r *Redactor) inBase64(text string, cut bool, depth int) (bounds []int) {
	for i := 0; i < len(text); i++ {
		begin := i
		for i < len(text) && isBase64(text[i]) {
			i++
		}
		if i-begin < base64Least {
			continue
		}
		run := standardAlphabet.Replace(text[begin:i])
		for shift := range 4 { // what stands before it may look like base64 as well
			part := run[shift:]
			if len(part)%4 == 1 {
				part = part[:len(part)-1]
			}
			plain, err := base64.RawStdEncoding.DecodeString(part)
			if err != nil {
				continue
			}
			for pair := range slices.Chunk(r.hidden(string(plain), cut && i == len(text), depth-1), 2) {
				from, to := begin+shift+pair[0]*4/3, begin+shift+(pair[1]*4+2)/3
				bounds = append(bounds, from, min(to, i))
			}
		}
	}
	return bounds
}

// maskAt replaces the places of a text.
func maskAt(s string, bounds []int) string {
	if len(bounds) == 0 {
		return s
	}
	var b strings.Builder
	b.Grow(len(s))
	done := 0
	for i := 0; i < len(bounds); i += 2 {
		b.WriteString(s[done:bounds[i]])
		b.WriteString(redacted)
		done = bounds[i+1]
	}
	b.WriteString(s[done:])
	return b.String()
}
