package connectors

import (
	"encoding/json"
	"errors"
	"math"
	"regexp"
	"strconv"
	"strings"
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
func convert(v any, typ string) any {
	if list, ok := v.([]any); ok {
		out := make([]any, len(list))
		for i, e := range list {
			out[i] = convert(e, typ)
		}
		return out
	}
	text, ok := scalar(v)
	if !ok || v == nil {
		return v
	}
	switch typ {
	case "text", "datetime":
		if _, composite := v.(*OrderedMap); !composite {
			return text
		}
	case "integer":
		if n, err := strconv.ParseInt(text, 10, 64); err == nil {
			return n
		}
		if f, err := strconv.ParseFloat(text, 64); err == nil && math.Abs(f) < 1<<53 {
			return int64(math.Round(f))
		}
	case "float", "decimal":
		if f, err := strconv.ParseFloat(text, 64); err == nil && !math.IsNaN(f) && !math.IsInf(f, 0) {
			digits := 14
			if typ == "decimal" {
				digits = 12
			}
			return json.Number(strings.TrimSuffix(strings.TrimRight(strconv.FormatFloat(f, 'f', digits, 64), "0"), "."))
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

var (
	wholeNumber = regexp.MustCompile(`^([+-]?)0*([0-9]+)(?:\.0*)?$`)
	number      = regexp.MustCompile(`^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$`)
)

// coerce gives a parameter's value the declared type, a list's item by item.
// It is false where that would change what was meant.
func coerce(v any, typ string) (any, bool) {
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
			if m[1] == "-" && m[2] != "0" {
				return json.Number("-" + m[2]), true
			}
			return json.Number(m[2]), true
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
