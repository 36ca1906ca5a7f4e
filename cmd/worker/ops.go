package main

import (
	"bytes"
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/hibiken/asynq"
	"github.com/hibiken/asynqmon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/jobs"
)

// handler serves what operators look at.
func (w *Worker) handler(reg prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /schema/connector.json", func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "application/schema+json")
		_, _ = io.WriteString(rw, definition.Schema())
	})
	mux.HandleFunc("GET /readyz", func(rw http.ResponseWriter, _ *http.Request) {
		if err := w.ready(); err != nil {
			http.Error(rw, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = rw.Write([]byte("ready\n"))
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	w.dashboard(mux)
	return mux
}

// ready says why this worker is not ready, nil if it is.
func (w *Worker) ready() error {
	if unfit := w.unfit.Load(); unfit != nil {
		return fmt.Errorf("worker fault: %w", *unfit)
	}
	if err := w.pool.Ready(); err != nil {
		return err
	}
	if wrong := w.wrongKeys.Load(); wrong != nil {
		return *wrong
	}
	if !w.engine.Ready() {
		return errors.New("no hook host has answered")
	}
	return nil
}

// sharedRedis lends asynqmon our client: it is never told to close, and by the
// client's type it knows whether there is a cluster to show.
type sharedRedis struct{ client redis.UniversalClient }

func (s sharedRedis) MakeRedisClient() interface{} { return s.client }

// dashboard mounts asynqmon: payloads, results and errors readable and masked,
// by the names of members and by the secrets of the task's credential; without
// a password read-only, on loopback addresses only, and only for pages that
// the address itself served.
func (w *Worker) dashboard(mux *http.ServeMux) {
	if w.cfg.password == "" && !loopback(w.Addr) {
		w.always().Warn("the dashboard is not served: without a password it is for loopback addresses only (STEPWORKER_DASHBOARD_PASSWORD, --dashboard-password-file)", "http", w.Addr)
		return
	}
	format := func(_ string, raw []byte) string { return mask(raw) }
	mon := asynqmon.New(asynqmon.Options{
		RootPath: "/monitoring", RedisConnOpt: asynq.RedisConnOpt(sharedRedis{w.rdb}), ReadOnly: w.cfg.password == "",
		PayloadFormatter: asynqmon.PayloadFormatterFunc(format), ResultFormatter: asynqmon.ResultFormatterFunc(format),
	})
	results := &withResults{mon, jobs.NewClient(w.rdb), &masker{store: w.store, catalog: w.catalog, caller: w.caller, byID: map[string]versioned{}}}
	guarded := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if w.cfg.password != "" {
			_, pass, ok := r.BasicAuth()
			if !ok || subtle.ConstantTimeCompare([]byte(pass), []byte(w.cfg.password)) != 1 {
				rw.Header().Set("WWW-Authenticate", `Basic realm="Stepworker"`)
				http.Error(rw, "a password is needed", http.StatusUnauthorized)
				return
			}
		} else if !loopback(r.Host) {
			http.Error(rw, "this Host is not served: without a password the dashboard is for loopback addresses", http.StatusForbidden)
			return
		}
		if o := r.Header.Get("Origin"); o != "" {
			if u, err := url.Parse(o); err != nil || u.Host != r.Host {
				http.Error(rw, "this Origin is not served", http.StatusForbidden)
				return
			}
		}
		rw.Header().Set("X-Frame-Options", "DENY")
		results.ServeHTTP(rw, r)
	})
	mux.Handle("/monitoring", guarded)
	mux.Handle("/monitoring/", guarded)
}

// loopback says that host[:port] is the machine itself.
func loopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = hostport
	}
	host = strings.Trim(host, "[]")
	if strings.EqualFold(host, "localhost") {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

// withResults fills in the results of steps, which live under a key of their
// own that asynqmon does not know, and hides the secrets of their credentials.
type withResults struct {
	next   http.Handler
	client *jobs.Client
	masker *masker
}

var (
	// taskPath is of everything that shows tasks, resultPath of what shows results.
	taskPath   = regexp.MustCompile(`/monitoring/api/(servers$|queues/[^/]+/(tasks/|.*_tasks$))`)
	resultPath = regexp.MustCompile(`/monitoring/api/queues/[^/]+/(tasks/[^/]+|(completed|archived)_tasks)$`)
)

func (h *withResults) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet || !taskPath.MatchString(r.URL.Path) {
		h.next.ServeHTTP(rw, r)
		return
	}
	rec := &recorder{header: http.Header{}, code: http.StatusOK}
	r.Header.Del("Accept-Encoding")
	h.next.ServeHTTP(rec, r)
	body := rec.body.Bytes()
	if v, err := decode(body); err == nil && rec.code == http.StatusOK {
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		defer cancel()
		tasks := tasksIn(v, nil)
		if resultPath.MatchString(r.URL.Path) {
			h.fill(ctx, tasks)
		}
		h.hide(ctx, tasks)
		if filled, err := json.Marshal(v); err == nil {
			body = filled
		}
	}
	for k, values := range rec.header {
		if k != "Content-Length" {
			rw.Header()[k] = values
		}
	}
	rw.WriteHeader(rec.code)
	_, _ = rw.Write(body)
}

