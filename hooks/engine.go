package hooks

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"
)

// Config of an Engine; zero values mean the defaults given.
type Config struct {
	Hosts       int           // events at once, and hosts kept ready: number of cores
	MaxHosts    int           // hosts at most, those that wait for http_request included: 256
	Reserved    int           // more hosts, for Urgent events: 4
	Timeout     time.Duration // of one event: 60 s
	Memory      int64         // of one host's data segment, in bytes: 512 MiB
	MaxRequests int           // http_requests of one event: 50
	Logger      *slog.Logger
	// OnEvent, if set, is told of each event's duration.
	OnEvent func(event string, d time.Duration)
}

// MaxSource is the largest script, in bytes.
const MaxSource = 64 << 10

// eventsPerHost is after how many events a host is replaced.
const eventsPerHost = 5000

// Engine is a pool of hook hosts. It is safe for concurrent use.
type Engine struct {
	cfg   Config
	exe   string
	hosts chan struct{} // hosts alive

	mu     sync.Mutex
	line   line
	idle   []*host
	banned map[[32]byte]bool // sources that killed a host while they were compiled
	known  map[sourceKey]*scriptSource
	seen   int // bytes of sources that are known
	active map[*conversation]struct{}
	wanted int // events that wait until there may be another host
	closed bool
	stop   chan struct{} // ends watch
	done   chan struct{} // watch has ended

	deaths  atomic.Int64
	started atomic.Int64
	ready   atomic.Bool
}

// Stats of an Engine.
type Stats struct {
	Live, Idle int   // hosts now
	Started    int64 // hosts so far
	Deaths     int64 // of hosts, charged to an event
}

// New starts an engine and its first hosts.
func New(cfg Config) (*Engine, error) {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&cfg.Hosts, runtime.NumCPU())
	def(&cfg.MaxHosts, 256)
	def(&cfg.Reserved, 4)
	def(&cfg.MaxRequests, 50)
	if cfg.Timeout == 0 {
		cfg.Timeout = 60 * time.Second
	}
	if cfg.Memory == 0 {
		cfg.Memory = 512 << 20
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.MaxHosts = max(cfg.MaxHosts, cfg.Hosts+cfg.Reserved)
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	e := &Engine{
		cfg: cfg, exe: exe, banned: map[[32]byte]bool{}, known: map[sourceKey]*scriptSource{},
		active: map[*conversation]struct{}{}, stop: make(chan struct{}), done: make(chan struct{}),
		line: line{free: cfg.Hosts, reserved: cfg.Reserved}, hosts: make(chan struct{}, cfg.MaxHosts),
	}
	go e.watch()
	for range cfg.Hosts {
		e.hosts <- struct{}{}
		h, err := e.spawn()
		if err != nil {
			<-e.hosts
			_ = e.Close()
			return nil, err
		}
		e.idle = append(e.idle, h)
	}
	e.ready.Store(true)
	return e, nil
}

// Ready says that a host has answered.
func (e *Engine) Ready() bool { return e.ready.Load() }

// Stats counts hosts.
func (e *Engine) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	return Stats{Live: len(e.hosts), Idle: len(e.idle), Started: e.started.Load(), Deaths: e.deaths.Load()}
}

// Close ends all hosts; events that run fail.
func (e *Engine) Close() error {
	e.mu.Lock()
	idle := e.idle
	if !e.closed {
		close(e.stop)
	}
	e.idle, e.closed = nil, true
	e.mu.Unlock()
	<-e.done
	for _, h := range idle {
		e.end(h)
	}
	return nil
}

