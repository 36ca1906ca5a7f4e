package hooks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dop251/goja"
	"github.com/google/go-cmp/cmp"
)

func TestMain(m *testing.M) {
	HostMain()
	os.Exit(m.Run())
}

func newEngine(t testing.TB, cfg Config) *Engine {
	t.Helper()
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func source(level Level, js string) []Script {
	return []Script{{Level: level, File: string(level) + ".js", Source: js}}
}

// Each hostile script fails by itself, within its limits; the next event works.
func TestRun_hostileScriptFailsAloneWithKindLimit(t *testing.T) {
	if testing.Short() {
		t.Skip("runs into its time limits")
	}
	e := newEngine(t, Config{Timeout: 1500 * time.Millisecond, Memory: 256 << 20})
	for name, js := range map[string]string{
		"loop":           `while(true){}`,
		"finally loop":   `try{while(true){}}finally{while(true){}}`,
		"recursion":      `function f(){return f()+1}; f()`,
		"native rec":     `function f(){return [1].map(f)}; f()`,
		"backreference":  `/(a+)+\1$/.test("a".repeat(40)+"!"); while(true){}`,
		"repeat":         `var a=[]; for(;;){a.push("x".repeat(1e6))}`,
		"huge repeat":    `"x".repeat(2**53-1).length`,
		"join":           `new Array(2**32-1).join("x").length`,
		"doubling":       `var s="x"; while(true){s+=s}`,
		"array buffer":   `new ArrayBuffer(2**33).byteLength`,
		"sparse indexOf": `var a=[];a.length=4294967295;a.indexOf(1)`,
		"json deep":      `var s="[".repeat(1e6)+"]".repeat(1e6);JSON.parse(s);1`,
		"eval deep":      `eval("(".repeat(1e6)+"1"+")".repeat(1e6))`,
		"bigint":         `(2n**(2n**31n)).toString().length`,
		"throw loop":     `throw {toString(){while(1){}}, get message(){while(1){}}}`,
		"return proxy":   `return new Proxy({a:1},{get(){while(true){}},ownKeys(){while(true){}}})`,
		"promise loop":   `return (async()=>{while(true){await null}})()`,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := e.Run(context.Background(), &Event{Name: "before_action", Scripts: source(LevelMethod, "function before_action(){"+js+"}")})
			var le *LimitError
			if !errors.As(err, &le) {
				t.Errorf("got %v, want a LimitError", err)
			}
			out, err := e.Run(context.Background(), &Event{Name: "before_action", Scripts: source(LevelMethod, "function before_action(){return 7}")})
			if err != nil || string(out.Result) != "7" {
				t.Errorf("the next event: %v, %v", out, err)
			}
		})
	}
}

// needsMemory is why a test is left out with -short, which goes with -race.
const needsMemory = "the race detector needs several times the memory"

