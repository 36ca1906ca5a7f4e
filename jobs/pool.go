package jobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hibiken/asynq"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/semaphore"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/spans"
)

// PoolConfig is what a Pool needs. Redis, Store, Catalog and Caller are required.
type PoolConfig struct {
	Redis redis.UniversalClient // stays the caller's to close
	// Waiting returns a client of the same Redis with so many connections, for
	// idle workers that wait there. Without it the pool makes one itself; that of
	// a Redis with sentinels it cannot, and asks again and again instead.
	Waiting func(connections int) redis.UniversalClient
	Store   *credentials.Store
	Catalog *definition.Catalog
	Caller  *connectors.Caller
	// Concurrency is how many steps run at once in this process; 0: 50.
	// Refreshes have workers of their own.
	Concurrency int
	// Queues are names and weights; nil: steps=1.
	Queues map[string]int
	// Hold is how long an execution may wait for its credential; 0: 72 h.
	Hold time.Duration
	// ShutdownTimeout is how long Shutdown waits for running steps; 0: 25 s.
	ShutdownTimeout time.Duration
	DenyStepScripts bool
	// Build says which build this is, for people.
	Build string
	// NotifyURL is told of credentials that fail, are revoked or misconfigured,
	// and recover; empty: nobody is. NotifySecret signs what is told.
	NotifyURL    string
	NotifySecret credentials.Secret
	Logger       *slog.Logger          // nil: discards
	Registerer   prometheus.Registerer // nil: no metrics
	// TracerProvider makes the spans of attempts and refreshes; nil: the global one.
	TracerProvider trace.TracerProvider
	// Observe, if set, is told of each moment in an execution's life, from
	// many goroutines.
	Observe func(Moment)
}

// Moment is something that happened to an execution or a credential.
type Moment struct {
	// What: called refused parked refreshing refreshed refresh_failed resumed
	// looks (at a credential that was refused) held succeeded warning failed
	// cancelled deferred retried.
	What         string
	ExecutionID  string
	CredentialID string
	Connector    string
	Method       string
	Text         string
	At           time.Time
}

// Pool takes steps and refreshes from Redis and runs them.
type Pool struct {
	cfg      PoolConfig
	rdb      redis.UniversalClient
	client   *Client
	log      *slog.Logger
	tracer   trace.Tracer
	metrics  *metrics
	resumer  *resumer
	notifier *notifier // nil: nobody is told
	asked    sync.Map  // refreshes this process asked for, by time slot

	askedCount atomic.Int64

	awake     awake
	waker     *waker
	line      *lineKeeper
	canceller *canceller
	sitting   chan struct{}       // who sits a short wait for a rate limit out
	pagesRoom *semaphore.Weighted // bytes of pages that are put together at once

	gate     *gate // through which tasks are taken
	lanes    []*asynq.Server
	base     context.Context
	cancel   context.CancelFunc
	loops    sync.WaitGroup
	handlers sync.WaitGroup // of tasks
	stop     chan struct{}
	wake     chan struct{} // has the sweeper look at once, where it is in this process

	fault     atomic.Pointer[workerFault] // the last one
	redisSeen atomic.Int64                // ms of the last write that it took
	redisText atomic.Pointer[string]      // why it took none
	redisBack atomic.Int64                // ms of the first answer after it was away
	draining  atomic.Bool
	behind    atomic.Pointer[FormatError] // what is stored is too new for this build
	wrongKeys bool

	sensitive credentials.SensitiveParameters // of all connectors

	shares sync.Map // of the refreshers, by connector: *share
}

// workerFault is this worker's own fault, as /readyz tells it.
type workerFault struct {
	text string
	at   time.Time
}

// faultStays is how long a fault is told of that has not come again: the task
// that showed it may have gone to another worker.
const faultStays = 15 * time.Second

// refreshShutdown is how long Shutdown waits for refreshes, whatever it does
// for steps: an answer that is not waited for is a token lost.
const refreshShutdown = 75 * time.Second

// maxLanes is how many dequeue loops a process runs at most: one asynq.Server
// has one, and so takes one task per round trip, whatever its concurrency.
const maxLanes = 8

