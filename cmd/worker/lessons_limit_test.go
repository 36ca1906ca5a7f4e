package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/sampleapi"
	"github.com/stepworker/stepworker/jobs"
)

// Held over several processes, a token arrives, and the API sees no more than
// the connector's rate limit, in whichever second one looks; one of the
// processes is drained on the way, and what it was to wake is woken.
func TestLessons_releaseStormRespectsTheRateLimit(t *testing.T) {
	if testing.Short() {
		t.Skip("worker processes")
	}
	t.Parallel()
	const processes, n, limit = 2, 600, 100
	w := newWorld(t)
	var mu sync.Mutex
	var came []time.Time
	seen := map[string]int{}
	api := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if id := r.Header.Get("Idempotency-Key"); id != "" {
			mu.Lock()
			came = append(came, time.Now())
			seen[id]++
			mu.Unlock()
		}
		w.api.ServeHTTP(rw, r)
	}))
	t.Cleanup(api.Close)
	dir := t.TempDir()
	err := os.WriteFile(filepath.Join(dir, "acme.yaml"), []byte(fmt.Sprintf(`connector: acme
base_url: "{{base}}"
auth: {type: oauth2, token_url: "{{base}}/oauth/token"}
parameters: [{name: base, target: merge_field, property: account}]
rate_limits: [{requests: %d, per: 1s, scope: connector}, {requests: 100000, per: 24h}]
methods: [{method: list, endpoint: /crm/contacts, idempotency_header: Idempotency-Key}]
`, limit)), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	var started []*process
	for range processes {
		started = append(started, w.launch(nil, "--connectors", dir, "--hook-hosts", "1"))
	}
	for _, p := range started {
		p.Ready(w.t)
	}
	access, refresh := w.api.Issue("c")
	w.putToken("c", "acme", sampleapi.ClientID, sampleapi.ClientSecret, api.URL, access, refresh)
	w.api.Revoke("c")
	w.putToken("c", "acme", sampleapi.ClientID, sampleapi.ClientSecret, api.URL, "", refresh)
	ids := w.enqueue(n, jobs.Step{CredentialID: "c", Method: "list"})
	w.until("all are held", func() bool {
		s := w.status("c")
		return s.State == credentials.Revoked && s.Waiting == n
	})
	access, refresh = w.api.Issue("c")
	w.putToken("c", "acme", sampleapi.ClientID, sampleapi.ClientSecret, api.URL, access, refresh)
	requests := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(came)
	}
	w.until("half of them ran", func() bool { return requests() >= n/2 })
	started[0].drain(w)
	w.succeed(ids)
	mu.Lock()
	defer mu.Unlock()
	slices.SortFunc(came, time.Time.Compare)
	most := func(window time.Duration) int {
		n, from := 0, 0
		for i := range came {
			for came[i].Sub(came[from]) >= window {
				from++
			}
			n = max(n, i-from+1)
		}
		return n
	}
	t.Logf("%d requests in %s, at most %d in a second", len(came), came[len(came)-1].Sub(came[0]), most(time.Second))
	const window = 800 * time.Millisecond // requests may be late on a busy test machine
	if got := most(window); got > limit {
		t.Errorf("%d requests in %s, the limit is %d in a second", got, window, limit)
	}
	if len(came) != n || len(seen) != n {
		t.Errorf("%d requests of %d executions, want %d", len(came), len(seen), n)
	}
}

// Three processes, three places for the calls of one credential; one process
// is killed while it holds some, one is drained. The API never sees four calls
// at once, and the places of the dead come back.
func TestLessons_maxConcurrentHoldsOverProcesses(t *testing.T) {
	if testing.Short() {
		t.Skip("asynq takes a minute to notice a dead worker")
	}
	t.Parallel()
	const n, places = 200, 3
	w := newWorld(t)
	var mu sync.Mutex
	now, most := 0, 0
	seen := map[string]int{}
	api := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		now++
		most = max(most, now)
		seen[r.Header.Get("Idempotency-Key")]++
		mu.Unlock()
		pause(r, 20*time.Millisecond)
		mu.Lock()
		now--
		mu.Unlock()
	}))
	t.Cleanup(api.Close)
	dir := t.TempDir()
	err := os.WriteFile(filepath.Join(dir, "acme.yaml"), []byte(fmt.Sprintf(`connector: acme
base_url: "{{base}}"
parameters: [{name: base, target: merge_field, property: account}]
max_concurrent: %d
methods: [{method: get, endpoint: /, idempotency_header: Idempotency-Key}]
`, places)), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"--connectors", dir, "--hook-hosts", "1", "--concurrency", "20"}
	dies := w.launch([]string{"STEPWORKER_KILL_AT=in-line#20"}, args...)
	drains, stays := w.launch(nil, args...), w.launch(nil, args...)
	for _, p := range []*process{dies, drains, stays} {
		p.Ready(w.t)
	}
	in, err := credentials.DecodeInput([]byte(fmt.Sprintf(`{"credential_id": "c", "connector": "acme", "properties": {"base": %q}}`, api.URL)))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.store.Put(t.Context(), in, false); err != nil {
		t.Fatal(err)
	}
	ids := w.enqueue(n, jobs.Step{CredentialID: "c", Method: "get"})
	<-dies.Done
	drains.drain(w)
	w.succeed(ids)
	mu.Lock()
	defer mu.Unlock()
	twice := 0
	for _, k := range seen {
		if k > 1 {
			twice++
		}
	}
	t.Logf("at most %d calls at once; %d executions were called again after the kill", most, twice)
	if most > places || len(seen) != n || twice > places {
		t.Errorf("at most %d calls at once, %d executions, %d of them twice; want %d, %d, at most %d", most, len(seen), twice, places, n, places)
	}
}
