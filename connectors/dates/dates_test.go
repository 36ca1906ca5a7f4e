package dates

import (
	"encoding/json"
	"testing"
	"time"
)

func TestFormatDate(t *testing.T) {
	at := time.Date(2026, 3, 5, 16, 7, 9, 45_600_000, time.UTC)
	for format, want := range map[string]string{
		"yyyy-MM-ddTHH:mm:ssZ":          "2026-03-05T16:07:09Z",
		"yyyy-MM-dd HH:mm:ss.fff":       "2026-03-05 16:07:09.045",
		"dd/MM/yy":                      "05/03/26",
		"d.M.yyyy H:m:s":                "5.3.2026 16:7:9",
		"ddd, dd MMM yyyy HH:mm:ss":     "Thu, 05 Mar 2026 16:07:09",
		"dddd d MMMM":                   "Thursday 5 March",
		"h:mm tt":                       "4:07 PM",
		"hh:mm:ss.ff":                   "04:07:09.04",
		"yyyy-MM-ddTHH:mm:sszzz":        "2026-03-05T16:07:09+00:00",
		"'day' dd \"of the year\" yyyy": "day 05 of the year 2026",
		`yyyy\yMM`:                      "2026y03",
		"'not closed":                   "not closed",
		"":                              "",
	} {
		if got := Format(at, format); got != want {
			t.Errorf("%s: got %s, want %s", format, got, want)
		}
	}
	if got := Format(time.Date(2026, 3, 5, 9, 0, 0, 0, time.FixedZone("", 3600)), "H:mm"); got != "8:00" {
		t.Errorf("in UTC: got %s", got)
	}
}

func TestReadDate(t *testing.T) {
	for raw, want := range map[string]string{
		`"2026-11-25T10:00:00Z"`:          "2026-11-25T10:00:00Z",
		`"2026-11-25T10:00:00.123Z"`:      "2026-11-25T10:00:00Z",
		`"2026-11-25T10:00:00+02:00"`:     "2026-11-25T08:00:00Z",
		`"2026-11-25T10:00:00"`:           "2026-11-25T10:00:00Z",
		`"2026-11-25"`:                    "2026-11-25T00:00:00Z",
		`"Wed, 25 Nov 2026 10:00:00 GMT"`: "2026-11-25T10:00:00Z",
		`"soon"`:                          "",
		`1764064800`:                      "",
		`{}`:                              "",
	} {
		got := ""
		if at, ok := FromJSON(json.RawMessage(raw)); ok {
			got = Text(at)
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", raw, got, want)
		}
	}
}

func TestReadFormat(t *testing.T) {
	cases := map[string]struct{ text, format, want string }{
		"numbers":                 {"05/03/26 4:07:09", "dd/MM/yy H:m:s", "2026-03-05T04:07:09Z"},
		"the last century":        {"05/03/85", "dd/MM/yy", "1985-03-05T00:00:00Z"},
		"names in any case":       {"thu, 05 MAR 2026", "ddd, dd MMM yyyy", "2026-03-05T00:00:00Z"},
		"long names":              {"Thursday 5 March 2026", "dddd d MMMM yyyy", "2026-03-05T00:00:00Z"},
		"noon":                    {"2026-03-05 12:30 PM", "yyyy-MM-dd hh:mm tt", "2026-03-05T12:30:00Z"},
		"midnight":                {"2026-03-05 12:30 am", "yyyy-MM-dd hh:mm tt", "2026-03-05T00:30:00Z"},
		"a fraction":              {"2026-03-05T16:07:09.045Z", "yyyy-MM-ddTHH:mm:ss.fffZ", "2026-03-05T16:07:09.045Z"},
		"a zone":                  {"2026-03-05T16:07:09+02:00", "yyyy-MM-ddTHH:mm:sszzz", "2026-03-05T14:07:09Z"},
		"no zone but Z":           {"2026-03-05T16:07:09Z", "yyyy-MM-ddTHH:mm:sszzz", "2026-03-05T16:07:09Z"},
		"literals":                {"day 05 of 2026, y3", "'day' dd \"of\" yyyy, \\yM", "2026-03-05T00:00:00Z"},
		"without separators":      {"20260305160709", "yyyyMMddHHmmss", "2026-03-05T16:07:09Z"},
		"a day that is not":       {"30/02/2026", "dd/MM/yyyy", ""},
		"an hour that is not":     {"2026-03-05 24", "yyyy-MM-dd HH", ""},
		"13 o'clock":              {"2026-03-05 13 PM", "yyyy-MM-dd hh tt", ""},
		"something behind it":     {"05/03/2026x", "dd/MM/yyyy", ""},
		"too short":               {"05/03", "dd/MM/yyyy", ""},
		"no year":                 {"16:07", "HH:mm", ""},
		"a zone that is cut":      {"2026-03-05+02", "yyyy-MM-ddzzz", ""},
		"nothing":                 {"", "yyyy", ""},
		"a fraction of two words": {"2026.12", "yyyy.fff", ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got := ""
			if at, ok := ParseAs(c.text, c.format); ok {
				got = at.Format(time.RFC3339Nano)
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
