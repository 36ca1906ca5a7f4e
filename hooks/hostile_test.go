package hooks

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// hostile are scripts that hang bare goja, end its process or eat its memory,
// by name. A name that ends in "!" may also end well, or with the script's own
// error, as long as it ends: where what stops it depends on the machine.
var hostile = map[string]string{
	"loop":                        `while(true){}`,
	"loop in finally":             `try{while(true){}}finally{while(true){}}`,
	"loop in catch":               `for(;;){try{throw 1}catch(e){}}`,
	"loop in getter":              `var o={get a(){while(true){}}}; o.a`,
	"loop in toString":            `""+{toString(){while(true){}}}`,
	"loop in valueOf":             `1+{valueOf(){while(true){}}}`,
	"loop in toJSON":              `JSON.stringify({toJSON(){while(true){}}})`,
	"loop in reviver":             `JSON.parse("[1]",function(){while(true){}})`,
	"loop in replacer":            `"a".replace(/a/,function(){while(true){}})`,
	"loop in comparator":          `[3,2,1].sort(function(){while(true){}})`,
	"loop in iterator":            `for(var x of {[Symbol.iterator](){return {next(){return {done:false}}}}}){}`,
	"loop in a promise":           `return (async()=>{while(true){await null}})()`,
	"loop of microtasks":          `(function f(){Promise.resolve().then(f)})(); return 1`,
	"loop in a thenable":          `return Promise.resolve({then(){while(true){}}})`,
	"loop in a proxy's trap":      `return new Proxy({a:1},{get(){while(true){}},ownKeys(){while(true){}}})`,
	"loop in a generator":         `function* g(){try{yield 1}finally{while(true){}}}; for(var x of g()) break;`,
	"loop in new Function":        `new Function("while(true){}")()`,
	"loop in eval":                `eval("for(;;);")`,
	"loop in instanceof":          `({}) instanceof {[Symbol.hasInstance](){while(true){}}}`,
	"loop in a Date":              `new Date({valueOf(){while(true){}}})`,
	"loop in console.log":         `console.log({toJSON(){while(true){}}})`,
	"loop in http_request":        `http_request({get url(){while(true){}}})`,
	"loop in storage":             `cyclr_storage_set({toJSON(){while(true){}}}, 1)`,
	"loop in the message thrown":  `throw {toString(){while(1){}}, get message(){while(1){}}}`,
	"loop in an Error's message":  `var e=new Error("a");Object.defineProperty(e,"message",{get(){while(true){}}});throw e`,
	"loop in a thrown proxy":      `throw new Proxy({}, {get(){while(true){}}})`,
	"loop in what it leaves":      `action_data={toJSON(){while(true){}}}`,
	"loop in a proxy it leaves":   `action_data=new Proxy({},{ownKeys(){while(true){}}})`,
	"recursion":                   `function f(){return f()+1}; f()`,
	"recursion through a native":  `function f(){return [1].map(f)}; f()`,
	"recursion in a getter":       `var o={get a(){return this.a}}; o.a`,
	"recursion in toString":       `var o={toString(){return ""+o}}; ""+o`,
	"recursion in toJSON":         `var o={toJSON(){return {a:o}}};JSON.stringify(o)`,
	"recursion in a constructor":  `class A{constructor(){new A()}}; new A()`,
	"recursion in a proxy":        `var p=new Proxy({},{get(t,k){return p[k]}}); p.x`,
	"recursion by apply":          `(function f(){f.apply(null,[])})()`,
	"recursion in a promise!":     `return (async function f(){await f()})()`,
	"regex backreference":         `/(a+)+\1$/.test("a".repeat(40)+"!")`,
	"regex lookahead":             `/^(?=(a+)+b)(a+)+c/.test("a".repeat(60))`,
	"regex lookbehind!":           `/(?<=(a+)+)b/.exec("a".repeat(50000)+"c")`,
	"regex in replace":            `("a".repeat(40)+"!").replace(/(a|aa)+\1$/g,"x")`,
	"regex linear!":               `/(a+)+$/.test("a".repeat(30)+"!")`,
	"regex big!":                  `var r=/(x+x+)+y/; r.test("x".repeat(200000))`,
	"regex of many groups!":       `new RegExp("(".repeat(1e6)+")".repeat(1e6))`,
	"regex of many lookaheads!":   `new RegExp("(?=".repeat(1e6)+")".repeat(1e6))`,
	"regex of quantifiers!":       `/((a{100}){100}){100}/.test("a")`,
	"repeat":                      `"x".repeat(2**30).length`,
	"repeat of a wide character":  `"\u4e2d".repeat(2**30).length`,
	"repeat without bound":        `"x".repeat(2**53-1).length`,
	"repeat, 2^34":                `"x".repeat(2**34)`,
	"repeat in a loop":            `var a=[];for(;;){a.push("x".repeat(1e6))}`,
	"join":                        `new Array(2**32-1).join("x").length`,
	"doubling":                    `var s="x"; while(true){s+=s}`,
	"doubling in a template":      "var s='x'; while(true){s=`${s}${s}`}",
	"doubling by concat":          `var a=[1,2,3];for(;;)a=a.concat(a)`,
	"doubling by spread":          `var a=[1,2,3];for(;;)a=[...a,...a]`,
	"doubling of an object":       `var o={a:1};for(var i=0;;i++)o={a:o,b:Object.assign({},o),["k"+i]:new Array(1e5).fill(i)}`,
	"fill":                        `new Array(1e9).fill(1)`,
	"indexOf of nothing":          `Array.prototype.indexOf.call({length:2**53-1},1)`,
	"includes of nothing":         `Array.prototype.includes.call({length:2**53-1},1)`,
	"forEach of nothing":          `Array.prototype.forEach.call({length:2**53-1},function(){})`,
	"reverse of nothing":          `Array.prototype.reverse.call({length:2**53-1})`,
	"sort of nothing":             `Array.prototype.sort.call({length:2**32})`,
	"sparse indexOf!":             `var a=[];a.length=4294967295;a.indexOf(1)`,
	"sparse, left behind":         `action_data=Array(4294967295)`,
	"sparse, returned":            `return Array(4294967295)`,
	"apply of a length":           `(function(){}).apply(null,{length:2**31})`,
	"Reflect.apply of a length":   `Reflect.apply(Math.max,null,{length:3e8})`,
	"spread of a length":          `Math.max(...{length:2**32,[Symbol.iterator]:Array.prototype[Symbol.iterator]})`,
	"Array.from of a length":      `Array.from({length:1e9}).length`,
	"Array.from of a generator":   `Array.from((function*(){for(;;)yield {}})())`,
	"typed from of a length":      `Uint8Array.from({length:2**53-1})`,
	"typed array":                 `new Uint8Array(2**31).fill(1)`,
	"typed arrays":                `var a=[];for(;;)a.push(new Float64Array(1e6).fill(1))`,
	"array buffer":                `new ArrayBuffer(2**33).byteLength`,
	"concat spreadable":           `var o={length:2**31,[Symbol.isConcatSpreadable]:true};[].concat(o,o)`,
	"flat of deep":                `var a=[];for(var i=0;i<5e6;i++)a=[a];a.flat(Infinity).length`,
	"toString of deep":            `var a=[];for(var i=0;i<3e6;i++)a=[a];String(a).length`,
	"JSON of a giant":             `JSON.stringify(Array(1e9)).length`,
	"JSON of deep":                `var a=[];for(var i=0;i<1e7;i++)a=[a];JSON.stringify(a).length`,
	"JSON parse of deep":          `var s="[".repeat(1e6)+"]".repeat(1e6);JSON.parse(s);1`,
	"JSON parse of deep objects":  `JSON.parse('{"a":'.repeat(1e6)+'1'+'}'.repeat(1e6))`,
	"JSON parse of wide!":         `JSON.parse('['+'1,'.repeat(2e7)+'1]').length`,
	"JSON indent":                 `JSON.stringify(new Array(1e7).fill({a:[1]}),null,"          ").length`,
	"deep, left behind":           `var a=[];for(var i=0;i<1e5;i++)a=[a];action_data=a`,
	"wide, left behind":           `action_data=new Array(5e6).fill("abcdefghij")`,
	"big, returned":               `return "x".repeat(40*1024*1024)`,
	"bind chain!":                 `var f=function(){};for(var i=0;i<3e6;i++)f=f.bind();f()`,
	"prototype chain!":            `var p={};for(var i=0;i<5e6;i++)p=Object.create(p);p.x`,
	"instanceof of a bind chain!": `var f=function(){};for(var i=0;i<3e6;i++)f=f.bind();({}) instanceof f`,
	"lying comparator!":           `var a=[5,4,3,2,1];a.sort(function(x,y){a.length=0;return x-y});return a.length`,
	"comparator that grows":       `var a=[5,4,3,2,1];for(;;)a.sort(function(x,y){a.push(1);return Math.random()-.5})`,
	"eval of deep":                `eval("(".repeat(1e6)+"1"+")".repeat(1e6))`,
	"eval of deeper":              `eval("(".repeat(5e6))`,
	"Function of deep":            `Function("[".repeat(5e6))`,
	"eval of a long sum":          `eval("1+".repeat(2e5)+"1")`,
	"bigint power":                `(2n**(2n**31n)).toString().length`,
	"bigint power, smaller":       `(9n**20000000n).toString().length`,
	"bigint shift":                `1n<<(2n**40n)`,
	"bigint factorial":            `var x=1n;for(var i=1n;;i++)x*=i**50n`,
	"padStart":                    `"x".padStart(2**31,"ab").length`,
	"padEnd":                      `"x".padEnd(2**31).length`,
	"replace that grows":          `var s="x".repeat(1e5); s.replace(/x/g,s).length`,
	"split":                       `var s="x".repeat(2e8); s.split("").length`,
	"normalize":                   `"\ufdfa".repeat(5e7).normalize("NFKD").length`,
	"localeCompare!":              `"a".repeat(5e7).localeCompare("a".repeat(5e7)+"b")`,
	"encodeURIComponent":          `encodeURIComponent("\u4e2d".repeat(2e8)).length`,
	"map that grows":              `var m=new Map();for(var i=0;;i++)m.set(i,{})`,
	"set that grows":              `var m=new Set();for(var i=0;;i++)m.add({i:i})`,
	"symbols":                     `var o={};for(;;)o[Symbol()]=new Array(100).fill(1)`,
	"String.raw":                  `String.raw({raw:{length:2**53-1}})`,
	"closures":                    `var f=null;for(;;){f=(function(g){var big=new Array(1000).fill(1);return function(){return g&&big}})(f)}`,
	"moment in a loop":            `for(;;)moment().add(1,"day").format()`,
	"moment of a long format":     `moment.utc().format("YYYY".repeat(5e7))`,
	"CryptoJS on much":            `CryptoJS.SHA256("x".repeat(1e8)).toString()`,
	"PBKDF2":                      `CryptoJS.PBKDF2("a","b",{keySize:64,iterations:1e9})`,
	"btoa of much":                `btoa("\u4e2d".repeat(1e8),"utf-7").length`,
	"CSV of much":                 `cyclr_csv_parse("a,b\n".repeat(5e7),",",false).length`,
	"XML of deep!":                `cyclr_xml_deserialize("<a>".repeat(1e6))`,
	"XML of much":                 `cyclr_xml_deserialize("<r>"+"<a>1</a>".repeat(1e7)+"</r>")`,
	"XML out of much":             `cyclr_xml_serialize({r:new Array(5e6).fill({a:{b:1}})})`,
	"sign of much":                `for(;;)cyclr_sign("HMAC-SHA512","k","x".repeat(5e7))`,
	"random":                      `for(;;)crypto.getRandomValues(new Uint8Array(65536))`,
	"toLocaleString!":             `(1).toLocaleString("en",{minimumFractionDigits:1e9})`,
	"http_request of much":        `http_request({method:"POST",url:"http://x/",data:"x".repeat(40*1024*1024)})`,
	"http_requests":               `for(;;){try{http_request({url:"http://x/"})}catch(e){}}`,
	"storage calls":               `for(;;){try{cyclr_storage_get("a")}catch(e){}}`,
	"console.log of much":         `for(;;)console.log("x".repeat(1e6))`,
}

