package hooks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"
)

// Events of every sort, side by side on few processors: each gets its own
// outcome, whatever the ones before and behind it do, and at the end every
// processor and host is where it was.
func TestLine_everyEventGetsItsOwnOutcome(t *testing.T) {
	e := newEngine(t, Config{Hosts: 2, Reserved: 1, Timeout: 3 * time.Second})
	doer := doerFunc(func(ctx context.Context, r HTTPRequest) (*HTTPResponse, error) {
		time.Sleep(time.Duration(rand.IntN(10)) * time.Millisecond) // a slow API
		return &HTTPResponse{StatusCode: 200, Headers: json.RawMessage(`{}`), Content: r.URL, Request: json.RawMessage(`{}`)}, nil
	})
	long := "/*" + strings.Repeat(" long", 8000) + "*/"
	kinds := map[string]struct {
		js, text string // of the handler; a prefix of the error's text, "" for success
		weight   int
	}{
		"patient":    {`return method_response.n`, "", 60},
		"long":       {`return method_response.n` + long, "", 4},
		"asks":       {`return +http_request({url: 'http://x/' + method_response.n}).content.slice(9)`, "", 10},
		"slow":       {`var end = Date.now() + 80; while (Date.now() < end) {} return method_response.n`, "", 3},
		"loops":      {`while (true) {}`, "after_action ran longer", 1},
		"dies":       {`new ArrayBuffer(2**33)`, "after_action", 2},
		"throws":     {`throw new Error('n' + method_response.n)`, "after_action at method level: n", 10},
		"not at all": {`return (`, "the script at method level: syntax error", 3},
	}
	var names []string
	for name, k := range kinds {
		for range k.weight {
			names = append(names, name)
		}
	}
	var wg sync.WaitGroup
	for range 24 {
		wg.Go(func() {
			for range 30 {
				n, name := rand.IntN(1e6), names[rand.IntN(len(names))]
				ctx, cancel := context.WithCancel(context.Background())
				hasty := rand.IntN(12) == 0
				if hasty {
					time.AfterFunc(time.Duration(rand.IntN(3000))*time.Microsecond, cancel)
				}
				out, err := e.Run(ctx, &Event{Name: "after_action", Doer: doer, Urgent: rand.IntN(10) == 0,
					Scripts: source(LevelMethod, "function after_action() { "+kinds[name].js+" }"),
					Globals: []Global{{Name: "method_response", JSON: fmt.Appendf(nil, `{"n": %d}`, n), Write: true}}})
				cancel()
				text := kinds[name].text
				switch {
				case hasty && errors.Is(err, context.Canceled):
				case text != "" && err != nil && strings.HasPrefix(err.Error(), text):
				case text == "" && err == nil && string(out.Result) == fmt.Sprint(n):
				default:
					t.Errorf("%s %d: %+v, %v", name, n, out, err)
				}
			}
		})
	}
	wg.Wait()
	for range 200 { // hosts that are being ended
		if s := e.Stats(); s.Live == s.Idle {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.line.free != 2 || e.line.reserved != 1 || len(e.line.waiting)+len(e.line.urgent) != 0 || len(e.active) != 0 {
		t.Errorf("left over: %+v, %d active", e.line, len(e.active))
	}
	if len(e.idle) != len(e.hosts) {
		t.Errorf("%d hosts are idle, %d alive", len(e.idle), len(e.hosts))
	}
	for _, h := range e.idle {
		if h.runner != nil || len(h.followers) > 0 || h.tainted {
			t.Errorf("an idle host has %v, %v, %v", h.runner, h.followers, h.tainted)
		}
	}
}

// An event that ends a host that others have used is tried once more, on one of
// its own, however many idle hosts its neighbours leave behind meanwhile.
func TestLine_whatEndsHostsEndsTwo(t *testing.T) {
	e := newEngine(t, Config{Hosts: 2, Timeout: 20 * time.Second})
	global := []Global{{Name: "action_data", JSON: json.RawMessage(`{}`), Write: true}}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := e.Run(context.Background(), &Event{Name: "after_action", Globals: global,
					Scripts: source(LevelMethod, `function after_action() { for (var i = 0; i < 20000; i++) action_data.i = i }`)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for e.Stats().Idle > 0 { // they are at work
		time.Sleep(time.Millisecond)
	}
	before := e.Stats().Started
	_, err := e.Run(context.Background(), &Event{Name: "after_action", Scripts: source(LevelMethod, `function after_action() { new ArrayBuffer(2**33) }`)})
	started := e.Stats().Started - before
	cancel()
	wg.Wait()
	var limit *LimitError
	if !errors.As(err, &limit) {
		t.Errorf("the guilty one: %v", err)
	}
	if started > 10 { // its own, and what its neighbours needed meanwhile
		t.Errorf("%d hosts were started", started)
	}
}

// Where there are as many hosts as there may be, an event without one waits
// without a processor, which those that have them need to go on; and it is told
// when one of them has ended.
func TestLine_noMoreHosts(t *testing.T) {
	e := newEngine(t, Config{Hosts: 1, Reserved: 1, MaxHosts: 2, Timeout: 10 * time.Second})
	doer := doerFunc(func(context.Context, HTTPRequest) (*HTTPResponse, error) {
		time.Sleep(100 * time.Millisecond)
		return &HTTPResponse{StatusCode: 200, Headers: json.RawMessage(`{}`), Request: json.RawMessage(`{}`)}, nil
	})
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			if _, err := e.Run(ctx, &Event{Name: "after_action", Doer: doer, Scripts: source(LevelMethod, `function after_action() { http_request({url: 'http://x/'}) }`)}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}