// NewPool returns a pool that has not started.
func NewPool(cfg PoolConfig) (*Pool, error) {
	if cfg.Redis == nil || cfg.Store == nil || cfg.Catalog == nil || cfg.Caller == nil {
		return nil, errors.New("a pool needs Redis, Store, Catalog and Caller")
	}
	if cfg.Concurrency == 0 {
		cfg.Concurrency = 50
	}
	if len(cfg.Queues) == 0 {
		cfg.Queues = map[string]int{QueueSteps: 1}
	}
	for q := range cfg.Queues {
		if q == QueueRefresh || IsOverflow(q) {
			return nil, fmt.Errorf("queue %q is reserved", q)
		}
	}
	if cfg.Hold == 0 {
		cfg.Hold = 72 * time.Hour
	}
	if cfg.ShutdownTimeout == 0 {
		cfg.ShutdownTimeout = 25 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Pool{cfg: cfg, rdb: cfg.Redis, client: NewClient(cfg.Redis, WithTracerProvider(cfg.TracerProvider)), log: spans.Logger(cfg.Logger), tracer: spans.Tracer(cfg.TracerProvider), stop: make(chan struct{}), wake: make(chan struct{}, 1)}
	p.resumer, p.waker, p.line = newResumer(p), newWaker(p), newLineKeeper(p)
	p.canceller = newCanceller(p)
	p.sitting = make(chan struct{}, cfg.Concurrency/4)
	p.sensitive = cfg.Catalog.Sensitive()
	p.pagesRoom = semaphore.NewWeighted(cfg.Caller.MaxPages())
	var err error
	if cfg.NotifyURL != "" {
		if p.notifier, err = newNotifier(p); err != nil {
			return nil, err
		}
	}
	if p.metrics, err = newMetrics(p); err != nil {
		return nil, err
	}
	p.base, p.cancel = context.WithCancel(context.Background())
	p.gate = newGate(p.rdb, cfg.Waiting, cfg.Queues, cfg.Logger)
	lanes := min(maxLanes, cfg.Concurrency)
	for i := range lanes {
		share := cfg.Concurrency / lanes
		if i < cfg.Concurrency%lanes {
			share++
		}
		conf := p.serverConfig(share, allLevels(cfg.Queues))
		if i > 0 { // one of them clears what was completed
			conf.JanitorInterval = 24 * time.Hour
		}
		p.lanes = append(p.lanes, asynq.NewServerFromRedisClient(p.gate, conf))
	}
	return p, nil
}

func (p *Pool) serverConfig(concurrency int, queues map[string]int) asynq.Config {
	return asynq.Config{
		Concurrency:              concurrency,
		Queues:                   queues,
		BaseContext:              func() context.Context { return p.base },
		TaskCheckInterval:        50 * time.Millisecond, // default 1 s
		DelayedTaskCheckInterval: delayedCheck,          // default 5 s
		RetryDelayFunc:           retryDelay,
		IsFailure:                isFailure,
		ShutdownTimeout:          p.cfg.ShutdownTimeout,
		Logger:                   asynqLogger{p.log},
		LogLevel:                 asynq.WarnLevel,
	}
}

// WrongKeys says, before Start, that the keys are not those of this Redis:
// refreshes are left to workers that can make them.
func (p *Pool) WrongKeys() { p.wrongKeys = true }

// Start begins to take tasks. It returns once the loops run. A *FormatError says
// that this build may not work on what is stored: nothing was touched, and it
// may be tried again.
func (p *Pool) Start() error {
	entering, cancel := context.WithTimeout(p.base, formatEvery)
	defer cancel()
	if err := p.enterFormat(entering); err != nil {
		return err
	}
	p.noteBuild(entering)
	p.keepQueuesKnown(p.base)
	if p.notifier != nil {
		p.notifier.want(p.base) // before anything happens that is to be told
	}
	if !p.wrongKeys { // it seals nothing then
		p.noteSealing()
		p.loops.Go(p.keepSealingKnown)
	}
	p.awake.look()
	p.gate.start(p.base)
	var started []*asynq.Server
	if !p.wrongKeys {
		conf := p.serverConfig(refreshers, map[string]int{QueueRefresh: 1})
		conf.ShutdownTimeout = max(conf.ShutdownTimeout, refreshShutdown)
		refresh := asynq.NewServerFromRedisClient(p.gate, conf)
		if err := refresh.Start(p.guard(p.processRefresh)); err != nil {
			return fmt.Errorf("starting the refresh lane: %w", err)
		}
		started = append(started, refresh)
	}
	for _, lane := range p.lanes {
		if err := lane.Start(p.guard(p.ProcessTask)); err != nil {
			for _, s := range started {
				s.Shutdown()
			}
			return fmt.Errorf("starting a lane: %w", err)
		}
		started = append(started, lane)
	}
	p.lanes = started
	p.loops.Go(func() { p.every(2*time.Second, nil, p.keepQueuesKnown) })
	p.loops.Go(func() { p.every(formatEvery, nil, p.lookAtFormat) })
	p.loops.Go(func() { p.every(sweepEvery, p.wake, p.unlessBehind(p.resumer.sweep)) })
	p.loops.Go(func() { p.every(gateEvery, nil, p.gate.look) })
	p.loops.Go(func() { p.every(2*time.Second, nil, p.confirm) })
	p.loops.Go(p.keepCensus)
	p.loops.Go(func() { p.waker.run(p.base) })
	p.loops.Go(p.keepPlaces)
	p.loops.Go(p.canceller.hear)
	p.loops.Go(func() { p.awake.run(p.base) })
	if p.notifier != nil {
		p.loops.Go(func() { p.every(notifyEvery, nil, p.unlessBehind(p.notifier.run)) })
	}
	return nil
}

// guard keeps a panic of ours from being charged to anyone at once: like the
// death of a worker it counts against the execution ten times in a row.
func (p *Pool) guard(h func(context.Context, *asynq.Task) error) asynq.HandlerFunc {
	return func(ctx context.Context, t *asynq.Task) (err error) {
		if sc := spans.Read(t.Headers()); sc.IsValid() {
			ctx = trace.ContextWithRemoteSpanContext(ctx, sc)
		}
		p.handlers.Add(1)
		defer p.handlers.Done()
		defer func() {
			if r := recover(); r != nil {
				p.log.ErrorContext(ctx, "a task made this worker panic", "type", t.Type(), "task_id", taskID(ctx), "panic", fmt.Sprintf("%T", r), "stack", string(debug.Stack()))
				err = &waitError{why: whyWorker, text: "it panicked on this task", delay: 5 * time.Second, fault: true}
			}
		}()
		if newer := p.behind.Load(); newer != nil { // it was taken just before
			err = p.workerFault(newer.Error())
		} else {
			err = h(ctx, t)
		}
		var w *waitError
		if errors.As(err, &w) && w.untold {
			p.log.ErrorContext(ctx, "worker fault", "type", t.Type(), "task_id", taskID(ctx), "text", w.text)
		}
		return err
	}
}

// unlessBehind leaves something be while what is stored is too new for this build.
func (p *Pool) unlessBehind(do func(context.Context)) func(context.Context) {
	return func(ctx context.Context) {
		if p.behind.Load() == nil {
			do(ctx)
		}
	}
}

// wakeSweeper has it look now, and not in a few seconds.
func (p *Pool) wakeSweeper() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *Pool) every(d time.Duration, wake <-chan struct{}, do func(context.Context)) {
	t := time.NewTicker(d)
	defer t.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-t.C:
		case <-wake:
		}
		ctx, cancel := context.WithTimeout(p.base, time.Minute)
		do(ctx)
		cancel()
	}
}

