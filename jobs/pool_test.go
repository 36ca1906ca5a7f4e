package jobs_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/hooks"
	"github.com/stepworker/stepworker/internal/redistest"
	"github.com/stepworker/stepworker/internal/sampleapi"
	"github.com/stepworker/stepworker/jobs"
)

func TestMain(m *testing.M) {
	hooks.HostMain()
	// Many of these tests wait most of the time: for turns, pauses, and asynq's end.
	flag.Parse()
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// house is a pool on a real Redis, with the sample provider at the other end.
type house struct {
	t       *testing.T
	redis   *redistest.Server
	rdb     redis.UniversalClient
	store   *credentials.Store
	api     *sampleapi.Provider
	url     string
	client  *jobs.Client
	pool    *jobs.Pool
	mu      sync.Mutex
	moments []jobs.Moment
	told    func(jobs.Moment) // see onMoment
}

// onMoment has do told of each moment from now on.
func (h *house) onMoment(do func(jobs.Moment)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.told = do
}

func newHouse(t *testing.T, change func(*jobs.PoolConfig)) *house {
	t.Helper()
	h := &house{t: t, redis: redistest.New(t), api: sampleapi.New()}
	h.rdb = h.redis.Client(t)
	server := httptest.NewServer(h.api)
	t.Cleanup(server.Close)
	h.url = server.URL
	keys, err := credentials.ParseKeys(credentials.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	h.store = credentials.NewStore(h.rdb, keys)
	h.client = jobs.NewClient(h.rdb)
	catalog, findings, err := definition.Load(filepath.Join("..", "deploy", "connectors"))
	if err != nil || len(findings) > 0 {
		t.Fatal(err, findings)
	}
	engine, err := hooks.New(hooks.Config{})
	if err != nil {
		t.Fatal(err)
	}
	caller, err := connectors.NewCaller(connectors.CallerConfig{Engine: engine, AllowPrivate: true, AuthStyles: h.store})
	if err != nil {
		t.Fatal(err)
	}
	cfg := jobs.PoolConfig{Redis: h.rdb, Store: h.store, Catalog: catalog, Caller: caller, ShutdownTimeout: 5 * time.Second,
		Observe: func(m jobs.Moment) {
			h.mu.Lock()
			h.moments = append(h.moments, m)
			told := h.told
			h.mu.Unlock()
			if told != nil {
				told(m)
			}
		}}
	if change != nil {
		change(&cfg)
	}
	if h.pool, err = jobs.NewPool(cfg); err != nil {
		t.Fatal(err)
	}
	if err := h.pool.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.pool.Shutdown(); caller.Close(); engine.Close() })
	return h
}

func (h *house) put(v map[string]any) {
	h.t.Helper()
	props, _ := v["properties"].(map[string]any)
	if props == nil {
		props = map[string]any{}
	}
	props["base"] = h.url
	v["properties"] = props
	raw, err := json.Marshal(v)
	if err != nil {
		h.t.Fatal(err)
	}
	in, err := credentials.DecodeInput(raw)
	if err != nil {
		h.t.Fatal(err)
	}
	if _, _, err := h.store.Put(context.Background(), in, false); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) putOAuth(id, connector string) {
	h.t.Helper()
	access, refresh := h.api.Issue(id)
	h.put(map[string]any{"credential_id": id, "connector": connector, "client_id": sampleapi.ClientID, "client_secret": sampleapi.ClientSecret,
		"oauth2": map[string]any{"access_token": access, "refresh_token": refresh, "expires_in": 3600}})
}

func (h *house) enqueue(n int, step jobs.Step) []string {
	h.t.Helper()
	steps := make([]*jobs.Step, n)
	for i := range steps {
		s := step
		steps[i] = &s
	}
	ids := make([]string, n)
	for i, r := range h.client.EnqueueBatch(context.Background(), steps) {
		if r.Err != nil {
			h.t.Fatal(r.Err)
		}
		ids[i] = r.ExecutionID
	}
	return ids
}

// results waits for all and returns them by id.
func (h *house) results(ids []string) map[string]*jobs.Result {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	got := map[string]*jobs.Result{}
	if err := h.client.Wait(ctx, ids, func(r *jobs.Result) error { got[r.ExecutionID] = r; return nil }); err != nil {
		for _, id := range ids {
			if got[id] == nil {
				s, err2 := h.client.Status(context.Background(), id)
				raw, _ := json.Marshal(s)
				h.t.Fatalf("%d of %d ended: %v; one that has not: %s %v", len(got), len(ids), err, raw, err2)
			}
		}
	}
	return got
}

func (h *house) succeed(ids []string) {
	h.t.Helper()
	for id, r := range h.results(ids) {
		if r.Status != jobs.Succeeded {
			raw, _ := json.Marshal(r)
			h.t.Fatalf("%s: %s", id, raw)
		}
	}
}

// until polls until ok.
func (h *house) until(what string, ok func() bool) {
	h.t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			h.t.Fatalf("it did not come to: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (h *house) story(id string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := ""
	for _, m := range h.moments {
		if m.ExecutionID == id {
			s += fmt.Sprintf("%s %s %s\n", m.At.Format("05.000000"), m.What, m.Text)
		}
	}
	return s
}

func TestStampede_oneTokenRequestAndNoneRunsTwice(t *testing.T) {
	h := newHouse(t, nil)
	h.putOAuth("c", "orders")
	h.api.KillToken("c")
	ids := h.enqueue(500, jobs.Step{CredentialID: "c", Method: "list_orders"})
	h.succeed(ids)
	if n := h.api.TokenRequests("c"); n != 1 {
		t.Errorf("%d token requests, want 1", n)
	}
	if n := h.api.ServedTwice(); n != 0 {
		t.Errorf("%d executions were served more than once", n)
		shown := 0
		for _, id := range ids {
			if s := h.story(id); len(s) > 0 && countSucceeded(h, id) > 1 && shown < 2 {
				t.Log(id + "\n" + s)
				shown++
			}
		}
	}
}

func countSucceeded(h *house, id string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, m := range h.moments {
		if m.ExecutionID == id && m.What == "succeeded" {
			n++
		}
	}
	return n
}
