package jobs_test

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/jobs"
)

// putNearExpiry puts a token that is still good, and is to be renewed ahead.
func (h *house) putNearExpiry(id, refresh string) {
	h.t.Helper()
	h.put(map[string]any{"credential_id": id, "connector": "own", "client_id": "client",
		"oauth2": map[string]any{"access_token": "access-token-0", "refresh_token": refresh, "expires_in": 20}})
	// Three quarters and more of its life are over.
	ctx := context.Background()
	expiry, err := h.rdb.HGet(ctx, "stepworker:cred:{"+id+"}", "expiry").Int64()
	if err != nil {
		h.t.Fatal(err)
	}
	h.rdb.HSet(ctx, "stepworker:cred:{"+id+"}", "expiry", expiry+90_000, "issued", expiry-600_000)
}

// A refresh ahead of expiry that fails harms nobody as long as the token is
// good, and is not asked for by each call.
func TestAhead_aFailureHarmsNobody(t *testing.T) {
	for name, answer := range map[string]struct {
		status  int
		body    string
		settled func(*credentials.Status) bool
	}{
		"the client is refused": {401, `{"error":"invalid_client"}`, func(s *credentials.Status) bool { return s.State == credentials.Misconfigured }},
		"the endpoint is gone":  {404, ``, func(s *credentials.Status) bool { return s.State == credentials.Misconfigured }},
		"busy":                  {503, ``, func(s *credentials.Status) bool { return s.NextTry != nil }},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int64
			h := newHouse(t, withConnector(t, tokened))
			h.url = serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/token" {
					asked.Add(1)
					w.Header().Set("Retry-After", "60")
					w.WriteHeader(answer.status)
					_, _ = w.Write([]byte(answer.body))
					return
				}
				_, _ = w.Write([]byte(`{}`))
			})
			h.putNearExpiry("used", "refresh-token")
			h.succeed(h.enqueue(20, jobs.Step{CredentialID: "used", Method: "m"}))
			h.until("it has failed", func() bool {
				s, err := h.store.Status(context.Background(), "used")
				return err == nil && answer.settled(s)
			})
			for id, r := range h.results(h.enqueue(50, jobs.Step{CredentialID: "used", Method: "m"})) {
				if r.Status != jobs.Succeeded || r.Refreshes != 0 || r.Attempts != 1 {
					t.Errorf("%s waited: %+v", id, r)
				}
			}
			h.until("nothing is under way", func() bool { return h.rdb.LLen(context.Background(), "asynq:{refresh}:active").Val() == 0 })
			if asked.Load() != 1 {
				t.Errorf("%d token requests, want 1", asked.Load())
			}
		})
	}
}

// A token in use is renewed before it expires, once, and nobody waits for it;
// one that nobody uses is left alone.
func TestAhead_onlyWhatIsUsedAndNobodyWaits(t *testing.T) {
	var asked atomic.Int64
	slow, hang := make(chan struct{}), make(chan struct{})
	h := newHouse(t, withConnector(t, tokened))
	h.url = serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			if asked.Add(1) == 1 {
				close(slow)
				<-hang
			}
			_, _ = fmt.Fprintf(w, `{"access_token":"access-token-%d","expires_in":3600}`, asked.Load())
			return
		}
		_, _ = w.Write([]byte(`{}`))
	})
	h.putNearExpiry("used", "refresh-token")
	h.putNearExpiry("unused", "refresh-token")
	h.putNearExpiry("alone", "") // a person has to renew it
	h.succeed(h.enqueue(20, jobs.Step{CredentialID: "used", Method: "m"}))
	h.succeed(h.enqueue(20, jobs.Step{CredentialID: "alone", Method: "m"}))
	<-slow // it is under way
	for id, r := range h.results(h.enqueue(20, jobs.Step{CredentialID: "used", Method: "m"})) {
		if r.Status != jobs.Succeeded || r.Refreshes != 0 || r.Attempts != 1 {
			t.Errorf("%s waited: %+v", id, r)
		}
	}
	close(hang)
	h.until("it is renewed", func() bool {
		s, err := h.store.Status(context.Background(), "used")
		return err == nil && s.Version == 2
	})
	h.succeed(h.enqueue(20, jobs.Step{CredentialID: "used", Method: "m"}))
	if asked.Load() != 1 {
		t.Errorf("%d token requests, want 1", asked.Load())
	}
}
