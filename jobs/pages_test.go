package jobs_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/hooks"
	"github.com/stepworker/stepworker/internal/sampleapi"
	"github.com/stepworker/stepworker/jobs"
)

// pagedAPI serves the numbers 1 to 12, one on a page, to who has a live token.
type pagedAPI struct {
	h   *house
	cfg jobs.PoolConfig
	url string

	mu      sync.Mutex
	pages   []string // that were answered
	asked   map[string]int
	refuses func(page, asked int, w http.ResponseWriter) bool
	echoes  bool // the token, on each page
}

const pagedFile = `connector: paged
base_url: "{{base}}"
auth: {type: oauth2, token_url: "{{tokens}}/oauth/token", refresh_on: [401], hosts: [127.0.0.1]}
parameters:
  - {name: base, target: merge_field, property: account}
  - {name: tokens, target: merge_field, property: account}
methods:
  - method: list
    endpoint: "{{api}}/numbers"
    paging: {inbound: true, page_size: 1}
    parameters:
      - {name: api, target: merge_field, property: account}
      - {name: page, target: query_string, value: "{{CYCLR_PAGE_NUMBER}}"}
    response: {fields: [{field: "[rows].n", system: N}]}
    script: |
      function after_action() { action_data.sum = (action_data.sum || 0) + (method_response.rows[0] || {n: 0}).n; }
      function after_action_paging() { method_response.sum = action_data.sum; }
`

func newPagedAPI(t *testing.T) *pagedAPI {
	t.Helper()
	p := &pagedAPI{asked: map[string]int{}}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "paged.yaml"), []byte(pagedFile), 0o600); err != nil {
		t.Fatal(err)
	}
	catalog, findings, err := definition.Load(dir)
	if err != nil || len(findings) > 0 {
		t.Fatal(err, findings)
	}
	p.h = newHouse(t, func(c *jobs.PoolConfig) { c.Catalog = catalog; p.cfg = *c })
	server := httptest.NewServer(p)
	t.Cleanup(server.Close)
	p.url = server.URL
	return p
}

func (p *pagedAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	page, _ := strconv.Atoi(r.URL.Query().Get("page"))
	alive := httptest.NewRecorder() // the sample provider knows which token lives
	check := r.Clone(r.Context())
	check.URL.Path = "/orders"
	p.h.api.ServeHTTP(alive, check)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked[strconv.Itoa(page)]++
	w.Header().Set("Content-Type", "application/json")
	if strings.Contains(alive.Body.String(), "invalid_grant") {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if p.refuses != nil && p.refuses(page, p.asked[strconv.Itoa(page)], w) {
		return
	}
	p.pages = append(p.pages, strconv.Itoa(page))
	if page > 12 {
		fmt.Fprint(w, `{"rows":[]}`)
		return
	}
	text := "plain-text-of-a-page"
	if p.echoes {
		text = r.Header.Get("Authorization")
	}
	fmt.Fprintf(w, `{"rows":[{"n":%d,"text":%q}]}`, page, text)
}

func (p *pagedAPI) put(id string) {
	access, refresh := p.h.api.Issue(id)
	p.h.put(map[string]any{"credential_id": id, "connector": "paged", "client_id": sampleapi.ClientID, "client_secret": sampleapi.ClientSecret,
		"properties": map[string]any{"tokens": p.h.url, "api": p.url},
		"oauth2":     map[string]any{"access_token": access, "refresh_token": refresh, "expires_in": 3600}})
}

// TestPages_eachIsAskedForOnce has a call of thirteen pages parked four times,
// put off, and met by server errors more often than its budget of retries has:
// each page is answered once, and what is kept meanwhile is sealed.
func TestPages_eachIsAskedForOnce(t *testing.T) {
	t.Parallel()
	p := newPagedAPI(t)
	h := p.h
	p.put("c")
	seen := ""
	p.refuses = func(page, asked int, w http.ResponseWriter) bool {
		if page == 6 && seen == "" {
			for _, v := range h.rdb.HGetAll(context.Background(), "stepworker:pages:{paged-1}").Val() {
				seen += v
			}
		}
		switch {
		case page%3 == 0 && asked == 1:
			h.api.KillToken("c") // the answer is a 401 without a body
			w.WriteHeader(http.StatusUnauthorized)
		case page == 5 && asked == 1:
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
		case page >= 7 && page%3 == 1 && asked <= 2:
			w.WriteHeader(http.StatusInternalServerError)
		default:
			return false
		}
		return true
	}
	none := 2
	ids := h.enqueue(1, jobs.Step{ExecutionID: "paged-1", CredentialID: "c", Method: "list", MaxRetries: &none})
	r := h.results(ids)["paged-1"]
	want := strings.Split("1 2 3 4 5 6 7 8 9 10 11 12 13", " ")
	if diff := cmp.Diff(want, p.pages); diff != "" {
		t.Errorf("answered pages (-want +got):\n%s", diff)
	}
	if r.Status != jobs.Succeeded || r.Pages != 13 || string(r.Fields) != `{"N":[1,2,3,4,5,6,7,8,9,10,11,12]}` || !strings.Contains(string(r.Content), `"sum":78`) {
		t.Errorf("got %s, %d pages, fields %s, content %s, error %+v", r.Status, r.Pages, r.Fields, r.Content, r.Error)
	}
	if r.Refreshes != 4 {
		t.Errorf("%d refreshes, want 4", r.Refreshes)
	}
	if seen == "" || strings.Contains(seen, "plain-text") || strings.Contains(seen, "rows") {
		t.Errorf("what is kept is %d bytes, and must be sealed", len(seen))
	}
	if n := h.rdb.Exists(context.Background(), "stepworker:pages:{paged-1}").Val(); n != 0 {
		t.Error("the pages are still there after the end")
	}
}

// TestPages_lost: where somebody deleted what was kept the call begins anew.
func TestPages_lost(t *testing.T) {
	p := newPagedAPI(t)
	p.put("c")
	p.refuses = func(page, asked int, w http.ResponseWriter) bool {
		if page == 4 && asked == 1 {
			p.h.rdb.Del(context.Background(), "stepworker:pages:{lost}")
			w.WriteHeader(http.StatusInternalServerError)
			return true
		}
		return false
	}
	ids := p.h.enqueue(1, jobs.Step{ExecutionID: "lost", CredentialID: "c", Method: "list"})
	r := p.h.results(ids)["lost"]
	if r.Status != jobs.Succeeded || string(r.Fields) != `{"N":[1,2,3,4,5,6,7,8,9,10,11,12]}` {
		t.Errorf("got %s, fields %s, error %+v", r.Status, r.Fields, r.Error)
	}
	if got := strings.Join(p.pages[:5], " "); got != "1 2 3 1 2" {
		t.Errorf("answered pages begin %s", got)
	}
}

// TestPages_failedTellsHowFarItCame: and run again by a person it begins anew.
func TestPages_failedTellsHowFarItCame(t *testing.T) {
	p := newPagedAPI(t)
	p.put("c")
	p.refuses = func(page, _ int, w http.ResponseWriter) bool {
		if page == 3 {
			w.WriteHeader(http.StatusBadRequest)
		}
		return page == 3
	}
	ids := p.h.enqueue(1, jobs.Step{ExecutionID: "failed", CredentialID: "c", Method: "list"})
	r := p.h.results(ids)["failed"]
	if r.Status != jobs.Failed || r.Pages != 2 || r.StatusCode != 400 {
		t.Errorf("got %s, %d pages, status code %d", r.Status, r.Pages, r.StatusCode)
	}
	if n := p.h.rdb.Exists(context.Background(), "stepworker:pages:{failed}").Val(); n != 0 {
		t.Error("the pages are still there after the end")
	}
}

// TestPages_drain: a worker that drains ends a call after the page that it is
// at, so that none is cut off under way; the next one goes on behind it.
func TestPages_drain(t *testing.T) {
	p := newPagedAPI(t)
	p.put("c")
	drained := make(chan struct{})
	p.refuses = func(page, asked int, _ http.ResponseWriter) bool {
		if page == 3 && asked == 1 {
			go func() { defer close(drained); p.h.pool.Shutdown() }()
			for p.h.pool.Ready() == nil || p.h.pool.Ready().Error() != "draining" {
				runtime.Gosched()
			}
		}
		return false
	}
	ids := p.h.enqueue(1, jobs.Step{ExecutionID: "drained", CredentialID: "c", Method: "list"})
	<-drained
	if diff := cmp.Diff([]string{"1", "2", "3"}, p.pages); diff != "" {
		t.Errorf("pages that the first worker asked for (-want +got):\n%s", diff)
	}
	next, err := jobs.NewPool(p.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(next.Shutdown)
	r := p.h.results(ids)["drained"]
	if r.Status != jobs.Succeeded || r.Pages != 13 || len(p.pages) != 13 {
		t.Errorf("got %s, %d pages, asked for %v, error %+v", r.Status, r.Pages, p.pages, r.Error)
	}
}

// TestPages_masksOldTokens: what pages hold of a token that was renewed between
// them is masked as what later ones hold of its successor.
func TestPages_masksOldTokens(t *testing.T) {
	p := newPagedAPI(t)
	p.put("c")
	p.echoes = true
	p.refuses = func(page, asked int, w http.ResponseWriter) bool {
		if page%4 == 0 && asked == 1 {
			p.h.api.KillToken("c")
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		return false
	}
	ids := p.h.enqueue(1, jobs.Step{ExecutionID: "echo", CredentialID: "c", Method: "list"})
	r := p.h.results(ids)["echo"]
	if n := strings.Count(string(r.Content), `"text":"Bearer [redacted]"`); n != 12 || r.Refreshes != 3 {
		t.Errorf("%d of 12 tokens are masked, after %d refreshes, in %s; error %+v", n, r.Refreshes, r.Content, r.Error)
	}
}

// TestPages_onePagePutOff: a call of one page that a script puts off after it
// keeps that page, sealed, and asks for it no second time.
func TestPages_onePagePutOff(t *testing.T) {
	h := newHouse(t, withConnector(t, `connector: own
base_url: "{{base}}"
parameters: [{name: base, target: merge_field, property: account}]
methods:
  - method: create
    verb: POST
    endpoint: /jobs
    script: |
      function after_action_paging() {
        if (!action_data.waited) { action_data.waited = true; throw new RetryLaterException(1, 'the job is not done'); }
      }
`))
	var mu sync.Mutex
	asked := 0
	h.url = serve(t, func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		asked++
		mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"job":"plain-text-of-a-page"}`)
	})
	h.put(map[string]any{"credential_id": "c", "connector": "own"})
	ids := h.enqueue(1, jobs.Step{ExecutionID: "one", CredentialID: "c", Method: "create"})
	h.until("it is put off", func() bool { return h.deferred("one") })
	all := fmt.Sprint(h.rdb.HGetAll(context.Background(), "stepworker:pages:{one}").Val())
	if !strings.Contains(all, "1:") || strings.Contains(all, "plain-text") {
		t.Errorf("kept is %q", all)
	}
	r := h.results(ids)["one"]
	if r.Status != jobs.Succeeded || r.Attempts != 2 || r.Pages != 1 || string(r.Content) != `{"job":"plain-text-of-a-page"}` || asked != 1 {
		t.Errorf("got %s in %d attempts, %d pages, asked %d times, content %s, error %+v", r.Status, r.Attempts, r.Pages, asked, r.Content, r.Error)
	}
	if n := h.rdb.Exists(context.Background(), "stepworker:pages:{one}").Val(); n != 0 {
		t.Error("the page is still there after the end")
	}
}

// A call that runs again at once, since a newer credential is stored than the one
// that was refused when its pages were together, does not wait for its own room.
func TestPages_runAgainHasTheRoomOfTheFirst(t *testing.T) {
	h := newHouse(t, func(c *jobs.PoolConfig) {
		withConnector(t, `connector: own
base_url: "{{base}}"
auth: {type: oauth2, token_url: "{{base}}/token"}
parameters: [{name: base, target: merge_field, property: account}]
methods:
  - method: list
    endpoint: /list
    parameters: [{name: page, target: query_string, value: "{{CYCLR_PAGE_NUMBER}}"}]
    paging: {inbound: true, more: more}
    script: |
      function after_action_paging() {
        if (!action_data.again) { action_data.again = true; throw new AuthRefreshException('dead'); }
        method_response = method_response.rows.length;
      }
`)(c)
		engine, err := hooks.New(hooks.Config{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = engine.Close() })
		if c.Caller, err = connectors.NewCaller(connectors.CallerConfig{Engine: engine, AllowPrivate: true, AuthStyles: c.Store, MaxResponse: 300_000}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Caller.Close)
	})
	var once sync.Once
	put := func() {
		h.put(map[string]any{"credential_id": "c", "connector": "own", "client_id": "id", "client_secret": "a-secret", "oauth2": map[string]any{"access_token": "an-access-token"}})
	}
	h.url = serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("page") == "8" {
			once.Do(put) // while its call is under way
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"rows":["%s%s"],"more":%t}`, r.FormValue("page"), strings.Repeat("x", 250_000), r.FormValue("page") != "8")
	})
	put()
	ids := h.enqueue(1, jobs.Step{ExecutionID: "big", CredentialID: "c", Method: "list"})
	r := h.results(ids)["big"]
	if story := h.story("big"); r.Status != jobs.Succeeded || string(r.Content) != "8" || strings.Contains(story, "deferred") {
		t.Errorf("got %s, content %s, error %+v: %s", r.Status, r.Content, r.Error, story)
	}
}
