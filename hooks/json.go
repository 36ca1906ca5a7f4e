package hooks

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/dop251/goja"
)

// maxJSONDepth bounds nesting of JSON on its way into a runtime.
const maxJSONDepth = 1000

// depthOf is how deep JSON is nested.
func depthOf(raw []byte) (deepest int) {
	depth := 0
	for i := 0; i < len(raw); i++ {
		switch raw[i] {
		case '"':
			for i++; i < len(raw) && raw[i] != '"'; i++ {
				if raw[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			if depth++; depth > deepest {
				deepest = depth
			}
		case '}', ']':
			depth--
		}
	}
	return deepest
}

// parseJSON builds goja values straight from JSON: the same as JSON.parse,
// key order kept, in a third of its time.
func (r *run) parseJSON(raw []byte) (goja.Value, error) {
	// Members are defined, not set: what a script put on Object.prototype, a
	// setter or the like, has no part in it (ECMA-262, JSON.parse). Where none
	// can have, to set them is faster.
	return parseJSON(r.vm, raw, slices.ContainsFunc(waysToObjectPrototype, r.uses))
}

var waysToObjectPrototype = []string{"Object", "Reflect", "prototype", "__proto__"}

func parseJSON(vm *goja.Runtime, raw []byte, define bool) (goja.Value, error) {
	s := &scanner{vm: vm, b: raw, whole: string(raw), keys: map[string]string{}, define: define}
	v, err := s.value(0)
	if err != nil {
		return nil, err
	}
	if s.space(); s.i != len(s.b) {
		return nil, s.bad()
	}
	return v, nil
}

type scanner struct {
	vm    *goja.Runtime
	b     []byte
	i     int
	whole string            // b, which texts are parts of
	keys  map[string]string // names of members, each kept once
	items []any             // a stack, for lists

	define bool // members are defined, not set
}

func (s *scanner) bad() error { return fmt.Errorf("malformed JSON at byte %d", s.i) }

func (s *scanner) space() {
	for s.i < len(s.b) && (s.b[s.i] == ' ' || s.b[s.i] == '\n' || s.b[s.i] == '\t' || s.b[s.i] == '\r') {
		s.i++
	}
}

func (s *scanner) value(depth int) (goja.Value, error) {
	if depth > maxJSONDepth {
		return nil, fmt.Errorf("JSON is nested deeper than %d", maxJSONDepth)
	}
	s.space()
	if s.i >= len(s.b) {
		return nil, s.bad()
	}
	switch c := s.b[s.i]; {
	case c == '{':
		return s.object(depth)
	case c == '[':
		return s.array(depth)
	case c == '"':
		from := s.i
		t, err := s.text()
		if err == nil && strings.Contains(t, "\ufffd") {
			if units, half := halves(s.whole[from+1 : s.i-1]); half {
				return goja.StringFromUTF16(units), nil
			}
		}
		return s.vm.ToValue(t), err
	case c == '-' || c >= '0' && c <= '9':
		return s.number()
	}
	switch rest := s.whole[s.i:]; {
	case strings.HasPrefix(rest, "true"):
		s.i += 4
		return s.vm.ToValue(true), nil
	case strings.HasPrefix(rest, "false"):
		s.i += 5
		return s.vm.ToValue(false), nil
	case strings.HasPrefix(rest, "null"):
		s.i += 4
		return goja.Null(), nil
	}
	return nil, s.bad()
}

func (s *scanner) object(depth int) (goja.Value, error) {
	o := s.vm.NewObject()
	s.i++
	if s.space(); s.i < len(s.b) && s.b[s.i] == '}' {
		s.i++
		return o, nil
	}
	for {
		if s.space(); s.i >= len(s.b) || s.b[s.i] != '"' {
			return nil, s.bad()
		}
		k, err := s.text()
		if err != nil {
			return nil, err
		}
		if s.space(); s.i >= len(s.b) || s.b[s.i] != ':' {
			return nil, s.bad()
		}
		s.i++
		v, err := s.value(depth + 1)
		if err != nil {
			return nil, err
		}
		if kept, ok := s.keys[k]; ok {
			k = kept // its hash is known, and the rest can be forgotten
		} else if len(s.keys) < 1000 {
			k = strings.Clone(k)
			s.keys[k] = k
		}
		if s.define || k == "__proto__" { // a member like any other
			err = o.DefineDataProperty(k, v, goja.FLAG_TRUE, goja.FLAG_TRUE, goja.FLAG_TRUE)
		} else {
			err = o.Set(k, v)
		}
		if err != nil {
			return nil, err
		}
		if s.space(); s.i >= len(s.b) {
			return nil, s.bad()
		}
		s.i++
		switch s.b[s.i-1] {
		case ',':
		case '}':
			return o, nil
		default:
			return nil, s.bad()
		}
	}
}

func (s *scanner) array(depth int) (goja.Value, error) {
	from := len(s.items)
	defer func() { s.items = s.items[:from] }()
	s.i++
	if s.space(); s.i < len(s.b) && s.b[s.i] == ']' {
		s.i++
		return s.vm.NewArray(), nil
	}
	for {
		v, err := s.value(depth + 1)
		if err != nil {
			return nil, err
		}
		s.items = append(s.items, v)
		if s.space(); s.i >= len(s.b) {
			return nil, s.bad()
		}
		s.i++
		switch s.b[s.i-1] {
		case ',':
		case ']':
			return s.vm.NewArray(s.items[from:]...), nil
		default:
			return nil, s.bad()
		}
	}
}

func (s *scanner) number() (goja.Value, error) {
	from, whole := s.i, true
	for s.i < len(s.b) {
		switch c := s.b[s.i]; {
		case c >= '0' && c <= '9' || c == '-' && s.i == from:
		case c == '.' || c == 'e' || c == 'E' || c == '+' || c == '-':
			whole = false
		default:
			goto done
		}
		s.i++
	}
done:
	t := s.whole[from:s.i]
	if whole && len(t) < 16 && t != "-0" {
		n, err := strconv.ParseInt(t, 10, 64)
		if err != nil {
			return nil, s.bad()
		}
		return s.vm.ToValue(n), nil
	}
	f, err := strconv.ParseFloat(t, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return nil, s.bad()
	}
	return s.vm.ToValue(f), nil
}

func (s *scanner) text() (string, error) {
	from, escaped := s.i, false
	for i := s.i + 1; i < len(s.b); i++ {
		switch c := s.b[i]; {
		case c == '\\':
			escaped = true
			i++
		case c == '"':
			s.i = i + 1
			if t := s.whole[from+1 : i]; !escaped && utf8.ValidString(t) {
				return t, nil
			}
			return s.slow(from)
		case c < 0x20:
			return "", s.bad()
		}
	}
	return "", s.bad()
}

func (s *scanner) slow(from int) (string, error) {
	var t string
	err := json.Unmarshal(s.b[from:s.i], &t)
	return t, err
}

// halves is a JSON text in UTF-16, if it has half a surrogate pair: texts that
// were cut off may end in one, and scripts keep it.
func halves(text string) (units []uint16, half bool) {
	for i := 0; i < len(text); {
		if strings.HasPrefix(text[i:], `\u`) && len(text) >= i+6 {
			n, _ := strconv.ParseUint(text[i+2:i+6], 16, 16)
			units = append(units, uint16(n))
			i += 6
			continue
		}
		end := i + 1
		if text[i] == '\\' {
			end++
		} else if next := strings.IndexByte(text[i:], '\\'); next > 0 {
			end = i + next
		} else {
			end = len(text)
		}
		var part string
		_ = json.Unmarshal([]byte(`"`+text[i:end]+`"`), &part)
		units = append(units, utf16.Encode([]rune(part))...)
		i = end
	}
	for i := 0; i < len(units); i++ {
		if utf16.IsSurrogate(rune(units[i])) {
			if i+1 == len(units) || utf16.DecodeRune(rune(units[i]), rune(units[i+1])) == utf8.RuneError {
				return units, true
			}
			i++
		}
	}
	return units, false
}

// sameJSON compares what JSON.stringify wrote with what was given, as a script
// sees them: white space, escapes, and how a number is written are nothing. It
// is not certain where the given has members that a script sees in another
// order, or once instead of twice.
func sameJSON(written, given []byte) (same, certain bool) {
	if bytes.Equal(written, given) {
		return true, true
	}
	a, b := scanner{b: written, whole: string(written)}, scanner{b: given, whole: string(given)}
	for {
		a.space()
		b.space()
		if a.i == len(a.b) || b.i == len(b.b) {
			return a.i == len(a.b) && b.i == len(b.b), true
		}
		switch c := a.b[a.i]; {
		case c == '"' && b.b[b.i] == '"':
			ta, err := a.text()
			tb, err2 := b.text()
			if err != nil || err2 != nil {
				return false, false
			}
			if ta != tb {
				return false, !moved(tb) && !moved(ta)
			}
			if strings.Contains(ta, "\ufffd") { // any half of a surrogate pair
				return false, false
			}
		case numeric(c) && numeric(b.b[b.i]):
			na, err := strconv.ParseFloat(a.digits(), 64)
			nb, err2 := strconv.ParseFloat(b.digits(), 64)
			if na != nb || err != nil && !errors.Is(err, strconv.ErrRange) || err2 != nil && !errors.Is(err2, strconv.ErrRange) {
				return false, true
			}
		case strings.HasPrefix(a.whole[a.i:], "null") && numeric(b.b[b.i]): // 1e999 is Infinity
			n, _ := strconv.ParseFloat(b.digits(), 64)
			if !math.IsInf(n, 0) {
				return false, true
			}
			a.i += len("null")
		case c != b.b[b.i]:
			return false, true
		default: // punctuation, and the letters of true, false and null
			a.i++
			b.i++
		}
	}
}

// moved says of a member's name that objects have it in another place than it
// was given: before all that are no numbers (ECMA-262, OrdinaryOwnPropertyKeys).
func moved(name string) bool {
	return name != "" && len(name) < 11 && strings.Trim(name, "0123456789") == ""
}

func numeric(c byte) bool { return c == '-' || c >= '0' && c <= '9' }

// digits are those of a number, and what else stands in one.
func (s *scanner) digits() string {
	from := s.i
	for s.i < len(s.b) && strings.IndexByte("+-.0123456789eE", s.b[s.i]) >= 0 {
		s.i++
	}
	return s.whole[from:s.i]
}
