package endtoend_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hibiken/asynq"

	"github.com/stepworker/stepworker/internal/otlp/otlptest"
	"github.com/stepworker/stepworker/internal/sampleapi"
	"github.com/stepworker/stepworker/jobs"
)

const headerSecret = "collector-key-6f1d2c"

func exportTo(url string) []string {
	return []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + url, "OTEL_EXPORTER_OTLP_HEADERS=x-api-key=" + headerSecret, "OTEL_BSP_SCHEDULE_DELAY=50"}
}

// spansOf are an execution's, by name.
func spansOf(c *otlptest.Collector, id string) map[string][]*otlptest.Span {
	out := map[string][]*otlptest.Span{}
	for _, s := range c.Spans(func(s *otlptest.Span) bool { return s.Attributes["messaging.message.id"] == id }) {
		out[s.Name] = append(out[s.Name], s)
	}
	for _, all := range out {
		slices.SortFunc(all, func(a, b *otlptest.Span) int { return int(a.Start - b.Start) })
	}
	return out
}

func hasEvent(s *otlptest.Span, name string) bool {
	return slices.ContainsFunc(s.Events, func(e otlptest.Event) bool { return e.Name == name && e.Attributes["stepworker.reason"] != "" })
}

// Twenty steps, two workers, one dead token: each execution is one trace, the
// refresh is one of its own, and they are linked.
func TestTraces_oneDeadCredential(t *testing.T) {
	t.Parallel()
	// The first calls wait for each other: four of each worker.
	var mu sync.Mutex
	waiting, open := 0, make(chan struct{})
	w := newWorld(t, func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/orders" {
			mu.Lock()
			if waiting++; waiting == 8 {
				close(open)
			}
			mu.Unlock()
			select {
			case <-open:
			case <-r.Context().Done():
			}
		}
		return false
	})
	c := otlptest.New(t)
	access, refresh := w.putOrders("cust")
	w.api.KillToken("cust")
	var workers []*process
	for range 2 {
		workers = append(workers, w.worker(exportTo(c.URL), "--concurrency", "4"))
	}
	ids := w.enqueue(exportTo(c.URL), strings.Repeat(`{"credential_id":"cust","method":"list_orders"}`+"\n", 20))
	w.succeed(ids)
	if n := w.api.TokenRequests("cust"); n != 1 {
		t.Errorf("%d token requests", n)
	}
	for _, p := range workers {
		if err := p.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if code := w.ended(p); code != 0 {
			t.Errorf("exit code %d: %s", code, p.Log)
		}
	}

	refreshes := c.Spans(func(s *otlptest.Span) bool { return s.Name == "refresh oauth2" })
	if len(refreshes) != 1 {
		t.Fatalf("%d refreshes: %+v", len(refreshes), refreshes)
	}
	refreshed := refreshes[0]
	if a := refreshed.Attributes; refreshed.Parent != "" || refreshed.Error || a["stepworker.verdict"] != "renewed" || a["stepworker.credential_id"] != "cust" || a["stepworker.connector"] != "orders" {
		t.Errorf("refresh: %+v", refreshed)
	}
	requests := c.Spans(func(s *otlptest.Span) bool { return s.Trace == refreshed.Trace && s.Kind == "CLIENT" })
	if len(requests) != 1 || requests[0].Name != "POST {{base}}/oauth/token" || requests[0].Parent != refreshed.ID || requests[0].Attributes["http.response.status_code"] != "int_value:200" {
		t.Errorf("token requests: %+v", requests)
	}

	traces, places, instances := map[string]bool{}, map[string]bool{}, map[string]bool{}
	parked := 0
	for _, id := range ids {
		own := spansOf(c, id)
		if len(own["create steps"]) != 1 || own["create steps"][0].Parent != "" || own["create steps"][0].Kind != "PRODUCER" {
			t.Fatalf("%s: enqueue: %+v", id, own["create steps"])
		}
		created := own["create steps"][0]
		traces[created.Trace] = true
		attempts := own["process steps"]
		for i, s := range attempts {
			if s.Trace != created.Trace || s.Parent != created.ID || s.Kind != "CONSUMER" {
				t.Errorf("%s: attempt %d is not in its execution's trace: %+v", id, i+1, s)
			}
			if got, want := s.Attributes["stepworker.attempt"], fmt.Sprintf("int_value:%d", i+1); got != want {
				t.Errorf("%s: attempt %s, want %s", id, got, want)
			}
			instances[s.Resource["service.instance.id"]] = true
			places[s.Place()] = true
			if s.Attributes["stepworker.verdict"] == "parked" {
				parked++
				if !hasEvent(s, "parked") {
					t.Errorf("%s: no park event: %+v", id, s)
				}
				if !slices.Contains(refreshed.Links, s.Place()) {
					t.Errorf("%s: the refresh does not link to the attempt that parked", id)
				}
			}
		}
		last := attempts[len(attempts)-1]
		if last.Attributes["stepworker.verdict"] != "succeeded" || last.Error {
			t.Errorf("%s: the last attempt: %+v", id, last)
		}
		if !slices.Contains(last.Links, refreshed.Place()) {
			t.Errorf("%s: the attempt after the refresh does not link to it: %+v", id, last)
		}
		for _, s := range own["queue steps"] {
			if s.Trace != created.Trace || s.End < s.Start {
				t.Errorf("%s: time in the queue: %+v", id, s)
			}
		}
		if len(own["queue steps"]) == 0 {
			t.Errorf("%s: no time in the queue", id)
		}
		calls := c.Spans(func(s *otlptest.Span) bool { return s.Parent == last.ID })
		names := map[string]bool{}
		for _, s := range calls {
			names[s.Name] = true
			if s.Name == "GET {{base}}/orders" && (s.Kind != "CLIENT" || s.Attributes["http.request.method"] != "GET" || s.Attributes["server.address"] != "127.0.0.1" ||
				s.Attributes["url.template"] != "{{base}}/orders" || s.Attributes["http.response.status_code"] != "int_value:200") {
				t.Errorf("call: %+v", s)
			}
		}
		if !names["GET {{base}}/orders"] || !names["hook after_action"] {
			t.Errorf("%s: children of the last attempt: %v", id, names)
		}
	}
	if len(traces) != 20 || len(instances) != 2 || parked < 8 || traces[refreshed.Trace] {
		t.Errorf("%d traces over %d workers, %d parked", len(traces), len(instances), parked)
	}
	for _, link := range refreshed.Links {
		if !places[link] {
			t.Errorf("the refresh links to %s, which is no attempt", link)
		}
	}

	// The logs have the same ids, one line for each attempt.
	lines := 0
	for _, p := range workers {
		for _, m := range append(p.Log.Lines("attempt ended"), p.Log.Lines("execution ended")...) {
			place := fmt.Sprintf("%v/%v", m["trace_id"], m["span_id"])
			if !places[place] || m["credential_id"] != "cust" || m["connector"] != "orders" || m["method"] != "list_orders" || m["execution_id"] == nil || m["attempt"] == nil || m["verdict"] == nil {
				t.Errorf("log line: %v", m)
			}
			delete(places, place)
			lines++
		}
		for _, m := range p.Log.Lines("credential renewed") {
			if m["trace_id"] != refreshed.Trace || m["span_id"] != refreshed.ID || m["credential_id"] != "cust" {
				t.Errorf("log line: %v", m)
			}
		}
	}
	if len(places) != 0 || lines < 28 {
		t.Errorf("%d lines; attempts without one: %v", lines, places)
	}
	if n := len(workers[0].Log.Lines("credential renewed")) + len(workers[1].Log.Lines("credential renewed")); n != 1 {
		t.Errorf("%d lines of the refresh", n)
	}
	if c.Header("X-Api-Key") != headerSecret || len(c.Refused()) > 0 {
		t.Errorf("headers %q, refused %v", c.Header("X-Api-Key"), c.Refused())
	}
	absent(t, map[string]string{"traces": c.Raw(), "log": workers[0].Log.String() + workers[1].Log.String()}, access, refresh, sampleapi.ClientSecret, headerSecret)
}