// hostileSources do their harm before a handler runs.
var hostileSources = map[string]string{
	"open brackets":     strings.Repeat("(", 60_000),
	"closed brackets":   strings.Repeat("(", 30_000) + "1" + strings.Repeat(")", 30_000),
	"lists":             strings.Repeat("[", 30_000) + strings.Repeat("]", 30_000),
	"blocks":            strings.Repeat("{", 30_000) + strings.Repeat("}", 30_000),
	"brackets in text!": "`${" + strings.Repeat("(", 30_000) + strings.Repeat(")", 30_000) + "}`",
	"a long sum!":       strings.Repeat("1+", 30_000) + "1",
	"arrows!":           strings.Repeat("a=>", 20_000) + "1",
	"negations!":        strings.Repeat("!", 60_000) + "1",
	"commas!":           strings.Repeat("1,", 30_000) + "1",
	"ternaries!":        strings.Repeat("1?1:", 15_000) + "1",
	"members!":          "var a={};a" + strings.Repeat(".a", 30_000),
	"calls!":            "function f(){return f};f" + strings.Repeat("()", 30_000),
	"elses!":            strings.Repeat("if(0){}else ", 5_000) + "{}",
	"megabytes":         strings.Repeat("var x = 1;\n", 200_000),
	"a loop at its top": "while(true){}",
	"a throw!":          "throw new Error('at load')",
	"source map!":       "1\n//# sourceMappingURL=file:///dev/zero",
	"names":             "var " + strings.Repeat("a", 65_000) + " = 1;" + strings.Repeat("b", 1000),
	"variables!": "var x0" + func() (s string) {
		var b strings.Builder
		for i := range 8000 {
			fmt.Fprintf(&b, ",x%d", i)
		}
		return b.String()
	}(),
}

