package definition_test

import (
	"testing"
	"time"

	"github.com/stepworker/stepworker/internal/definitiontest"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/connectors/definition"
)

func TestCheck_rateLimits(t *testing.T) {
	const head = "connector: acme\nbase_url: https://acme.example\nrate_limits: "
	const methods = "\nmethods: [{method: m, endpoint: /a}]\n"
	const number, duration = "requests: a whole number of 1 or more is needed, not ", "per: a duration such as 1s, 1m or 24h is needed, of 1ms to 744h (31 days), not "
	cases := map[string]struct{ file, want string }{
		"none requests":        {head + "[{requests: 0, per: 1m}]" + methods, "3:26: " + number + `"0"`},
		"half a request":       {head + "[{requests: 1.5, per: 1m}]" + methods, "3:26: " + number + `"1.5"`},
		"no time":              {head + "[{requests: 1, per: 0s}]" + methods, "3:34: " + duration + `"0s"`},
		"time that goes back":  {head + "[{requests: 1, per: -1m}]" + methods, "3:34: " + duration + `"-1m"`},
		"too long":             {head + "[{requests: 1, per: 745h}]" + methods, "3:34: " + duration + `"745h"`},
		"a month":              {head + "[{requests: 1, per: month}]" + methods, "3:34: " + duration + `"month"`},
		"unknown scope":        {head + "[{requests: 1, per: 1m, scope: connecter}]" + methods, `3:45: "connecter" is none of credential, connector; did you mean "connector"?`},
		"unknown key":          {head + "[{requests: 1, per: 1m, burst: 5}]" + methods, `3:38: unknown key "burst"`},
		"no number":            {head + "[{per: 1m}]" + methods, `3:15: a rate limit: key "requests" is missing`},
		"no duration":          {head + "[{requests: 1}]" + methods, `3:15: a rate limit: key "per" is missing`},
		"not a list":           {head + "{requests: 1, per: 1m}" + methods, "3:14: a list is needed here"},
		"twice the same":       {head + "[{requests: 1, per: 60s}, {requests: 2, per: 1m, scope: credential}]" + methods, "3:40: two rate limits per 1m0s of scope credential: the smaller number is enough"},
		"a method's":           {"connector: acme\nbase_url: https://acme.example\nmethods: [{method: m, endpoint: /a, rate_limits: [{requests: -1, per: 1m}]}]\n", "3:62: " + number + `"-1"`},
		"a webhook sends none": {"connector: acme\nbase_url: https://acme.example\nmethods: [{method: m, type: webhook, rate_limits: [{requests: 1, per: 1m}]}]\n", "3:38: rate_limits has no meaning for a method of type webhook"},
		"several":              {head + "[{requests: 100, per: 1m}, {requests: 10, per: 1s}, {requests: 100000, per: 24h, scope: connector}]" + methods, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var want []string
			if c.want != "" {
				want = []string{c.want}
			}
			if diff := cmp.Diff(want, definitiontest.Check(t, c.file)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestLoad_aMethodsLimitsReplaceTheConnectors(t *testing.T) {
	d := definitiontest.Load(t, `connector: acme
base_url: https://acme.example
methods:
  - {method: plain, endpoint: /a}
  - {rate_limits: [{requests: 1, per: 1s, scope: connector}], method: own, endpoint: /a}
  - {method: none, endpoint: /a, rate_limits: []}
rate_limits: [{requests: 100, per: 1m}]
`)
	got := map[string][]definition.RateLimit{}
	for _, name := range d.MethodNames {
		got[name] = d.Methods[name].RateLimits
	}
	want := map[string][]definition.RateLimit{
		"plain": {{Requests: 100, Per: time.Minute, Scope: definition.ScopeCredential}},
		"own":   {{Requests: 1, Per: time.Second, Scope: definition.ScopeConnector, Method: "own"}},
		"none":  {},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
