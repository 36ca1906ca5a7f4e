package main

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/jobs"
)

// measureIdle counts what a process costs that has nothing to do, and measures
// how soon it starts a step that comes then. Round by round, so that what else
// the machine does shows.
func measureIdle(seconds, rounds, concurrency int) error {
	for _, queues := range []int{1, 8} {
		for range rounds {
			if err := idleRun(queues, time.Duration(seconds)*time.Second, concurrency); err != nil {
				return err
			}
		}
	}
	return nil
}

const pickups = 300 // steps whose start is timed, one after the other

func idleRun(queues int, stay time.Duration, concurrency int) error {
	ctx := context.Background()
	sock, stop, err := startRedis()
	if err != nil {
		return err
	}
	defer stop()
	rdb := client(sock, 2)
	defer rdb.Close()
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write([]byte(`{}`)) }))
	defer api.Close()
	var mu sync.Mutex
	called := map[string]time.Time{}
	came := make(chan struct{}, 1)
	h, err := openHouseFor(rdb, connectorYAML+connectorMethods, house{queues: queueNames(queues), concurrency: concurrency, observe: func(m jobs.Moment) {
		if m.What == "called" {
			mu.Lock()
			called[m.ExecutionID] = m.At
			mu.Unlock()
			came <- struct{}{}
		}
	}})
	if err != nil {
		return err
	}
	defer h.engine.Close()
	if err := h.put(fmt.Sprintf(`{"credential_id":"c","connector":"bench","api_key":"k-0123456789","properties":{"base":%q}}`, api.URL)); err != nil {
		return err
	}
	if err := h.pool.Start(); err != nil {
		return err
	}
	defer h.pool.Shutdown()
	time.Sleep(2 * time.Second) // everything has started
	commands, cpu, before := commandsOf(ctx, rdb), spent(), redisSeconds(ctx, rdb)
	time.Sleep(stay)
	commands, cpu, before = commandsOf(ctx, rdb)-commands, spent()-cpu, redisSeconds(ctx, rdb)-before
	fmt.Printf("idle, %d queue(s): %.0f Redis commands/s, %.2f %% of a core, of Redis' %.2f %%; %s connections\n",
		queues, float64(commands)/stay.Seconds(), 100*cpu/stay.Seconds(), 100*before/stay.Seconds(), infoOf(ctx, rdb, "clients", "connected_clients"))

	c := jobs.NewClient(rdb)
	waits := make([]float64, 0, pickups)
	for i := range pickups {
		time.Sleep(20*time.Millisecond + rand.N(80*time.Millisecond))
		names := queueNames(queues)
		queue := slices.Sorted(maps.Keys(names))[i%len(names)]
		r, err := c.Enqueue(ctx, &jobs.Step{CredentialID: "c", Method: "get", Queue: queue})
		if err != nil {
			return err
		}
		at := time.Now()
		<-came
		mu.Lock()
		waits = append(waits, max(0, float64(called[r.ExecutionID].Sub(at).Microseconds())/1000))
		mu.Unlock()
	}
	slices.Sort(waits)
	fmt.Printf("  from enqueued to called: p10 %.1f, p50 %.1f, p90 %.1f, p99 %.1f, max %.1f ms\n",
		waits[pickups/10], waits[pickups/2], waits[pickups*9/10], waits[pickups*99/100], waits[pickups-1])
	return nil
}

// queueNames are n queues of steps.
func queueNames(n int) map[string]int {
	if n == 1 {
		return map[string]int{jobs.QueueSteps: 1}
	}
	names := map[string]int{}
	for i := range n {
		names[fmt.Sprintf("steps-%d", i)] = 1
	}
	return names
}

// commandsOf is how many commands Redis has run, those of scripts included.
func commandsOf(ctx context.Context, rdb redis.UniversalClient) int64 {
	var n int64
	_, _ = fmt.Sscan(infoOf(ctx, rdb, "stats", "total_commands_processed"), &n)
	return n
}

// redisSeconds is the CPU time that Redis has used.
func redisSeconds(ctx context.Context, rdb redis.UniversalClient) float64 {
	var user, sys float64
	_, _ = fmt.Sscan(infoOf(ctx, rdb, "cpu", "used_cpu_user"), &user)
	_, _ = fmt.Sscan(infoOf(ctx, rdb, "cpu", "used_cpu_sys"), &sys)
	return user + sys
}

// infoOf is one field of INFO.
func infoOf(ctx context.Context, rdb redis.UniversalClient, section, field string) string {
	_, rest, _ := strings.Cut(rdb.Info(ctx, section).Val(), "\n"+field+":")
	value, _, _ := strings.Cut(rest, "\r")
	return value
}
