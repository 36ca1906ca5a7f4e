package connectors_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/connectors/definition"
)

// Who is put off is so before a script of his ran or anything was sent; who may
// go is asked again right before his request, and each request counts.
func TestCall_pace(t *testing.T) {
	a := newAPI(t, `connector: acme
base_url: BASE
rate_limits: [{requests: 5, per: 1m}]
methods:
  - {method: plain, endpoint: /plain}
  - method: scripted
    endpoint: /scripted
    script: |
      function before_action() { http_request({url: 'BASE/own'}); }
  - {method: free, endpoint: /free, rate_limits: []}
`, nil)
	turn := time.Now().Add(time.Minute)
	off := func(at connectors.Pace) error {
		if at == connectors.PaceExtra {
			return nil
		}
		return &connectors.PaceError{Limit: definition.RateLimit{Requests: 5, Per: time.Minute, Scope: definition.ScopeCredential}, At: turn}
	}
	within := func(connectors.Pace) error { return nil }
	broken := func(connectors.Pace) error { return errors.New("redis is away") }
	cases := map[string]struct {
		method string
		answer func(connectors.Pace) error
		asked  []connectors.Pace
		sent   []string
	}{
		"plain":          {"plain", within, []connectors.Pace{connectors.PaceSend}, []string{"/plain"}},
		"plain, off":     {"plain", off, []connectors.Pace{connectors.PaceSend}, nil},
		"plain, broken":  {"plain", broken, []connectors.Pace{connectors.PaceSend}, nil},
		"scripted":       {"scripted", within, []connectors.Pace{connectors.PaceBegin, connectors.PaceExtra, connectors.PaceSend}, []string{"/own", "/scripted"}},
		"scripted, off":  {"scripted", off, []connectors.Pace{connectors.PaceBegin}, nil},
		"without limits": {"free", within, []connectors.Pace{connectors.PaceSend}, []string{"/free"}}, // a pause after a 429 holds it, too
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			before := len(a.requests())
			var asked []connectors.Pace
			_, err := a.call(c.method, func(call *connectors.Call) {
				call.Pacer = func(_ context.Context, at connectors.Pace) error {
					asked = append(asked, at)
					return c.answer(at)
				}
			})
			if diff := cmp.Diff(c.asked, asked); diff != "" {
				t.Error(diff)
			}
			var sent []string
			for _, r := range a.requests()[before:] {
				sent = append(sent, r.URI)
			}
			if diff := cmp.Diff(c.sent, sent); diff != "" {
				t.Error(diff)
			}
			var ce *connectors.CallError
			var fault *connectors.PacerError
			switch errors.As(err, &ce); {
			case c.sent != nil && err != nil, c.sent == nil && err == nil:
				t.Errorf("error %v", err)
			case ce != nil && (!ce.TurnAt.Equal(turn) || !ce.Defer || ce.Ran || ce.Kind != "rate"):
				t.Errorf("%+v", ce)
			case name == "plain, broken" && !errors.As(err, &fault):
				t.Errorf("error %T %v", err, err)
			}
		})
	}
}
