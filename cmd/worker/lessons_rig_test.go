package main

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/sampleapi"
	"github.com/stepworker/stepworker/jobs"
)

// gates stand before the sample provider, one for each account: the base of
// account x is URL/x, so that one world holds many providers.
type gates struct {
	t   *testing.T
	api *sampleapi.Provider
	url string

	mu  sync.Mutex
	all map[string]*gate
}

// gate is what one account's provider does before the sample provider is
// asked, and what it has seen.
type gate struct {
	// token, if set, answers the n-th token request or login; next is the sample
	// provider's own answer.
	token func(n int, w http.ResponseWriter, r *http.Request, next http.Handler)
	// call, if set, is told of each call before it is answered; true: it has
	// answered it.
	call func(w http.ResponseWriter, r *http.Request) bool

	mu     sync.Mutex
	tokens []time.Time    // of token requests and logins
	calls  int            // of anything else
	seen   map[string]int // of those, by execution
}

func newGates(w *world) *gates {
	g := &gates{t: w.t, api: w.api, all: map[string]*gate{}}
	server := httptest.NewServer(g)
	w.t.Cleanup(func() {
		server.CloseClientConnections() // those that hang
		server.Close()
	})
	g.url = server.URL
	return g
}

// add gives an account a gate, before anybody asks.
func (g *gates) add(account string, gate *gate) *gate {
	gate.seen = map[string]int{}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all[account] = gate
	return gate
}

func (g *gates) base(account string) string { return g.url + "/" + account }

func (g *gates) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	account, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	g.mu.Lock()
	at := g.all[account]
	g.mu.Unlock()
	if at == nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	next := http.StripPrefix("/"+account, g.api)
	if path == "oauth/token" || strings.HasSuffix(path, "/login") {
		at.mu.Lock()
		at.tokens = append(at.tokens, time.Now())
		n := len(at.tokens)
		at.mu.Unlock()
		if at.token != nil {
			at.token(n, w, r, next)
			return
		}
		next.ServeHTTP(w, r)
		return
	}
	at.mu.Lock()
	at.calls++
	at.seen[r.Header.Get("Idempotency-Key")]++
	at.mu.Unlock()
	if at.call == nil || !at.call(w, r) {
		next.ServeHTTP(w, r)
	}
}

func (g *gate) requests() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.tokens)
}

// gaps are the times between the requests.
func (g *gate) gaps() []time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []time.Duration
	for i := 1; i < len(g.tokens); i++ {
		out = append(out, g.tokens[i].Sub(g.tokens[i-1]))
	}
	return out
}

func (g *gate) called() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.calls
}

// calledFor is how often the API was called for an execution.
func (g *gate) calledFor(execution string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.seen[execution]
}

// after answers once d is over: as a slow token endpoint that has done its work
// only then.
func after(d time.Duration) func(int, http.ResponseWriter, *http.Request, http.Handler) {
	return func(_ int, w http.ResponseWriter, r *http.Request, next http.Handler) {
		pause(r, d)
		next.ServeHTTP(w, r)
	}
}

// pause is a provider that takes its time; it has heard the whole request.
func pause(r *http.Request, d time.Duration) {
	_ = r.ParseForm()
	select {
	case <-time.After(d):
	case <-r.Context().Done():
	}
}

// spend has the sample provider do its work, and keeps its answer back.
func spend(r *http.Request, next http.Handler) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	next.ServeHTTP(rec, r)
	return rec
}

func give(w http.ResponseWriter, rec *httptest.ResponseRecorder) {
	w.Header().Set("Content-Type", rec.Header().Get("Content-Type"))
	w.WriteHeader(rec.Code)
	_, _ = w.Write(rec.Body.Bytes())
}

// drop ends the connection without an answer.
func drop(w http.ResponseWriter) {
	if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
		conn.Close()
	}
}

// dead puts a credential whose access token the API no longer takes.
func (g *gates) dead(w *world, account, connector string) {
	w.t.Helper()
	g.live(w, account, connector)
	g.api.KillToken(account)
}

// live puts a credential with a new token.
func (g *gates) live(w *world, account, connector string) {
	w.t.Helper()
	access, refresh := g.api.Issue(account)
	w.putToken(account, connector, sampleapi.ClientID, sampleapi.ClientSecret, g.base(account), access, refresh)
}

// expired puts a credential whose access token is past its expiry.
func (g *gates) expired(w *world, account, connector string) {
	w.t.Helper()
	access, refresh := g.api.Issue(account)
	g.put(w, map[string]any{"credential_id": account, "connector": connector, "client_id": sampleapi.ClientID, "client_secret": sampleapi.ClientSecret,
		"properties": map[string]any{"base": g.base(account)},
		"oauth2":     map[string]any{"access_token": access, "refresh_token": refresh, "expiry": time.Now().Add(-time.Minute).UTC().Format(time.RFC3339)}})
}

