package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/dop251/goja"
	"github.com/dop251/goja/parser"

	"github.com/stepworker/stepworker/hooks"
)

// A hookCase is one function, run by the engine's hook hosts and, as the
// yardstick, by bare goja in this process: a fresh runtime, the compiled
// program, the engine's own JSON.parse and JSON.stringify around it.
type hookCase struct {
	name   string
	js     []string // by level: connector, method, step
	body   int      // of method_response, in bytes; 0: none
	change bool     // it changes the body, which so has to be written again
	times  int
	few    int    // as often in bare goja, where that is enough
	bare   string // what bare goja runs instead; "-": it has nothing like it
}

const (
	looks     = `function after_action() { if (method_response != null && method_response.error === 'invalid_grant') { throw new Error('dead'); } return true; }`
	untouched = `function after_action() { return statusCode === 200; }`
	edits     = `function after_action() { for (var i = 0; i < method_response.items.length; i++) { method_response.items[i].seen = true; } return true; }`
)

var hookCases = []hookCase{
	{name: "an empty handler", js: []string{`function after_action() {}`}, times: 4000},
	{name: "three levels, 1 KB", js: []string{looks, edits, `function after_action() { method_response.count = method_response.items.length; }`}, body: 1 << 10, change: true, times: 2000},
	{name: "body untouched, 1 KB", js: []string{untouched}, body: 1 << 10, times: 4000},
	{name: "body untouched, 5 MB", js: []string{untouched}, body: 5 << 20, times: 4000, few: 5},
	{name: "looks at the body, 1 KB", js: []string{looks}, body: 1 << 10, times: 4000},
	{name: "looks at the body, 100 KB", js: []string{looks}, body: 100 << 10, times: 200},
	{name: "looks at the body, 5 MB", js: []string{looks}, body: 5 << 20, times: 5},
	{name: "edits the body, 1 KB", js: []string{edits}, body: 1 << 10, change: true, times: 2000},
	{name: "edits the body, 100 KB", js: []string{edits}, body: 100 << 10, change: true, times: 100},
	{name: "edits the body, 5 MB", js: []string{edits}, body: 5 << 20, change: true, times: 5},
	{name: "moment", js: []string{`function after_action() { return moment.utc('2026-01-02').add(1, 'day').format(); }`}, times: 200, bare: "-"},
	{name: "moment.tz", js: []string{`function after_action() { return moment.tz('2026-01-02', 'Europe/Berlin').format(); }`}, times: 200, bare: "-"},
	{name: "CryptoJS.HmacSHA256", js: []string{`function after_action() { return CryptoJS.HmacSHA256('text', 'key').toString(); }`}, times: 200, bare: "-"},
	{name: "cyclr_sign", js: []string{`function after_action() { return cyclr_sign('HMAC-SHA256', 'key', 'text'); }`}, times: 2000, bare: "-"},
}

func compareHooks(rounds int) error {
	fmt.Printf("%-28s %12s %12s %8s\n", "CPU per event", "hook host", "bare goja", "ratio")
	for _, c := range hookCases {
		var host, bare, ratio []float64
		for range rounds {
			h, err := c.inHost()
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			host = append(host, h)
			if c.bare == "-" {
				continue
			}
			b, err := c.inProcess()
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			bare, ratio = append(bare, b), append(ratio, h/b)
		}
		if c.bare == "-" {
			fmt.Printf("%-28s %9.0f µs %12s %8s\n", c.name, median(host), "-", "-")
		} else {
			fmt.Printf("%-28s %9.0f µs %9.0f µs %8.2f\n", c.name, median(host), median(bare), median(ratio))
		}
	}
	fmt.Printf("(medians of %d rounds; user and system time, of both processes)\n\n", rounds)
	return nil
}

// answer is a body of about so many bytes: a list of small records.
func answer(size int) json.RawMessage {
	var b strings.Builder
	b.WriteString(`{"error":null,"items":[`)
	for i := 0; b.Len() < size-3; i++ {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"id":%d,"name":"record %d","active":true,"rate":%d.5,"tags":["a","b"]}`, i, i, i%100)
	}
	b.WriteString(`]}`)
	return json.RawMessage(b.String())
}

func (c hookCase) globals() []hooks.Global {
	g := []hooks.Global{{Name: "statusCode", JSON: json.RawMessage("200")}}
	if c.body > 0 {
		g = append(g, hooks.Global{Name: "method_response", JSON: answer(c.body), Write: true})
	}
	return g
}

// inHost is the CPU time of an event, in µs, of this process and its hosts.
func (c hookCase) inHost() (float64, error) {
	setUp, err := c.hosted(0)
	if err != nil {
		return 0, err
	}
	all, err := c.hosted(c.times)
	return (all - setUp) / float64(c.times) * 1e6, err
}

// hosted is the CPU time of so many events and of a host's life around them.
func (c hookCase) hosted(times int) (float64, error) {
	ev := &hooks.Event{Name: "after_action", Globals: c.globals()}
	for i, js := range c.js {
		ev.Scripts = append(ev.Scripts, hooks.Script{Level: []hooks.Level{hooks.LevelConnector, hooks.LevelMethod, hooks.LevelStep}[i], File: "bench.js", Source: js})
	}
	begun := spent() + spentByChildren()
	e, err := hooks.New(hooks.Config{Hosts: 1})
	if err != nil {
		return 0, err
	}
	for range 3 + times { // three to warm up
		out, err := e.Run(context.Background(), ev)
		if err == nil && c.change != (len(out.Changed) == 1) {
			err = fmt.Errorf("%d globals were changed", len(out.Changed))
		}
		if err != nil {
			_ = e.Close()
			return 0, err
		}
	}
	err = e.Close() // which waits for the host
	return spent() + spentByChildren() - begun, err
}

// spentByChildren is the CPU time of children that have ended.
func spentByChildren() float64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_CHILDREN, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

// inProcess is the same with bare goja.
func (c hookCase) inProcess() (float64, error) {
	var programs []*goja.Program
	for _, js := range c.js {
		tree, err := goja.Parse("", js, parser.WithDisableSourceMaps)
		if err != nil {
			return 0, err
		}
		p, err := goja.CompileAST(tree, false)
		if err != nil {
			return 0, err
		}
		programs = append(programs, p)
	}
	var body string
	if c.body > 0 {
		body = string(answer(c.body))
	}
	run := func() error {
		vm := goja.New()
		j := vm.Get("JSON").ToObject(vm)
		parse, _ := goja.AssertFunction(j.Get("parse"))
		stringify, _ := goja.AssertFunction(j.Get("stringify"))
		_ = vm.Set("statusCode", 200)
		if body != "" {
			v, err := parse(goja.Undefined(), vm.ToValue(body))
			if err != nil {
				return err
			}
			_ = vm.Set("method_response", v)
		}
		for _, p := range programs {
			if _, err := vm.RunProgram(p); err != nil {
				return err
			}
			fn, _ := goja.AssertFunction(vm.Get("after_action"))
			if _, err := fn(goja.Undefined()); err != nil {
				return err
			}
		}
		if c.change {
			_, err := stringify(goja.Undefined(), vm.Get("method_response"))
			return err
		}
		return nil
	}
	if err := run(); err != nil {
		return 0, err
	}
	times := c.times
	if c.few > 0 {
		times = c.few
	}
	begun := spent()
	for range times {
		if err := run(); err != nil {
			return 0, err
		}
	}
	return (spent() - begun) / float64(times) * 1e6, nil
}
