package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/hooks"
	"github.com/stepworker/stepworker/internal/authserver"
	"github.com/stepworker/stepworker/internal/programtest"
	"github.com/stepworker/stepworker/internal/redistest"
	"github.com/stepworker/stepworker/internal/sampleapi"
	"github.com/stepworker/stepworker/jobs"
)

// asWorker makes the test binary a real worker process.
const asWorker = "STEPWORKER_TEST_AS_WORKER"

func TestMain(m *testing.M) {
	hooks.HostMain()
	if os.Getenv(asWorker) != "" {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		go func() { <-ctx.Done(); stop() }()
		os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	// These tests wait for minutes and compute for seconds: more of them at once
	// than there are cores.
	flag.Parse()
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// world is a real Redis, the sample provider, and worker processes.
type world struct {
	t      *testing.T
	redis  *redistest.Server
	rdb    redis.UniversalClient
	key    string
	store  *credentials.Store
	api    *sampleapi.Provider
	url    string
	client *jobs.Client
	env    []string // more of the workers' environment
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, redis: redistest.New(t), key: credentials.NewKey(), api: sampleapi.New()}
	w.rdb = w.redis.Client(t)
	server := httptest.NewServer(w.api)
	t.Cleanup(server.Close)
	w.url = server.URL
	keys, err := credentials.ParseKeys(w.key)
	if err != nil {
		t.Fatal(err)
	}
	w.store, w.client = credentials.NewStore(w.rdb, keys), jobs.NewClient(w.rdb)
	return w
}

// process is one worker process.
type process struct{ *programtest.Process }

// start starts a worker, to be killed at a named point ("" for none).
func (w *world) start(killAt string, args ...string) *process {
	w.t.Helper()
	return w.startWith([]string{"STEPWORKER_KILL_AT=" + killAt}, args...)
}

// startWith starts a worker with more in its environment.
func (w *world) startWith(env []string, args ...string) *process {
	w.t.Helper()
	p := w.launch(env, args...)
	p.Ready(w.t)
	return p
}

// launch is startWith without waiting for it to be ready.
func (w *world) launch(env []string, args ...string) *process {
	w.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	args = append([]string{"run", "--connectors", filepath.Join("..", "..", "deploy", "connectors"), "--allow-private-network", "--http", "127.0.0.1:0"}, args...)
	cmd := exec.Command(exe, args...)
	cmd.Env = append(append(os.Environ(), asWorker+"=1", "STEPWORKER_REDIS="+w.redis.URL, "STEPWORKER_KEYS="+w.key), append(w.env, env...)...)
	return &process{programtest.Start(w.t, cmd)}
}

func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	programtest.Until(w.t, what, ok)
}

func (w *world) put(id, connector string) {
	w.t.Helper()
	access, refresh := w.api.Issue(id)
	w.putToken(id, connector, sampleapi.ClientID, sampleapi.ClientSecret, w.url, access, refresh)
}

func (w *world) putToken(id, connector, client, secret, url, access, refresh string) {
	w.t.Helper()
	raw := fmt.Sprintf(`{"credential_id":%q,"connector":%q,"client_id":%q,"client_secret":%q,"properties":{"base":%q},"oauth2":{"access_token":%q,"refresh_token":%q,"expires_in":3600}}`,
		id, connector, client, secret, url, access, refresh)
	in, err := credentials.DecodeInput([]byte(raw))
	if err != nil {
		w.t.Fatal(err)
	}
	if _, _, err := w.store.Put(context.Background(), in, false); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) enqueue(n int, step jobs.Step) []string {
	w.t.Helper()
	steps := make([]*jobs.Step, n)
	for i := range steps {
		s := step
		steps[i] = &s
	}
	var ids []string
	for _, r := range w.client.EnqueueBatch(context.Background(), steps) {
		if r.Err != nil {
			w.t.Fatal(r.Err)
		}
		ids = append(ids, r.ExecutionID)
	}
	return ids
}

func (w *world) succeed(ids []string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	ended := map[string]bool{}
	err := w.client.Wait(ctx, ids, func(r *jobs.Result) error {
		ended[r.ExecutionID] = true
		if r.Status != jobs.Succeeded {
			raw, _ := json.Marshal(r)
			return fmt.Errorf("%s", raw)
		}
		return nil
	})
	if err == nil {
		return
	}
	for _, id := range ids {
		if !ended[id] {
			s, err2 := w.client.Status(context.Background(), id)
			raw, _ := json.Marshal(s)
			w.t.Fatalf("%d of %d ended: %v; one that has not: %s %v", len(ended), len(ids), err, raw, err2)
		}
	}
	w.t.Fatal(err)
}

func TestStampede_overThreeProcesses(t *testing.T) {
	if testing.Short() {
		t.Skip("worker processes")
	}
	t.Parallel()
	for name, c := range map[string]struct {
		prepare  func(*sampleapi.Provider)
		requests int
	}{
		"healthy":            {func(*sampleapi.Provider) {}, 1},
		"token takes 15 s":   {func(p *sampleapi.Provider) { p.SlowTokens(15 * time.Second) }, 1},
		"503 three times":    {func(p *sampleapi.Provider) { p.FailTokens(3) }, 4},
		"no expiry is known": {func(p *sampleapi.Provider) { p.ExpiresIn(0) }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			for range 3 {
				w.start("")
			}
			w.put("c", "orders")
			w.api.KillToken("c")
			c.prepare(w.api)
			w.succeed(w.enqueue(500, jobs.Step{CredentialID: "c", Method: "list_orders"}))
			if n := w.api.TokenRequests("c"); n != c.requests {
				t.Errorf("%d token requests, want %d", n, c.requests)
			}
			if n := w.api.ServedTwice(); n != 0 {
				t.Errorf("%d executions were served more than once", n)
			}
		})
	}
}

