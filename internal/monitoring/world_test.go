package monitoring

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/programtest"
	"github.com/stepworker/stepworker/internal/redistest"
	"github.com/stepworker/stepworker/jobs"
)

func TestMain(m *testing.M) { programtest.Main(m, 4, "worker") }

// world is a real Redis, an API with its token endpoint, and a worker process.
type world struct {
	t       *testing.T
	redis   *redistest.Server
	rdb     redis.UniversalClient
	store   *credentials.Store
	client  *jobs.Client
	key     string
	url     string // of the API
	worker  string // its --http address
	process *os.Process

	mu     sync.Mutex
	valid  string          // the access token that the API takes
	issued int             // tokens so far
	hang   chan struct{}   // what /hang waits for
	gate   chan struct{}   // what the token endpoint waits for; nil: nothing
	notice map[string]int  // answers to notices, by type; else 200
	busy   int             // how often /busy says 429
	inside map[string]bool // who hangs
}

// Signals that have a process stand still, and go on.
const stop, goOn = syscall.SIGSTOP, syscall.SIGCONT

const clientSecret = "client-secret-0123456789"

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, redis: redistest.New(t), key: credentials.NewKey(), hang: make(chan struct{}), notice: map[string]int{}, inside: map[string]bool{}}
	w.rdb = w.redis.Client(t)
	keys, err := credentials.ParseKeys(w.key)
	if err != nil {
		t.Fatal(err)
	}
	w.store, w.client = credentials.NewStore(w.rdb, keys), jobs.NewClient(w.rdb)
	api := httptest.NewServer(w.api())
	t.Cleanup(api.Close)
	t.Cleanup(func() { w.release(); w.tokens() }) // before the API is closed, which waits for its requests
	w.url = api.URL
	w.start()
	return w
}

// start starts the worker and waits until it is ready.
func (w *world) start() {
	w.t.Helper()
	cmd := exec.Command(programtest.Path("worker"), "run", "--connectors", filepath.Join("testdata", "connectors"), "--allow-private-network", "--http", "127.0.0.1:0",
		"--concurrency", "20", "--hook-hosts", "2", "--script-timeout", "2s", "--script-memory", "64MiB", "--max-response", "64KiB",
		"--notify-url", w.url+"/notify", "--log-format", "text", "--log-level", "info")
	cmd.Env = append(os.Environ(), "STEPWORKER_REDIS="+w.redis.URL, "STEPWORKER_KEYS="+w.key, "STEPWORKER_NOTIFY_SECRET=whsec_"+credentials.NewKey())
	p := programtest.Start(w.t, cmd)
	p.Ready(w.t)
	w.process, w.worker = cmd.Process, p.Addr()
	w.until("/readyz says so", func() bool { return w.get("/readyz") == "ready\n" })
}

// api is an API that is refused, slow, large, busy or down as its paths say.
func (w *world) api() http.Handler {
	mux := http.NewServeMux()
	answer := func(rw http.ResponseWriter, status int, body string) {
		rw.Header().Set("Content-Type", "application/json")
		rw.WriteHeader(status)
		_, _ = rw.Write([]byte(body))
	}
	says := func(status int, body string) http.HandlerFunc {
		return func(rw http.ResponseWriter, _ *http.Request) { answer(rw, status, body) }
	}
	mux.HandleFunc("/plain", says(200, `{"ok":true}`))
	mux.HandleFunc("/missing", says(404, `{"error":"none"}`))
	mux.HandleFunc("/down", says(500, `{"error":"down"}`))
	mux.HandleFunc("/denied", says(401, `{"error":"no permission"}`))
	mux.HandleFunc("/large", says(200, `"`+strings.Repeat("x", 100<<10)+`"`))
	mux.HandleFunc("/login", says(200, `{"id":"session-0123456789"}`))
	mux.HandleFunc("/hang", func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.inside["hang"] = true
		w.mu.Unlock()
		select {
		case <-w.hang:
		case <-r.Context().Done():
		}
		answer(rw, 200, `{}`)
	})
	mux.HandleFunc("/busy", func(rw http.ResponseWriter, _ *http.Request) {
		w.mu.Lock()
		w.busy++
		n := w.busy
		w.mu.Unlock()
		if n == 1 {
			rw.Header().Set("Retry-After", "1")
			answer(rw, 429, `{}`)
			return
		}
		answer(rw, 200, `{}`)
	})
	mux.HandleFunc("/strict", func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		ok := r.Header.Get("Authorization") == "Bearer "+w.valid && w.valid != ""
		w.mu.Unlock()
		if !ok {
			answer(rw, 401, `{"error":"dead"}`)
			return
		}
		answer(rw, 200, `{"ok":true}`)
	})
	mux.HandleFunc("/token", func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		gate := w.gate
		w.mu.Unlock()
		if gate != nil {
			<-gate
		}
		switch token := r.FormValue("refresh_token"); {
		case strings.HasPrefix(token, "gone"):
			answer(rw, 400, `{"error":"invalid_grant"}`)
		case strings.HasPrefix(token, "flaky"):
			answer(rw, 503, `{}`)
		default:
			w.mu.Lock()
			w.issued++
			w.valid = fmt.Sprintf("access-token-0123456789-%d", w.issued)
			token := w.valid
			w.mu.Unlock()
			answer(rw, 200, fmt.Sprintf(`{"access_token":%q,"token_type":"Bearer","expires_in":3600}`, token))
		}
	})
	mux.HandleFunc("/notify", func(rw http.ResponseWriter, r *http.Request) {
		var n struct{ Type string }
		_ = json.NewDecoder(r.Body).Decode(&n)
		w.mu.Lock()
		status := w.notice[n.Type]
		w.mu.Unlock()
		if status == 0 {
			status = 200
		}
		rw.WriteHeader(status)
	})
	return mux
}

