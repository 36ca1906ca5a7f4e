package jobs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/internal/programtest"
	"github.com/stepworker/stepworker/internal/redistest"
	"github.com/stepworker/stepworker/jobs"
)

// questions counts what asynq asks for, by the key it asks, and notes for how
// long the leases were of the tasks that it was given.
type questions struct {
	mu     sync.Mutex
	n      map[string]int
	leases []time.Duration
}

func (p *questions) of(key string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n[key]
}

func (p *questions) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

func (p *questions) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if args := cmd.Args(); cmd.Name() == "evalsha" && len(args) > 3 {
			if key, _ := args[3].(string); strings.HasPrefix(key, "asynq:{") {
				p.mu.Lock()
				p.n[key]++
				p.mu.Unlock()
				err := next(ctx, cmd)
				if until, ok := args[len(args)-2].(int64); ok && err == nil && strings.HasSuffix(key, "}:pending") {
					p.mu.Lock()
					p.leases = append(p.leases, time.Until(time.Unix(until, 0)))
					p.mu.Unlock()
				}
				return err
			}
		}
		return next(ctx, cmd)
	}
}

func (p *questions) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// commands are how often Redis ran each command, those of scripts included.
func commands(t *testing.T, rdb redis.UniversalClient) map[string]int {
	t.Helper()
	info, err := rdb.Info(context.Background(), "commandstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]int{}
	for line := range strings.Lines(info) {
		name, rest, _ := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":calls=")
		count, _, _ := strings.Cut(rest, ",")
		if n, err := strconv.Atoi(count); err == nil {
			all[name] = n
		}
	}
	return all
}

// A process that has nothing to do leaves Redis in peace: by the time that its
// connections have waited there for the fifth time, asynq alone would have sent
// thousands of commands for each queue.
func TestGate_anIdleProcessAsksForNothing(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 4} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			asked := &questions{n: map[string]int{}}
			queues := map[string]int{"steps": 1}
			for i := range n - 1 {
				queues[fmt.Sprint("more", i)] = 1
			}
			h := newHouse(t, func(c *jobs.PoolConfig) { c.Redis.AddHook(asked); c.Queues = queues })
			watched := 3*n + 1
			h.until("it has waited once", func() bool { return commands(t, h.rdb)["blmove"] > 2*watched })
			before, asks := commands(t, h.rdb), 0
			for _, k := range []string{"steps", "steps.2", "steps.3", "refresh"} {
				asks -= asked.of("asynq:{" + k + "}:pending")
			}
			h.until("it has waited five times more", func() bool { return commands(t, h.rdb)["blmove"] > 7*watched })
			after, all := commands(t, h.rdb), 0
			maps.DeleteFunc(after, func(name string, _ int) bool { return name == "info" })
			for name, n := range after {
				all += n - before[name]
			}
			for _, k := range []string{"steps", "steps.2", "steps.3", "refresh"} {
				asks += asked.of("asynq:{" + k + "}:pending")
			}
			if most := 1000 + 400*n; all > most {
				t.Errorf("Redis ran %d commands, at most %d are expected: %v", all, most, after)
			}
			if asks > 5 {
				t.Errorf("asynq asked %d times for tasks", asks)
			}
			h.put(map[string]any{"credential_id": "w", "connector": "weather", "api_key": "k"})
			for q := range queues {
				h.succeed(h.enqueue(120, jobs.Step{CredentialID: "w", Method: "now", Queue: q}))
			}
			asked.mu.Lock()
			defer asked.mu.Unlock()
			if len(asked.leases) < 120*n {
				t.Fatalf("%d leases were seen", len(asked.leases))
			}
			for _, l := range asked.leases { // asynq's are of 30 s; it was idle for fourteen
				if l < 20*time.Second {
					t.Fatalf("a task was taken with a lease of %s", l)
				}
			}
		})
	}
}