func absent(t *testing.T, in map[string]string, secrets ...string) {
	t.Helper()
	for where, text := range in {
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%s hold the secret %q", where, secret)
			}
		}
	}
}

// A flow's trace goes on: from what its environment says, over the attempts, to
// the task that brings the result back.
func TestTraces_aFlowsGoesOn(t *testing.T) {
	t.Parallel()
	w, c := newWorld(t, nil), otlptest.New(t)
	w.putOrders("cust")
	w.worker(exportTo(c.URL))
	const trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	env := append(exportTo(c.URL), "TRACEPARENT=00-"+trace+"-"+parent+"-01", "TRACESTATE=flow=7")
	ids := w.enqueue(env, `{"credential_id":"cust","method":"list_orders","reply_to":{"queue":"flows","type":"step:finished"}}`)
	w.succeed(ids)
	// And in the trace of one that exports nothing itself.
	quiet := w.enqueue([]string{"TRACEPARENT=00-" + trace + "-" + parent + "-01"}, `{"credential_id":"cust","method":"list_orders"}`)
	w.succeed(quiet)
	w.until("all spans have come", func() bool {
		return len(spansOf(c, ids[0])["process steps"]) == 1 && len(spansOf(c, quiet[0])["process steps"]) == 1
	})
	own := spansOf(c, ids[0])
	sent := own["send steps"]
	if len(sent) != 1 || sent[0].Trace != trace || sent[0].Parent != parent || sent[0].Kind != "PRODUCER" {
		t.Fatalf("enqueue: %+v", sent)
	}
	attempt := own["process steps"][0]
	if attempt.Trace != trace || attempt.Parent != sent[0].ID {
		t.Errorf("attempt: %+v", attempt)
	}
	if s := spansOf(c, quiet[0])["process steps"][0]; s.Trace != trace || s.Parent != parent {
		t.Errorf("attempt: %+v", s)
	}
	replies := spansOf(c, "r."+ids[0])["send flows"]
	if len(replies) != 1 || replies[0].Trace != trace || replies[0].Parent != attempt.ID {
		t.Fatalf("reply: %+v", replies)
	}
	task, err := asynq.NewInspectorFromRedisClient(w.rdb).GetTaskInfo("flows", "r."+ids[0])
	if err != nil {
		t.Fatal(err)
	}
	if got, want := task.Headers["traceparent"], "00-"+trace+"-"+replies[0].ID+"-01"; got != want || task.Headers["tracestate"] != "flow=7" {
		t.Errorf("the reply's headers: %v, want traceparent %s", task.Headers, want)
	}
}

