package hooks

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"reflect"
	"regexp"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/dop251/goja"
	"github.com/dop251/goja/parser"
)

const (
	hostEnv     = "STEPWORKER_HOOK_HOST"
	maxPrograms = 200 // sources that one host keeps compiled
	maxDepth    = 500 // calls; deeper, natives unwind in quadratic time
	maxLogs     = 200
	maxLogSize  = 1 << 20  // of all lines of an event, in bytes
	maxText     = 64 << 10 // of one line, or of a thrown value's text; the worker masks it before it cuts it
	maxOutput   = 32 << 20 // of everything an event leaves behind, in bytes
)

// HostMain turns the process into a hook host if an Engine started it as one,
// and then never returns. It must be the first call of main.
func HostMain() {
	conf, ok := os.LookupEnv(hostEnv)
	if !ok {
		return
	}
	var memory uint64
	var requests int
	if _, err := fmt.Sscanf(conf, "%d,%d", &memory, &requests); err != nil {
		os.Exit(3)
	}
	os.Clearenv()
	time.Local = time.UTC                                        // where a worker stands is nobody's business
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP) // the worker says when it is over
	confine(memory)
	debug.SetMemoryLimit(int64(memory) * 6 / 10)
	debug.SetMaxStack(64 << 20)
	debug.SetGCPercent(400)
	// A time-out of the regular expressions' own would be taken for "no match"
	// and the script would go on with it: the event's time limit ends them.
	h := &hostSide{in: bufio.NewReaderSize(hostInput(), 16<<10), out: hostOutput(), programs: map[[32]byte]*program{}, maxRequests: requests, maxHeap: memory / 4}
	_ = writeFrame(h.out, frameHello, nil)
	for {
		kind, body, err := h.event()
		if err != nil || kind != frameEvent {
			os.Exit(0)
		}
		if err := writeFrame(h.out, frameOutcome, h.serve(body)); err != nil {
			os.Exit(0)
		}
	}
}

// hostSide is the child's side of a hook host.
type hostSide struct {
	in          *bufio.Reader
	out         io.Writer
	programs    map[[32]byte]*program
	maxRequests int
	maxHeap     uint64 // above it the host is replaced after an event
	libs        libraries
	ahead       [][]byte // events that came before their turn
}

// event is the next event: one that came while another waited for an answer, or
// the next in the pipe.
func (h *hostSide) event() (byte, []byte, error) {
	if len(h.ahead) > 0 {
		body := h.ahead[0]
		h.ahead = h.ahead[1:]
		return frameEvent, body, nil
	}
	return readFrame(h.in)
}

