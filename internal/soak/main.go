// Command soak kills workers at random moments, several of them at work side by
// side, and counts what is lost. Workers are real processes on a real
// redis-server; the provider is the sample one, whose tokens die all the time,
// and whose refresh tokens rotate. A person is played by this program: an
// account whose new token was lost with a worker is authorized again.
//
// It exits 1 if an execution was lost or did not succeed, or if a token was
// lost whose answer had arrived.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/sampleapi"
	"github.com/stepworker/stepworker/jobs"
)

const (
	accounts = 12
	// storing is how long after its answer a token may not be stored yet.
	storing = 250 * time.Millisecond
	// dying is how long a renewed token lives at least: one that dies again before
	// it was used counts as a renewal that did not help, and rightly ends a step.
	dying = 5 * time.Second
)

func main() {
	kills := flag.Int("kills", 100, "workers to kill")
	workers := flag.Int("workers", 5, "workers side by side")
	binary := flag.String("worker", "", "the worker to run; empty: it is built")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := soak(ctx, *binary, *kills, *workers); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		stop()
		os.Exit(1) //nolint:gocritic // the deferred stop has run
	}
}

type trial struct {
	dir, binary, redisURL, key string

	api    *sampleapi.Provider
	url    string
	store  *credentials.Store
	client *jobs.Client

	workers   []*exec.Cmd
	enqueued  []string
	excused   map[string]bool     // accounts whose token request a kill may have cut off, until they are put again
	died      [accounts]time.Time // when each account's token died last
	lost      int                 // tokens lost with a worker
	unexcused []string
}

func soak(ctx context.Context, binary string, kills, workers int) (failure error) {
	dir, err := os.MkdirTemp("", "soak")
	if err != nil {
		return err
	}
	defer func() {
		if failure == nil {
			os.RemoveAll(dir)
		} else {
			fmt.Fprintln(os.Stderr, "the workers' log and Redis' files stay in", dir)
		}
	}()
	t := &trial{dir: dir, binary: binary, key: credentials.NewKey(), api: sampleapi.New(), excused: map[string]bool{}}
	if binary == "" {
		t.binary = filepath.Join(dir, "worker")
		build := exec.CommandContext(ctx, "go", "build", "-o", t.binary, "./cmd/worker")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("building the worker: %w: %s", err, out)
		}
	}
	stopRedis, err := t.startRedis()
	if err != nil {
		return err
	}
	defer stopRedis()
	server := httptest.NewServer(t.api)
	defer server.Close()
	t.url = server.URL
	t.api.SlowTokens(150 * time.Millisecond)
	for i := range accounts {
		if err := t.put(ctx, i); err != nil {
			return err
		}
	}
	defer func() {
		for _, w := range t.workers {
			_ = w.Process.Kill()
			_ = w.Wait()
		}
	}()
	for i := range workers {
		if err := t.start(i); err != nil {
			return err
		}
	}
	begun := time.Now()
	for k := range kills {
		for wait := time.Now().Add(300*time.Millisecond + rand.N(1500*time.Millisecond)); time.Now().Before(wait); {
			if err := t.live(ctx); err != nil {
				return err
			}
		}
		for _, account := range t.api.Asking(storing) {
			t.excused[account] = true
		}
		if err := t.kill(rand.IntN(workers)); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "\r%d of %d killed, %d executions enqueued, %d tokens lost ", k+1, kills, len(t.enqueued), t.lost)
	}
	fmt.Fprintln(os.Stderr)
	return t.settle(ctx, kills, begun)
}

// live is a moment of the trial: tokens and sessions die, steps come.
func (t *trial) live(ctx context.Context) error {
	i := rand.IntN(accounts)
	if time.Since(t.died[i]) > dying {
		t.died[i] = time.Now()
		if kind(i) == "ledger" {
			t.api.KillSessions()
		} else {
			t.api.KillToken(id(i))
		}
	}
	steps := make([]*jobs.Step, 1+rand.IntN(20))
	for j := range steps {
		steps[j] = &jobs.Step{CredentialID: id(i), Method: map[string]string{"crm": "list_contacts", "orders": "list_orders", "ledger": "list_entries"}[kind(i)]}
	}
	for _, r := range t.client.EnqueueBatch(ctx, steps) {
		if r.Err != nil {
			return r.Err
		}
		t.enqueued = append(t.enqueued, r.ExecutionID)
	}
	if err := t.reconnect(ctx); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(50*time.Millisecond + rand.N(100*time.Millisecond)):
		return nil
	}
}

