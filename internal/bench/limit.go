package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/jobs"
)

const (
	limitWorkers   = 4
	limitPerSecond = 100
	keyEnv         = "STEPWORKER_BENCH_KEY" // a secret does not stand on a command line
	limitYAML      = `connector: bench
base_url: "{{base}}"
parameters: [{name: base, target: merge_field, property: account}]
rate_limits: [{requests: 100, per: 1s}]
methods: [{method: get, endpoint: /item}]
`
)

// measureLimit has several worker processes share a limit of so many requests
// a second, and counts what the API sees: how many in any second, wherever it
// begins, and how much of the allowance is used.
func measureLimit(seconds, rounds int) error {
	for i := range rounds {
		most, over, used, err := limitRound(seconds)
		if err != nil {
			return err
		}
		fmt.Printf("round %d  %d workers, %d per second, %d s: at most %d requests in a second (%d of its seconds had more than %d), %.1f %% of the allowance used\n",
			i+1, limitWorkers, limitPerSecond, seconds, most, over, limitPerSecond, 100*used)
	}
	return nil
}

func limitRound(seconds int) (most, over int, used float64, err error) {
	ctx := context.Background()
	sock, stop, err := startRedis()
	if err != nil {
		return 0, 0, 0, err
	}
	defer stop()
	var mu sync.Mutex
	var came []time.Time
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, 0, 0, err
	}
	defer l.Close()
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		now := time.Now()
		mu.Lock()
		came = append(came, now)
		mu.Unlock()
	})}
	go func() { _ = server.Serve(l) }()
	defer server.Close()
	self, err := os.Executable()
	if err != nil {
		return 0, 0, 0, err
	}
	key := credentials.NewKey()
	rdb := client(sock, 2)
	defer rdb.Close()
	h, err := openHouseFor(rdb, limitYAML, house{key: key, concurrency: 1})
	if err != nil {
		return 0, 0, 0, err
	}
	defer h.engine.Close()
	if err := h.put(fmt.Sprintf(`{"credential_id":"c","connector":"bench","properties":{"base":"http://%s"}}`, l.Addr())); err != nil {
		return 0, 0, 0, err
	}
	for range limitWorkers {
		w := exec.Command(self, "-role", "limit", "-redis", sock)
		w.Env = append(os.Environ(), keyEnv+"="+key)
		w.Stderr = os.Stderr
		out, err := w.StdoutPipe()
		if err != nil {
			return 0, 0, 0, err
		}
		if err := w.Start(); err != nil {
			return 0, 0, 0, err
		}
		defer func() { _ = w.Process.Kill(); _ = w.Wait() }()
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			return 0, 0, 0, fmt.Errorf("a worker does not start: %w", err)
		}
	}
	batch := make([]*jobs.Step, (seconds+2)*limitPerSecond)
	for i := range batch {
		batch[i] = &jobs.Step{CredentialID: "c", Method: "get"}
	}
	client := jobs.NewClient(rdb)
	var ids []string
	for _, r := range client.EnqueueBatch(ctx, batch) {
		if r.Err != nil {
			return 0, 0, 0, r.Err
		}
		ids = append(ids, r.ExecutionID)
	}
	if err := client.Wait(ctx, ids, func(*jobs.Result) error { return nil }); err != nil {
		return 0, 0, 0, err
	}
	mu.Lock()
	defer mu.Unlock()
	slices.SortFunc(came, time.Time.Compare)
	from := 0
	for i := range came {
		for came[i].Sub(came[from]) >= time.Second {
			from++
		}
		if most = max(most, i-from+1); i-from+1 > limitPerSecond {
			over++
		}
	}
	// The first hundred go at once, and of the last hundred nobody else is there
	// to take a turn that is missed: what counts is the pace between.
	last := len(came) - 1 - limitPerSecond
	took := came[last].Sub(came[limitPerSecond]).Seconds()
	return most, over, float64(last-limitPerSecond) / (took * limitPerSecond), nil
}

// runLimited is one of the workers.
func runLimited(sock string) error {
	rdb := client(sock, 2)
	h, err := openHouseFor(rdb, limitYAML, house{key: os.Getenv(keyEnv), concurrency: 50})
	if err != nil {
		return err
	}
	if err := h.pool.Start(); err != nil {
		return err
	}
	fmt.Println(strconv.Itoa(os.Getpid()))
	select {}
}