// keepPlaces renews the places that calls hold, also while the pool drains.
func (p *Pool) keepPlaces() {
	t := time.NewTicker(placeRenew)
	defer t.Stop()
	for {
		select {
		case <-p.base.Done():
			return
		case <-t.C:
			ctx, cancel := context.WithTimeout(p.base, placeRenew)
			p.line.renew(ctx)
			cancel()
		}
	}
}

// keepSealingKnown tells Redis with which key this worker seals, and what clients
// are to seal, until nothing here seals any more: while it drains, a refresh may
// still save.
func (p *Pool) keepSealingKnown() {
	t := time.NewTicker(credentials.SealingEvery)
	defer t.Stop()
	for {
		select {
		case <-p.base.Done():
			return
		case <-t.C:
			p.noteSealing()
		}
	}
}

func (p *Pool) noteSealing() {
	ctx, cancel := context.WithTimeout(p.base, 2*time.Second)
	defer cancel()
	if err := p.cfg.Store.NoteSealing(ctx); err != nil {
		p.log.Debug("redis does not take with which key this worker seals", "error", err.Error())
	}
	var keys *credentials.StepKeyError
	var newer *credentials.NewerError
	if err := p.cfg.Store.OfferStepSealing(ctx, p.sensitive); errors.As(err, &keys) || errors.As(err, &newer) {
		p.log.Error("steps with sensitive parameters wait", "text", err.Error())
	} else if err != nil {
		p.log.Debug("redis does not take what clients are to seal", "error", err.Error())
	}
}

// keepQueuesKnown tells Redis the names of our queues again and again: asynq
// does so once per process, and without them no task can be resumed.
func (p *Pool) keepQueuesKnown(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	names := []any{QueueRefresh}
	for q := range allLevels(p.cfg.Queues) {
		names = append(names, q)
	}
	err := p.rdb.SAdd(ctx, "asynq:queues", names...).Err()
	if err == nil {
		err = p.cfg.Store.NoteServers(ctx) // of a cluster each, whichever has the queues' names
	}
	if err == nil {
		now := time.Now().UnixMilli()
		if last := p.redisSeen.Swap(now); last != 0 && now-last > redisGap.Milliseconds() {
			p.redisBack.Store(now)
		}
	} else if p.base.Err() == nil {
		text := "redis does not answer"
		var reply redis.Error
		if errors.As(err, &reply) { // it answers: OOM, READONLY, NOPERM
			text = "redis refuses writes: " + clip(err.Error(), 200)
		}
		p.redisText.Store(&text)
		p.log.Warn("redis cannot be used", "text", text, "error", err.Error())
	}
}

