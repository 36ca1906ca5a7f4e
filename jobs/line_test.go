package jobs_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/sampleapi"
	"github.com/stepworker/stepworker/jobs"
)

// counter is an API that counts its requests under way.
type counter struct {
	url string

	mu    sync.Mutex
	now   int
	most  int
	order []string    // executions, as they came
	came  []time.Time // when they did
	// answer, if set, is asked with the number of the request, from 1.
	answer func(n int, w http.ResponseWriter, r *http.Request)
}

func newCounter(t *testing.T, answer func(n int, w http.ResponseWriter, r *http.Request)) *counter {
	c := &counter{answer: answer}
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	c.url = server.URL
	return c
}

func (c *counter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	c.now++
	c.most = max(c.most, c.now)
	c.order = append(c.order, r.Header.Get("Idempotency-Key"))
	c.came = append(c.came, time.Now())
	n := len(c.order)
	c.mu.Unlock()
	c.answer(n, w, r)
	c.mu.Lock()
	c.now--
	c.mu.Unlock()
}

func (c *counter) seen() (now, most int, order []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now, c.most, slices.Clone(c.order)
}

const lineHead = `connector: acme
base_url: "{{base}}"
parameters: [{name: base, target: merge_field, property: account}]
methods: [{method: get, endpoint: /plain, idempotency_header: Idempotency-Key}]
`

func (h *house) putPlain(ids ...string) {
	h.t.Helper()
	for _, id := range ids {
		h.put(map[string]any{"credential_id": id, "connector": "acme"})
	}
}

// another adds a pool to the house, as another worker process is.
func (h *house) another(cfg jobs.PoolConfig) {
	h.t.Helper()
	p, err := jobs.NewPool(cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(p.Shutdown)
}

func (h *house) deferred(id string) bool {
	s, err := h.client.Status(context.Background(), id)
	return err == nil && s.Status == "deferred"
}

func (h *house) lineIsEmpty(credential string) {
	h.t.Helper()
	for _, set := range []string{"in", "wait", "called"} {
		if left := h.rdb.ZRange(context.Background(), "stepworker:line:{"+credential+"}:"+set, 0, -1).Val(); len(left) > 0 {
			h.t.Errorf("left in %s: %s", set, left)
		}
	}
}

// Four workers, three places: the API never sees four calls at once, and
// always three while there are as many left. Each call waits for that: were a
// place idle, it would not end.
func TestConcurrency_neverMoreAndNoPlaceIdle(t *testing.T) {
	const n, places = 200, 3
	var cfg jobs.PoolConfig
	h, _ := limited(t, func(c *jobs.PoolConfig) { c.Concurrency = 20; cfg = *c }, lineHead+fmt.Sprintf("max_concurrent: %d\n", places))
	var c *counter
	idle := 0
	c = newCounter(t, func(k int, _ http.ResponseWriter, _ *http.Request) {
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			c.mu.Lock()
			full := c.now >= places || len(c.order) > n-places || len(c.order) >= k+places-1
			late := time.Now().After(deadline)
			if late {
				idle++
			}
			c.mu.Unlock()
			if full || late {
				return
			}
		}
	})
	h.url = c.url
	h.putPlain("c")
	for range 3 {
		h.another(cfg)
	}
	ids := h.enqueue(n, jobs.Step{CredentialID: "c", Method: "get"})
	h.succeed(ids)
	_, most, order := c.seen()
	if most != places || len(order) != n || idle > 0 {
		t.Errorf("%d requests, %d at once, %d found a place idle; want %d, %d, 0", len(order), most, idle, n, places)
	}
	far := 0
	for i, id := range order {
		far = max(far, i-slices.Index(ids, id))
	}
	_, all := h.deferrals()
	total := 0
	for _, k := range all {
		total += k
	}
	t.Logf("one was overtaken by %d; %d deferrals", far, total)
	if far > n/4 {
		t.Errorf("one was overtaken by %d", far)
	}
	if total > 2*n {
		t.Errorf("%d deferrals of %d executions", total, n)
	}
	h.lineIsEmpty("c")
}