// Nobody who enqueues traces. A worker is killed in the middle of the call, and
// another one takes over: the same trace.
func TestTraces_takenOverFromAKilledWorker(t *testing.T) {
	t.Parallel()
	called := make(chan struct{}, 1)
	var mu sync.Mutex
	hang := true
	w := newWorld(t, func(_ http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		h := hang
		mu.Unlock()
		if h && r.URL.Path == "/orders" {
			called <- struct{}{}
			<-r.Context().Done()
			return true
		}
		return false
	})
	c := otlptest.New(t)
	w.putOrders("cust")
	first := w.worker(exportTo(c.URL))
	ids := w.enqueue(nil, `{"credential_id":"cust","method":"list_orders"}`)
	select {
	case <-called:
	case <-time.After(time.Minute):
		t.Fatal("nothing was called")
	}
	w.until("the first worker has exported the beginning of the trace", func() bool { return len(spansOf(c, ids[0])["queue steps"]) == 1 })
	_ = first.Cmd.Process.Kill()
	<-first.Done
	mu.Lock()
	hang = false
	mu.Unlock()
	second := w.worker(exportTo(c.URL))
	w.succeed(ids)
	w.until("the second worker has exported its attempt", func() bool { return len(spansOf(c, ids[0])["process steps"]) == 1 })
	own := spansOf(c, ids[0])
	root, attempt := own["queue steps"][0], own["process steps"][0]
	if len(own["queue steps"]) != 1 || root.Parent != "" || attempt.Trace != root.Trace || attempt.Parent != root.ID || attempt.Attributes["stepworker.attempt"] != "int_value:2" {
		t.Errorf("root %+v\nattempt %+v", root, attempt)
	}
	if root.Resource["service.instance.id"] == attempt.Resource["service.instance.id"] {
		t.Error("one worker did it all")
	}
	if m := second.Log.Lines("execution ended"); len(m) != 1 || m[0]["trace_id"] != root.Trace || m[0]["attempt"] != 2.0 {
		t.Errorf("log lines: %v", m)
	}
}

