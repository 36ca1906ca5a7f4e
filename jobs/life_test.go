package jobs_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hibiken/asynq"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/jobs"
)

func TestPark_lastAttemptIsNotArchived(t *testing.T) {
	h := newHouse(t, nil)
	h.putOAuth("c", "crm")
	h.api.KillToken("c")
	ids := h.enqueue(1, jobs.Step{CredentialID: "c", Method: "list_contacts", MaxRetries: new(int)})
	r := h.results(ids)[ids[0]]
	if r.Status != jobs.Succeeded || r.Attempts != 2 || r.Refreshes != 1 {
		raw, _ := json.Marshal(r)
		t.Errorf("got %s", raw)
	}
}

// A task that asynq counts anew, because it was deleted and enqueued again, is
// not behind its former life.
func TestBegin_countedAnew(t *testing.T) {
	h := newHouse(t, nil)
	h.putOAuth("c", "crm")
	at := time.Now().Add(time.Second)
	ids := h.enqueue(1, jobs.Step{CredentialID: "c", Method: "list_contacts", ProcessAt: &at, MaxRetries: new(int)})
	if err := h.rdb.HSet(context.Background(), "stepworker:x:{"+ids[0]+"}", "cnt", 2).Err(); err != nil {
		t.Fatal(err)
	}
	h.succeed(ids)
	info, err := asynq.NewInspectorFromRedisClient(h.rdb).GetTaskInfo("steps", ids[0])
	if err != nil {
		t.Fatal(err)
	}
	if r := h.results(ids)[ids[0]]; r.Attempts != 1 || info.Retried != 0 {
		t.Errorf("%d attempts, %d failures in asynq's eyes; want 1 and none", r.Attempts, info.Retried)
	}
}

// A worker that died, or lost its task, between a failed execution's result and
// the task's end has nobody run it again; a person still may.
func TestBegin_failedByAWorkerThatDied(t *testing.T) {
	h := newHouse(t, withConnector(t, keyed))
	var called atomic.Int64
	h.url = serve(t, func(w http.ResponseWriter, _ *http.Request) {
		called.Add(1)
		w.WriteHeader(http.StatusInternalServerError)
	})
	h.put(map[string]any{"credential_id": "c", "connector": "own", "api_key": "the-api-key"})
	id := h.enqueue(1, jobs.Step{CredentialID: "c", Method: "m", MaxRetries: new(int)})[0]
	inspector := asynq.NewInspectorFromRedisClient(h.rdb)
	archived := func() bool {
		info, err := inspector.GetTaskInfo("steps", id)
		return err == nil && info.State == asynq.TaskStateArchived
	}
	runAgain := func() {
		t.Helper()
		h.until("its task has ended", archived)
		if err := inspector.RunTask("steps", id); err != nil {
			t.Fatal(err)
		}
		h.until("its task has ended again", archived)
	}
	h.until("its task has ended", archived)
	if err := h.rdb.HSet(context.Background(), "stepworker:x:{"+id+"}", "cnt", -1).Err(); err != nil { // asynq's count is the higher one
		t.Fatal(err)
	}
	runAgain()
	if r := h.results([]string{id})[id]; called.Load() != 1 || r.Status != jobs.Failed {
		t.Errorf("taken over: %s, called %d times, want 1", r.Status, called.Load())
	}
	if runAgain(); called.Load() != 2 {
		t.Errorf("run again by a person: called %d times, want 2", called.Load())
	}
}

// Refused with version n while n+1 is stored: no token request, runs again.
func TestRefused_staleVersionRunsAgainWithoutARefresh(t *testing.T) {
	h := newHouse(t, nil)
	h.putOAuth("c", "crm")
	h.api.KillToken("c")
	replaced := false
	h.onMoment(func(m jobs.Moment) {
		if m.What == "called" && !replaced {
			replaced = true
			h.putOAuth("c", "crm") // between the credential's reading and its refusal
		}
	})
	h.succeed(h.enqueue(1, jobs.Step{CredentialID: "c", Method: "list_contacts"}))
	if n := h.api.TokenRequests("c"); n != 0 {
		t.Errorf("%d token requests, want 0", n)
	}
}

func TestRevoked_heldAskedOnceAndReleasedByPut(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.putOAuth("c", "crm")
	h.api.Revoke("c")
	ids := h.enqueue(20, jobs.Step{CredentialID: "c", Method: "list_contacts"})
	h.until("all are held", func() bool {
		s, err := h.store.Status(context.Background(), "c")
		return err == nil && s.State == credentials.Revoked && s.Waiting == 20
	})
	more := h.enqueue(5, jobs.Step{CredentialID: "c", Method: "list_contacts"})
	h.until("later ones are held too", func() bool {
		s, err := h.store.Status(context.Background(), "c")
		return err == nil && s.Waiting == 25
	})
	if n := h.api.TokenRequests("c"); n != 1 {
		t.Errorf("%d token requests, want 1", n)
	}
	h.until("it says why it waits", func() bool {
		s, err := h.client.Status(context.Background(), ids[0])
		return err == nil && s.Status == "held" && s.Since != nil && s.NextTry == nil && strings.Contains(s.WaitsFor, "authorize it again") &&
			s.Credential != nil && s.Credential.Waiting == 25 && strings.Contains(s.Credential.WaitsFor, "credential put")
	})
	h.putOAuth("c", "crm") // nobody is told: the pool finds out by itself
	h.succeed(append(ids, more...))
}

