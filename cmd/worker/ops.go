package main

import (
	"bytes"
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/hibiken/asynq"
	"github.com/hibiken/asynqmon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/jobs"
)

// handler serves what operators look at.
func (w *Worker) handler(reg *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", func(rw http.ResponseWriter, _ *http.Request) {
		err := w.pool.Ready()
		if err == nil {
			err = w.wrongKeys
		}
		if err == nil && !w.engine.Ready() {
			err = errors.New("no hook host has answered")
		}
		if err != nil {
			http.Error(rw, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = rw.Write([]byte("ready\n"))
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	w.dashboard(mux)
	return mux
}

// sharedRedis lends asynqmon our client.
type sharedRedis struct{ redis.UniversalClient }

func (s sharedRedis) MakeRedisClient() interface{} { return unclosable(s) }

type unclosable struct{ redis.UniversalClient }

func (unclosable) Close() error { return nil }

// dashboard mounts asynqmon: payloads and results readable and masked; without
// a password read-only, on loopback addresses only, and only for pages that
// the address itself served.
func (w *Worker) dashboard(mux *http.ServeMux) {
	if w.cfg.password == "" && !loopback(w.Addr) {
		w.log.Warn("the dashboard is not served: without a password it is for loopback addresses only (STEPWORKER_DASHBOARD_PASSWORD, --dashboard-password-file)", "http", w.Addr)
		return
	}
	format := func(_ string, raw []byte) string { return mask(raw) }
	mon := asynqmon.New(asynqmon.Options{
		RootPath: "/monitoring", RedisConnOpt: asynq.RedisConnOpt(sharedRedis{w.rdb}), ReadOnly: w.cfg.password == "",
		PayloadFormatter: asynqmon.PayloadFormatterFunc(format), ResultFormatter: asynqmon.ResultFormatterFunc(format),
	})
	results := &withResults{mon, jobs.NewClient(w.rdb)}
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

var secretName = regexp.MustCompile(`(?i)(password|passwd|secret|token|api_?key|authorization|credential$|session|cookie|private)`)

// mask makes JSON readable and hides members whose names say that they are secret.
func mask(raw []byte) string {
	var v any
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	if dec.Decode(&v) != nil {
		return "[not JSON]"
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	_ = enc.Encode(maskValue(v))
	return strings.TrimSpace(out.String())
}

func maskValue(v any) any {
	switch x := v.(type) {
	case map[string]any:
		for k, m := range x {
			if _, isText := m.(string); isText && secretName.MatchString(k) {
				x[k] = "[redacted]"
			} else {
				x[k] = maskValue(m)
			}
		}
	case []any:
		for i := range x {
			x[i] = maskValue(x[i])
		}
	}
	return v
}

// withResults fills in the results of steps: they live under a key of their
// own, which asynqmon does not know.
type withResults struct {
	next   http.Handler
	client *jobs.Client
}

var taskPath = regexp.MustCompile(`/monitoring/api/queues/[^/]+/(tasks/[^/]+|(completed|archived)_tasks)$`)

func (h *withResults) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet || !taskPath.MatchString(r.URL.Path) {
		h.next.ServeHTTP(rw, r)
		return
	}
	rec := &recorder{header: http.Header{}, code: http.StatusOK}
	r.Header.Del("Accept-Encoding")
	h.next.ServeHTTP(rec, r)
	body := rec.body.Bytes()
	var v map[string]any
	if rec.code == http.StatusOK && json.Unmarshal(body, &v) == nil {
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		defer cancel()
		h.fill(ctx, v)
		if tasks, ok := v["tasks"].([]any); ok {
			for _, t := range tasks {
				if m, ok := t.(map[string]any); ok {
					h.fill(ctx, m)
				}
			}
		}
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

func (h *withResults) fill(ctx context.Context, task map[string]any) {
	id, _ := task["id"].(string)
	if typ, _ := task["type"].(string); typ != jobs.TypeStep && task["type"] != nil || id == "" {
		return
	}
	res, err := h.client.Result(ctx, id)
	if err != nil {
		return
	}
	raw, err := json.Marshal(res)
	if err != nil {
		return
	}
	task["result"] = mask(raw)
}

type recorder struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(code int)        { r.code = code }
func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }
