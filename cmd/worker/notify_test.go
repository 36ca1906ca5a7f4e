package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/jobs"
)

// kill -9 of the worker that is about to tell, or has just told: another one
// tells, and what is told twice has one id.
func TestNotices_killedSender(t *testing.T) {
	if testing.Short() {
		t.Skip("worker processes")
	}
	t.Parallel()
	for point, posts := range map[string]int{"notice-before-post": 1, "notice-posted": 2} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			secret := "whsec_" + credentials.NewKey()
			hook, err := standardwebhooks.NewWebhook(secret)
			if err != nil {
				t.Fatal(err)
			}
			var mu sync.Mutex
			var ids []string
			receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				if err := hook.Verify(body, r.Header); err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				ids = append(ids, r.Header.Get("webhook-id"))
			}))
			t.Cleanup(receiver.Close)
			w.env = []string{"STEPWORKER_NOTIFY_URL=" + receiver.URL, "STEPWORKER_NOTIFY_SECRET=" + secret}
			first := w.start(point)
			w.put("c", "crm")
			w.api.Revoke("c")
			w.enqueue(30, jobs.Step{CredentialID: "c", Method: "list_contacts"})
			select {
			case <-first.Done:
			case <-time.After(time.Minute):
				t.Fatal("the worker was not killed")
			}
			w.start("")
			w.until("nothing is left to be told", func() bool {
				n, err := w.rdb.Exists(t.Context(), "stepworker:cred:{c}:notices").Result()
				return err == nil && n == 0
			})
			mu.Lock()
			defer mu.Unlock()
			if len(ids) != posts || ids[0] == "" || ids[0] != ids[len(ids)-1] {
				t.Errorf("told %q, want %d posts of one notice", ids, posts)
			}
		})
	}
}