// Every hostile script fails its own event, within its limits and with a
// LimitError; all the while a well-behaved event goes on on the same engine,
// and afterwards the memory is back.
func TestRun_hostileScriptsFailAlone(t *testing.T) {
	if testing.Short() {
		t.Skip("runs into its time limits")
	}
	const limit = 1500 * time.Millisecond // room for the well-behaved one on a slow machine
	e := newEngine(t, Config{Timeout: limit, Memory: 256 << 20})
	good := &Event{Name: "after_action", Scripts: source(LevelConnector, `function after_action() { return [1, 2, 3].map(function (x) { return x * method_response.n }); }`),
		Globals: []Global{{Name: "method_response", JSON: []byte(`{"n": 2}`), Write: true}}}
	works := func(t *testing.T) {
		t.Helper()
		// Two on one machine's processors may be slow, but each of them ends well.
		out, err := e.Run(context.Background(), good)
		if err != nil || string(out.Result) != "[2,4,6]" {
			t.Errorf("a well-behaved event: %+v, %v", out, err)
		}
	}
	works(t)
	before := rss(t, os.Getpid())
	stop, stopped := make(chan struct{}), make(chan struct{})
	var ran atomic.Int64
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				works(t)
				ran.Add(1)
			}
		}
	}()
	doer := doerFunc(func(context.Context, HTTPRequest) (*HTTPResponse, error) { return nil, errors.New("refused") })
	gate := make(chan struct{}, 3)
	var wg sync.WaitGroup
	try := func(name string, ev *Event) {
		ev.Doer, ev.Storage = doer, shelf{}
		ev.Globals = append(ev.Globals, Global{Name: "action_data", JSON: []byte(`{}`), Write: true})
		wg.Go(func() {
			gate <- struct{}{}
			defer func() { <-gate }()
			_, err := e.Run(context.Background(), ev)
			var le *LimitError
			var se *ScriptError
			switch may := strings.HasSuffix(name, "!"); {
			case errors.As(err, &le):
			case may && (err == nil || errors.As(err, &se)):
			default:
				t.Errorf("%s: got %v, want a LimitError", name, err)
			}
		})
	}
	for name, js := range hostile {
		try(name, &Event{Name: "before_action", Scripts: source(LevelMethod, "function before_action(){"+js+"}")})
	}
	for name, js := range hostileSources {
		try("source: "+name, &Event{Name: "before_action", Scripts: source(LevelStep, js)})
	}
	wg.Wait()
	close(stop)
	<-stopped
	if ran.Load() < 50 {
		t.Errorf("only %d well-behaved events went on beside the hostile ones", ran.Load())
	}
	if after := rss(t, os.Getpid()); after > before+(200<<20) {
		t.Errorf("this process has %d MiB now, and had %d MiB before", after>>20, before>>20)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, h := range e.idle {
		if n := rss(t, h.cmd.Process.Pid); n > 128<<20 {
			t.Errorf("a host that is kept has %d MiB", n>>20)
		}
	}
}

// rss is a process's resident memory, in bytes; 0 where there is no /proc.
func rss(t *testing.T, pid int) int64 {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	pages, _ := strconv.ParseInt(strings.Fields(string(raw))[1], 10, 64)
	return pages * int64(os.Getpagesize())
}
