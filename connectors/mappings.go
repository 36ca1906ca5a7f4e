package connectors

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/stepworker/stepworker/hooks"
	"github.com/stepworker/stepworker/internal/strictjson"
)

// mapping is what a step wants computed: a place of its input, and a template
// or inline script.
type mapping struct {
	path      string
	parameter string     // "" where it is of the body
	steps     []pathStep // within the body; none: the whole
	text      string     // a template
	in        *inline    // instead of text
}

// CheckMapping says what is wrong with the form of one of a step's mappings.
func CheckMapping(path, text string) error {
	_, err := newMapping(path, text)
	return err
}

// IsInlineScript says that a mapping's text is JavaScript.
func IsInlineScript(text string) bool { return strings.HasPrefix(text, "=") }

func newMapping(path, text string) (*mapping, error) {
	m := &mapping{path: path, text: text}
	head, rest, deeper := strings.Cut(path, ".")
	switch {
	case head == "parameters" && rest != "":
		m.parameter = rest
	case head == "body" && (rest != "" || !deeper):
		var err error
		if m.steps, err = parsePath(rest); err != nil {
			return nil, fmt.Errorf("mapping %q: %w", path, err)
		}
		if hasList(m.steps) {
			return nil, fmt.Errorf("mapping %q: nothing can be mapped into a list's items; map the whole list", path)
		}
		if len(m.steps) > maxDepth {
			return nil, fmt.Errorf("mapping: %w", errTooDeep)
		}
	default:
		return nil, fmt.Errorf("mapping %q: its place is parameters.NAME, body or body.LOCATION", path)
	}
	var err error
	if IsInlineScript(text) {
		m.in, err = newInline(hooks.LevelStep, "mappings "+path, text, func(line, column int) (int, int) { return line, column })
	} else {
		_, err = splitTemplate(text)
	}
	if err != nil {
		return nil, fmt.Errorf("mapping %q: %w", path, err)
	}
	return m, nil
}

// value of a mapping: data of the step's, whatever it holds.
type mapped struct {
	steps []pathStep
	path  string
	value any
}

// mapStep computes the step's mappings, in the order of their paths, before
// anything else: they become its parameters, and parts of its body.
func (x *exchange) mapStep(ctx context.Context) error {
	if len(x.call.Mappings) == 0 {
		return nil
	}
	given := maps.Clone(x.given)
	if given == nil {
		given = map[string]json.RawMessage{}
	}
	for _, path := range slices.Sorted(maps.Keys(x.call.Mappings)) {
		m, err := newMapping(path, x.call.Mappings[path])
		if err != nil {
			return &CallError{Kind: "input", Message: err.Error()}
		}
		if m.parameter != "" {
			if err := x.declares(m.parameter); err != nil {
				return err
			}
		}
		v, ok, err := x.mappedValue(ctx, m)
		switch {
		case err != nil:
			return err
		case m.parameter == "" && ok:
			x.mapped = append(x.mapped, mapped{m.steps, path, v})
		case m.parameter != "":
			delete(given, m.parameter)
			if ok {
				if given[m.parameter], err = marshal(v); err != nil {
					return err
				}
			}
		}
	}
	x.given = given // only now: each sees the parameters as the step brought them
	return nil
}

// mappedValue is what a mapping comes to; ok is false for nothing.
func (x *exchange) mappedValue(ctx context.Context, m *mapping) (any, bool, error) {
	fields := []string{}
	if m.in != nil {
		for _, f := range m.in.fields {
			fields = append(fields, f.name)
		}
	} else {
		parts, err := splitTemplate(m.text)
		if err != nil {
			return nil, false, err
		}
		for _, p := range parts {
			if p.name != "" {
				fields = append(fields, p.name)
			}
		}
	}
	for _, name := range fields {
		if _, known, _ := x.stepField(name); !known {
			names := slices.Concat(slices.Sorted(maps.Keys(x.given)), accountFields, callFields, suppliedFields)
			return nil, false, &CallError{Kind: "input", Message: fmt.Sprintf("mapping %q: unknown merge field {{%s}}%s", m.path, name, strictjson.DidYouMean(name, names))}
		}
	}
	if m.in != nil {
		return x.evaluate(ctx, m.in, x.stepField)
	}
	return expandTree(m.text, x.stepField)
}

// stepField resolves merge fields where the step writes them: its own
// parameters and the system's, never what the credential holds.
func (x *exchange) stepField(name string) (v any, known, foreign bool) {
	if raw, ok := x.given[name]; ok {
		v, err := decodeJSON(raw)
		return v, err == nil, true
	}
	switch name {
	case "AccountId":
		return textOrNil(x.cred.AccountID), true, false
	case "AccountExternalId":
		return textOrNil(x.cred.ExternalAccountID), true, false
	}
	if v, known, foreign := x.system(name); known {
		return v, true, foreign
	}
	q := x.parameter(name) // one that the step could have given
	return nil, q != nil && q.Name == name && q.Property == "" && !q.HasValue, true
}

func textOrNil(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// declares is an error if the method takes no such parameter of a step.
func (x *exchange) declares(name string) error {
	declared := make([]string, 0, len(x.m.Parameters))
	for i := range x.m.Parameters {
		declared = append(declared, x.m.Parameters[i].Name)
	}
	if slices.Contains(declared, name) || slices.Contains(suppliedFields, name) {
		return nil
	}
	return &CallError{Kind: "input", Message: fmt.Sprintf("method %q has no parameter %q%s", x.m.Name, name, strictjson.DidYouMean(name, declared))}
}

// pristineBody is the body before any script, of an outbound request its part of it.
func (x *exchange) pristineBody(look lookup) (json.RawMessage, error) {
	body, err := x.wholeBody(look)
	if err == nil {
		body, err = x.fit(body, look)
	}
	if err != nil {
		return nil, err
	}
	return x.slice(body)
}

// wholeBody is the body before any script: the step's, else the method's
// own, filled; and what is mapped laid over it.
func (x *exchange) wholeBody(look lookup) (json.RawMessage, error) {
	body := x.call.Body
	replaced := slices.ContainsFunc(x.mapped, func(m mapped) bool { return len(m.steps) == 0 })
	if body == nil && !replaced {
		var err error
		if body, err = x.ownBody(look); err != nil {
			return nil, err
		}
	}
	if len(x.mapped) == 0 {
		return body, nil
	}
	var tree any
	if body != nil {
		var err error
		if tree, err = decodeJSON(body); err != nil {
			return nil, &CallError{Kind: "input", Message: "the body is no JSON value"}
		}
	}
	for _, m := range x.mapped {
		var ok bool
		if tree, ok = lay(tree, m.steps, m.value); !ok {
			return nil, &CallError{Kind: "input", Message: fmt.Sprintf("mapping %q: the body has something else than an object on the way there", m.path)}
		}
	}
	return marshal(tree)
}

// lay sets what stands at a location, and makes the objects that lead there.
func lay(tree any, steps []pathStep, v any) (any, bool) {
	if len(steps) == 0 {
		return v, true
	}
	m, ok := tree.(*OrderedMap)
	if tree == nil {
		m, ok = &OrderedMap{}, true
	}
	if !ok {
		return nil, false
	}
	inner, ok := lay(m.Values[steps[0].name], steps[1:], v)
	if ok {
		m.Set(steps[0].name, inner)
	}
	return m, ok
}
