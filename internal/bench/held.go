package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/jobs"
)

// The API's tokens: only the newest is good. Its token endpoint refuses or
// renews, as told.
const tokenedYAML = `connector: bench
base_url: "{{base}}"
auth: {type: oauth2, token_url: "{{base}}/token", auth_style: params, refresh_on: [401]}
parameters: [{name: base, target: merge_field, property: account}]
methods: [{method: get, endpoint: /item}]
`

const restarts = 100 // of the race from a stored token to the first execution

// measureHeld has n executions wait for one revoked credential, puts it again,
// and then renews a token under waiting executions many times.
func measureHeld(n, concurrency int) error {
	ctx := context.Background()
	sock, stop, err := startRedis()
	if err != nil {
		return err
	}
	defer stop()
	rdb := redis.NewClient(&redis.Options{Network: "unix", Addr: sock, PoolSize: 64, Protocol: 2})
	var trips roundTrips
	rdb.AddHook(&trips)

	var generation, requests, ended atomic.Int64
	var revoked atomic.Bool
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token" && revoked.Load():
			requests.Add(1)
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(`{"error":"invalid_grant"}`))
		case r.URL.Path == "/token":
			requests.Add(1)
			_, _ = fmt.Fprintf(w, `{"access_token":"access-token-%d","expires_in":3600}`, generation.Add(1))
		case r.Header.Get("Authorization") != fmt.Sprintf("Bearer access-token-%d", generation.Load()):
			w.WriteHeader(http.StatusUnauthorized)
		default:
			_, _ = w.Write([]byte(`{}`))
		}
	}))
	defer api.Close()

	var mu sync.Mutex
	var stored time.Time
	var waits []float64 // ms
	var order []string
	h, err := openHouse(rdb, tokenedYAML, concurrency, func(m jobs.Moment) {
		mu.Lock()
		defer mu.Unlock()
		switch m.What {
		case "refreshed":
			stored = m.At
		case "called":
			if !stored.IsZero() {
				waits, stored = append(waits, float64(m.At.Sub(stored).Microseconds())/1000), time.Time{}
			}
		case "succeeded", "failed":
			order = append(order, m.ExecutionID)
			ended.Add(1)
		}
	})
	if err != nil {
		return err
	}
	defer h.engine.Close()
	put := func() error {
		return h.put(fmt.Sprintf(`{"credential_id":"c","connector":"bench","client_id":"client","properties":{"base":%q},
			"oauth2":{"access_token":"access-token-%d","refresh_token":"refresh-token","expires_in":3600}}`, api.URL, generation.Load()))
	}
	if err := put(); err != nil {
		return err
	}
	if err := h.pool.Start(); err != nil {
		return err
	}
	defer h.pool.Shutdown()
	time.Sleep(time.Second) // lanes and hook hosts have started
	enqueue := func(n int) error {
		batch := make([]*jobs.Step, n)
		for i := range batch {
			batch[i] = &jobs.Step{CredentialID: "c", Method: "get"}
		}
		for _, r := range jobs.NewClient(rdb).EnqueueBatch(ctx, batch) {
			if r.Err != nil {
				return r.Err
			}
		}
		return nil
	}

	// Held.
	memory, heap, goroutines := usedMemory(ctx, rdb), heapInUse(), runtime.NumGoroutine()
	revoked.Store(true)
	generation.Add(1) // the token dies
	begun := time.Now()
	if err := enqueue(n); err != nil {
		return err
	}
	if err := until(func() (bool, error) {
		s, err := h.store.Status(ctx, "c")
		return err == nil && s.State == credentials.Revoked && s.Waiting == int64(n), err
	}); err != nil {
		return err
	}
	fmt.Printf("held: %d executions in %.1f s, %d token request(s)\n", n, time.Since(begun).Seconds(), requests.Load())
	time.Sleep(time.Second) // connections close, attempts end
	fmt.Printf("  in Redis %.0f bytes each; in the worker %+d goroutines, %+.0f bytes of heap each\n",
		float64(usedMemory(ctx, rdb)-memory)/float64(n), runtime.NumGoroutine()-goroutines, float64(heapInUse()-heap)/float64(n))

	// Released.
	marks, err := h.store.Waiters(ctx, "c", 0, int64(n))
	if err != nil {
		return err
	}
	revoked.Store(false)
	trips.n.Store(0)
	begun = time.Now()
	if err := put(); err != nil {
		return err
	}
	if err := jobs.NewClient(rdb).RequestResume(ctx, "c"); err != nil {
		return err
	}
	if err := until(func() (bool, error) { return ended.Load() == int64(n), nil }); err != nil {
		return err
	}
	took := time.Since(begun)
	mu.Lock()
	shift := displacement(marks, order)
	mu.Unlock()
	fmt.Printf("released: %d executions ended in %.1f s, %.1f Redis round trips each; half of them ran within %d places of their order, 99 %% within %d\n",
		n, took.Seconds(), float64(trips.n.Load())/float64(n), shift[len(shift)/2], shift[len(shift)*99/100])

	// From a stored token to the first execution.
	asked := requests.Load()
	for range restarts {
		ended.Store(0)
		generation.Add(1)
		if err := enqueue(20); err != nil {
			return err
		}
		if err := until(func() (bool, error) { return ended.Load() == 20, nil }); err != nil {
			return err
		}
	}
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(waits)
	fmt.Printf("token stored, first parked execution starts: p50 %.1f ms, p99 %.1f ms (%d times 20 executions, %d token requests)\n",
		waits[len(waits)/2], waits[len(waits)*99/100], restarts, requests.Load()-asked)
	return nil
}