// confirm sees to it that renewed tokens are in Redis' file, and on a replica.
func (p *Pool) confirm(ctx context.Context) {
	if err := p.cfg.Store.Confirm(ctx); err != nil && p.base.Err() == nil {
		p.log.Warn("renewed tokens cannot be confirmed yet", "error", err.Error())
	}
}

// confirmLast does so for what was renewed just before this process ends.
func (p *Pool) confirmLast() {
	ctx, cancel := context.WithTimeout(detached(p.base), 2*time.Second)
	defer cancel()
	if err := p.cfg.Store.ConfirmAll(ctx); err != nil {
		p.log.Warn("renewed tokens could not be confirmed", "error", err.Error())
	}
}

// redisGap is how long Redis may be silent before it counts as away.
const redisGap = 4 * time.Second

// settling says that Redis was away a moment ago, or that another server than
// before has a credential: some worker may still hold a token in memory that it
// is about to save, and a refresh now would send the one that is spent.
func (p *Pool) settling(ctx context.Context, credential string) bool {
	now := time.Now()
	if now.UnixMilli()-p.redisSeen.Load() > redisGap.Milliseconds() || now.UnixMilli()-p.redisBack.Load() < 2*redisGap.Milliseconds() {
		return true
	}
	since, err := p.cfg.Store.ServerSince(ctx, credential)
	return err != nil || now.Sub(since) < 2*redisGap
}

// Shutdown stops taking tasks, waits for the running ones up to
// ShutdownTimeout, and puts what is left back. Refreshes under way are waited
// for longer.
func (p *Pool) Shutdown() {
	if p.draining.Swap(true) {
		return
	}
	close(p.stop)
	p.gate.close()
	var wg sync.WaitGroup
	for _, lane := range p.lanes {
		wg.Add(1)
		go func() { defer wg.Done(); lane.Shutdown() }()
	}
	wg.Wait()
	p.cancel()
	p.loops.Wait()
	p.handlersEnd()
	p.waker.last()
	p.confirmLast()
	if p.notifier != nil {
		p.notifier.leave()
	}
}

// handlersEnd waits a moment for those that asynq waits for no longer: their
// tasks are put back, and that is still to be told.
func (p *Pool) handlersEnd() {
	ended := make(chan struct{})
	go func() { p.handlers.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(handlersLinger):
	}
}

// handlersLinger is longer than it takes to see that one's context has ended.
const handlersLinger = time.Second

// Ready is nil while the pool reads its queues; else it says in a line why not.
func (p *Pool) Ready() error {
	if p.draining.Load() {
		return errors.New("draining")
	}
	if ms := p.redisSeen.Load(); time.Since(time.UnixMilli(ms)) > 6*time.Second {
		if text := p.redisText.Load(); text != nil {
			return errors.New(*text)
		}
		return errors.New("redis does not answer")
	}
	if newer := p.behind.Load(); newer != nil {
		return errors.New("worker fault: " + newer.Error())
	}
	if f := p.fault.Load(); f != nil && time.Since(f.at) < faultStays {
		return errors.New("worker fault: " + f.text)
	}
	return nil
}

// reads says that a queue of asynq is one that this pool takes steps from.
func (p *Pool) reads(queue string) bool {
	for q := range p.cfg.Queues {
		if ofQueue(queue, q) {
			return true
		}
	}
	return false
}

func (p *Pool) observe(m Moment, a *attempt) {
	if a != nil {
		a.event(m)
	}
	if p.cfg.Observe == nil {
		return
	}
	if a != nil {
		m.ExecutionID, m.CredentialID, m.Method = a.id, a.step.CredentialID, a.step.Method
		if a.def != nil {
			m.Connector = a.def.Name
		}
	}
	m.At = time.Now()
	p.cfg.Observe(m)
}

// asynqLogger passes asynq's own warnings on.
type asynqLogger struct{ log *slog.Logger }

func (l asynqLogger) Debug(args ...any) { l.log.Debug("asynq", "text", fmt.Sprint(args...)) }
func (l asynqLogger) Info(args ...any)  { l.log.Debug("asynq", "text", fmt.Sprint(args...)) }
func (l asynqLogger) Warn(args ...any) {
	text := fmt.Sprint(args...)
	if strings.HasPrefix(text, "Retry exhausted") || strings.HasPrefix(text, "revoke task") {
		return // an execution that failed, or was cancelled: its own line has said so
	}
	l.log.Warn("asynq", "text", text)
}
func (l asynqLogger) Error(args ...any) { l.log.Error("asynq", "text", fmt.Sprint(args...)) }
func (l asynqLogger) Fatal(args ...any) { l.log.Error("asynq", "text", fmt.Sprint(args...)) }
