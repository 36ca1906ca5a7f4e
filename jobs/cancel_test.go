package jobs_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hibiken/asynq"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/stepworker/stepworker/jobs"
)

const cancelOwn = `connector: own
base_url: "{{base}}"
parameters: [{name: base, target: merge_field, property: account}]
methods:
  - {method: quick, endpoint: /quick}
  - {method: hangs, endpoint: /hangs}
  - {method: faulty, endpoint: /faulty}
  - {method: busy, endpoint: /busy}
  - {method: seldom, endpoint: /quick, rate_limits: [{requests: 1, per: 1h}]}
  - {method: loops, endpoint: /quick, script: "function before_action() { while (true) {} }"}
  - method: script
    type: script
    script: "function before_action() { while (true) {} }"
  - method: webhook
    type: webhook
    script: "function before_webhook() { while (true) {} }"
  - method: pages
    endpoint: /pages
    paging: {inbound: true, page_size: 1}
    parameters: [{name: page, target: query_string, value: "{{CYCLR_PAGE_NUMBER}}"}]
    response: {fields: [{field: "[rows].n", system: N}]}
`

const cancelLine = `connector: single
base_url: "{{base}}"
max_concurrent: 1
parameters: [{name: base, target: merge_field, property: account}]
methods: [{method: hangs, endpoint: /hangs}]
`

const cancelToken = `connector: token
base_url: "{{base}}"
auth: {type: oauth2, token_url: "{{base}}/oauth/token", refresh_on: [401]}
parameters: [{name: base, target: merge_field, property: account}]
methods: [{method: strict, endpoint: /strict}]
`

const cancelRefused = `connector: refused
base_url: "{{base}}"
auth: {type: oauth2, token_url: "{{base}}/oauth/refused", refresh_on: [401]}
parameters: [{name: base, target: merge_field, property: account}]
methods: [{method: strict, endpoint: /strict}]
`

// cancelHouse has an API each of whose endpoints has its own way to keep an
// execution; came is told of each request to /hangs.
func cancelHouse(t *testing.T, change func(*jobs.PoolConfig)) (h *house, came chan struct{}) {
	h, _ = limited(t, change, cancelOwn, cancelLine, cancelToken, cancelRefused)
	came = make(chan struct{}, 100)
	h.url = serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hangs":
			came <- struct{}{}
			<-r.Context().Done()
		case "/faulty":
			w.WriteHeader(http.StatusInternalServerError)
		case "/busy":
			w.Header().Set("Retry-After", "600")
			w.WriteHeader(http.StatusTooManyRequests)
		case "/oauth/token":
			w.WriteHeader(http.StatusServiceUnavailable)
		case "/oauth/refused":
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(`{"error": "invalid_grant"}`))
		case "/strict":
			w.WriteHeader(http.StatusUnauthorized)
		case "/pages":
			page := r.URL.Query().Get("page")
			if page == "3" {
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
			_, _ = w.Write([]byte(`{"rows": [{"n": ` + page + `}]}`))
		default:
			_, _ = w.Write([]byte(`{}`))
		}
	})
	return h, came
}

// stands polls until an execution stands there.
func (h *house) stands(id, status string) {
	h.t.Helper()
	h.until(id+" is "+status, func() bool {
		s, err := h.client.Status(context.Background(), id)
		return err == nil && s.Status == status
	})
}

// cancelled cancels executions, and says that nothing is left of them.
func (h *house) cancelled(ids ...string) map[string]*jobs.Result {
	h.t.Helper()
	if err := h.client.Cancel(context.Background(), ids...); err != nil {
		h.t.Fatal(err)
	}
	results := h.results(ids)
	for _, r := range results {
		if r.Status != jobs.Cancelled || r.Error == nil || r.Error.Kind != jobs.KindCancelled || r.FinishedAt == nil {
			raw, _ := json.Marshal(r)
			h.t.Fatalf("got %s", raw)
		}
	}
	for i, id := range ids {
		if i < 10 || i >= len(ids)-10 {
			h.gone(id)
		}
	}
	return results
}

