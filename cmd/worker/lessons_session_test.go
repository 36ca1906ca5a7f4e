package main

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/jobs"
)

// A new login ends the session before it: one login for all, and refusals of
// the old session that come late cause none.
func TestLessons_oneLoginForAll(t *testing.T) {
	if testing.Short() {
		t.Skip("worker processes")
	}
	t.Parallel()
	const n, late = 200, 20
	w := newWorld(t)
	g := newGates(w)
	var lost atomic.Bool // the session is
	var calls atomic.Int64
	renewed, others := make(chan struct{}), together(n)
	at := g.add("c", &gate{call: func(rw http.ResponseWriter, r *http.Request) bool {
		if !lost.Load() {
			return false
		}
		if calls.Add(1) > late {
			return others(rw, r)
		}
		select {
		case <-renewed:
		case <-r.Context().Done():
		}
		return false
	}})
	g.session(w, "c", "ledger")
	for range 3 {
		w.start("", "--concurrency", "100")
	}
	step := jobs.Step{CredentialID: "c", Method: "list_entries", MaxRetries: new(int)}
	w.succeed(w.enqueue(n, step))
	w.requests("no session yet", at, 1)
	before := at.called()
	w.api.KillSessions()
	lost.Store(true)
	ids := w.enqueue(n+late, step)
	w.until("another session is stored", func() bool { return w.status("c").Version == 3 })
	close(renewed)
	w.succeed(ids)
	if got := at.called() - before; got != 2*(n+late) {
		t.Errorf("%d calls, want %d: each execution is refused once and served once", got, 2*(n+late))
	}
	w.requests("the session was lost", at, 2)
	w.always(0)
}

// Logins that fail, and logins whose own hook says that the session is dead: a
// login never causes another.
func TestLessons_loginFails(t *testing.T) {
	if testing.Short() {
		t.Skip("worker processes")
	}
	t.Parallel()
	const n = 50
	w := newWorld(t)
	g := newGates(w)
	for range 3 {
		w.start("", "--concurrency", "20")
	}
	says := func(times, status int, body string) func(int, http.ResponseWriter, *http.Request, http.Handler) {
		return func(i int, rw http.ResponseWriter, r *http.Request, next http.Handler) {
			if i > times {
				next.ServeHTTP(rw, r)
				return
			}
			rw.Header().Set("Content-Type", "application/json")
			rw.WriteHeader(status)
			_, _ = rw.Write([]byte(body))
		}
	}
	// One after the other: a login of the sample provider ends all sessions.
	for i, row := range []struct {
		name, connector, method string
		login                   func(int, http.ResponseWriter, *http.Request, http.Handler)
		gaps                    []time.Duration // at least; nil: it is revoked
	}{
		{"refused", "ledger", "list_entries", says(1, 401, `{"message":"wrong user or password"}`), nil},
		{"its after_action throws", "ledger", "list_entries", says(1, 200, `{"error_code":"You are not logged on."}`), nil},
		{"its after_error throws", "helpdesk", "list_tickets", says(1, 403, `{"message":"no session"}`), nil},
		{"the server is out of order", "ledger", "list_entries", says(3, 503, `{"message":"try later"}`),
			[]time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second}},
	} {
		a := fmt.Sprintf("row-%d", i)
		at := g.add(a, &gate{token: row.login})
		g.session(w, a, row.connector)
		step := jobs.Step{CredentialID: a, Method: row.method, MaxRetries: new(int)}
		ids := w.enqueue(n, step)
		if row.gaps == nil {
			w.until("it is revoked, its executions are held: "+row.name, func() bool {
				s := w.status(a)
				return s.State == credentials.Revoked && s.Waiting == n
			})
			ids = append(ids, w.enqueue(n, step)...)
			w.waiting(a, 2*n)
			w.requests(row.name, at, 1)
			if at.called() != 0 {
				t.Errorf("%s: %d calls without a session", row.name, at.called())
			}
			g.session(w, a, row.connector) // a person has put it right
		}
		w.succeed(ids)
		w.requests(row.name, at, max(len(row.gaps), 1)+1)
		for j, gap := range at.gaps() {
			if j < len(row.gaps) && gap < row.gaps[j] {
				t.Errorf("%s: login %d came %s after the one before, want %s at least", row.name, j+2, gap, row.gaps[j])
			}
		}
	}
	w.always(0)
}
