package monitoring

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/hibiken/asynq"

	"github.com/stepworker/stepworker/jobs"
)

// A worker lives through nearly everything that may happen to executions, and
// each number is what happened. Then whatever names these numbers is checked
// against them.
func TestMonitoring(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("lives through much, for a minute or two")
	}
	w := newWorld(t)
	for _, part := range []struct {
		name string
		run  func(*world)
	}{
		{"a worker that has done nothing", fresh},
		{"one refresh for five who wait", parked},
		{"revoked, and connected anew", revoked},
		{"a refresh that fails", failing},
		{"a refresh that a person overtakes", overtaken},
		{"renewed and refused", renewedAndRefused},
		{"a session", session},
		{"limits", limits},
		{"turns", turns},
		{"failures", failures},
		{"a queue that nobody reads", paused},
		{"a fault of the worker's own", fault},
	} {
		w.t = t
		if !t.Run(part.name, func(t *testing.T) { w.t = t; part.run(w) }) {
			t.Fatal("what follows builds on it")
		}
	}
	w.t = t
	t.Run("sums", func(t *testing.T) { w.t = t; sums(w) })
	t.Run("documentation", func(t *testing.T) { documentation(t, w.scrape()) })
	t.Run("labels are no ids", func(t *testing.T) { noIDs(t, w.scrape()) })
	t.Run("Prometheus", func(t *testing.T) { inPrometheus(t, w) })
}

// want compares numbers of one scrape, given as name{labels}.
func (w *world) want(f families, want float64, name string, labels ...string) {
	w.t.Helper()
	if got := f.value(name, labels...); got != want {
		w.t.Errorf("stepworker_%s%q is %v, want %v", name, labels, got, want)
	}
}

// becomes waits for a number: those of the whole Redis are some seconds old.
func (w *world) becomes(want float64, name string, labels ...string) {
	w.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		got := w.scrape().value(name, labels...)
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("stepworker_%s%q is %v, want %v", name, labels, got, want)
		}
	}
}

func fresh(w *world) {
	f := w.scrape()
	w.want(f, 1, "ready")
	w.want(f, 1, "build_info")
	w.want(f, 20, "concurrency")
	w.want(f, 259200, "hold_seconds")
	w.want(f, 0, "steps_running")
	w.want(f, 2, "hook_hosts")
	w.want(f, 2, "hook_hosts_idle")
	// What alerts look at is there before it happens for the first time.
	w.want(f, 0, "executions_total", "connector", "acme", "status", "failed")
	w.want(f, 0, "refreshes_total", "connector", "acme", "kind", "oauth2", "verdict", "revoked")
	w.want(f, 0, "refused_after_renewal_total", "connector", "acme")
	w.want(f, 0, "notices_total", "type", "credential.revoked", "result", "given_up")
	w.becomes(0, "credentials", "connector", "acme", "state", "active")
	w.becomes(0, "waiting_oldest_seconds", "reason", "held")
}

