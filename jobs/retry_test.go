package jobs_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/jobs"
)

// faultyAPI meets the first request of each execution with the fault that its
// path names, and answers the others.
type faultyAPI struct {
	mu   sync.Mutex
	seen map[string][]faultySeen // by execution
	over chan struct{}
}

type faultySeen struct {
	at  time.Time
	key string
}

func (f *faultyAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(r.URL.Path, "/")
	fault, id := parts[1], parts[2]
	f.mu.Lock()
	f.seen[id] = append(f.seen[id], faultySeen{time.Now(), r.Header.Get("Idempotency-Key")})
	first := len(f.seen[id]) == 1
	f.mu.Unlock()
	status := 0
	_, _ = fmt.Sscanf(fault, "%d", &status)
	_, after, _ := strings.Cut(fault, "after")
	_, _, again := strings.Cut(fault, "always")
	switch {
	case !first && !again:
		fmt.Fprint(w, `{"done":true}`)
	case fault == "reset":
		conn, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			_ = conn.(*net.TCPConn).SetLinger(0)
			_ = conn.Close()
		}
	case fault == "silent":
		<-f.over
	default:
		if after != "" {
			w.Header().Set("Retry-After", after)
		}
		w.WriteHeader(status)
	}
}

// TestRetry_eachFault is the table of what is called again: contract between
// retry, the verb, and what happened.
func TestRetry_eachFault(t *testing.T) {
	t.Parallel()
	api := &faultyAPI{seen: map[string][]faultySeen{}, over: make(chan struct{})}
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(api.over) })
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := "http://" + closed.Addr().String()
	_ = closed.Close()

	var file strings.Builder
	file.WriteString("connector: faulty\nbase_url: \"{{base}}\"\nauth: {type: none}\nparameters: [{name: base, target: merge_field, property: account}, {name: api, target: merge_field, property: account}, {name: refused, target: merge_field, property: account}]\nmethods:\n")
	type cell struct {
		fault, verb, retry string
		requests           int
		kind               string // of the failure; "": it succeeds
	}
	var cells []cell
	for _, fault := range []string{"refused", "reset", "silent", "500", "500after2", "503", "503after1", "408", "429after1"} {
		for _, verb := range []string{"GET", "POST"} {
			for _, retry := range []string{"safe", "always", "never"} {
				c := cell{fault, verb, retry, 2, ""}
				repeats := retry == "always" || retry == "safe" && verb == "GET"
				switch fault {
				case "refused": // nothing was sent: tried again whatever retry says, until the budget is used up
					c.requests, c.kind = 0, jobs.KindNetwork
				case "503after1", "429after1": // put off
				case "reset", "silent":
					if !repeats {
						c.requests, c.kind = 1, jobs.KindNetwork
					}
				default:
					if !repeats {
						c.requests, c.kind = 1, jobs.KindHTTP
					}
				}
				cells = append(cells, c)
			}
		}
	}
	cells = append(cells, cell{"500always", "PUT", "safe", 2, jobs.KindHTTP})
	for i, c := range cells {
		host := "{{api}}"
		if c.fault == "refused" {
			host = "{{refused}}"
		}
		fmt.Fprintf(&file, "  - {method: m%d, verb: %s, endpoint: \"%s/%s/x%d\", timeout: 1s, retry: %s, idempotency_header: Idempotency-Key}\n", i, c.verb, host, c.fault, i, c.retry)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "faulty.yaml"), []byte(file.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	catalog, findings, err := definition.Load(dir)
	if err != nil || len(findings) > 0 {
		t.Fatal(err, findings)
	}
	h := newHouse(t, func(c *jobs.PoolConfig) { c.Catalog = catalog })
	h.put(map[string]any{"credential_id": "c", "connector": "faulty", "properties": map[string]any{"api": server.URL, "refused": refused}})
	one, ids := 1, make([]string, len(cells))
	for i := range cells {
		ids[i] = fmt.Sprintf("x%d", i)
		h.enqueue(1, jobs.Step{ExecutionID: ids[i], CredentialID: "c", Method: fmt.Sprintf("m%d", i), MaxRetries: &one})
	}
	results := h.results(ids)
	for i, c := range cells {
		t.Run(fmt.Sprintf("%s, %s, %s", c.fault, c.verb, c.retry), func(t *testing.T) {
			r, seen := results[ids[i]], api.seen[ids[i]]
			kind := ""
			if r.Error != nil {
				kind = r.Error.Kind
			}
			if len(seen) != c.requests || kind != c.kind || (kind == "") != (r.Status == jobs.Succeeded) {
				raw, _ := json.Marshal(r)
				t.Errorf("%d requests, %s; want %d, kind %q", len(seen), raw, c.requests, c.kind)
			}
			if slices.ContainsFunc(seen, func(s faultySeen) bool { return s.key != ids[i] }) {
				t.Errorf("keys %v", seen)
			}
			if _, after, ok := strings.Cut(c.fault, "after"); ok && len(seen) == 2 {
				if waited := seen[1].at.Sub(seen[0].at); waited < time.Duration(after[0]-'0')*time.Second {
					t.Errorf("tried again after %s", waited)
				}
			}
			if log := h.story(ids[i]); c.fault == "refused" && strings.Count(log, "called") != 2 {
				t.Errorf("got %s", log)
			}
		})
	}
}

