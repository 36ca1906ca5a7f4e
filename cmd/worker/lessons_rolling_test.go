package main

import (
	"net/http"
	"testing"
	"time"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/jobs"
)

// Thousands are held on a revoked account, every worker is replaced meanwhile,
// then a person reconnects: all run by themselves.
func TestLessons_heldThroughARestartOfAllWorkers(t *testing.T) {
	if testing.Short() {
		t.Skip("worker processes")
	}
	t.Parallel()
	const n = 2000
	w := newWorld(t)
	g := newGates(w)
	at := g.add("c", &gate{})
	g.dead(w, "c", "crm")
	w.api.Revoke("c")
	old := []*process{w.start(""), w.start("")}
	ids := w.enqueue(n, jobs.Step{CredentialID: "c", Method: "list_contacts", MaxRetries: new(int)})
	w.waiting("c", n)
	for _, p := range old {
		w.ends(p)
	}
	for range 2 {
		w.start("")
	}
	if s := w.status("c"); s.State != credentials.Revoked || s.Waiting != n {
		t.Errorf("it is %s, and %d wait", s.State, s.Waiting)
	}
	w.requests("revoked", at, 1)
	g.live(w, "c", "crm")
	w.succeed(ids)
	w.requests("reconnected", at, 1)
	w.always(0)
}

// All three workers are replaced while thousands are parked and a refresh runs:
// the one that asks the provider goes once it has the answer.
func TestLessons_rollingRestartInARefresh(t *testing.T) {
	if testing.Short() {
		t.Skip("worker processes")
	}
	t.Parallel()
	const n = 2000
	w := newWorld(t)
	g := newGates(w)
	answer := make(chan struct{})
	at := g.add("c", &gate{token: func(_ int, rw http.ResponseWriter, r *http.Request, next http.Handler) {
		_ = r.ParseForm()
		select {
		case <-answer:
		case <-r.Context().Done():
		}
		next.ServeHTTP(rw, r)
	}})
	g.dead(w, "c", "crm")
	old := []*process{w.start(""), w.start(""), w.start("")}
	ids := w.enqueue(n, jobs.Step{CredentialID: "c", Method: "list_contacts", MaxRetries: new(int)})
	w.waiting("c", n)
	for _, p := range old {
		fresh := w.launch(nil)
		p.drain(w)
		fresh.Ready(w.t)
	}
	ended := map[*process]bool{}
	w.until("all but the one that asks have ended", func() bool {
		for _, p := range old {
			select {
			case <-p.Done:
				ended[p] = true
			default:
			}
		}
		return len(ended) >= len(old)-1
	})
	if len(ended) != len(old)-1 || at.requests() != 1 {
		t.Errorf("%d workers have ended, after %d requests: one must be waiting for its answer", len(ended), at.requests())
	}
	close(answer)
	for _, p := range old {
		w.drained(p)
	}
	w.succeed(ids)
	w.requests("three workers replaced", at, 1)
	w.always(0)
}

// A worker that is told to go waits for the answer of a slow token endpoint,
// longer than it waits for steps.
func TestLessons_drainedInTheMiddleOfATokenRequest(t *testing.T) {
	if testing.Short() {
		t.Skip("worker processes")
	}
	t.Parallel()
	w := newWorld(t)
	g := newGates(w)
	at := g.add("c", &gate{token: after(15 * time.Second)})
	g.dead(w, "c", "crm")
	first := w.start("", "--concurrency", "20", "--shutdown-timeout", "2s")
	ids := w.enqueue(20, jobs.Step{CredentialID: "c", Method: "list_contacts", MaxRetries: new(int)})
	w.until("the provider is asked", func() bool { return at.requests() == 1 })
	w.ends(first)
	if v := w.status("c").Version; v != 2 {
		t.Errorf("version %d is stored, want 2: the worker has waited for the answer", v)
	}
	w.start("", "--concurrency", "20")
	w.succeed(ids)
	w.requests("asked by a worker that was to go", at, 1)
	w.always(0)
}
