package jobs_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/internal/redistest"
	"github.com/stepworker/stepworker/jobs"
)

// desk is a Redis that nobody works on: what is enqueued stays.
type desk struct {
	t         *testing.T
	redis     *redistest.Server
	rdb       redis.UniversalClient
	client    *jobs.Client
	inspector *asynq.Inspector
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	d := &desk{t: t, redis: redistest.New(t)}
	d.rdb = d.redis.Client(t)
	d.client, d.inspector = jobs.NewClient(d.rdb), asynq.NewInspectorFromRedisClient(d.rdb)
	return d
}

// queue is where an execution's task stands.
func (d *desk) queue(id string) string {
	return d.rdb.HGet(context.Background(), "stepworker:x:{"+id+"}", "q").Val()
}

// tag of the step that stands in an execution's task.
func (d *desk) tag(queue, id string) string {
	d.t.Helper()
	info, err := d.inspector.GetTaskInfo(queue, id)
	if err != nil {
		d.t.Fatalf("%s: %v", id, err)
	}
	var step jobs.Step
	if err := json.Unmarshal(info.Payload, &step); err != nil {
		d.t.Fatal(err)
	}
	return step.Tag
}

func (d *desk) enqueue(step *jobs.Step) jobs.Receipt {
	d.t.Helper()
	r, err := d.client.Enqueue(context.Background(), step)
	if err != nil {
		d.t.Fatal(err)
	}
	return r
}

func tagged(id, tag string) *jobs.Step {
	return &jobs.Step{ExecutionID: id, CredentialID: "c", Method: "m", Tag: tag}
}

func TestEnqueueBatch_ofStepsWithOneIDTheFirstRuns(t *testing.T) {
	d := newDesk(t)
	invalid := tagged("b", "invalid")
	invalid.Method = ""
	steps := []*jobs.Step{tagged("a", "first"), tagged("a", "second"), invalid, tagged("b", "valid"), tagged("a", "third")}
	for i := range 200 { // enough that the second might be quicker
		steps = append(steps, tagged(fmt.Sprint("x", i), "first"), tagged(fmt.Sprint("x", i), "second"))
	}
	want := []string{"enqueued", "duplicate", "method is missing", "enqueued", "duplicate"}
	for range 200 {
		want = append(want, "enqueued", "duplicate")
	}
	var got []string
	for _, r := range d.client.EnqueueBatch(context.Background(), steps) {
		if r.Err != nil {
			r.Status = r.Err.Error()
		}
		got = append(got, r.Status)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatal(diff)
	}
	for i := range 200 {
		if tag := d.tag(d.queue(fmt.Sprint("x", i)), fmt.Sprint("x", i)); tag != "first" {
			t.Fatalf("x%d: the %s step runs", i, tag)
		}
	}
	if tag := d.tag("steps", "b"); tag != "valid" {
		t.Errorf("b: the %s step runs", tag)
	}
}

// Whoever is told that his step was enqueued, his runs, and nobody else is.
func TestEnqueueBatch_ofProcessesWithOneIDOnlyOneEnqueues(t *testing.T) {
	d := newDesk(t)
	const processes, ids = 4, 300
	var receipts [processes][]jobs.Receipt
	var wg sync.WaitGroup
	for p := range processes {
		client := jobs.NewClient(d.redis.Client(t))
		steps := make([]*jobs.Step, ids)
		for i := range steps {
			steps[i] = tagged(fmt.Sprint("x", i), fmt.Sprint(p))
		}
		wg.Go(func() { receipts[p] = client.EnqueueBatch(context.Background(), steps) })
	}
	wg.Wait()
	for i := range ids {
		var enqueued []string
		for p := range processes {
			switch r := receipts[p][i]; {
			case r.Err != nil:
				t.Fatal(r.Err)
			case r.Status == jobs.Enqueued:
				enqueued = append(enqueued, fmt.Sprint(p))
			}
		}
		if diff := cmp.Diff([]string{d.tag(d.queue(fmt.Sprint("x", i)), fmt.Sprint("x", i))}, enqueued); diff != "" {
			t.Fatalf("x%d: (-runs +told so):\n%s", i, diff)
		}
	}
}

