package hooks

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/dlclark/regexp2/v2"
	"github.com/dop251/goja"
	"github.com/dop251/goja/parser"
)

const (
	hostEnv     = "STEPWORKER_HOOK_HOST"
	maxPrograms = 200 // sources that one host keeps compiled
	maxDepth    = 500 // calls; deeper, natives unwind in quadratic time
	maxLogs     = 200
	maxLogLine  = 2000
	maxThrown   = 2000 // bytes of a thrown value's text
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
	confine(memory)
	debug.SetMemoryLimit(int64(memory) * 6 / 10)
	debug.SetMaxStack(64 << 20)
	debug.SetGCPercent(400)
	regexp2.DefaultMatchTimeout = 250 * time.Millisecond
	h := &hostSide{in: bufio.NewReaderSize(hostInput(), 16<<10), programs: map[[32]byte]*program{}, maxRequests: requests}
	_ = writeFrame(os.Stdout, frameHello, nil)
	for {
		kind, body, err := readFrame(h.in)
		if err != nil || kind != frameEvent {
			os.Exit(0)
		}
		if err := writeFrame(os.Stdout, frameOutcome, h.serve(body)); err != nil {
			os.Exit(0)
		}
	}
}

// hostSide is the child's side of a hook host.
type hostSide struct {
	in          *bufio.Reader
	programs    map[[32]byte]*program
	maxRequests int
}

type eventSide struct {
	name    string
	timeout time.Duration
	scripts []*program
	levels  []Level
	globals []*globalSide
}

type globalSide struct {
	name           string
	write, headers bool
	headersIn      string
	raw            []byte // nil: undefined
	touched        bool
}