// spent says that what earlier events left in this host's memory could be
// charged to the next one. What nobody holds any more does not count: to
// collect it costs less than to load the libraries again in another host. But
// what the system gave is not given back: of a large part of it the next event
// may not find in one piece what it needs.
func (h *hostSide) spent() bool {
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"},
		{Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	held := func() (n uint64) {
		metrics.Read(s)
		return s[0].Value.Uint64() + s[1].Value.Uint64()
	}
	if held() <= h.maxHeap {
		return false
	}
	if held()+s[2].Value.Uint64()+s[3].Value.Uint64() > max(h.maxHeap, smallHeap) {
		return true
	}
	runtime.GC()
	return held() > h.maxHeap
}

// smallHeap is what a host may have been given and stay, however small its limit.
const smallHeap = 56 << 20

type eventSide struct {
	name    string
	inline  bool
	timeout time.Duration // what is left
	limit   string        // of the whole, for people
	scripts []*program
	levels  []Level
	globals []*globalSide
}

type globalSide struct {
	name           string
	write, headers bool
	headersIn      string
	notStep        bool
	raw            []byte // nil: undefined
	touched        bool   // it is a plain value now
	settled        bool   // value is what counts, whatever comes later
	value          []byte
	getter         goja.Value // what parses it when it is first touched
}

// serve runs one event and encodes how it ended.
func (h *hostSide) serve(body []byte) []byte {
	r := frameReader{b: body}
	ev := &eventSide{name: r.text(), inline: r.flag(), timeout: time.Duration(r.num()) * time.Millisecond, limit: r.text()}
	var v verdict
	compiled := false
	for n := r.num(); n > 0 && !r.bad; n-- {
		level := Level(r.text())
		sum := [32]byte(r.bytes())
		if r.flag() {
			source := r.text()
			if h.programs[sum] == nil {
				compiled = true
				_ = writeFrame(h.out, frameCompile, sum[:])
				h.programs[sum] = compile(source, level, ev.inline)
			}
		}
		ev.scripts, ev.levels = append(ev.scripts, h.programs[sum]), append(ev.levels, level)
		if ev.inline {
			delete(h.programs, sum)
		}
	}
	if compiled {
		_ = writeFrame(h.out, frameHello, nil)
	}
	for n := r.num(); n > 0 && !r.bad; n-- {
		ev.globals = append(ev.globals, &globalSide{name: r.text(), write: r.flag(), headers: r.flag(), headersIn: r.text(), notStep: r.flag(), raw: r.optional()})
	}
	var w frameWriter
	var changed map[string][]byte
	if r.bad {
		v = verdict{Kind: "limit", Text: "the event could not be read"}
	} else {
		v, changed = h.run(ev)
		v.Spent = v.Spent || h.spent()
	}
	v.encode(&w)
	w.num(len(changed))
	for _, g := range ev.globals {
		if value, ok := changed[g.name]; ok {
			w.text(g.name)
			w.optional(value)
		}
	}
	return w.b
}

// limitSignal interrupts a runtime.
type limitSignal struct {
	text  string
	stack []goja.StackFrame // of the call that broke the limit, if one did
	limit Limit             // "": of data
}

func (e *limitSignal) Error() string { return e.text }

// subject is what runs, for people.
func (ev *eventSide) subject() string { return subject(ev.name, ev.inline) }

func subject(event string, inline bool) string {
	if inline {
		return "the inline script"
	}
	return event
}

// run is one event in one runtime.
type run struct {
	h        *hostSide
	ev       *eventSide
	vm       *goja.Runtime
	level    Level // whose code runs
	ran      bool  // a handler has begun
	exc      *exceptions
	logs     []string
	requests int // http_requests so far
	stored   int // calls of storage functions so far
	stringer goja.Callable
	own      goja.Callable // Object.getOwnPropertyDescriptor
	newError *goja.Object
	logSize  int
	faults   []*goja.Object          // what http_request threw
	modules  map[string]*goja.Object // libraries' files that were loaded
	crypto   *goja.Object
	scoped   bool // each level has a scope of its own
	// Where scoped: const, let and class that later levels see, on the global
	// object, or where an earlier level's var or function has that name there,
	// by import; and the vars and functions of the levels so far.
	exported map[string]bool
	imports  map[string]goja.Callable
	declared map[string]bool
}

func (h *hostSide) run(ev *eventSide) (v verdict, changed map[string][]byte) {
	r := &run{h: h, ev: ev, vm: goja.New(), exported: map[string]bool{}, imports: map[string]goja.Callable{}, declared: map[string]bool{}}
	defer func() {
		if p := recover(); p != nil { // a Go panic out of the engine: its state is void
			v, changed = verdict{Kind: "limit", Ran: r.ran, Level: r.level, Text: ev.subject() + " broke the script engine", Limit: LimitHost, Spent: true, Logs: r.logs}, nil
			// A limit may break where we call script code ourselves, a getter of
			// what was thrown for one.
			var limit *limitSignal
			var interrupted *goja.InterruptedError
			var overflow *goja.StackOverflowError
			if err, _ := p.(error); errors.As(err, &limit) || errors.As(err, &interrupted) || errors.As(err, &overflow) {
				told := r.failure(err, r.level, verdict{})
				v.Text, v.Limit, v.AtLevel, v.Line, v.Column = told.Text, told.Limit, told.AtLevel, told.Line, told.Column
			}
		}
	}()
	timer := time.AfterFunc(ev.timeout, func() {
		r.vm.Interrupt(&limitSignal{text: fmt.Sprintf("%s ran longer than %s", ev.subject(), ev.limit), limit: LimitTime})
	})
	defer timer.Stop()
	r.prepare()
	if ev.inline {
		v = r.inline()
	} else {
		v = r.handlers()
	}
	v.Logs = r.logs
	if v.Kind != "limit" {
		var err error
		changed, err = r.changes()
		var limit *limitSignal
		if err != nil && (v.Kind == "" || errors.As(err, &limit)) {
			v = r.failure(err, v.Level, v)
			v.Logs = r.logs
		}
	}
	if v.Kind == "limit" { // nothing else of it counts, and it may be more than a frame takes
		v.Spent, v.Result, changed = true, nil, nil
	}
	return v, changed
}

// prepare makes the globals of the event.
func (r *run) prepare() {
	vm := r.vm
	vm.SetMaxCallStackSize(maxDepth)
	vm.SetParserOptions(parser.WithDisableSourceMaps)
	// What scripts could replace is captured before they run; what none of them
	// can reach is made when it is needed, if it is.
	if r.uses("JSON") {
		r.jsonStringify()
	}
	if r.uses("Error") {
		r.errorClass()
	}
	if r.uses("Object") {
		r.descriptor()
	}
	r.exc = newExceptions(r)
	r.builtins()
	for _, g := range r.ev.globals {
		if r.uses(g.name) {
			r.define(g)
		}
	}
}

// uses says that some script of the event can reach a name.
func (r *run) uses(name string) bool {
	for _, p := range r.ev.scripts {
		if p.uses.has(name) {
			return true
		}
	}
	return false
}

// define makes a global that is parsed when a script first touches it.
func (r *run) define(g *globalSide) {
	global := r.vm.GlobalObject()
	g.touched = false
	if g.raw == nil {
		// Undefined as long as nobody writes it.
		_ = global.DefineDataProperty(g.name, goja.Undefined(), goja.FLAG_TRUE, goja.FLAG_TRUE, goja.FLAG_TRUE)
		g.touched = true
		return
	}
	settle := func(v goja.Value) {
		g.touched = true
		_ = global.DefineDataProperty(g.name, v, goja.FLAG_TRUE, goja.FLAG_TRUE, goja.FLAG_TRUE)
	}
	getter := r.vm.ToValue(func(goja.FunctionCall) goja.Value {
		if g.touched {
			return global.Get(g.name)
		}
		v := r.parse(g)
		settle(v)
		return v
	})
	g.getter = getter
	setter := r.vm.ToValue(func(c goja.FunctionCall) goja.Value { settle(c.Argument(0)); return goja.Undefined() })
	_ = global.DefineAccessorProperty(g.name, getter, setter, goja.FLAG_TRUE, goja.FLAG_TRUE)
}

// reached says that a script has read or written a global, deleted it, or
// defined it anew.
func (r *run) reached(g *globalSide) bool {
	if g.touched {
		return true
	}
	for _, p := range r.ev.scripts {
		if slices.ContainsFunc(definers, func(n string) bool { return p.uses.names[n] }) {
			d := r.ownProperty(r.vm.GlobalObject(), g.name)
			return d.Getter == nil || !d.Getter.SameAs(g.getter)
		}
	}
	return false
}

var definers = []string{"delete", "deleteProperty", "defineProperty", "defineProperties", "__defineGetter__"}

func (r *run) parse(g *globalSide) goja.Value {
	v, err := r.parseJSON(g.raw)
	if err != nil {
		panic(r.vm.NewGoError(fmt.Errorf("%s: %w", g.name, err)))
	}
	if g.headers {
		return r.ignoreCase(v)
	}
	if o, ok := v.(*goja.Object); ok && g.headersIn != "" {
		if inner := o.Get(g.headersIn); inner != nil {
			_ = o.Set(g.headersIn, r.ignoreCase(inner))
		}
	}
	return v
}

// handlers loads the levels, in order, and calls the event's handlers.
func (r *run) handlers() verdict {
	type handler struct {
		level Level
		fn    goja.Callable
		all   map[string]goja.Value // of its level, by event
	}
	var found []handler
	for i, p := range r.ev.scripts {
		if p.err != nil {
			v := *p.err
			v.Level, v.AtLevel = r.ev.levels[i], r.ev.levels[i]
			v.Text = fmt.Sprintf("the script at %s level: %s", v.Level, v.Text)
			return v
		}
		r.scoped = r.scoped || p.clashes(r.ev.scripts[:i])
	}
	load := needed(r.ev.name, r.ev.scripts)
	for i, p := range r.ev.scripts {
		if r.level = r.ev.levels[i]; !load[i] {
			continue
		}
		if err := r.load(p); err != nil {
			return r.failure(err, r.level, verdict{})
		}
		if fn, all := r.take(p); fn != nil {
			found = append(found, handler{r.level, fn, all})
		}
		if r.level == LevelStep {
			for _, g := range r.ev.globals {
				if g.notStep && r.reached(g) {
					r.define(g)
				}
			}
		}
	}
	v := verdict{}
	slices.SortStableFunc(found, func(a, b handler) int { return turnOf(r.ev.name, a.level) - turnOf(r.ev.name, b.level) })
	for i, h := range found {
		r.level, v.Ran, v.Level, r.ran = h.level, true, h.level, true
		if i > 0 {
			for _, g := range r.ev.globals { // what has no effect does not outlive a handler
				if !g.write && r.reached(g) {
					r.define(g)
				}
			}
		}
		if err := r.beforeStep(); err != nil {
			return r.failure(err, h.level, v)
		}
		for name, fn := range h.all { // a handler may call others of its own script
			_ = r.vm.GlobalObject().Set(name, fn)
		}
		value, err := h.fn(goja.Undefined())
		for name := range h.all {
			_ = r.vm.GlobalObject().Set(name, goja.Undefined())
		}
		if err == nil {
			value, err = r.settle(value)
		}
		if err != nil {
			return r.failure(err, h.level, v)
		}
		no := value.StrictEquals(r.vm.ToValue(false))
		if no && strings.HasSuffix(r.ev.name, "_webhook") { // it is dropped: nobody else is asked
			v.Result = json.RawMessage("false")
			return v
		}
		if no && r.ev.name != "action_condition" {
			v.Kind, v.False, v.Text = "script", true, fmt.Sprintf("%s at %s level returned false", r.ev.name, h.level)
			return v
		}
		var interrupted *goja.InterruptedError
		if v.Result, err = r.stringify(value); errors.As(err, &interrupted) {
			return r.failure(err, h.level, v)
		} // else what is no JSON counts as true: only false stops
		if !no && (strings.HasSuffix(r.ev.name, "_webhook") || r.ev.name == "action_condition") && string(v.Result) == "false" {
			v.Result = nil // new Boolean(false) is an object
		}
		if len(v.Result) > maxOutput {
			return r.failure(&limitSignal{text: fmt.Sprintf("%s returned more than %d MiB", r.ev.name, maxOutput>>20)}, h.level, v)
		}
	}
	return v
}

// inline evaluates an inline script. What is no JSON counts as no value.
func (r *run) inline() verdict {
	if len(r.ev.scripts) != 1 {
		return verdict{Kind: "limit", Text: "one inline script is needed"}
	}
	p := r.ev.scripts[0]
	r.level = r.ev.levels[0]
	if p.err != nil {
		v := *p.err
		v.Level, v.AtLevel, v.Text = r.level, r.level, r.where(r.level)+": "+v.Text
		return v
	}
	v := verdict{Ran: true, Level: r.level}
	value, err := r.vm.RunProgram(p.plain)
	if err == nil {
		value, err = r.settle(value)
	}
	if err == nil {
		v.Result, err = r.stringify(value)
	}
	if err == nil {
		if n := depthOf(v.Result); n > maxJSONDepth {
			err = &limitSignal{text: fmt.Sprintf("%s came to a value that is nested deeper than %d", r.ev.subject(), maxJSONDepth)}
		} else if len(v.Result) > maxOutput {
			err = &limitSignal{text: fmt.Sprintf("%s came to more than %d MiB", r.ev.subject(), maxOutput>>20)}
		}
	}
	if err != nil {
		v.Result = nil
		v = r.failure(err, r.level, v)
		if p.inBrackets && v.Line == 1 {
			v.Column--
		}
	}
	return v
}

// where names a script for people.
func (r *run) where(level Level) string {
	if r.ev.inline {
		return r.ev.subject()
	}
	return fmt.Sprintf("%s at %s level", r.ev.name, level)
}

// beforeStep settles what a step's handler, if it is the next to run, may not change.
func (r *run) beforeStep() error {
	if r.level != LevelStep {
		return nil
	}
	for _, g := range r.ev.globals {
		if !g.notStep {
			continue
		}
		g.settled, g.value = true, g.raw
		if r.reached(g) {
			raw, err := r.current(g)
			if err != nil {
				return err
			}
			g.value = raw
		}
	}
	return nil
}

// settle unwraps a returned promise; its job queue has been drained.
func (r *run) settle(v goja.Value) (goja.Value, error) {
	o, ok := v.(*goja.Object)
	if !ok {
		return v, nil
	}
	if o.ExportType() != promiseType { // Export calls getters of what is none
		return v, nil
	}
	p, ok := o.Export().(*goja.Promise)
	if !ok {
		return v, nil
	}
	switch p.State() {
	case goja.PromiseStateFulfilled:
		return p.Result(), nil
	case goja.PromiseStateRejected:
		return nil, &rejection{p.Result()}
	}
	return nil, errors.New("it returned a promise that never settles: hooks are synchronous")
}

var promiseType = reflect.TypeFor[*goja.Promise]()

// rejection is the value that an async handler threw.
type rejection struct{ value goja.Value }

func (*rejection) Error() string { return "rejected" }

// load evaluates one level's source in the shared realm. Functions and vars
// are shared; const, let and class belong to their level and are visible to
// later ones, unless declared there again. As long as no name clashes the
// realm does that by itself; else each level gets a scope of its own, and
// later ones see its const, let and class as properties of the global object.
func (r *run) load(p *program) error {
	if !r.scoped {
		_, err := r.vm.RunProgram(p.plain)
		return err
	}
	var imports []string
	for n := range r.imports {
		if p.uses.has(n) && !slices.Contains(p.names, n) && !slices.Contains(p.lexical, n) {
			imports = append(imports, n)
		}
	}
	slices.Sort(imports)
	prog, err := p.scoped(imports)
	if err != nil {
		return err
	}
	global := r.vm.GlobalObject()
	for _, n := range p.names {
		// Made here it stays configurable, so that a later level's const may take its place.
		if global.Get(n) == nil || r.exported[n] {
			delete(r.exported, n)
			_ = global.DefineDataProperty(n, goja.Undefined(), goja.FLAG_TRUE, goja.FLAG_TRUE, goja.FLAG_TRUE)
		}
		delete(r.imports, n)
	}
	hidden := func(name string, f func(goja.FunctionCall) goja.Value) {
		_ = global.DefineDataProperty(name, r.vm.ToValue(f), goja.FLAG_TRUE, goja.FLAG_TRUE, goja.FLAG_FALSE)
	}
	hidden(importer, func(c goja.FunctionCall) goja.Value {
		if get := r.imports[c.Argument(0).String()]; get != nil {
			if v, err := get(goja.Undefined()); err == nil {
				return v
			}
		}
		return goja.Undefined()
	})
	hidden(exporter, func(c goja.FunctionCall) goja.Value {
		name := c.Argument(0).String()
		get, _ := goja.AssertFunction(c.Argument(1))
		switch {
		case get == nil:
		case slices.Contains(EventNames, name):
			if fn, err := get(goja.Undefined()); err == nil {
				_ = global.DefineDataProperty(name, fn, goja.FLAG_TRUE, goja.FLAG_TRUE, goja.FLAG_TRUE)
			}
		case r.declared[name]: // the earlier level's own code goes on seeing its own
			r.imports[name] = get
		default:
			r.exported[name] = true
			_ = global.DefineAccessorProperty(name, c.Argument(1), c.Argument(2), goja.FLAG_TRUE, goja.FLAG_TRUE)
		}
		return goja.Undefined()
	})
	_, err = r.vm.RunProgram(prog)
	_ = global.Delete(exporter)
	_ = global.Delete(importer)
	for _, n := range p.names {
		r.declared[n] = true
	}
	return err
}

// take captures the level's handlers, and takes them away, so that a level
// without one does not run an earlier level's again.
func (r *run) take(p *program) (goja.Callable, map[string]goja.Value) {
	global := r.vm.GlobalObject()
	all := map[string]goja.Value{}
	for _, name := range p.events {
		if v := global.Get(name); v != nil && !goja.IsUndefined(v) {
			all[name] = v
			_ = global.Set(name, goja.Undefined())
		}
	}
	value := all[r.ev.name]
	if !r.scoped && slices.Contains(p.lexical, r.ev.name) {
		if get, err := reader(r.ev.name); err == nil {
			value, _ = r.vm.RunProgram(get)
		}
	}
	if value == nil {
		return nil, nil
	}
	fn, _ := goja.AssertFunction(value)
	return fn, all
}

// jsonStringify is the engine's own JSON.stringify.
func (r *run) jsonStringify() goja.Callable {
	if r.stringer == nil {
		r.stringer, _ = goja.AssertFunction(r.vm.Get("JSON").ToObject(r.vm).Get("stringify"))
	}
	return r.stringer
}

// errorClass is the engine's own Error.
func (r *run) errorClass() *goja.Object {
	if r.newError == nil {
		r.newError = r.vm.Get("Error").ToObject(r.vm)
	}
	return r.newError
}

// descriptor is the engine's own Object.getOwnPropertyDescriptor.
func (r *run) descriptor() goja.Callable {
	if r.own == nil {
		r.own, _ = goja.AssertFunction(r.vm.Get("Object").ToObject(r.vm).Get("getOwnPropertyDescriptor"))
	}
	return r.own
}

func (r *run) stringify(v goja.Value) (json.RawMessage, error) {
	switch x := v.(type) {
	case *goja.Object:
	default:
		if b, ok := x.Export().(bool); ok {
			return strconv.AppendBool(nil, b), nil
		} else if goja.IsUndefined(v) {
			return nil, nil
		}
	}
	out, err := r.jsonStringify()(goja.Undefined(), v)
	if err != nil {
		return nil, err
	}
	if goja.IsUndefined(out) {
		return nil, nil
	}
	return json.RawMessage(out.String()), nil
}

// unwritable is why a global has no JSON: a cycle, a BigInt, a getter that throws.
type unwritable struct {
	global string
	err    error
}

func (e *unwritable) Error() string { return e.global + ": " + e.err.Error() }
func (e *unwritable) Unwrap() error { return e.err }

// current is what a global is now, as JSON.
func (r *run) current(g *globalSide) ([]byte, error) {
	v := r.vm.GlobalObject().Get(g.name)
	if v == nil {
		v = goja.Undefined()
	}
	raw, err := r.stringify(v)
	if err != nil {
		return nil, &unwritable{g.name, err}
	}
	if depthOf(raw) > maxJSONDepth {
		return nil, &limitSignal{text: fmt.Sprintf("%s left a %s that is nested deeper than %d", r.ev.subject(), g.name, maxJSONDepth)}
	}
	return raw, nil
}

// changes are the writable globals that are another value now.
func (r *run) changes() (map[string][]byte, error) {
	changed := map[string][]byte{}
	total := 0
	for _, g := range r.ev.globals {
		if !g.write || !r.reached(g) && !g.settled || g.touched && !g.settled && r.onlyRead(g) {
			continue
		}
		raw := g.value
		if !g.settled {
			var err error
			if raw, err = r.current(g); err != nil {
				return changed, err
			}
		}
		if r.unchanged(raw, g) {
			continue
		}
		changed[g.name] = raw
		if total += len(raw); total > maxOutput {
			return nil, &limitSignal{text: fmt.Sprintf("%s left more than %d MiB", r.ev.subject(), maxOutput>>20)}
		}
	}
	return changed, nil
}

// onlyRead says that no script of the event can have changed a global.
func (r *run) onlyRead(g *globalSide) bool {
	return g.raw != nil && !slices.ContainsFunc(r.ev.scripts, func(p *program) bool { return !p.looks || p.writes[g.name] })
}

// unchanged says that a script has only looked. What JSON.stringify makes of
// the value as it came is no change either: 12345678901234567890 and 1.10 stay
// as they were sent.
func (r *run) unchanged(raw []byte, g *globalSide) bool {
	if (raw == nil) != (g.raw == nil) {
		return false
	}
	if raw == nil {
		return true
	}
	same, certain := sameJSON(raw, g.raw)
	if certain {
		return same
	}
	pristine, err := r.parseJSON(g.raw)
	if err != nil {
		return false
	}
	again, err := r.stringify(pristine)
	return err == nil && bytes.Equal(raw, again)
}

// failure turns what left a handler into a verdict. It reads thrown values,
// which is script code too, and so runs inside the limits.
func (r *run) failure(err error, level Level, v verdict) verdict {
	v.Level = level
	var interrupted *goja.InterruptedError
	var overflow *goja.StackOverflowError
	var thrown *goja.Exception
	var rejected *rejection
	var limit *limitSignal
	switch {
	case errors.As(err, &limit) && !errors.As(err, &interrupted):
		v.Kind, v.Text, v.Limit = "limit", limit.text, limit.limit
		r.placed(limit.stack, &v)
		return v
	case errors.As(err, &interrupted):
		v.Kind, v.Text = "limit", fmt.Sprint(interrupted.Value())
		if r.placed(interrupted.Stack(), &v); v.Line == 1 && v.Column == 1 {
			v.Line = 0 // the engine knows no place within an empty loop
		}
		if s, ok := interrupted.Value().(*limitSignal); ok {
			v.Text, v.Limit = s.text, s.limit
		}
		return v
	case errors.As(err, &overflow):
		v.Kind, v.Limit, v.Text = "limit", LimitDepth, fmt.Sprintf("%s called itself deeper than %d", r.where(level), maxDepth)
		r.placed(overflow.Stack(), &v)
		return v
	case errors.As(err, &rejected):
		return r.thrownValue(rejected.value, nil, level, v)
	case errors.As(err, &thrown):
		v = r.thrownValue(thrown.Value(), thrown.Stack(), level, v)
		var in *unwritable
		if where := r.where(level) + ": "; errors.As(err, &in) && v.Kind == "script" {
			v.Text = where + in.global + ": " + strings.TrimPrefix(v.Text, where)
		}
		return v
	}
	// Nothing was thrown: how the script is written is at fault.
	v.Kind, v.Engine, v.Text = "script", true, r.where(level)+": "+clip(err.Error(), maxText)
	return v
}

func (r *run) thrownValue(value goja.Value, stack []goja.StackFrame, level Level, v verdict) verdict {
	r.placed(stack, &v)
	text, name := "", ""
	var kind *exceptionKind
	if ex := r.vm.Try(func() {
		kind = r.exc.kindOf(value)
		text, name = r.describe(value)
		if o, ok := value.(*goja.Object); ok {
			v.Fault = slices.Contains(r.faults, o)
			if class, ok := r.exc.ours[o]; ok {
				text = fmt.Sprintf("the class %s itself was thrown; throw new %s()", class, class)
			}
			if stack == nil { // it came out of a promise
				r.placeOf(o, &v)
			}
		}
	}); ex != nil {
		text = "a value that cannot be read"
	}
	if kind != nil {
		v.Kind, v.Exception, v.Text, v.Seconds = "exception", kind.name, clip(kind.text, maxText), kind.seconds
		return v
	}
	if name == "RangeError" && tooLarge.MatchString(text) {
		v.Kind, v.Text = "limit", r.where(level)+": "+clip(text, maxText)
		return v
	}
	switch name {
	case "TypeError", "ReferenceError", "SyntaxError", "RangeError", "EvalError", "URIError":
		v.Engine = true
	}
	v.Kind, v.Text = "script", r.where(level)+": "+clip(text, maxText)
	return v
}

// tooLarge are the engine's own words for what it refuses to make.
var tooLarge = regexp.MustCompile(`^RangeError: (Buffer size is too large|Invalid (typed )?array length|Source is too large)`)

var stackPlace = regexp.MustCompile(`(?m)^\s+at (?:.*\()?(connector|method|step):(\d+):(\d+)`)

// placeOf reads where an Error was made from its own stack.
func (r *run) placeOf(o *goja.Object, v *verdict) {
	stack := o.Get("stack")
	if stack == nil {
		return
	}
	if m := stackPlace.FindStringSubmatch(clip(stack.String(), maxText)); m != nil {
		v.AtLevel = Level(m[1])
		v.Line, _ = strconv.Atoi(m[2])
		v.Column, _ = strconv.Atoi(m[3])
	}
}

// placed tells the place where an author's code was last.
func (r *run) placed(stack []goja.StackFrame, v *verdict) {
	for _, f := range stack {
		if at, ok := r.author(f); ok {
			v.AtLevel, v.Line, v.Column = at, f.Position().Line, f.Position().Column
			return
		}
	}
}

// tooMuch ends the event for what the script asks of the worker.
func (r *run) tooMuch(format string, args ...any) {
	panic(&limitSignal{text: fmt.Sprintf(format, args...), stack: r.vm.CaptureCallStack(0, nil)})
}

// tooLate ends an event whose time is over.
func (r *run) tooLate() {
	panic(&limitSignal{fmt.Sprintf("%s ran longer than %s", r.ev.subject(), r.ev.limit), r.vm.CaptureCallStack(0, nil), LimitTime})
}

func (r *run) author(f goja.StackFrame) (Level, bool) {
	for _, l := range r.ev.levels {
		if f.SrcName() == string(l) {
			return l, true
		}
	}
	return "", false
}

func (r *run) describe(value goja.Value) (text, name string) {
	if value == nil || goja.IsUndefined(value) || goja.IsNull(value) {
		return fmt.Sprintf("%v was thrown", value), ""
	}
	o, ok := value.(*goja.Object)
	if !ok {
		if text = value.String(); text == "" {
			text = "an empty text was thrown"
		}
		return text, ""
	}
	get := func(k string) string {
		if m := o.Get(k); m != nil && !goja.IsUndefined(m) && !goja.IsNull(m) {
			return clip(m.String(), maxText)
		}
		return ""
	}
	name, text = get("name"), get("message")
	switch {
	case text == "" && name == "":
		raw, err := r.stringify(o)
		var interrupted *goja.InterruptedError
		var overflow *goja.StackOverflowError
		if errors.As(err, &interrupted) || errors.As(err, &overflow) {
			panic(err) // a limit, as where a getter is called
		}
		if err != nil || raw == nil {
			return "an object was thrown", ""
		}
		return clip(string(raw), maxText), ""
	case text == "":
		return name, name
	case name == "" || name == "Error":
		return text, name
	}
	return name + ": " + text, name
}

// short is what an error says of a value that it names: all of it, or how long
// it is. Arguments are easily confused, so it may be a secret, which the worker
// finds only if it is whole and as the script has it.
func short(s string, n int) string {
	if c := utf8.RuneCountInString(s); c > n {
		return fmt.Sprintf("[%d characters]", c)
	}
	return s
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}
