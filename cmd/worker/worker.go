package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/hooks"
	"github.com/stepworker/stepworker/internal/cli"
	"github.com/stepworker/stepworker/internal/otlp"
	"github.com/stepworker/stepworker/internal/spans"
	"github.com/stepworker/stepworker/jobs"
)

// Worker is one process of the pool, put together. The zero value but for
// its config is ready to Open.
type Worker struct {
	cfg     *config
	stderr  io.Writer
	observe func(jobs.Moment)

	Addr    string // of its HTTP server, once open
	rdb     redis.UniversalClient
	store   *credentials.Store
	catalog *definition.Catalog
	engine  *hooks.Engine
	caller  *connectors.Caller
	pool    *jobs.Pool
	log     *slog.Logger
	traces  *otlp.Traces
	server  *http.Server
	served  chan error
	// wrongKeys is set where this worker's keys are not those of its Redis, unfit
	// while what is stored is too new for this build.
	wrongKeys, unfit atomic.Pointer[error]
}

// Open connects, reads and starts everything but the taking of tasks. What it
// opened before an error, Close closes.
func (w *Worker) Open(ctx context.Context) error {
	c := w.cfg
	w.log = spans.Logger(c.log.Open(w.stderr))
	var err error
	name, _ := built()
	if w.traces, err = c.traces.Open(ctx, "worker", name, w.log); err != nil {
		return cli.Failed("traces: %v", err)
	}
	catalog, findings, err := definition.Load(c.connectors)
	if err != nil {
		return cli.Usage("--connectors: %v", err)
	}
	stop := false
	for _, f := range findings {
		if !f.Hint {
			stop = true
			fmt.Fprintln(w.stderr, f)
		}
	}
	if stop {
		return &cli.Error{Code: cli.ExitUsage}
	}
	w.catalog = catalog
	for _, text := range append(definition.UnknownPartners(c.partner, catalog), c.partnerAged...) {
		w.log.Warn("partner settings", "text", text)
	}
	var listener net.Listener
	if c.http != "" {
		if listener, err = net.Listen("tcp", c.http); err != nil {
			return cli.Usage("--http: %s cannot be listened on: it is in use, or no address of this machine", c.http)
		}
		w.Addr = listener.Addr().String()
		defer func() {
			if w.server == nil {
				listener.Close()
			}
		}()
	}
	c.redisOptions.Log = w.log
	if w.rdb, err = cli.Open(ctx, c.redisOptions); err != nil {
		return err
	}
	metrics := newMetrics(w)
	w.rdb.AddHook(metrics.redis)
	w.checkRedis(ctx)
	w.store = credentials.NewStore(w.rdb, c.keys)
	w.engine, err = hooks.New(hooks.Config{Hosts: c.hookHosts, MaxHosts: c.concurrency + 128, Timeout: c.timeout, Memory: c.memory, Logger: w.log,
		OnEvent: metrics.event})
	if err != nil {
		return cli.Failed("%v", err)
	}
	cc := c.callerConfig(ctx, w.rdb, w.Addr)
	cc.Engine, cc.AuthStyles, cc.Data, cc.Logger, cc.TracerProvider = w.engine, w.store, w.store, w.log, w.traces.Provider()
	cc.OnAnswer = metrics.answered
	if w.caller, err = connectors.NewCaller(cc); err != nil {
		return cli.Usage("%v", err)
	}
	w.pool, err = jobs.NewPool(jobs.PoolConfig{
		Redis: w.rdb, Waiting: c.redisOptions.Waiting, Store: w.store, Catalog: catalog, Caller: w.caller, Concurrency: c.concurrency, Queues: c.queueWeights, Hold: c.hold,
		ShutdownTimeout: c.shutdown, DenyStepScripts: c.stepScripts == "deny", NotifyURL: c.notifyURL, NotifySecret: c.notifySecret,
		Build: buildName(), Logger: w.log, Registerer: metrics, Observe: w.observe, TracerProvider: w.traces.Provider(),
	})
	if err != nil {
		return cli.Failed("%v", err)
	}
	if listener != nil {
		w.server = &http.Server{Handler: w.handler(metrics), ReadHeaderTimeout: 10 * time.Second}
		w.served = make(chan error, 1)
		go func() { w.served <- w.server.Serve(listener) }()
	}
	return nil
}