// gone waits until nothing of an execution is left but its result.
func (h *house) gone(id string) {
	h.t.Helper()
	ctx := context.Background()
	deadline := time.Now().Add(40 * time.Second)
	for {
		left := ""
		for _, key := range h.rdb.Keys(ctx, "*").Val() {
			switch {
			case key == "stepworker:r:{"+id+"}":
			case key == "stepworker:x:{"+id+"}":
				m := h.rdb.HGetAll(ctx, key).Val()
				delete(m, "cnt")
				delete(m, "by")
				delete(m, "at")
				delete(m, "q")
				if d := cmp.Diff(map[string]string{"end": "cancelled"}, m); d != "" {
					left += key + d
				}
				if h.rdb.PTTL(ctx, key).Val() <= 0 {
					left += key + " for ever "
				}
			case strings.Contains(key, "}:t:r."+id): // its reply
			case strings.Contains(key, "asynq:{refresh}"):
			case strings.Contains(key, id):
				left += key + " "
			default:
				members := slices.Concat(h.rdb.ZRange(ctx, key, 0, -1).Val(), h.rdb.SMembers(ctx, key).Val(), h.rdb.LRange(ctx, key, 0, -1).Val())
				for _, m := range members {
					if strings.Contains(m, id) && m != "r."+id {
						left += key + " "
					}
				}
			}
		}
		if left == "" {
			return
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("of %s there is left: %s", id, left)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Whatever an execution is doing, it ends with status cancelled, its reply is
// sent, and nothing is left of it.
func TestCancel_whateverItIsDoing(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	h, came := cancelHouse(t, func(c *jobs.PoolConfig) { c.Registerer = reg })
	ctx := context.Background()
	later := time.Now().Add(time.Hour)
	inspector := asynq.NewInspectorFromRedisClient(h.rdb)
	for _, id := range []string{"own", "busy", "seldom", "gone"} {
		h.put(map[string]any{"credential_id": id, "connector": "own"})
	}
	h.put(map[string]any{"credential_id": "unknown", "connector": "nowhere"})
	h.put(map[string]any{"credential_id": "single", "connector": "single"})
	h.putOAuth("token", "token")
	h.putOAuth("revoked", "refused")
	occupied := h.enqueue(1, jobs.Step{CredentialID: "single", Method: "hangs"})[0]
	<-came
	first := h.enqueue(1, jobs.Step{CredentialID: "seldom", Method: "seldom"})
	h.succeed(first)

	const before = "cancelled before its call was made"
	const broken = "cancelled while its call was under way: the API may have carried it out"
	const once = "cancelled after one attempt, before the next: what the API did then is not undone"
	cases := map[string]struct {
		step     jobs.Step
		stands   func(id string)
		message  string
		attempts int
	}{
		"scheduled": {step: jobs.Step{CredentialID: "own", Method: "quick", ProcessAt: &later},
			stands: func(id string) { h.stands(id, "scheduled") }, message: before},
		"in a queue that no worker reads": {step: jobs.Step{CredentialID: "own", Method: "quick", Queue: "elsewhere"},
			stands: func(id string) { h.stands(id, "pending") }, message: before},
		"parked": {step: jobs.Step{CredentialID: "token", Method: "strict"},
			stands: func(id string) { h.stands(id, "parked") }, message: once, attempts: 1},
		"held": {step: jobs.Step{CredentialID: "revoked", Method: "strict"},
			stands: func(id string) { h.stands(id, "held") }, message: once, attempts: 1},
		"deferred by its method's rate limit": {step: jobs.Step{CredentialID: "seldom", Method: "seldom"},
			stands: func(id string) { h.stands(id, "deferred") }, message: before},
		"deferred by the API": {step: jobs.Step{CredentialID: "busy", Method: "busy"},
			stands: func(id string) { h.stands(id, "deferred") }, message: once, attempts: 1},
		"in its credential's line": {step: jobs.Step{CredentialID: "single", Method: "hangs"},
			stands: func(id string) { h.stands(id, "deferred") }, message: before},
		"of a connector that no worker knows": {step: jobs.Step{CredentialID: "unknown", Method: "quick"},
			stands: func(id string) { h.stands(id, "deferred") }, message: before},
		"in retry": {step: jobs.Step{CredentialID: "own", Method: "faulty", MaxRetries: ptr(100)},
			stands: func(id string) {
				h.until("it rests between two attempts", func() bool {
					s, err := h.client.Status(ctx, id)
					return err == nil && s.Status == "retry" && s.NextTry != nil && time.Until(s.NextTry.Time) > 3*time.Second
				})
			}, attempts: -1},
		"in its call": {step: jobs.Step{CredentialID: "own", Method: "hangs"},
			stands: func(string) { <-came }, message: broken, attempts: 1},
		"in a hook": {step: jobs.Step{CredentialID: "own", Method: "loops"},
			stands: func(id string) { h.called(id) }, message: broken, attempts: 1},
		"in a script": {step: jobs.Step{CredentialID: "own", Method: "script"},
			stands: func(id string) { h.called(id) }, message: broken, attempts: 1},
		"in a webhook": {step: jobs.Step{CredentialID: "own", Method: "webhook", Webhook: &jobs.Webhook{Method: "POST"}},
			stands: func(id string) { h.called(id) }, message: broken, attempts: 1},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			c.step.ReplyTo = &jobs.ReplyTo{Queue: "flows", Type: "step:finished"}
			c.step.Tag, c.step.AccountID = "mine", ""
			id := h.enqueue(1, c.step)[0]
			c.stands(id)
			r := h.cancelled(id)[id]
			if r.Tag != "mine" || c.attempts >= 0 && (r.Attempts != c.attempts || r.Error.Message != c.message) || r.EnqueuedAt == nil {
				raw, _ := json.Marshal(r)
				t.Errorf("got %s", raw)
			}
			if c.attempts < 0 && (r.Attempts < 2 || !strings.HasPrefix(r.Error.Message, "cancelled after "+strconv.Itoa(r.Attempts)+" attempts")) {
				t.Errorf("got %d attempts, %s", r.Attempts, r.Error.Message)
			}
			info, err := inspector.GetTaskInfo("flows", "r."+id)
			if err != nil {
				t.Fatal(err)
			}
			var reply jobs.Result
			if err := json.Unmarshal(info.Payload, &reply); err != nil || reply.Status != jobs.Cancelled || reply.Error == nil || *reply.Error != *r.Error {
				t.Errorf("the reply is %s", info.Payload)
			}
		})
	}
	h.cancelled(occupied)
	for id, want := range map[string]int64{"token": 0, "revoked": 0} {
		if s, err := h.store.Status(ctx, id); err != nil || s.Waiting != want {
			t.Errorf("%s: %d wait, want %d: %v", id, s.Waiting, want, err)
		}
	}
	total := 0.0
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "stepworker_executions_total" && strings.Contains(m.String(), `"cancelled"`) {
				total += m.GetCounter().GetValue()
			}
		}
	}
	if want := float64(len(cases) + 1); total != want {
		t.Errorf("%v executions are counted as cancelled, want %v", total, want)
	}
}

