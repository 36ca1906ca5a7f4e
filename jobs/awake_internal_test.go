package jobs

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stepworker/stepworker/connectors"
)

func TestAwake_doubtsWhatWasTakenBeforeItStoodStill(t *testing.T) {
	now := time.Now()
	var w awake
	if err := w.sure(now); err != nil {
		t.Errorf("it has just begun: %v", err)
	}
	w.seen.Store(now.Add(-stillness - time.Second).UnixMilli())
	if w.sure(now.Add(-stillness)) == nil {
		t.Error("it stood still after it took that")
	}
	if w.sure(now) == nil {
		t.Error("that may have been asked for before")
	}
	if err := w.sure(now.Add(wakingGrace + time.Second)); err != nil {
		t.Errorf("taken long after it woke: %v", err)
	}
}

// What ran out of time while the worker stood still is no failure of the
// execution: its API may have answered long ago.
func TestOutcome_ofAWorkerThatStoodStill(t *testing.T) {
	for _, err := range []error{
		context.DeadlineExceeded,
		&connectors.CallError{Kind: KindNetwork, Message: "host did not answer in time"},
		&connectors.CallError{Kind: KindLimit, Message: "after_action ran longer than 60s"},
	} {
		faults := prometheus.NewCounter(prometheus.CounterOpts{Name: "faults"})
		a := &attempt{p: &Pool{log: slog.New(slog.DiscardHandler), metrics: &metrics{faults: faults}}, rec: &record{}, taken: time.Now().Add(-lapsed - time.Second)}
		a.p.awake.seen.Store(a.taken.UnixMilli())
		var put *waitError
		if got := a.outcome(t.Context(), err, nil); !errors.As(got, &put) || put.why != "worker" || put.fault {
			t.Errorf("%v: got %v, want it to be put back", err, got)
		}
	}
	var w awake
	w.seen.Store(time.Now().Add(-lapsed + 5*time.Second).UnixMilli())
	if w.lapsedSince(time.Now().Add(-lapsed)) {
		t.Error("for so short a time it may have kept its leases")
	}
}
