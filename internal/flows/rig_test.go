package flows_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/programtest"
	"github.com/stepworker/stepworker/internal/redistest"
	"github.com/stepworker/stepworker/jobs"
)

func TestMain(m *testing.M) {
	programtest.Main(m, 12, "worker", "enqueue") // they wait for leases, and compute for moments
}

// rig is a real Redis, an API, and worker processes.
type rig struct {
	t          *testing.T
	redis      *redistest.Server
	rdb        redis.UniversalClient
	key        string
	connectors string
	client     *jobs.Client
}

// newRig starts a Redis with a credential "c" of connector own, whose API is api.
func newRig(t *testing.T, connector string, api *httptest.Server) *rig {
	t.Helper()
	if testing.Short() {
		t.Skip("worker processes")
	}
	r := &rig{t: t, redis: redistest.New(t), key: credentials.NewKey(), connectors: t.TempDir()}
	r.rdb = r.redis.Client(t)
	r.client = jobs.NewClient(r.rdb)
	if err := os.WriteFile(filepath.Join(r.connectors, "own.yaml"), []byte(connector), 0o600); err != nil {
		t.Fatal(err)
	}
	put := r.command("worker", "credential", "put", "-")
	put.Stdin = strings.NewReader(fmt.Sprintf(`{"credential_id": "c", "connector": "own", "properties": {"base": %q}, "api_key": "the-api-key"}`, api.URL))
	if out, err := put.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return r
}

func (r *rig) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(programtest.Path(program), args...)
	cmd.Env = append(os.Environ(), "STEPWORKER_REDIS="+r.redis.URL)
	if program == "worker" {
		cmd.Env = append(cmd.Env, "STEPWORKER_KEYS="+r.key)
	}
	return cmd
}

// worker starts a worker with more in its environment.
func (r *rig) worker(env ...string) *programtest.Process {
	r.t.Helper()
	cmd := r.command("worker", "run", "--connectors", r.connectors, "--allow-private-network", "--http", "127.0.0.1:0", "--concurrency", "10")
	cmd.Env = append(cmd.Env, env...)
	p := programtest.Start(r.t, cmd)
	p.Ready(r.t)
	return p
}

func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	programtest.Until(r.t, what, ok)
}

// flow is the programs' user: enqueue with a Redis user of its own.
type flow struct {
	*rig
	user, password string
}

func (f *flow) url() string {
	u, err := url.Parse(f.redis.URL)
	if err != nil {
		f.t.Fatal(err)
	}
	u.User = url.UserPassword(f.user, f.password)
	return u.String()
}

// enqueue runs the program; out are the lines that it printed.
func (f *flow) enqueue(stdin string, args ...string) (exit int, out []map[string]any, stderr string) {
	f.t.Helper()
	cmd := f.command("enqueue", args...)
	cmd.Env = append(cmd.Env, "STEPWORKER_REDIS="+f.url())
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &errs
	var failed *exec.ExitError
	switch err := cmd.Run(); {
	case errors.As(err, &failed):
		exit = failed.ExitCode()
	case err != nil:
		f.t.Fatal(err)
	}
	for line := range strings.Lines(stdout.String()) {
		var v map[string]any
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			f.t.Fatalf("%s: %v", line, err)
		}
		out = append(out, v)
	}
	return exit, out, errs.String()
}