// serve runs one event and encodes how it ended.
func (h *hostSide) serve(body []byte) []byte {
	r := frameReader{b: body}
	ev := &eventSide{name: r.text(), timeout: time.Duration(r.num()) * time.Millisecond}
	var v verdict
	compiling := false
	for n := r.num(); n > 0 && !r.bad; n-- {
		level := Level(r.text())
		sum := [32]byte(r.bytes())
		if r.flag() {
			source := r.text()
			if h.programs[sum] == nil {
				if !compiling {
					compiling = true
					_ = writeFrame(os.Stdout, frameCompile, nil)
				}
				h.programs[sum] = compile(source, level)
			}
		}
		ev.scripts, ev.levels = append(ev.scripts, h.programs[sum]), append(ev.levels, level)
	}
	if compiling {
		_ = writeFrame(os.Stdout, frameHello, nil)
	}
	for n := r.num(); n > 0 && !r.bad; n-- {
		ev.globals = append(ev.globals, &globalSide{name: r.text(), write: r.flag(), headers: r.flag(), headersIn: r.text(), raw: r.optional()})
	}
	var w frameWriter
	var changed map[string][]byte
	if r.bad {
		v = verdict{Kind: "limit", Text: "the event could not be read"}
	} else {
		v, changed = h.run(ev)
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
type limitSignal struct{ text string }

func (e *limitSignal) Error() string { return e.text }

// run is one event in one runtime.
type run struct {
	h        *hostSide
	ev       *eventSide
	vm       *goja.Runtime
	level    Level // whose code runs
	exc      *exceptions
	logs     []string
	requests int
	stringer goja.Callable
	newError *goja.Object
	captured []goja.Value
	lexical  map[string]bool // names that earlier levels declared at top level
	names    map[string]bool // functions and vars, likewise
	inScope  bool            // the level just loaded has a scope of its own
	heads    map[Level]int   // columns put before the first line of such a level
}

func (h *hostSide) run(ev *eventSide) (v verdict, changed map[string][]byte) {
	r := &run{h: h, ev: ev, vm: goja.New(), lexical: map[string]bool{}, names: map[string]bool{}, heads: map[Level]int{}}
	defer func() {
		if p := recover(); p != nil { // a Go panic out of the engine: its state is void
			v, changed = verdict{Kind: "limit", Level: r.level, Text: ev.name + " broke the script engine", Spent: true, Logs: r.logs}, nil
			if s, ok := p.(*limitSignal); ok {
				v.Text = s.text
			}
		}
	}()
	timer := time.AfterFunc(ev.timeout, func() { r.vm.Interrupt(&limitSignal{fmt.Sprintf("%s ran longer than %s", ev.name, ev.timeout)}) })
	defer timer.Stop()
	r.prepare()
	v = r.handlers()
	v.Logs = r.logs
	if v.Kind == "limit" {
		v.Spent = true
		return v, nil
	}
	changed, err := r.changes()
	if err != nil && v.Kind == "" {
		v = r.failure(err, v.Level, v)
		v.Logs = r.logs
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
	setter := r.vm.ToValue(func(c goja.FunctionCall) goja.Value { settle(c.Argument(0)); return goja.Undefined() })
	_ = global.DefineAccessorProperty(g.name, getter, setter, goja.FLAG_TRUE, goja.FLAG_TRUE)
}

func (r *run) parse(g *globalSide) goja.Value {
	v, err := parseJSON(r.vm, g.raw)
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
	}
	var found []handler
	for i, p := range r.ev.scripts {
		r.level = r.ev.levels[i]
		if p.err != nil {
			v := *p.err
			v.Level, v.AtLevel = r.level, r.level
			v.Text = fmt.Sprintf("the script at %s level: %s", r.level, v.Text)
			return v
		}
		if err := r.load(p, r.level); err != nil {
			return r.failure(err, r.level, verdict{})
		}
		if fn := r.take(p); fn != nil {
			found = append(found, handler{r.level, fn})
		}
	}
	v := verdict{}
	rank := func(l Level) int {
		switch {
		case l == LevelStep:
			return 2
		case strings.HasPrefix(r.ev.name, "before") == (l == LevelMethod):
			return 0
		}
		return 1
	}
	slices.SortStableFunc(found, func(a, b handler) int { return rank(a.level) - rank(b.level) })
	for i, h := range found {
		r.level, v.Ran, v.Level = h.level, true, h.level
		if i > 0 {
			for _, g := range r.ev.globals { // what has no effect does not outlive a handler
				if !g.write && g.touched {
					r.define(g)
				}
			}
		}
		value, err := h.fn(goja.Undefined())
		if err == nil {
			value, err = r.settle(value)
		}
		if err != nil {
			return r.failure(err, h.level, v)
		}
		if value.StrictEquals(r.vm.ToValue(false)) && r.ev.name != "action_condition" && !strings.HasSuffix(r.ev.name, "_webhook") {
			v.Kind, v.False, v.Text = "script", true, fmt.Sprintf("%s at %s level returned false", r.ev.name, h.level)
			return v
		}
		v.Result = nil
		if !goja.IsUndefined(value) {
			raw, err := r.stringify(value)
			if err != nil {
				return r.failure(err, h.level, v)
			}
			v.Result = raw
		}
	}
	return v
}

// settle unwraps a returned promise; its job queue has been drained.
func (r *run) settle(v goja.Value) (goja.Value, error) {
	o, ok := v.(*goja.Object)
	if !ok {
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

// rejection is the value that an async handler threw.
type rejection struct{ value goja.Value }

func (*rejection) Error() string { return "rejected" }

// load evaluates one level's source in the shared realm. Functions and vars
// are shared; const, let and class belong to their level and are visible to
// later ones, unless declared there again: then that level gets a scope of its
// own, and only its functions and vars are shared.
func (r *run) load(p *program, level Level) error {
	clash := false
	for _, n := range p.lexical {
		clash = clash || r.lexical[n] || r.names[n]
	}
	for _, n := range p.names {
		clash = clash || r.lexical[n]
	}
	prog := p.plain
	if clash {
		var err error
		if prog, err = p.scoped(); err != nil {
			return err
		}
	}
	for _, n := range p.lexical {
		r.lexical[n] = true
	}
	for _, n := range p.names {
		r.names[n] = true
	}
	r.inScope = clash
	if clash {
		r.heads[level] = p.headLength()
	}
	_, err := r.vm.RunProgram(prog)
	return err
}

// take captures the level's handler of the event and takes all handlers away,
// so that a level without one does not run an earlier level's again.
func (r *run) take(p *program) goja.Callable {
	global := r.vm.GlobalObject()
	var value goja.Value
	if slices.Contains(p.lexical, r.ev.name) && !r.inScope {
		if get, err := reader(r.ev.name); err == nil {
			value, _ = r.vm.RunProgram(get)
		}
	} else if v := global.Get(r.ev.name); v != nil {
		value = v
	}
	for _, name := range EventNames {
		if v := global.Get(name); v != nil && !goja.IsUndefined(v) {
			_ = global.Set(name, goja.Undefined())
		}
	}
	if value == nil {
		return nil
	}
	for _, c := range r.captured {
		if c.SameAs(value) {
			return nil
		}
	}
	fn, ok := goja.AssertFunction(value)
	if !ok {
		return nil
	}
	r.captured = append(r.captured, value)
	return fn
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

func (r *run) stringify(v goja.Value) (json.RawMessage, error) {
	out, err := r.jsonStringify()(goja.Undefined(), v)
	if err != nil {
		return nil, err
	}
	if goja.IsUndefined(out) {
		return nil, nil
	}
	return json.RawMessage(out.String()), nil
}

// changes are the writable globals whose JSON is another now.
func (r *run) changes() (map[string][]byte, error) {
	changed := map[string][]byte{}
	for _, g := range r.ev.globals {
		if !g.write || !g.touched {
			continue
		}
		v := r.vm.GlobalObject().Get(g.name)
		if v == nil {
			v = goja.Undefined()
		}
		raw, err := r.stringify(v)
		if err != nil {
			return changed, err
		}
		if (raw == nil) != (g.raw == nil) || !sameJSON(raw, g.raw) {
			changed[g.name] = raw
		}
	}
	return changed, nil
}

// sameJSON compares what JSON.stringify wrote with what came, white space aside.
func sameJSON(written, given []byte) bool {
	if bytes.Equal(written, given) {
		return true
	}
	var compact bytes.Buffer
	return json.Compact(&compact, given) == nil && bytes.Equal(written, compact.Bytes())
}

// failure turns what left a handler into a verdict. It reads thrown values,
// which is script code too, and so runs inside the limits.
func (r *run) failure(err error, level Level, v verdict) verdict {
	v.Level = level
	var interrupted *goja.InterruptedError
	var overflow *goja.StackOverflowError
	var thrown *goja.Exception
	var rejected *rejection
	switch {
	case errors.As(err, &interrupted):
		v.Kind, v.Text = "limit", fmt.Sprint(interrupted.Value())
		if s, ok := interrupted.Value().(*limitSignal); ok {
			v.Text = s.text
		}
		return v
	case errors.As(err, &overflow):
		v.Kind, v.Text = "limit", fmt.Sprintf("%s at %s level called itself deeper than %d", r.ev.name, level, maxDepth)
		return v
	case errors.As(err, &rejected):
		return r.thrownValue(rejected.value, nil, level, v)
	case errors.As(err, &thrown):
		return r.thrownValue(thrown.Value(), thrown.Stack(), level, v)
	}
	v.Kind, v.Text = "script", fmt.Sprintf("%s at %s level: %s", r.ev.name, level, clip(err.Error(), maxThrown))
	return v
}

func (r *run) thrownValue(value goja.Value, stack []goja.StackFrame, level Level, v verdict) verdict {
	for _, f := range stack {
		if at, ok := r.author(f); ok {
			v.AtLevel, v.Line, v.Column = at, f.Position().Line, f.Position().Column
			if v.Line == 1 {
				v.Column = max(1, v.Column-r.heads[at])
			}
			break
		}
	}
	text, name := "", ""
	var kind *exceptionKind
	if ex := r.vm.Try(func() {
		kind = r.exc.kindOf(value)
		text, name = r.describe(value)
	}); ex != nil {
		text = "a value that cannot be read"
	}
	if kind != nil {
		v.Kind, v.Exception, v.Text, v.Seconds = "exception", kind.name, clip(kind.text, maxThrown), kind.seconds
		return v
	}
	switch name {
	case "TypeError", "ReferenceError", "SyntaxError", "RangeError", "EvalError", "URIError":
		v.Engine = true
	}
	v.Kind, v.Text = "script", fmt.Sprintf("%s at %s level: %s", r.ev.name, level, clip(text, maxThrown))
	return v
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
	if value == nil || goja.IsUndefined(value) {
		return "undefined was thrown", ""
	}
	o, ok := value.(*goja.Object)
	if !ok {
		return value.String(), ""
	}
	get := func(k string) string {
		if m := o.Get(k); m != nil && !goja.IsUndefined(m) && !goja.IsNull(m) {
			return clip(m.String(), maxThrown)
		}
		return ""
	}
	name, text = get("name"), get("message")
	switch {
	case text == "" && name == "":
		raw, err := r.stringify(o)
		if err != nil || raw == nil {
			return "an object was thrown", ""
		}
		return clip(string(raw), maxThrown), ""
	case text == "":
		return name, name
	case name == "" || name == "Error":
		return text, name
	}
	return name + ": " + text, name
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}