// A worker drains, and the step that does not end in time is put back: the task's
// headers go with it.
func TestTraces_takenOverFromADrainedWorker(t *testing.T) {
	t.Parallel()
	called := make(chan struct{}, 1)
	var once sync.Once
	w := newWorld(t, func(_ http.ResponseWriter, r *http.Request) (hung bool) {
		if r.URL.Path == "/orders" {
			once.Do(func() {
				called <- struct{}{}
				<-r.Context().Done()
				hung = true
			})
		}
		return hung
	})
	c := otlptest.New(t)
	w.putOrders("cust")
	first := w.worker(exportTo(c.URL), "--shutdown-timeout", "1s")
	ids := w.enqueue(exportTo(c.URL), `{"credential_id":"cust","method":"list_orders"}`)
	select {
	case <-called:
	case <-time.After(time.Minute):
		t.Fatal("nothing was called")
	}
	if err := first.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := w.ended(first); code != 0 {
		t.Errorf("exit code %d: %s", code, first.Log)
	}
	w.worker(exportTo(c.URL))
	w.succeed(ids)
	w.until("both attempts are told", func() bool { return len(spansOf(c, ids[0])["process steps"]) == 2 })
	own := spansOf(c, ids[0])
	for i, verdict := range []string{"drained", "succeeded"} {
		s := own["process steps"][i]
		if s.Parent != own["send steps"][0].ID || s.Trace != own["send steps"][0].Trace || s.Attributes["stepworker.verdict"] != verdict {
			t.Errorf("attempt %d: %+v", i+1, s)
		}
	}
	if m := first.Log.Lines("attempt ended"); len(m) != 1 || m[0]["verdict"] != "drained" || m[0]["execution_id"] != ids[0] {
		t.Errorf("log: %v", m)
	}
}

// A collector that hangs, refuses or is not there harms nothing.
func TestTraces_collectorAway(t *testing.T) {
	t.Parallel()
	for name, export := range map[string]func(w *world) string{
		"down": func(w *world) string { return "http://" + freePort(w.t) },
		"hangs": func(w *world) string {
			return w.url + "/hangs"
		},
		"refuses and echoes": func(w *world) string { return w.url + "/echoes" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) bool {
				switch {
				case strings.HasPrefix(r.URL.Path, "/hangs"):
					_, _ = io.Copy(io.Discard, r.Body) // only then is it seen that the other side has gone
					<-r.Context().Done()
					return true
				case strings.HasPrefix(r.URL.Path, "/echoes"):
					rw.WriteHeader(http.StatusUnauthorized)
					fmt.Fprintf(rw, "no key like %s is known", r.Header.Get("X-Api-Key"))
					return true
				}
				return false
			})
			w.putOrders("cust")
			env := append(exportTo(export(w)), "OTEL_BSP_MAX_QUEUE_SIZE=64", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE=16", "OTEL_EXPORTER_OTLP_TIMEOUT=300")
			p := w.worker(env)
			ids := w.enqueue(env, strings.Repeat(`{"credential_id":"cust","method":"list_orders"}`+"\n", 200))
			if len(ids) != 200 {
				t.Fatalf("%d steps were enqueued", len(ids))
			}
			w.succeed(ids)
			w.until("the log tells of it", func() bool { return len(p.Log.Lines("traces cannot be exported")) > 0 })
			if err := p.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if code := w.ended(p); code != 0 {
				t.Errorf("exit code %d", code)
			}
			absent(t, map[string]string{"log": p.Log.String()}, headerSecret)
		})
	}
}

