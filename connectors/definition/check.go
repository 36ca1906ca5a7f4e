package definition

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/agext/levenshtein"

	"github.com/stepworker/stepworker/connectors/inline"
	"github.com/stepworker/stepworker/hooks"
	"github.com/stepworker/stepworker/internal/strictjson"
)

// scriptFindings are what one script shows by itself.
func (p *fileParser) scriptFindings(s *hooks.Script) {
	p.findings = append(p.findings, scriptFindings(s)...)
}

func scriptFindings(s *hooks.Script) []Finding {
	var all []Finding
	for _, f := range hooks.CheckSource(s) {
		all = append(all, Finding{File: s.File, Line: f.Line, Column: f.Column, Text: f.Text})
	}
	in := hooks.Inspect(s)
	if in == nil {
		return all
	}
	for _, m := range in.Handlers {
		if s.Level == hooks.LevelStep && connectorsOnly(m.Name) {
			all = append(all, hintAt(s, m, "%s does not run in a step's script: it is for connector scripts", m.Name))
		}
		if s.Level == hooks.LevelMethod && strings.Contains(m.Name, "_oauth2_") && slices.Contains(hooks.EventNames, m.Name) {
			all = append(all, hintAt(s, m, "%s does not run in a method's script: a token request is the connector's, so it stands at connector level", m.Name))
		}
	}
	for _, m := range in.Uncallable {
		if slices.Contains(hooks.EventNames, m.Name) {
			all = append(all, hintAt(s, m, "%s is a class or a generator, which no event can call: make it a function", m.Name))
		}
	}
	for _, event := range hooks.EventNames {
		for _, m := range in.Foreign(event) {
			all = append(all, hintAt(s, m, "%s has no %s: to read it throws a ReferenceError", event, m.Name))
		}
	}
	for _, m := range in.Consts {
		all = append(all, hintAt(s, m, "%s is a const: to assign to it throws a TypeError", m.Name))
	}
	for _, m := range in.Modules[:min(len(in.Modules), 1)] {
		all = append(all, hintAt(s, m, "there are no modules: %s does not exist in scripts; a later level sees an earlier one's functions by itself", m.Name))
	}
	for _, m := range in.Required {
		all = append(all, hintAt(s, m, "require has no module %q: moment, moment-timezone and crypto-js can be required", m.Name))
	}
	for _, m := range in.Silent {
		all = append(all, hintAt(s, m, "%s matches nothing in this engine: write the characters out, such as [a-zA-Z\\u00c0-\\u024f]", m.Name))
	}
	return all
}

// misspelt are the functions whose names look like an event's and that nobody
// uses: what a script calls, also from another level, is a helper of its own.
func misspelt(in *hooks.Inspection, beside ...*hooks.Inspection) (all []Finding) {
	for _, m := range in.Handlers {
		used := in.Uses[m.Name] > 1 || slices.ContainsFunc(beside, func(other *hooks.Inspection) bool { return other.Uses[m.Name] > 0 })
		if near := nearestEvent(m.Name); near != "" && !used && !slices.Contains(hooks.EventNames, m.Name) {
			all = append(all, hintAt(in.Script, m, "function %s handles no event; did you mean %s?", m.Name, near))
		}
	}
	return all
}

func hintAt(s *hooks.Script, m hooks.Mention, format string, args ...any) Finding {
	return Finding{File: s.File, Line: m.Line, Column: m.Column, Hint: true, Text: fmt.Sprintf(format, args...)}
}

// connectorsOnly are the events that a step's script does not handle.
func connectorsOnly(event string) bool {
	return event == "action_condition" || slices.Contains(hooks.EventNames, event) && strings.Contains(event, "_oauth2_")
}

// nearestEvent is the event that a function's name was perhaps meant to be: a
// misspelt one, or one in another's spelling (afterAction, on_error).
func nearestEvent(name string) string {
	for _, prefix := range []string{"before_", "after_", "action_"} {
		if strings.HasPrefix(name, prefix) {
			return strictjson.Nearest(name, hooks.EventNames)
		}
	}
	plain := func(s string) string { return strings.ToLower(strings.ReplaceAll(s, "_", "")) }
	written := []string{plain(name)}
	if rest, ok := strings.CutPrefix(plain(name), "on"); ok { // as browsers name handlers
		written = append(written, "after"+rest, rest)
	}
	best, score := "", 0.8
	for _, event := range hooks.EventNames {
		for _, w := range written {
			if s := levenshtein.Similarity(w, plain(event), nil); s >= score && (best == "" || s > score) {
				best, score = event, s
			}
		}
	}
	return best
}

// acrossLevels finds what shows only when the levels are seen together: calls
// of functions that no level has, and const, let and class that each level has
// for itself. A connector's script may call its methods' functions as well.
func (p *fileParser) acrossLevels() {
	var connector *hooks.Inspection
	if p.def.Script != nil {
		connector = hooks.Inspect(p.def.Script)
	}
	var methods []*hooks.Inspection
	for _, name := range p.def.MethodNames {
		s := p.def.Methods[name].Script
		if s == nil {
			continue
		}
		in := hooks.Inspect(s)
		if in == nil {
			continue
		}
		methods = append(methods, in)
		if connector != nil {
			p.findings = append(p.findings, misspelt(in, connector)...)
		} else {
			p.findings = append(p.findings, misspelt(in)...)
		}
		if connector == nil {
			p.missing(in)
			continue
		}
		p.missing(in, connector)
		p.clashes(in, connector)
	}
	if connector != nil {
		p.findings = append(p.findings, misspelt(connector, methods...)...)
		p.missing(connector, methods...)
	}
}

