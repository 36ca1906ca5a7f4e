package jobs

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/internal/redistest"
)

// asynq does not note since when a task is pending that was run from the
// dashboard, or at its turn: the first look at the queue does, and later ones
// tell the same, whoever of them is the first by then.
func TestQueueScript_tasksThatWereRun(t *testing.T) {
	ctx := context.Background()
	for _, tasks := range []int{1, 60, 1000} {
		t.Run(fmt.Sprint(tasks), func(t *testing.T) {
			rdb := redistest.New(t).Client(t)
			client, inspector := asynq.NewClientFromRedisClient(rdb), asynq.NewInspectorFromRedisClient(rdb)
			for range tasks {
				if _, err := client.Enqueue(asynq.NewTask("x", nil), asynq.Queue("q"), asynq.ProcessIn(time.Hour)); err != nil {
					t.Fatal(err)
				}
			}
			if got := pendingSince(t, rdb, 1000); got != 0 {
				t.Errorf("an empty queue is pending since %d", got)
			}
			if n, err := inspector.RunAllScheduledTasks("q"); err != nil || n != tasks {
				t.Fatalf("%d of %d run: %v", n, tasks, err)
			}
			for now := int64(2000); ; now += 1000 {
				if got := pendingSince(t, rdb, now); got != 2000 {
					t.Fatalf("with %d left, pending since %d, want 2000", rdb.LLen(ctx, "asynq:{q}:pending").Val(), got)
				}
				for range max(1, tasks/7) {
					rdb.RPop(ctx, "asynq:{q}:pending")
				}
				if rdb.LLen(ctx, "asynq:{q}:pending").Val() == 0 {
					return
				}
			}
		})
	}
}

// The numbers are told where Redis takes no writes, too.
func TestQueueScript_outOfMemory(t *testing.T) {
	rdb := redistest.New(t).Client(t)
	inspector := asynq.NewInspectorFromRedisClient(rdb)
	info, err := asynq.NewClientFromRedisClient(rdb).Enqueue(asynq.NewTask("x", nil), asynq.Queue("q"), asynq.ProcessIn(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if err := inspector.RunTask("q", info.ID); err != nil {
		t.Fatal(err)
	}
	if err := rdb.ConfigSet(context.Background(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	if got := pendingSince(t, rdb, 5000); got != 5000 {
		t.Errorf("pending since %d, want 5000", got)
	}
}

func pendingSince(t *testing.T, rdb redis.UniversalClient, now int64) int64 {
	t.Helper()
	n, err := lookAtQueue(context.Background(), rdb, "q", time.Unix(0, now)).Int64Slice()
	if err != nil {
		t.Fatal(err)
	}
	return n[len(queueStates)+1]
}