func parked(w *world) {
	w.mu.Lock()
	w.gate = make(chan struct{})
	w.mu.Unlock()
	w.putToken("c1", "good")
	begun := time.Now()
	ids := w.run(5, jobs.Step{CredentialID: "c1", Method: "get"}, "")
	w.becomes(5, "attempts_total", "connector", "acme", "end", "parked")
	all := time.Now()
	w.becomes(5, "waiting", "connector", "acme", "reason", "parked")
	w.becomes(1, "credentials", "connector", "acme", "state", "refreshing")
	f := w.scrape()
	w.want(f, 5, "queue_tasks", "queue", "steps", "state", "retry")
	w.want(f, 0, "waiting", "connector", "acme", "reason", "held")
	refused := f.value("refused_calls_total", "connector", "acme")
	if refused < 1 || refused > 5 {
		w.t.Errorf("%v calls were refused", refused)
	}
	if got := f.value("api_seconds", "connector", "acme", "class", "4xx"); got != refused {
		w.t.Errorf("%v answers of 4xx, but %v calls were refused", got, refused)
	}
	least, most := time.Since(all).Seconds(), time.Since(begun).Seconds()
	for _, got := range []float64{f.value("waiting_oldest_seconds", "reason", "parked"), f.value("connector_waiting_oldest_seconds", "connector", "acme", "reason", "parked")} {
		if got < least-1 || got > most+1 {
			w.t.Errorf("the oldest has waited %v s, want %v to %v", got, least, most)
		}
	}
	w.tokens()
	w.wait(ids, jobs.Succeeded)
	f = w.scrape()
	w.want(f, 5, "parked_seconds", "connector", "acme", "reason", "parked")
	if got := f.total("parked_seconds", "connector", "acme"); got < 5*least || got > 5*time.Since(begun).Seconds() {
		w.t.Errorf("five waited %v s in all, each at least %v", got, least)
	}
	w.want(f, 1, "refreshes_total", "connector", "acme", "kind", "oauth2", "verdict", "renewed")
	w.want(f, 1, "refresh_seconds", "connector", "acme")
	if got := f.total("refresh_seconds"); got < least {
		w.t.Errorf("the refresh took %v s, want %v at least", got, least)
	}
	w.want(f, 1, "refresh_waiting", "connector", "acme")
	if got := f.total("refresh_waiting"); got != 5 {
		w.t.Errorf("%v waited for the refresh, want 5", got)
	}
	w.want(f, 5, "executions_total", "connector", "acme", "status", "succeeded")
	w.want(f, 5, "attempts_total", "connector", "acme", "end", "ended")
	w.becomes(0, "waiting", "connector", "acme", "reason", "parked")
	w.becomes(1, "credentials", "connector", "acme", "state", "active")
}

func revoked(w *world) {
	w.mu.Lock()
	w.notice["credential.revoked"] = 410
	w.mu.Unlock()
	w.putToken("c2", "gone")
	ids := w.run(3, jobs.Step{CredentialID: "c2", Method: "get"}, "")
	w.becomes(3, "attempts_total", "connector", "acme", "end", "held")
	w.becomes(3, "waiting", "connector", "acme", "reason", "held")
	w.becomes(1, "credentials", "connector", "acme", "state", "revoked")
	w.becomes(1, "credentials_waited_for", "connector", "acme", "state", "revoked")
	w.becomes(1, "notices_total", "type", "credential.revoked", "result", "given_up")
	f := w.scrape()
	w.want(f, 1, "refreshes_total", "connector", "acme", "kind", "oauth2", "verdict", "revoked")
	if got := f.value("parked_seconds", "reason", "held"); got > 0 {
		w.t.Errorf("%v went on, but nobody has yet", got)
	}
	w.putAlive("c2")
	w.wait(ids, jobs.Succeeded)
	f = w.scrape()
	w.want(f, 3, "parked_seconds", "connector", "acme", "reason", "held")
	w.becomes(1, "notices_total", "type", "credential.recovered", "result", "delivered")
	w.becomes(0, "credentials", "connector", "acme", "state", "revoked")
	w.becomes(0, "credentials_waited_for", "connector", "acme", "state", "revoked")
	w.becomes(0, "waiting", "connector", "acme", "reason", "held")

	w.putToken("c4", "gone") // stays so
	w.run(2, jobs.Step{CredentialID: "c4", Method: "get"}, "")
	w.becomes(2, "waiting", "connector", "acme", "reason", "held")
	w.becomes(1, "credentials", "connector", "acme", "state", "revoked")
}

func failing(w *world) {
	w.mu.Lock()
	w.notice["credential.failing"] = 500
	w.mu.Unlock()
	w.putToken("c3", "flaky")
	ids := w.run(1, jobs.Step{CredentialID: "c3", Method: "get"}, "")
	w.becomes(1, "credentials_failing", "connector", "acme")
	f := w.scrape()
	if got := f.value("refreshes_total", "connector", "acme", "kind", "oauth2", "verdict", "transient"); got < 1 {
		w.t.Errorf("%v refreshes failed", got)
	}
	w.until("the notice is tried again", func() bool {
		return w.scrape().value("notices_total", "type", "credential.failing", "result", "retried") >= 1
	})
	w.putToken("c3", "good")
	w.wait(ids, jobs.Succeeded)
	w.becomes(0, "credentials_failing", "connector", "acme")
}

