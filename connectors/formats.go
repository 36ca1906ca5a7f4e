package connectors

import (
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"regexp"
	"strings"
	"time"
)

// A merge field may say the form of its date: {{since format=yyyy-MM-dd}}.
var fieldWithFormat = regexp.MustCompile(`^(\S+)\s+format=(.*)$`)

// cutFormat splits what stands between the braces of a merge field.
func cutFormat(text string) (name, format string) {
	if m := fieldWithFormat.FindStringSubmatch(text); m != nil {
		return m[1], strings.TrimSpace(m[2])
	}
	return text, ""
}

// value looks a merge field up, and writes its date as it says.
func (p *part) value(look lookup) (v any, known, foreign bool, err error) {
	return formatted(p.name, p.format, look)
}

func formatted(name, format string, look lookup) (v any, known, foreign bool, err error) {
	if name == lastRunField && format != "" { // to its fractions of a second
		v, known, foreign = look(lastRunForm + format)
		return v, known, foreign, nil
	}
	if v, known, foreign = look(name); format == "" || v == nil {
		return v, known, foreign, nil
	}
	at, ok := dateOf(v)
	if !ok {
		return nil, known, foreign, &expandError{fmt.Sprintf("{{%s format=%s}}: the value of %q is no date", name, format, name)}
	}
	return formatDate(at, format), known, foreign, nil
}

// javaScriptDate is how JavaScript writes a Date as text; behind it stands the
// zone's name.
const javaScriptDate = "Mon Jan 02 2006 15:04:05 GMT-0700"

// dateOf is a value's date: text as parseDate reads it or as JavaScript writes
// a Date, or a number of seconds since 1970, of milliseconds if there are too
// many for seconds.
func dateOf(v any) (time.Time, bool) {
	switch v := v.(type) {
	case string:
		if at, ok := parseDate(v); ok {
			return at, true
		}
		text, _, _ := strings.Cut(strings.TrimSpace(v), " (")
		at, err := time.Parse(javaScriptDate, text)
		return at.UTC(), err == nil
	case json.Number:
		f, err := v.Float64()
		if math.Abs(f) >= 1e11 {
			f /= 1000
		}
		if err != nil || math.Abs(f) >= 1e11 {
			return time.Time{}, false
		}
		whole, fraction := math.Modf(f)
		return time.Unix(int64(whole), int64(math.Round(fraction*1e6))*1000).UTC(), true
	}
	return time.Time{}, false
}

// amount is a number, however many digits it has; not a hexadecimal one.
func amount(text string) (*big.Rat, bool) {
	if len(text) > 100 || !number.MatchString(text) {
		return nil, false
	}
	if i := strings.IndexAny(text, "eE"); i >= 0 && len(text)-i > 5 {
		return nil, false // more zeros than there is room for
	}
	return new(big.Rat).SetString(text)
}