// Whom an operator deletes does not block those behind it.
func TestConcurrency_deletedWaitersArePassedOver(t *testing.T) {
	go1 := make(chan struct{})
	reg := prometheus.NewRegistry()
	h, _ := limited(t, func(c *jobs.PoolConfig) { c.Registerer = reg }, lineHead+"max_concurrent: 1\n")
	c := newCounter(t, func(n int, _ http.ResponseWriter, _ *http.Request) {
		if n == 1 {
			<-go1
		}
	})
	h.url = c.url
	h.putPlain("c", "d")
	var ids []string
	for i := range 4 {
		ids = append(ids, h.enqueue(1, jobs.Step{CredentialID: "c", Method: "get"})...)
		h.until("it waits, or is in its call", func() bool {
			now, _, _ := c.seen()
			return i == 0 && now == 1 || i > 0 && h.deferred(ids[i])
		})
	}
	h.succeed(h.enqueue(1, jobs.Step{CredentialID: "d", Method: "get"})) // another's is free
	s, err := h.client.Status(context.Background(), ids[3])
	if want := "deferred: max_concurrent: 1 call at once for one credential; 2 are before this one"; err != nil || s.WaitsFor != want || s.NextTry != nil {
		t.Errorf("it waits for %q until %v, want %q", s.WaitsFor, s.NextTry, want)
	}
	inspector := asynq.NewInspectorFromRedisClient(h.rdb)
	for _, id := range ids[1:3] {
		if err := inspector.DeleteTask("steps", id); err != nil {
			t.Fatal(err)
		}
	}
	close(go1)
	h.succeed([]string{ids[0], ids[3]})
	h.lineIsEmpty("c")
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, f := range families {
		if f.GetName() == "stepworker_deferrals_total" {
			got = fmt.Sprint(f.GetMetric())
		}
	}
	for _, want := range []string{`"acme"`, `"max_concurrent"`, `value:3`} {
		if !strings.Contains(got, want) {
			t.Errorf("deferrals %s, want %s in it", got, want)
		}
	}
}

// Those who wait for a place find their credential dead, and park: one token
// request, and nobody stays in the line.
func TestConcurrency_parkedOnesGiveTheirPlacesUp(t *testing.T) {
	h, _ := limited(t, nil, `connector: acme
base_url: "{{base}}"
auth: {type: oauth2, token_url: "{{base}}/oauth/token", refresh_on: [403]}
parameters: [{name: base, target: merge_field, property: account}]
max_concurrent: 1
methods: [{method: list, endpoint: /crm/contacts}]
`)
	first := make(chan struct{})
	c := newCounter(t, func(n int, w http.ResponseWriter, r *http.Request) {
		if n == 1 {
			<-first
		}
		h.api.ServeHTTP(w, r)
	})
	h.url = c.url
	access, refresh := h.api.Issue("c")
	h.put(map[string]any{"credential_id": "c", "connector": "acme", "client_id": sampleapi.ClientID, "client_secret": sampleapi.ClientSecret,
		"oauth2": map[string]any{"access_token": access, "refresh_token": refresh, "expires_in": 3600}})
	ids := h.enqueue(20, jobs.Step{CredentialID: "c", Method: "list"})
	h.until("all but one wait", func() bool {
		return h.rdb.ZCard(context.Background(), "stepworker:line:{c}:wait").Val() == 19
	})
	h.api.KillToken("c")
	close(first)
	h.succeed(ids)
	if n := h.api.TokenRequests("c"); n != 1 {
		t.Errorf("%d token requests, want 1", n)
	}
	h.lineIsEmpty("c")
}

// The places of a killed worker, and a Redis that lost who waits, hold nobody
// up for ever.
func TestConcurrency_placesOfTheDeadLapse(t *testing.T) {
	t.Parallel()
	h, _ := limited(t, nil, lineHead+"max_concurrent: 2\n")
	c := newCounter(t, func(int, http.ResponseWriter, *http.Request) {})
	h.url = c.url
	h.putPlain("c")
	lapses := time.Now().Add(3 * time.Second)
	for _, token := range []string{"x", "y"} {
		h.rdb.ZAdd(context.Background(), "stepworker:line:{c}:in", redis.Z{Score: float64(lapses.UnixMilli()), Member: token})
	}
	ids := h.enqueue(10, jobs.Step{CredentialID: "c", Method: "get"})
	h.succeed(ids)
	if c.came[0].Before(lapses.Add(-time.Millisecond)) {
		t.Error("a place was taken before it had lapsed")
	}
	if _, most, _ := c.seen(); most > 2 {
		t.Errorf("%d at once", most)
	}
	h.lineIsEmpty("c")
}

