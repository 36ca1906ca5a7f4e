package jsontree

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Quote is text as a JSON string: as encoding/json writes it without escaping
// HTML, but with no copy beside the result.
func Quote(s string) json.RawMessage {
	size := len(s) + 2
	for i := range len(s) {
		if c := s[i]; c == '"' || c == '\\' || c < ' ' {
			size += 5
		}
	}
	out := make([]byte, 0, size)
	out = append(out, '"')
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		n := 1
		var escaped string
		switch at := strings.IndexByte("\"\\\b\f\n\r\t", c); {
		case at >= 0:
			escaped = `\` + `"\bfnrt`[at:at+1]
		case c < ' ':
			escaped = fmt.Sprintf(`\u%04x`, c)
		default:
			var r rune
			if r, n = utf8.DecodeRuneInString(s[i:]); r == utf8.RuneError && n == 1 {
				escaped = `\ufffd`
			} else if r == '\u2028' || r == '\u2029' {
				escaped = fmt.Sprintf(`\u%04x`, r)
			} else {
				i += n
				continue
			}
		}
		out = append(append(out, s[from:i]...), escaped...)
		i += n
		from = i
	}
	return append(append(out, s[from:]...), '"')
}

// QuoteBase64 is what is no text as a JSON string.
func QuoteBase64(raw []byte) json.RawMessage {
	out := make([]byte, 1, base64.StdEncoding.EncodedLen(len(raw))+2)
	out[0] = '"'
	return append(base64.StdEncoding.AppendEncode(out, raw), '"')
}

// TextIn is the text that a JSON string holds; "" for any other value.
func TextIn(raw json.RawMessage) string {
	var s string
	_ = json.Unmarshal(raw, &s)
	return s
}