func (p *fileParser) missing(in *hooks.Inspection, beside ...*hooks.Inspection) {
	known := slices.Clone(hooks.Names())
	for _, other := range append(beside, in) {
		for _, m := range other.Top {
			known = append(known, m.Name)
		}
	}
	for _, m := range in.Missing(beside...) {
		near := strictjson.Nearest(m.Name, known)
		if m.Tried && !alike(m.Name, near) {
			continue
		}
		p.findings = append(p.findings, doesNotExist(in.Script, m, near))
	}
	p.findings = append(p.findings, lost(in, beside...)...)
}

func alike(a, b string) bool {
	return levenshtein.Similarity(strings.ToLower(a), strings.ToLower(b), nil) >= 0.8
}

// lost are values that a script writes to what is almost the name of an
// event's data, and that nobody reads.
func lost(in *hooks.Inspection, beside ...*hooks.Inspection) (all []Finding) {
	for _, m := range in.Lost(beside...) {
		if near := strictjson.Nearest(m.Name, dataNames()); alike(m.Name, near) && !slices.Contains(hooks.Names(), m.Name) {
			all = append(all, hintAt(in.Script, m, "%s is written and never read; did you mean %s?", m.Name, near))
		}
	}
	return all
}

// dataNames are the names of all events' data.
func dataNames() (all []string) {
	for _, d := range hooks.Data {
		all = append(all, d.Name)
	}
	return all
}

func doesNotExist(s *hooks.Script, m hooks.Mention, near string) Finding {
	text := m.Name + " does not exist"
	if !m.Value {
		text = "function " + text
	}
	if near != "" {
		text += "; did you mean " + near + "?"
	}
	return hintAt(s, m, "%s", text)
}

// inlineData are the data that inline script sees.
var inlineData = []string{"cycle_id", "cycle_step_id", "transaction_id", "cyclr_account_id", "external_account_id", "method_name", "script_execution_context",
	"last_successful_run_date", "method_response_fields", "method_response_fields_in_use"}

// inlineCalls finds what inline script uses and has not: it sees no level's
// functions, no http_request, and little of the data.
func inlineCalls(in *hooks.Inspection) (all []Finding) {
	const not = "http_request"
	for _, m := range in.Missing() {
		if strings.HasPrefix(m.Name, inline.Variable) {
			continue
		}
		near := strictjson.Nearest(m.Name, hooks.Names())
		if m.Tried && !alike(m.Name, near) {
			continue
		}
		if near == not {
			near = ""
		}
		all = append(all, doesNotExist(in.Script, m, near))
	}
	for _, m := range in.Calls(not) {
		all = append(all, hintAt(in.Script, m, "inline script has no %s: call it in a hook", not))
	}
	for _, m := range in.Reads(dataNames()...) {
		if !slices.Contains(inlineData, m.Name) {
			all = append(all, hintAt(in.Script, m, "inline script does not see %s: use it in a hook", m.Name))
		}
	}
	return all
}

// CheckMappingScript reads the inline script of one of a step's mappings; its form
// is CheckMapping's to tell.
func CheckMappingScript(path, text string) (all []Finding) {
	m, err := ParseMapping(path, text)
	if err != nil || m.Script == nil {
		return nil
	}
	s := m.Script.Hook()
	for _, f := range hooks.CheckSource(&s) {
		all = append(all, Finding{File: s.File, Line: f.Line, Column: f.Column, Text: f.Text})
	}
	if seen := hooks.Inspect(&s); seen != nil {
		all = append(all, inlineCalls(seen)...)
	}
	sortFindings(all)
	return all
}

func sortFindings(all []Finding) {
	slices.SortStableFunc(all, func(a, b Finding) int { return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column)) })
}

func (p *fileParser) clashes(in, connector *hooks.Inspection) {
	for _, m := range in.Top {
		i := slices.IndexFunc(connector.Top, func(c hooks.Mention) bool { return c.Name == m.Name })
		if i < 0 || !in.Lexical[m.Name] && !connector.Lexical[m.Name] || slices.Contains(hooks.EventNames, m.Name) {
			continue
		}
		c := connector.Top[i]
		p.findings = append(p.findings, hintAt(in.Script, m, "%s is declared at connector level too (%s:%d:%d): as const, let or class each level sees its own",
			m.Name, connector.Script.File, c.Line, c.Column))
	}
}

// CheckStep reads a step's script. What the connector's own scripts declare is
// not known here: of functions that do not exist only those are findings that
// are almost one of ours.
func CheckStep(s *hooks.Script) []Finding {
	all := scriptFindings(s)
	in := hooks.Inspect(s)
	if in == nil {
		return all
	}
	all = append(all, misspelt(in)...)
	for _, m := range in.Missing() {
		near := strictjson.Nearest(m.Name, hooks.Names())
		if strings.EqualFold(m.Name, near) && m.Value && strings.ToLower(m.Name) == m.Name {
			continue // date, json: perhaps a variable of the connector's
		}
		if near != "" && alike(m.Name, near) {
			all = append(all, doesNotExist(s, m, near))
		}
	}
	all = append(all, lost(in)...)
	for _, m := range in.Exceptions() {
		all = append(all, hintAt(s, m, "%s is for connector scripts: thrown from a step's script it fails the execution", m.Name))
	}
	sortFindings(all)
	return all
}