// Eight calls meet a 429. Until its Retry-After is over the API sees none of
// that credential, then one alone, and when that is answered the others.
func TestPause_oneTrialThenTheOthers(t *testing.T) {
	t.Parallel()
	const n, first = 20, 8
	var h *house
	var c *counter
	var paused, trialDone time.Time
	var mu sync.Mutex
	others := make(chan struct{})
	c = newCounter(t, func(k int, w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("X-Who") == "other":
		case k <= first: // all eight are under way, then all are refused
			h.until("eight are under way", func() bool { _, _, order := c.seen(); return len(order) >= first })
			mu.Lock()
			if paused.IsZero() {
				paused = time.Now()
			}
			mu.Unlock()
			w.Header().Set("Retry-After", "2")
			w.WriteHeader(http.StatusTooManyRequests)
		case k == first+1: // the trial
			close(others)
			h.until("nobody else comes meanwhile, though another credential's call ends", func() bool {
				h.mu.Lock()
				defer h.mu.Unlock()
				return slices.ContainsFunc(h.moments, func(m jobs.Moment) bool { return m.What == "succeeded" && m.CredentialID == "other" })
			})
			mu.Lock()
			trialDone = time.Now()
			mu.Unlock()
		}
	})
	free := newCounter(t, func(int, http.ResponseWriter, *http.Request) {})
	h, _ = limited(t, func(cfg *jobs.PoolConfig) { cfg.Concurrency = first }, lineHead)
	h.url = free.url
	h.putPlain("other")
	h.url = c.url
	h.putPlain("c")
	ids := h.enqueue(first, jobs.Step{CredentialID: "c", Method: "get"}) // they take all the room until one is refused
	h.until("the first are under way", func() bool { _, _, order := c.seen(); return len(order) >= first })
	ids = append(ids, h.enqueue(n-first, jobs.Step{CredentialID: "c", Method: "get"})...)
	h.until("a later one waits", func() bool { return h.deferred(ids[n-1]) })
	s, err := h.client.Status(context.Background(), ids[n-1])
	if err != nil || !strings.HasPrefix(s.WaitsFor, "deferred: the API answered 429 Too Many Requests; its turn is at ") || !strings.Contains(s.WaitsFor, "before this one") || s.NextTry == nil {
		t.Errorf("it waits for %+v", s)
	}
	<-others
	h.succeed(h.enqueue(1, jobs.Step{CredentialID: "other", Method: "get"}))
	for id, r := range h.results(ids) {
		if r.Status != jobs.Succeeded {
			t.Errorf("%s: %+v", id, r.Error)
		}
	}
	_, _, order := c.seen()
	if len(order) != n+first {
		t.Errorf("%d requests, want %d", len(order), n+first)
	}
	if gap := c.came[first].Sub(paused); gap < 1990*time.Millisecond {
		t.Errorf("the trial came %s after the 429", gap)
	}
	if c.came[first+1].Before(trialDone) {
		t.Error("a second one came before the trial was answered")
	}
	h.lineIsEmpty("c")
	if n := h.rdb.Exists(context.Background(), "stepworker:line:{c}").Val(); n != 0 {
		t.Error("the line stands though nobody waits")
	}
}

// A second 429 moves the whole line on by a minute more: one request, not one
// for each who waits. No retry is used up, and a deadline ends the wait.
func TestPause_aSecondOneMovesTheWholeLine(t *testing.T) {
	t.Parallel()
	h, _ := limited(t, nil, lineHead)
	c := newCounter(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	h.url = c.url
	h.putPlain("c")
	none, at := 0, time.Now().Add(5*time.Second)
	ids := h.enqueue(1, jobs.Step{CredentialID: "c", Method: "get", MaxRetries: &none})
	h.until("the API has asked to wait", func() bool { return h.deferred(ids[0]) })
	ids = append(ids, h.enqueue(30, jobs.Step{CredentialID: "c", Method: "get", Deadline: &at})...)
	h.until("the line has moved on", func() bool {
		s, err := h.client.Status(context.Background(), ids[0])
		return err == nil && s.Status == "deferred" && s.NextTry != nil && time.Until(s.NextTry.Time) > 30*time.Second
	})
	for id, r := range h.results(ids[1:]) {
		if r.Error == nil || r.Error.Kind != jobs.KindExpired {
			t.Errorf("%s: %s %+v", id, r.Status, r.Error)
		}
	}
	if _, _, order := c.seen(); len(order) != 2 {
		t.Errorf("%d requests, want 2", len(order))
	}
	if got := h.rdb.ZRange(context.Background(), "stepworker:line:{c}:wait", 0, -1).Val(); len(got) != 1 || got[0] != ids[0]+"|steps" {
		t.Errorf("in the line: %s", got)
	}
}

// A call of many pages stops where a pause begins, and goes on with the page
// that it was at.
func TestPause_stopsACallBetweenItsPages(t *testing.T) {
	t.Parallel()
	h, _ := limited(t, nil, `connector: acme
base_url: "{{base}}"
parameters: [{name: base, target: merge_field, property: account}]
methods:
  - {method: get, endpoint: /plain}
  - method: all
    endpoint: /pages
    paging: {inbound: true, page_size: 1, end: empty_page}
    parameters: [{name: page, target: query_string, value: "{{CYCLR_PAGE_NUMBER}}"}]
`)
	second := make(chan struct{})
	var mu sync.Mutex
	var pages []string
	limitedOnce := false
	c := newCounter(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		page := r.URL.Query().Get("page")
		if page != "" {
			pages = append(pages, page)
		}
		refuse := page == "" && !limitedOnce
		limitedOnce = limitedOnce || refuse
		mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		switch {
		case refuse:
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
		case page == "2":
			<-second
			fallthrough
		case page == "1" || page == "3":
			fmt.Fprintf(w, `[{"id":%s}]`, page)
		case page != "":
			fmt.Fprint(w, `[]`)
		}
	})
	h.url = c.url
	h.putPlain("c")
	paged := h.enqueue(1, jobs.Step{CredentialID: "c", Method: "all"})
	h.until("its second page is asked for", func() bool { mu.Lock(); defer mu.Unlock(); return len(pages) == 2 })
	asked := time.Now()
	get := h.enqueue(1, jobs.Step{CredentialID: "c", Method: "get"})
	h.until("the API asks to wait", func() bool { return h.deferred(get[0]) && time.Since(asked) > 300*time.Millisecond })
	h.rdb.HSet(context.Background(), "stepworker:line:{c}", "until", time.Now().Add(3*time.Second).UnixMilli())
	close(second)
	h.until("the paged call waits", func() bool { return h.deferred(paged[0]) })
	h.succeed(append(paged, get...))
	if got := strings.Join(pages, " "); got != "1 2 3 4" {
		t.Errorf("pages %s, want each once", got)
	}
}

