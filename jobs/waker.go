package jobs

import (
	"container/heap"
	"context"
	"strings"
	"sync"
	"time"

	"github.com/hibiken/asynq"
	"golang.org/x/sync/errgroup"
)

// wakeAgain is when a waker looks again at one that is still on its way from
// active to retry, wakeLooks how often.
const (
	wakeAgain = 50 * time.Millisecond
	wakeLooks = 20
)

// alarm is the turn of one execution that this process deferred.
type alarm struct {
	at        time.Time
	timer     time.Time // of asynq's own, which comes should this process be gone
	queue, id string
	looks     int
	line      string // credential whose line called it up; without an id: whose line is looked at
}

// waker puts deferred executions back to pending at their turns, to the
// millisecond. What it knows is lost with its process: then their timers, a
// little later, do the same.
type waker struct {
	p      *Pool
	mu     sync.Mutex
	alarms alarms
	soon   chan struct{} // an earlier one was added
}

func newWaker(p *Pool) *waker { return &waker{p: p, soon: make(chan struct{}, 1)} }

func (w *waker) add(a alarm) {
	w.mu.Lock()
	heap.Push(&w.alarms, a)
	first := w.alarms[0] == a
	w.mu.Unlock()
	if first {
		select {
		case w.soon <- struct{}{}:
		default:
		}
	}
}

// run wakes until ctx is done: a worker that drains wakes on, as its calls end.
func (w *waker) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for ctx.Err() == nil {
		next := w.wakeDue(ctx)
		if next == 0 {
			continue
		}
		timer.Reset(next)
		select {
		case <-ctx.Done():
			return
		case <-w.soon:
		case <-timer.C:
		}
	}
}

// wakeDue wakes whose turn has come; next is the time until there is another,
// 0 if there may be one already.
func (w *waker) wakeDue(ctx context.Context) (next time.Duration) {
	due, next := w.due(time.Now())
	if len(due) == 0 {
		return next
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(resumeWidth)
	for _, a := range due {
		g.Go(func() error { w.wake(gctx, a); return nil })
	}
	_ = g.Wait()
	return 0
}

// due takes out whose turn has come, in their order; next is the time until
// there is another.
func (w *waker) due(now time.Time) (due []alarm, next time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.alarms) > 0 && len(due) < resumePage {
		if next = w.alarms[0].at.Sub(now); next > 0 {
			return due, next
		}
		due = append(due, heap.Pop(&w.alarms).(alarm))
	}
	return due, time.Hour
}

func (w *waker) wake(ctx context.Context, a alarm) {
	switch {
	case a.line != "" && a.id == "":
		w.p.line.looked(ctx, a)
		return
	case a.line != "":
		w.p.line.callUp(ctx, a)
		return
	}
	info, err := w.p.client.inspector.GetTaskInfo(a.queue, a.id)
	if err != nil || ctx.Err() != nil {
		return // gone, or its timer wakes it
	}
	switch {
	case info.State == asynq.TaskStateActive && a.looks < wakeLooks:
		a.looks++
		a.at = time.Now().Add(wakeAgain)
		w.add(a)
	case info.State == asynq.TaskStateRetry && ours(info, a):
		_ = w.p.client.inspector.RunTask(a.queue, a.id) // else its timer was quicker
	}
}

// last wakes, before this process ends, whom its last calls have made room for.
func (w *waker) last() {
	ctx, cancel := context.WithTimeout(detached(w.p.base), 2*time.Second)
	defer cancel()
	for ctx.Err() == nil && w.wakeDue(ctx) == 0 {
	}
}

// ours says that a task still waits for the turn that the alarm is of, and not
// for what happened to it since: that is not to be cut short.
func ours(info *asynq.TaskInfo, a alarm) bool {
	why, _, _ := strings.Cut(info.LastErr, ": ")
	return why == whyDeferred && info.NextProcessAt.Sub(a.timer).Abs() <= turnGrace
}

// alarms are a heap, the earliest first.
type alarms []alarm

func (h alarms) Len() int           { return len(h) }
func (h alarms) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h alarms) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *alarms) Push(x any)        { *h = append(*h, x.(alarm)) }

func (h *alarms) Pop() any {
	last := len(*h) - 1
	a := (*h)[last]
	*h = (*h)[:last]
	return a
}
