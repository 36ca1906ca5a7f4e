package jobs_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stepworker/stepworker/jobs"
)

// The method's content is the date that it saw.
const dated = `
connector: own
base_url: "{{base}}"
parameters:
  - {name: base, target: merge_field, property: account}
methods:
  - method: look
    type: script
    parameters: [{name: next, target: script, optional: true}, {name: fail, target: script, optional: true}, {name: wait, target: script, optional: true}]
    script: |
      function before_action() {
        action_data.first = action_data.first || last_successful_run_date;
        if (script_parameters.wait && !action_data.waited) {
          action_data.waited = true;
          throw new RetryLaterException(1, 'later');
        }
      }
      function after_action() {
        if (script_parameters.fail) { throw new Error('no'); }
        method_response = {first: action_data.first, now: last_successful_run_date};
      }
      function after_action_paging() {
        if (script_parameters.next) { next_last_successful_run_date = script_parameters.next; }
      }
  - method: warn
    endpoint: /nothing/there
    script: function after_error() { method_error.isWarning = true; }
`

type seen struct{ First, Now string }

// look runs the step once more and returns what it saw.
func (h *house) look(step jobs.Step) (*jobs.Result, seen) {
	h.t.Helper()
	ids := h.enqueue(1, step)
	r := h.results(ids)[ids[0]]
	var s seen
	if r.Status == jobs.Succeeded {
		if err := json.Unmarshal(r.Content, &s); err != nil {
			h.t.Fatal(err)
		}
	}
	return r, s
}

func parameters(raw string) map[string]json.RawMessage {
	m := map[string]json.RawMessage{}
	_ = json.Unmarshal([]byte(raw), &m)
	return m
}

func (h *house) lastRunKeys() []string {
	h.t.Helper()
	keys, err := h.rdb.Keys(context.Background(), "stepworker:last_run:*").Result()
	if err != nil {
		h.t.Fatal(err)
	}
	return keys
}

func TestLastRun(t *testing.T) {
	h := newHouse(t, withConnector(t, dated))
	h.put(map[string]any{"credential_id": "a", "connector": "own", "account_id": "1"})
	h.put(map[string]any{"credential_id": "a2", "connector": "own", "account_id": "1"})
	h.put(map[string]any{"credential_id": "b", "connector": "own"})
	step := jobs.Step{CredentialID: "a", Method: "look", Cycle: &jobs.Cycle{CycleStepID: "s}1 "}}
	between := func(what, at string, from time.Time) {
		t.Helper()
		when, err := time.Parse(time.RFC3339, at)
		if err != nil || when.Before(from.Truncate(time.Second)) || when.After(time.Now()) {
			t.Errorf("%s: saw %q, want a time since %s", what, at, from)
		}
	}
	const chosen = "2026-01-02T03:04:05Z"

	plain := step
	plain.Cycle = &jobs.Cycle{CycleID: "c"}
	if _, got := h.look(plain); got.Now != "1970-01-01T00:00:00Z" || len(h.lastRunKeys()) != 0 {
		t.Errorf("without cycle_step_id: saw %q, stored %v", got.Now, h.lastRunKeys())
	}

	begun := time.Now()
	_, got := h.look(step)
	between("the first run", got.Now, begun)

	next := step
	next.Parameters = parameters(`{"next":"` + chosen + `"}`)
	_, _ = h.look(next)
	failing := step
	failing.Parameters = parameters(`{"fail":true,"next":"2026-02-02"}`)
	if r, _ := h.look(failing); r.Status != jobs.Failed {
		t.Fatalf("got %s", r.Status)
	}
	warning := step
	warning.Method = "warn"
	ids := h.enqueue(1, warning)
	if r := h.results(ids)[ids[0]]; r.Status != jobs.Warning {
		t.Fatalf("got %s", r.Status)
	}

	same := step
	same.CredentialID = "a2" // of the same account
	begun = time.Now()
	if _, got := h.look(same); got.Now != chosen {
		t.Errorf("what a script chose outlives a failure and a warning, and is the account's: saw %q", got.Now)
	}
	_, got = h.look(step)
	between("after a good run", got.Now, begun)

	other := step
	other.CredentialID = "b"
	_, got = h.look(other)
	between("another account's first run", got.Now, begun)
	if keys := h.lastRunKeys(); len(keys) != 2 || strings.Contains(strings.Join(keys, " "), "s}1") {
		t.Errorf("stored %q", keys)
	}
}

// Every attempt of an execution sees the date that the first one saw.
func TestLastRun_isTheSameForEveryAttempt(t *testing.T) {
	h := newHouse(t, withConnector(t, dated))
	h.put(map[string]any{"credential_id": "a", "connector": "own"})
	step := jobs.Step{CredentialID: "a", Method: "look", Cycle: &jobs.Cycle{CycleStepID: "s"}, Parameters: parameters(`{"next":"2026-01-02T03:04:05Z"}`)}
	_, _ = h.look(step)
	moved := make(chan error, 1)
	h.onMoment(func(m jobs.Moment) {
		if m.What == "deferred" {
			moved <- h.rdb.Set(context.Background(), h.lastRunKeys()[0], time.Now().UnixMilli(), 0).Err()
		}
	})
	step.Parameters = parameters(`{"wait":true}`)
	r, got := h.look(step)
	if err := <-moved; err != nil {
		t.Fatal(err)
	}
	if want := (seen{"2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"}); got != want || r.Attempts != 2 {
		t.Errorf("saw %+v in %d attempts, want %+v", got, r.Attempts, want)
	}
}

// A worker that comes back late changes no date.
func TestLastRun_isNotMovedByAnAttemptThatWasOvertaken(t *testing.T) {
	h := newHouse(t, withConnector(t, dated))
	h.put(map[string]any{"credential_id": "a", "connector": "own"})
	step := jobs.Step{CredentialID: "a", Method: "look", Cycle: &jobs.Cycle{CycleStepID: "s"}, Parameters: parameters(`{"next":"2026-01-02T03:04:05Z"}`)}
	_, _ = h.look(step)
	before, err := h.rdb.Get(context.Background(), h.lastRunKeys()[0]).Result()
	if err != nil {
		t.Fatal(err)
	}
	h.onMoment(func(m jobs.Moment) {
		if m.What == "called" {
			h.rdb.HSet(context.Background(), "stepworker:x:{"+m.ExecutionID+"}", "run", "another's")
		}
	})
	step.Parameters = parameters(`{"next":"2025-01-01"}`)
	ids := h.enqueue(1, step)
	h.until("the attempt is void", func() bool {
		s, err := h.client.Status(context.Background(), ids[0])
		return err == nil && s.Status != "pending" && s.Status != "active"
	})
	if after, err := h.rdb.Get(context.Background(), h.lastRunKeys()[0]).Result(); err != nil || after != before {
		t.Errorf("the date is %s, was %s (%v)", after, before, err)
	}
}