// pausedHouse is one whose credential "c" an API has paused for an hour, with
// executions in its line; from then on the API answers.
func pausedHouse(t *testing.T, n int) (h *house, c *counter, ids []string) {
	h, _ = limited(t, nil, lineHead)
	c = newCounter(t, func(k int, w http.ResponseWriter, _ *http.Request) {
		if k == 1 {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(http.StatusTooManyRequests)
		}
	})
	h.url = c.url
	h.putPlain("c")
	ids = h.enqueue(1, jobs.Step{CredentialID: "c", Method: "get"})
	h.until("the API asks to wait", func() bool { return h.deferred(ids[0]) })
	ids = append(ids, h.enqueue(n-1, jobs.Step{CredentialID: "c", Method: "get"})...)
	h.until("all stand in the line", func() bool {
		return h.rdb.ZCard(context.Background(), "stepworker:line:{c}:wait").Val() == int64(n)
	})
	return h, c, ids
}

// A pause shows with the credential, and with who waits for it; a person may
// end it. Then one goes as a trial, as when it is over.
func TestPause_showsAndIsEndedByAPerson(t *testing.T) {
	h, c, ids := pausedHouse(t, 20)
	ctx := context.Background()
	st, err := h.store.Status(ctx, "c")
	if err != nil || st.PausedUntil == nil || time.Until(*st.PausedUntil) < 50*time.Minute || st.PausedFor != "the API answered 429 Too Many Requests" ||
		!strings.Contains(st.WaitsFor, "credential unpause") || st.State != credentials.Active {
		t.Errorf("the credential tells %+v", st)
	}
	e, err := h.client.Status(ctx, ids[19])
	if err != nil || e.NextTry == nil || st.PausedUntil == nil || !e.NextTry.Equal(*st.PausedUntil) || e.Credential == nil || e.Credential.PausedUntil == nil {
		t.Errorf("an execution tells %+v", e)
	}
	if err := h.client.Unpause(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	if st, err := h.store.Status(ctx, "c"); err != nil || st.PausedUntil != nil || st.PausedFor != "" || st.WaitsFor != "" {
		t.Errorf("the credential still tells %+v", st)
	}
	h.succeed(ids)
	if _, _, order := c.seen(); len(order) != 21 {
		t.Errorf("%d requests, want 21", len(order))
	}
	h.lineIsEmpty("c")
	if err := h.client.Unpause(ctx, "other"); !errors.Is(err, credentials.ErrNotFound) {
		t.Errorf("of an unknown credential: %v", err)
	}
}

// The wait was another key's: a put ends it. A merge is a put as well.
func TestPause_endsWithAPut(t *testing.T) {
	t.Parallel()
	h, _, ids := pausedHouse(t, 5)
	h.putPlain("c")
	h.succeed(ids)
	h.lineIsEmpty("c")
}

// Who waits for the end of a pause learns soon that its credential was deleted.
func TestPause_endsWithTheCredential(t *testing.T) {
	t.Parallel()
	h, c, ids := pausedHouse(t, 300)
	if err := h.store.Delete(context.Background(), "c"); err != nil {
		t.Fatal(err)
	}
	for id, r := range h.results(ids) {
		if r.Error == nil || r.Error.Kind != jobs.KindInput || !strings.HasPrefix(r.Error.Message, `unknown credential "c"`) {
			t.Errorf("%s: %s %+v", id, r.Status, r.Error)
		}
	}
	if _, _, order := c.seen(); len(order) != 1 {
		t.Errorf("%d requests, want 1", len(order))
	}
	h.lineIsEmpty("c")
}
