package upgrade

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/internal/programtest"
	"github.com/stepworker/stepworker/internal/redistest"
)

// programs are a build's two binaries.
type programs struct{ worker, enqueue string }

func TestMain(m *testing.M) { programtest.Main(m, 4, "worker", "enqueue") }

// built are those of this build.
func built() programs {
	return programs{programtest.Path("worker"), programtest.Path("enqueue")}
}

// world is a real Redis with the programs of one build.
type world struct {
	t          *testing.T
	programs   programs
	redis      *redistest.Server
	rdb        redis.UniversalClient
	keys       string
	connectors string // folder
}

func newWorld(t *testing.T, p programs, keys string, connectors []string) *world {
	t.Helper()
	w := &world{t: t, programs: p, redis: redistest.New(t), keys: keys, connectors: t.TempDir()}
	w.rdb = w.redis.Client(t)
	for _, c := range connectors {
		raw, err := os.ReadFile(filepath.Join("testdata", "connectors", c+".yaml"))
		if err == nil {
			err = os.WriteFile(filepath.Join(w.connectors, c+".yaml"), raw, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func (w *world) env(more ...string) []string {
	return append(append(os.Environ(), "STEPWORKER_REDIS="+w.redis.URL, "STEPWORKER_KEYS="+w.keys), more...)
}

// run runs a program to its end; input is written as lines of JSON.
func (w *world) run(program string, input []object, args ...string) (out string, ok bool) {
	w.t.Helper()
	var in, stdout, stderr bytes.Buffer
	for _, o := range input {
		if err := json.NewEncoder(&in).Encode(o); err != nil {
			w.t.Fatal(err)
		}
	}
	cmd := exec.Command(program, args...)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = w.env(), &in, &stdout, &stderr
	err := cmd.Run()
	return stdout.String() + stderr.String(), err == nil
}

// must is run, and fails where the program does.
func (w *world) must(program string, input []object, args ...string) string {
	w.t.Helper()
	out, ok := w.run(program, input, args...)
	if !ok {
		w.t.Fatalf("%s %s: %s", filepath.Base(program), strings.Join(args, " "), out)
	}
	return out
}

// status is what enqueue --status prints of an execution.
func (w *world) status(id string) (raw json.RawMessage, state string) {
	w.t.Helper()
	out, _ := w.run(w.programs.enqueue, nil, "--status", id) // exit 1 where it failed
	line, _, _ := strings.Cut(out, "\n")
	var s struct{ Status string }
	if err := json.Unmarshal([]byte(line), &s); err != nil {
		w.t.Fatalf("status of %s: %s", id, out)
	}
	return json.RawMessage(line), s.Status
}

func settled(state string) bool {
	return state != "pending" && state != "active" && state != "scheduled"
}

func ended(state string) bool {
	return state == "succeeded" || state == "failed" || state == "warning" || state == "cancelled"
}

func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	programtest.Until(w.t, what, ok)
}

// process is a running worker.
type process struct {
	*programtest.Process
	w *world
}

const notifySecret = "whsec_bm90aWNlcyBvZiBhIGZpeHR1cmUsIG5vIHNlY3JldA=="

// start starts a worker, and waits until it says where it listens.
func (w *world) start() *process {
	w.t.Helper()
	cmd := exec.Command(w.programs.worker, "run", "--connectors", w.connectors, "--http", "127.0.0.1:0", "--allow-private-network", "--log-format", "json")
	cmd.Env = w.env()
	if help, _ := w.run(w.programs.worker, nil, "run", "--help"); strings.Contains(help, "--notify-url") {
		cmd.Env = w.env("STEPWORKER_NOTIFY_URL=http://"+Addr+"/notices", "STEPWORKER_NOTIFY_SECRET="+notifySecret)
	}
	p := &process{programtest.Start(w.t, cmd), w}
	w.until("the worker says where it listens", func() bool {
		select {
		case <-p.Done:
			w.t.Fatal("the worker ended")
		default:
		}
		return p.Addr() != ""
	})
	return p
}

// readyz is what the worker says of itself.
func (p *process) readyz() (code int, text string) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.Addr()+"/readyz", nil)
	if err != nil {
		p.w.t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	raw, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(raw)
}
