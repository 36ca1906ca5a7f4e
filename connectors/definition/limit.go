package definition

import (
	"fmt"
	"strconv"
	"time"

	"go.yaml.in/yaml/v4"
)

// RateLimit is how many requests an API takes in any stretch of time that long.
type RateLimit struct {
	Requests int
	Per      time.Duration
	Scope    string // ScopeCredential or ScopeConnector
	Method   string // whose own it is; "" is the connector's
}

// Scopes of a rate limit: each credential's requests are counted by themselves,
// or those of all credentials of the connector together.
const (
	ScopeCredential = "credential"
	ScopeConnector  = "connector"
)

const (
	minPer      = time.Millisecond
	maxPer      = 31 * 24 * time.Hour
	maxRequests = 1_000_000_000
)

// String is the limit as errors and logs tell it.
func (l RateLimit) String() string {
	of := "each credential"
	switch {
	case l.Scope == ScopeConnector && l.Method != "":
		of = fmt.Sprintf("all credentials' calls of method %q", l.Method)
	case l.Scope == ScopeConnector:
		of = "all credentials together"
	case l.Method != "":
		of = fmt.Sprintf("each credential's calls of method %q", l.Method)
	}
	noun := "requests"
	if l.Requests == 1 {
		noun = "request"
	}
	return fmt.Sprintf("%d %s per %s for %s", l.Requests, noun, l.Per, of)
}

// rateLimits reads limits. Two of one scope and one length of time would be
// one limit with two numbers.
func (p *fileParser) rateLimits(into *[]RateLimit) func(*yaml.Node) {
	return func(n *yaml.Node) {
		*into = []RateLimit{}
		p.sequence(n, func(n *yaml.Node) {
			l := RateLimit{Scope: ScopeCredential}
			got := p.mapping(n, "a rate limit", keys{
				"requests": func(n *yaml.Node) {
					i, err := strconv.Atoi(n.Value)
					if err != nil || i < 1 || i > maxRequests {
						p.find(n, "requests: a whole number of 1 or more is needed, not %q", n.Value)
					}
					l.Requests = i
				},
				"per": func(n *yaml.Node) {
					d, err := time.ParseDuration(n.Value)
					if err != nil || d < minPer || d > maxPer {
						p.find(n, "per: a duration such as 1s, 1m or 24h is needed, of 1ms to 744h (31 days), not %q", n.Value)
					}
					l.Per = d
				},
				"scope": p.enum(&l.Scope, []string{ScopeCredential, ScopeConnector}),
			})
			for _, k := range []string{"requests", "per"} {
				if got[k] == nil && n.Kind == yaml.MappingNode {
					p.find(n, "a rate limit: key %q is missing", k)
				}
			}
			for _, other := range *into {
				if other.Scope == l.Scope && other.Per == l.Per {
					p.find(n, "two rate limits per %s of scope %s: the smaller number is enough", l.Per, l.Scope)
				}
			}
			*into = append(*into, l)
		})
	}
}

// limitsOf gives a method its limits: its own in place of the connector's,
// also if its list is empty.
func (p *fileParser) limitsOf(m *Method) {
	if m.RateLimits == nil {
		m.RateLimits = p.def.RateLimits
		return
	}
	for i := range m.RateLimits {
		m.RateLimits[i].Method = m.Name
	}
}