// tokens has the token endpoint answer.
func (w *world) tokens() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gate != nil {
		close(w.gate)
		w.gate = nil
	}
}

// release has those go on who hang.
func (w *world) release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case <-w.hang:
	default:
		close(w.hang)
	}
}

func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	programtest.Until(w.t, what, ok)
}

// get is the body of a page of the worker; "" while there is none.
func (w *world) get(path string) string { return fetch("http://" + w.worker + path) }

func fetch(url string) string {
	res, err := http.Get(url)
	if err != nil {
		return ""
	}
	defer res.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(res.Body); err != nil {
		return ""
	}
	return b.String()
}

// put stores a credential; more is laid over what all have.
func (w *world) put(id, connector string, more map[string]any) {
	w.t.Helper()
	all := map[string]any{"credential_id": id, "connector": connector, "properties": map[string]any{"base": w.url}}
	for k, v := range more {
		all[k] = v
	}
	raw, err := json.Marshal(all)
	if err != nil {
		w.t.Fatal(err)
	}
	in, err := credentials.DecodeInput(raw)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, _, err := w.store.Put(context.Background(), in, false); err != nil {
		w.t.Fatal(err)
	}
}

// putToken stores a credential of acme whose access token is dead.
func (w *world) putToken(id, refresh string) {
	w.t.Helper()
	w.put(id, "acme", map[string]any{"client_id": "client", "client_secret": clientSecret,
		"oauth2": map[string]any{"access_token": "dead-access-token", "refresh_token": refresh + "-refresh-token", "expires_in": 3600}})
}

// putAlive stores a credential of acme with the access token that the API takes.
func (w *world) putAlive(id string) {
	w.t.Helper()
	w.mu.Lock()
	valid := w.valid
	w.mu.Unlock()
	w.put(id, "acme", map[string]any{"client_id": "client", "client_secret": clientSecret,
		"oauth2": map[string]any{"access_token": valid, "refresh_token": "another-refresh-token", "expires_in": 3600}})
}

// run enqueues so many steps and, if ended is not "", waits until all have ended so.
func (w *world) run(n int, step jobs.Step, ended jobs.Status) (ids []string) {
	w.t.Helper()
	steps := make([]*jobs.Step, n)
	for i := range steps {
		one := step
		steps[i] = &one
	}
	for _, r := range w.client.EnqueueBatch(context.Background(), steps) {
		if r.Err != nil {
			w.t.Fatal(r.Err)
		}
		ids = append(ids, r.ExecutionID)
	}
	if ended != "" {
		w.wait(ids, ended)
	}
	return ids
}

func (w *world) wait(ids []string, ended jobs.Status) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	err := w.client.Wait(ctx, ids, func(r *jobs.Result) error {
		if r.Status != ended {
			raw, _ := json.Marshal(r)
			return fmt.Errorf("want %s: %s", ended, raw)
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// families are all that /metrics tells.
type families map[string]*dto.MetricFamily

func (w *world) scrape() families {
	w.t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	all, err := parser.TextToMetricFamilies(strings.NewReader(w.get("/metrics")))
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

// value is the sum of the series of a metric that have these labels, given as
// name, value, ...: of a histogram, how many it has observed. A series that is
// not there is -1.
func (f families) value(name string, labels ...string) float64 {
	sum, found := 0.0, false
	for _, s := range f["stepworker_"+name].GetMetric() {
		if !has(s, labels) {
			continue
		}
		found = true
		switch {
		case s.Counter != nil:
			sum += s.Counter.GetValue()
		case s.Gauge != nil:
			sum += s.Gauge.GetValue()
		case s.Histogram != nil:
			sum += float64(s.Histogram.GetSampleCount())
		}
	}
	if !found {
		return -1
	}
	return sum
}

// total is the sum of what a histogram has observed.
func (f families) total(name string, labels ...string) (sum float64) {
	for _, s := range f["stepworker_"+name].GetMetric() {
		if has(s, labels) {
			sum += s.Histogram.GetSampleSum()
		}
	}
	return sum
}

func has(s *dto.Metric, labels []string) bool {
	own := map[string]string{}
	for _, l := range s.GetLabel() {
		own[l.GetName()] = l.GetValue()
	}
	for i := 0; i+1 < len(labels); i += 2 {
		if own[labels[i]] != labels[i+1] {
			return false
		}
	}
	return true
}