// session puts a credential that a login opens.
func (g *gates) session(w *world, account, connector string) {
	w.t.Helper()
	g.put(w, map[string]any{"credential_id": account, "connector": connector, "properties": map[string]any{
		"base": g.base(account), "username": sampleapi.Username, "password": sampleapi.Password}})
}

// put puts a credential as JSON has it.
func (g *gates) put(w *world, credential map[string]any) {
	w.t.Helper()
	raw, err := json.Marshal(credential)
	if err != nil {
		w.t.Fatal(err)
	}
	in, err := credentials.DecodeInput(raw)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, _, err := w.store.Put(context.Background(), in, false); err != nil {
		w.t.Fatal(err)
	}
}

// results waits for all and returns them by id.
func (w *world) results(ids []string) map[string]*jobs.Result {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	got := map[string]*jobs.Result{}
	if err := w.client.Wait(ctx, ids, func(r *jobs.Result) error { got[r.ExecutionID] = r; return nil }); err != nil {
		w.t.Fatalf("%d of %d ended: %v", len(got), len(ids), err)
	}
	return got
}

// failed asserts that every result is a failure of a kind.
func (w *world) failed(kind string, results map[string]*jobs.Result) {
	w.t.Helper()
	for id, r := range results {
		if r.Status != jobs.Failed || r.Error == nil || r.Error.Kind != kind {
			raw, _ := json.Marshal(r)
			w.t.Fatalf("%s: want kind %s, got %s", id, kind, raw)
		}
	}
}

func (w *world) status(id string) *credentials.Status {
	w.t.Helper()
	s, err := w.store.Status(context.Background(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// waiting waits until n executions wait for a credential.
func (w *world) waiting(id string, n int64) {
	w.t.Helper()
	w.until(strconv.FormatInt(n, 10)+" wait for "+id, func() bool {
		s, err := w.store.Status(context.Background(), id)
		return err == nil && s.Waiting == n
	})
}

// requests asserts how many token requests or logins there were.
func (w *world) requests(what string, g *gate, want int) {
	w.t.Helper()
	if n := g.requests(); n != want {
		w.t.Errorf("%s: %d token requests, want %d", what, n, want)
	}
}

// always asserts what holds in every row: the API served no execution twice,
// no spent refresh token was presented, and nothing stands in the archive that
// did not fail.
func (w *world) always(archived int) {
	w.t.Helper()
	if n := w.api.ServedTwice(); n != 0 {
		w.t.Errorf("%d executions were served more than once", n)
	}
	if n := w.api.Reused(); n != 0 {
		w.t.Errorf("a spent refresh token was presented %d times", n)
	}
	// asynq writes a task's end after our result.
	n := int64(-1)
	for deadline := time.Now().Add(20 * time.Second); n != int64(archived) && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		n = 0
		for _, queue := range []string{"steps", "steps.2", "steps.3"} {
			n += w.rdb.ZCard(context.Background(), "asynq:{"+queue+"}:archived").Val()
		}
	}
	if n != int64(archived) {
		w.t.Errorf("%d tasks are archived, want %d: those that failed", n, archived)
	}
}

// stopped waits until a process stands still, as SIGSTOP has it; goOn lets it
// run again.
func (p *process) stopped(w *world) {
	w.t.Helper()
	w.until("the process is stopped", func() bool {
		stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.Cmd.Process.Pid), "stat"))
		if err != nil {
			w.t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		return strings.HasPrefix(rest, "T")
	})
}

func (p *process) goOn(w *world) {
	w.t.Helper()
	if err := p.Cmd.Process.Signal(syscall.SIGCONT); err != nil {
		w.t.Fatal(err)
	}
}

// drain ends a worker as a rolling restart does.
func (p *process) drain(w *world) {
	w.t.Helper()
	if err := p.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		w.t.Fatal(err)
	}
}

// drained waits until a worker that was told to go has gone, in order.
func (w *world) drained(p *process) {
	w.t.Helper()
	select {
	case <-p.Done:
	case <-time.After(2 * time.Minute):
		w.t.Fatal("the worker does not end")
	}
	if code := p.Cmd.ProcessState.ExitCode(); code != 0 {
		w.t.Errorf("the worker ended with %d:\n%s", code, p.Log)
	}
}

// ends drains a worker, and waits for it.
func (w *world) ends(p *process) {
	w.t.Helper()
	p.drain(w)
	w.drained(p)
}

// elapse lets time pass that the row is about, and looks at something meanwhile.
func (w *world) elapse(d time.Duration, look func()) {
	w.t.Helper()
	for begun := time.Now(); time.Since(begun) < d; time.Sleep(50 * time.Millisecond) {
		look()
	}
}
