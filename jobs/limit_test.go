package jobs_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/sampleapi"
	"github.com/stepworker/stepworker/jobs"
)

// meter stands before an API and notes when its requests come.
type meter struct {
	url string

	mu   sync.Mutex
	came map[string][]time.Time // by credential, from the path
	ids  []string               // executions, in order
}

func newMeter(t *testing.T, next http.Handler) *meter {
	m := &meter{came: map[string][]time.Time{}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if who := r.Header.Get("X-Who"); who != "" {
			m.mu.Lock()
			m.came[who] = append(m.came[who], time.Now())
			m.ids = append(m.ids, r.Header.Get("Idempotency-Key"))
			m.mu.Unlock()
		}
		next.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	m.url = server.URL
	return m
}

// of is when a credential's requests came, all credentials' without a name.
func (m *meter) of(who ...string) []time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []time.Time
	for name, at := range m.came {
		if len(who) == 0 || slices.Contains(who, name) {
			all = append(all, at...)
		}
	}
	slices.SortFunc(all, time.Time.Compare)
	return all
}

// most is the largest number of them in any stretch of time that long.
func most(at []time.Time, per time.Duration) int {
	n, from := 0, 0
	for i := range at {
		for at[i].Sub(at[from]) >= per {
			from++
		}
		n = max(n, i-from+1)
	}
	return n
}