// The same against a real authorization server, whose refresh tokens rotate
// and which revokes the family of one that is used twice.
func TestStampede_realAuthorizationServer(t *testing.T) {
	if testing.Short() {
		t.Skip("worker processes")
	}
	t.Parallel()
	w := newWorld(t)
	auth, err := authserver.New()
	if err != nil {
		t.Fatal(err)
	}
	w.api.UseAuthority(auth.Alive)
	mux := http.NewServeMux()
	mux.Handle("/oauth/token", auth)
	mux.Handle("/", w.api)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	access, refresh, err := auth.Issue("c")
	if err != nil {
		t.Fatal(err)
	}
	w.putToken("c", "crm", authserver.ClientID, authserver.ClientSecret, server.URL, access, refresh)
	for range 3 {
		w.start("")
	}
	// Three deaths in a row: each token request spends the last one's token.
	for round := 1; round <= 3; round++ {
		c, err := w.store.Get(context.Background(), "c")
		if err != nil {
			t.Fatal(err)
		}
		auth.Kill(c.Secrets.OAuth2.AccessToken.Reveal())
		w.succeed(w.enqueue(200, jobs.Step{CredentialID: "c", Method: "list_contacts"}))
		if requests, granted := auth.Counts(); requests != round || granted != round {
			t.Fatalf("round %d: %d token requests, %d granted, want %d", round, requests, granted, round)
		}
	}
	if n := w.api.ServedTwice(); n != 0 {
		t.Errorf("%d executions were served more than once", n)
	}
}

// kill -9 of the only worker at each point of the protocol; another one takes over.
func TestKill_atEveryPoint(t *testing.T) {
	if testing.Short() {
		t.Skip("asynq takes a minute to notice a dead worker")
	}
	t.Parallel()
	for _, point := range []string{"before-park", "parked", "refresh-before-send", "refresh-answered", "refresh-saved", "resuming", "resumed-one"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.put("c", "crm")
			w.api.KillToken("c")
			first := w.start(point, "--concurrency", "20")
			ids := w.enqueue(30, jobs.Step{CredentialID: "c", Method: "list_contacts", MaxRetries: new(int)})
			select {
			case <-first.Done:
			case <-time.After(time.Minute):
				t.Fatal("the worker was not killed")
			}
			w.start("")
			if point == "refresh-answered" {
				// The provider has rotated, nobody has the new token: a person must help.
				w.until("the credential is revoked, its executions are held", func() bool {
					s, err := w.store.Status(context.Background(), "c")
					return err == nil && s.State == credentials.Revoked && s.Waiting == 30
				})
				w.put("c", "crm")
			}
			w.succeed(ids)
			want := 1
			if point == "refresh-answered" {
				want = 2 // the one that was lost, and the one that found it spent
			}
			if n := w.api.TokenRequests("c"); n != want {
				t.Errorf("%d token requests, want %d", n, want)
			}
		})
	}
}

func TestRedisRestart_everyAcceptedStepEnds(t *testing.T) {
	if testing.Short() {
		t.Skip("worker processes")
	}
	t.Parallel()
	w := newWorld(t)
	w.put("c", "orders")
	w.start("")
	w.start("")
	ids := w.enqueue(2000, jobs.Step{CredentialID: "c", Method: "list_orders"})
	w.redis.Restart()
	w.succeed(ids)
}

func TestRefresh_taskArchivedOrActiveUnderADeadWorker_blocksNobody(t *testing.T) {
	if testing.Short() {
		t.Skip("worker processes")
	}
	t.Parallel()
	w := newWorld(t)
	w.put("c", "orders")
	w.api.KillToken("c")
	// A worker that dies in the request leaves its refresh task active.
	first := w.start("refresh-before-send")
	ids := w.enqueue(3, jobs.Step{CredentialID: "c", Method: "list_orders"})
	<-first.Done
	// And whatever refresh task is found waiting is archived by somebody.
	inspector := asynq.NewInspectorFromRedisClient(w.rdb)
	_, _ = inspector.ArchiveAllPendingTasks(jobs.QueueRefresh)
	_, _ = inspector.ArchiveAllRetryTasks(jobs.QueueRefresh)
	w.start("")
	w.succeed(ids)
}

// A worker whose keys are not those of its Redis says so, and loses nothing.
func TestWrongKeys_notReadyAndNothingLost(t *testing.T) {
	if testing.Short() {
		t.Skip("worker processes")
	}
	t.Parallel()
	w := newWorld(t)
	if err := w.store.VerifyKeys(context.Background()); err != nil {
		t.Fatal(err)
	}
	w.put("c", "crm")
	right := w.key
	w.key = credentials.NewKey()
	wrong := w.start("")
	ids := w.enqueue(1, jobs.Step{CredentialID: "c", Method: "list_contacts", MaxRetries: new(int)})
	_, rest, _ := strings.Cut(wrong.Log.String(), `"http":"`)
	addr, _, _ := strings.Cut(rest, `"`)
	w.until("it is not ready, and says why", func() bool {
		res, err := http.Get("http://" + addr + "/readyz")
		if err != nil {
			return false
		}
		defer res.Body.Close()
		text, _ := io.ReadAll(res.Body)
		return res.StatusCode == http.StatusServiceUnavailable && strings.Contains(string(text), "keys")
	})
	_ = wrong.Cmd.Process.Kill()
	<-wrong.Done
	w.key = right
	w.start("")
	w.succeed(ids)
}
