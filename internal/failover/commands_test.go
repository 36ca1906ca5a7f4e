package failover

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/programtest"
	"github.com/stepworker/stepworker/internal/redistest"
	"github.com/stepworker/stepworker/jobs"
)

// Every command of both programs, with TLS and passwords.
func TestCommands_withTLSAndPasswords(t *testing.T) {
	t.Parallel()
	for kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			o := redistest.Options{Password: "redis-password", TLS: redistest.NewTLS(t)}
			if kind == "sentinel" {
				o.SentinelPassword = "sentinel-password"
			}
			w := newWorld(t, kind, o)
			const many = 30 // of a cluster some on each server
			var input strings.Builder
			for i := range many {
				fmt.Fprintln(&input, w.credential(fmt.Sprintf("c%d", i), "acme"))
			}
			if out := w.must(input.String(), "worker", "credential", "put", "-"); strings.Count(out, `"stored"`) != many {
				t.Fatal(out)
			}
			if out := w.must("", "worker", "credential", "list"); strings.Count(out, `"connector":"acme"`) != many {
				t.Fatal(out)
			}
			old := w.key
			fresh := credentials.NewKey()
			w.key = fresh + "," + old
			out := w.must("", "worker", "key", "rotate")
			if !strings.Contains(out, fmt.Sprintf("credentials: %d sealed, %[1]d with ", many)) || !strings.Contains(out, fmt.Sprintf("; %d sealed again", many)) ||
				!strings.Contains(out, "may go") {
				t.Fatal(out)
			}
			w.key = fresh
			p := w.start()
			for i := range many {
				w.api.KillToken(fmt.Sprintf("c%d", i))
			}
			var steps strings.Builder
			for i := range many {
				fmt.Fprintf(&steps, `{"credential_id":"c%d","method":"list"}`+"\n", i)
			}
			if out := w.must(steps.String(), "enqueue", "--wait"); strings.Count(out, `"status":"succeeded"`) != many {
				t.Fatal(out)
			}
			if out := w.must("", "worker", "credential", "refresh", "c0"); !strings.Contains(out, `"version":3`) {
				t.Error(out)
			}
			if out := w.must("", "worker", "credential", "get", "c1"); !strings.Contains(out, `"version":2`) {
				t.Error(out)
			}
			if out := w.must("", "worker", "try", "acme", "list", "--connectors", w.dir, "--credential", "c2", "--allow-private-network"); !strings.Contains(out, "Grace") {
				t.Error(out)
			}
			w.must("", "worker", "credential", "unpause", "c3")
			w.must("", "worker", "credential", "delete", "c4")
			if out, err := w.do("", "worker", "credential", "get", "c4"); err == nil {
				t.Error(out)
			}
			w.authorize("c5")
			if out := w.must("", "enqueue", "--credential", "c6", "--method", "count", "--wait"); !strings.Contains(out, `"succeeded"`) {
				t.Error(out)
			} else if id := between(out, `"execution_id":"`, `"`); !strings.Contains(w.must("", "enqueue", "--status", id), `"succeeded"`) {
				t.Error("the status of ", id)
			}
			for path, shown := range map[string]string{
				"/monitoring/api/queues": "steps", "/monitoring/api/queues/steps/completed_tasks": "steps", "/monitoring/api/servers": "steps",
				"/monitoring/api/redis_info": `"cluster":`, "/metrics": "stepworker_executions_total",
			} {
				res, err := http.Get("http://" + p.Addr() + path)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(res.Body)
				res.Body.Close()
				if res.StatusCode != http.StatusOK || !bytes.Contains(body, []byte(shown)) {
					t.Errorf("%s: %d %s", path, res.StatusCode, body)
				}
			}
			if log := p.Log.String(); strings.Contains(log, "-password") {
				t.Error("a password is in the log")
			}
			w.unreachable()
		})
	}
}

func between(text, before, after string) string {
	_, rest, _ := strings.Cut(text, before)
	found, _, _ := strings.Cut(rest, after)
	return found
}

// authorize begins to authorize a credential that is stored: that is all that it
// does with Redis until a person has agreed.
func (w *world) authorize(id string) {
	w.t.Helper()
	cmd := exec.Command(programtest.Path("worker"), "credential", "authorize", "acme", id, "--connectors", w.dir, "--allow-private-network")
	out := &programtest.Log{}
	cmd.Env, cmd.Stdout, cmd.Stderr = w.environment(), out, out
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	w.until("a person is sent to the provider", func() bool {
		select {
		case <-done:
			w.t.Fatal(out.String())
		default:
		}
		return strings.Contains(out.String(), w.apiURL+"/oauth/authorize?")
	})
	_ = cmd.Process.Kill()
	<-done
}

// unreachable has scripts ask every server of Redis, one that was added later too.
func (w *world) unreachable() {
	w.t.Helper()
	asked := 0
	refused := func(addr string) bool {
		asked++
		s := jobs.Step{ExecutionID: fmt.Sprintf("reach-%d", asked), CredentialID: "c7", Method: "reach",
			Script: fmt.Sprintf("function before_action() { http_request({method: 'GET', url: 'http://%s/'}); return true; }", addr)}
		w.accept(s)
		results, _ := w.results(map[string]jobs.Step{s.ExecutionID: s})
		raw, _ := json.Marshal(results[s.ExecutionID])
		return strings.Contains(string(raw), "the network policy refuses")
	}
	for _, s := range w.redis.all() {
		if !refused(s.Addr) {
			w.t.Errorf("a script reaches %s", s.Addr)
		}
	}
	if s, ok := w.redis.(sentinels); ok {
		added := s.AddReplica()
		w.until("scripts cannot reach a replica that was added", func() bool { return refused(added.Addr) })
	}
}
