package connectors

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
		if got := formatDate(at, format); got != want {
			t.Errorf("%s: got %s, want %s", format, got, want)
		}
	}
	if got := formatDate(time.Date(2026, 3, 5, 9, 0, 0, 0, time.FixedZone("", 3600)), "H:mm"); got != "8:00" {
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
		if at, ok := readDate(json.RawMessage(raw)); ok {
			got = dateText(at)
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", raw, got, want)
		}
	}
}