// Run runs one event. The error is an *Exception, a *ScriptError, a
// *LimitError, ctx's error, the Storage's, or that no host could be started.
// An Outcome comes beside the first two.
func (e *Engine) Run(ctx context.Context, ev *Event) (*Outcome, error) {
	begun := time.Now()
	if e.cfg.OnEvent != nil {
		defer func() { e.cfg.OnEvent(ev.Name, time.Since(begun)) }()
	}
	sources := make([]*scriptSource, len(ev.Scripts))
	for i := range ev.Scripts {
		sources[i] = e.source(&ev.Scripts[i], ev.Inline)
		if text := sources[i].wrong; text != "" {
			return nil, &LimitError{Event: ev.Name, Message: fmt.Sprintf("the script at %s level: %s", ev.Scripts[i].Level, text), Limit: LimitSource}
		}
	}
	e.mu.Lock()
	for i := range sources {
		if e.banned[sources[i].sum] {
			e.mu.Unlock()
			return nil, &LimitError{Event: ev.Name, Message: fmt.Sprintf("the script at %s level has ended a hook host before, while it was compiled", ev.Scripts[i].Level), Limit: LimitSource}
		}
	}
	e.mu.Unlock()
	var deadline time.Time // counts from the event's first turn
	for alone := false; ; alone = true {
		out, c, err := e.attempt(ctx, ev, sources, deadline, alone)
		deadline = c.deadline
		var limit *LimitError
		unread := c.broken != nil && !alone
		if c.died && (c.used || unread) && !c.asked && errors.As(err, &limit) && time.Now().Before(deadline) {
			// The host had run other events before, and what they left in its
			// memory, or somebody's kill, may have ended it, or it was dead
			// before it was given this one. Nothing of this event has left the
			// host: a fresh one tells whose fault it was.
			continue
		}
		if c.died {
			e.deaths.Add(1)
		}
		return out, err
	}
}

// scriptSource is what is known of a script's text before anybody compiles it.
type scriptSource struct {
	sum   [32]byte
	uses  *mentions
	wrong string // why nobody will
}

type sourceKey struct{ kind, text string }

// maxKnown is how many bytes of sources an engine keeps in mind.
const maxKnown = 16 << 20

func (e *Engine) source(s *Script, inline bool) *scriptSource {
	key := sourceKey{string(s.Level), s.Source}
	if inline {
		key.kind += " inline"
	}
	e.mu.Lock()
	known := e.known[key]
	e.mu.Unlock()
	if known != nil {
		return known
	}
	_, wrong := prescan(s.Source)
	made := &scriptSource{sum: sha256.Sum256([]byte(key.kind + "\x00" + s.Source)), uses: mentionsOf(s.Source), wrong: wrong}
	if wrong != "" || inline { // hardly ever the same text twice
		return made
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.seen += len(s.Source); e.seen > maxKnown {
		clear(e.known)
		e.seen = len(s.Source)
	}
	e.known[key] = made
	return made
}

// attempt runs an event on one host; alone, on one that has run no other.
func (e *Engine) attempt(ctx context.Context, ev *Event, sources []*scriptSource, deadline time.Time, alone bool) (*Outcome, *conversation, error) {
	c := &conversation{e: e, ev: ev, sources: sources, deadline: deadline, patient: !alone && patient(ev, sources), turn: make(chan turn, 2)}
	t, err := e.enter(ctx, c)
	if err == nil && t.behind != nil { // its event goes to a host on which another's still runs
		t, err = c.runBehind(ctx, t.behind)
	}
	if err == nil && t.lost {
		c.h, c.broken = nil, nil
		err = e.regain(ctx, c)
	}
	if err != nil {
		return nil, c, err
	}
	if c.deadline.IsZero() {
		c.deadline = time.Now().Add(e.cfg.Timeout)
	}
	if c.h == nil {
		if c.h, err = e.acquire(ctx, c, alone); err != nil {
			e.giveBack(c)
			return nil, c, err
		}
		c.encode()
		c.send()
	}
	c.used = c.h.events > 0
	e.begin(c)
	out, err, alive := c.run(ctx)
	e.finish(c, alive && c.h.events < eventsPerHost)
	return out, c, err
}

const (
	// longTurn is how long an event may use a processor before it counts as
	// slow: then another may run beside it, and it yields to all others.
	longTurn = 250 * time.Millisecond
	// killGrace is how much later than the host's own limit the worker's comes.
	killGrace = time.Second
	watchTick = 50 * time.Millisecond
)

// watch kills events that are over their limit, makes long ones yield, and
// takes away from behind them who waits there: one goroutine for all, because
// two timers an event cost more than many an event.
func (e *Engine) watch() {
	defer close(e.done)
	tick := time.NewTicker(watchTick)
	defer tick.Stop()
	for {
		select {
		case <-e.stop:
			return
		case now := <-tick.C:
			e.mu.Lock()
			for c := range e.active {
				if now.Sub(c.since) > watchTick {
					e.unfollow(c.h)
				}
				switch {
				case now.After(c.deadline.Add(killGrace)):
					c.timedOut.Store(true)
					_ = c.h.cmd.Process.Kill()
				case c.holds != nothing && now.Sub(c.since) > longTurn:
					c.slow.Store(true)
					e.release(c)
					yield(c.h.cmd.Process.Pid)
				}
			}
			e.mu.Unlock()
		}
	}
}

// acquire finds a host for an event that has its processor; alone, a fresh one.
// Where there are as many as there may be, the processor is given back: those
// that have the hosts may wait for it.
func (e *Engine) acquire(ctx context.Context, c *conversation, alone bool) (*host, error) {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil, errors.New("the hook engine is closed")
	}
	if n := len(e.idle); n > 0 && !alone {
		h := e.idle[n-1]
		e.idle = e.idle[:n-1]
		e.mu.Unlock()
		return h, nil
	}
	select {
	case e.hosts <- struct{}{}:
		e.mu.Unlock()
	default:
		if n := len(e.idle); n > 0 { // its place is for the fresh one
			go e.end(e.idle[n-1])
			e.idle = e.idle[:n-1]
		}
		e.wanted++
		e.release(c)
		e.mu.Unlock()
		var err error
		select {
		case e.hosts <- struct{}{}:
		case <-ctx.Done():
			err = ctx.Err()
		}
		e.mu.Lock()
		e.wanted--
		e.mu.Unlock()
		if err != nil {
			return nil, err
		}
		if err := e.regain(ctx, c); err != nil {
			<-e.hosts
			return nil, err
		}
	}
	h, err := e.spawn()
	if err != nil {
		<-e.hosts
		return nil, err
	}
	return h, nil
}

