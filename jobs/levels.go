package jobs

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// A queue of steps is served as several queues of asynq: its own, and one for
// each level of overflow. The more executions of an account are under way, the
// lower the level that its next ones are enqueued in; each stays in its queue
// until it has ended. Workers take from all levels, mostly from the first that
// has tasks waiting, and from each at least its share.

// level is one of the levels of a queue.
type level struct {
	suffix string // of the queue's name
	ahead  int64  // so many of its account under way, or more: the next level
	weight int    // its share where all levels have tasks, as asynq counts
}

// The first level holds so few of one account that those of another pass in no
// time; between the others a flood leaves room to what is only much.
func levels() []level {
	return []level{
		{suffix: "", ahead: 100, weight: 10},
		{suffix: ".2", ahead: 5000, weight: 3},
		{suffix: ".3", weight: 1},
	}
}

// levelQueue is the queue for an execution whose account has so many under way.
func levelQueue(queue string, ahead int64) string {
	all := levels()
	for _, l := range all[:len(all)-1] {
		if ahead < l.ahead {
			return queue + l.suffix
		}
	}
	return queue + all[len(all)-1].suffix
}

// IsOverflow says that a queue's name is reserved for the overflow of another.
func IsOverflow(queue string) bool {
	for _, l := range levels()[1:] {
		if strings.HasSuffix(queue, l.suffix) {
			return true
		}
	}
	return false
}

// ofQueue says that one of asynq's queues is a level of a queue of steps.
func ofQueue(name, queue string) bool {
	for _, l := range levels() {
		if name == queue+l.suffix {
			return true
		}
	}
	return false
}

// allLevels are the queues of asynq that serve queues of steps, with their weights.
func allLevels(queues map[string]int) map[string]int {
	all := make(map[string]int, len(queues)*len(levels()))
	for q, weight := range queues {
		for _, l := range levels() {
			all[q+l.suffix] = weight * l.weight
		}
	}
	return all
}

// gate is a Redis client for asynq's servers that keeps them from asking for
// tasks of overflow queues that have none, or whose first level is paused: a
// server polls each of its queues, with a round trip for each that is empty.
// While it is closed they find no task at all.
// What it does not know it lets through.
type gate struct {
	redis.UniversalClient
	closed  atomic.Bool // nothing is taken, of no queue
	watched []*overflow
	keys    map[string]*overflow // by the keys with which asynq asks for tasks
}

// overflow is a queue behind the gate.
type overflow struct {
	pending, scheduled, retry string // asynq's keys
	paused                    string // of its first level
	shut                      atomic.Bool
}

// gateEvery is how soon tasks in an overflow queue are noticed.
const gateEvery = 500 * time.Millisecond

func newGate(rdb redis.UniversalClient, queues map[string]int) *gate {
	g := &gate{UniversalClient: rdb, keys: map[string]*overflow{}}
	for _, q := range append(slices.Collect(maps.Keys(queues)), QueueRefresh) {
		pending := "asynq:{" + q + "}:pending"
		g.keys[pending] = &overflow{pending: pending} // is never shut by itself
	}
	for q := range queues {
		for _, l := range levels()[1:] {
			base := "asynq:{" + q + l.suffix + "}:"
			o := &overflow{pending: base + "pending", scheduled: base + "scheduled", retry: base + "retry", paused: "asynq:{" + q + "}:paused"}
			g.watched = append(g.watched, o)
			g.keys[o.pending], g.keys[o.scheduled], g.keys[o.retry] = o, o, o
		}
	}
	return g
}

// look opens and shuts. While Redis cannot be asked all stays as it is.
func (g *gate) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	pipe := g.Pipeline()
	tasks, paused := make([]*redis.IntCmd, len(g.watched)), make([]*redis.IntCmd, len(g.watched))
	for i, o := range g.watched {
		tasks[i], paused[i] = pipe.Exists(ctx, o.pending, o.scheduled, o.retry), pipe.Exists(ctx, o.paused)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return
	}
	for i, o := range g.watched {
		o.shut.Store(tasks[i].Val() == 0 || paused[i].Val() > 0)
	}
}

// EvalSha answers asynq's scripts that take a task off a queue, or forward
// those that are due, for queues that are shut: there is nothing.
func (g *gate) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	if len(keys) == 0 {
		return g.UniversalClient.EvalSha(ctx, sha, keys, args...)
	}
	o := g.keys[keys[0]]
	closed := g.closed.Load() && o != nil && keys[0] == o.pending
	if o == nil || !closed && !o.shut.Load() {
		return g.UniversalClient.EvalSha(ctx, sha, keys, args...)
	}
	cmd := redis.NewCmd(ctx)
	if keys[0] == o.pending {
		cmd.SetErr(redis.Nil)
	} else {
		cmd.SetVal(int64(0))
	}
	return cmd
}