// A claim is what stands in Redis when somebody died between claim and task.
func TestEnqueue_overAClaimWithoutATask(t *testing.T) {
	d := newDesk(t)
	ctx := context.Background()
	long := time.Now().Add(-time.Minute).UnixMilli()
	for name, c := range map[string]struct {
		claim []any
		queue string // in which it then stands
	}{
		"abandoned":             {[]any{"q", "slow", "at", long, "own", "somebody", "claimed", long}, "slow"},
		"of an execution's own": {[]any{"q", "steps", "at", long, "att", 3, "why", "parked"}, "steps"},
	} {
		t.Run(name, func(t *testing.T) {
			id := fmt.Sprint("claim-", len(name))
			if err := d.rdb.HSet(ctx, "stepworker:x:{"+id+"}", c.claim...).Err(); err != nil {
				t.Fatal(err)
			}
			if r := d.enqueue(tagged(id, "mine")); r.Status != jobs.Enqueued {
				t.Errorf("got %s", r.Status)
			}
			if tag := d.tag(c.queue, id); tag != "mine" {
				t.Errorf("%s runs", tag)
			}
			if n := d.rdb.HExists(ctx, "stepworker:x:{"+id+"}", "att").Val(); n {
				t.Error("the budgets of the lost execution are left")
			}
			if r := d.enqueue(tagged(id, "again")); r.Status != jobs.Duplicate {
				t.Errorf("again: %s", r.Status)
			}
		})
	}
}

func TestEnqueue_whileAnotherIsJustEnqueueing(t *testing.T) {
	d := newDesk(t)
	claimed := func(id string) {
		t.Helper()
		now := time.Now().UnixMilli()
		if err := d.rdb.HSet(context.Background(), "stepworker:x:{"+id+"}", "q", "steps", "at", now, "own", "other", "claimed", now+5000).Err(); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("and does", func(t *testing.T) {
		claimed("lives")
		receipt := make(chan jobs.Receipt)
		go func() {
			r, _ := d.client.Enqueue(context.Background(), tagged("lives", "mine"))
			receipt <- r
		}()
		other := asynq.NewClientFromRedisClient(d.rdb)
		if _, err := other.Enqueue(asynq.NewTask(jobs.TypeStep, []byte(`{"v":1,"tag":"other"}`)), asynq.TaskID("lives"), asynq.Queue("steps")); err != nil {
			t.Fatal(err)
		}
		if r := <-receipt; r.Status != jobs.Duplicate {
			t.Errorf("got %+v", r)
		}
		if tag := d.tag("steps", "lives"); tag != "other" {
			t.Errorf("%s runs", tag)
		}
	})
	t.Run("and is given up", func(t *testing.T) {
		claimed("hangs")
		ctx, cancel := context.WithCancel(context.Background())
		receipt := make(chan jobs.Receipt)
		go func() {
			r, _ := d.client.Enqueue(ctx, tagged("hangs", "mine"))
			receipt <- r
		}()
		cancel()
		if r := <-receipt; r.Err == nil || r.ExecutionID != "hangs" {
			t.Errorf("got %+v", r)
		}
	})
}

// deaf loses one answer of Redis: the first to the nth command that names id.
type deaf struct {
	net.Conn
	id   []byte
	left *atomic.Int32
	lost bool
}

func (c *deaf) Write(b []byte) (int, error) {
	if bytes.Contains(b, c.id) && c.left.Add(-1) == 0 {
		c.lost = true
	}
	return c.Conn.Write(b)
}

func (c *deaf) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.lost {
		_ = c.Close()
		return 0, net.ErrClosed
	}
	return n, err
}

// The Redis client repeats a command whose answer was lost. That it was
// carried out the first time makes nobody's step a duplicate of itself.
func TestEnqueue_ownRetryAfterALostAnswerIsEnqueued(t *testing.T) {
	d := newDesk(t)
	d.enqueue(tagged("before", "")) // loads asynq's scripts
	for name, nth := range map[string]int32{"of the claim": 1, "of the task": 2} {
		t.Run(name, func(t *testing.T) {
			id, left := fmt.Sprint("lost-", nth), &atomic.Int32{}
			left.Store(nth)
			rdb := redis.NewClient(&redis.Options{Addr: d.redis.Addr, Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
				conn, err := new(net.Dialer).DialContext(ctx, network, addr)
				return &deaf{Conn: conn, id: []byte(id), left: left}, err
			}})
			defer rdb.Close()
			r, err := jobs.NewClient(rdb).Enqueue(context.Background(), tagged(id, "mine"))
			if err != nil || r.Status != jobs.Enqueued {
				t.Errorf("%+v, %v", r, err)
			}
			if left.Load() >= 0 {
				t.Error("no answer was lost")
			}
			if tag := d.tag("steps", id); tag != "mine" {
				t.Errorf("%s runs", tag)
			}
		})
	}
}