// Which limit was broken is told, wherever it happens.
func TestRun_limitIsNamed(t *testing.T) {
	short := newEngine(t, Config{Hosts: 1, Timeout: 700 * time.Millisecond})
	small := newEngine(t, Config{Hosts: 1, Memory: 64 << 20})
	const long, much, deep = "before_action ran longer than 700ms", "before_action used more memory than 64 MiB", "before_action at method level called itself deeper than 500"
	for name, test := range map[string]struct{ js, want string }{
		"loop in a thrown name":      {`var e = new Error('a'); Object.defineProperty(e, 'name', {get() { for (;;); }}); throw e`, long},
		"loop in a rejected stack":   {`var e = new Error('a'); Object.defineProperty(e, 'stack', {get() { for (;;); }}); return Promise.reject(e)`, long},
		"loop in a thrown member":    {`throw {get constructor() { for (;;); }}`, long},
		"depth in a thrown member":   {`throw {get a() { return JSON.stringify(this); }}`, deep},
		"loop in a global's getter":  {`Object.defineProperty(globalThis, 'action_data', {get() { for (;;); }, configurable: true})`, long},
		"depth in a thrown name":     {`var e = new Error('a'); Object.defineProperty(e, 'name', {get() { return this.name; }}); throw e`, deep},
		"memory in one long text":    {`btoa('x'.repeat(1e8))`, much},
		"memory in what it leaves":   {`action_data = {a: 'z'.repeat(3e7)}`, much},
		"memory in a growing string": {`for (var s = 'x'; ; ) s += s`, much},
	} {
		t.Run(name, func(t *testing.T) {
			e := short
			if test.want == much {
				if e = small; testing.Short() {
					t.Skip(needsMemory)
				}
			}
			_, err := e.Run(context.Background(), &Event{Name: "before_action", Scripts: source(LevelMethod, "function before_action() { "+test.js+" }"),
				Globals: []Global{{Name: "action_data", JSON: []byte(`{}`), Write: true}}})
			var limit *LimitError
			if !errors.As(err, &limit) || limit.Message != test.want {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
}

// Who looks for an endless loop is told where the script was.
func TestRun_limitHasItsPlace(t *testing.T) {
	e := newEngine(t, Config{Hosts: 1, Timeout: 300 * time.Millisecond})
	_, err := e.Run(context.Background(), &Event{Name: "before_action", Scripts: []Script{
		{Level: LevelConnector, File: "c.js", Source: "function before_action() { return true }"},
		{Level: LevelMethod, File: "m.yaml", Line: 7, Column: 1, Indent: 4, Source: "function before_action() {\n  for (;;)\n    nothing = 1;\n}"},
	}})
	var limit *LimitError
	if !errors.As(err, &limit) || limit.Message != "before_action ran longer than 300ms" || !strings.HasPrefix(limit.At, "m.yaml:9:") {
		t.Errorf("got %v, at %q", err, limit.At)
	}
}

// What is more than host and worker say to each other at once is told as what it is.
func TestRun_moreThanAFrameIsNamed(t *testing.T) {
	if testing.Short() {
		t.Skip(needsMemory)
	}
	e := newEngine(t, Config{Hosts: 1, Timeout: 5 * time.Minute}) // it moves hundreds of megabytes
	text := json.RawMessage(`"` + strings.Repeat("x", 70<<20) + `"`)
	doer := doerFunc(func(context.Context, HTTPRequest) (*HTTPResponse, error) {
		return &HTTPResponse{StatusCode: 200, Content: string(text), Headers: json.RawMessage(`{}`), Request: json.RawMessage(`{}`)}, nil
	})
	for name, test := range map[string]struct {
		js, want string
		data     json.RawMessage
	}{
		"returned":    {js: `return 'x'.repeat(7e7)`, want: "after_action returned more than 32 MiB"},
		"given":       {js: `return method_response.length`, data: text, want: "after_action is given more than 68 MiB"},
		"an answer":   {js: `http_request({url: 'http://x/'})`, want: "after_action at method level: http_request: its answer is more than the 68 MiB that a script may be given"},
		"all at once": {js: `for (var i = 0; i < 17; i++) console.log('x'.repeat(64000)); method_response = 'x'.repeat(32 * 1024 * 1024 - 10); return method_response`},
	} {
		out, err := e.Run(context.Background(), &Event{Name: "after_action", Doer: doer, Scripts: source(LevelMethod, "function after_action() { "+test.js+" }"),
			Globals: []Global{{Name: "method_response", JSON: test.data, Write: true}}})
		if test.want == "" {
			if err != nil || len(out.Result) < 32<<20-10 {
				t.Errorf("%s: %v", name, err)
			}
		} else if err == nil || !strings.HasSuffix(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %s", name, err, test.want)
		}
	}
	if n := e.Stats().Deaths; n != 0 {
		t.Errorf("%d hosts died", n)
	}
}

// The smallest limit that a worker takes leaves a script room to work in.
func TestRun_smallMemoryIsEnough(t *testing.T) {
	e := newEngine(t, Config{Hosts: 1, Memory: 64 << 20})
	body := []byte(`{"list": [` + strings.TrimSuffix(strings.Repeat(`"abcdefghij",`, 50_000), ",") + `]}`)
	js := `function after_action() {
		var hash = CryptoJS.SHA256(moment.tz('2026-01-01T00:00:00Z', 'Europe/Berlin').format()).toString();
		return method_response.list.map(function (s) { return s + hash }).join('').length;
	}`
	for i := range 10 { // each on a host that has compiled none of it
		out, err := e.Run(context.Background(), &Event{Name: "after_action", Scripts: source(LevelConnector, fmt.Sprintf("%s // %d", js, i)),
			Globals: []Global{{Name: "method_response", JSON: body, Write: true}}})
		if err != nil || string(out.Result) != "3700000" {
			t.Fatalf("event %d: %+v, %v", i, out, err)
		}
		e.mu.Lock()
		idle := e.idle
		e.idle = nil
		e.mu.Unlock()
		for _, h := range idle {
			e.end(h)
		}
	}
}

// What an event has left behind for the collector costs no host, nor the next
// event the time to load the libraries again.
func TestRun_garbageCostsNoHost(t *testing.T) {
	if testing.Short() {
		t.Skip(needsMemory)
	}
	e := newEngine(t, Config{Hosts: 1, Memory: 64 << 20})
	scripts := source(LevelConnector, `function after_action() { return moment.tz('2026-07-01T00:00:00Z', 'Europe/London').format() + CryptoJS.SHA256('a') }`)
	for range 20 {
		if _, err := e.Run(context.Background(), &Event{Name: "after_action", Scripts: scripts}); err != nil {
			t.Fatal(err)
		}
	}
	if n := e.Stats().Started; n > 2 {
		t.Errorf("20 events took %d hosts", n)
	}
}

type doerFunc func(context.Context, HTTPRequest) (*HTTPResponse, error)

func (f doerFunc) DoHook(ctx context.Context, r HTTPRequest) (*HTTPResponse, error) { return f(ctx, r) }

func TestRun_httpRequestGoesThroughTheDoer(t *testing.T) {
	e := newEngine(t, Config{Hosts: 1, MaxRequests: 2})
	var seen []HTTPRequest
	doer := doerFunc(func(ctx context.Context, r HTTPRequest) (*HTTPResponse, error) {
		seen = append(seen, r)
		if r.URL == "http://down/" {
			return nil, errors.New("connection refused")
		}
		// While one event waits here another one runs, on a single slot.
		if _, err := e.Run(ctx, &Event{Name: "before_action", Scripts: source(LevelMethod, "function before_action(){}")}); err != nil {
			return nil, err
		}
		return &HTTPResponse{StatusCode: 404, Headers: json.RawMessage(`{"X-A":"1"}`), Content: "no", Request: json.RawMessage(`{}`)}, nil
	})
	out, err := e.Run(context.Background(), &Event{Name: "after_action", Doer: doer, Scripts: source(LevelConnector, `
function after_action() {
  var r = http_request({method: 'post', url: 'http://x/', headers: {A: 'b'}, data: {k: 1}, parameters: {q: 1}});
  var text = '';
  try { http_request({url: 'http://down/'}) } catch (e) { text = (e instanceof Error) + e.message }
  return [r.status_code, r.headers['x-a'], r.content, text];
}`)})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(out.Result), `[404,"1","no","trueconnection refused"]`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	want := []HTTPRequest{
		{Method: "POST", URL: "http://x/", Headers: map[string]string{"A": "b"}, Data: `{"k":1}`, HasData: true, Parameters: json.RawMessage(`{"q":1}`)},
		{Method: "GET", URL: "http://down/"},
	}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	_, err = e.Run(context.Background(), &Event{Name: "after_action", Doer: doer, Scripts: source(LevelConnector, `function after_action() { for (;;) { try { http_request({url: 'http://down/'}) } catch (e) {} } }`)})
	var le *LimitError
	if !errors.As(err, &le) {
		t.Errorf("endless requests: got %v, want a LimitError", err)
	}
}

// A host that somebody kills while it compiles tells nothing of the source.
func TestRun_killedWhileItCompilesBansNothing(t *testing.T) {
	e := newEngine(t, Config{Hosts: 1})
	long := strings.Repeat("\nvar a = {b: [1, 2, 3]};", 2000)
	killed := 0
	for i := range 20 { // sooner and later, on a host that has run nothing
		h, err := e.spawn()
		if err != nil {
			t.Fatal(err)
		}
		e.mu.Lock()
		idle := e.idle
		e.idle = []*host{h}
		e.hosts <- struct{}{}
		e.mu.Unlock()
		for _, old := range idle {
			e.end(old)
		}
		ev := &Event{Name: "before_action", Scripts: source(LevelConnector, fmt.Sprintf("function before_action() { return 7 } // %d%s", i, long))}
		kill := time.AfterFunc(time.Duration(i)*500*time.Microsecond, func() { _ = h.cmd.Process.Kill() })
		if _, err := e.Run(context.Background(), ev); err != nil {
			killed++
		}
		kill.Stop()
		out, err := e.Run(context.Background(), ev)
		if err != nil || string(out.Result) != "7" {
			t.Fatalf("the next event of that source: %+v, %v", out, err)
		}
	}
	if killed == 0 {
		t.Error("no host was killed in time")
	}
}

// A host that is killed while it waits for its first event harms none.
func TestRun_killedBeforeItsFirstEventHarmsNone(t *testing.T) {
	e := newEngine(t, Config{Hosts: 2})
	for _, h := range e.idle {
		_ = h.cmd.Process.Kill()
		if _, err := h.cmd.Process.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		out, err := e.Run(context.Background(), &Event{Name: "before_action", Scripts: source(LevelConnector, "function before_action() { return 7 }")})
		if err != nil || string(out.Result) != "7" {
			t.Errorf("got %+v, %v", out, err)
		}
	}
}

func TestRun_cancelledContextIsNoLimit(t *testing.T) {
	e := newEngine(t, Config{})
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := e.Run(ctx, &Event{Name: "before_action", Scripts: source(LevelMethod, "function before_action(){while(true){}}")})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the context's error", err)
	}
}

// What harms a host is charged to the event that did it, and to no other.
func TestRun_harmIsNobodyElses(t *testing.T) {
	ctx := context.Background()
	connector := Script{Level: LevelConnector, File: "c.js", Source: "function after_action() { return 1; }"}
	good := &Event{Name: "after_action", Scripts: []Script{connector}}
	works := func(t *testing.T, e *Engine) {
		t.Helper()
		if out, err := e.Run(ctx, good); err != nil || string(out.Result) != "1" {
			t.Errorf("the connector's own event: %v, %v", out, err)
		}
	}
	t.Run("a step's source that ends the compiler", func(t *testing.T) {
		e := newEngine(t, Config{Hosts: 1, Timeout: time.Second})
		bomb := Script{Level: LevelStep, File: "step", Source: strings.Repeat("1+", 30_000) + "1; after_action"}
		for range 2 {
			var le *LimitError
			if _, err := e.Run(ctx, &Event{Name: "after_action", Scripts: []Script{connector, bomb}}); !errors.As(err, &le) {
				t.Errorf("the bomb: %v, want a LimitError", err)
			}
			works(t, e)
		}
	})
	t.Run("an idle host is killed", func(t *testing.T) {
		e := newEngine(t, Config{Hosts: 1})
		works(t, e)
		e.mu.Lock()
		_ = e.idle[0].cmd.Process.Kill()
		e.mu.Unlock()
		works(t, e)
		if n := e.Stats().Deaths; n != 0 {
			t.Errorf("%d deaths were charged to somebody", n)
		}
	})
	t.Run("memory that an earlier event used", func(t *testing.T) {
		if testing.Short() {
			t.Skip(needsMemory)
		}
		e := newEngine(t, Config{Hosts: 1})
		for range 3 {
			if _, err := e.Run(ctx, &Event{Name: "before_action", Scripts: source(LevelMethod, `function before_action() { new ArrayBuffer(250 * 1024 * 1024) }`)}); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("endless loops", func(t *testing.T) {
		e := newEngine(t, Config{Hosts: 1, MaxHosts: 20, Timeout: 20 * time.Second})
		loops, stop := context.WithCancel(ctx)
		defer stop()
		var ended atomic.Int64
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				_, _ = e.Run(loops, &Event{Name: "before_action", Scripts: source(LevelMethod, `function before_action() { while (true) {} }`)})
				ended.Add(1)
			})
		}
		works(t, e)
		if n := ended.Load(); n != 0 {
			t.Errorf("it had to wait for %d endless loops to end", n)
		}
		stop()
		wg.Wait()
	})
}

// patience is a worker's side that answers only when it may wait no longer.
type patience struct{}

func (patience) DoHook(ctx context.Context, _ HTTPRequest) (*HTTPResponse, error) {
	<-ctx.Done() // a test that never ends is one that fails
	return nil, ctx.Err()
}

func (patience) DoStorage(ctx context.Context, _ StorageRequest) (json.RawMessage, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// Who waits for the worker until the event's time is up has broken the limit:
// there was no fault of a network or of Redis that a script could catch.
func TestRun_waitingForTheWorkerCountsForTheTimeLimit(t *testing.T) {
	e := newEngine(t, Config{Hosts: 1, Timeout: 500 * time.Millisecond})
	for name, js := range map[string]string{
		"http_request":         `http_request({url: 'http://slow/'})`,
		"http_request, caught": `try { http_request({url: 'http://slow/'}) } catch (e) { return true }`,
		"storage":              `cyclr_storage_get('a')`,
		"storage, caught":      `for (;;) try { cyclr_storage_get('a') } catch (e) {}`,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := e.Run(context.Background(), &Event{Name: "before_action", Doer: patience{}, Storage: patience{}, Scripts: source(LevelMethod, `function before_action() { `+js+` }`)})
			var limit *LimitError
			if !errors.As(err, &limit) || limit.Message != "before_action ran longer than 500ms" {
				t.Errorf("got %v, want a LimitError that tells the time", err)
			} else if !strings.Contains(limit.At, ":1:") {
				t.Errorf("its place is %q", limit.At)
			}
			if out, err := e.Run(context.Background(), &Event{Name: "before_action", Scripts: source(LevelMethod, `function before_action() { return 7 }`)}); err != nil || string(out.Result) != "7" {
				t.Errorf("the next event: %v, %v", out, err)
			}
		})
	}
}

func TestRun_anUncaughtNetworkFaultIsTold(t *testing.T) {
	e := newEngine(t, Config{Hosts: 1})
	doer := doerFunc(func(context.Context, HTTPRequest) (*HTTPResponse, error) { return nil, errors.New("refused") })
	for js, want := range map[string]bool{
		`http_request({url: 'http://x/'})`:                                            true,
		`try { http_request({url: 'http://x/'}) } catch (e) { throw e }`:              true,
		`try { http_request({url: 'http://x/'}) } catch (e) { throw new Error('x') }`: false,
		`throw new Error('refused')`:                                                  false,
	} {
		_, err := e.Run(context.Background(), &Event{Name: "before_action", Doer: doer, Scripts: source(LevelMethod, `function before_action() { `+js+` }`)})
		var se *ScriptError
		if !errors.As(err, &se) || se.Fault != want {
			t.Errorf("%s: got %+v, want Fault %v", js, err, want)
		}
	}
}

func TestRun_nothingOutlivesAnEvent(t *testing.T) {
	e := newEngine(t, Config{Hosts: 1})
	for name, attack := range map[string]string{
		"global":            `leak = 1`,
		"Object.prototype":  `Object.prototype.leak = 1`,
		"Array.prototype":   `Array.prototype.map = function(){return 'leak'}`,
		"JSON":              `JSON.parse = function(){return 'leak'}; JSON = {stringify: function(){return '"leak"'}}`,
		"frozen global":     `Object.defineProperty(globalThis, 'leak', {value: 1, writable: false, configurable: false})`,
		"symbol":            `globalThis[Symbol.for('leak')] = 1`,
		"Math":              `Math.leak = 1`,
		"preventExtensions": `Object.preventExtensions(globalThis)`,
		"iterator":          `Object.getPrototypeOf([][Symbol.iterator]()).next = function(){return {done:true}}`,
		"microtask":         `Promise.resolve().then(function(){ leak = 1 })`,
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := e.Run(context.Background(), &Event{Name: "before_action", Scripts: source(LevelMethod, "function before_action(){"+attack+"}")}); err != nil {
				t.Fatal(err)
			}
			out, err := e.Run(context.Background(), &Event{Name: "before_action", Scripts: source(LevelMethod, `
let once = 1;
function before_action() {
  fresh = 1;
  return [typeof leak, ({}).leak, [1].map(function(x){return x + 1})[0], JSON.stringify(JSON.parse('[1]')), Math.leak, globalThis[Symbol.for('leak')], [...[1, 2]].length];
}`)})
			if err != nil {
				t.Fatal(err)
			}
			if got, want := string(out.Result), `["undefined",null,2,"[1]",null,null,2]`; got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		})
	}
}

