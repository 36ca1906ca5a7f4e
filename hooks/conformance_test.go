package hooks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
)

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
	// HeadersIn names the global whose member "headers" is an object of headers.
	HeadersIn string   `json:"headers_in"`
	NotStep   []string `json:"not_step"`
}

type conformanceWant struct {
	Ran     bool                       `json:"ran"`
	Result  json.RawMessage            `json:"result,omitempty"`
	Changed map[string]json.RawMessage `json:"changed,omitempty"`
	Unset   []string                   `json:"unset,omitempty"` // changed to undefined
	Logs    []string                   `json:"logs,omitempty"`
	Error   string                     `json:"error,omitempty"` // kind: text
	At      string                     `json:"at,omitempty"`
	Level   Level                      `json:"level,omitempty"`
	After   float64                    `json:"after,omitempty"` // seconds, of a RetryLaterException
	Fault   bool                       `json:"fault,omitempty"` // the network's, which no script caught
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
	if len(r.Headers) == 0 {
		r.Headers = nil
	}
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
			want, got := playCase(t, e, ar)
			if diff := cmp.Diff(want, got, sameRaw); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// The example that explains the format is a case that holds.
func TestConformance_readme(t *testing.T) {
	readme, err := os.ReadFile("testdata/conformance/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, _ := strings.Cut(string(readme), "```txtar\n")
	example, _, found := strings.Cut(example, "```")
	if !found {
		t.Fatal("there is no example")
	}
	want, got := playCase(t, newEngine(t, Config{Hosts: 1}), txtar.Parse([]byte(example)))
	if diff := cmp.Diff(want, got, sameRaw); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// playCase runs a case's event, and says what should have come of it, and what did.
func playCase(t *testing.T, e *Engine, ar *txtar.Archive) (want, got conformanceWant) {
	t.Helper()
	var in conformanceEvent
	ev := &Event{}
	doer := &exchanges{t: t}
	var stored shelf
	for _, f := range ar.Files {
		var into any
		switch f.Name {
		case "event":
			into = &in
		case "want":
			into = &want
		case "http":
			into = &doer.left
		case "storage":
			into = &stored
		case "connector.js", "method.js", "step.js":
			level := Level(strings.TrimSuffix(f.Name, ".js"))
			ev.Scripts = append(ev.Scripts, Script{Level: level, File: f.Name, Source: string(f.Data)})
			continue
		default:
			t.Fatalf("a case has no file %s", f.Name)
		}
		d := json.NewDecoder(bytes.NewReader(f.Data))
		d.DisallowUnknownFields()
		if err := d.Decode(into); err != nil {
			t.Fatalf("%s: %v", f.Name, err)
		}
	}
	ev.Name, ev.Inline, ev.Doer = in.Event, in.Inline, doer
	if stored != nil {
		ev.Storage = stored
	}
	for _, name := range slices.Sorted(maps.Keys(in.Globals)) {
		g := Global{Name: name, JSON: in.Globals[name], Write: slices.Contains(in.Write, name), Headers: slices.Contains(in.Headers, name), NotStep: slices.Contains(in.NotStep, name)}
		if in.HeadersIn == name {
			g.HeadersIn = "headers"
		}
		ev.Globals = append(ev.Globals, g)
	}
	out, err := e.Run(context.Background(), ev)
	if out != nil {
		got = conformanceWant{Ran: out.Ran, Result: out.Result, Changed: out.Changed, Logs: out.Logs}
		for name, raw := range out.Changed {
			if raw == nil {
				got.Unset = append(got.Unset, name)
				delete(out.Changed, name)
			}
		}
		slices.Sort(got.Unset)
	}
	var se *ScriptError
	var ex *Exception
	var le *LimitError
	switch {
	case errors.As(err, &ex):
		got.Error, got.At, got.Level, got.After = string(ex.Kind)+": "+ex.Text, ex.At, ex.Level, ex.After.Seconds()
	case errors.As(err, &se):
		got.Error, got.At, got.Level, got.Fault = fmt.Sprintf("script engine=%v: %s", se.Engine, se.Message), se.At, se.Level, se.Fault
	case errors.As(err, &le):
		got.Error, got.At = "limit: "+le.Message, le.At
	case err != nil:
		t.Fatal(err)
	}
	if len(doer.left) > 0 {
		t.Errorf("%d expected requests were not made", len(doer.left))
	}
	if len(stored) > 0 {
		got.Storage = stored
	}
	if len(got.Changed) == 0 {
		got.Changed = nil
	}
	return want, got
}