// TestResult_largeIsKeptCompressed reads a large result by every way.
func TestResult_largeIsKeptCompressed(t *testing.T) {
	list := make([]string, 20_000)
	for i := range list {
		list[i] = fmt.Sprintf(`{"id":%d,"name":"record <%d>","amount":12345678901234567890.10}`, i, i)
	}
	want := "[" + strings.Join(list, ",") + "]"
	large := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, want)
	}))
	t.Cleanup(large.Close)
	dir := t.TempDir()
	file := "connector: large\nbase_url: \"{{base}}\"\nauth: {type: none}\nparameters: [{name: base, target: merge_field, property: account}, {name: api, target: merge_field, property: account}]\n" +
		"methods: [{method: get, endpoint: \"{{api}}/\", response: {fields: [{field: \"[].id\", system: Id}]}}]\n"
	if err := os.WriteFile(filepath.Join(dir, "large.yaml"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	catalog, findings, err := definition.Load(dir)
	if err != nil || len(findings) > 0 {
		t.Fatal(err, findings)
	}
	h := newHouse(t, func(c *jobs.PoolConfig) { c.Catalog = catalog })
	h.put(map[string]any{"credential_id": "c", "connector": "large", "properties": map[string]any{"api": large.URL}})
	ids := h.enqueue(1, jobs.Step{CredentialID: "c", Method: "get", ReplyTo: &jobs.ReplyTo{Queue: "flows", Type: "step:finished"}})
	waited := h.results(ids)[ids[0]]
	read, err := h.client.Result(context.Background(), ids[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []*jobs.Result{waited, read} {
		var fields map[string][]int
		if err := json.Unmarshal(r.Fields, &fields); err != nil || len(fields["Id"]) != len(list) || fields["Id"][7] != 7 {
			t.Errorf("fields %.100s, %v", r.Fields, err)
		}
		if string(r.Content) != want || r.Status != jobs.Succeeded {
			t.Errorf("%s: content %.100s", r.Status, r.Content)
		}
	}
	stored, err := h.rdb.Get(context.Background(), "stepworker:r:{"+ids[0]+"}").Bytes()
	if err != nil || len(stored) > len(want)/4 || stored[0] == '{' {
		t.Errorf("%d bytes are stored of %d, %v", len(stored), len(want), err)
	}
	payload, err := h.rdb.HGet(context.Background(), "asynq:{flows}:t:r."+ids[0], "msg").Result()
	if err != nil || len(payload) > 512<<10 || !strings.Contains(payload, `"content_omitted":true`) {
		t.Errorf("the reply has %d bytes, %v", len(payload), err)
	}
}