func overtaken(w *world) {
	w.mu.Lock()
	w.gate = make(chan struct{})
	w.mu.Unlock()
	w.putToken("c6", "good")
	ids := w.run(1, jobs.Step{CredentialID: "c6", Method: "get"}, "")
	w.becomes(1, "credentials", "connector", "acme", "state", "refreshing")
	w.want(w.scrape(), 0, "refresh_leases_lost_total")
	w.putAlive("c6")
	w.wait(ids, jobs.Succeeded)
	w.becomes(1, "refresh_leases_lost_total")
	w.tokens()
}

func renewedAndRefused(w *world) {
	before := w.scrape()
	w.putToken("c5", "good")
	w.run(1, jobs.Step{CredentialID: "c5", Method: "denied"}, jobs.Failed)
	f := w.scrape()
	w.want(f, 1, "failures_total", "connector", "acme", "kind", "auth")
	w.want(f, before.value("refused_calls_total", "connector", "acme")+3, "refused_calls_total", "connector", "acme")
	w.want(f, 2, "refused_after_renewal_total", "connector", "acme")
}

func session(w *world) {
	w.put("s1", "ledger", nil)
	w.run(2, jobs.Step{CredentialID: "s1", Method: "get"}, jobs.Succeeded)
	f := w.scrape()
	w.want(f, 1, "refreshes_total", "connector", "ledger", "kind", "session", "verdict", "renewed")
	w.want(f, 0, "refused_calls_total", "connector", "ledger")
	w.want(f, 3, "api_seconds", "connector", "ledger", "class", "2xx") // the login, too
}

func limits(w *world) {
	for _, id := range []string{"l1", "l2", "l3", "l4", "l5", "l6", "l7"} {
		w.put(id, "limits", nil)
	}
	w.run(1, jobs.Step{CredentialID: "l1", Method: "large"}, jobs.Failed)
	w.run(1, jobs.Step{CredentialID: "l1", Method: "forever"}, jobs.Failed)
	w.run(1, jobs.Step{CredentialID: "l1", Method: "memory"}, jobs.Failed)
	w.run(1, jobs.Step{CredentialID: "l1", Method: "forever", Timeout: jobs.Duration(time.Second)}, jobs.Failed)
	never := 0
	hanging := w.run(1, jobs.Step{CredentialID: "l7", Method: "hang", Timeout: jobs.Duration(2 * time.Second), MaxRetries: &never}, "")
	w.until("it hangs", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.inside["hang"] })
	w.want(w.scrape(), 1, "steps_running")
	w.wait(hanging, jobs.Failed)
	f := w.scrape()
	for _, limit := range []string{"response", "script_time", "script_memory", "step_timeout"} {
		w.want(f, 1, "limits_total", "connector", "limits", "limit", limit)
	}
	w.want(f, 4, "failures_total", "connector", "limits", "kind", "limit")
	w.want(f, 1, "failures_total", "connector", "limits", "kind", "network")
	w.want(f, 1, "api_seconds", "connector", "limits", "class", "none")
	w.want(f, 1, "hook_host_deaths_total")
	w.want(f, 3, "hook_seconds", "event", "before_action")
	w.becomes(0, "steps_running")

	// A refresh may break one, too: its executions are held.
	w.put("k1", "stuck", nil)
	w.run(2, jobs.Step{CredentialID: "k1", Method: "get"}, "")
	w.becomes(1, "refreshes_total", "connector", "stuck", "kind", "session", "verdict", "misconfigured")
	w.becomes(2, "attempts_total", "connector", "stuck", "end", "held")
	f = w.scrape()
	w.want(f, 1, "limits_total", "connector", "stuck", "limit", "script_time")
	w.want(f, 0, "failures_total", "connector", "stuck")
}

