package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/jobs"
)

// A token that begins with "good" is good. Its methods: a plain call, one with
// handlers of three events, one of three pages.
const fleetYAML = `connector: bench
base_url: "{{base}}"
auth: {type: oauth2, token_url: "{{base}}/token", auth_style: params, refresh_on: [401]}
parameters: [{name: base, target: merge_field, property: account}]
methods:
  - {method: plain, verb: POST, endpoint: /item}
  - method: hooks
    verb: POST
    endpoint: /item
    script: |
      function before_action() { method_request_headers['X-Request'] = 'bench'; return true; }
      function after_action() { method_response.length = method_response.data.length; return true; }
      function action_condition() { return true; }
  - method: pages
    endpoint: /pages
    paging: {inbound: true, page_size: 100, more: more}
    parameters: [{name: page, target: query_string, value: "{{CYCLR_PAGE_NUMBER}}"}]
    response: {fields: [{field: "[items].id", system: Id}]}
`

// fleet is worker processes on a Redis of their own, and the API, which is in
// this process.
type fleet struct {
	sock, key string
	rdb       redis.UniversalClient
	setup     *house // puts credentials; its pool does not run
	api       *httptest.Server
	latency   time.Duration
	data      string // of answers, and of the bodies of steps
	held      sync.WaitGroup
	stops     []func()

	workers []*member
}

// member is one of the worker processes.
type member struct {
	cmd           *exec.Cmd
	ended, parked atomic.Int64
}

func newFleet(latency time.Duration, payload int) (*fleet, error) {
	f := &fleet{key: credentials.NewKey(), latency: latency}
	noise := make([]byte, payload*3/4)
	_, _ = rand.Read(noise) // as text that is not compressed to nothing
	f.data = base64.StdEncoding.EncodeToString(noise)
	var stop func()
	var err error
	if f.sock, stop, err = startRedis(); err != nil {
		return nil, err
	}
	f.stops = append(f.stops, stop)
	f.rdb = client(f.sock, 2)
	f.stops = append(f.stops, func() { _ = f.rdb.Close() })
	f.api = httptest.NewServer(f)
	f.stops = append(f.stops, f.api.Close)
	if f.setup, err = openHouseFor(f.rdb, fleetYAML, house{key: f.key, concurrency: 1}); err != nil {
		f.close()
		return nil, err
	}
	f.stops = append(f.stops, func() { _ = f.setup.engine.Close() })
	return f, nil
}

// ServeHTTP is the API.
func (f *fleet) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/token":
		f.held.Wait()
		_, _ = w.Write([]byte(`{"access_token":"good-access-token","expires_in":3600}`))
		return
	case !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer good"):
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	select {
	case <-time.After(f.latency):
	case <-r.Context().Done():
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if page := r.URL.Query().Get("page"); page != "" {
		_, _ = fmt.Fprintf(w, `{"items":[{"id":%q,"data":%q}],"more":%t}`, page, f.data, page < "3")
		return
	}
	_, _ = fmt.Fprintf(w, `{"id":1,"data":%q}`, f.data)
}

// put stores a credential whose token is good, or not.
func (f *fleet) put(id string, good bool) error {
	token := "dead-access-token"
	if good {
		token = "good-access-token"
	}
	return f.setup.put(fmt.Sprintf(`{"credential_id":%q,"connector":"bench","client_id":"client","properties":{"base":%q},
		"oauth2":{"access_token":%q,"refresh_token":"refresh-token","expires_in":3600}}`, id, f.api.URL, token))
}

// steps are for each of the credentials as many, over all queues.
func (f *fleet) steps(method string, steps, credentials int, queues []string) ([]*jobs.Step, error) {
	body, err := json.Marshal(map[string]string{"data": f.data})
	if err != nil {
		return nil, err
	}
	batch := make([]*jobs.Step, steps)
	for i := range batch {
		batch[i] = &jobs.Step{CredentialID: fmt.Sprint("c", i%credentials), Method: method, Queue: queues[i%len(queues)]}
		if method != "pages" {
			batch[i].Body = body
		}
	}
	return batch, nil
}

func (f *fleet) enqueue(method string, steps, credentials int, queues []string) error {
	batch, err := f.steps(method, steps, credentials, queues)
	if err != nil {
		return err
	}
	for _, r := range jobs.NewClient(f.rdb).EnqueueBatch(context.Background(), batch) {
		if r.Err != nil {
			return r.Err
		}
	}
	return nil
}

