package connectors_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/hooks"
)

// What an event's scripts see, and where what they write has an effect, is
// what hooks.Data says: each event's handler lists its globals, writes them
// all, and throws.
func TestGlobals_areThoseOfHooksData(t *testing.T) {
	for _, event := range hooks.EventNames {
		t.Run(event, func(t *testing.T) {
			var got [2][]string // seen, written
			status := 200
			if event == "after_error" {
				status = 500
			}
			a := newAPI(t, fmt.Sprintf(`
connector: acme
base_url: BASE
auth: {type: oauth2, token_url: BASE/token, authorize_url: BASE/authorize, grant: %s}
script: |
  function %s() {
    var names = Object.keys(globalThis).filter(function (n) { return typeof globalThis[n] !== 'function' });
    console.log(JSON.stringify(names));
    names.forEach(function (n) { globalThis[n] = {written: n} });
    throw 'enough';
  }
methods:
  - {method: get, endpoint: /things}
  - {method: hook, type: webhook}
`, grantOf(event), event), func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, status, `{"access_token":"another-token"}`) },
				func(cfg *connectors.CallerConfig) {
					cfg.Trace = &connectors.Trace{Secret: func(connectors.NamedSecret) {}, Event: func(e connectors.TracedEvent) {
						if len(e.Logs) != 1 {
							t.Fatalf("%s was traced, with %d lines: %v", e.Name, len(e.Logs), e.Err)
						}
						if err := json.Unmarshal([]byte(e.Logs[0]), &got[0]); err != nil {
							t.Fatal(err)
						}
						for _, c := range e.Changes {
							got[1] = append(got[1], c.Name)
						}
					}}
				})
			a.Cred.Secrets.ClientID = "the-client"
			withToken(a.Cred, "first-token", "first-refresh")
			switch {
			case event == "before_oauth2_authorise":
				if _, err := a.Caller.Authorize(t.Context(), a.Def, a.Cred, redirectURL); err == nil {
					t.Error("nothing was thrown")
				}
			case strings.Contains(event, "_oauth2_"):
				if strings.HasSuffix(event, "_token") {
					withToken(a.Cred, "first-token", "")
				}
				_, _ = refresh(t, a, credentials.OAuth2) // a token that is thrown at is kept all the same
			case strings.HasSuffix(event, "_webhook"):
				a.fails("hook", withWebhook(connectors.Webhook{}))
			default:
				a.fails("get")
			}
			var want [2][]string
			for _, d := range hooks.Data {
				if slices.Contains(d.Events, event) {
					want[0] = append(want[0], d.Name)
				}
				if slices.Contains(d.Writes, event) {
					want[1] = append(want[1], d.Name)
				}
			}
			for i, what := range []string{"globals", "globals that can be written"} {
				for _, names := range []*[]string{&want[i], &got[i]} {
					slices.Sort(*names)
				}
				if diff := cmp.Diff(want[i], got[i]); diff != "" {
					t.Errorf("%s (-hooks.Data +passed):\n%s", what, diff)
				}
			}
		})
	}
}

// grantOf is a grant whose token request fires an event.
func grantOf(event string) string {
	if strings.HasSuffix(event, "_oauth2_token") {
		return "client_credentials"
	}
	return "authorization_code"
}
