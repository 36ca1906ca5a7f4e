package main

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stepworker/stepworker/internal/faultproxy"
	"github.com/stepworker/stepworker/jobs"
)

// Redis refuses to write just after the provider rotated, as it does without a
// replica or out of memory: the token is kept in memory, and saved once Redis
// takes it.
func TestLessons_redisRefusesTheSave(t *testing.T) {
	if testing.Short() {
		t.Skip("worker processes")
	}
	t.Parallel()
	for _, c := range []struct {
		name, setting, to string
		lasts             time.Duration
	}{
		{"no replica", "min-replicas-to-write", "5", 6 * time.Second},
		{"out of memory", "maxmemory", "1", 6 * time.Second},
		{"no replica, beyond the lease", "min-replicas-to-write", "5", 70 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			w := newWorld(t)
			g := newGates(w)
			refuses := make(chan struct{})
			var once sync.Once
			at := g.add("c", &gate{token: func(_ int, rw http.ResponseWriter, r *http.Request, next http.Handler) {
				rec := spend(r, next)
				once.Do(func() {
					if err := w.rdb.ConfigSet(ctx, c.setting, c.to).Err(); err != nil {
						t.Error(err)
					}
					close(refuses)
				})
				give(rw, rec)
			}})
			g.dead(w, "c", "crm")
			for range 2 {
				w.start("", "--concurrency", "20")
			}
			ids := w.enqueue(40, jobs.Step{CredentialID: "c", Method: "list_contacts", MaxRetries: new(int)})
			<-refuses
			w.elapse(c.lasts, func() {
				if v := w.status("c").Version; v != 1 {
					t.Fatalf("version %d is stored though Redis refuses writes", v)
				}
			})
			w.requests("while Redis refuses writes", at, 1)
			if err := w.rdb.ConfigSet(ctx, c.setting, "0").Err(); err != nil {
				t.Fatal(err)
			}
			w.succeed(ids)
			if v := w.status("c").Version; v != 2 {
				t.Errorf("version %d is stored, want 2", v)
			}
			w.requests("once it takes them again", at, 1)
			w.always(0)
		})
	}
}

// The save is done, and its answer gets lost.
func TestLessons_answerOfTheSaveIsLost(t *testing.T) {
	if testing.Short() {
		t.Skip("worker processes")
	}
	t.Parallel()
	w := newWorld(t)
	g := newGates(w)
	at := g.add("c", &gate{})
	g.dead(w, "c", "crm")
	proxies := []*faultproxy.Proxy{faultproxy.New(t, w.redis.Addr), faultproxy.New(t, w.redis.Addr)}
	lost := make(chan struct{}, len(proxies))
	for _, p := range proxies {
		w.startWith([]string{"STEPWORKER_REDIS=" + p.URL}, "--concurrency", "20")
		once := p.LoseAnswer(`"verdict":"renewed"`) // only a save says so
		go func() {
			select {
			case <-once:
				lost <- struct{}{}
			case <-t.Context().Done():
			}
		}()
	}
	ids := w.enqueue(40, jobs.Step{CredentialID: "c", Method: "list_contacts", MaxRetries: new(int)})
	w.succeed(ids)
	select {
	case <-lost:
	default:
		t.Error("no answer was lost")
	}
	if v := w.status("c").Version; v != 2 {
		t.Errorf("version %d is stored, want 2", v)
	}
	w.requests("a save that was done twice", at, 1)
	w.always(0)
}