// While nothing is scheduled and nothing waits for a retry, nobody asks for
// what is due; what comes to be is forwarded.
func TestGate_delayedTasksComeBack(t *testing.T) {
	t.Parallel()
	asked := &questions{n: map[string]int{}}
	h := newHouse(t, func(c *jobs.PoolConfig) { c.Redis.AddHook(asked) })
	h.until("it is idle", func() bool { return commands(t, h.rdb)["blmove"] > 8 })
	h.put(map[string]any{"credential_id": "w", "connector": "weather", "api_key": "k"})
	soon := time.Now().Add(time.Second)
	due := h.enqueue(1, jobs.Step{CredentialID: "w", Method: "now", ProcessAt: &soon})
	h.succeed(due)
	retried := h.enqueue(1, jobs.Step{CredentialID: "w", Method: "nobody knows it"})
	inspector, times := asynq.NewInspectorFromRedisClient(h.rdb), map[time.Time]bool{}
	h.until("it was put back, and has come again", func() bool {
		if info, err := inspector.GetTaskInfo("steps", retried[0]); err == nil && info.State == asynq.TaskStateRetry {
			times[info.NextProcessAt] = true
		}
		return len(times) > 1
	})
	for _, key := range []string{"asynq:{steps.2}:scheduled", "asynq:{steps.3}:retry"} {
		if n := asked.of(key); n > 50 { // at the start it does not know
			t.Errorf("%s was asked for %d times", key, n)
		}
	}
}

// Several processes wait for one queue: all of them work, none goes without.
func TestGate_processesShareTheWork(t *testing.T) {
	t.Parallel()
	var cfg jobs.PoolConfig
	h := newHouse(t, func(c *jobs.PoolConfig) { c.Concurrency = 4; cfg = *c })
	var mu sync.Mutex
	done := map[int]int{}
	for i := range 3 {
		c := cfg
		c.Observe = func(m jobs.Moment) {
			if m.What == "succeeded" {
				mu.Lock()
				done[i]++
				mu.Unlock()
			}
		}
		pool, err := jobs.NewPool(c)
		if err != nil {
			t.Fatal(err)
		}
		if err := pool.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Shutdown)
	}
	h.put(map[string]any{"credential_id": "w", "connector": "weather", "api_key": "k"})
	h.succeed(h.enqueue(2000, jobs.Step{CredentialID: "w", Method: "now"}))
	mu.Lock()
	defer mu.Unlock()
	for i := range 3 {
		if done[i] < 50 { // of four that are alike
			t.Errorf("one of four processes ran %d of 2000 steps: %v", done[i], done)
		}
	}
	if n := h.api.ServedTwice(); n != 0 {
		t.Errorf("%d executions were served more than once", n)
	}
}

// A paused queue is left alone, and goes on once it is not.
func TestGate_pausedQueues(t *testing.T) {
	t.Parallel()
	asked := &questions{n: map[string]int{}}
	h := newHouse(t, func(c *jobs.PoolConfig) { c.Redis.AddHook(asked) })
	h.put(map[string]any{"credential_id": "w", "connector": "weather", "api_key": "k"})
	h.succeed(h.enqueue(1, jobs.Step{CredentialID: "w", Method: "now"}))
	inspector := asynq.NewInspectorFromRedisClient(h.rdb)
	for _, q := range []string{"steps", "refresh"} {
		if err := inspector.PauseQueue(q); err != nil {
			t.Fatal(err)
		}
	}
	waited := func() int { return commands(t, h.rdb)["exists"] }
	from := waited()
	h.until("it has seen that", func() bool { return waited() > from+25 })
	ids := h.enqueue(150, jobs.Step{CredentialID: "w", Method: "now"})
	if err := h.client.RequestResume(context.Background(), "w"); err != nil {
		t.Fatal(err)
	}
	from = waited()
	h.until("it has looked at its queues many times", func() bool { return waited() > from+100 })
	idle, most := asked.of("asynq:{steps}:pending"), waited()
	h.until("and many times more", func() bool { return waited() > most+100 })
	if n := asked.of("asynq:{steps}:pending") - idle; n > 3 {
		t.Errorf("a paused queue was asked for %d times", n)
	}
	for _, id := range ids {
		if _, err := h.client.Result(context.Background(), id); !errors.Is(err, jobs.ErrNotFinished) {
			t.Fatalf("%s of a paused queue: %v", id, err)
		}
	}
	for _, q := range []string{"steps", "refresh"} {
		if err := inspector.UnpauseQueue(q); err != nil {
			t.Fatal(err)
		}
	}
	h.succeed(ids)
	h.until("what was asked of the refresh queue is done", func() bool {
		info, err := inspector.GetQueueInfo("refresh")
		return err == nil && info.Size == 0
	})
}