// tasksIn finds the objects that show tasks.
func tasksIn(v any, found []map[string]any) []map[string]any {
	switch x := v.(type) {
	case []any:
		for _, e := range x {
			found = tasksIn(e, found)
		}
	case map[string]any:
		_, listed := x["payload"].(string)
		_, active := x["task_payload"].(string)
		if listed || active {
			return append(found, x)
		}
		for _, e := range x {
			found = tasksIn(e, found)
		}
	}
	return found
}

func (h *withResults) fill(ctx context.Context, tasks []map[string]any) {
	byID := map[string]map[string]any{}
	var ids []string
	for _, t := range tasks {
		if id, _ := t["id"].(string); t["type"] == jobs.TypeStep && id != "" {
			byID[id], ids = t, append(ids, id)
		}
	}
	for some := range slices.Chunk(ids, 5) { // each may be large
		results, err := h.client.Results(ctx, some)
		if err != nil {
			return
		}
		for id, res := range results {
			if raw, err := json.Marshal(res.Short()); err == nil {
				byID[id]["result"] = mask(raw)
			}
		}
	}
}

// hide masks the secrets of the credential that a task's payload names, and
// what the step itself brought for a sensitive parameter.
func (h *withResults) hide(ctx context.Context, tasks []map[string]any) {
	type payload struct {
		CredentialID string                     `json:"credential_id"`
		Parameters   map[string]json.RawMessage `json:"parameters"`
		Mappings     map[string]string          `json:"mappings"`
	}
	payloads := make([]payload, len(tasks))
	var ids []string
	for i, t := range tasks {
		for _, member := range []string{"payload", "task_payload"} {
			if text, ok := t[member].(string); ok {
				_ = json.Unmarshal([]byte(text), &payloads[i])
			}
		}
		if id := payloads[i].CredentialID; id != "" && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	known := h.masker.of(ctx, ids)
	for i, t := range tasks {
		v, ok := known[payloads[i].CredentialID]
		if !ok {
			continue
		}
		id, listed := t["id"].(string)
		if !listed {
			id, _ = t["task_id"].(string) // of one that a server runs
		}
		_ = h.masker.store.OpenStep(ctx, id, payloads[i].Parameters) // what does not open is read by nobody
		redactor := v.redactor
		if own := ownSecrets(v.sensitive, payloads[i].Parameters, payloads[i].Mappings); len(own) > 0 {
			redactor = credentials.NewRedactor(append(own, v.secrets...), minSecret)
		}
		for _, member := range []string{"payload", "task_payload", "result"} {
			if text, ok := t[member].(string); ok {
				t[member] = redactText(redactor, text)
			}
		}
		if text, ok := t["error_message"].(string); ok {
			t["error_message"] = redactor.String(text)
		}
	}
}

func ownSecrets(sensitive []definition.Parameter, given map[string]json.RawMessage, mapped map[string]string) []string {
	var own []string
	for _, q := range sensitive {
		if v, err := decode(given[q.Name]); err == nil {
			own = append(own, texts(v)...)
		}
		own = append(own, mapped["parameters."+q.Name]) // perhaps the value itself
	}
	return slices.DeleteFunc(own, func(s string) bool { return s == "" || s == redacted })
}

type recorder struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(code int)        { r.code = code }
func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }
