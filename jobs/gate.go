package jobs

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// gate is the Redis client of asynq's servers. A server asks each of its queues
// for tasks with a round trip, some twenty times a second while there are none,
// and a process has several servers. The gate lets such a question wait until
// there is something to be had: of a queue that was found empty it has one
// connection wait in Redis, and when that wakes, one server after the other is
// let through, until the queue is empty again. The servers of a group wait
// together, for any of their queues. What the gate does not know, or cannot
// watch, it lets through.
//
// It knows the names of asynq's keys, that those of one queue differ from
// another's by its name alone, and what two of asynq's scripts answer for
// "nothing": that of Dequeue null, that of ForwardIfReady 0.
type gate struct {
	redis.UniversalClient
	watch   redis.UniversalClient // the connections that wait; nil: it cannot watch
	log     *slog.Logger
	queues  []*watched
	pending map[string]*watched
	delayed map[string]*delayed

	mu     sync.Mutex
	change *sync.Cond    // something opened, or the gate is closed
	held   bool          // nothing is to be taken, of no queue
	closed chan struct{} // by close
	loops  sync.WaitGroup
	told   sync.Once // that Redis lets nobody wait
}

// watched is a queue of asynq behind the gate. Its fields below are the gate's mutex's.
type watched struct {
	base                      string   // with which asynq's keys begin
	pending, scheduled, retry string   // some of them
	paused                    []string // its own, and that of its first level
	group                     []*watched

	shut    bool      // found empty; a connection waits, or is about to
	barred  bool      // paused
	blind   bool      // it cannot be watched now
	asking  int       // questions under way
	hits    int       // tasks taken since it opened: so many may ask at once
	misses  int       // openings in a row of which another process had the task
	armed   time.Time // since when the connection waits; zero: it does not
	delayed bool      // it may have tasks that are scheduled or wait for a retry
}

// delayed is one of asynq's sets of delayed tasks.
type delayed struct {
	queue *watched
	asked time.Time // for tasks that are due
}

const (
	// gateEvery is how soon it is noticed that a queue is paused, or that tasks
	// were scheduled; those that this process has wait it knows at once.
	gateEvery = 500 * time.Millisecond
	// forwardEvery is how often this process asks for delayed tasks that are
	// due at most: each of its servers would, every delayedCheck.
	forwardEvery = delayedCheck / 2
	delayedCheck = 500 * time.Millisecond
	// watchFor is how long a connection waits in Redis, watchGrace how much
	// later it counts as lost, and its queue is asked as asynq does.
	watchFor   = 2 * time.Second
	watchGrace = time.Second
	watchAgain = time.Second // after an error
	// waitAtLeast, and at most twice that, is how long a server waits before it
	// comes anew: what it asks with is the lease of the task that it gets, of 30 s
	// from when it came.
	waitAtLeast = 1500 * time.Millisecond
	// missPause bounds the pause of a process that came too late for a task: so
	// that of many idle ones not all run for each. It is what asynq would sleep.
	missPause = 50 * time.Millisecond
	// refusedPause is about how long a server waits whose question Redis refused:
	// asynq asks again at once, thousands of times a second.
	refusedPause = 500 * time.Millisecond
)

// refusing says that Redis answered a script with an error. That it does not
// know the script yet is none: asynq sends it then.
func refusing(err error) bool {
	var reply redis.Error
	return err != nil && !errors.Is(err, redis.Nil) && errors.As(err, &reply) && !redis.HasErrorPrefix(err, "NOSCRIPT")
}

// newGate returns a gate for servers of steps, each of which serves all levels
// of all queues, and for one of refreshes.
func newGate(rdb redis.UniversalClient, waiting func(int) redis.UniversalClient, queues map[string]int, log *slog.Logger) *gate {
	g := &gate{UniversalClient: rdb, log: log, pending: map[string]*watched{}, delayed: map[string]*delayed{}, closed: make(chan struct{})}
	g.change = sync.NewCond(&g.mu)
	var steps []*watched
	for q := range queues {
		for _, l := range levels() {
			steps = append(steps, newWatched(q+l.suffix, q))
		}
	}
	for _, group := range [][]*watched{steps, {newWatched(QueueRefresh, QueueRefresh)}} {
		for _, q := range group {
			q.group = group
			g.queues = append(g.queues, q)
			g.pending[q.pending] = q
			g.delayed[q.scheduled], g.delayed[q.retry] = &delayed{queue: q}, &delayed{queue: q}
		}
	}
	if waiting != nil {
		g.watch = waiting(len(g.queues))
	} else {
		g.watch = sibling(rdb, len(g.queues))
	}
	return g
}

func newWatched(name, first string) *watched {
	base := "asynq:{" + name + "}:"
	q := &watched{base: base, pending: base + "pending", scheduled: base + "scheduled", retry: base + "retry", paused: []string{base + "paused"}, delayed: true}
	if name != first {
		q.paused = append(q.paused, "asynq:{"+first+"}:paused")
	}
	return q
}

