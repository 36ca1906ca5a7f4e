package connectors

import (
	"net/http"
	"testing"
	"time"
)

func TestSkewOf(t *testing.T) {
	sent := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	got := sent.Add(10 * time.Second)
	cases := map[string]struct {
		date, age string
		skew      time.Duration
		ok        bool
	}{
		"none":                      {"", "", 0, false},
		"no date":                   {"yesterday", "", 0, false},
		"as it was sent":            {"Sat, 28 Nov 2026 12:00:00 GMT", "", 0, true},
		"while it was answered":     {"Sat, 28 Nov 2026 12:00:07 GMT", "", 0, true},
		"a second before":           {"Sat, 28 Nov 2026 11:59:59 GMT", "", 0, true},
		"a second after":            {"Sat, 28 Nov 2026 12:00:11 GMT", "", 0, true},
		"two seconds after":         {"Sat, 28 Nov 2026 12:00:12 GMT", "", 2 * time.Second, true},
		"a minute behind":           {"Sat, 28 Nov 2026 11:59:00 GMT", "", -time.Minute, true},
		"an hour ahead":             {"Sat, 28 Nov 2026 13:00:10 GMT", "", time.Hour, true},
		"an hour ahead, RFC 850":    {"Saturday, 28-Nov-26 13:00:10 GMT", "", time.Hour, true},
		"a day ahead":               {"Sun, 29 Nov 2026 12:00:10 GMT", "", 24 * time.Hour, true},
		"more than a day ahead":     {"Sun, 29 Nov 2026 12:00:11 GMT", "", 0, false},
		"the beginning of all time": {"Thu, 01 Jan 1970 00:00:00 GMT", "", 0, false},
		"out of a cache":            {"Sat, 28 Nov 2026 11:00:00 GMT", "3600", 0, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			h := http.Header{}
			for k, v := range map[string]string{"Date": c.date, "Age": c.age} {
				if v != "" {
					h.Set(k, v)
				}
			}
			if skew, ok := skewOf(h, sent, got); skew != c.skew || ok != c.ok {
				t.Errorf("got %s, %t", skew, ok)
			}
		})
	}
}
