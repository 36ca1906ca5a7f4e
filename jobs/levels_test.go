package jobs_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/jobs"
)

// An account with a flood does not starve another: what comes later of a small
// one passes by most of it.
func TestLevels_aFloodYieldsToASmallAccount(t *testing.T) {
	const flood = 2000
	inspector := (*asynq.Inspector)(nil)
	h := newHouse(t, func(c *jobs.PoolConfig) {
		inspector = asynq.NewInspectorFromRedisClient(c.Redis)
		c.Redis.SAdd(context.Background(), "asynq:queues", "steps")
		if err := inspector.PauseQueue("steps"); err != nil {
			t.Fatal(err)
		}
	})
	h.put(map[string]any{"credential_id": "much", "connector": "weather", "api_key": "k"})
	h.put(map[string]any{"credential_id": "little", "connector": "weather", "api_key": "k"})
	all := h.enqueue(flood, jobs.Step{CredentialID: "much", Method: "now"})
	all = append(all, h.enqueue(10, jobs.Step{CredentialID: "little", Method: "now"})...)
	h.mu.Lock()
	begun := len(h.moments)
	h.mu.Unlock()
	if begun > 0 {
		t.Error("steps of an overflow queue run while the queue itself is paused")
	}
	if err := inspector.UnpauseQueue("steps"); err != nil {
		t.Fatal(err)
	}
	h.succeed(all)
	h.until("all were told of", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		n := 0
		for _, m := range h.moments {
			if m.What == "succeeded" {
				n++
			}
		}
		return n == len(all)
	})
	before, little := 0, 0 // of the flood, that ended before the last of the small account
	for _, m := range h.moments {
		switch {
		case m.What != "succeeded":
		case m.CredentialID == "little":
			little++
		case little < 10:
			before++
		}
	}
	if before > flood/2 {
		t.Errorf("%d of %d of the flood ended before the last of the ten that came after it", before, flood)
	}
}

// sizes are the numbers of tasks by queue.
func (d *desk) sizes() map[string]int {
	d.t.Helper()
	queues, err := d.inspector.Queues()
	if err != nil {
		d.t.Fatal(err)
	}
	sizes := map[string]int{}
	for _, q := range queues {
		info, err := d.inspector.GetQueueInfo(q)
		if err != nil {
			d.t.Fatal(err)
		}
		sizes[q] = info.Size
	}
	return sizes
}

func (d *desk) batch(n int, prefix string, step jobs.Step) (statuses map[string]int) {
	d.t.Helper()
	steps := make([]*jobs.Step, n)
	for i := range steps {
		s := step
		s.ExecutionID = fmt.Sprint(prefix, i)
		steps[i] = &s
	}
	statuses = map[string]int{}
	for _, r := range d.client.EnqueueBatch(context.Background(), steps) {
		if r.Err != nil {
			d.t.Fatal(r.Err)
		}
		statuses[r.Status]++
	}
	return statuses
}

func (d *desk) underway(account string) int {
	return int(d.rdb.ZCard(context.Background(), "stepworker:underway:{"+account+"}").Val())
}

func TestLevels_chosenByWhatOfTheAccountIsUnderWay(t *testing.T) {
	d := newDesk(t)
	d.batch(5110, "a", jobs.Step{CredentialID: "c", Method: "m"})
	d.batch(1, "other", jobs.Step{CredentialID: "d", Method: "m"})
	d.batch(60, "b", jobs.Step{CredentialID: "e", AccountID: "42", Method: "m", Queue: "bulk"})
	d.batch(60, "f", jobs.Step{CredentialID: "g", AccountID: "42", Method: "m", Queue: "bulk"})
	want := map[string]int{"steps": 101, "steps.2": 4900, "steps.3": 110, "bulk": 100, "bulk.2": 20}
	if diff := cmp.Diff(want, d.sizes()); diff != "" {
		t.Errorf("tasks by queue (-want +got):\n%s", diff)
	}
	// Again, as after an answer that was lost: they are known wherever they are.
	if diff := cmp.Diff(map[string]int{jobs.Duplicate: 5110}, d.batch(5110, "a", jobs.Step{CredentialID: "c", Method: "m"})); diff != "" {
		t.Error(diff)
	}
	if n := d.underway("credential:c"); n != 5110 {
		t.Errorf("%d are counted as under way, want 5110", n)
	}
	if diff := cmp.Diff(want, d.sizes()); diff != "" {
		t.Errorf("tasks by queue after duplicates (-want +got):\n%s", diff)
	}
}

// A duplicate under another account is not that account's.
func TestLevels_duplicatesOfAnotherAccountAreNotCounted(t *testing.T) {
	d := newDesk(t)
	d.batch(3, "x", jobs.Step{CredentialID: "c", Method: "m"})
	d.rdb.HDel(context.Background(), "stepworker:x:{x2}", "own", "q") // as one that a flow enqueued with asynq alone
	d.batch(3, "x", jobs.Step{CredentialID: "d", Method: "m"})
	if c, other := d.underway("credential:c"), d.underway("credential:d"); c != 3 || other != 0 {
		t.Errorf("%d and %d are counted, want 3 and 0", c, other)
	}
}