// measureClient has n credentials share one client whose secret is wrong, and
// then puts it right.
func measureClient(n, concurrency int) error {
	ctx := context.Background()
	sock, stop, err := startRedis()
	if err != nil {
		return err
	}
	defer stop()
	rdb := redis.NewClient(&redis.Options{Network: "unix", Addr: sock, PoolSize: 64, Protocol: 2})
	var requests, held, ended atomic.Int64
	var right atomic.Bool
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token" && !right.Load():
			requests.Add(1)
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = w.Write([]byte(`{"error":"invalid_client"}`))
		case r.URL.Path == "/token":
			requests.Add(1)
			_, _ = w.Write([]byte(`{"access_token":"good-access-token","expires_in":3600}`))
		case r.Header.Get("Authorization") != "Bearer good-access-token":
			w.WriteHeader(http.StatusUnauthorized)
		default:
			_, _ = w.Write([]byte(`{}`))
		}
	}))
	defer api.Close()
	h, err := openHouse(rdb, tokenedYAML, concurrency, func(m jobs.Moment) {
		switch m.What {
		case "held":
			held.Add(1)
		case "succeeded":
			ended.Add(1)
		}
	})
	if err != nil {
		return err
	}
	defer h.engine.Close()
	batch := make([]*jobs.Step, n)
	for i := range batch {
		id := fmt.Sprintf("c%d", i)
		if err := h.put(fmt.Sprintf(`{"credential_id":%q,"connector":"bench","client_id":"client","client_secret":"wrong","properties":{"base":%q},
			"oauth2":{"access_token":"dead-access-token","refresh_token":"refresh-token","expires_in":3600}}`, id, api.URL)); err != nil {
			return err
		}
		batch[i] = &jobs.Step{CredentialID: id, Method: "get"}
	}
	for _, r := range jobs.NewClient(rdb).EnqueueBatch(ctx, batch) {
		if r.Err != nil {
			return r.Err
		}
	}
	begun := time.Now()
	if err := h.pool.Start(); err != nil {
		return err
	}
	defer h.pool.Shutdown()
	if err := until(func() (bool, error) { return held.Load() >= int64(n), nil }); err != nil {
		return err
	}
	fmt.Printf("a wrong client secret: %d credentials held in %.1f s, %d token request(s)\n", n, time.Since(begun).Seconds(), requests.Load())
	right.Store(true)
	begun = time.Now()
	if err := jobs.NewClient(rdb).RequestRefresh(ctx, "c0"); err != nil {
		return err
	}
	if err := until(func() (bool, error) { return ended.Load() == int64(n), nil }); err != nil {
		return err
	}
	fmt.Printf("  put right, one credential refreshed: all ran within %.1f s, %d token requests in all\n", time.Since(begun).Seconds(), requests.Load())
	return nil
}

func until(ok func() (bool, error)) error {
	var last error
	for deadline := time.Now().Add(5 * time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		good, err := ok()
		if good {
			return nil
		}
		last = err
	}
	return fmt.Errorf("it takes too long: %w", last)
}

// displacement is by how many places each execution ended away from where it
// waited, sorted.
func displacement(waiters []credentials.Waiter, order []string) []int {
	place := make(map[string]int, len(waiters))
	for i, w := range waiters {
		place[w.Execution[strings.LastIndexByte(w.Execution, '|')+1:]] = i
	}
	shift := make([]int, len(order))
	for i, id := range order {
		shift[i] = max(place[id]-i, i-place[id])
	}
	slices.Sort(shift)
	return shift
}

func usedMemory(ctx context.Context, rdb redis.UniversalClient) int64 {
	var n int64
	info := rdb.Info(ctx, "memory").Val()
	_, rest, _ := strings.Cut(info, "used_memory:")
	_, _ = fmt.Sscan(rest, &n)
	return n
}

func heapInUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// roundTrips counts what a client sends: a pipeline is one.
type roundTrips struct{ n atomic.Int64 }

func (r *roundTrips) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

func (r *roundTrips) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { r.n.Add(1); return next(ctx, cmd) }
}

func (r *roundTrips) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error { r.n.Add(1); return next(ctx, cmds) }
}