func TestEnqueue_nilIsInvalid(t *testing.T) {
	d := newDesk(t)
	var invalid *jobs.InvalidError
	if _, err := d.client.Enqueue(context.Background(), nil); !errors.As(err, &invalid) {
		t.Errorf("got %v", err)
	}
	got := d.client.EnqueueBatch(context.Background(), []*jobs.Step{nil, tagged("a", "")})
	if !errors.As(got[0].Err, &invalid) || got[1].Status != jobs.Enqueued {
		t.Errorf("got %+v", got)
	}
}

// asynq's archive outlives a result by far.
func TestEnqueue_afterItsResultExpiredTheIDIsFree(t *testing.T) {
	d := newDesk(t)
	d.enqueue(tagged("a", "first"))
	if err := d.inspector.ArchiveTask("steps", "a"); err != nil {
		t.Fatal(err)
	}
	if r := d.enqueue(tagged("a", "second")); r.Status != jobs.Duplicate {
		t.Errorf("while its record is kept: %s", r.Status)
	}
	d.forget("a")
	if r := d.enqueue(tagged("a", "third")); r.Status != jobs.Enqueued || d.tag("steps", "a") != "third" {
		t.Errorf("got %s, the %s step runs", r.Status, d.tag("steps", "a"))
	}
}

// forget does what the end of a retention does.
func (d *desk) forget(id string) {
	d.t.Helper()
	for _, key := range []string{"stepworker:x:{" + id + "}", "stepworker:r:{" + id + "}"} {
		if err := d.rdb.Del(context.Background(), key).Err(); err != nil {
			d.t.Fatal(err)
		}
	}
}

// end writes an execution's result, as a worker does.
func (d *desk) end(id string) {
	d.t.Helper()
	ctx := context.Background()
	if err := d.rdb.HSet(ctx, "stepworker:x:{"+id+"}", "q", "steps", "end", "succeeded").Err(); err != nil {
		d.t.Fatal(err)
	}
	if err := d.rdb.Set(ctx, "stepworker:r:{"+id+"}", `{"execution_id":"`+id+`","status":"succeeded"}`, 0).Err(); err != nil {
		d.t.Fatal(err)
	}
}

// waitFor waits on its own: what it returns is what ended, and the error.
func (d *desk) waitFor(ids ...string) func() ([]string, error) {
	type answer struct {
		ended []string
		err   error
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	done := make(chan answer, 1)
	go func() {
		defer cancel()
		var a answer
		a.err = d.client.Wait(ctx, ids, func(r *jobs.Result) error { a.ended = append(a.ended, r.ExecutionID); return nil })
		done <- a
	}()
	return func() ([]string, error) { a := <-done; return a.ended, a.err }
}

func TestWait_doesNotHangOnWhatIsUnknown(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.end("ended")
	d.enqueue(tagged("expired", ""))
	if err := d.inspector.ArchiveTask("steps", "expired"); err != nil {
		t.Fatal(err)
	}
	d.forget("expired")
	d.enqueue(tagged("enqueued", ""))
	flow := asynq.NewClientFromRedisClient(d.rdb)
	if _, err := flow.Enqueue(asynq.NewTask(jobs.TypeStep, []byte(`{}`)), asynq.TaskID("by-asynq"), asynq.Queue("other")); err != nil {
		t.Fatal(err)
	}
	answer := d.waitFor("nobody", "ended", "by-asynq", "expired", "enqueued")

	// A later call that has made up its mind shows that the first had the time.
	var unknown *jobs.UnknownError
	if ended, err := d.waitFor("nobody")(); !errors.As(err, &unknown) || ended != nil {
		t.Fatalf("%v, %v", ended, err)
	}
	d.end("by-asynq")
	d.end("enqueued")
	ended, err := answer()
	if diff := cmp.Diff([]string{"ended", "by-asynq", "enqueued"}, ended); diff != "" {
		t.Error(diff)
	}
	if !errors.As(err, &unknown) {
		t.Fatalf("got %v", err)
	}
	if diff := cmp.Diff([]string{"nobody", "expired"}, unknown.IDs); diff != "" {
		t.Error(diff)
	}
}

func TestWait_givesUpAnExecutionWhoseTaskWasDeleted(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes as long as a claim is respected")
	}
	t.Parallel()
	d := newDesk(t)
	d.enqueue(tagged("deleted", ""))
	answer := d.waitFor("deleted")
	if err := d.inspector.DeleteTask("steps", "deleted"); err != nil {
		t.Fatal(err)
	}
	var unknown *jobs.UnknownError
	if _, err := answer(); !errors.As(err, &unknown) {
		t.Errorf("got %v", err)
	}
}

