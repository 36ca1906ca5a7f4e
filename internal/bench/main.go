// Command bench measures the whole pool against a yardstick: an asynq handler
// written by hand that makes the same HTTP call and keeps the answer, with no
// scripts. Both run in one go, turn by turn, each in a process of its own, on
// a redis-server of its own, because an absolute time means little on a shared
// machine. It prints steps per second, CPU per step (user and system, hook
// hosts included, the API's own left out) and the ratios. Hooks are measured
// against the bare engine that does the same in this process.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hibiken/asynq"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/hooks"
	"github.com/stepworker/stepworker/internal/redismetrics"
	"github.com/stepworker/stepworker/jobs"
)

// The connector, with a script and without. Its method and the step have a
// script too: three levels, which look at the answer and change it.
const (
	connectorYAML = `connector: bench
title: Bench
base_url: "{{base}}"
data_type: json
auth: {type: api_key, name: Authorization, prefix: "Bearer "}
parameters:
  - {name: base, target: merge_field, property: account}
`
	connectorScript = `script: |
  function before_action() {
    method_request_headers['X-Request'] = 'bench';
    return true;
  }
  function after_action() {
    if (method_response != null && method_response.error === 'invalid_grant') {
      throw new AuthRefreshException();
    }
    return true;
  }
`
	connectorMethods = `methods:
  - method: get
    verb: GET
    endpoint: /item
`
	methodScript = `    script: |
      function after_action() {
        action_data.count = method_response.items.length;
        return true;
      }
`
	stepScript = `function after_action() { method_response.count = action_data.count; return true; }`
)

