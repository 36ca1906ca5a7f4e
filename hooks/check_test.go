package hooks

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/tools/txtar"
)

func TestInspection_missing(t *testing.T) {
	cases := map[string]struct {
		source string
		beside string
		want   []string
	}{
		"a misspelt function":       {source: "function f() {\n  http_requst({}); }", want: []string{"2:3 http_requst"}},
		"everywhere a name stands":  {source: "new Dat(); a?.(1); b`x`; class C extends D {}; x instanceof E; (() => [...f()])(g)", want: []string{"1:5 Dat", "1:12 a", "1:20 b", "1:42 D", "1:61 E", "1:48 x", "1:75 f", "1:81 g"}},
		"read in any way":           {source: "if (a == null) b = [c, {k: d, [e]: 1}, {s, f() {}}]; var x = `${f}`; throw g ? h : -i; for (j of k) {} return_ = l", want: []string{"1:5 a", "1:21 c", "1:28 d", "1:32 e", "1:41 s", "1:65 f", "1:76 g", "1:80 h", "1:85 i", "1:98 k", "1:114 l"}},
		"names that are no use":     {source: "a: while (true) { continue a; break a } function F() { return new.target && {b: 1}.b } class C { d = 1; #e = this.#e; f() {} get g() {} }"},
		"a catch that throws again": {source: "try { a() } catch (e) { throw 1 } try { b() } catch (e) { console.log(e) } try { c() } finally {}", want: []string{"1:7 a", "1:41 b", "1:82 c"}},
		"a try whether it is there": {source: "var ok; try { ok = new Blob() } catch (e) { ok = false } try { URL } catch { ok = 1 } URL", want: []string{"1:24 Blob?", "1:64 URL?", "1:87 URL"}},
		"ours and the language's":   {source: "http_request(btoa(JSON.stringify(1))); new AuthRefreshException(); parseInt('1'); method_request(); after_action()"},
		"declared, however":         {source: "function a(b, {c, d: [e] = []}, ...f) { a(), b(), c(), e(), f(), g(), h(), i(), j(), k(), l() }\nvar g; let h; const i = class j {}; try {} catch (k) {} for (const l of []) {} k(); l()"},
		"assigned, however":         {source: "a = () => 1; this.b = a; globalThis['c'] = a; for (d in {}) {} [e, {f}] = []; a(), b(), c(), d(), e(), f(), globalThis.g()"},
		"tested first":              {source: "if (typeof helper === 'function') helper()"},
		"looked for first":          {source: "if (globalThis.a) a(); if ('b' in globalThis) b(); if (this['c'] !== undefined) c(); d()", want: []string{"1:86 d"}},
		"what compilers write":      {source: "var x = (this && this.x) || function () { return this; }; class C { m() { return this } } typeof globalThis; d()", want: []string{"1:110 d"}},
		"the global object around":  {source: "(function (root) { root.a = function () {} })(this); a()"},
		"and under another name":    {source: "var self = globalThis; self.a = () => 1; a()"},
		"what cannot be told":       {source: "eval('var f = 1'); f()"},
		"a member is no function":   {source: "var x; x.foo(); x['bar']()"},
		"an object that is not":     {source: "x.foo(); y['bar']()", want: []string{"1:1 x", "1:10 y"}},
		"another level's functions": {source: "a(), b(), c(), d()", beside: "function a() { function d() {} } const b = 1; c = 2", want: []string{"1:16 d"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			in := Inspect(&Script{Source: c.source})
			var got []string
			for _, m := range in.Missing(Inspect(&Script{Source: c.beside})) {
				tried := ""
				if m.Tried {
					tried = "?"
				}
				got = append(got, fmt.Sprintf("%d:%d %s%s", m.Line, m.Column, m.Name, tried))
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestInspection_foreign(t *testing.T) {
	cases := map[string]struct{ source, event, want string }{
		"of another event":     {"function after_error() { if (method_response != null) throw method_response.a; }", "after_error", "1:30 method_response 1:61 method_response"},
		"deeper":               {"var after_action = () => [1].map(x => method_error.content)", "after_action", "1:39 method_error"},
		"on the global":        {"globalThis.before_action = function () { return reasonPhrase; }", "before_action", "1:49 reasonPhrase"},
		"of this event":        {"function after_action() { return method_response; }", "after_action", ""},
		"a helper's":           {"function after_action() { return f(); } function f() { return method_error; }", "after_action", ""},
		"tested":               {"function after_error() { return typeof method_response === 'undefined' || method_response; }", "after_error", ""},
		"tried":                {"function after_error() { try { return method_response } catch (e) {} }", "after_error", ""},
		"written first":        {"function before_action() { method_response = {}; return method_response; }", "before_action", ""},
		"declared":             {"var method_error; function after_action() { return method_error; }", "after_action", ""},
		"a member of its name": {"function after_error() { return action_data.method_response + {method_response: 1}; }", "after_error", ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, m := range Inspect(&Script{Source: c.source}).Foreign(c.event) {
				got = append(got, fmt.Sprintf("%d:%d %s", m.Line, m.Column, m.Name))
			}
			if d := cmp.Diff(c.want, strings.Join(got, " ")); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestInspection_lost(t *testing.T) {
	cases := map[string]struct {
		source string
		beside string
		want   string
	}{
		"written only":          {source: "function f() { a = 1; a = 2; [b] = [3]; }", want: "1:16 a 1:23 a 1:31 b"},
		"read too":              {source: "function f() { a = 1; return a; }"},
		"declared":              {source: "function f() { var a; a = 1; }"},
		"read by another level": {source: "a = 1; b = 1", beside: "a = 2; log(a); b = 2", want: "1:8 b"},
		"perhaps read":          {source: "a = 1; eval('a')"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, m := range Inspect(&Script{Source: c.source}).Lost(Inspect(&Script{Source: c.beside})) {
				got = append(got, fmt.Sprintf("%d:%d %s", m.Line, m.Column, m.Name))
			}
			if d := cmp.Diff(c.want, strings.Join(got, " ")); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestInspection_assignmentsToConstants(t *testing.T) {
	in := Inspect(&Script{Source: "const a = 1, b = 2, {c} = {};\nfunction f(b) { a = 2; b = 3; c++; [a] = [] }\nlet d = 1; d = 2"})
	want := []Mention{{Line: 2, Column: 17, Name: "a"}, {Line: 2, Column: 31, Name: "c"}, {Line: 2, Column: 37, Name: "a"}}
	if d := cmp.Diff(want, in.Consts); d != "" {
		t.Error(d)
	}
}

// A default in a declaration assigns nothing.
func TestInspection_defaultsInDeclarations(t *testing.T) {
	in := Inspect(&Script{Source: "const [a = 1] = [], {b: {c} = {c: 2}, d = 3} = {};\nfunction f([a = 1] = []) { const [c = 2] = a }\ntry {} catch ({a = 1}) {}\nfor (const {d: [c = 1]} of []) {}"})
	if len(in.Consts) > 0 {
		t.Errorf("assignments to constants: %v", in.Consts)
	}
}

// What goja lacks is told as that.
func TestInspection_regularExpressionsThatMatchNothing(t *testing.T) {
	in := Inspect(&Script{Level: LevelMethod, File: "m.js", Source: "var a = /^\\p{L}+$/u;\nvar b = /\\p{L}/, c = '\\\\p{L}', d = /[\\P{Lu}]/iu;"})
	want := []Mention{{Line: 1, Column: 9, Name: `\p{L}`}, {Line: 2, Column: 36, Name: `\P{Lu}`}}
	if diff := cmp.Diff(want, in.Silent); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestInspection_modules(t *testing.T) {
	for source, want := range map[string][]Mention{
		"exports.a = 1":                                      {{Line: 1, Column: 1, Name: "exports"}},
		"var x = 1;\n module.exports = {x: x}":               {{Line: 2, Column: 2, Name: "module"}},
		"if (typeof module === 'object') module.exports = 1": nil,
		"var exports = {}; exports.a = 1":                    nil,
		"function f(module) { return module.id }":            nil,
	} {
		if diff := cmp.Diff(want, Inspect(&Script{Level: LevelMethod, File: "m.js", Source: source}).Modules, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", source, diff)
		}
	}
}

func TestCheckSource_syntax(t *testing.T) {
	cases := map[string]struct{ source, want string }{
		"import":                  {"\n  import x from 'y'", "2:3: syntax error: there are no modules: import does not exist"},
		"export":                  {"export default 1", "1:1: syntax error: there are no modules: export does not exist"},
		"an await outside":        {"function after_action() {\n  var a = await http_request({});\n}", "2:17: syntax error: await stands outside of an async function"},
		"a default in a default":  {"const { a: [b, c = 5] = [] } = {}", "1:16: syntax error: the script engine cannot read a default here"},
		"what binds nothing":      {"const { a: [b, c.d] = [] } = {}", "1:16: syntax error: Invalid destructuring binding target"},
		"for await":               {"async function f() { for await (var x of y) {} }", "1:26: syntax error: for await does not exist"},
		"an async generator":      {"async function* g() {}", "1:1: syntax error: async generators (async function*) do not exist"},
		"one that is a method":    {"var o = {async *g() {}}", "1:17: syntax error: async generators (async function*) do not exist"},
		"a name declared twice":   {"const a = 1;\nlet a = 2;", "2:5: syntax error: Identifier 'a' has already been declared"},
		"a class and a function":  {"class A {}\nfunction A() {}", "1:7: syntax error: Identifier 'A' has already been declared"},
		"another error says what": {"var a = ;", "1:9: syntax error: Unexpected token ;"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got := CheckSource(&Script{Source: c.source})
			if len(got) != 1 || !strings.HasPrefix(fmt.Sprintf("%d:%d: %s", got[0].Line, got[0].Column, got[0].Text), c.want) {
				t.Errorf("got %v, want %s…", got, c.want)
			}
		})
	}
}

// No script of the conformance cases that works calls what is found missing.
func TestInspection_findsNothingInScriptsThatWork(t *testing.T) {
	files, err := filepath.Glob("testdata/conformance/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no conformance cases: %v", err)
	}
	for _, file := range files {
		ar, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		switch filepath.Base(file) {
		case "js_reference_error.txtar", "inline_place_in_brackets.txtar":
			continue
		}
		var levels []*Inspection
		for _, f := range ar.Files {
			if in := Inspect(&Script{Source: string(f.Data)}); filepath.Ext(f.Name) == ".js" && in != nil {
				levels = append(levels, in)
			}
			var event struct{ Globals map[string]any } // which may have names of its own
			if f.Name == "event" && json.Unmarshal(f.Data, &event) == nil {
				for n := range event.Globals {
					levels = append(levels, Inspect(&Script{Source: "var " + n}))
				}
			}
		}
		for _, in := range levels {
			if m := in.Missing(levels...); len(m) > 0 {
				t.Errorf("%s: %v", file, m)
			}
		}
	}
}

// Every name that scripts are told of is there in a hook host.
func TestNames_areThere(t *testing.T) {
	var source strings.Builder
	source.WriteString("function after_action() { var all = []; ")
	for _, n := range Names() {
		fmt.Fprintf(&source, "if (typeof %s === 'undefined') all.push(%q); ", n, n)
	}
	source.WriteString("return all }")
	ev := &Event{Name: "after_action", Scripts: []Script{{Level: LevelConnector, Source: source.String()}}}
	for _, n := range dataNames() {
		ev.Globals = append(ev.Globals, Global{Name: n, JSON: json.RawMessage("1")})
	}
	out, err := newEngine(t, Config{Hosts: 1}).Run(t.Context(), ev)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(`["undefined"]`, string(out.Result)); d != "" {
		t.Error(d)
	}
}