// limited is a house whose connectors are these, their API seen by a meter.
func limited(t *testing.T, change func(*jobs.PoolConfig), files ...string) (*house, *meter) {
	t.Helper()
	dir := t.TempDir()
	for i, f := range files {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d.yaml", i)), []byte(f), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	catalog, findings, err := definition.Load(dir)
	if err != nil || len(findings) > 0 {
		t.Fatal(err, findings)
	}
	h := newHouse(t, func(c *jobs.PoolConfig) {
		c.Catalog = catalog
		if change != nil {
			change(c)
		}
	})
	m := newMeter(t, h.api)
	h.url = m.url
	return h, m
}

// window is a second but for the time by which requests may be late on a busy
// test machine. TestLimitScript_noWindowHasMore is exact.
const window = 800 * time.Millisecond

const limitedHead = `connector: acme
base_url: "{{base}}"
headers: {X-Who: "{{who}}"}
parameters:
  - {name: base, target: merge_field, property: account}
  - {name: who, target: merge_field, property: account}
`

func (h *house) putWho(ids ...string) {
	h.t.Helper()
	for _, id := range ids {
		h.put(map[string]any{"credential_id": id, "connector": "acme", "properties": map[string]any{"who": id}})
	}
}

// deferrals counts how often each execution was put off.
func (h *house) deferrals() (most int, all map[string]int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	all = map[string]int{}
	for _, m := range h.moments {
		if m.What == "deferred" {
			all[m.ExecutionID]++
			most = max(most, all[m.ExecutionID])
		}
	}
	return most, all
}

// The release storm: many held, a new token is put, and they run at the pace
// that the limit allows, in about their order, each put off a few times at
// most.
func TestLimit_releasedExecutionsRunAtItsPace(t *testing.T) {
	t.Parallel()
	const n, limit = 400, 100
	h, m := limited(t, nil, limitedHead+fmt.Sprintf(`auth: {type: oauth2, token_url: "{{base}}/oauth/token", refresh_on: [403]}
rate_limits: [{requests: %d, per: 1s}]
methods: [{method: list, endpoint: /crm/contacts, idempotency_header: Idempotency-Key}]
`, limit))
	put := func() {
		access, refresh := h.api.Issue("c")
		h.put(map[string]any{"credential_id": "c", "connector": "acme", "client_id": sampleapi.ClientID, "client_secret": sampleapi.ClientSecret,
			"properties": map[string]any{"who": "c"}, "oauth2": map[string]any{"access_token": access, "refresh_token": refresh, "expires_in": 3600}})
	}
	put()
	h.api.Revoke("c")
	ids := h.enqueue(n, jobs.Step{CredentialID: "c", Method: "list"})
	h.until("all are held", func() bool {
		s, err := h.store.Status(context.Background(), "c")
		return err == nil && s.State == credentials.Revoked && s.Waiting == n
	})
	before := len(m.of())
	put()
	h.succeed(ids)
	at := m.of()[before:]
	if len(at) != n {
		t.Errorf("%d requests for %d executions", len(at), n)
	}
	if got := most(at, window); got > limit {
		t.Errorf("%d requests in %s, the limit is %d in a second", got, window, limit)
	}
	m.mu.Lock()
	order := m.ids[before:]
	m.mu.Unlock()
	far, first, second := 0, 0, 0 // from its place, and sums of places
	for i, id := range ids {
		place := slices.Index(order, id)
		far = max(far, place-i, i-place)
		if i < n/2 {
			first += place
		} else {
			second += place
		}
	}
	if second-first < n*n/6 { // in order it is n²/4, in none 0
		t.Errorf("they did not run in about their order: one was %d places away", far)
	}
	took := at[n-1].Sub(at[0])
	off, all := h.deferrals()
	total := 0
	for _, n := range all {
		total += n
	}
	t.Logf("%d ran in %s, at most %d in a second; %d were put off, %d times in all, one at most %d times; one was %d places from its own", n, took, most(at, time.Second), len(all), total, off, far)
	if total > 3*n {
		t.Errorf("%d deferrals of %d executions", total, n)
	}
}

func TestLimit_severalScopesHoldTogether(t *testing.T) {
	t.Parallel()
	h, m := limited(t, nil, limitedHead+`rate_limits:
  - {requests: 30, per: 1s, scope: credential}
  - {requests: 40, per: 1s, scope: connector}
methods: [{method: get, endpoint: /plain}]
`)
	h.putWho("a", "b")
	ids := h.enqueue(100, jobs.Step{CredentialID: "a", Method: "get"})
	ids = append(ids, h.enqueue(20, jobs.Step{CredentialID: "b", Method: "get"})...)
	h.succeed(ids)
	for who, limit := range map[string]int{"a": 30, "b": 30} {
		if got := most(m.of(who), window); got > limit {
			t.Errorf("%s: %d requests in %s, the limit is %d in a second", who, got, window, limit)
		}
	}
	if got := most(m.of(), window); got > 40 {
		t.Errorf("%d requests in %s, the limit is 40 in a second", got, window)
	}
	// What a waits for, b does not.
	if a, b := m.of("a"), m.of("b"); !b[len(b)-1].Before(a[len(a)-1]) {
		t.Errorf("b's last request came at %s, after a's", b[len(b)-1])
	}
}

// A deferred execution says when its turn is; who has other limits, or none,
// is not held back with it.
func TestLimit_saysWhenItsTurnIs(t *testing.T) {
	h, m := limited(t, nil, limitedHead+`rate_limits: [{requests: 2, per: 10m}]
methods:
  - {method: get, endpoint: /plain}
  - {method: own, endpoint: /plain, rate_limits: [{requests: 1, per: 1h, scope: connector}]}
  - {method: free, endpoint: /plain, rate_limits: []}
`)
	h.putWho("a", "b")
	h.succeed(h.enqueue(2, jobs.Step{CredentialID: "a", Method: "get"}))
	third := h.enqueue(1, jobs.Step{CredentialID: "a", Method: "get"})[0]
	var s *jobs.ExecutionStatus
	h.until("it is deferred", func() bool {
		var err error
		s, err = h.client.Status(context.Background(), third)
		return err == nil && s.Status == "deferred"
	})
	if turn := fmt.Sprintf("its turn is at %s", s.NextTry.UTC().Format("2006-01-02T15:04:05.000Z")); !strings.Contains(s.WaitsFor, turn) {
		t.Errorf("it waits for %q, want %q in it", s.WaitsFor, turn)
	}
	if wait := time.Until(s.NextTry.Time); wait < 9*time.Minute || wait > 11*time.Minute {
		t.Errorf("its turn is in %s", wait)
	}
	// Others are not concerned.
	h.succeed(h.enqueue(2, jobs.Step{CredentialID: "b", Method: "get"}))
	h.succeed(h.enqueue(1, jobs.Step{CredentialID: "a", Method: "own"}))
	h.succeed(h.enqueue(5, jobs.Step{CredentialID: "a", Method: "free"}))
	own := h.enqueue(1, jobs.Step{CredentialID: "b", Method: "own"})[0]
	h.until("the method's own limit is that of all credentials", func() bool {
		s, err := h.client.Status(context.Background(), own)
		return err == nil && s.Status == "deferred"
	})
	if got := len(m.of()); got != 10 {
		t.Errorf("%d requests, want 10", got)
	}
}

// A call that fails before it is sent gives its place back: the limit's only
// request is there for the next.
func TestLimit_whatIsNotSentDoesNotCount(t *testing.T) {
	h, m := limited(t, nil, limitedHead+`rate_limits: [{requests: 1, per: 10m, scope: connector}]
script: |
  function before_action() { if (method_name === 'bad') throw 'no'; return true; }
methods:
  - {method: bad, endpoint: /plain}
  - {method: get, endpoint: /plain}
`)
	h.putWho("a")
	for range 3 { // one after the other: who comes meanwhile has a turn of his own
		id := h.enqueue(1, jobs.Step{CredentialID: "a", Method: "bad"})[0]
		if r := h.results([]string{id})[id]; r.Status != jobs.Failed || r.Error.Kind != jobs.KindScript {
			t.Errorf("%s: %s %+v", id, r.Status, r.Error)
		}
	}
	h.succeed(h.enqueue(1, jobs.Step{CredentialID: "a", Method: "get"}))
	if got := len(m.of()); got != 1 {
		t.Errorf("%d requests, want 1", got)
	}
}

// A method without a request of its own is held back as a whole, and the
// requests of its script are what counts.
func TestLimit_scriptMethodsAreHeldBackAsAWhole(t *testing.T) {
	h, m := limited(t, nil, limitedHead+`rate_limits: [{requests: 2, per: 10m}]
methods:
  - method: twice
    type: script
    script: |
      function before_action() {
        for (var i = 0; i < 2; i++) http_request({url: method_request_mergefields.base + '/plain', headers: {'X-Who': 'a'}});
        return true;
      }
`)
	h.putWho("a")
	h.succeed(h.enqueue(1, jobs.Step{CredentialID: "a", Method: "twice"}))
	second := h.enqueue(1, jobs.Step{CredentialID: "a", Method: "twice"})[0]
	h.until("the second is deferred", func() bool {
		s, err := h.client.Status(context.Background(), second)
		return err == nil && s.Status == "deferred"
	})
	if got := len(m.of()); got != 2 {
		t.Errorf("%d requests, want 2", got)
	}
}

// An execution whose deadline comes before its turn leaves no place behind.
func TestLimit_expiredExecutionsGiveTheirPlacesBack(t *testing.T) {
	h, _ := limited(t, nil, limitedHead+`rate_limits: [{requests: 1, per: 10m}]
methods: [{method: get, endpoint: /plain}]
`)
	h.putWho("a")
	h.succeed(h.enqueue(1, jobs.Step{CredentialID: "a", Method: "get"}))
	at := time.Now().Add(time.Second)
	ids := h.enqueue(3, jobs.Step{CredentialID: "a", Method: "get", Deadline: &at})
	for id, r := range h.results(ids) {
		if r.Error == nil || r.Error.Kind != jobs.KindExpired {
			t.Errorf("%s: %s %+v", id, r.Status, r.Error)
		}
	}
	if off, _ := h.deferrals(); off == 0 {
		t.Error("none was deferred")
	}
	if places := h.rdb.Keys(context.Background(), "stepworker:rate:*:wait").Val(); len(places) != 0 {
		t.Errorf("places are left: %s", places)
	}
}