func TestLevels_theCountLapsesWithTasksThatWereDeleted(t *testing.T) {
	d := newDesk(t)
	d.batch(150, "x", jobs.Step{CredentialID: "c", Method: "m"})
	for _, q := range []string{"steps", "steps.2"} {
		if _, err := d.inspector.DeleteAllPendingTasks(q); err != nil {
			t.Fatal(err)
		}
	}
	d.batch(1, "soon", jobs.Step{CredentialID: "c", Method: "m"})
	if diff := cmp.Diff(map[string]int{"steps": 0, "steps.2": 1}, d.sizes()); diff != "" {
		t.Error(diff)
	}
	long := float64(time.Now().Add(-25 * time.Hour).UnixMilli())
	for i := range 150 {
		d.rdb.ZAdd(context.Background(), "stepworker:underway:{credential:c}", redis.Z{Score: long, Member: fmt.Sprint("x", i)})
	}
	d.batch(1, "later", jobs.Step{CredentialID: "c", Method: "m"})
	if diff := cmp.Diff(map[string]int{"steps": 1, "steps.2": 1}, d.sizes()); diff != "" {
		t.Error(diff)
	}
	if ttl := d.rdb.PTTL(context.Background(), "stepworker:underway:{credential:c}").Val(); ttl <= 0 {
		t.Errorf("the count never ends: its time to live is %s", ttl)
	}
}

func TestLevels_theCountOutlivesRedis(t *testing.T) {
	d := newDesk(t)
	d.batch(120, "x", jobs.Step{CredentialID: "c", Method: "m"})
	d.redis.Flush()
	d.redis.Restart()
	d.batch(1, "y", jobs.Step{CredentialID: "c", Method: "m"})
	if diff := cmp.Diff(map[string]int{"steps": 100, "steps.2": 21}, d.sizes()); diff != "" {
		t.Error(diff)
	}
}

// asynq's ids are unique by queue only: one that a flow enqueued with asynq
// alone is found though its account's next level is another.
func TestLevels_anIDThatAsynqKnowsIsADuplicate(t *testing.T) {
	d := newDesk(t)
	payload := []byte(`{"v":1,"credential_id":"c","method":"m"}`)
	if _, err := asynq.NewClientFromRedisClient(d.rdb).Enqueue(asynq.NewTask(jobs.TypeStep, payload), asynq.TaskID("x0"), asynq.Queue("steps")); err != nil {
		t.Fatal(err)
	}
	d.batch(100, "flood", jobs.Step{CredentialID: "c", Method: "m"})
	if diff := cmp.Diff(map[string]int{jobs.Duplicate: 1, jobs.Enqueued: 1}, d.batch(2, "x", jobs.Step{CredentialID: "c", Method: "m"})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]int{"steps": 101, "steps.2": 1}, d.sizes()); diff != "" {
		t.Error(diff)
	}
}

// A user of Redis that may not count enqueues all the same; levels are then by
// what a batch has of an account.
func TestLevels_withoutTheRightToCount(t *testing.T) {
	d := newDesk(t)
	if err := d.rdb.Do(context.Background(), "ACL", "SETUSER", "default", "resetkeys", "~asynq:*", "~stepworker:x:*", "~stepworker:r:*").Err(); err != nil {
		t.Fatal(err)
	}
	d.batch(150, "x", jobs.Step{CredentialID: "c", Method: "m"})
	if diff := cmp.Diff(map[string]int{"steps": 100, "steps.2": 50}, d.sizes()); diff != "" {
		t.Error(diff)
	}
}

// What has ended, however, is no longer under way; run again by a person, it is.
func TestLevels_whatHasEndedIsNotCounted(t *testing.T) {
	h := newHouse(t, nil)
	ctx, key := context.Background(), "stepworker:underway:{credential:w}"
	counted := func() int64 { return h.rdb.ZCard(ctx, key).Val() }
	var mu sync.Mutex
	during := map[string][]int64{}
	h.onMoment(func(m jobs.Moment) {
		if m.What == "called" {
			n := counted()
			mu.Lock()
			during[m.ExecutionID] = append(during[m.ExecutionID], n)
			mu.Unlock()
		}
	})
	h.put(map[string]any{"credential_id": "w", "connector": "weather", "api_key": "k"})
	h.results(h.enqueue(1, jobs.Step{ExecutionID: "good", CredentialID: "w", Method: "now"}))
	failing := jobs.Step{ExecutionID: "bad", CredentialID: "w", Method: "now", Body: []byte(`{"a":1}`), Mappings: map[string]string{"body.b": "=nobody.knows"}}
	if r := h.results(h.enqueue(1, failing))["bad"]; r.Status != jobs.Failed {
		t.Fatalf("it is %s", r.Status)
	}
	if n := counted(); n != 0 {
		t.Errorf("%d are counted though all have ended", n)
	}
	if r, err := h.client.Enqueue(ctx, &failing); err != nil || r.Status != jobs.Duplicate || counted() != 0 {
		t.Errorf("%+v %v: a duplicate of what has ended counts %d", r, err, counted())
	}
	inspector := asynq.NewInspectorFromRedisClient(h.rdb)
	h.until("it is archived", func() bool {
		info, err := inspector.GetTaskInfo("steps", "bad")
		return err == nil && info.State == asynq.TaskStateArchived
	})
	if err := inspector.RunTask("steps", "bad"); err != nil {
		t.Fatal(err)
	}
	h.until("it has run again and is not counted", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(during["bad"]) == 2 && counted() == 0
	})
	if diff := cmp.Diff(map[string][]int64{"good": {1}, "bad": {1, 1}}, during); diff != "" {
		t.Errorf("counted while they ran (-want +got):\n%s", diff)
	}
}