// A cluster may lose an execution's end in a failover and keep its task, which is
// done: who waits is told, and the id may be used again.
func TestWait_ofAnEndThatRedisLost(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes as long as a claim is respected")
	}
	t.Parallel()
	h := newHouse(t, nil)
	h.put(map[string]any{"credential_id": "w", "connector": "weather", "api_key": "k"})
	step := &jobs.Step{ExecutionID: "lost", CredentialID: "w", Method: "now"}
	enqueue := func() {
		t.Helper()
		if r, err := h.client.Enqueue(t.Context(), step); err != nil || r.Status != jobs.Enqueued {
			t.Fatalf("%v, %v", r, err)
		}
	}
	enqueue()
	h.succeed([]string{"lost"})
	inspector := asynq.NewInspectorFromRedisClient(h.rdb)
	h.until("its task is done", func() bool {
		info, err := inspector.GetTaskInfo("steps", "lost")
		return err == nil && info.State == asynq.TaskStateCompleted
	})
	const record = "stepworker:x:{lost}"
	if _, err := h.rdb.TxPipelined(t.Context(), func(p redis.Pipeliner) error {
		p.Del(t.Context(), "stepworker:r:{lost}")
		p.HDel(t.Context(), record, "end", "by")
		p.HSet(t.Context(), record, "own", "somebody", "claimed", 1)
		p.Persist(t.Context(), record)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	var unknown *jobs.UnknownError
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := h.client.Wait(ctx, []string{"lost"}, func(*jobs.Result) error { return nil }); !errors.As(err, &unknown) {
		t.Fatalf("got %v", err)
	}
	enqueue()
	h.succeed([]string{"lost"})
}

// The limit is on the step as it was given, to the byte.
func TestEnqueue_sizeLimit(t *testing.T) {
	d := newDesk(t)
	// step has exactly n bytes of compact JSON.
	step := func(n int, fill string) []byte {
		const head, tail = `{"credential_id":"c","method":"m","body":"`, `"}`
		return []byte(head + strings.Repeat(fill, n)[:n-len(head)-len(tail)] + tail)
	}
	indented := append(bytes.Repeat([]byte(" "), jobs.MaxStepSize), step(1000, "x")...)
	for name, c := range map[string]struct {
		raw     []byte
		refused string
	}{
		"at the limit":                  {step(jobs.MaxStepSize, "x"), ""},
		"at the limit, made of <, >, &": {step(jobs.MaxStepSize, "<>&"), ""},
		"one byte over":                 {step(jobs.MaxStepSize+1, "x"), "the step has 1048577 bytes; at most 1048576 are allowed"},
		"over it by nothing but blanks": {indented, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := jobs.DecodeStep(c.raw)
			var r jobs.Receipt
			if err == nil {
				r, err = d.client.Enqueue(context.Background(), s)
			}
			if got := fmt.Sprint(err); c.refused != "" && got != c.refused || c.refused == "" && err != nil {
				t.Fatalf("got %s", got)
			}
			if c.refused != "" {
				return
			}
			info, err := d.inspector.GetTaskInfo("steps", r.ExecutionID)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(info.Payload, s.Body) {
				t.Error("the payload does not hold the body as it was given")
			}
		})
	}
}