// sibling is a client of the same Redis with connections of its own, so that
// those that wait are taken from nobody, and end at once when it is closed. A
// client that asks sentinels has none: a copy of its options finds the master,
// and does not hear that it is another one.
func sibling(rdb redis.UniversalClient, connections int) redis.UniversalClient {
	switch c := rdb.(type) {
	case *redis.Client:
		o := *c.Options()
		if o.Addr == failoverAddr {
			return nil
		}
		o.PoolSize, o.MinIdleConns, o.MaxRetries = connections, 0, -1
		o.PushNotificationProcessor = nil // is the other client's own
		return redis.NewClient(&o)
	case *redis.ClusterClient:
		o := *c.Options()
		o.PoolSize, o.MinIdleConns = connections, 0
		o.PushNotificationProcessor = nil
		return redis.NewClusterClient(&o)
	}
	return nil
}

// failoverAddr is what go-redis has for the address of a client that asks sentinels.
const failoverAddr = "FailoverClient"

// start begins to watch.
func (g *gate) start(ctx context.Context) {
	g.look(ctx)
	for _, q := range g.queues {
		if g.watch == nil {
			q.blind = true
			continue
		}
		g.loops.Go(func() { g.run(ctx, q) })
	}
}

// close lets go who waits: from now on there is nothing to be had.
func (g *gate) close() {
	g.mu.Lock()
	close(g.closed)
	g.change.Broadcast()
	g.mu.Unlock()
	if g.watch != nil {
		_ = g.watch.Close()
	}
	g.loops.Wait()
}

// hold stops the taking of tasks, of all queues, and with false lets it go on.
func (g *gate) hold(held bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.held == held {
		return
	}
	g.held = held
	for _, q := range g.queues {
		q.barred = q.barred || held // else at the next look
	}
}

func (g *gate) over() bool {
	select {
	case <-g.closed:
		return true
	default:
		return false
	}
}

// EvalSha runs a script, but for asynq's that ask for something where there is nothing.
func (g *gate) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	if len(keys) > 0 {
		if q := g.pending[keys[0]]; q != nil {
			return g.take(ctx, q, sha, keys, args)
		}
		if d := g.delayed[keys[0]]; d != nil {
			return g.forward(ctx, d, sha, keys, args)
		}
	}
	cmd := g.UniversalClient.EvalSha(ctx, sha, keys, args...)
	for _, key := range keys { // a task has been put off
		if d := g.delayed[key]; d != nil {
			g.mu.Lock()
			d.queue.delayed = true
			g.mu.Unlock()
		}
	}
	return cmd
}

// take asks for a task of q once there may be one. Who has waited takes one of
// whichever of the group's queues has it first: the task says itself which it
// is of. For what the group has already, asynq asks in its own order.
func (g *gate) take(ctx context.Context, q *watched, sha string, keys []string, args []any) *redis.Cmd {
	until := time.Now().Round(0).Add(waitAtLeast + rand.N(waitAtLeast))
	for waited := false; ; {
		from := g.enter(q, until, &waited)
		if from == nil {
			cmd := redis.NewCmd(ctx)
			cmd.SetErr(redis.Nil)
			return cmd
		}
		cmd := g.UniversalClient.EvalSha(ctx, sha, from.keys(keys, q), from.args(args, q)...)
		done := g.leave(from, cmd.Err())
		if refusing(cmd.Err()) {
			g.pause(refusedPause/2 + rand.N(refusedPause))
		}
		if done {
			return cmd
		}
	}
}

// keys are a script's for another queue, made to be for this one.
func (q *watched) keys(keys []string, of *watched) []string {
	if q == of {
		return keys
	}
	mine := make([]string, len(keys))
	for i, key := range keys {
		mine[i] = q.base + strings.TrimPrefix(key, of.base)
	}
	return mine
}

// args are keys' counterpart: one of them is the beginning of tasks' keys.
func (q *watched) args(args []any, of *watched) []any {
	if q == of {
		return args
	}
	mine := slices.Clone(args)
	for i, arg := range args {
		if text, ok := arg.(string); ok && strings.HasPrefix(text, of.base) {
			mine[i] = q.base + strings.TrimPrefix(text, of.base)
		}
	}
	return mine
}

// free says that one more may ask.
func (q *watched) free() bool {
	return !q.barred && (q.blind || !q.shut && q.asking < max(1, q.hits))
}

// enter waits until a queue may be asked, and returns it: q, or if it had to
// wait any of its group. It returns nil where that is not to be waited for: it
// took too long, another queue may be asked that asynq comes to, or the gate is
// closed.
func (g *gate) enter(q *watched, until time.Time, waited *bool) *watched {
	g.mu.Lock()
	defer g.mu.Unlock()
	for ; !g.over() && time.Now().Round(0).Before(until); *waited = true {
		if q.free() {
			q.asking++
			return q
		}
		for _, other := range q.group {
			if other.free() {
				if !*waited {
					return nil
				}
				other.asking++
				return other
			}
		}
		g.change.Wait()
	}
	return nil
}