func (e *Engine) end(h *host) {
	h.kill()
	<-e.hosts
}

// host is the worker's side of a hook host.
type host struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	stderr *tail
	events int
	once   sync.Once
	room   int // of its input pipe, in bytes, less what an event's frame adds

	mu    sync.Mutex
	known map[[32]byte]bool // sources it has

	// Of the engine's lock:
	runner    *conversation
	followers []*conversation // their events are in the pipe already, or about to be
	tainted   bool            // what stands in its pipe is nobody's any more
}

// tail keeps the beginning of what a dying host says, to tell memory from stack.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if room := 512 - len(t.b); room > 0 {
		t.b = append(t.b, p[:min(room, len(p))]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b)
}

func (e *Engine) spawn() (*host, error) {
	cmd := exec.Command(e.exe)
	cmd.Args = []string{"stepworker hook host"}
	cmd.Env = []string{fmt.Sprintf("%s=%d,%d", hostEnv, e.cfg.Memory, e.cfg.MaxRequests), "GOMAXPROCS=1", "GOTRACEBACK=none"}
	cmd.Dir = "/"
	cmd.SysProcAttr = hostAttr()
	h := &host{cmd: cmd, known: map[[32]byte]bool{}, stderr: &tail{}}
	cmd.Stderr = h.stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	h.in, h.out, h.room = in, bufio.NewReaderSize(out, 16<<10), pipeRoom(in)-64
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("a hook host cannot be started: %w", err)
	}
	e.started.Add(1)
	watch := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
	defer watch.Stop()
	if kind, _, err := readFrame(h.out); err != nil || kind != frameHello {
		h.kill()
		return nil, fmt.Errorf("a hook host did not answer: is hooks.HostMain the first call of main? %s", h.stderr)
	}
	return h, nil
}

func (h *host) kill() {
	h.once.Do(func() {
		_ = h.cmd.Process.Kill()
		_ = h.in.Close()
		_ = h.cmd.Wait()
	})
}

// conversation is one event on one host.
type conversation struct {
	e        *Engine
	ev       *Event
	sources  []*scriptSource
	deadline time.Time
	h        *host
	frame    *frameWriter
	broken   error // it could not be sent
	tooMuch  bool  // it was not sent: no host would read it

	used     bool // the host has run other events before
	asked    bool // something left the host: the event cannot be run again
	died     bool
	slow     atomic.Bool
	timedOut atomic.Bool

	patient bool      // it may run behind another, and let another follow
	turn    chan turn // what it is given when it waits
	// Of the engine's lock:
	holds   hold
	since   time.Time // its turn began
	written bool      // its event is in the pipe
}