// An execution has ended, and the answer to that gets lost: it has ended, and
// does not run once more.
func TestLessons_answerOfTheEndIsLost(t *testing.T) {
	if testing.Short() {
		t.Skip("worker processes")
	}
	t.Parallel()
	ctx := context.Background()
	w := newWorld(t)
	g := newGates(w)
	fails := &gate{call: func(rw http.ResponseWriter, _ *http.Request) bool {
		rw.WriteHeader(http.StatusBadRequest)
		return true
	}}
	gated := map[string]*gate{"succeeded": g.add("succeeded", &gate{}), "failed": g.add("failed", fails)}
	far := faultproxy.New(t, w.redis.Addr)
	w.startWith([]string{"STEPWORKER_REDIS=" + far.URL}, "--concurrency", "1")
	for status, at := range gated {
		g.live(w, status, "orders")
		lost := far.LoseAnswer(`"status":"` + status + `"`)
		ids := w.enqueue(1, jobs.Step{CredentialID: status, Method: "list_orders", MaxRetries: new(int)})
		for id, r := range w.results(ids) {
			if string(r.Status) != status {
				t.Errorf("%s: it is %s", status, r.Status)
			}
			<-lost
			w.until("its task has ended: "+status, func() bool { return w.rdb.LLen(ctx, "asynq:{steps}:active").Val() == 0 })
			if n := w.rdb.ZCard(ctx, "asynq:{steps}:retry").Val(); n != 0 {
				t.Errorf("%s: it is to run again", status)
			}
			if n := at.calledFor(id); n != 1 {
				t.Errorf("%s: %d calls", status, n)
			}
		}
	}
	w.always(1)
}

// One worker loses sight of Redis right after the provider rotated, while
// another sees it all the time.
func TestLessons_cutOffFromRedisWithTheToken(t *testing.T) {
	if testing.Short() {
		t.Skip("worker processes")
	}
	t.Parallel()
	for name, fault := range map[string]func(*faultproxy.Proxy){
		"its connections are cut": (*faultproxy.Proxy).Cut,
		"Redis falls silent":      (*faultproxy.Proxy).Silence,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			g := newGates(w)
			far := faultproxy.New(t, w.redis.Addr)
			asked, carryOn, off := make(chan struct{}), make(chan struct{}), make(chan struct{})
			at := g.add("c", &gate{token: func(n int, rw http.ResponseWriter, r *http.Request, next http.Handler) {
				rec := spend(r, next)
				if n == 1 {
					close(asked)
					<-carryOn
					fault(far)
					close(off)
				}
				give(rw, rec)
			}})
			g.dead(w, "c", "crm")
			w.startWith([]string{"STEPWORKER_REDIS=" + far.URL}, "--concurrency", "20")
			const n = 20
			step := jobs.Step{CredentialID: "c", Method: "list_contacts", MaxRetries: new(int)}
			ids := w.enqueue(n, step)
			<-asked
			w.waiting("c", n)
			w.start("", "--concurrency", "20")
			close(carryOn)
			<-off
			// The other one takes these, and those that it wakes by their timers.
			ids = append(ids, w.enqueue(n, step)...)
			w.waiting("c", 2*n)
			w.elapse(10*time.Second, func() {
				if v := w.status("c").Version; v != 1 {
					t.Fatalf("version %d is stored, and the worker that has it is cut off", v)
				}
			})
			w.requests("while it is cut off", at, 1)
			far.Heal()
			w.succeed(ids)
			if v := w.status("c").Version; v != 2 {
				t.Errorf("version %d is stored, want 2", v)
			}
			w.requests(name, at, 1)
			w.always(0)
		})
	}
}

// Redis dies as kill -9 kills it right after the save, before anybody has gone
// on, and comes back with its file.
func TestLessons_redisKilledAfterTheSave(t *testing.T) {
	if testing.Short() {
		t.Skip("worker processes")
	}
	t.Parallel()
	w := newWorld(t)
	g := newGates(w)
	at := g.add("c", &gate{})
	g.dead(w, "c", "crm")
	saver := w.startWith([]string{"STEPWORKER_STOP_AT=refresh-saved"}, "--concurrency", "20")
	ids := w.enqueue(20, jobs.Step{CredentialID: "c", Method: "list_contacts", MaxRetries: new(int)})
	saver.stopped(w)
	w.redis.Flush() // an everysec file: what was acknowledged is written, if not yet on the disk
	w.redis.Kill()
	w.redis.Restart()
	if v := w.status("c").Version; v != 2 {
		t.Fatalf("version %d is in the file, want 2", v)
	}
	w.start("", "--concurrency", "20")
	saver.goOn(w)
	w.succeed(ids)
	w.requests("its token came back with the file", at, 1)
	w.always(0)
}