// leave notes what came of a question; done means that asynq is to know it.
func (g *gate) leave(q *watched, err error) (done bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	q.asking--
	switch {
	case err == nil:
		q.misses = 0
		q.hits++
	case !errors.Is(err, redis.Nil):
		q.hits = 0
	case q.blind:
		q.hits = 0
		return true
	case !q.shut:
		if q.hits == 0 {
			q.misses++
		}
		q.shut, q.hits = true, 0
	}
	g.change.Broadcast()
	return !errors.Is(err, redis.Nil)
}

// run watches one queue: whenever it was found empty, it waits until it is not.
func (g *gate) run(ctx context.Context, q *watched) {
	for g.toWatch(q) {
		// A move of the last element to where it stands changes nothing, and
		// waits as long as there is none. Whatever is pushed before it waits is
		// there then: nothing is missed.
		err := g.watch.BLMove(ctx, q.pending, q.pending, "RIGHT", "RIGHT", watchFor).Err()
		if !g.woke(q, err) && !g.pause(watchAgain) {
			return
		}
	}
}

// toWatch waits until q is to be watched. It is false when the gate is closed.
func (g *gate) toWatch(q *watched) bool {
	g.mu.Lock()
	for !q.shut && !q.blind && !g.over() {
		g.change.Wait()
	}
	misses := q.misses
	g.mu.Unlock()
	if misses > 0 {
		d := min(time.Millisecond<<min(misses, 10), missPause)
		if !g.pause(d/2 + rand.N(d)) {
			return false
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	q.armed = time.Now()
	return !g.over()
}

// woke notes how a wait in Redis ended; false: not as it should.
func (g *gate) woke(q *watched, err error) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	q.armed = time.Time{}
	switch {
	case err == nil:
		q.blind, q.shut, q.hits = false, false, 0
	case errors.Is(err, redis.Nil):
		q.blind, q.shut, q.hits = false, true, 0
	default:
		q.blind = true
		if forbids(err) && !g.over() {
			g.told.Do(func() {
				g.log.Warn("redis does not let this worker wait for tasks: it asks again and again instead", "error", clip(err.Error(), 200))
			})
		}
	}
	g.change.Broadcast()
	return !q.blind
}

// forbids says that Redis will let nobody wait: it lacks the command, or the user
// the right. That it is not well, or no longer the master, passes.
func forbids(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply) && (strings.HasPrefix(reply.Error(), "NOPERM ") || strings.HasPrefix(reply.Error(), "ERR "))
}

// pause is false when the gate was closed meanwhile.
func (g *gate) pause(d time.Duration) bool {
	select {
	case <-g.closed:
		return false
	case <-time.After(d):
		return true
	}
}

// forward asks for tasks that are due, unless there are none or it did just now.
func (g *gate) forward(ctx context.Context, d *delayed, sha string, keys []string, args []any) *redis.Cmd {
	g.mu.Lock()
	now := time.Now()
	pass := d.queue.delayed && !d.queue.barred && now.Sub(d.asked) >= forwardEvery
	if pass {
		d.asked = now
	}
	g.mu.Unlock()
	if !pass {
		cmd := redis.NewCmd(ctx)
		cmd.SetVal(int64(0))
		return cmd
	}
	cmd := g.UniversalClient.EvalSha(ctx, sha, keys, args...)
	if n, err := cmd.Int64(); err != nil || n > 0 { // it asks again at once
		g.mu.Lock()
		d.asked = time.Time{}
		g.mu.Unlock()
	}
	return cmd
}

// look sees which queues are paused and which have delayed tasks, and whether a
// wait in Redis was lost, or is at a server where nothing is pushed any more: a
// master that was replaced, and does not know it. While Redis cannot be asked
// all stays as it is.
func (g *gate) look(ctx context.Context) {
	g.mu.Lock()
	for _, q := range g.queues {
		q.blind = q.blind || !q.armed.IsZero() && time.Since(q.armed) > watchFor+watchGrace
	}
	g.change.Broadcast() // also to who has waited long enough
	g.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	pipe := g.Pipeline()
	tasks, waiting, pauses := make([]*redis.IntCmd, len(g.queues)), make([]*redis.IntCmd, len(g.queues)), map[string]*redis.IntCmd{}
	for i, q := range g.queues {
		tasks[i] = pipe.Exists(ctx, q.pending)
		waiting[i] = pipe.Exists(ctx, q.scheduled, q.retry)
		pauses[q.paused[0]] = pipe.Exists(ctx, q.paused[0])
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, q := range g.queues {
		q.delayed, q.barred = waiting[i].Val() > 0, g.held
		for _, key := range q.paused {
			q.barred = q.barred || pauses[key].Val() > 0
		}
		if q.shut && tasks[i].Val() > 0 {
			q.shut, q.hits = false, 0
		}
	}
	g.change.Broadcast()
}