// runBehind sends the event to a host on which another's still runs, and waits
// for that one to end.
func (c *conversation) runBehind(ctx context.Context, h *host) (turn, error) {
	c.h = h
	c.encode()
	if len(c.frame.b) > min(maxBehind, h.room) {
		if c.e.decline(c) {
			return turn{lost: true}, nil
		}
		t := <-c.turn // that one has just ended
		if !t.lost {
			c.send()
		}
		return t, nil
	}
	c.send()
	c.e.sent(c)
	return c.e.wait(ctx, c)
}

// encode writes the event for its host.
func (c *conversation) encode() {
	c.frame = frames.Get().(*frameWriter)
	c.frame.b = c.frame.b[:0]
	timeout := c.e.cfg.Timeout
	if !c.deadline.IsZero() {
		timeout = max(time.Until(c.deadline), time.Millisecond)
	}
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	encodeEvent(c.frame, c.ev, timeout, c.e.cfg.Timeout, c.sources, c.h.known)
}

// send puts the event into its host's pipe.
func (c *conversation) send() {
	if c.tooMuch = len(c.frame.b) > maxFrame; !c.tooMuch {
		c.broken = writeFrame(c.h.in, frameEvent, c.frame.b)
	}
	if cap(c.frame.b) <= 1<<20 {
		frames.Put(c.frame)
	}
	c.frame = nil
}

var frames = sync.Pool{New: func() any { return &frameWriter{} }}

// run has the event run; alive says that the host can go on.
func (c *conversation) run(ctx context.Context) (out *Outcome, err error, alive bool) {
	e, h, ev := c.e, c.h, c.ev
	h.events++
	stop := context.AfterFunc(ctx, func() { _ = h.cmd.Process.Kill() })
	defer func() {
		if !stop() || c.slow.Load() || c.timedOut.Load() { // it is being killed, or has to yield for ever
			alive = false
		}
	}()
	var compiling *[32]byte
	dead := func() (*Outcome, error, bool) {
		if ctx.Err() != nil {
			return nil, ctx.Err(), false
		}
		c.died = !c.timedOut.Load()
		h.kill()
		if compiling != nil && !c.used && !killed(h.cmd.ProcessState) {
			e.ban(*compiling)
		}
		text, limit := "ended its hook host", LimitHost
		switch said := h.stderr.String(); {
		case c.timedOut.Load():
			text, limit = fmt.Sprintf("ran longer than %s", e.cfg.Timeout), LimitTime
		case strings.Contains(said, "out of memory"), strings.Contains(said, "cannot allocate memory"),
			// Go's collector does not look whether it was given what it asked for.
			strings.Contains(said, "SIGSEGV") && strings.Contains(said, "addr=0x0") && strings.Contains(said, "runtime.("):
			text, limit = fmt.Sprintf("used more memory than %d MiB", e.cfg.Memory>>20), LimitMemory
		case strings.Contains(said, "stack exceeds"):
			text, limit = "nested deeper than the stack allows", LimitDepth
		}
		return nil, &LimitError{Event: ev.Name, Message: subject(ev.Name, ev.Inline) + " " + text, Limit: limit}, false
	}
	if c.tooMuch {
		return nil, &LimitError{Event: ev.Name, Message: fmt.Sprintf("%s is given more than %d MiB", subject(ev.Name, ev.Inline), maxFrame>>20), Limit: LimitData}, true
	}
	if c.broken != nil {
		return dead()
	}
	for {
		kind, body, err := readFrame(h.out)
		if err != nil {
			return dead()
		}
		switch kind {
		case frameHello: // the scripts are compiled
			compiling = nil
		case frameCompile:
			if len(body) != 32 {
				return dead()
			}
			compiling = (*[32]byte)(body)
		case frameRequest, frameStorage:
			c.asked = true
			e.pause(c) // it only waits now: another may run
			kind, answer, err := c.answer(ctx, kind, body)
			if ctx.Err() == nil && !time.Now().Before(c.deadline) {
				// The event's own time is up: what cut the answer short is no
				// fault of a network or of Redis. The host knows the place.
				if err := writeFrame(h.in, frameLate, nil); err != nil {
					c.timedOut.Store(true)
					return dead()
				}
				continue
			}
			if err != nil {
				return nil, err, false
			}
			if !c.slow.Load() {
				if err := e.regain(ctx, c); err != nil {
					return nil, err, false
				}
			}
			if err := writeFrame(h.in, kind, answer); err != nil {
				return dead()
			}
		case frameOutcome:
			h.mu.Lock()
			for _, s := range c.sources {
				if !ev.Inline {
					h.known[s.sum] = true
				}
			}
			known := len(h.known)
			h.mu.Unlock()
			out, err, again := decodeOutcome(body, ev)
			// A fresh host is cheaper than a shared idea of an LRU.
			return out, err, again && known <= maxPrograms
		default:
			return dead()
		}
	}
}

