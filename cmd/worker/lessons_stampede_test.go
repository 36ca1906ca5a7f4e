package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/faultproxy"
	"github.com/stepworker/stepworker/jobs"
)

// together keeps the first n calls until all of them have come: they are
// refused at once, whoever came first.
func together(n int) func(http.ResponseWriter, *http.Request) bool {
	var mu sync.Mutex
	come, all := 0, make(chan struct{})
	return func(_ http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		come++
		if come == n {
			close(all)
		}
		mine := come
		mu.Unlock()
		if mine <= n {
			select {
			case <-all:
			case <-r.Context().Done():
			}
		}
		return false
	}
}

// Eight processes × 25 executions, all refused at once, and what the token
// endpoint then does: the table that lessons.md measured others by, and its
// neighbours.
func TestLessons_eightProcessesRefusedAtOnce(t *testing.T) {
	if testing.Short() {
		t.Skip("worker processes")
	}
	t.Parallel()
	const processes, each = 8, 25
	const n = processes * each
	ctx := context.Background()
	w := newWorld(t)
	g := newGates(w)
	far := faultproxy.New(t, w.redis.Addr) // one of them is far away from Redis
	far.Delay(20 * time.Millisecond)
	started := make([]*process, processes)
	for i := range started {
		env := []string{}
		if i == 0 {
			env = append(env, "STEPWORKER_REDIS="+far.URL)
		}
		started[i] = w.launch(env, "--concurrency", fmt.Sprint(each), "--hook-hosts", "1")
	}
	for _, p := range started {
		p.Ready(w.t)
	}
	fails := func(times, status int, head ...string) func(int, http.ResponseWriter, *http.Request, http.Handler) {
		return func(i int, w http.ResponseWriter, r *http.Request, next http.Handler) {
			if i > times {
				next.ServeHTTP(w, r)
				return
			}
			if len(head) > 0 {
				w.Header().Set("Retry-After", head[0])
			}
			w.WriteHeader(status)
		}
	}
	type row struct {
		name     string
		token    func(int, http.ResponseWriter, *http.Request, http.Handler)
		refused  bool // the API refuses what is renewed, too
		begin    func(account string)
		requests int                          // in the end
		gaps     []time.Duration              // at least, between them
		between  credentials.Verdict          // told of the first request before there is a second
		then     func(a string, ids []string) // what has come of it; nil: all succeed
	}
	rows := []row{
		{name: "no answer: cut once it was read", requests: 2, gaps: []time.Duration{39 * time.Second},
			// The provider has a grace period: the second answer is the first one.
			token: func() func(int, http.ResponseWriter, *http.Request, http.Handler) {
				var keep func(http.ResponseWriter)
				return func(i int, w http.ResponseWriter, r *http.Request, next http.Handler) {
					if i == 1 {
						rec := spend(r, next)
						keep = func(w http.ResponseWriter) { give(w, rec) }
						drop(w)
						return
					}
					keep(w)
				}
			}(),
			between: credentials.Unknown},
		{name: "hangs, then 500", requests: 2, token: func(i int, w http.ResponseWriter, r *http.Request, next http.Handler) {
			if i == 1 {
				pause(r, 30*time.Second)
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
			next.ServeHTTP(w, r)
		}, between: credentials.Transient},
		{name: "answers after 29 s", token: after(29 * time.Second), requests: 1},
		{name: "answers after 15 s", token: after(15 * time.Second), requests: 1},
		{name: "answers after 11 s", token: after(11 * time.Second), requests: 1},
		// Full jitter on the upper half: 0.5–1 s, 1–2 s, 2–4 s, 4–8 s.
		{name: "answers 500", token: fails(4, 500), requests: 5,
			gaps: []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second}},
		{name: "429 with Retry-After", token: fails(1, 429, "12"), requests: 2, gaps: []time.Duration{11 * time.Second}},
		{name: "503 with Retry-After as a date", requests: 2, gaps: []time.Duration{10 * time.Second},
			token: func(i int, w http.ResponseWriter, r *http.Request, next http.Handler) {
				fails(1, 503, time.Now().Add(12*time.Second).UTC().Format(http.TimeFormat))(i, w, r, next)
			}},
		{name: "a person reconnects meanwhile", requests: 1, token: func(_ int, rw http.ResponseWriter, r *http.Request, next http.Handler) {
			rec := spend(r, next)
			account, _, _ := strings.Cut(strings.TrimPrefix(r.RequestURI, "/"), "/")
			g.live(w, account, "crm")
			give(rw, rec)
		}, then: func(a string, ids []string) {
			w.succeed(ids)
			if s := w.status(a); s.Version != 2 || s.State != credentials.Active {
				t.Errorf("reconnected: %+v", s)
			}
		}},
		{name: "invalid_grant though a newer token is stored", requests: 1, token: func(_ int, rw http.ResponseWriter, r *http.Request, _ http.Handler) {
			account, _, _ := strings.Cut(strings.TrimPrefix(r.RequestURI, "/"), "/")
			g.live(w, account, "crm")
			rw.WriteHeader(http.StatusBadRequest)
			_, _ = rw.Write([]byte(`{"error":"invalid_grant"}`))
		}, then: func(a string, ids []string) {
			w.succeed(ids)
			if s := w.status(a); s.Version != 2 || s.State != credentials.Active {
				t.Errorf("a newer token was there: %+v", s)
			}
		}},
		{name: "a person deletes meanwhile", requests: 1, token: func(_ int, rw http.ResponseWriter, r *http.Request, next http.Handler) {
			account, _, _ := strings.Cut(strings.TrimPrefix(r.RequestURI, "/"), "/")
			if err := w.store.Delete(ctx, account); err != nil {
				t.Error(err)
			}
			next.ServeHTTP(rw, r)
		}, then: func(a string, ids []string) {
			w.failed(jobs.KindInput, w.results(ids))
			if _, err := w.store.Status(ctx, a); err == nil {
				t.Error("what was deleted came back")
			}
		}},
		{name: "forced meanwhile", token: after(5 * time.Second), requests: 2, begin: func(a string) {
			for range 20 {
				if err := w.client.RequestRefresh(ctx, a); err != nil {
					t.Fatal(err)
				}
			}
		}},
		{name: "refresh token dead", requests: 1, then: func(a string, ids []string) {
			w.waiting(a, n)
			more := w.enqueue(20, jobs.Step{CredentialID: a, Method: "list_contacts"})
			w.waiting(a, n+20)
			if s := w.status(a); s.State != credentials.Revoked {
				t.Errorf("it is %s", s.State)
			}
			g.live(w, a, "crm")
			w.succeed(append(ids, more...))
		}},
		{name: "renewed, and refused all the same", requests: 2, refused: true, then: func(_ string, ids []string) {
			w.failed(jobs.KindAuth, w.results(ids))
		}},
		{name: "healthy", requests: 1},
	}
	gated := make([]*rowGate, len(rows))
	for i, row := range rows {
		a := fmt.Sprintf("row-%d", i)
		barrier := together(n)
		at := &rowGate{account: a}
		token := row.token
		if row.between != "" {
			token = func(i int, rw http.ResponseWriter, r *http.Request, next http.Handler) {
				if i == 2 {
					if s, err := w.store.Status(ctx, a); err != nil {
						t.Error(err)
					} else if s.LastRefresh == nil || s.LastRefresh.Verdict != row.between {
						t.Errorf("%s: a second request while the first one's outcome is %+v, want %s", row.name, s.LastRefresh, row.between)
					}
				}
				row.token(i, rw, r, next)
			}
		}
		at.gate = g.add(a, &gate{token: token, call: func(w http.ResponseWriter, r *http.Request) bool {
			barrier(w, r)
			if row.refused {
				w.WriteHeader(http.StatusForbidden)
			}
			return row.refused
		}})
		gated[i] = at
		g.dead(w, a, "crm")
		if row.name == "refresh token dead" {
			w.api.Revoke(a)
		}
		at.ids = w.enqueue(n, jobs.Step{CredentialID: a, Method: "list_contacts", MaxRetries: new(int)})
		w.until("all are refused: "+row.name, func() bool { return at.called() >= n })
		if row.begin != nil {
			w.until("the refresh runs: "+row.name, func() bool { return at.requests() > 0 })
			row.begin(a)
		}
	}
	failed := 0
	for i, row := range rows {
		at := gated[i]
		if row.then != nil {
			row.then(at.account, at.ids)
		} else {
			w.succeed(at.ids)
			if got := at.called(); got != 2*n && row.begin == nil {
				t.Errorf("%s: %d calls, want %d: each execution is refused once and served once", row.name, got, 2*n)
			}
		}
		if row.name == "a person deletes meanwhile" || row.refused {
			failed += n
		}
		got := at.requests()
		switch {
		case got == row.requests, row.begin != nil && got == 1, row.refused && got >= 1 && got <= 5:
		default:
			t.Errorf("%s: %d token requests, want %d", row.name, got, row.requests)
		}
		gaps := at.gaps()
		for j, least := range row.gaps {
			if j < len(gaps) && gaps[j] < least {
				t.Errorf("%s: request %d came %s after the one before, want %s at least", row.name, j+2, gaps[j], least)
			}
		}
	}
	w.always(failed)
}

// rowGate is a row's gate, and its executions.
type rowGate struct {
	*gate
	account string
	ids     []string
}