// startWorker starts one more process, and returns once it takes tasks.
func (f *fleet) startWorker(concurrency int, queues int) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	m := &member{cmd: exec.Command(self, "-role", "worker", "-redis", f.sock, "-concurrency", strconv.Itoa(concurrency), "-queues", strconv.Itoa(queues))}
	m.cmd.Env = append(os.Environ(), keyEnv+"="+f.key)
	m.cmd.Stderr = os.Stderr
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := m.cmd.Start(); err != nil {
		return err
	}
	f.workers = append(f.workers, m)
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		return fmt.Errorf("a worker does not start: %w", lines.Err())
	}
	go func() { // until its end
		for lines.Scan() {
			var ended, parked int64
			if _, err := fmt.Sscan(lines.Text(), &ended, &parked); err == nil {
				m.ended.Store(ended)
				m.parked.Store(parked)
			}
		}
	}()
	return nil
}

// runWorker is one of the processes. It tells how many steps have ended and
// how often one was parked.
func runWorker(sock string, concurrency, queues int) error {
	var ended, parked atomic.Int64
	h, err := openHouseFor(client(sock, 2), fleetYAML, house{key: os.Getenv(keyEnv), concurrency: concurrency, queues: queueNames(queues), observe: func(m jobs.Moment) {
		switch m.What {
		case "succeeded":
			ended.Add(1)
		case "parked":
			parked.Add(1)
		case "failed", "retried":
			fmt.Fprintln(os.Stderr, m.What, m.Text)
		}
	}})
	if err != nil {
		return err
	}
	if err := h.pool.Start(); err != nil {
		return err
	}
	fmt.Println("ready")
	for last := ""; ; time.Sleep(20 * time.Millisecond) {
		if now := fmt.Sprintln(ended.Load(), parked.Load()); now != last {
			fmt.Print(now)
			last = now
		}
	}
}

func (f *fleet) ended() (n int64) {
	for _, m := range f.workers {
		n += m.ended.Load()
	}
	return n
}

func (f *fleet) parked() (n int64) {
	for _, m := range f.workers {
		n += m.parked.Load()
	}
	return n
}

func (f *fleet) stopWorkers() {
	for _, m := range f.workers {
		_ = m.cmd.Process.Kill()
		_ = m.cmd.Wait()
	}
	f.workers = nil
}

func (f *fleet) close() {
	f.stopWorkers()
	for i := len(f.stops) - 1; i >= 0; i-- {
		f.stops[i]()
	}
}

// reading is what has been used up to a moment.
type reading struct {
	at                     time.Time
	ended                  int64
	worker, hosts, redis   float64 // s of CPU
	commands, in, out      int64   // of Redis; bytes
	memory, file           int64   // of Redis, bytes; its append-only file
	connections, openFiles int64   // of the workers
}

func (f *fleet) read() reading {
	ctx := context.Background()
	r := reading{at: time.Now(), ended: f.ended(), redis: redisSeconds(ctx, f.rdb), commands: commandsOf(ctx, f.rdb), memory: usedMemory(ctx, f.rdb)}
	_, _ = fmt.Sscan(infoOf(ctx, f.rdb, "stats", "total_net_input_bytes"), &r.in)
	_, _ = fmt.Sscan(infoOf(ctx, f.rdb, "stats", "total_net_output_bytes"), &r.out)
	_, _ = fmt.Sscan(infoOf(ctx, f.rdb, "clients", "connected_clients"), &r.connections)
	if c, ok := f.rdb.(*redis.Client); ok { // those of this process are no worker's
		r.connections -= int64(c.PoolStats().TotalConns)
	}
	_, _ = fmt.Sscan(infoOf(ctx, f.rdb, "persistence", "aof_current_size"), &r.file)
	for _, m := range f.workers {
		cpu, hosts := processSeconds(m.cmd.Process.Pid)
		r.worker += cpu
		r.hosts += hosts
		files, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", m.cmd.Process.Pid))
		r.openFiles += int64(len(files))
	}
	return r
}

// processSeconds is the CPU time of a process, and of its children: its hook hosts.
func processSeconds(pid int) (own, children float64) {
	all, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range all {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(raw), ") ")
		fields := strings.Fields(rest)
		if len(fields) < 13 {
			continue
		}
		user, _ := strconv.ParseFloat(fields[11], 64)
		sys, _ := strconv.ParseFloat(fields[12], 64)
		switch {
		case filepath.Base(filepath.Dir(path)) == strconv.Itoa(pid):
			own = (user + sys) / ticks
		case fields[1] == strconv.Itoa(pid):
			children += (user + sys) / ticks
		}
	}
	return own, children
}

const ticks = 100 // a second, in /proc
