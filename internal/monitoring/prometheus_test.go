package monitoring

import (
	"encoding/json"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stepworker/stepworker/internal/programtest"
	"github.com/stepworker/stepworker/jobs"
)

const prometheusFolder = "../../deploy/prometheus"

// needs skips a test where Prometheus can be installed by nobody; where it can
// be, it is there, or the test fails.
func needs(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err == nil {
		return path
	}
	if _, err := exec.LookPath("apt-get"); err == nil && os.Geteuid() == 0 {
		t.Fatalf("%s is not installed; `make prometheus` installs it", program)
	}
	t.Skipf("%s is not installed (Debian: `sudo make prometheus`)", program)
	return ""
}

func TestRules_promtool(t *testing.T) {
	promtool := needs(t, "promtool")
	for _, args := range [][]string{{"check", "rules", rulesFile}, {"check", "config", filepath.Join(prometheusFolder, "prometheus.yml")}, {"check", "config", filepath.Join(prometheusFolder, "compose.yml")}, {"test", "rules", rulesTests}} {
		if out, err := exec.Command(promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// inPrometheus loads the rules into a Prometheus that scrapes a worker.
func inPrometheus(t *testing.T, w *world) {
	f := w.scrape()
	rules, panels := ruleQueries(t), dashboardQueries(t)
	for _, q := range append(rules, panels...) {
		for _, wrong := range q.check(f) {
			t.Error(wrong)
		}
	}
	p := startPrometheus(t, w)
	p.until("every rule was evaluated, and none fails", func() bool {
		var said struct {
			Groups []struct {
				Rules []struct{ Name, Health, LastError string }
			}
		}
		p.ask("rules", nil, &said)
		loaded := map[string]string{}
		for _, g := range said.Groups {
			for _, r := range g.Rules {
				if loaded[r.Name] = r.Health; r.Health == "err" {
					t.Fatalf("%s: %s", r.Name, r.LastError)
				}
			}
		}
		for _, r := range rules {
			if loaded[r.of] != "ok" {
				return false
			}
		}
		return len(loaded) == len(rules)
	})
	for _, q := range append(rules, panels...) {
		var said struct{ Result []any }
		p.ask("query", url.Values{"query": {q.expr}}, &said)
	}
	firing := func() map[string]string {
		var said struct {
			Alerts []struct {
				Labels, Annotations map[string]string
				State               string
			}
		}
		p.ask("alerts", nil, &said)
		all := map[string]string{}
		for _, a := range said.Alerts {
			if a.State == "firing" {
				all[a.Labels["alertname"]+" "+a.Labels["connector"]] = a.Annotations["summary"]
			}
		}
		return all
	}
	const alert = "StepworkerCredentialsRevoked acme"
	if text, fires := firing()[alert]; fires {
		t.Fatalf("it fires already: %s", text)
	}
	w.putToken("r1", "gone")
	ids := w.run(2, jobs.Step{CredentialID: "r1", Method: "get"}, "")
	p.until("a revoked credential fires its alert", func() bool { return firing()[alert] != "" })
	if got, want := firing()[alert], "acme: executions wait for 1 revoked credentials"; got != want {
		t.Errorf("its summary is %q, want %q", got, want)
	}
	w.putToken("r1", "good")
	w.wait(ids, jobs.Succeeded)
	p.until("the alert ends", func() bool { _, fires := firing()[alert]; return !fires })
}

// server is a Prometheus on a port of its own with a folder of its own.
type server struct {
	*world
	url string
}

func startPrometheus(t *testing.T, w *world) *server {
	t.Helper()
	exe := needs(t, "prometheus")
	dir := t.TempDir()
	for _, name := range []string{"prometheus.yml", "stepworker.rules.yml"} {
		raw, err := os.ReadFile(filepath.Join(prometheusFolder, name))
		if err != nil {
			t.Fatal(err)
		}
		text := string(raw)
		if name == "prometheus.yml" { // the example, for this worker and in a hurry
			if !strings.Contains(text, "127.0.0.1:8080") || strings.Count(text, "_interval: 15s") != 2 {
				t.Fatalf("%s is not as this test knows it", name)
			}
			text = strings.NewReplacer("127.0.0.1:8080", w.worker, "_interval: 15s", "_interval: 1s").Replace(text)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	cmd := exec.Command(exe, "--config.file", filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path", filepath.Join(dir, "data"), "--web.listen-address", addr)
	cmd.Dir = dir
	started := programtest.Start(t, cmd)
	p := &server{world: w, url: "http://" + addr}
	p.until("prometheus is ready", func() bool {
		select {
		case <-started.Done:
			t.Fatal("prometheus ended at start")
		default:
		}
		return strings.Contains(fetch(p.url+"/-/ready"), "Ready")
	})
	return p
}

// ask reads the data of an answer of its API.
func (p *server) ask(what string, form url.Values, data any) {
	p.t.Helper()
	res, err := http.PostForm(p.url+"/api/v1/"+what, form)
	if what != "query" {
		res, err = http.Get(p.url + "/api/v1/" + what)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	defer res.Body.Close()
	var said struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.NewDecoder(res.Body).Decode(&said); err != nil {
		p.t.Fatal(err)
	}
	if said.Status != "success" {
		p.t.Fatalf("%s %s: %s", what, form.Get("query"), said.Error)
	}
	if err := json.Unmarshal(said.Data, data); err != nil {
		p.t.Fatal(err)
	}
}
