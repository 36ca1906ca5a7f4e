package connectors

import (
	"encoding/json"
	"errors"
	"math"
	"math/big"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// pathStep is one step of a field's location: a member, and whether its value
// is a list to go through.
type pathStep struct {
	name string // "" for the root list
	list bool
}

// parsePath reads a field notation: a.b, [list].x, [a].[b].x, [].x,
// data.[records].id; backslashes around a name make it literal.
func parsePath(s string) ([]pathStep, error) {
	var steps []pathStep
	for s != "" {
		var name string
		if strings.HasPrefix(s, `\`) {
			end := strings.Index(s[1:], `\`)
			if end < 0 {
				return nil, errors.New(`a name that begins with \ must end with \`)
			}
			name, s = s[1:1+end], s[2+end:]
			steps = append(steps, pathStep{name: name})
		} else {
			end := strings.IndexByte(s, '.')
			if end < 0 {
				end = len(s)
			}
			name, s = s[:end], s[end:]
			if strings.HasPrefix(name, "[") && strings.HasSuffix(name, "]") {
				steps = append(steps, pathStep{name: name[1 : len(name)-1], list: true})
			} else if name == "" {
				return nil, errors.New("an empty name")
			} else {
				steps = append(steps, pathStep{name: name})
			}
		}
		if s != "" {
			if s[0] != '.' || len(s) == 1 {
				return nil, errors.New("a dot must stand between names")
			}
			s = s[1:]
		}
	}
	return steps, nil
}

// memberAt follows members alone.
func memberAt(tree any, steps []pathStep) (any, bool) {
	for _, s := range steps {
		m, ok := tree.(*OrderedMap)
		if !ok {
			return nil, false
		}
		if tree, ok = m.Values[s.name]; !ok {
			return nil, false
		}
	}
	return tree, true
}

// convert turns a field's value into its declared type; what cannot be
// converted stays as it is.
func convert(v any, typ, format string) any {
	if list, ok := v.([]any); ok {
		out := make([]any, len(list))
		for i, e := range list {
			out[i] = convert(e, typ, format)
		}
		return out
	}
	text, ok := scalar(v)
	if _, composite := v.(*OrderedMap); !ok || composite {
		return v
	}
	if typ == "text" {
		return text
	}
	text = strings.TrimSpace(text)
	switch typ {
	case "datetime":
		t, ok := guessDate(text)
		if format != "" {
			t, ok = readFormat(text, format)
		}
		if ok {
			return t.UTC().Format(time.RFC3339Nano)
		}
	case "integer":
		if m := wholeNumber.FindStringSubmatch(text); m != nil {
			return wholeOf(m)
		}
		if f, ok := floatOf(text); ok && math.Abs(f) < 1<<53 {
			return int64(math.Round(f))
		}
	case "float":
		if f, ok := floatOf(text); ok {
			return trimZeros(strconv.FormatFloat(f, 'f', 14, 64))
		}
	case "decimal":
		if r, ok := decimalOf(text); ok {
			return trimZeros(r.FloatString(12))
		}
	case "boolean":
		switch strings.ToLower(text) {
		case "true", "1":
			return true
		case "false", "0":
			return false
		}
	}
	return v
}

func floatOf(text string) (float64, bool) {
	f, err := strconv.ParseFloat(text, 64)
	return f, err == nil && number.MatchString(text)
}

// decimalOf reads a decimal number with all its digits. One that would be
// written with thousands of them is left.
func decimalOf(text string) (*big.Rat, bool) {
	if !number.MatchString(text) || len(text) > 400 {
		return nil, false
	}
	if f, err := strconv.ParseFloat(text, 64); err != nil || f != 0 && math.Abs(f) < 1e-300 {
		return nil, false
	}
	if i := strings.IndexAny(text, "eE"); i >= 0 && len(text)-i > 5 {
		return nil, false
	}
	return new(big.Rat).SetString(text)
}

// trimZeros takes the zeros off that end a fraction.
func trimZeros(text string) json.Number {
	text = strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
	if text == "-0" {
		text = "0"
	}
	return json.Number(text)
}

var (
	wholeNumber = regexp.MustCompile(`^([+-]?)0*([0-9]+)(?:\.0*)?$`)
	number      = regexp.MustCompile(`^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$`)
)

// wholeOf is a wholeNumber that matched, as JSON writes it.
func wholeOf(m []string) json.Number {
	if m[1] == "-" && m[2] != "0" {
		return json.Number("-" + m[2])
	}
	return json.Number(m[2])
}

// coerce gives a parameter's value the declared type, a list's item by item.
// It is false where that would change what was meant.
func coerce(v any, typ string) (any, bool) {
	if typ == "" || typ == "undefined" || typ == "file" {
		return v, true
	}
	if list, ok := v.([]any); ok {
		out := make([]any, len(list))
		for i, e := range list {
			if out[i], ok = coerce(e, typ); !ok {
				return nil, false
			}
		}
		return out, true
	}
	if v == nil {
		return nil, true
	}
	if _, ok := v.(*OrderedMap); ok {
		return nil, false
	}
	text, _ := scalar(v)
	_, isBool := v.(bool)
	switch typ {
	case "text", "datetime":
		return text, true
	case "integer":
		if m := wholeNumber.FindStringSubmatch(text); m != nil && !isBool {
			return wholeOf(m), true
		}
		if f, err := strconv.ParseFloat(text, 64); err == nil && number.MatchString(text) && f == math.Trunc(f) && math.Abs(f) < 1<<53 {
			return json.Number(strconv.FormatFloat(f, 'f', -1, 64)), true
		}
		return nil, false
	case "float", "decimal":
		f, err := strconv.ParseFloat(text, 64)
		if err != nil || !number.MatchString(text) {
			return nil, false
		}
		if json.Valid([]byte(text)) { // all its digits
			return json.Number(text), true
		}
		return json.Number(strconv.FormatFloat(f, 'g', -1, 64)), true
	case "boolean":
		switch text {
		case "true", "1":
			return true, true
		case "false", "0":
			return false, true
		}
		return nil, false
	}
	return v, true
}