func TestPrescan_depthAndSize(t *testing.T) {
	for name, c := range map[string]struct {
		source string
		bad    bool
	}{
		"plain":            {"function a(){}", false},
		"brackets in text": {`var a = "` + strings.Repeat("(", 500) + `"`, false},
		"comment":          {"/* " + strings.Repeat("(", 500) + " */", false},
		"deep":             {strings.Repeat("(", 300), true},
		"long":             {strings.Repeat(" ", MaxSource+1), true},
		"in regexes":       {strings.Repeat("var r = /[(]\\(/;\n", 300), false},
		"after a regex":    {`/"/;` + strings.Repeat("(", 300), true},
		"after a class":    {`/[/*]/;` + strings.Repeat("(", 300), true},
		"division":         {`a = b / c; d = "` + strings.Repeat("(", 300) + `" / 2`, false},
	} {
		if _, text := prescan(c.source); (text != "") != c.bad {
			t.Errorf("%s: %q", name, text)
		}
	}
}

func BenchmarkEvent(b *testing.B) {
	e := newEngine(b, Config{})
	body := json.RawMessage(`{"items":["` + strings.Repeat("x", 1000) + `"],"error":null}`)
	const js = `function after_action() { if (method_response != null && method_response.error === 'invalid_grant') { throw new AuthRefreshException(); } return true; }`
	b.Run("host", func(b *testing.B) {
		for b.Loop() {
			if _, err := e.Run(context.Background(), &Event{Name: "after_action", Scripts: source(LevelConnector, js), Globals: []Global{{Name: "method_response", JSON: body, Write: true}}}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("engine alone", func(b *testing.B) {
		p := goja.MustCompile("", js, false)
		for b.Loop() {
			vm := goja.New()
			v, _ := parseJSON(vm, body, false)
			_ = vm.Set("method_response", v)
			if _, err := vm.RunProgram(p); err != nil {
				b.Fatal(err)
			}
			fn, _ := goja.AssertFunction(vm.Get("after_action"))
			if _, err := fn(goja.Undefined()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// Changes that no assignment to a member shows are reported all the same.
func TestRun_changesInOddWays(t *testing.T) {
	e := newEngine(t, Config{Hosts: 1})
	for name, js := range map[string]string{
		"a function of Object by a name that is computed": `var f = Object['ass' + 'ign']; f(method_response, {b: 1})`,
		"the same, taken apart":                           `var {['ass' + 'ign']: f} = Object; f(method_response, {b: 1})`,
		"the same, under another name":                    `var O = Object, k = 'ass' + 'ign', f = O[k]; f(method_response, {b: 1})`,
		"a field of a class whose base returns it":        `function Base(o) { return o } class Stamp extends Base { b = 1 } new Stamp(method_response)`,
		"words that a library works on":                   `CryptoJS.lib.WordArray.create(method_response.words, 4).concat(CryptoJS.enc.Hex.parse('00000001'))`,
		"deleted unread":                                  `delete method_response`,
		"defined anew unread":                             `Object.defineProperty(globalThis, 'method_response', {value: {b: 1}})`,
		"a locale that a library takes":                   `moment.defineLocale('x-own', method_response)`,
	} {
		t.Run(name, func(t *testing.T) {
			out, err := e.Run(context.Background(), &Event{Name: "after_action", Scripts: source(LevelMethod, "function after_action() { "+js+" }"),
				Globals: []Global{{Name: "method_response", JSON: json.RawMessage(`{"words": [1]}`), Write: true}}})
			if err != nil || len(out.Changed) != 1 {
				t.Errorf("%+v, %v", out, err)
			}
		})
	}
}