func TestDelete_waitingExecutionsFailWithKindInput(t *testing.T) {
	h := newHouse(t, nil)
	h.putOAuth("c", "crm")
	h.api.Revoke("c")
	ids := h.enqueue(3, jobs.Step{CredentialID: "c", Method: "list_contacts"})
	h.until("all are held", func() bool {
		s, err := h.store.Status(context.Background(), "c")
		return err == nil && s.Waiting == 3
	})
	if err := h.store.Delete(context.Background(), "c"); err != nil {
		t.Fatal(err)
	}
	for _, r := range h.results(ids) {
		if r.Error == nil || r.Error.Kind != jobs.KindInput {
			t.Errorf("got %+v", r.Error)
		}
	}
}

// A renewed credential that is still refused is a diagnosis, and costs a
// handful of token requests however many executions come.
func TestRefused_afterRenewalIsKindAuthAndNoLoop(t *testing.T) {
	h := newHouse(t, nil)
	h.putOAuth("c", "orders")
	h.put(map[string]any{"credential_id": "c", "connector": "orders"}) // its token is unknown to the API
	h.api.RefuseAll(true)
	h.putOAuth("c", "orders")
	ids := h.enqueue(100, jobs.Step{CredentialID: "c", Method: "list_orders"})
	for _, r := range h.results(ids) {
		if r.Status != jobs.Failed || r.Error.Kind != jobs.KindAuth {
			t.Fatalf("got %s %+v", r.Status, r.Error)
		}
	}
	if n := h.api.TokenRequests("c"); n < 1 || n > 5 {
		t.Errorf("%d token requests, want a handful", n)
	}
}

func TestHold_overFailsWithKindRevoked(t *testing.T) {
	t.Parallel()
	h := newHouse(t, func(c *jobs.PoolConfig) { c.Hold = 2 * time.Second })
	h.putOAuth("c", "crm")
	h.api.Revoke("c")
	ids := h.enqueue(1, jobs.Step{CredentialID: "c", Method: "list_contacts"})
	if r := h.results(ids)[ids[0]]; r.Error == nil || r.Error.Kind != jobs.KindRevoked {
		t.Errorf("got %+v", r.Error)
	}
}

func TestDeadline_whateverItWaitsFor(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.putOAuth("c", "crm")
	h.api.Revoke("c")
	at := time.Now().Add(2 * time.Second)
	ids := h.enqueue(1, jobs.Step{CredentialID: "c", Method: "list_contacts", Deadline: &at})
	if r := h.results(ids)[ids[0]]; r.Error == nil || r.Error.Kind != jobs.KindExpired {
		t.Errorf("got %+v", r.Error)
	}
}

func TestReply_bringsTheResultAsATask(t *testing.T) {
	h := newHouse(t, nil)
	h.put(map[string]any{"credential_id": "w", "connector": "weather", "api_key": "k"})
	ids := h.enqueue(1, jobs.Step{CredentialID: "w", Method: "now", Tag: "mine", ReplyTo: &jobs.ReplyTo{Queue: "flows", Type: "step:finished"}})
	r := h.results(ids)[ids[0]]
	info, err := asynq.NewInspectorFromRedisClient(h.rdb).GetTaskInfo("flows", "r."+ids[0])
	if err != nil {
		t.Fatal(err)
	}
	var got jobs.Result
	if err := json.Unmarshal(info.Payload, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(*r, got); diff != "" || got.Tag != "mine" || info.Type != "step:finished" {
		t.Errorf("%s: (-stored +sent):\n%s", info.Type, diff)
	}
}

func TestEnqueue_sameIDIsADuplicateInAnyQueueAndAfterItEnded(t *testing.T) {
	h := newHouse(t, nil)
	h.put(map[string]any{"credential_id": "w", "connector": "weather", "api_key": "k"})
	step := &jobs.Step{ExecutionID: "mine", CredentialID: "w", Method: "now"}
	want := []string{jobs.Enqueued, jobs.Duplicate, jobs.Duplicate}
	var got []string
	for i := range 3 {
		s := *step
		if i == 1 {
			s.Queue = "elsewhere"
		}
		if i == 2 {
			h.results([]string{"mine"})
		}
		r, err := h.client.Enqueue(context.Background(), &s)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, r.Status)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestPayload_thatCannotBeUnderstoodIsArchivedAtOnce(t *testing.T) {
	h := newHouse(t, nil)
	c := asynq.NewClientFromRedisClient(h.rdb)
	for id, payload := range map[string]string{"a": `{"v":1,`, "b": `{"v":1,"credential_id":"x","metod":"y"}`, "c": `[]`, "d": "\x00\xff"} {
		if _, err := c.Enqueue(asynq.NewTask(jobs.TypeStep, []byte(payload)), asynq.TaskID(id), asynq.Queue("steps")); err != nil {
			t.Fatal(err)
		}
		r := h.results([]string{id})[id]
		if r.Error == nil || r.Error.Kind != jobs.KindInput || !strings.Contains(r.Error.Message, "cannot be understood") {
			t.Errorf("%s: %+v", payload, r.Error)
		}
		inspector := asynq.NewInspectorFromRedisClient(h.rdb)
		h.until("it is archived", func() bool {
			info, err := inspector.GetTaskInfo("steps", id)
			return err == nil && info.State == asynq.TaskStateArchived
		})
	}
}

func TestInput_namesTheNearest(t *testing.T) {
	h := newHouse(t, nil)
	h.put(map[string]any{"credential_id": "weather-1", "connector": "weather", "api_key": "k"})
	ids := h.enqueue(1, jobs.Step{CredentialID: "wether-1", Method: "now"})
	r := h.results(ids)[ids[0]]
	if r.Error == nil || r.Error.Kind != jobs.KindInput || !strings.Contains(r.Error.Message, `did you mean "weather-1"`) {
		t.Errorf("got %+v", r.Error)
	}
	ids = h.enqueue(1, jobs.Step{CredentialID: "weather-1", Method: "now", Parameters: map[string]json.RawMessage{"x": json.RawMessage("1")}})
	if r := h.results(ids)[ids[0]]; r.Error == nil || r.Error.Kind != jobs.KindInput {
		t.Errorf("got %+v", r.Error)
	}
}

func TestDecodeStep_saysWhatIsWrong(t *testing.T) {
	for raw, want := range map[string]string{
		`{"credential_id":"c","metod":"m"}`:                           `unknown member "metod"; did you mean "method"?`,
		`{"credential_id":"c",`:                                       "malformed JSON at line 1",
		`{"credential_id":"c","method":"m","mappings":{"b":"x"}}`:     `mapping "b": its place is`,
		`{"credential_id":"c","method":"m","mappings":{"body":1}}`:    "mappings.body: a number is not allowed here",
		`{"credential_id":"c","method":"m","fields_in_use":"[a].id"}`: "fields_in_use: a list of texts is needed",
		`{"credential_id":"c","method":"m","fields_in_use":[1]}`:      "fields_in_use: a list of texts is needed",
		`{"credential_id":"c c","method":"m"}`:                        "credential_id",
		`{"credential_id":"c","method":"m","timeout":"1.5s"}`:         "whole seconds",
		`{"credential_id":"c","method":"m","timeout":5}`:              "duration",
		`[]`: "a step is a JSON object",
	} {
		s, err := jobs.DecodeStep([]byte(raw))
		if err == nil {
			err = s.Validate()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", raw, err)
		}
	}
}

func TestResult_unknownAndUnfinished(t *testing.T) {
	h := newHouse(t, nil)
	if _, err := h.client.Result(context.Background(), "nobody"); !errors.Is(err, jobs.ErrUnknownExecution) {
		t.Errorf("got %v", err)
	}
	h.putOAuth("c", "crm")
	h.api.Revoke("c")
	ids := h.enqueue(1, jobs.Step{CredentialID: "c", Method: "list_contacts"})
	h.until("it is held", func() bool {
		s, err := h.client.Status(context.Background(), ids[0])
		return err == nil && s.Status == "held" && s.Credential != nil
	})
	if _, err := h.client.Result(context.Background(), ids[0]); !errors.Is(err, jobs.ErrNotFinished) {
		t.Errorf("got %v", err)
	}
}

// What an attempt has not changed it does not write back: its action_data may
// have been sealed anew meanwhile, by a rotation of keys.
func TestAttempt_leavesActionDataThatWasSealedMeanwhile(t *testing.T) {
	h := newHouse(t, nil)
	sealed, err := h.store.Seal(credentials.ActionDataPurpose("e"), []byte(`{"n":1}`))
	if err != nil {
		t.Fatal(err)
	}
	h.onMoment(func(m jobs.Moment) {
		if m.What == "held" && m.ExecutionID == "e" {
			h.rdb.HSet(context.Background(), "stepworker:x:{e}", "ad", sealed)
		}
	})
	held := func(id string) {
		h.until(id+" is held", func() bool {
			return h.rdb.HGet(context.Background(), "stepworker:x:{"+id+"}", "why").Val() == "held"
		})
	}
	h.putOAuth("c", "crm")
	h.api.Revoke("c")
	h.enqueue(1, jobs.Step{ExecutionID: "first", CredentialID: "c", Method: "list_contacts"})
	held("first")
	h.enqueue(1, jobs.Step{ExecutionID: "e", CredentialID: "c", Method: "list_contacts"}) // is held without a call
	held("e")
	if got := h.rdb.HGet(context.Background(), "stepworker:x:{e}", "ad").Val(); got != string(sealed) {
		t.Errorf("action_data is %q", got)
	}
}
