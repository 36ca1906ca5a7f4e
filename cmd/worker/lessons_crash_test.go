package main

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/jobs"
)

// The holder of a lease is stopped beyond it, another takes over and stores its
// token; then the first wakes, with an answer in its hands.
func TestLessons_blindRelease(t *testing.T) {
	if testing.Short() {
		t.Skip("a lease is a minute long")
	}
	t.Parallel()
	w := newWorld(t)
	g := newGates(w)
	at := g.add("c", &gate{token: func(n int, rw http.ResponseWriter, r *http.Request, next http.Handler) {
		if n == 1 {
			rw.Header().Set("Content-Type", "application/json")
			_, _ = rw.Write([]byte(`{"access_token":"late-access-token","refresh_token":"late-refresh-token","expires_in":3600}`))
			return
		}
		next.ServeHTTP(rw, r)
	}})
	g.dead(w, "c", "crm")
	first := w.startWith([]string{"STEPWORKER_STOP_AT=refresh-answered"}, "--concurrency", "10")
	ids := w.enqueue(20, jobs.Step{CredentialID: "c", Method: "list_contacts", MaxRetries: new(int)})
	first.stopped(w)
	w.start("", "--concurrency", "10")
	w.until("another has renewed it", func() bool { return w.status("c").Version == 2 })
	first.goOn(w)
	w.succeed(ids)
	more := w.enqueue(20, jobs.Step{CredentialID: "c", Method: "list_contacts"})
	w.succeed(more)
	c, err := w.store.Get(context.Background(), "c")
	if err != nil {
		t.Fatal(err)
	}
	if c.Version != 2 || c.Secrets.OAuth2.AccessToken.Reveal() == "late-access-token" {
		t.Errorf("version %d: the newer token must stand", c.Version)
	}
	w.requests("one that slept, one that took over", at, 2)
	w.always(0)
}

// A worker is stopped with the new token in its hand, and wakes while the one
// that took over still asks: its late answer is the one that counts, since what
// was sent for it is spent.
func TestLessons_lateAnswerOfAWorkerThatSlept(t *testing.T) {
	if testing.Short() {
		t.Skip("a lease is a minute long")
	}
	t.Parallel()
	w := newWorld(t)
	g := newGates(w)
	awake := make(chan struct{})
	at := g.add("c", &gate{token: func(n int, rw http.ResponseWriter, r *http.Request, next http.Handler) {
		if n > 1 {
			<-awake
			rw.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		next.ServeHTTP(rw, r)
	}})
	g.dead(w, "c", "crm")
	first := w.startWith([]string{"STEPWORKER_STOP_AT=refresh-answered"}, "--concurrency", "10")
	ids := w.enqueue(20, jobs.Step{CredentialID: "c", Method: "list_contacts", MaxRetries: new(int)})
	first.stopped(w)
	w.start("", "--concurrency", "10")
	w.until("another asks", func() bool { return at.requests() == 2 })
	first.goOn(w)
	w.until("its answer is stored", func() bool { return w.status("c").Version == 2 })
	close(awake)
	w.succeed(ids)
	if s := w.status("c"); s.Version != 2 || s.State != credentials.Active {
		t.Errorf("it ended %s, version %d", s.State, s.Version)
	}
	w.requests("one that slept, one that took over", at, 2)
	w.always(0)
}

// A worker is stopped with an execution in its hands that it has not begun, and
// wakes while the one that took it over makes its call.
func TestLessons_begunByAWorkerThatSlept(t *testing.T) {
	if testing.Short() {
		t.Skip("asynq takes a minute to notice a dead worker")
	}
	t.Parallel()
	for at, says := range map[string][]string{
		"taken": {"stood still"},
		// asynq may have ended the attempt by then.
		"before-begin": {"attempt overtaken", "worker fault"},
	} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			g := newGates(w)
			called, answer := make(chan struct{}, 2), make(chan struct{})
			gate := g.add("c", &gate{call: func(http.ResponseWriter, *http.Request) bool {
				called <- struct{}{}
				<-answer
				return false
			}})
			g.live(w, "c", "crm")
			first := w.startWith([]string{"STEPWORKER_STOP_AT=" + at}, "--concurrency", "1")
			ids := w.enqueue(1, jobs.Step{CredentialID: "c", Method: "list_contacts"})
			first.stopped(w)
			w.start("", "--concurrency", "1")
			<-called
			first.goOn(w)
			w.until("the first leaves it alone", func() bool {
				log := first.Log.String()
				return slices.ContainsFunc(says, func(text string) bool { return strings.Contains(log, text) })
			})
			close(answer)
			w.succeed(ids)
			if n := gate.called(); n != 1 {
				t.Errorf("the API was called %d times, want 1", n)
			}
			w.always(0)
		})
	}
}