// A failed one that a person runs again is cancelled like any other, and is not
// taken for the one that failed; one that has failed, and nobody runs, keeps that.
func TestCancel_whatIsRunAgain(t *testing.T) {
	t.Parallel()
	h, _ := cancelHouse(t, nil)
	ctx := context.Background()
	h.put(map[string]any{"credential_id": "own", "connector": "own"})
	ids := h.enqueue(2, jobs.Step{CredentialID: "own", Method: "faulty", MaxRetries: ptr(0)})
	h.results(ids)
	inspector := asynq.NewInspectorFromRedisClient(h.rdb)
	if err := inspector.PauseQueue("steps"); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		h.until(id+" is archived", func() bool {
			info, err := inspector.GetTaskInfo("steps", id)
			return err == nil && info.State == asynq.TaskStateArchived
		})
	}
	if err := inspector.RunTask("steps", ids[0]); err != nil {
		t.Fatal(err)
	}
	if err := h.client.Cancel(ctx, ids...); err != nil {
		t.Fatal(err)
	}
	results := h.results(ids)
	if r := results[ids[0]]; r.Status != jobs.Cancelled || r.Attempts != 1 || !strings.HasPrefix(r.Error.Message, "cancelled after one attempt") {
		t.Errorf("what was run again: %+v %+v", r, r.Error)
	}
	if r := results[ids[1]]; r.Status != jobs.Failed {
		t.Errorf("what had failed: %+v", r)
	}
	h.gone(ids[0])
	if info, err := inspector.GetTaskInfo("steps", ids[1]); err != nil || info.State != asynq.TaskStateArchived {
		t.Errorf("what had failed is %+v: %v", info, err)
	}
}

