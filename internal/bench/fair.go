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

	"github.com/stepworker/stepworker/jobs"
)

// few are the steps of a small account.
const few = 10

// measureFair has an account enqueue a flood, and two others ten steps each in
// the middle of it, of which one's credential is dead and has to be renewed
// first. The same is done without the flood, and with all in one queue, as
// plain tasks of asynq.
func measureFair(flood, concurrency int) error {
	fmt.Printf("fair: %d steps each of two accounts, in the middle of another's %d\n", few, flood)
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
			_, _ = w.Write([]byte(`{"access_token":"good-access-token","expires_in":3600}`))
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
	for id, token := range map[string]string{"much": "good", "good": "good", "dead": "dead"} {
		if err := h.put(fmt.Sprintf(`{"credential_id":%q,"connector":"bench","client_id":"client","properties":{"base":%q},
			"oauth2":{"access_token":"%s-access-token","refresh_token":"refresh-token","expires_in":3600}}`, id, api.URL, token)); err != nil {
			return err
		}
	}
	enqueue := enqueueSteps
	if plain {
		enqueue = enqueuePlain
	}
	begun := time.Now()
	if err := enqueue(rdb, "much", flood); err != nil {
		return err
	}
	enqueued := time.Since(begun)
	begun = time.Now()
	if err := h.pool.Start(); err != nil {
		return err
	}
	defer h.pool.Shutdown()
	if flood == 0 {
		time.Sleep(time.Second) // lanes and hook hosts have started
	}
	if err := until(func() (bool, error) { return seen.ended("much") >= flood/2, nil }); err != nil {
		return err
	}
	for _, id := range []string{"good", "dead"} {
		seen.ask(id)
		if err := enqueue(rdb, id, few); err != nil {
			return err
		}
	}
	if err := until(func() (bool, error) {
		return seen.ended("much") == flood && seen.ended("good") == few && seen.ended("dead") == few, nil
	}); err != nil {
		return err
	}
	first, _ := seen.waits("good")
	_, woken := seen.waits("dead")
	fmt.Printf("%-17s until they start: p50 %5.0f ms, max %5.0f ms; woken after a refresh: p50 %5.0f ms, max %5.0f ms",
		name, median(slices.Clone(first)), slices.Max(first), median(slices.Clone(woken)), slices.Max(woken))
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
	mu        sync.Mutex
	asked     map[string]time.Time
	refreshed map[string]time.Time
	done      map[string]int
	started   map[string]bool      // by execution
	first     map[string][]float64 // ms from the asking to the first start
	woken     map[string][]float64 // ms from the refresh to the next start
}

func newWatch() *watch {
	return &watch{asked: map[string]time.Time{}, refreshed: map[string]time.Time{}, done: map[string]int{},
		started: map[string]bool{}, first: map[string][]float64{}, woken: map[string][]float64{}}
}

func (w *watch) observe(m jobs.Moment) {
	w.mu.Lock()
	defer w.mu.Unlock()
	since := func(t time.Time) float64 { return float64(m.At.Sub(t).Microseconds()) / 1000 }
	switch m.What {
	case "called":
		if !w.asked[m.CredentialID].IsZero() && !w.started[m.ExecutionID] {
			w.started[m.ExecutionID] = true
			w.first[m.CredentialID] = append(w.first[m.CredentialID], since(w.asked[m.CredentialID]))
		}
		if at, ok := w.refreshed[m.CredentialID]; ok {
			w.woken[m.CredentialID] = append(w.woken[m.CredentialID], since(at))
		}
	case "refreshed":
		w.refreshed[m.CredentialID] = m.At
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

func (w *watch) waits(credential string) (first, woken []float64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.first[credential], w.woken[credential]
}
