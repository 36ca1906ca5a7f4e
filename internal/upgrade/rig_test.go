package upgrade

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/internal/redistest"
)

// programs are a build's two binaries.
type programs struct{ worker, enqueue string }

var built programs // of this build

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() { // all of them run worker processes
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "upgrade")
	if err != nil {
		panic(err)
	}
	built = programs{filepath.Join(dir, "worker"), filepath.Join(dir, "enqueue")}
	for program, pkg := range map[string]string{built.worker: "worker", built.enqueue: "enqueue"} {
		cmd := exec.Command("go", "build", "-o", program, "github.com/stepworker/stepworker/cmd/"+pkg)
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			panic(err)
		}
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
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

// until polls.
func (w *world) until(what string, done func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !done(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("it did not come to pass: %s", what)
		}
	}
}

// process is a running worker.
type process struct {
	w    *world
	cmd  *exec.Cmd
	log  *log
	addr string
	done chan struct{}
}

type log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

const notifySecret = "whsec_bm90aWNlcyBvZiBhIGZpeHR1cmUsIG5vIHNlY3JldA=="

// start starts a worker, and waits until it says where it listens.
func (w *world) start() *process {
	w.t.Helper()
	p := &process{w: w, log: &log{}, done: make(chan struct{})}
	p.cmd = exec.Command(w.programs.worker, "run", "--connectors", w.connectors, "--http", "127.0.0.1:0", "--allow-private-network", "--log-format", "json")
	p.cmd.Env = w.env()
	if help, _ := w.run(w.programs.worker, nil, "run", "--help"); strings.Contains(help, "--notify-url") {
		p.cmd.Env = w.env("STEPWORKER_NOTIFY_URL=http://"+Addr+"/notices", "STEPWORKER_NOTIFY_SECRET="+notifySecret)
	}
	p.cmd.Stdout, p.cmd.Stderr = io.Discard, p.log
	if err := p.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	w.t.Cleanup(func() {
		p.kill()
		if w.t.Failed() {
			w.t.Logf("the worker's log:\n%s", p.log)
		}
	})
	w.until("the worker says where it listens", func() bool {
		select {
		case <-p.done:
			w.t.Fatalf("the worker ended: %s", p.log)
		default:
		}
		_, rest, found := strings.Cut(p.log.String(), `"http":"`)
		p.addr, _, _ = strings.Cut(rest, `"`)
		return found
	})
	return p
}

// kill ends a worker as kill -9 does.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// readyz is what the worker says of itself.
func (p *process) readyz() (code int, text string) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.addr+"/readyz", nil)
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