// Everything that could tell a secret does its best to.
func TestTraces_noSecrets(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) bool {
		if !strings.HasPrefix(r.URL.Path, "/leaky") {
			return false
		}
		_ = r.ParseForm()
		rw.Header().Set("Content-Type", "application/json")
		if strings.Contains(r.URL.Path, "/dead") {
			rw.WriteHeader(http.StatusUnauthorized)
		} else if strings.HasSuffix(r.URL.Path, "/token") {
			rw.WriteHeader(http.StatusBadRequest)
		}
		fmt.Fprintf(rw, `{"error":"invalid_grant","error_description":%q,"echo":%q}`, r.Form.Encode()+r.Form.Get("refresh_token"), r.URL.String()+" "+r.Header.Get("Authorization"))
		return true
	})
	c := otlptest.New(t)
	w.connectors = t.TempDir()
	err := os.WriteFile(filepath.Join(w.connectors, "leaky.yaml"), []byte(`
connector: leaky
base_url: "{{base}}"
auth: {type: oauth2, grant: authorization_code, token_url: "{{base}}/leaky/token"}
parameters:
  - {name: base, target: merge_field, property: account}
  - {name: door, target: merge_field, property: account, sensitive: true}
  - {name: key, target: query_string, property: account, sensitive: true}
script: |
  function before_action() {
    console.log('authorized by ' + method_auth_value);
    http_request({method: 'GET', url: method_request_mergefields.base + '/leaky/' + method_request_mergefields.door + '?again=' + method_auth_value});
  }
  function after_action() { throw new Error('it says ' + method_response.echo); }
  function after_error() { throw new AuthRefreshException('refused: ' + method_error.content); }
methods:
  - {method: fail, verb: GET, endpoint: "/leaky/{{door}}?plain=1"}
  - {method: dead, verb: GET, endpoint: "/leaky/{{door}}/dead"}
`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	secrets := []string{"access-canary-91b2", "refresh-canary-71c3", "client-canary-55d4", "door-canary-33e5", "key-canary-11f6"}
	w.put(fmt.Sprintf(`{"credential_id":"cust","connector":"leaky","client_id":"acme","client_secret":%q,"properties":{"base":%q,"door":%q,"key":%q},"oauth2":{"access_token":%q,"refresh_token":%q,"expires_in":3600}}`,
		secrets[2], w.url, secrets[3], secrets[4], secrets[0], secrets[1]))
	p := w.worker(exportTo(c.URL))
	ids := w.enqueue(exportTo(c.URL), `{"credential_id":"cust","method":"fail"}`)
	if r := w.results(ids)[ids[0]]; r.Status != jobs.Failed || r.Error.Kind != jobs.KindScript || !strings.Contains(r.Error.Message, "it says") {
		t.Fatalf("%+v %+v", r, r.Error)
	}
	ids = append(ids, w.enqueue(exportTo(c.URL), `{"credential_id":"cust","method":"dead"}`)...) // from then on the credential is revoked
	w.until("the other one is held", func() bool {
		s, err := jobs.NewClient(w.rdb).Status(context.Background(), ids[1])
		return err == nil && s.Status == "held"
	})
	if err := p.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	w.ended(p)
	told := func(name, text string) bool {
		return len(c.Spans(func(s *otlptest.Span) bool {
			in := s.Status
			for _, e := range s.Events {
				in += e.Attributes["stepworker.reason"]
			}
			return s.Name == name && strings.Contains(in, text)
		})) > 0
	}
	for name, text := range map[string]string{"process steps": "it says", "hook after_action": "it says", "hook after_error": "refused:", "refresh oauth2": "invalid_grant"} {
		if !told(name, text) {
			t.Errorf("no span %q tells of %q: %+v", name, text, c.Spans(func(s *otlptest.Span) bool { return s.Name == name }))
		}
	}
	events := map[string]bool{}
	for _, s := range c.Spans(func(s *otlptest.Span) bool {
		return s.Name == "hook before_action" && strings.Contains(s.Attributes["stepworker.hook.levels"], "connector")
	}) {
		events[s.ID] = true
	}
	if n := len(c.Spans(func(s *otlptest.Span) bool {
		return s.Name == "GET" && s.Attributes["stepworker.purpose"] == "http_request" && events[s.Parent]
	})); n != 2 {
		t.Errorf("%d requests of scripts", n)
	}
	absent(t, map[string]string{"traces": c.Raw(), "log": p.Log.String()}, append(secrets, headerSecret)...)
}

// Mistakes are told with all others, without what is secret.
func TestTraces_mistakes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	env := []string{"OTEL_EXPORTER_OTLP_ENDPOINT=collector:4318", "OTEL_EXPORTER_OTLP_HEADERS=" + headerSecret, "OTEL_TRACES_SAMPLER=sometimes", "OTEL_EXPORTER_OTLP_PROTOCOL=http/xml"}
	for program, args := range map[string][]string{
		"worker":  {"run", "--connectors", w.connectors, "--concurrency", "0"},
		"enqueue": {"--progress", "sometimes"},
	} {
		p := w.start(program, append(env, "STEPWORKER_KEYS="+w.key), "", args...)
		if code := w.ended(p); code != 2 {
			t.Errorf("%s: exit code %d", program, code)
		}
		for _, want := range []string{args[len(args)-2], "OTEL_EXPORTER_OTLP_ENDPOINT: ", "OTEL_EXPORTER_OTLP_HEADERS: ", "OTEL_TRACES_SAMPLER: ", "OTEL_EXPORTER_OTLP_PROTOCOL: "} {
			if !strings.Contains(p.Log.String(), want) {
				t.Errorf("%s does not tell of %s:\n%s", program, want, p.Log)
			}
		}
		absent(t, map[string]string{"stderr": p.Log.String()}, headerSecret)
	}
}
