package main

import (
	"context"
	"io"
	"testing"

	"github.com/stepworker/stepworker/jobs"
)

// A result can be read before the worker that stored it has told of it: a
// story is over when it was told, or its end lands in the next one.
func TestTeller_heardWaitsForEveryEnd(t *testing.T) {
	tell := newTeller(io.Discard)
	tell.observe(jobs.Moment{What: "called", ExecutionID: "a"})
	tell.observe(jobs.Moment{What: "succeeded", ExecutionID: "a"})
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tell.heard(t.Context(), []string{"a"}); err != nil {
		t.Errorf("told: %v", err)
	}
	tell.observe(jobs.Moment{What: "called", ExecutionID: "b"})
	if err := tell.heard(gone, []string{"a", "b"}); err == nil {
		t.Error("b was called only, and heard")
	}
	go tell.observe(jobs.Moment{What: "failed", ExecutionID: "b"})
	if err := tell.heard(t.Context(), []string{"a", "b"}); err != nil || tell.count("failed") != 1 {
		t.Errorf("told late: %v, %d failed", err, tell.count("failed"))
	}
}
