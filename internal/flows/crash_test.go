package flows_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hibiken/asynq"

	"github.com/stepworker/stepworker/jobs"
)

// A worker is killed at each point of a cancel; another one ends the
// execution, once, and nothing is left.
func TestCancel_workerKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("the lease of a killed worker's task lapses after a minute")
	}
	// at is the point, active that the execution is in its call when it is cancelled.
	for _, c := range []struct {
		at     string
		active bool
	}{
		{"cancel-claimed", false}, {"replied", false}, {"stored", false}, {"ended", false}, {"cancelled", false},
		{"replied", true}, {"stored", true}, {"ended", true},
	} {
		t.Run(fmt.Sprintf("%s active=%v", c.at, c.active), func(t *testing.T) {
			t.Parallel()
			w := newCrashRig(t)
			dead := w.worker("STEPWORKER_KILL_AT=" + c.at)
			id := w.enqueue(t, c.active)
			f := &flow{rig: w.rig, user: "default"}
			answered := make(chan string, 1)
			go func() {
				exit, out, stderr := f.enqueue("", "--cancel", id, "--timeout", "150s")
				answered <- fmt.Sprint(exit, " ", out, " ", stderr)
			}()
			select {
			case <-dead.Done:
			case <-time.After(time.Minute):
				t.Fatal("the worker was not killed")
			}
			w.worker()
			if got := <-answered; !strings.HasPrefix(got, "0 [") || !strings.Contains(got, "status:cancelled") {
				t.Errorf("got %s", got)
			}
			w.over(t, id, "cancelled")
			if n := w.called(id); n > 1 || n == 1 && !c.active {
				t.Errorf("it was called %d times", n)
			}
		})
	}
}

// A worker dies in a call: the execution is cancelled without waiting for the
// lease of the dead one, and never called again.
func TestCancel_ofADeadWorker(t *testing.T) {
	if testing.Short() {
		t.Skip("the lease of a killed worker's task lapses after a minute")
	}
	t.Parallel()
	w := newCrashRig(t)
	dead := w.worker()
	id := w.enqueue(t, true)
	f := &flow{rig: w.rig, user: "default"}
	dead.Kill()
	w.worker()
	exit, out, stderr := f.enqueue("", "--cancel", id, "--timeout", "30s")
	if exit != 0 || len(out) != 1 || out[0]["status"] != "cancelled" {
		t.Fatalf("exit %d: %v %s", exit, out, stderr)
	}
	if got := fmt.Sprint(out[0]["error"]); !strings.Contains(got, "while its call was under way") {
		t.Errorf("got %s", got)
	}
	w.over(t, id, "cancelled")
	if n := w.called(id); n != 1 {
		t.Errorf("it was called %d times", n)
	}
}

// Without any worker what was asked for is noted; the next worker does it.
func TestCancel_noWorkerRuns(t *testing.T) {
	t.Parallel()
	w := newCrashRig(t)
	id := w.enqueue(t, false)
	f := &flow{rig: w.rig, user: "default"}
	exit, out, stderr := f.enqueue("", "--cancel", id, "--timeout", "5s")
	if exit != 3 || len(out) != 1 || out[0]["status"] != "pending" || !strings.Contains(stderr, "no worker runs: what was asked for is noted, and done as soon as one does") {
		t.Fatalf("exit %d: %v %s", exit, out, stderr)
	}
	w.worker()
	if exit, out, stderr = f.enqueue("", "--cancel", id); exit != 0 || out[0]["status"] != "cancelled" {
		t.Fatalf("exit %d: %v %s", exit, out, stderr)
	}
	w.over(t, id, "cancelled")
}

type crashRig struct {
	*rig
	mu    sync.Mutex
	calls map[string]int
}

func newCrashRig(t *testing.T) *crashRig {
	t.Helper()
	w := &crashRig{calls: map[string]int{}}
	api := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.calls[r.Header.Get("Idempotency-Key")]++
		w.mu.Unlock()
		<-r.Context().Done()
	}))
	t.Cleanup(func() { api.CloseClientConnections(); api.Close() })
	w.rig = newRig(t, strings.Replace(connector, "endpoint: /hangs", "endpoint: /hangs, idempotency_header: Idempotency-Key", 1), api)
	return w
}

func (w *crashRig) called(id string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calls[id]
}

// enqueue enqueues an execution: one in its call, or one that is scheduled.
func (w *crashRig) enqueue(t *testing.T, active bool) (id string) {
	t.Helper()
	at := time.Now().Add(time.Hour)
	step := &jobs.Step{CredentialID: "c", Method: "hangs", ProcessAt: &at, ReplyTo: &jobs.ReplyTo{Queue: "flows", Type: "done"}}
	if active {
		step.ProcessAt = nil
	}
	r, err := w.client.Enqueue(context.Background(), step)
	if err != nil {
		t.Fatal(err)
	}
	if active {
		w.until("it is in its call", func() bool { return w.called(r.ExecutionID) == 1 })
	}
	return r.ExecutionID
}

// over waits until nothing is left of an execution but its end and its reply.
func (w *crashRig) over(t *testing.T, id, status string) {
	t.Helper()
	ctx := context.Background()
	if end := w.rdb.HGet(ctx, "stepworker:x:{"+id+"}", "end").Val(); end != status {
		t.Errorf("it ended %s", end)
	}
	inspector := asynq.NewInspectorFromRedisClient(w.rdb)
	info, err := inspector.GetTaskInfo("flows", "r."+id)
	if err != nil || !strings.Contains(string(info.Payload), `"status":"`+status+`"`) {
		t.Errorf("its reply: %v", err)
	}
	w.until("nothing else is left of it", func() bool {
		for _, key := range w.rdb.Keys(ctx, "*").Val() {
			switch {
			case key == "stepworker:r:{"+id+"}" || key == "stepworker:x:{"+id+"}" || strings.HasSuffix(key, ":t:r."+id) || strings.HasPrefix(key, "asynq:{refresh}:t:"):
			case strings.Contains(key, id):
				return false
			case strings.HasPrefix(key, "stepworker:underway:"):
				if w.rdb.ZCard(ctx, key).Val() > 0 {
					return false
				}
			}
		}
		return true
	})
}