// Where Redis lets nobody wait, queues are asked again and again; and where it
// comes back, they are watched anew.
func TestGate_withoutTheRightToWait(t *testing.T) {
	t.Parallel()
	asked := &questions{n: map[string]int{}}
	h := newHouse(t, func(c *jobs.PoolConfig) {
		c.Redis.AddHook(asked)
		if err := c.Redis.Do(context.Background(), "ACL", "SETUSER", "default", "-blmove").Err(); err != nil {
			t.Fatal(err)
		}
	})
	h.until("the queues are polled", func() bool {
		return asked.of("asynq:{steps}:pending") > 100 && asked.of("asynq:{refresh}:pending") > 20
	})
	h.put(map[string]any{"credential_id": "w", "connector": "weather", "api_key": "k"})
	h.succeed(h.enqueue(20, jobs.Step{CredentialID: "w", Method: "now"}))
	if err := h.rdb.Do(context.Background(), "ACL", "SETUSER", "default", "+blmove").Err(); err != nil {
		t.Fatal(err)
	}
	h.until("it waits again", func() bool { return commands(t, h.rdb)["blmove"] > 8 })
	h.succeed(h.enqueue(20, jobs.Step{CredentialID: "w", Method: "now"}))
}

// A Redis that refuses writes is not asked thousands of times a second, as asynq
// would: what is short of memory or of disk is not to be short of CPU, too.
func TestGate_redisRefusesWrites(t *testing.T) {
	t.Parallel()
	asked := &questions{n: map[string]int{}}
	h := newHouse(t, func(c *jobs.PoolConfig) { c.Redis.AddHook(asked) })
	h.put(map[string]any{"credential_id": "w", "connector": "weather", "api_key": "k"})
	h.until("it is idle", func() bool { return commands(t, h.rdb)["blmove"] > 8 })
	memory := func(most string) {
		if err := h.rdb.ConfigSet(context.Background(), "maxmemory", most).Err(); err != nil {
			t.Fatal(err)
		}
	}
	asks := func() (n int) {
		for _, k := range []string{"steps", "steps.2", "steps.3", "refresh"} {
			n += asked.of("asynq:{" + k + "}:pending")
		}
		return n
	}
	memory("1")
	before := asks()
	h.until("each queue's connection has tried to wait five times", func() bool {
		info, err := h.rdb.Info(context.Background(), "commandstats").Result()
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(info, "cmdstat_blmove:")
		_, rest, _ = strings.Cut(rest, "rejected_calls=")
		rest, _, _ = strings.Cut(rest, ",")
		n, _ := strconv.Atoi(rest)
		return n >= 20
	})
	if n := asks() - before; n > 1000 {
		t.Errorf("it asked %d times for tasks", n)
	}
	memory("0")
	h.succeed(h.enqueue(20, jobs.Step{CredentialID: "w", Method: "now"}))
}

// Redis dies while everybody waits: what comes afterwards is taken.
func TestGate_redisDiesWhileAllWait(t *testing.T) {
	t.Parallel()
	h := newHouse(t, nil)
	h.put(map[string]any{"credential_id": "w", "connector": "weather", "api_key": "k"})
	h.until("it is idle", func() bool { return commands(t, h.rdb)["blmove"] > 8 })
	h.redis.Flush()
	h.redis.Restart()
	h.succeed(h.enqueue(150, jobs.Step{CredentialID: "w", Method: "now"}))
	h.until("it waits again", func() bool { return commands(t, h.rdb)["blmove"] > 8 })
	h.succeed(h.enqueue(1, jobs.Step{CredentialID: "w", Method: "now"}))
}

// deafConn is a connection that dies without a word once it is to wait in Redis.
type deafConn struct {
	net.Conn
	waits  *atomic.Int64
	deaf   atomic.Bool
	closed chan struct{}
	once   sync.Once
}

func (c *deafConn) Write(b []byte) (int, error) {
	if bytes.Contains(bytes.ToLower(b), []byte("blmove")) {
		c.deaf.Store(true)
		c.waits.Add(1)
	}
	return c.Conn.Write(b)
}

