package failover

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/cli"
	"github.com/stepworker/stepworker/internal/programtest"
	"github.com/stepworker/stepworker/internal/redistest"
	"github.com/stepworker/stepworker/internal/sampleapi"
	"github.com/stepworker/stepworker/jobs"
)

func TestMain(m *testing.M) {
	logging.Disable()
	programtest.Main(m, 8, "worker", "enqueue") // most of the time they wait for failovers
}

// store is a Redis of several servers.
type store interface {
	// holder is the server that has a key.
	holder(key string) *redistest.Server
	// replicas are those that may take its place.
	replicas(key string) []*redistest.Server
	// followers are how many replicas a master has while all is well.
	followers() int
	// all are the servers, also those that only watch.
	all() []*redistest.Server
	// strand keeps everybody from taking a server's place; heal ends that.
	strand(key string) (heal func())
	// order has a replica take the master's place, which is well.
	order(key string)
	// replaced waits until another server than that has the key.
	replaced(key string, old *redistest.Server) *redistest.Server
}

type sentinels struct{ *redistest.Sentinels }

func (s sentinels) holder(string) *redistest.Server { return s.Master() }
func (s sentinels) replicas(string) (all []*redistest.Server) {
	for _, server := range s.Servers {
		if server != s.Master() {
			all = append(all, server)
		}
	}
	return all
}
func (s sentinels) followers() int { return len(s.Servers) - 1 }
func (s sentinels) all() []*redistest.Server {
	return append(slices.Clone(s.Servers), s.Sentinels.Sentinels...)
}

// strand ends sentinels: frozen ones would trust nothing that they see for half a
// minute after.
func (s sentinels) strand(string) (heal func()) {
	most := s.Sentinels.Sentinels[1:]
	for _, w := range most {
		w.Kill()
	}
	return func() {
		for _, w := range most {
			w.Restart()
		}
	}
}
func (s sentinels) order(string) { s.Failover() }
func (s sentinels) replaced(_ string, old *redistest.Server) *redistest.Server {
	return s.Replaced(old)
}

type cluster struct{ *redistest.Cluster }

func (c cluster) holder(key string) *redistest.Server { return c.Master(key) }
func (c cluster) replicas(key string) []*redistest.Server {
	return []*redistest.Server{c.Replica(key)}
}
func (c cluster) followers() int                  { return 1 }
func (c cluster) all() []*redistest.Server        { return c.Servers }
func (c cluster) strand(key string) (heal func()) { return freeze(c.replicas(key)) }
func (c cluster) order(key string)                { c.Failover(key) }
func (c cluster) replaced(key string, old *redistest.Server) *redistest.Server {
	return c.Replaced(key, old)
}

func freeze(servers []*redistest.Server) (thaw func()) {
	for _, s := range servers {
		s.Freeze()
	}
	return func() {
		for _, s := range servers {
			s.Thaw()
		}
	}
}

// kinds starts each kind of Redis.
var kinds = map[string]func(testing.TB, redistest.Options) (store, string){
	"sentinel": func(t testing.TB, o redistest.Options) (store, string) {
		s := redistest.NewSentinels(t, o)
		return sentinels{s}, s.URL
	},
	"cluster": func(t testing.TB, o redistest.Options) (store, string) {
		c := redistest.NewCluster(t, o)
		return cluster{c}, c.URL
	},
}

// world is a Redis, the sample provider, and the programs.
type world struct {
	t      *testing.T
	redis  store
	url    string // of Redis
	rdb    redis.UniversalClient
	key    string
	store  *credentials.Store
	client *jobs.Client
	api    *sampleapi.Provider
	apiURL string
	dir    string   // of connectors
	env    []string // more of the programs' environment
}

const connectorFiles = `connector: acme
base_url: "{{base}}"
auth: {type: oauth2, grant: authorization_code, authorize_url: "{{base}}/oauth/authorize", token_url: "{{base}}/oauth/token", refresh_on: [401]}
parameters: [{name: base, target: merge_field, property: account}]
methods:
  - {method: list, endpoint: /strict, idempotency_header: Idempotency-Key}
  - method: pages
    endpoint: /numbers
    paging: {inbound: true, page_size: 1}
    parameters: [{name: page, target: query_string, value: "{{CYCLR_PAGE_NUMBER}}"}]
    response: {fields: [{field: "[rows].n", system: N}]}
  - {method: reach, type: script}
  - {method: count, type: script, script: "function before_action() { cyclr_storage_increment('n', 1); return true; }"}
---
connector: limited
base_url: "{{base}}"
auth: {type: oauth2, token_url: "{{base}}/oauth/token", refresh_on: [401]}
parameters: [{name: base, target: merge_field, property: account}]
rate_limits: [{requests: 30, per: 1s, scope: connector}, {requests: 100000, per: 24h}]
methods: [{method: list, endpoint: /strict, idempotency_header: Idempotency-Key}]
---
connector: narrow
base_url: "{{base}}"
auth: {type: oauth2, token_url: "{{base}}/oauth/token", refresh_on: [401]}
parameters: [{name: base, target: merge_field, property: account}]
max_concurrent: 2
methods: [{method: list, endpoint: /strict, idempotency_header: Idempotency-Key}]
`

// pagesOf is how many pages the method pages has.
const pagesOf = 5