func turns(w *world) {
	hanging := w.run(2, jobs.Step{CredentialID: "l2", Method: "hang"}, "")
	w.becomes(1, "deferrals_total", "connector", "limits", "reason", "max_concurrent")
	// An attempt whose execution another attempt begins meanwhile writes nothing.
	w.put("p1", "plain", nil)
	late := w.run(1, jobs.Step{CredentialID: "p1", Method: "hang"}, "")
	w.becomes(2, "steps_running")
	if err := w.rdb.HSet(context.Background(), "stepworker:x:{"+late[0]+"}", "run", "another").Err(); err != nil {
		w.t.Fatal(err)
	}
	w.release()
	w.becomes(1, "attempts_overtaken_total")
	w.wait(hanging, jobs.Succeeded)
	w.run(2, jobs.Step{CredentialID: "l3", Method: "paced"}, jobs.Succeeded)
	w.run(1, jobs.Step{CredentialID: "l4", Method: "busy"}, jobs.Succeeded)
	w.run(1, jobs.Step{CredentialID: "l5", Method: "later"}, jobs.Succeeded)
	w.run(1, jobs.Step{CredentialID: "l5", Method: "unheard_of"}, "")
	w.becomes(1, "deferrals_total", "connector", "limits", "reason", "unknown")
	f := w.scrape()
	w.want(f, 1, "deferrals_total", "connector", "limits", "reason", "429")
	w.want(f, 1, "deferrals_total", "connector", "limits", "reason", "script")
	if rate := f.value("deferrals_total", "connector", "limits", "reason", "rate_limit"); rate < 1 {
		w.t.Errorf("%v deferrals by a rate limit", rate)
	}
	w.want(f, f.value("deferrals_total", "connector", "limits"), "attempts_total", "connector", "limits", "end", "deferred")
}

func failures(w *world) {
	once := 1
	w.run(1, jobs.Step{CredentialID: "l6", Method: "down", MaxRetries: &once}, jobs.Failed)
	w.run(1, jobs.Step{CredentialID: "c1", Method: "missing"}, jobs.Failed)
	w.run(1, jobs.Step{CredentialID: "nobody", Method: "get"}, jobs.Failed)
	if _, err := asynq.NewClientFromRedisClient(w.rdb).Enqueue(asynq.NewTask(jobs.TypeStep, []byte("{")), asynq.Queue("steps"), asynq.TaskID("unreadable")); err != nil {
		w.t.Fatal(err)
	}
	w.becomes(2, "failures_total", "connector", "other", "kind", "input")
	f := w.scrape()
	w.want(f, 1, "attempts_total", "connector", "limits", "end", "retry")
	w.want(f, 2, "api_seconds", "connector", "limits", "class", "5xx")
	w.want(f, 1, "failures_total", "connector", "limits", "kind", "http")
	w.want(f, 1, "failures_total", "connector", "acme", "kind", "http")
	w.want(f, 2, "executions_total", "connector", "other", "status", "failed")
}

func paused(w *world) {
	inspector := asynq.NewInspectorFromRedisClient(w.rdb)
	if err := inspector.PauseQueue("steps"); err != nil {
		w.t.Fatal(err)
	}
	begun := time.Now()
	ids := w.run(3, jobs.Step{CredentialID: "c1", Method: "get"}, "")
	later := time.Now().Add(time.Hour)
	w.run(1, jobs.Step{CredentialID: "c1", Method: "get", ProcessAt: &later}, "")
	enqueued := time.Now()
	f := w.scrape()
	w.want(f, 1, "queue_paused", "queue", "steps")
	w.want(f, 0, "queue_paused", "queue", "refresh")
	w.want(f, 3, "queue_tasks", "queue", "steps", "state", "pending")
	w.want(f, 1, "queue_tasks", "queue", "steps", "state", "scheduled")
	w.want(f, 0, "queue_tasks", "queue", "steps.2", "state", "pending")
	w.want(f, 0, "queue_latency_seconds", "queue", "refresh")
	if got := f.value("queue_tasks", "queue", "steps", "state", "archived"); got < 8 {
		w.t.Errorf("%v archived tasks", got)
	}
	w.until("the first has been pending for a second", func() bool {
		got := w.scrape().value("queue_latency_seconds", "queue", "steps")
		if got > time.Since(begun).Seconds() || got < time.Since(enqueued).Seconds()-0.5 {
			w.t.Fatalf("pending for %v s, want %v", got, time.Since(begun).Seconds())
		}
		return got > 1
	})
	// One that is resumed has a time of its own, though asynq notes none.
	w.putToken("c4", "good")
	w.becomes(5, "queue_tasks", "queue", "steps", "state", "pending")
	for _, id := range ids {
		if err := inspector.DeleteTask("steps", id); err != nil {
			w.t.Fatal(err)
		}
	}
	w.until("the resumed one has been pending for a while", func() bool {
		return w.scrape().value("queue_latency_seconds", "queue", "steps") > 0.1
	})
	if err := inspector.UnpauseQueue("steps"); err != nil {
		w.t.Fatal(err)
	}
	w.becomes(0, "queue_tasks", "queue", "steps", "state", "pending")
	w.becomes(0, "queue_paused", "queue", "steps")
	w.becomes(0, "waiting", "connector", "acme", "reason", "held")
	w.want(w.scrape(), 0, "queue_latency_seconds", "queue", "steps")
}

