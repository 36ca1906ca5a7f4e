package jobs

import (
	"testing"
	"time"
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