func newWorld(t *testing.T, kind string, o redistest.Options) *world {
	t.Helper()
	if testing.Short() {
		t.Skip("servers and worker processes")
	}
	w := &world{t: t, key: credentials.NewKey(), api: sampleapi.New(), dir: t.TempDir()}
	if o.TLS != nil {
		w.env = append(w.env, "SSL_CERT_FILE="+o.TLS.CertFile)
	}
	w.redis, w.url = kinds[kind](t, o)
	here := w.url
	if o.TLS != nil { // this process keeps its own authorities
		sign := "?"
		if strings.Contains(here, "?") {
			sign = "&"
		}
		here += sign + "skip_verify=true"
	}
	options, err := cli.ParseRedis(here)
	if err != nil {
		t.Fatal(err)
	}
	if w.rdb, err = cli.Open(t.Context(), options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.rdb.Close() })
	keys, err := credentials.ParseKeys(w.key)
	if err != nil {
		t.Fatal(err)
	}
	w.store, w.client = credentials.NewStore(w.rdb, keys), jobs.NewClient(w.rdb)
	mux := http.NewServeMux()
	mux.Handle("/", w.api)
	mux.HandleFunc("/numbers", w.numbers)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	w.apiURL = server.URL
	for i, file := range strings.Split(connectorFiles, "---\n") {
		if err := os.WriteFile(filepath.Join(w.dir, fmt.Sprintf("%d.yaml", i)), []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// numbers serves one number on a page, to who has a live token.
func (w *world) numbers(rw http.ResponseWriter, r *http.Request) {
	alive := httptest.NewRecorder() // the sample provider knows which token lives
	check := r.Clone(r.Context())
	check.URL.Path = "/strict"
	w.api.ServeHTTP(alive, check)
	rw.Header().Set("Content-Type", "application/json")
	if alive.Code != http.StatusOK {
		rw.WriteHeader(alive.Code)
		return
	}
	var page int
	_, _ = fmt.Sscan(r.URL.Query().Get("page"), &page)
	if page > pagesOf {
		fmt.Fprint(rw, `{"rows":[]}`)
		return
	}
	fmt.Fprintf(rw, `{"rows":[{"n":%d,"text":%q}]}`, page, strings.Repeat("x", 1000))
}

func (w *world) environment() []string {
	return append(append(os.Environ(), "STEPWORKER_REDIS="+w.url, "STEPWORKER_KEYS="+w.key, "STEPWORKER_LOG_FORMAT=json"), w.env...)
}

// start starts a worker, and waits until it is ready.
func (w *world) start(args ...string) *programtest.Process {
	w.t.Helper()
	args = append([]string{"run", "--connectors", w.dir, "--allow-private-network", "--http", "127.0.0.1:0", "--concurrency", "20", "--hook-hosts", "1"}, args...)
	cmd := exec.Command(programtest.Path("worker"), args...)
	cmd.Env = w.environment()
	p := programtest.Start(w.t, cmd)
	w.until("the worker is ready", func() bool { return readyz(p) == http.StatusOK })
	return p
}

func readyz(p *programtest.Process) int {
	res, err := http.Get("http://" + p.Addr() + "/readyz")
	if err != nil {
		return 0
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body)
	return res.StatusCode
}

// do runs a program, and returns what it says.
func (w *world) do(stdin, program string, args ...string) (stdout string, err error) {
	w.t.Helper()
	cmd := exec.Command(programtest.Path(program), args...)
	var out, told bytes.Buffer
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = w.environment(), strings.NewReader(stdin), &out, &told
	if err = cmd.Run(); err != nil {
		err = fmt.Errorf("%s %s: %w: %s%s", program, strings.Join(args, " "), err, out.String(), told.String())
	}
	return out.String(), err
}

// must is do of what has to succeed.
func (w *world) must(stdin, program string, args ...string) string {
	w.t.Helper()
	out, err := w.do(stdin, program, args...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	programtest.Until(w.t, what, ok)
}

// credential is one as it is put, with a token of the sample provider.
func (w *world) credential(id, connector string) string {
	access, refresh := w.api.Issue(id)
	return fmt.Sprintf(`{"credential_id":%q,"connector":%q,"client_id":%q,"client_secret":%q,"properties":{"base":%q},"oauth2":{"access_token":%q,"refresh_token":%q,"expires_in":3600}}`,
		id, connector, sampleapi.ClientID, sampleapi.ClientSecret, w.apiURL, access, refresh)
}

func (w *world) put(id, connector string) {
	w.t.Helper()
	in, err := credentials.DecodeInput([]byte(w.credential(id, connector)))
	if err == nil {
		_, _, err = w.store.Put(w.t.Context(), in, false)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// accept enqueues a step until it is accepted: as a flow does, under its id.
func (w *world) accept(s jobs.Step) {
	w.t.Helper()
	w.until("step "+s.ExecutionID+" is accepted", func() bool {
		r, err := w.client.Enqueue(w.t.Context(), &s)
		var invalid *jobs.InvalidError
		if errors.As(err, &invalid) {
			w.t.Fatal(err)
		}
		return err == nil && r.Status != ""
	})
}

// results waits for the steps. What Redis acknowledged and lost with its master,
// and so is known to nobody, is enqueued again; lost is how many those were.
func (w *world) results(steps map[string]jobs.Step) (all map[string]*jobs.Result, lost int) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 4*time.Minute)
	defer cancel()
	all = map[string]*jobs.Result{}
	for {
		var ids []string
		for id := range steps {
			if all[id] == nil {
				ids = append(ids, id)
			}
		}
		err := w.client.Wait(ctx, ids, func(r *jobs.Result) error { all[r.ExecutionID] = r; return nil })
		var unknown *jobs.UnknownError
		switch {
		case err == nil:
			return all, lost
		case errors.As(err, &unknown):
			lost += len(unknown.IDs)
			for _, id := range unknown.IDs {
				w.accept(steps[id])
			}
		default:
			for _, id := range ids {
				if all[id] == nil {
					s, err2 := w.client.Status(context.Background(), id)
					raw, _ := json.Marshal(s)
					w.t.Fatalf("%d of %d ended: %v; one that has not: %s %v", len(all), len(steps), err, raw, err2)
				}
			}
		}
	}
}

// replies are the ids of the tasks that tell a flow of an end.
func (w *world) replies(queue string) map[string]bool {
	w.t.Helper()
	found := map[string]bool{}
	inspector := asynq.NewInspectorFromRedisClient(w.rdb)
	for page := 1; ; page++ {
		tasks, err := inspector.ListPendingTasks(queue, asynq.PageSize(500), asynq.Page(page))
		if err != nil {
			w.t.Fatal(err)
		}
		if len(tasks) == 0 {
			return found
		}
		for _, task := range tasks {
			found[task.ID] = true
		}
	}
}
