package connectors

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// dateText is how a date is written where nobody asks for another form: it is
// to mean something in a script's template literal and in a query alike.
func dateText(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

// dateTokens are the custom date format specifiers of .NET, as Go writes them.
// A run of a letter that is not here stands for itself.
var dateTokens = map[string]string{
	"yyyy": "2006", "yy": "06", "MMMM": "January", "MMM": "Jan", "MM": "01", "M": "1", "dddd": "Monday", "ddd": "Mon", "dd": "02", "d": "2",
	"HH": "15", "hh": "03", "h": "3", "mm": "04", "m": "4", "ss": "05", "s": "5", "tt": "PM", "zzz": "-07:00",
}

// formatDate writes a date in a .NET format such as yyyy-MM-ddTHH:mm:ssZ.
// What stands in quotes or after a backslash is literal.
func formatDate(t time.Time, format string) string {
	t = t.UTC()
	var b strings.Builder
	for format != "" {
		c := format[0]
		n := 1
		for n < len(format) && format[n] == c {
			n++
		}
		token := format[:n]
		switch layout, ok := dateTokens[token]; {
		case c == '\'' || c == '"':
			text, rest, closed := strings.Cut(format[1:], string(c))
			if b.WriteString(text); !closed {
				return b.String()
			}
			format = rest
			continue
		case c == '\\' && len(format) > 1:
			b.WriteByte(format[1])
			format = format[2:]
			continue
		case ok:
			b.WriteString(t.Format(layout))
		case token == "H":
			fmt.Fprint(&b, t.Hour())
		case c == 'f' && n <= 7:
			b.WriteString(fmt.Sprintf("%09d", t.Nanosecond())[:n])
		default:
			b.WriteString(token)
		}
		format = format[n:]
	}
	return b.String()
}

// readDate reads the date that a script left: text, or a Date, which JSON
// writes as text.
func readDate(raw json.RawMessage) (time.Time, bool) {
	var text string
	if json.Unmarshal(raw, &text) != nil {
		return time.Time{}, false
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02T15:04", "2006-01-02", time.RFC1123, time.RFC1123Z} {
		if t, err := time.Parse(layout, strings.TrimSpace(text)); err == nil {
			return t.UTC(), true
		}
	}
	return time.Time{}, false
}
