package failover

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/programtest"
	"github.com/stepworker/stepworker/internal/redistest"
	"github.com/stepworker/stepworker/jobs"
)

// Two workers, steps of every sort, tokens that die: a replica takes the master's
// place on order, then because the master hangs, then because it is killed. Every
// step ends well, every credential is renewed, and no spent token is sent.
func TestLoad_throughFailovers(t *testing.T) {
	t.Parallel()
	for kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, kind, redistest.Options{})
			connectors := map[string]string{"a": "acme", "b": "acme", "limited": "limited", "narrow": "narrow"}
			for id, connector := range connectors {
				w.put(id, connector)
			}
			workers := []*programtest.Process{w.start(), w.start()}
			l := &load{w: w, steps: map[string]jobs.Step{}, stop: make(chan struct{})}
			var running sync.WaitGroup
			running.Go(l.run)
			// In a cluster three servers: of a credential, of the queue, of a limit.
			failover := func(key string, how func(*redistest.Server), after func(*redistest.Server)) {
				t.Helper()
				for id := range connectors {
					w.api.KillToken(id)
				}
				old := w.redis.holder(key)
				l.more(20)
				begun := time.Now()
				told := func(what string) { t.Logf("%s: %s after %s", key, what, time.Since(begun).Round(time.Second/10)) }
				how(old)
				w.redis.replaced(key, old)
				told("another master")
				l.more(20)
				told("steps are accepted again")
				after(old)
				for _, p := range workers {
					w.until("the worker is ready again", func() bool { return readyz(p) == 200 })
				}
				told("the workers are ready")
				// Else the next one takes with it all that came since the last one.
				w.until("replicas follow the new master", func() bool { return w.redis.holder(key).Replicas() == w.redis.followers() })
				told("replicas follow")
				l.more(40)
			}
			failover("stepworker:cred:{a}", func(*redistest.Server) { w.redis.order("stepworker:cred:{a}") }, func(*redistest.Server) {})
			failover("stepworker:rate:{limited}", (*redistest.Server).Freeze, (*redistest.Server).Thaw)
			failover("asynq:{steps}:pending", (*redistest.Server).Kill, (*redistest.Server).Restart)
			close(l.stop)
			running.Wait()
			results, lost := w.results(l.steps)
			for id, r := range results {
				if r.Status != jobs.Succeeded {
					t.Errorf("%s: %s %+v", id, r.Status, r.Error)
				}
				if s := l.steps[id]; s.Method == "pages" && r.Pages != pagesOf+1 {
					t.Errorf("%s: %d pages", id, r.Pages)
				}
			}
			for id := range connectors {
				s, err := w.store.Status(t.Context(), id)
				if err != nil || s.State != credentials.Active {
					t.Errorf("credential %s: %+v, %v", id, s, err)
				}
			}
			if n := w.api.Reused(); n != 0 {
				t.Errorf("%d spent tokens were sent", n)
			}
			told, missing := w.replies("flows"), 0
			for id, s := range l.steps {
				if s.ReplyTo != nil && !told["r."+id] {
					missing++
				}
			}
			// What was acknowledged and not yet replicated went with its master.
			if few := len(l.steps) / 20; lost > few || missing > few {
				t.Errorf("of %d steps Redis lost %d, and %d replies", len(l.steps), lost, missing)
			}
			t.Logf("%d steps, %d served more than once; Redis lost %d of them and %d replies", len(l.steps), w.api.ServedTwice(), lost, missing)
		})
	}
}

// load enqueues steps one after another.
type load struct {
	w    *world
	stop chan struct{}

	mu    sync.Mutex
	steps map[string]jobs.Step
}

func (l *load) run() {
	sorts := []jobs.Step{
		{CredentialID: "a", Method: "list"}, {CredentialID: "b", Method: "list", ReplyTo: &jobs.ReplyTo{Queue: "flows", Type: "step:finished"}},
		{CredentialID: "a", Method: "pages"}, {CredentialID: "b", Method: "count"},
		{CredentialID: "limited", Method: "list"}, {CredentialID: "narrow", Method: "list"},
	}
	tick := time.NewTicker(30 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-l.stop:
			return
		case <-tick.C:
		}
		s := sorts[n%len(sorts)]
		s.ExecutionID = fmt.Sprintf("load-%d", n)
		l.w.accept(s)
		l.mu.Lock()
		l.steps[s.ExecutionID] = s
		l.mu.Unlock()
	}
}

// more waits until so many more steps are accepted.
func (l *load) more(n int) {
	l.w.t.Helper()
	accepted := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.steps)
	}
	want := accepted() + n
	l.w.until("more steps are accepted", func() bool { return accepted() >= want })
}