// kill -9 of a worker with many executions in its hands: each is taken over
// once, though every server of every worker looks for what it left.
func TestLessons_takenOverOnce(t *testing.T) {
	if testing.Short() {
		t.Skip("asynq takes a minute to notice a dead worker")
	}
	t.Parallel()
	w := newWorld(t)
	g := newGates(w)
	const n = 400
	hung := make(chan struct{}, 2*n)
	var dead atomic.Bool
	at := g.add("c", &gate{call: func(_ http.ResponseWriter, r *http.Request) bool {
		if dead.Load() {
			return false
		}
		hung <- struct{}{}
		<-r.Context().Done()
		return true
	}})
	g.live(w, "c", "crm")
	first := w.start("", "--concurrency", strconv.Itoa(n))
	ids := w.enqueue(n, jobs.Step{CredentialID: "c", Method: "list_contacts"})
	for range n {
		<-hung
	}
	dead.Store(true)
	_ = first.Cmd.Process.Kill()
	<-first.Done
	w.start("", "--concurrency", "100")
	w.start("", "--concurrency", "100")
	w.succeed(ids)
	for _, id := range ids {
		if n := at.calledFor(id); n != 2 {
			t.Errorf("%s was called for %d times, want 2", id, n)
		}
	}
	w.always(0)
}

// kill -9 right after a failed execution's result is stored: it has failed, and
// nobody calls for it again.
func TestLessons_killedAfterAFailure(t *testing.T) {
	if testing.Short() {
		t.Skip("asynq takes a minute to notice a dead worker")
	}
	t.Parallel()
	w := newWorld(t)
	g := newGates(w)
	at := g.add("c", &gate{call: func(rw http.ResponseWriter, _ *http.Request) bool {
		rw.WriteHeader(http.StatusTeapot)
		return true
	}})
	g.live(w, "c", "crm")
	first := w.start("ended", "--concurrency", "1")
	ids := w.enqueue(1, jobs.Step{CredentialID: "c", Method: "list_contacts"})
	<-first.Done
	w.start("", "--concurrency", "1")
	w.failed(jobs.KindHTTP, w.results(ids))
	w.until("another ends its task", func() bool {
		return w.rdb.ZCard(context.Background(), "asynq:{steps}:archived").Val() == 1
	})
	w.always(1)
	w.failed(jobs.KindHTTP, w.results(ids))
	if n := at.called(); n != 1 {
		t.Errorf("the API was called %d times, want 1", n)
	}
}

// A worker is stopped right after parking: for 40 s, and for so long that
// another has taken its executions over.
func TestLessons_leaseLostWhileParking(t *testing.T) {
	if testing.Short() {
		t.Skip("asynq takes a minute to notice a dead worker")
	}
	t.Parallel()
	for _, long := range []bool{false, true} {
		name := "40 s"
		if long {
			name = "until another took it over"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			g := newGates(w)
			at := g.add("c", &gate{})
			g.dead(w, "c", "crm")
			first := w.startWith([]string{"STEPWORKER_STOP_AT=parked"}, "--concurrency", "5")
			ids := w.enqueue(5, jobs.Step{CredentialID: "c", Method: "list_contacts", MaxRetries: new(int)})
			first.stopped(w)
			w.start("", "--concurrency", "5")
			if long {
				w.succeed(ids)
			} else {
				w.elapse(40*time.Second, func() {})
			}
			first.goOn(w)
			w.succeed(ids)
			// What the first still writes must be void: it ends well once.
			w.succeed(w.enqueue(5, jobs.Step{CredentialID: "c", Method: "list_contacts"}))
			w.requests(name, at, 1)
			w.succeed(ids)
			w.always(0)
		})
	}
}

