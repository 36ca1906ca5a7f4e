package jsontree

import (
	"encoding/json"
	"math"
	"math/big"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/stepworker/stepworker/connectors/dates"
)

// Convert turns a field's value into its declared type; what cannot be
// converted stays as it is.
func Convert(v any, typ, format string) any {
	if list, ok := v.([]any); ok {
		out := make([]any, len(list))
		for i, e := range list {
			out[i] = Convert(e, typ, format)
		}
		return out
	}
	text, ok := Text(v)
	if _, composite := v.(*Object); !ok || composite {
		return v
	}
	if typ == "text" {
		return text
	}
	text = strings.TrimSpace(text)
	switch typ {
	case "datetime":
		t, ok := dates.Guess(text)
		if format != "" {
			t, ok = dates.ParseAs(text, format)
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

// Coerce gives a parameter's value the declared type, a list's item by item.
// It is false where that would change what was meant.
func Coerce(v any, typ string) (any, bool) {
	if typ == "" || typ == "undefined" || typ == "file" {
		return v, true
	}
	if list, ok := v.([]any); ok {
		out := make([]any, len(list))
		for i, e := range list {
			if out[i], ok = Coerce(e, typ); !ok {
				return nil, false
			}
		}
		return out, true
	}
	if v == nil {
		return nil, true
	}
	if _, ok := v.(*Object); ok {
		return nil, false
	}
	text, _ := Text(v)
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

// Amount is a number, however many digits it has; not a hexadecimal one.
func Amount(text string) (*big.Rat, bool) {
	if len(text) > 100 || !number.MatchString(text) {
		return nil, false
	}
	if i := strings.IndexAny(text, "eE"); i >= 0 && len(text)-i > 5 {
		return nil, false // more zeros than there is room for
	}
	return new(big.Rat).SetString(text)
}