// Run takes tasks until ctx is done, then drains.
func (w *Worker) Run(ctx context.Context) error {
	if began, err := w.start(ctx); err != nil || !began {
		return err
	}
	w.always().Info("ready", "http", w.listens())
	watch, stop := context.WithCancel(context.WithoutCancel(ctx)) // until the last step has ended
	var watching sync.WaitGroup
	watching.Go(func() { w.keepRedisForbidden(watch) })
	watching.Go(func() { w.tellSystemd(ctx) })
	defer watching.Wait()
	defer stop()
	select {
	case <-ctx.Done():
	case err := <-w.served:
		if err != nil && !errors.Is(err, http.ErrServerClosed) {
			w.pool.Shutdown()
			return cli.Failed("http: %v", err)
		}
	}
	w.log.Info("draining", "timeout", w.cfg.shutdown.String())
	w.notifySystemd(daemon.SdNotifyStopping)
	end := time.Now().Add(w.cfg.shutdown)
	w.pool.Shutdown()
	w.traces.Close(min(max(time.Until(end), leastFlush), mostFlush))
	return nil
}

// nodesEvery is how soon scripts can no longer reach a server that was added to
// Redis.
const nodesEvery = 5 * time.Second

// keepRedisForbidden keeps every server of Redis out of the reach of scripts:
// there may be more of them than at the start.
func (w *Worker) keepRedisForbidden(ctx context.Context) {
	t := time.NewTicker(nodesEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			w.caller.Forbid(w.cfg.redisOptions.Nodes(ctx, w.rdb))
		}
	}
}

// How long a drained worker may take to export its last spans: what the drain
// has left of its time, within these.
const (
	leastFlush = time.Second
	mostFlush  = 5 * time.Second
)

// always is the log of what is said at any level.
func (w *Worker) always() *slog.Logger {
	if w.log.Enabled(context.Background(), slog.LevelInfo) {
		return w.log
	}
	l := *w.cfg.log
	l.Level = "info"
	return l.Open(w.stderr)
}

// Close closes what Open opened.
func (w *Worker) Close() {
	if w.server != nil {
		_ = w.server.Close()
	}
	if w.caller != nil {
		w.caller.Close()
	}
	if w.engine != nil {
		_ = w.engine.Close()
	}
	if w.rdb != nil {
		_ = w.rdb.Close()
	}
	w.traces.Close(leastFlush) // unless Run has
}

// checkRedis warns, loudly, of settings that lose executions, of each master.
func (w *Worker) checkRedis(ctx context.Context) {
	if cluster, ok := w.rdb.(*redis.ClusterClient); ok {
		_ = cluster.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error {
			w.checkServer(ctx, node, w.log.With("server", node.Options().Addr))
			return nil
		})
		return
	}
	w.checkServer(ctx, w.rdb, w.log)
}

func (w *Worker) checkServer(ctx context.Context, rdb redis.UniversalClient, log *slog.Logger) {
	policy, err := rdb.ConfigGet(ctx, "maxmemory-policy").Result()
	aof, err2 := rdb.ConfigGet(ctx, "appendonly").Result()
	if err != nil || err2 != nil {
		log.Info("redis: CONFIG is forbidden or unknown, so memory policy and append-only file were not checked")
		return
	}
	if p := policy["maxmemory-policy"]; p != "noeviction" {
		log.Warn("redis evicts keys under pressure, which loses executions: set maxmemory-policy noeviction", "policy", p)
	}
	if strings.EqualFold(aof["appendonly"], "no") {
		log.Warn("redis keeps no append-only file, so a restart of it loses executions and tokens: set appendonly yes")
	}
}
