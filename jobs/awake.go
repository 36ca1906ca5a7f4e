package jobs

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

const (
	// stillness is how long a process may stand still (SIGSTOP, a machine that
	// is suspended or swaps) and be sure of its tasks: asynq extends a lease of
	// 30 s every 5 s, and gives the task of one that lapsed to another worker.
	stillness  = 20 * time.Second
	awakeEvery = 5 * time.Second
	// lapsed is how long it looks as if it stood still when its leases, of 30 s,
	// have lapsed for sure: it looked awakeEvery before it stood still at the latest.
	lapsed      = 30*time.Second + awakeEvery
	wakingGrace = 2 * time.Second // within it a task may arrive that was asked for before
)

// awake notices that the process stood still. Times are of the wall clock: of
// a machine that is suspended the monotonic one stands still as well.
type awake struct {
	seen atomic.Int64 // ms: when the process last ran
	woke atomic.Int64 // ms: when it last ran again after it had stood still
	lost atomic.Int64 // ms: and after its leases had lapsed
}

// run looks until nothing runs any more, also while the pool drains.
func (w *awake) run(ctx context.Context) {
	t := time.NewTicker(awakeEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			w.look()
		}
	}
}

// look notes that the process runs now.
func (w *awake) look() {
	now := time.Now().UnixMilli()
	if seen := w.seen.Swap(now); seen != 0 && now-seen > stillness.Milliseconds() {
		w.woke.Store(now)
		if now-seen > lapsed.Milliseconds() {
			w.lost.Store(now)
		}
	}
}

// lapsedSince says that the leases of this process lapsed after it took a task.
func (w *awake) lapsedSince(taken time.Time) bool {
	w.look()
	return taken.UnixMilli() < w.lost.Load()
}

// sure returns an error if the process stood still since it took a task: it
// may be another's by now, and asynq tells only a moment later.
func (w *awake) sure(taken time.Time) error {
	w.look()
	if woke := w.woke.Load(); woke != 0 && taken.UnixMilli() <= woke+wakingGrace.Milliseconds() {
		return fmt.Errorf("this worker stood still for more than %s; what it had taken may be another's by now", stillness)
	}
	return nil
}
