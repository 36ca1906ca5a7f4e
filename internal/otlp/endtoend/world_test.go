package endtoend_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/programtest"
	"github.com/stepworker/stepworker/internal/redistest"
	"github.com/stepworker/stepworker/internal/sampleapi"
	"github.com/stepworker/stepworker/jobs"
)

func TestMain(m *testing.M) { programtest.Main(m, 4, "worker", "enqueue") }

// world is a real Redis, a provider, and processes.
type world struct {
	t     *testing.T
	redis *redistest.Server
	rdb   redis.UniversalClient
	store *credentials.Store
	api   *sampleapi.Provider
	url   string
	key   string
	// connectors is the workers' folder.
	connectors string
}

// newWorld has the sample provider at the other end, behind a handler of the
// test's own, which may be nil.
func newWorld(t *testing.T, before func(http.ResponseWriter, *http.Request) (answered bool)) *world {
	t.Helper()
	if testing.Short() {
		t.Skip("worker processes")
	}
	w := &world{t: t, redis: redistest.New(t), api: sampleapi.New(), key: credentials.NewKey(), connectors: "../../../deploy/connectors"}
	w.rdb = w.redis.Client(t)
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if before == nil || !before(rw, r) {
			w.api.ServeHTTP(rw, r)
		}
	}))
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	w.url = server.URL
	keys, err := credentials.ParseKeys(w.key)
	if err != nil {
		t.Fatal(err)
	}
	w.store = credentials.NewStore(w.rdb, keys)
	return w
}

func (w *world) put(raw string) {
	w.t.Helper()
	in, err := credentials.DecodeInput([]byte(raw))
	if err != nil {
		w.t.Fatal(err)
	}
	if _, _, err := w.store.Put(context.Background(), in, false); err != nil {
		w.t.Fatal(err)
	}
}

// putOrders puts a credential of the sample connector orders.
func (w *world) putOrders(id string) (access, refresh string) {
	w.t.Helper()
	access, refresh = w.api.Issue(id)
	w.put(fmt.Sprintf(`{"credential_id":%q,"connector":"orders","client_id":%q,"client_secret":%q,"properties":{"base":%q},"oauth2":{"access_token":%q,"refresh_token":%q,"expires_in":3600}}`,
		id, sampleapi.ClientID, sampleapi.ClientSecret, w.url, access, refresh))
	return access, refresh
}

// process is a program that runs.
type process struct {
	*programtest.Process
	out bytes.Buffer // of one that has ended
}

func (w *world) start(program string, env []string, stdin string, args ...string) *process {
	w.t.Helper()
	p := &process{}
	cmd := exec.Command(programtest.Path(program), args...)
	cmd.Env = append(append(os.Environ(), "STEPWORKER_REDIS="+w.redis.URL), env...)
	cmd.Stdin, cmd.Stdout = strings.NewReader(stdin), &p.out
	p.Process = programtest.Start(w.t, cmd)
	return p
}

// worker starts one and waits until it is ready.
func (w *world) worker(env []string, args ...string) *process {
	w.t.Helper()
	args = append([]string{"run", "--connectors", w.connectors, "--allow-private-network", "--http", "", "--log-format", "json"}, args...)
	p := w.start("worker", append([]string{"STEPWORKER_KEYS=" + w.key}, env...), "", args...)
	p.Ready(w.t)
	return p
}

// enqueue runs the program to its end and returns the ids.
func (w *world) enqueue(env []string, steps string, args ...string) (ids []string) {
	w.t.Helper()
	p := w.start("enqueue", env, steps, args...)
	<-p.Done
	for line := range strings.Lines(p.out.String()) {
		var r struct {
			ID     string `json:"execution_id"`
			Status string
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil || r.Status != jobs.Enqueued {
			w.t.Fatalf("%v %s%s", err, line, p.Log)
		}
		ids = append(ids, r.ID)
	}
	return ids
}

// results waits for all of them.
func (w *world) results(ids []string) map[string]*jobs.Result {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	all := map[string]*jobs.Result{}
	if err := jobs.NewClient(w.rdb).Wait(ctx, ids, func(r *jobs.Result) error { all[r.ExecutionID] = r; return nil }); err != nil {
		w.t.Fatal(err)
	}
	return all
}

func (w *world) succeed(ids []string) {
	w.t.Helper()
	for id, r := range w.results(ids) {
		if r.Status != jobs.Succeeded {
			w.t.Errorf("%s: %s %+v", id, r.Status, r.Error)
		}
	}
}

func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	programtest.Until(w.t, what, ok)
}

// ended waits for a process that was told to end.
func (w *world) ended(p *process) (code int) {
	w.t.Helper()
	select {
	case <-p.Done:
	case <-time.After(3 * time.Minute):
		w.t.Fatal("the process does not end")
	}
	return p.Cmd.ProcessState.ExitCode()
}

// freePort is one that nobody listens on.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