// reconnect authorizes the accounts again whose tokens were lost.
func (t *trial) reconnect(ctx context.Context) error {
	for i := range accounts {
		s, err := t.store.Status(ctx, id(i))
		if err != nil {
			return err
		}
		if s.State != credentials.Revoked && s.State != credentials.Misconfigured {
			continue
		}
		t.lost++
		if !t.excused[id(i)] {
			t.unexcused = append(t.unexcused, fmt.Sprintf("%s: %s: %s", id(i), s.State, s.LastError))
		}
		delete(t.excused, id(i))
		if err := t.put(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// settle waits for every execution, and says how it went.
func (t *trial) settle(ctx context.Context, kills int, begun time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	done := make(chan error, 1)
	ended, failed := 0, []string(nil)
	go func() {
		done <- t.client.Wait(ctx, t.enqueued, func(r *jobs.Result) error {
			if ended++; r.Status != jobs.Succeeded {
				raw, _ := json.Marshal(r)
				failed = append(failed, string(raw))
			}
			return nil
		})
	}()
	var err error
	for waiting := true; waiting; {
		select {
		case err = <-done:
			waiting = false
		case <-time.After(time.Second):
			if err := t.reconnect(ctx); err != nil {
				return err
			}
		}
	}
	fmt.Printf("%d kills of %d workers in %.0f s: %d executions, %d lost, %d failed, %d served more than once; %d tokens lost with a worker, %d of them though their answer had arrived\n",
		kills, len(t.workers), time.Since(begun).Seconds(), len(t.enqueued), len(t.enqueued)-ended, len(failed), t.api.ServedTwice(), t.lost, len(t.unexcused))
	for _, text := range append(failed, t.unexcused...) {
		fmt.Println(text)
	}
	switch {
	case err != nil:
		return err
	case len(failed) > 0 || len(t.unexcused) > 0:
		return errors.New("it did not hold")
	}
	return nil
}

func id(i int) string { return fmt.Sprintf("account-%d", i) }

// kind is an account's connector. Only one has a session: the sample provider
// ends the others' at each login.
func kind(i int) string {
	if i == 0 {
		return "ledger"
	}
	return []string{"crm", "orders"}[i%2]
}

func (t *trial) put(ctx context.Context, i int) error {
	c := map[string]any{"credential_id": id(i), "connector": kind(i), "properties": map[string]any{"base": t.url}}
	if kind(i) == "ledger" {
		c["properties"] = map[string]any{"base": t.url, "username": sampleapi.Username, "password": sampleapi.Password}
	} else {
		access, refresh := t.api.Issue(id(i))
		c["client_id"], c["client_secret"] = sampleapi.ClientID, sampleapi.ClientSecret
		c["oauth2"] = map[string]any{"access_token": access, "refresh_token": refresh, "expires_in": 3600}
	}
	raw, err := json.Marshal(c)
	if err != nil {
		return err
	}
	in, err := credentials.DecodeInput(raw)
	if err != nil {
		return err
	}
	_, _, err = t.store.Put(ctx, in, false)
	return err
}

func (t *trial) start(i int) error {
	w := exec.Command(t.binary, "run", "--connectors", filepath.Join("deploy", "connectors"), "--allow-private-network", "--http", "", "--concurrency", "20", "--log-level", "error")
	w.Env = append(os.Environ(), "STEPWORKER_REDIS="+t.redisURL, "STEPWORKER_KEYS="+t.key)
	log, err := os.OpenFile(filepath.Join(t.dir, "worker.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	w.Stderr = log
	if err := w.Start(); err != nil {
		return err
	}
	if i == len(t.workers) {
		t.workers = append(t.workers, w)
	}
	t.workers[i] = w
	return nil
}

// kill ends a worker as kill -9 does, and starts another in its place.
func (t *trial) kill(i int) error {
	_ = t.workers[i].Process.Kill()
	_ = t.workers[i].Wait()
	return t.start(i)
}

func (t *trial) startRedis() (stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	l.Close()
	_, port, _ := strings.Cut(addr, ":")
	server := exec.Command("redis-server", "--port", port, "--bind", "127.0.0.1", "--dir", t.dir, "--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction")
	if err := server.Start(); err != nil {
		return nil, fmt.Errorf("redis-server: %w", err)
	}
	stop = func() { _ = server.Process.Kill(); _ = server.Wait() }
	t.redisURL = "redis://" + addr + "/0"
	rdb := redis.NewClient(&redis.Options{Addr: addr})
	for range 200 {
		if err = rdb.Ping(context.Background()).Err(); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		stop()
		return nil, fmt.Errorf("redis-server: %w", err)
	}
	keys, err := credentials.ParseKeys(t.key)
	if err != nil {
		stop()
		return nil, err
	}
	t.store, t.client = credentials.NewStore(rdb, keys), jobs.NewClient(rdb)
	return stop, nil
}
