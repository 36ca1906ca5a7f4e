package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/jobs"
)

// few are the steps of a small account.
const few = 10

// measureFair has an account enqueue a flood, and in the middle of it another
// enqueues ten steps, and ten of a third that were held are released. The same
// is done without the flood, and with all in one queue, as plain tasks of asynq.
func measureFair(flood, concurrency int) error {
	fmt.Printf("fair: %d steps each of two accounts, one's new, one's released, in the middle of another's %d\n", few, flood)
	for _, run := range []struct {
		name  string
		flood int
		plain bool
	}{{"no flood", 0, false}, {"flood", flood, false}, {"flood, one queue", flood, true}} {
		if err := fairRun(run.name, run.flood, concurrency, run.plain); err != nil {
			return fmt.Errorf("%s: %w", run.name, err)
		}
	}
	return nil
}

// fairRun prints the figures of one run.
func fairRun(name string, flood, concurrency int, plain bool) error {
	sock, stop, err := startRedis()
	if err != nil {
		return err
	}
	defer stop()
	rdb := redis.NewClient(&redis.Options{Network: "unix", Addr: sock, PoolSize: 64, Protocol: 2})
	defer rdb.Close()
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token":
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(`{"error":"invalid_grant"}`))
		case r.Header.Get("Authorization") != "Bearer good-access-token":
			w.WriteHeader(http.StatusUnauthorized)
		default:
			_, _ = w.Write([]byte(`{}`))
		}
	}))
	defer api.Close()

	seen := newWatch()
	h, err := openHouse(rdb, tokenedYAML, concurrency, seen.observe)
	if err != nil {
		return err
	}
	defer h.engine.Close()
	put := func(id, token string) error {
		return h.put(fmt.Sprintf(`{"credential_id":%q,"connector":"bench","client_id":"client","properties":{"base":%q},
			"oauth2":{"access_token":"%s-access-token","refresh_token":"refresh-token","expires_in":3600}}`, id, api.URL, token))
	}
	if err := errors.Join(put("much", "good"), put("new", "good"), put("held", "dead")); err != nil {
		return err
	}
	enqueue := enqueueSteps
	if plain {
		enqueue = enqueuePlain
	}
	if err := h.pool.Start(); err != nil {
		return err
	}
	defer h.pool.Shutdown()
	if err := enqueue(rdb, "held", few); err != nil {
		return err
	}
	if err := until(func() (bool, error) {
		s, err := h.store.Status(context.Background(), "held")
		return err == nil && s.State == credentials.Revoked && s.Waiting == few, err
	}); err != nil {
		return err
	}
	begun := time.Now()
	if err := enqueue(rdb, "much", flood); err != nil {
		return err
	}
	enqueued := time.Since(begun)
	if err := until(func() (bool, error) { return seen.ended("much") >= flood/2, nil }); err != nil {
		return err
	}
	seen.ask("new")
	if err := enqueue(rdb, "new", few); err != nil {
		return err
	}
	seen.ask("held")
	if err := errors.Join(put("held", "good"), jobs.NewClient(rdb).RequestResume(context.Background(), "held")); err != nil {
		return err
	}
	if err := until(func() (bool, error) {
		return seen.ended("much") == flood && seen.ended("new") == few && seen.ended("held") == few, nil
	}); err != nil {
		return err
	}
	fresh, woken := seen.waits("new"), seen.waits("held")
	fmt.Printf("%-17s until they start: new ones p50 %5.0f ms, max %5.0f ms; released ones p50 %5.0f ms, max %5.0f ms",
		name, median(fresh), slices.Max(fresh), median(woken), slices.Max(woken))
	if flood > 0 {
		fmt.Printf("; %d steps enqueued at %.0f/s, run at %.0f/s", flood, float64(flood)/enqueued.Seconds(), float64(flood)/time.Since(begun).Seconds())
	}
	fmt.Println()
	return nil
}

func enqueueSteps(rdb redis.UniversalClient, credential string, n int) error {
	batch := make([]*jobs.Step, n)
	for i := range batch {
		batch[i] = &jobs.Step{CredentialID: credential, Method: "get"}
	}
	for _, r := range jobs.NewClient(rdb).EnqueueBatch(context.Background(), batch) {
		if r.Err != nil {
			return r.Err
		}
	}
	return nil
}

// enqueuePlain enqueues as a flow with asynq alone does: there are no levels.
func enqueuePlain(rdb redis.UniversalClient, credential string, n int) error {
	c := asynq.NewClientFromRedisClient(rdb)
	errs := make([]error, 64)
	var wg sync.WaitGroup
	for w := range errs {
		wg.Go(func() {
			for i := w; i < n && errs[w] == nil; i += len(errs) {
				_, errs[w] = c.Enqueue(asynq.NewTask(jobs.TypeStep, fmt.Appendf(nil, `{"v":1,"credential_id":%q,"method":"get"}`, credential)),
					asynq.TaskID(credential+strconv.Itoa(i)), asynq.Queue("steps"), asynq.MaxRetry(1<<20), asynq.Retention(24*time.Hour), asynq.Timeout(5*time.Minute))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// watch notes what becomes of the steps of each credential.
type watch struct {
	mu    sync.Mutex
	asked map[string]time.Time
	done  map[string]int
	start map[string][]float64 // ms from the asking to a start
}

func newWatch() *watch {
	return &watch{asked: map[string]time.Time{}, done: map[string]int{}, start: map[string][]float64{}}
}

func (w *watch) observe(m jobs.Moment) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch m.What {
	case "called":
		if at, ok := w.asked[m.CredentialID]; ok {
			w.start[m.CredentialID] = append(w.start[m.CredentialID], float64(m.At.Sub(at).Microseconds())/1000)
		}
	case "succeeded", "failed":
		w.done[m.CredentialID]++
	}
}

func (w *watch) ask(credential string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked[credential] = time.Now()
}

func (w *watch) ended(credential string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.done[credential]
}

func (w *watch) waits(credential string) []float64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.start[credential])
}