// Whoever cancels many leaves workers to those that renew credentials.
func TestCancel_leavesRefreshersFree(t *testing.T) {
	t.Parallel()
	h, _ := cancelHouse(t, nil)
	ctx := context.Background()
	h.putOAuth("revoked", "refused")
	first := ""
	for i := range 300 { // each is looked at for some seconds: somebody might just be enqueueing it
		id := "never-enqueued-" + strconv.Itoa(i)
		h.rdb.HSet(ctx, "stepworker:x:{"+id+"}", "q", "steps")
		if err := h.client.Cancel(ctx, id); err != nil {
			t.Fatal(err)
		}
		if first == "" {
			first = "stepworker:x:{" + id + "}"
		}
	}
	if err := h.client.RequestRefresh(ctx, "revoked"); err != nil {
		t.Fatal(err)
	}
	h.until("the credential is refreshed", func() bool {
		s, err := h.store.Status(ctx, "revoked")
		return err == nil && s.LastRefresh != nil
	})
	if h.rdb.PTTL(ctx, first).Val() > 0 {
		t.Error("the refresh came after the first execution had been given up")
	}
}

func ptr[T any](v T) *T { return &v }

// called waits until an execution is in its call.
func (h *house) called(id string) {
	h.t.Helper()
	h.until("it is called", func() bool { return strings.Contains(h.story(id), " called ") })
}

// The pages that were fetched go as well.
func TestCancel_pagesAreGivenUp(t *testing.T) {
	t.Parallel()
	h, _ := cancelHouse(t, nil)
	h.put(map[string]any{"credential_id": "own", "connector": "own"})
	id := h.enqueue(1, jobs.Step{CredentialID: "own", Method: "pages", MaxRetries: ptr(100)})[0]
	h.until("it rests behind its second page", func() bool {
		s, err := h.client.Status(context.Background(), id)
		return err == nil && s.Status == "retry" && h.rdb.HLen(context.Background(), "stepworker:pages:{"+id+"}").Val() == 3
	})
	if r := h.cancelled(id)[id]; r.Pages != 2 || r.Error.Message != "cancelled between two attempts, after 2 pages; what was fetched is given up" {
		t.Errorf("got %d pages, %s", r.Pages, r.Error.Message)
	}
}

// Of many that wait for one refresh some are cancelled: the refresh is made
// once, and the others go on.
func TestCancel_halfOfThoseThatWait(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.putOAuth("c", "orders")
	h.api.KillToken("c")
	h.api.FailTokens(1000)
	ids := h.enqueue(2000, jobs.Step{CredentialID: "c", Method: "list_orders"})
	h.until("all are parked", func() bool {
		s, err := h.store.Status(context.Background(), "c")
		return err == nil && s.Waiting == 2000
	})
	h.cancelled(ids[:1000]...)
	if s, err := h.store.Status(context.Background(), "c"); err != nil || s.Waiting != 1000 {
		t.Errorf("%d wait, want 1000: %v", s.Waiting, err)
	}
	h.api.FailTokens(0)
	if err := h.client.RequestRefresh(context.Background(), "c"); err != nil {
		t.Fatal(err)
	}
	h.succeed(ids[1000:])
	for _, id := range ids[:1000] {
		if strings.Contains(h.story(id), "succeeded") {
			t.Fatalf("%s ran after it was cancelled:\n%s", id, h.story(id))
		}
	}
}

// A paused queue, and a long backlog, delay nothing.
func TestCancel_pausedQueue(t *testing.T) {
	t.Parallel()
	h, _ := cancelHouse(t, nil)
	h.put(map[string]any{"credential_id": "own", "connector": "own"})
	inspector := asynq.NewInspectorFromRedisClient(h.rdb)
	for _, q := range []string{"steps", "steps.2"} {
		if err := h.rdb.SAdd(context.Background(), "asynq:queues", q).Err(); err != nil {
			t.Fatal(err)
		}
		if err := inspector.PauseQueue(q); err != nil {
			t.Fatal(err)
		}
	}
	ids := h.enqueue(1500, jobs.Step{CredentialID: "own", Method: "quick"})
	h.cancelled(ids[500], ids[1499], ids[0])
	begun := time.Now()
	if err := h.client.Cancel(context.Background(), ids...); err != nil {
		t.Fatal(err)
	}
	for id, r := range h.results(ids) {
		if r.Status != jobs.Cancelled || h.story(id) != "" && strings.Contains(h.story(id), "called") {
			t.Fatalf("%s %s", id, r.Status)
		}
	}
	t.Logf("%d pending ones cancelled in %s", len(ids), time.Since(begun))
	h.until("their tasks are gone", func() bool {
		return h.rdb.LLen(context.Background(), "asynq:{steps}:pending").Val() == 0 && h.rdb.LLen(context.Background(), "asynq:{steps.2}:pending").Val() == 0
	})
}