// killed says that somebody else ended a host: we at its time limit, which
// waiting for a processor may have used up, or the kernel, which picks hosts
// first when the machine runs out of memory. That tells nothing of a source.
func killed(s *os.ProcessState) bool {
	status, ok := s.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// ban keeps a source from being compiled again: it ended a host that had done
// nothing else.
func (e *Engine) ban(sum [32]byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.banned) > 10_000 {
		clear(e.banned)
	}
	e.banned[sum] = true
}

// answer does what a host asks for. An error is the worker's own.
func (c *conversation) answer(ctx context.Context, kind byte, body []byte) (byte, []byte, error) {
	ctx, cancel := context.WithDeadline(ctx, c.deadline)
	defer cancel()
	if kind == frameStorage {
		return doStorage(ctx, c.ev.Storage, body)
	}
	kind, raw := doRequest(ctx, c.ev.Doer, body)
	return kind, raw, nil
}

func doRequest(ctx context.Context, doer Doer, body []byte) (byte, []byte) {
	if doer == nil {
		return frameFault, []byte("http_request is not available in this event")
	}
	req, ok := decode[HTTPRequest](body)
	if !ok {
		return frameFault, []byte("http_request: its options cannot be read")
	}
	res, err := doer.DoHook(ctx, req)
	if err != nil {
		return frameFault, []byte(err.Error())
	}
	raw, err := json.Marshal(res)
	if err != nil {
		return frameFault, []byte("http_request: its answer cannot be read")
	}
	if len(raw) > maxFrame {
		return frameFault, []byte(fmt.Sprintf("http_request: its answer is more than the %d MiB that a script may be given", maxFrame>>20))
	}
	return frameResponse, raw
}

func decode[T any](body []byte) (v T, ok bool) {
	ok = json.Unmarshal(body, &v) == nil
	return v, ok
}

func doStorage(ctx context.Context, storage Storage, body []byte) (byte, []byte, error) {
	if storage == nil {
		return frameFault, []byte("storage is not available in this event"), nil
	}
	req, ok := decode[StorageRequest](body)
	if !ok {
		return frameFault, []byte("its arguments cannot be read"), nil
	}
	raw, err := storage.DoStorage(ctx, req)
	var complaint *StorageError
	switch {
	case errors.As(err, &complaint):
		return frameFault, []byte(complaint.Text), nil
	case err != nil:
		return 0, nil, fmt.Errorf("script storage: %w", err)
	}
	return frameResponse, raw, nil
}

func encodeEvent(w *frameWriter, ev *Event, timeout, limit time.Duration, sources []*scriptSource, known map[[32]byte]bool) {
	w.text(ev.Name)
	w.flag(ev.Inline)
	w.num(int(timeout.Milliseconds()))
	w.text(limit.String())
	w.num(len(ev.Scripts))
	for i := range ev.Scripts {
		s := &ev.Scripts[i]
		w.text(string(s.Level))
		w.bytes(sources[i].sum[:])
		w.flag(!known[sources[i].sum])
		if !known[sources[i].sum] {
			w.text(s.Source)
		}
	}
	needed, size := make([]*Global, 0, len(ev.Globals)), 0
	for i := range ev.Globals {
		for _, s := range sources {
			if s.uses.has(ev.Globals[i].Name) {
				needed, size = append(needed, &ev.Globals[i]), size+len(ev.Globals[i].JSON)
				break
			}
		}
	}
	if size > copied { // room for all at once
		w.b = slices.Grow(w.b, size+64<<10)
	}
	w.num(len(needed))
	for _, g := range needed {
		w.text(g.Name)
		w.flag(g.Write)
		w.flag(g.Headers)
		w.text(g.HeadersIn)
		w.flag(g.NotStep)
		if g.Make != nil {
			w.optional(g.Make())
		} else {
			w.optional(g.JSON)
		}
	}
}