func (c *deafConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.deaf.Load() {
		<-c.closed
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *deafConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// Connections that wait and never hear again delay nothing for long: their
// queues are asked as if nobody waited.
func TestGate_connectionsThatDieWithoutAWord(t *testing.T) {
	t.Parallel()
	var waits atomic.Int64
	h := newHouse(t, func(c *jobs.PoolConfig) {
		addr := c.Redis.(*redis.Client).Options().Addr
		deaf := redis.NewClient(&redis.Options{Addr: addr, Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
			var d net.Dialer
			conn, err := d.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return &deafConn{Conn: conn, waits: &waits, closed: make(chan struct{})}, nil
		}})
		t.Cleanup(func() { deaf.Close() })
		c.Redis = deaf
	})
	h.until("all queues are waited for", func() bool { return waits.Load() >= 4 })
	h.putOAuth("c", "orders")
	h.api.KillToken("c")
	h.succeed(h.enqueue(150, jobs.Step{CredentialID: "c", Method: "list_orders"}))
}

// astrayConn is a connection that comes to wait at another server than the one
// that asynq asks: that of a master which was replaced, and does not know it.
type astrayConn struct {
	net.Conn
	elsewhere string
	waits     *atomic.Int64
	astray    atomic.Bool
	other     net.Conn
}

func (c *astrayConn) Write(b []byte) (int, error) {
	if !c.astray.Load() && bytes.Contains(bytes.ToLower(b), []byte("blmove")) {
		other, err := net.Dial("tcp", c.elsewhere)
		if err != nil {
			return 0, err
		}
		c.other = other
		c.astray.Store(true)
		c.waits.Add(1)
	}
	if c.astray.Load() {
		return c.other.Write(b)
	}
	return c.Conn.Write(b)
}

func (c *astrayConn) Read(b []byte) (int, error) {
	if c.astray.Load() {
		return c.other.Read(b)
	}
	return c.Conn.Read(b)
}

func (c *astrayConn) Close() error {
	if c.astray.Load() {
		_ = c.other.Close()
	}
	return c.Conn.Close()
}

// A worker that waits at a server where nothing is pushed any more takes what
// there is at the one where it is.
func TestGate_waitsAtAnotherServer(t *testing.T) {
	t.Parallel()
	var waits atomic.Int64
	old := redistest.New(t)
	h := newHouse(t, func(c *jobs.PoolConfig) {
		addr := c.Redis.(*redis.Client).Options().Addr
		c.Redis = redis.NewClient(&redis.Options{Addr: addr, Dialer: func(ctx context.Context, network, addr string) (net.Conn, error) {
			var d net.Dialer
			conn, err := d.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return &astrayConn{Conn: conn, elsewhere: old.Addr, waits: &waits}, nil
		}})
		t.Cleanup(func() { c.Redis.Close() })
	})
	h.until("all queues are waited for, elsewhere", func() bool { return waits.Load() >= 4 })
	h.putOAuth("c", "orders")
	h.api.KillToken("c")
	h.succeed(h.enqueue(150, jobs.Step{CredentialID: "c", Method: "list_orders"}))
}

// That a server wakes who waits, as one does that becomes a replica, is not told
// as if nobody might wait there; that nobody may is told afterwards.
func TestGate_tellsOfAMissingRightAlone(t *testing.T) {
	t.Parallel()
	var log programtest.Log
	h := newHouse(t, func(c *jobs.PoolConfig) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	woken := 0
	h.until("waits were broken off", func() bool {
		list, err := h.rdb.Do(context.Background(), "CLIENT", "LIST").Text()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(list) {
			id, rest, _ := strings.Cut(strings.TrimPrefix(line, "id="), " ")
			if n, err := h.rdb.Do(context.Background(), "CLIENT", "UNBLOCK", id, "ERROR").Int(); strings.Contains(rest, "cmd=blmove") && err == nil {
				woken += n
			}
		}
		return woken >= 8 // each is heard of before the next
	})
	if text := log.String(); strings.Contains(text, "does not let") {
		t.Errorf("told: %s", text)
	}
	if err := h.rdb.Do(context.Background(), "ACL", "SETUSER", "default", "-blmove").Err(); err != nil {
		t.Fatal(err)
	}
	h.until("it is told", func() bool {
		text := log.String()
		return strings.Contains(text, "does not let") && strings.Contains(text, "NOPERM")
	})
}