func main() {
	hooks.HostMain()
	role := flag.String("role", "", "internal: api, pool, no scripts, handwritten, limit or worker")
	only := flag.String("only", "", "hooks, pool, large, held, client, limit, fair, idle, scale, cost or census: that part alone")
	flood := flag.Int("flood", 20_000, "steps of one account that another's have to pass")
	held := flag.Int("held", 10_000, "executions that wait for one credential")
	all := flag.Int("credentials", 100_000, "credentials that a census counts")
	steps := flag.Int("steps", 4000, "steps in each run")
	rounds := flag.Int("rounds", 3, "runs of each contender")
	seconds := flag.Int("seconds", 10, "for which a rate limit, an idle process, or each number of processes is measured")
	concurrency := flag.Int("concurrency", 50, "steps at once")
	latency := flag.Duration("latency", 200*time.Millisecond, "of the API of the part scale")
	queues := flag.Int("queues", 1, "that the steps of the part scale are spread over")
	payload := flag.Int("payload", 1000, "bytes of bodies and answers of the parts scale and cost")
	redisAddr := flag.String("redis", "", "internal")
	api := flag.String("api", "", "internal")
	flag.Parse()
	var err error
	switch *role {
	case "api":
		err = serveAPI()
	case "pool":
		err = runPool(*redisAddr, *api, *steps, *concurrency, true)
	case "no scripts":
		err = runPool(*redisAddr, *api, *steps, *concurrency, false)
	case "handwritten":
		err = runHandwritten(*redisAddr, *api, *steps, *concurrency)
	case "large api":
		err = serveLarge()
	case "worker":
		err = runWorker(*redisAddr, *concurrency, *queues)
	case "limit":
		err = runLimited(*redisAddr)
	default:
		if method, ok := strings.CutPrefix(*role, "large "); ok {
			err = runLarge(method, *redisAddr, *api, *steps)
			break
		}
		part := func(name string, measure func() error) {
			if err == nil && (*only == "" || *only == name) {
				err = measure()
			}
		}
		part("hooks", func() error { return compareHooks(*rounds) })
		part("pool", func() error { return compare(*steps, *rounds, *concurrency) })
		part("large", func() error { return measureLarge(*rounds) })
		part("held", func() error { return measureHeld(*held, *concurrency) })
		part("client", func() error { return measureClient(*held, *concurrency) })
		part("limit", func() error { return measureLimit(*seconds, *rounds) })
		part("idle", func() error { return measureIdle(*seconds, *rounds, *concurrency) })
		part("scale", func() error { return measureScale(*seconds, *rounds, *concurrency, *queues, *payload, *latency) })
		part("cost", func() error { return measureCost(*steps, *rounds, *concurrency, *payload) })
		part("fair", func() error { return measureFair(*flood, *concurrency) })
		part("census", func() error { return measureCensus(*all, *held) })
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type figures struct{ PerSecond, CPUMicros float64 }

// startAPI starts a process that is the API, and returns its address.
func startAPI(self, role string) (url string, stop func(), err error) {
	api := exec.Command(self, "-role", role)
	api.Stderr = os.Stderr
	out, err := api.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	if err := api.Start(); err != nil {
		return "", nil, err
	}
	stop = func() { _ = api.Process.Kill(); _ = api.Wait() }
	if _, err := fmt.Fscanln(out, &url); err != nil {
		stop()
		return "", nil, err
	}
	return url, stop, nil
}

func compare(steps, rounds, concurrency int) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	url, stop, err := startAPI(self, "api")
	if err != nil {
		return err
	}
	defer stop()
	all := map[string][]figures{}
	for i := range rounds {
		for _, who := range []string{"handwritten", "no scripts", "pool"} {
			f, err := run(self, who, url, steps, concurrency)
			if err != nil {
				return fmt.Errorf("%s: %w", who, err)
			}
			all[who] = append(all[who], f)
			fmt.Printf("round %d  %-12s %7.0f steps/s  %6.0f µs CPU per step\n", i+1, who, f.PerSecond, f.CPUMicros)
		}
	}
	var speed, cpu, bare, share []float64
	for i := range rounds {
		speed = append(speed, all["pool"][i].PerSecond/all["handwritten"][i].PerSecond)
		cpu = append(cpu, all["pool"][i].CPUMicros/all["handwritten"][i].CPUMicros)
		bare = append(bare, all["no scripts"][i].CPUMicros/all["handwritten"][i].CPUMicros)
		share = append(share, 1-all["no scripts"][i].CPUMicros/all["pool"][i].CPUMicros)
	}
	fmt.Printf("\npool / handwritten: steps per second %.2f (aim 1.0), CPU per step %.2f, without scripts %.2f\n", median(speed), median(cpu), median(bare))
	fmt.Printf("hooks' share of a step's CPU: %.2f (aim 0.33): before_action and after_action at three levels\n", median(share))
	fmt.Printf("(medians of %d rounds, %d steps each, 1 KB answers)\n", rounds, steps)
	return nil
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// run measures one contender in a process of its own.
func run(self, who, api string, steps, concurrency int) (figures, error) {
	sock, stop, err := startRedis()
	if err != nil {
		return figures{}, err
	}
	defer stop()
	cmd := exec.Command(self, "-role", who, "-redis", sock, "-api", api, "-steps", strconv.Itoa(steps), "-concurrency", strconv.Itoa(concurrency))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return figures{}, err
	}
	var seconds, warm float64
	if _, err := fmt.Sscan(string(out), &seconds, &warm); err != nil {
		return figures{}, fmt.Errorf("%q: %w", out, err)
	}
	total := (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	return figures{PerSecond: float64(steps) / seconds, CPUMicros: (total - warm) / float64(steps) * 1e6}, nil
}

// startRedis starts a redis-server with the settings that are shipped.
func startRedis() (sock string, stop func(), err error) {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return "", nil, err
	}
	sock = filepath.Join(dir, "redis.sock")
	server := exec.Command("redis-server", "--port", "0", "--unixsocket", sock, "--dir", dir, "--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction")
	if err := server.Start(); err != nil {
		os.RemoveAll(dir)
		return "", nil, fmt.Errorf("redis-server: %w", err)
	}
	for range 500 {
		if c, err := net.Dial("unix", sock); err == nil {
			c.Close()
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return sock, func() { _ = server.Process.Kill(); _ = server.Wait(); os.RemoveAll(dir) }, nil
}

// spent is this process's CPU time so far: what setting the stage cost.
func spent() float64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

func serveAPI() error {
	body := []byte(`{"id":1,"items":["` + strings.Repeat("x", 1000) + `"]}`)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("http://%s\n", l.Addr())
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(body)
	}))
}

func client(sock string, protocol int) redis.UniversalClient {
	return redis.NewClient(&redis.Options{Network: "unix", Addr: sock, PoolSize: 64, Protocol: protocol})
}

func runPool(sock, api string, steps, concurrency int, scripts bool) error {
	ctx := context.Background()
	rdb := client(sock, 2) // as the worker's own
	rdb.AddHook(redismetrics.New())
	file, script := connectorYAML+connectorMethods, ""
	if scripts {
		file, script = connectorYAML+connectorScript+connectorMethods+methodScript, stepScript
	}
	var done atomic.Int64
	finished := make(chan struct{})
	h, err := openHouse(rdb, file, concurrency, func(m jobs.Moment) {
		switch m.What {
		case "failed", "retried", "parked":
			fmt.Fprintln(os.Stderr, m.What, m.Text)
		case "succeeded":
			if done.Add(1) == int64(steps) {
				close(finished)
			}
		}
	})
	if err != nil {
		return err
	}
	defer h.engine.Close()
	batch := make([]*jobs.Step, steps)
	for i := range batch { // by accounts that are too small for an overflow queue
		id := fmt.Sprint("c", i/100)
		if i%100 == 0 {
			if err := h.put(fmt.Sprintf(`{"credential_id":%q,"connector":"bench","api_key":"k-0123456789","properties":{"base":%q}}`, id, api)); err != nil {
				return err
			}
		}
		batch[i] = &jobs.Step{CredentialID: id, Method: "get", Script: script}
	}
	for _, r := range jobs.NewClient(rdb).EnqueueBatch(ctx, batch) {
		if r.Err != nil {
			return r.Err
		}
	}
	warm, begun := spent(), time.Now()
	if err := h.pool.Start(); err != nil {
		return err
	}
	<-finished
	fmt.Println(time.Since(begun).Seconds(), warm)
	h.pool.Shutdown()
	return nil
}