// kill -9 after sending: the provider has, or has not, rotated the token.
func TestLessons_killedAfterSending(t *testing.T) {
	if testing.Short() {
		t.Skip("asynq takes a minute to notice a dead worker")
	}
	t.Parallel()
	w := newWorld(t)
	g := newGates(w)
	var sent sync.WaitGroup
	sent.Add(2)
	hang := func(rotates bool) *gate {
		return &gate{token: func(n int, rw http.ResponseWriter, r *http.Request, next http.Handler) {
			if n > 1 {
				next.ServeHTTP(rw, r)
				return
			}
			_ = r.ParseForm()
			if rotates {
				spend(r, next)
			}
			sent.Done()
			<-r.Context().Done()
		}}
	}
	spent, unspent := g.add("spent", hang(true)), g.add("unspent", hang(false))
	g.dead(w, "spent", "crm")
	g.dead(w, "unspent", "crm")
	first := w.start("", "--concurrency", "20")
	ids := w.enqueue(20, jobs.Step{CredentialID: "spent", Method: "list_contacts", MaxRetries: new(int)})
	others := w.enqueue(20, jobs.Step{CredentialID: "unspent", Method: "list_contacts", MaxRetries: new(int)})
	sent.Wait()
	_ = first.Cmd.Process.Kill()
	<-first.Done
	w.start("", "--concurrency", "20")
	w.succeed(others)
	w.requests("the provider had not heard of it", unspent, 2)
	w.until("the account is lost, its executions are held", func() bool {
		s := w.status("spent")
		return s.State == credentials.Revoked && s.Waiting == 20
	})
	w.requests("tried once, and no more", spent, 2)
	g.live(w, "spent", "crm") // a person reconnects
	w.succeed(ids)
	w.requests("a person reconnected", spent, 2)
	if n := w.api.Reused(); n != 1 {
		t.Errorf("a spent token was presented %d times, want once: its answer never came", n)
	}
	if n := w.api.ServedTwice(); n != 0 {
		t.Errorf("%d executions were served twice", n)
	}
}

// A script that throws whatever is renewed: its budget outlives a crash and a
// lost lease.
func TestLessons_theScriptThrowsEveryTime(t *testing.T) {
	if testing.Short() {
		t.Skip("asynq takes a minute to notice a dead worker")
	}
	t.Parallel()
	w := newWorld(t)
	g := newGates(w)
	refuse := func(rw http.ResponseWriter, _ *http.Request) bool {
		rw.WriteHeader(http.StatusForbidden)
		return true
	}
	crash, sleep := g.add("crash", &gate{call: refuse}), g.add("sleep", &gate{call: refuse})
	g.live(w, "crash", "crm")
	g.live(w, "sleep", "crm")
	// Each goes down at its second refusal, of three that there may be.
	first := w.start("before-park#2", "--concurrency", "1")
	ids := w.enqueue(1, jobs.Step{CredentialID: "crash", Method: "list_contacts"})
	<-first.Done
	second := w.startWith([]string{"STEPWORKER_STOP_AT=before-park#2"}, "--concurrency", "1")
	more := w.enqueue(1, jobs.Step{CredentialID: "sleep", Method: "list_contacts"})
	second.stopped(w)
	w.start("", "--concurrency", "2")
	for name, one := range map[string]struct {
		*gate
		ids []string
	}{"crash": {crash, ids}, "lost lease": {sleep, more}} {
		results := w.results(one.ids)
		w.failed(jobs.KindAuth, results)
		for id, r := range results {
			if n := one.calledFor(id); n > 4 || r.Refreshes != 2 {
				t.Errorf("%s: %d calls and %d refreshes, want two refreshes, and four calls at most: one was made again", name, n, r.Refreshes)
			}
		}
		w.requests(name, one.gate, 2)
	}
	second.goOn(w)
	// It goes on where it stood; nothing comes of it.
	follow := w.enqueue(1, jobs.Step{CredentialID: "sleep", Method: "list_contacts"})
	w.failed(jobs.KindAuth, w.results(follow))
	w.requests("once the second woke", sleep, 2)
	w.always(3)
}
