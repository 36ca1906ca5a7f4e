package hooks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dop251/goja"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
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

// A conformance case is a txtar file: connector.js, method.js, step.js (each
// optional), event (name, globals, which of them are writable or headers),
// http (the requests that http_request makes, in order, and their answers),
// storage (what is stored before) and want (what came of it, as JSON).
// testdata/conformance/README.md is for those who write one.
type conformanceEvent struct {
	Event   string                     `json:"event"`
	Inline  bool                       `json:"inline"`
	Globals map[string]json.RawMessage `json:"globals"`
	Write   []string                   `json:"write"`
	Headers []string                   `json:"headers"`
	NotStep []string                   `json:"not_step"`
}

type conformanceWant struct {
	Ran     bool                       `json:"ran"`
	Result  json.RawMessage            `json:"result,omitempty"`
	Changed map[string]json.RawMessage `json:"changed,omitempty"`
	Logs    []string                   `json:"logs,omitempty"`
	Error   string                     `json:"error,omitempty"` // kind: text
	At      string                     `json:"at,omitempty"`
	Level   Level                      `json:"level,omitempty"`
	// Storage is what is stored afterwards, where the case has a storage file.
	Storage map[string][][2]string `json:"storage,omitempty"`
}

// exchanges answers http_request as a case says, and notes what differs.
type exchanges struct {
	t    *testing.T
	left []exchange
}

type exchange struct {
	Request  HTTPRequest   `json:"request"`
	Response *HTTPResponse `json:"response"`
	Fault    string        `json:"fault"`
}

func (x *exchanges) DoHook(_ context.Context, r HTTPRequest) (*HTTPResponse, error) {
	if len(x.left) == 0 {
		x.t.Errorf("a request that the case does not expect: %s %s", r.Method, r.URL)
		return nil, errors.New("unexpected")
	}
	next := x.left[0]
	x.left = x.left[1:]
	next.Request.HasData = r.HasData
	if diff := cmp.Diff(next.Request, r, sameRaw); diff != "" {
		x.t.Errorf("request (-want +got):\n%s", diff)
	}
	if next.Fault != "" {
		return nil, errors.New(next.Fault)
	}
	return next.Response, nil
}

// shelf is a storage for cases: pairs in order.
type shelf map[string][][2]string

func (s shelf) DoStorage(_ context.Context, r StorageRequest) (json.RawMessage, error) {
	family := "cyclr"
	if r.Cycle {
		family = "cycle"
	}
	at := slices.IndexFunc(s[family], func(p [2]string) bool { return p[0] == r.Key })
	put := func(v string) {
		if at >= 0 {
			s[family][at][1] = v
		} else {
			s[family] = append(s[family], [2]string{r.Key, v})
		}
	}
	old := ""
	if at >= 0 {
		old = s[family][at][1]
	}
	var out any
	switch r.Op {
	case "list_values", "list_keys":
		list := []string{}
		for _, p := range s[family] {
			list = append(list, p[map[string]int{"list_keys": 0, "list_values": 1}[r.Op]])
		}
		out = list
	case "get":
		if at >= 0 {
			out = old
		}
	case "set":
		put(r.Value)
	case "append":
		put(old + r.Value)
	case "delete":
		if at >= 0 {
			s[family] = slices.Delete(s[family], at, at+1)
		}
	case "delete_all":
		delete(s, family)
	case "increment", "decrement":
		n := 0.0
		if _, err := fmt.Sscan(old, &n); err != nil && old != "" {
			return nil, &StorageError{"the stored value is no number"}
		}
		if r.Op == "decrement" {
			r.Amount = -r.Amount
		}
		text := strconv.FormatFloat(n+r.Amount, 'f', -1, 64)
		put(text)
		out = text
	}
	return json.Marshal(out)
}

