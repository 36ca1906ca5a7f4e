package hooks

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/dop251/goja"
	"golang.org/x/text/unicode/norm"
)

// charset turns text into bytes and back, as btoa and atob need it. None
// writes a byte-order mark, none fails: what cannot be written becomes ?.
type charset struct {
	encode func(string) []byte
	decode func([]byte) string
}

// The names are .NET's, in any case; UTF-16 and UTF-32 are little-endian.
var charsets = map[string]charset{
	"UTF-8":      {func(s string) []byte { return []byte(s) }, func(b []byte) string { return strings.ToValidUTF8(string(b), "\ufffd") }},
	"ASCII":      {singleByte(0x7f, false), func(b []byte) string { return decodeSingle(b, 0x7f) }},
	"ISO-8859-1": {singleByte(0xff, true), func(b []byte) string { return decodeSingle(b, 0xff) }},
	"UTF-7":      {encodeUTF7, decodeUTF7},
	"UTF-16":     wide16(binary.LittleEndian),
	"UTF-16LE":   wide16(binary.LittleEndian),
	"UTF-16BE":   wide16(binary.BigEndian),
	"UTF-32":     wide32(binary.LittleEndian),
	"UTF-32LE":   wide32(binary.LittleEndian),
	"UTF-32BE":   wide32(binary.BigEndian),
}

func charsetOf(v goja.Value) (charset, error) {
	name := text(v)
	if name == "" {
		name = "UTF-8"
	}
	c, ok := charsets[strings.ToUpper(name)]
	if !ok {
		return c, fmt.Errorf("unknown character set %q", short(name, 40))
	}
	return c, nil
}

// bestFit are letters and marks that have no decomposition but a plain
// neighbour, as .NET's best fit for Latin-1 has them.
var bestFit = map[rune]rune{
	'Đ': 'D', 'đ': 'd', 'Ħ': 'H', 'ħ': 'h', 'ı': 'i', 'Ł': 'L', 'ł': 'l', 'Ŧ': 'T', 'ŧ': 't', 'Œ': 'O', 'œ': 'o', 'ƀ': 'b',
	'‐': '-', '‑': '-', '–': '-', '—': '-', '‘': '\'', '’': '\'', '‚': ',', '“': '"', '”': '"', '„': '"', '†': '+', '•': '.', '…': '.',
	'‹': '<', '›': '>', '™': 'T', '′': '\'', '⁄': '/', '\u2002': ' ', '\u2003': ' ', '\u2009': ' ',
}

func singleByte(limit rune, fold bool) func(string) []byte {
	return func(s string) []byte {
		out := make([]byte, 0, len(s))
		for _, c := range norm.NFC.String(s) {
			if c > limit && fold {
				if f, ok := bestFit[c]; ok {
					c = f
				} else {
					for i, d := range norm.NFKD.String(string(c)) {
						if i == 0 && !unicode.Is(unicode.Mn, d) {
							c = d
						}
					}
				}
			}
			if c > limit {
				c = '?'
			}
			out = append(out, byte(c))
		}
		return out
	}
}

func decodeSingle(b []byte, limit byte) string {
	var s strings.Builder
	for _, c := range b {
		if c > limit {
			s.WriteByte('?')
		} else {
			s.WriteRune(rune(c))
		}
	}
	return s.String()
}

func wide16(order binary.AppendByteOrder) charset {
	return charset{
		func(s string) []byte {
			var out []byte
			for _, u := range utf16.Encode([]rune(s)) {
				out = order.AppendUint16(out, u)
			}
			return out
		},
		func(b []byte) string {
			units := make([]uint16, 0, len(b)/2)
			for ; len(b) >= 2; b = b[2:] {
				units = append(units, order.(binary.ByteOrder).Uint16(b))
			}
			if len(b) > 0 {
				units = append(units, utf8.RuneError)
			}
			return string(utf16.Decode(units))
		},
	}
}

func wide32(order binary.AppendByteOrder) charset {
	return charset{
		func(s string) []byte {
			var out []byte
			for _, c := range s {
				out = order.AppendUint32(out, uint32(c))
			}
			return out
		},
		func(b []byte) string {
			var s strings.Builder
			for ; len(b) >= 4; b = b[4:] {
				c := order.(binary.ByteOrder).Uint32(b)
				if c > utf8.MaxRune {
					c = utf8.RuneError
				}
				s.WriteRune(rune(c))
			}
			if len(b) > 0 {
				s.WriteRune(utf8.RuneError)
			}
			return s.String()
		},
	}
}

// UTF-7 (RFC 2152), with the optional direct characters written encoded, as
// .NET does.
const utf7Direct = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789'(),-./:? \t\r\n"

func encodeUTF7(s string) []byte {
	var out []byte
	var held []rune
	flush := func(next rune) {
		if held == nil {
			return
		}
		var raw []byte
		for _, u := range utf16.Encode(held) {
			raw = binary.BigEndian.AppendUint16(raw, u)
		}
		out = append(out, '+')
		out = base64.RawStdEncoding.AppendEncode(out, raw)
		// A character that ends the encoded run by itself needs no minus.
		if next < 0 || next == '-' || next == '/' || unicode.IsLetter(next) || unicode.IsDigit(next) {
			out = append(out, '-')
		}
		held = nil
	}
	for _, c := range s {
		switch {
		case strings.ContainsRune(utf7Direct, c):
			flush(c)
			out = append(out, byte(c))
		case c == '+' && held == nil:
			out = append(out, '+', '-')
		default:
			held = append(held, c)
		}
	}
	flush(-1)
	return out
}

func decodeUTF7(b []byte) string {
	var s strings.Builder
	for i := 0; i < len(b); i++ {
		if b[i] != '+' {
			s.WriteByte(b[i])
			continue
		}
		j := i + 1
		for j < len(b) && (b[j] == '/' || b[j] == '+' || b[j] >= '0' && b[j] <= '9' || b[j] >= 'A' && b[j] <= 'Z' || b[j] >= 'a' && b[j] <= 'z') {
			j++
		}
		if j == i+1 {
			s.WriteByte('+')
		} else if raw, err := base64.RawStdEncoding.DecodeString(string(b[i+1 : j])); err == nil {
			s.WriteString(wide16(binary.BigEndian).decode(raw))
		}
		if j < len(b) && b[j] == '-' {
			j++
		}
		i = j - 1
	}
	return strings.ToValidUTF8(s.String(), "\ufffd")
}