// Held in several levels, all run once their credential is put again.
func TestLevels_heldOnesOfAllLevelsAreReleased(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.putOAuth("c", "crm")
	h.api.Revoke("c")
	ids := h.enqueue(150, jobs.Step{CredentialID: "c", Method: "list_contacts"})
	h.until("all are held", func() bool {
		s, err := h.store.Status(context.Background(), "c")
		return err == nil && s.State == credentials.Revoked && s.Waiting == 150
	})
	h.until("the last one, of an overflow queue, says so", func() bool {
		s, err := h.client.Status(context.Background(), ids[149])
		return err == nil && s.Status == "held" && h.rdb.HGet(context.Background(), "stepworker:x:{"+ids[149]+"}", "q").Val() == "steps.2"
	})
	h.putOAuth("c", "crm")
	h.succeed(ids)
}

// A worker that starts serves overflow queues of which there is only what is
// pending, or only what is scheduled.
func TestLevels_overflowAloneIsServed(t *testing.T) {
	t.Parallel()
	var left []string
	h := newHouse(t, func(c *jobs.PoolConfig) {
		at := time.Now().Add(2 * time.Second)
		steps := make([]*jobs.Step, 5100)
		for i := range steps {
			steps[i] = &jobs.Step{CredentialID: "nobody", Method: "m"}
		}
		steps[150].ProcessAt = &at
		steps = append(steps, &jobs.Step{CredentialID: "nobody", Method: "m", ProcessAt: &at})
		receipts := jobs.NewClient(c.Redis).EnqueueBatch(context.Background(), steps)
		inspector := asynq.NewInspectorFromRedisClient(c.Redis)
		for _, q := range []string{"steps", "steps.2", "steps.3"} {
			if _, err := inspector.DeleteAllPendingTasks(q); err != nil {
				t.Fatal(err)
			}
		}
		left = []string{receipts[150].ExecutionID, receipts[5100].ExecutionID}
		for i, q := range []string{"steps.2", "steps.3"} {
			if _, err := inspector.GetTaskInfo(q, left[i]); err != nil {
				t.Fatalf("%s: %v", q, err)
			}
		}
	})
	for id, r := range h.results(left) {
		if r.Error == nil || r.Error.Kind != jobs.KindInput {
			t.Errorf("%s: %+v", id, r)
		}
	}
}

func TestLevels_theirNamesAreReserved(t *testing.T) {
	reply := func(queue, to string) *jobs.Step {
		return &jobs.Step{CredentialID: "c", Method: "m", Queue: queue, ReplyTo: &jobs.ReplyTo{Queue: to, Type: "t"}}
	}
	for name, tc := range map[string]struct {
		step *jobs.Step
		want string
	}{
		"a step's queue":        {&jobs.Step{CredentialID: "c", Method: "m", Queue: "steps.2"}, `queue "steps.2" is reserved`},
		"a reply's":             {reply("", "steps.3"), `reply_to.queue "steps.3" is one of Stepworker's own`},
		"of the step's own":     {reply("bulk", "bulk.2"), `reply_to.queue "bulk.2" is one of Stepworker's own`},
		"a flow's name with .2": {reply("bulk", "flows.2"), ""},
		"other numbers":         {&jobs.Step{CredentialID: "c", Method: "m", Queue: "v1.4"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := tc.step.Validate()
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
	// A queue that a worker reads beside is told by the worker.
	h := newHouse(t, func(c *jobs.PoolConfig) { c.Queues = map[string]int{"steps": 1, "bulk": 1} })
	h.put(map[string]any{"credential_id": "w", "connector": "weather", "api_key": "k"})
	ids := h.enqueue(1, jobs.Step{CredentialID: "w", Method: "now", ReplyTo: &jobs.ReplyTo{Queue: "bulk.3", Type: "t"}})
	if r := h.results(ids)[ids[0]]; r.Error == nil || r.Error.Kind != jobs.KindInput {
		t.Errorf("got %+v", r)
	}
}
