package jobs_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/jobs"
)

// What a step gives for a sensitive parameter reaches the API, also after a
// park, and stands nowhere in Redis.
func TestSensitive_parametersAreSealedOnTheirWay(t *testing.T) {
	const pin = "pin-of-a-customer-4711"
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "acme.yaml"), []byte(`
connector: acme
base_url: "{{base}}"
auth: {type: oauth2, token_url: "{{base}}/oauth/token", refresh_on: [401]}
parameters: [{name: base, target: merge_field, property: account}]
methods:
  - method: pay
    verb: POST
    endpoint: /pay
    parameters: [{name: pin, target: http_header, as: X-Pin, sensitive: true}]
`), 0o600); err != nil {
		t.Fatal(err)
	}
	h := newHouse(t, func(c *jobs.PoolConfig) {
		catalog, findings, err := definition.Load(dir)
		if err != nil || len(findings) > 0 {
			t.Fatal(err, findings)
		}
		c.Catalog = catalog
	})
	seen := make(chan string, 10)
	var mu sync.Mutex
	first := true
	var dumps []string
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		dumps = append(dumps, everything(t, h))
		switch {
		case r.URL.Path == "/oauth/token":
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"access_token":"new","refresh_token":"next","expires_in":3600}`)
		case first:
			first = false
			w.WriteHeader(http.StatusUnauthorized)
		default:
			seen <- r.Header.Get("X-Pin")
			_, _ = io.WriteString(w, `{}`)
		}
	}))
	t.Cleanup(api.Close)
	h.url = api.URL
	h.put(map[string]any{"credential_id": "c", "connector": "acme", "client_id": "i", "client_secret": "s",
		"oauth2": map[string]any{"access_token": "old", "refresh_token": "r", "expires_in": 3600}})
	step := jobs.Step{CredentialID: "c", Method: "pay", Parameters: map[string]json.RawMessage{"pin": json.RawMessage(`"` + pin + `"`)}}
	ids := h.enqueue(1, step)
	h.succeed(ids)
	if got := <-seen; got != pin {
		t.Errorf("the API was given %q", got)
	}
	if string(step.Parameters["pin"]) != `"`+pin+`"` {
		t.Error("the caller's step was changed")
	}
	for _, dump := range append(dumps, everything(t, h)) {
		if strings.Contains(dump, pin) {
			t.Error("the pin stands in Redis")
		}
		if !strings.Contains(dump, "stepworker:sealed") {
			t.Error("no step stands in Redis, so nothing was looked at")
		}
	}

	// A sealed value that somebody took from there is of no use in another step.
	raw := h.rdb.HGet(context.Background(), "asynq:{steps}:t:"+ids[0], "msg").Val()
	at := strings.Index(raw, `{"stepworker:sealed":`)
	taken := raw[at : at+strings.Index(raw[at:], "}")+1]
	failed := h.results(h.enqueue(1, jobs.Step{CredentialID: "c", Method: "pay", Parameters: map[string]json.RawMessage{"pin": json.RawMessage(`"x"`), "other": json.RawMessage(taken)}}))
	for id, r := range failed {
		if r.Status != jobs.Failed || r.Error.Kind != jobs.KindInput || !strings.Contains(r.Error.Message, `no key opens parameter "other"`) {
			t.Errorf("%s: %+v %+v", id, r, r.Error)
		}
	}
}

// A worker whose keys do not open the key that opens what steps give is at
// fault itself (a rotation was cut short, or it was given too few keys): the
// step waits, and runs once that is mended.
func TestSensitive_aWorkerWithoutTheKeyPutsBack(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "acme.yaml"), []byte(`
connector: acme
base_url: https://acme.example
methods: [{method: calc, type: script, parameters: [{name: pin, target: script, sensitive: true}]}]
`), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	other := credentials.NewKey()
	keys, err := credentials.ParseKeys(other)
	if err != nil {
		t.Fatal(err)
	}
	own := credentials.NewKey()
	h := newHouse(t, func(c *jobs.PoolConfig) {
		catalog, findings, err := definition.Load(dir)
		if err != nil || len(findings) > 0 {
			t.Fatal(err, findings)
		}
		c.Catalog = catalog
		if err := credentials.NewStore(c.Redis, keys).OfferStepSealing(ctx, catalog.Sensitive()); err != nil {
			t.Fatal(err)
		}
		ring, err := credentials.ParseKeys(own)
		if err != nil {
			t.Fatal(err)
		}
		c.Store = credentials.NewStore(c.Redis, ring)
	})
	if keys, err = credentials.ParseKeys(own + "," + other); err != nil {
		t.Fatal(err)
	}
	h.store = credentials.NewStore(h.rdb, keys)
	h.put(map[string]any{"credential_id": "c", "connector": "acme"})
	ids := h.enqueue(1, jobs.Step{CredentialID: "c", Method: "calc", Parameters: map[string]json.RawMessage{"pin": json.RawMessage(`"1"`)}})
	h.until("the step is put back", func() bool {
		s, err := h.client.Status(ctx, ids[0])
		return err == nil && s.Status == "retry" && strings.Contains(s.WaitsFor, "worker: ") && strings.Contains(s.WaitsFor, "stepworker:step_key")
	})
	if h.pool.Ready() == nil {
		t.Error("the worker is ready")
	}
	if _, err := h.store.Rotate(ctx, credentials.RotateOptions{}); err != nil {
		t.Fatal(err)
	}
	h.succeed(ids)
}

// Who may not read what workers offer enqueues nothing in clear.
func TestSensitive_nothingIsEnqueuedUnsealed(t *testing.T) {
	d := newDesk(t)
	ctx := context.Background()
	if err := d.rdb.Do(ctx, "ACL", "SETUSER", "default", "resetkeys", "~asynq:*", "~stepworker:x:*", "~stepworker:r:*", "~stepworker:underway:*").Err(); err != nil {
		t.Fatal(err)
	}
	step := tagged("", "with")
	step.Parameters = map[string]json.RawMessage{"pin": json.RawMessage(`"1"`)}
	got := d.client.EnqueueBatch(ctx, []*jobs.Step{step, tagged("x", "without")})
	if got[0].Err == nil || !strings.Contains(got[0].Err.Error(), "NOPERM") || got[0].ExecutionID == "" || got[1].Status != jobs.Enqueued {
		t.Errorf("%+v", got)
	}
	if tasks, err := d.inspector.ListPendingTasks("steps"); err != nil || len(tasks) != 1 {
		t.Errorf("%d tasks, %v", len(tasks), err)
	}
}

// Where Redis does not say what is to be sealed, it is asked once for a whole
// batch, and a caller does not wait for another's question.
func TestSensitive_redisIsAskedOnceForABatch(t *testing.T) {
	d := newDesk(t)
	asked, hang := make(chan struct{}, 100), make(chan struct{})
	d.rdb.AddHook(sealHook(func() error { asked <- struct{}{}; <-hang; return io.ErrUnexpectedEOF }))
	steps := make([]*jobs.Step, 10)
	for i := range steps {
		steps[i] = tagged("", "with")
		steps[i].Parameters = map[string]json.RawMessage{"pin": json.RawMessage(`"1"`)}
	}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for _, r := range d.client.EnqueueBatch(context.Background(), steps) {
				if r.Err == nil || r.ExecutionID == "" {
					t.Errorf("%+v", r)
				}
			}
		})
	}
	for range 2 {
		select {
		case <-asked:
		case <-time.After(time.Minute):
			t.Fatal("one waits for the other's question")
		}
	}
	close(hang)
	wg.Wait()
	if n := len(asked); n > 0 {
		t.Errorf("Redis was asked %d times more", n)
	}
}

// sealHook stands in for Redis where a client asks what it is to seal.
type sealHook func() error

func (h sealHook) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (h sealHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (h sealHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if args := cmds[0].Args(); len(args) > 1 && args[1] == "stepworker:step_key" {
			return h()
		}
		return next(ctx, cmds)
	}
}

// everything is what a dump of Redis holds of hashes and texts.
func everything(t *testing.T, h *house) string {
	ctx := context.Background()
	var out strings.Builder
	keys, err := h.rdb.Keys(ctx, "*").Result()
	if err != nil {
		t.Error(err)
	}
	for _, k := range keys {
		out.WriteString(k)
		switch h.rdb.Type(ctx, k).Val() {
		case "string":
			out.WriteString(h.rdb.Get(ctx, k).Val())
		case "hash":
			for f, v := range h.rdb.HGetAll(ctx, k).Val() {
				out.WriteString(f + v)
			}
		}
	}
	return out.String()
}