func fault(w *world) {
	_, err := asynq.NewClientFromRedisClient(w.rdb).Enqueue(asynq.NewTask(jobs.TypeStep, []byte(`{"v":1000000}`)), asynq.Queue("steps"), asynq.TaskID("newer"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.becomes(1, "worker_faults_total")
	w.want(w.scrape(), 0, "ready")
	inspector := asynq.NewInspectorFromRedisClient(w.rdb)
	w.until("the task is deleted", func() bool { return inspector.DeleteTask("steps", "newer") == nil })
	w.becomes(1, "ready")
}

func sums(w *world) {
	f := w.scrape()
	w.want(f, f.value("executions_total"), "step_seconds")
	w.want(f, f.value("executions_total"), "attempts_total", "end", "ended")
	w.want(f, f.value("executions_total", "status", "failed"), "failures_total")
	w.want(f, f.value("failures_total", "kind", "limit")+1, "limits_total") // and a refresh
	w.want(f, f.value("attempts_total", "end", "deferred"), "deferrals_total")
	for _, class := range []string{"read", "write", "script", "pipeline"} {
		if f.value("redis_seconds", "command", class) < 1 {
			w.t.Errorf("no command of class %s was measured", class)
		}
	}
	for _, kind := range []string{"unreachable", "refused", "failed"} {
		w.want(f, 0, "redis_errors_total", "kind", kind)
	}
}

func noIDs(t *testing.T, f families) {
	for name, family := range f {
		for _, s := range family.GetMetric() {
			for _, l := range s.GetLabel() {
				v := l.GetValue()
				for _, id := range []string{"c1", "c2", "c3", "c4", "c5", "c6", "l1", "s1", "k1", "nobody", "unreadable"} {
					if v == id || strings.Contains(v, "token") {
						t.Errorf("%s has the label %s=%q", name, l.GetName(), v)
					}
				}
			}
		}
		if n := len(family.GetMetric()); strings.HasPrefix(name, "stepworker_") && n > 75 {
			t.Errorf("%s has %d series with five connectors", name, n)
		}
	}
}

// An execution changes its worker: the one that takes it up counts so, and the
// one that stood still counts a fault of its own, or, where it sees the other
// attempt before it sees that it stood still, that it was overtaken.
func TestMonitoring_takenOver(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("waits for a lease to lapse, a minute or two")
	}
	w := newWorld(t)
	w.put("p1", "plain", nil)
	ids := w.run(1, jobs.Step{CredentialID: "p1", Method: "hang"}, "")
	w.until("it hangs", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.inside["hang"] })
	first, stopped := w.worker, w.process
	if err := stopped.Signal(stop); err != nil {
		t.Fatal(err)
	}
	w.start()
	second := w.worker
	deadline := time.Now().Add(4 * time.Minute)
	for w.scrape().value("executions_taken_over_total") != 1 {
		if time.Now().After(deadline) {
			t.Fatal("nobody took it up")
		}
		time.Sleep(200 * time.Millisecond)
	}
	w.release()
	w.wait(ids, jobs.Succeeded)
	if err := stopped.Signal(goOn); err != nil {
		t.Fatal(err)
	}
	w.worker = first
	w.until("it tells that nothing of its attempt counts", func() bool {
		s := w.scrape()
		return s.value("worker_faults_total")+s.value("attempts_overtaken_total") == 1
	})
	w.want(w.scrape(), 0, "executions_total", "connector", "plain", "status", "succeeded")
	w.worker = second
	w.want(w.scrape(), 1, "executions_total", "connector", "plain", "status", "succeeded")
}
