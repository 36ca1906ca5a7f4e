package dates

import (
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Text is how a date is written where nobody asks for another form: it is
// to mean something in a script's template literal and in a query alike.
func Text(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

// dateTokens are the custom date format specifiers of .NET, as Go writes them.
// A run of a letter that is not here stands for itself.
var dateTokens = map[string]string{
	"yyyy": "2006", "yy": "06", "MMMM": "January", "MMM": "Jan", "MM": "01", "M": "1", "dddd": "Monday", "ddd": "Mon", "dd": "02", "d": "2",
	"HH": "15", "hh": "03", "h": "3", "mm": "04", "m": "4", "ss": "05", "s": "5", "tt": "PM", "zzz": "-07:00",
}

// formatPart is a piece of a .NET date format: a specifier, or text.
type formatPart struct {
	token   string
	text    string // as it stands in a date
	unknown bool   // letters that are no specifier, and stand for themselves
}

// splitFormat cuts a format such as yyyy-MM-ddTHH:mm:ssZ. What stands in quotes
// or after a backslash is literal.
func splitFormat(format string) (parts []formatPart) {
	for format != "" {
		c := format[0]
		n := 1
		for n < len(format) && format[n] == c {
			n++
		}
		token := format[:n]
		switch _, ok := dateTokens[token]; {
		case c == '\'' || c == '"':
			text, rest, closed := strings.Cut(format[1:], string(c))
			if parts = append(parts, formatPart{text: text}); !closed {
				return parts
			}
			format = rest
			continue
		case c == '\\' && len(format) > 1:
			parts = append(parts, formatPart{text: format[1:2]})
			format = format[2:]
			continue
		case ok, token == "H", c == 'f' && n <= 7:
			parts = append(parts, formatPart{token: token})
		default:
			letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
			parts = append(parts, formatPart{text: token, unknown: letter && c != 'T' && c != 'Z'})
		}
		format = format[n:]
	}
	return parts
}

// CheckFormat says what in a format is no specifier.
func CheckFormat(format string) error {
	for _, p := range splitFormat(format) {
		if p.unknown {
			return fmt.Errorf("%q is none of the words of a date format (yyyy MM dd HH mm ss fff tt zzz and their like); put text in quotes", p.text)
		}
	}
	return nil
}

// Format writes a date in a .NET format.
func Format(t time.Time, format string) string {
	t = t.UTC()
	var b strings.Builder
	for _, p := range splitFormat(format) {
		switch {
		case p.token == "":
			b.WriteString(p.text)
		case p.token == "H":
			fmt.Fprint(&b, t.Hour())
		case p.token[0] == 'f':
			b.WriteString(fmt.Sprintf("%09d", t.Nanosecond())[:len(p.token)])
		default:
			b.WriteString(t.Format(dateTokens[p.token]))
		}
	}
	return b.String()
}

// ParseAs reads a date that is written in a .NET format, English names in
// any case, and which names a year. Without a zone it is UTC.
func ParseAs(text, format string) (time.Time, bool) {
	r := formatReader{rest: strings.TrimSpace(text), year: -1, month: 1, day: 1, pm: -1}
	for _, p := range splitFormat(format) {
		if !r.read(p) {
			return time.Time{}, false
		}
	}
	if r.pm >= 0 {
		if r.hour < 1 || r.hour > 12 {
			return time.Time{}, false
		}
		r.hour = r.hour%12 + 12*r.pm
	}
	t := time.Date(r.year, time.Month(r.month), r.day, r.hour, r.minute, r.second, r.nano, time.UTC)
	ok := r.rest == "" && r.year >= 0 && t.Year() == r.year && int(t.Month()) == r.month && t.Day() == r.day && r.hour < 24 && r.minute < 60 && r.second < 60
	return t.Add(-r.offset), ok
}

type formatReader struct {
	rest                                         string
	year, month, day, hour, minute, second, nano int
	pm                                           int // -1: nothing was said
	offset                                       time.Duration
}

// digits takes a number of least to most digits.
func (r *formatReader) digits(into *int, least, most int) bool {
	n := 0
	for n < most && n < len(r.rest) && r.rest[n] >= '0' && r.rest[n] <= '9' {
		n++
	}
	if n < least {
		return false
	}
	*into, _ = strconv.Atoi(r.rest[:n])
	r.rest = r.rest[n:]
	return true
}

// name takes one of the names that a layout writes for the given dates.
func (r *formatReader) name(layout string, dates int, date func(i int) time.Time) (int, bool) {
	for i := range dates {
		if name := date(i).Format(layout); len(r.rest) >= len(name) && strings.EqualFold(r.rest[:len(name)], name) {
			r.rest = r.rest[len(name):]
			return i, true
		}
	}
	return 0, false
}

func (r *formatReader) read(p formatPart) (ok bool) {
	switch p.token {
	case "":
		r.rest, ok = strings.CutPrefix(r.rest, p.text)
		return ok
	case "yyyy":
		return r.digits(&r.year, 4, 4)
	case "yy": // as .NET and POSIX cut the centuries
		if ok = r.digits(&r.year, 2, 2); r.year < 69 {
			r.year += 100
		}
		r.year += 1900
		return ok
	case "MMMM", "MMM":
		var i int
		i, ok = r.name(dateTokens[p.token], 12, func(i int) time.Time { return time.Date(2026, time.Month(i+1), 1, 0, 0, 0, 0, time.UTC) })
		r.month = i + 1
		return ok
	case "dddd", "ddd":
		_, ok = r.name(dateTokens[p.token], 7, func(i int) time.Time { return time.Date(2026, 1, i+1, 0, 0, 0, 0, time.UTC) })
		return ok
	case "MM", "M":
		return r.digits(&r.month, len(p.token), 2)
	case "dd", "d":
		return r.digits(&r.day, len(p.token), 2)
	case "HH", "H", "hh", "h":
		return r.digits(&r.hour, len(p.token), 2)
	case "mm", "m":
		return r.digits(&r.minute, len(p.token), 2)
	case "ss", "s":
		return r.digits(&r.second, len(p.token), 2)
	case "tt":
		r.pm, ok = r.name("PM", 2, func(i int) time.Time { return time.Date(2026, 1, 1, 12*i, 0, 0, 0, time.UTC) })
		return ok
	case "zzz":
		if r.rest, ok = strings.CutPrefix(r.rest, "Z"); ok {
			return true
		}
		t, err := time.Parse("-07:00", r.rest[:min(6, len(r.rest))])
		if err != nil {
			return false
		}
		_, seconds := t.Zone()
		r.offset, r.rest = time.Duration(seconds)*time.Second, r.rest[6:]
		return true
	}
	n := len(p.token) // f…fffffff
	if ok = r.digits(&r.nano, n, n); ok {
		for range 9 - n {
			r.nano *= 10
		}
	}
	return ok
}

// FromJSON reads the date that a script left: text, or a Date, which JSON
// writes as text.
func FromJSON(raw json.RawMessage) (time.Time, bool) {
	var text string
	if json.Unmarshal(raw, &text) != nil {
		return time.Time{}, false
	}
	return Parse(text)
}

// dateLayouts are RFC 3339, ISO 8601 and RFC 1123. A fraction of a second is
// read behind each second.
var dateLayouts = []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02T15:04", "2006-01-02", time.RFC1123, time.RFC1123Z,
	"2006-01-02T15:04:05Z0700", "2006-01-02T15:04:05Z07", "2006-01-02T15:04Z07:00", "2006-01-02 15:04:05Z07:00", "20060102T150405Z0700"}

// Parse reads a date as people and programs write it; without a zone it is
// UTC.
func Parse(text string) (time.Time, bool) {
	for _, layout := range dateLayouts {
		if t, err := time.Parse(layout, strings.TrimSpace(text)); err == nil {
			return t.UTC(), true
		}
	}
	return time.Time{}, false
}

var (
	unixTime = regexp.MustCompile(`^([0-9]{9,14})(\.[0-9]{1,9})?$`)
	msDate   = regexp.MustCompile(`^/Date\((-?[0-9]{1,14})([+-][0-9]{4})?\)/$`)
)

// Guess reads what Parse reads, Unix time in seconds or, from 12 digits
// on, milliseconds, and the /Date(…)/ of older .NET.
func Guess(text string) (time.Time, bool) {
	text = strings.TrimSpace(text)
	if m := msDate.FindStringSubmatch(text); m != nil {
		ms, _ := strconv.ParseInt(m[1], 10, 64)
		return time.UnixMilli(ms).UTC(), true
	}
	if m := unixTime.FindStringSubmatch(text); m != nil {
		n, _ := strconv.ParseInt(m[1], 10, 64)
		if len(m[1]) >= 12 {
			return time.UnixMilli(n).UTC(), true
		}
		nano, _ := strconv.ParseInt((strings.TrimPrefix(m[2], ".") + "000000000")[:9], 10, 64)
		return time.Unix(n, nano).UTC(), true
	}
	return Parse(text)
}

// javaScriptDate is how JavaScript writes a Date as text; behind it stands the
// zone's name.
const javaScriptDate = "Mon Jan 02 2006 15:04:05 GMT-0700"

// Of is a value's date: text as Parse reads it or as JavaScript writes
// a Date, or a number of seconds since 1970, of milliseconds if there are too
// many for seconds.
func Of(v any) (time.Time, bool) {
	switch v := v.(type) {
	case string:
		if at, ok := Parse(v); ok {
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