// verdict is how an event ended, as the host tells it.
type verdict struct {
	Ran       bool
	Result    json.RawMessage
	Logs      []string
	Kind      string // "", exception, script, limit
	Exception ExceptionKind
	Level     Level
	Text      string
	Line      int
	Column    int
	AtLevel   Level
	Engine    bool
	False     bool
	Fault     bool
	Seconds   float64
	Limit     Limit
	Spent     bool // the host must be replaced
}

func (v *verdict) encode(w *frameWriter) {
	w.text(v.Kind)
	w.flag(v.Ran)
	w.flag(v.Spent)
	w.optional(v.Result)
	w.num(len(v.Logs))
	for _, l := range v.Logs {
		w.text(l)
	}
	if v.Kind == "" {
		return
	}
	w.text(string(v.Exception))
	w.text(string(v.Level))
	w.text(v.Text)
	w.num(v.Line)
	w.num(v.Column)
	w.text(string(v.AtLevel))
	w.flag(v.Engine)
	w.flag(v.False)
	w.flag(v.Fault)
	w.text(strconv.FormatFloat(v.Seconds, 'g', -1, 64))
	w.text(string(v.Limit))
}

func decodeVerdict(r *frameReader) (v verdict) {
	v.Kind, v.Ran, v.Spent, v.Result = r.text(), r.flag(), r.flag(), r.optional()
	for n := r.num(); n > 0 && !r.bad; n-- {
		v.Logs = append(v.Logs, r.text())
	}
	if v.Kind == "" {
		return v
	}
	v.Exception, v.Level, v.Text = ExceptionKind(r.text()), Level(r.text()), r.text()
	v.Line, v.Column, v.AtLevel = r.num(), r.num(), Level(r.text())
	v.Engine, v.False, v.Fault = r.flag(), r.flag(), r.flag()
	v.Seconds, _ = strconv.ParseFloat(r.text(), 64)
	v.Limit = Limit(r.text())
	return v
}

func decodeOutcome(body []byte, ev *Event) (*Outcome, error, bool) {
	r := frameReader{b: body}
	v := decodeVerdict(&r)
	out := &Outcome{Ran: v.Ran, Result: v.Result, Logs: v.Logs}
	for n := r.num(); n > 0 && !r.bad; n-- {
		if out.Changed == nil {
			out.Changed = map[string]json.RawMessage{}
		}
		name := r.text()
		out.Changed[name] = r.optional()
	}
	if r.bad {
		return nil, &LimitError{Event: ev.Name, Message: subject(ev.Name, ev.Inline) + " left an outcome that cannot be read", Limit: LimitData}, false
	}
	switch at := ev.position(v.AtLevel, v.Line, v.Column); v.Kind {
	case "":
		return out, nil, !v.Spent
	case "exception":
		return out, &Exception{Kind: v.Exception, Event: ev.Name, Level: v.Level, Text: v.Text, At: at, After: time.Duration(v.Seconds * float64(time.Second))}, !v.Spent
	case "script":
		return out, &ScriptError{Event: ev.Name, Level: v.Level, Message: v.Text, At: at, Engine: v.Engine, False: v.False, Fault: v.Fault}, !v.Spent
	default:
		return out, &LimitError{ev.Name, v.Text, at, cmp.Or(v.Limit, LimitData)}, !v.Spent
	}
}

// position is where a place in a script stands in its author's file.
func (ev *Event) position(level Level, line, col int) string {
	if line == 0 {
		return ""
	}
	for i := range ev.Scripts {
		if s := &ev.Scripts[i]; s.Level == level {
			l, c := s.place(line, col)
			return fmt.Sprintf("%s:%d:%d", s.File, l, c)
		}
	}
	return ""
}

// place is where a line and column (in bytes, as the engine counts) of the
// source stand in its file; columns are told in characters.
func (s *Script) place(line, col int) (int, int) {
	if text, ok := nthLine(s.Source, line); ok && col > 1 {
		col = 1 + utf8.RuneCountInString(text[:min(col-1, len(text))])
	}
	if s.Place != nil {
		return s.Place(line, col)
	}
	if line == 1 && s.Column > 1 {
		col += s.Column - 1
	} else if line > 1 || s.Column == 0 {
		col += s.Indent
	}
	return line + max(s.Line, 1) - 1, col
}

func nthLine(text string, n int) (string, bool) {
	for ; n > 1; n-- {
		i := strings.IndexByte(text, '\n')
		if i < 0 {
			return "", false
		}
		text = text[i+1:]
	}
	line, _, _ := strings.Cut(text, "\n")
	return line, true
}