// house is a pool and what it stands on.
type house struct {
	key         string // that several processes share; empty: one of its own
	concurrency int
	queues      map[string]int // nil: steps=1
	observe     func(jobs.Moment)
	numbers     prometheus.Registerer // nil: nobody reads them

	store  *credentials.Store
	engine *hooks.Engine
	pool   *jobs.Pool
}

func openHouse(rdb redis.UniversalClient, file string, concurrency int, observe func(jobs.Moment)) (*house, error) {
	return openHouseFor(rdb, file, house{concurrency: concurrency, observe: observe})
}

func openHouseFor(rdb redis.UniversalClient, file string, of house) (*house, error) {
	h := &of
	if h.key == "" {
		h.key = credentials.NewKey()
	}
	keys, err := credentials.ParseKeys(h.key)
	if err != nil {
		return nil, err
	}
	h.store = credentials.NewStore(rdb, keys)
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "bench.yaml"), []byte(file), 0o600); err != nil {
		return nil, err
	}
	catalog, findings, err := definition.Load(dir)
	if err != nil {
		return nil, err
	}
	for _, f := range findings {
		if !f.Hint {
			return nil, fmt.Errorf("%s", f)
		}
	}
	if h.engine, err = hooks.New(hooks.Config{}); err != nil {
		return nil, err
	}
	caller, err := connectors.NewCaller(connectors.CallerConfig{Engine: h.engine, AllowPrivate: true, AuthStyles: h.store})
	if err != nil {
		return nil, err
	}
	h.pool, err = jobs.NewPool(jobs.PoolConfig{Redis: rdb, Store: h.store, Catalog: catalog, Concurrency: h.concurrency, Queues: h.queues, Caller: caller, Observe: h.observe, Registerer: h.numbers})
	return h, err
}

func (h *house) put(raw string) error {
	in, err := credentials.DecodeInput([]byte(raw))
	if err != nil {
		return err
	}
	_, _, err = h.store.Put(context.Background(), in, false)
	return err
}

func runHandwritten(sock, api string, steps, concurrency int) error {
	rdb := client(sock, 0) // the library's default
	c := asynq.NewClientFromRedisClient(rdb)
	slots := make(chan error, 64)
	for range 64 {
		slots <- nil
	}
	for i := range steps {
		if err := <-slots; err != nil {
			return err
		}
		go func() {
			_, err := c.Enqueue(asynq.NewTask("step", []byte(`{"credential_id":"c","method":"get"}`)), asynq.TaskID(strconv.Itoa(i)), asynq.Queue("steps"), asynq.Retention(24*time.Hour), asynq.Timeout(5*time.Minute))
			slots <- err
		}()
	}
	for range 64 {
		if err := <-slots; err != nil {
			return err
		}
	}
	hc := &http.Client{Timeout: time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	var done atomic.Int64
	finished := make(chan struct{})
	server := asynq.NewServerFromRedisClient(rdb, asynq.Config{Concurrency: concurrency, Queues: map[string]int{"steps": 1}, LogLevel: asynq.FatalLevel})
	warm, begun := spent(), time.Now()
	err := server.Start(asynq.HandlerFunc(func(ctx context.Context, t *asynq.Task) error {
		var step struct{ Method string }
		if err := json.Unmarshal(t.Payload(), &step); err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, api+"/item", nil)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer k-0123456789")
		res, err := hc.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(io.LimitReader(res.Body, 10<<20))
		if err != nil || res.StatusCode != http.StatusOK || !json.Valid(body) {
			return fmt.Errorf("status %d: %w", res.StatusCode, err)
		}
		if _, err := t.ResultWriter().Write(body); err != nil {
			return err
		}
		if done.Add(1) == int64(steps) {
			close(finished)
		}
		return nil
	}))
	if err != nil {
		return err
	}
	<-finished
	fmt.Println(time.Since(begun).Seconds(), warm)
	server.Shutdown()
	return nil
}