// One that has ended keeps its result; one that ends at that moment ends once.
func TestCancel_racesWithTheEnd(t *testing.T) {
	t.Parallel()
	h, _ := cancelHouse(t, nil)
	h.put(map[string]any{"credential_id": "own", "connector": "own"})
	ended := h.enqueue(1, jobs.Step{CredentialID: "own", Method: "quick"})
	h.succeed(ended)
	ids := h.enqueue(600, jobs.Step{CredentialID: "own", Method: "quick", ReplyTo: &jobs.ReplyTo{Queue: "flows", Type: "step:finished"}})
	var wg sync.WaitGroup
	for part := range slices.Chunk(ids, 50) {
		wg.Go(func() {
			if err := h.client.Cancel(context.Background(), append(part, ended[0])...); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	h.succeed(ended)
	count := map[jobs.Status]int{}
	for id, r := range h.results(ids) {
		count[r.Status]++
		succeeded, cancelled := strings.Count(h.story(id), " succeeded "), strings.Count(h.story(id), " cancelled ")
		h.until("its end is told", func() bool {
			succeeded, cancelled = strings.Count(h.story(id), " succeeded "), strings.Count(h.story(id), " cancelled ")
			return succeeded+cancelled > 0
		})
		if succeeded+cancelled != 1 || (r.Status == jobs.Cancelled) != (cancelled == 1) {
			t.Errorf("%s %s:\n%s", id, r.Status, h.story(id))
		}
	}
	if count[jobs.Succeeded]+count[jobs.Cancelled] != len(ids) {
		t.Errorf("got %v", count)
	}
	for _, status := range []jobs.Status{jobs.Succeeded, jobs.Cancelled} {
		t.Logf("%s: %d", status, count[status])
	}
}

// A mark is of one execution: a later one of its id runs.
func TestCancel_aLaterExecutionOfTheIdRuns(t *testing.T) {
	t.Parallel()
	h, _ := cancelHouse(t, nil)
	h.put(map[string]any{"credential_id": "own", "connector": "own"})
	at := time.Now().Add(time.Hour)
	h.enqueue(1, jobs.Step{ExecutionID: "again", CredentialID: "own", Method: "quick", ProcessAt: &at, Retention: jobs.Duration(time.Second)})
	h.cancelled("again")
	h.until("its result is kept no longer", func() bool {
		_, err := h.client.Result(context.Background(), "again")
		return errors.Is(err, jobs.ErrUnknownExecution)
	})
	h.enqueue(1, jobs.Step{ExecutionID: "again", CredentialID: "own", Method: "quick"})
	h.succeed([]string{"again"})

	// Marked without a task, as by a flow that died between claim and task.
	if err := h.rdb.HSet(context.Background(), "stepworker:x:{lost}", "q", "steps", "own", "dead", "claimed", 1, "cx", 1).Err(); err != nil {
		t.Fatal(err)
	}
	h.enqueue(1, jobs.Step{ExecutionID: "lost", CredentialID: "own", Method: "quick"})
	h.succeed([]string{"lost"})
}

func TestCancel_whatIsUnknown(t *testing.T) {
	t.Parallel()
	h, _ := cancelHouse(t, nil)
	h.put(map[string]any{"credential_id": "own", "connector": "own"})
	at := time.Now().Add(time.Hour)
	id := h.enqueue(1, jobs.Step{CredentialID: "own", Method: "quick", ProcessAt: &at})[0]
	err := h.client.Cancel(context.Background(), "nobody", id, "no {id}")
	var unknown *jobs.UnknownError
	if !errors.As(err, &unknown) || !slices.Equal(unknown.IDs, []string{"nobody", "no {id}"}) {
		t.Errorf("got %v", err)
	}
	if r := h.results([]string{id})[id]; r.Status != jobs.Cancelled {
		t.Errorf("got %s", r.Status)
	}
	// Enqueued by a flow with asynq alone, so that nothing but its task tells of it.
	task := asynq.NewTask(jobs.TypeStep, []byte(`{"v":1,"credential_id":"own","method":"quick"}`))
	if _, err := asynq.NewClientFromRedisClient(h.rdb).Enqueue(task, asynq.TaskID("alone"), asynq.Queue("steps"), asynq.ProcessIn(time.Hour)); err != nil {
		t.Fatal(err)
	}
	h.cancelled("alone")
	if keys := h.rdb.Keys(context.Background(), "stepworker:x:{no*").Val(); len(keys) > 0 {
		t.Errorf("left: %v", keys)
	}
}
