package redismetrics_test

import (
	"context"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/internal/redismetrics"
	"github.com/stepworker/stepworker/internal/redistest"
)

func errorsOf(t *testing.T, h *redismetrics.Hook, unreachable, refused, failed string) {
	t.Helper()
	want := `# HELP stepworker_redis_errors_total Commands and pipelines that failed: unreachable, refused (Redis takes no writes), failed (any other error).
# TYPE stepworker_redis_errors_total counter
stepworker_redis_errors_total{kind="failed"} ` + failed + `
stepworker_redis_errors_total{kind="refused"} ` + refused + `
stepworker_redis_errors_total{kind="unreachable"} ` + unreachable + "\n"
	if err := testutil.CollectAndCompare(h, strings.NewReader(want), "stepworker_redis_errors_total"); err != nil {
		t.Error(err)
	}
}

func TestHook_countsWhatRedisSays(t *testing.T) {
	ctx := context.Background()
	server := redistest.New(t)
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr, MaxRetries: -1})
	defer rdb.Close()
	h := redismetrics.New()
	rdb.AddHook(h)

	// An absent key and an unknown script are no errors; nor is CONFIG that is forbidden.
	rdb.Get(ctx, "absent")
	rdb.EvalSha(ctx, strings.Repeat("0", 40), nil)
	rdb.ConfigSet(ctx, "nonsense", "1")
	errorsOf(t, h, "0", "0", "0")

	rdb.Set(ctx, "text", "x", 0)
	rdb.LPush(ctx, "text", "x") // of another type
	errorsOf(t, h, "0", "0", "1")

	if err := rdb.ConfigSet(ctx, "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	script := redis.NewScript(`return redis.call('SET', KEYS[1], 'x')`)
	if rdb.Set(ctx, "a", "x", 0).Err() == nil || script.Run(ctx, rdb, []string{"a"}).Err() == nil {
		t.Fatal("a full Redis took a write")
	}
	pipe := rdb.Pipeline()
	pipe.Set(ctx, "b", "x", 0)
	if _, err := pipe.Exec(ctx); err == nil {
		t.Fatal("a full Redis took a write")
	}
	errorsOf(t, h, "0", "3", "1")

	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	rdb.Get(cancelled, "text") // tells nothing of Redis
	server.Kill()
	if rdb.Get(ctx, "text").Err() == nil {
		t.Fatal("a dead Redis answered")
	}
	errorsOf(t, h, "1", "3", "1")
}

func TestHook_classes(t *testing.T) {
	ctx := context.Background()
	rdb := redistest.New(t).Client(t)
	reg := prometheus.NewRegistry()
	h := redismetrics.New()
	reg.MustRegister(h)
	rdb.AddHook(h)
	rdb.HGetAll(ctx, "a")
	rdb.ZCard(ctx, "b")
	rdb.SAdd(ctx, "c", 1)
	rdb.Eval(ctx, "return 1", nil)
	rdb.Ping(ctx)
	pipe := rdb.Pipeline()
	pipe.Get(ctx, "a")
	pipe.Get(ctx, "b")
	_, _ = pipe.Exec(ctx)
	tx := rdb.TxPipeline()
	tx.Set(ctx, "d", 1, 0)
	_, _ = tx.Exec(ctx)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for _, f := range families {
		if f.GetName() == "stepworker_redis_seconds" {
			for _, s := range f.GetMetric() {
				got[s.GetLabel()[0].GetValue()] = s.GetHistogram().GetSampleCount()
			}
		}
	}
	want := map[string]uint64{redismetrics.Read: 2, redismetrics.Write: 1, redismetrics.Script: 1, redismetrics.Pipeline: 2}
	for class, n := range want {
		if got[class] != n {
			t.Errorf("%d commands of class %s, want %d", got[class], class, n)
		}
	}
	if got[redismetrics.Other] < 1 { // the connection's own greeting counts, too
		t.Errorf("%d others", got[redismetrics.Other])
	}
}