// sameRaw compares JSON white space aside.
var sameRaw = cmp.Comparer(func(a, b json.RawMessage) bool {
	var x, y bytes.Buffer
	if json.Compact(&x, a) != nil || json.Compact(&y, b) != nil {
		return bytes.Equal(a, b)
	}
	return bytes.Equal(x.Bytes(), y.Bytes())
})

func TestConformance(t *testing.T) {
	e := newEngine(t, Config{})
	files, err := filepath.Glob("testdata/conformance/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no conformance cases: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var in conformanceEvent
			var want conformanceWant
			ev := &Event{}
			doer := &exchanges{t: t}
			var stored shelf
			for _, f := range ar.Files {
				var err error
				switch f.Name {
				case "event":
					err = json.Unmarshal(f.Data, &in)
				case "want":
					err = json.Unmarshal(f.Data, &want)
				case "http":
					err = json.Unmarshal(f.Data, &doer.left)
				case "storage":
					stored = shelf{}
					err = json.Unmarshal(f.Data, &stored)
				default:
					level := Level(strings.TrimSuffix(f.Name, ".js"))
					ev.Scripts = append(ev.Scripts, Script{Level: level, File: f.Name, Source: string(f.Data)})
				}
				if err != nil {
					t.Fatalf("%s: %v", f.Name, err)
				}
			}
			ev.Name, ev.Inline, ev.Doer = in.Event, in.Inline, doer
			if stored != nil {
				ev.Storage = stored
			}
			for name, raw := range in.Globals {
				g := Global{Name: name, JSON: raw}
				for _, w := range in.Write {
					g.Write = g.Write || w == name
				}
				for _, h := range in.Headers {
					g.Headers = g.Headers || h == name
				}
				g.NotStep = slices.Contains(in.NotStep, name)
				ev.Globals = append(ev.Globals, g)
			}
			out, err := e.Run(context.Background(), ev)
			got := conformanceWant{}
			if out != nil {
				got = conformanceWant{Ran: out.Ran, Result: out.Result, Changed: out.Changed, Logs: out.Logs}
			}
			var se *ScriptError
			var ex *Exception
			var le *LimitError
			switch {
			case errors.As(err, &ex):
				got.Error, got.At, got.Level = string(ex.Kind)+": "+ex.Text, ex.At, ex.Level
			case errors.As(err, &se):
				got.Error, got.At, got.Level = fmt.Sprintf("script engine=%v: %s", se.Engine, se.Message), se.At, se.Level
			case errors.As(err, &le):
				got.Error = "limit: " + le.Message
			case err != nil:
				t.Fatal(err)
			}
			if len(doer.left) > 0 {
				t.Errorf("%d expected requests were not made", len(doer.left))
			}
			got.Storage = stored
			if len(got.Changed) == 0 {
				got.Changed = nil
			}
			if diff := cmp.Diff(want, got, sameRaw); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func source(level Level, js string) []Script {
	return []Script{{Level: level, File: string(level) + ".js", Source: js}}
}

// Each hostile script fails by itself, within its limits; the next event works.
func TestRun_hostileScriptFailsAloneWithKindLimit(t *testing.T) {
	if testing.Short() {
		t.Skip("runs into its time limits")
	}
	e := newEngine(t, Config{Timeout: 700 * time.Millisecond, Memory: 256 << 20})
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
			t.Skip("the race detector needs several times the memory")
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

func TestRun_httpRequestsCountForTheTimeLimit(t *testing.T) {
	e := newEngine(t, Config{Hosts: 1, Timeout: 500 * time.Millisecond})
	doer := doerFunc(func(ctx context.Context, _ HTTPRequest) (*HTTPResponse, error) {
		<-ctx.Done() // a test that never ends is one that fails
		return nil, ctx.Err()
	})
	_, err := e.Run(context.Background(), &Event{Name: "before_action", Doer: doer, Scripts: source(LevelMethod, `function before_action() { http_request({url: 'http://slow/'}) }`)})
	if err == nil {
		t.Error("no error")
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
			v, _ := parseJSON(vm, body)
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
