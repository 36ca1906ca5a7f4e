package connectors

import (
	"net/http"
	"time"
)

// The provider's clock, as far as it matters: less is the grain of a Date
// header (RFC 9110 section 6.6.1, whole seconds) and of the network, more is no
// clock that anybody keeps.
const (
	leastSkew = 2 * time.Second
	mostSkew  = 24 * time.Hour
)

// Skew is how far the clock of a connector's token endpoint or login was ahead
// of ours when it last answered; negative: behind. 0 where it agrees with ours
// or has not answered yet. A time that the provider is to believe is
// time.Now().Add(Skew).
func (c *Caller) Skew(connector string) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.skews[connector]
}

// learnClock takes the Date of an answer to a request that was sent then, and
// returns the skew. An answer without a usable one changes nothing.
func (c *Caller) learnClock(connector string, answer http.Header, sent time.Time) time.Duration {
	skew, ok := skewOf(answer, sent, time.Now())
	if !ok {
		return c.Skew(connector)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.skews[connector] = skew
	return skew
}

// skewOf measures against the nearer end of the request: the server wrote its
// Date somewhere in between.
func skewOf(answer http.Header, sent, got time.Time) (skew time.Duration, ok bool) {
	date, err := http.ParseTime(answer.Get("Date"))
	if err != nil || answer.Get("Age") != "" { // what a cache kept tells its own age
		return 0, false
	}
	switch {
	case date.After(got):
		skew = date.Sub(got)
	case date.Before(sent):
		skew = date.Sub(sent)
	}
	switch size := skew.Abs(); {
	case size < leastSkew:
		return 0, true
	case size > mostSkew:
		return 0, false
	}
	return skew.Round(time.Second), true
}
