package connectors

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/connectors/jsontree"
	"github.com/stepworker/stepworker/connectors/location"
	"github.com/stepworker/stepworker/connectors/mergefields"
	"github.com/stepworker/stepworker/internal/strictjson"
)

// value of a mapping: data of the step's, whatever it holds.
type mapped struct {
	steps []location.Step
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
		m, err := definition.ParseMapping(path, x.call.Mappings[path])
		if err != nil {
			return &CallError{Kind: "input", Message: err.Error()}
		}
		if m.Parameter != "" {
			if err := x.declares(m.Parameter); err != nil {
				return err
			}
		}
		v, ok, err := x.mappedValue(ctx, m)
		switch {
		case err != nil:
			return err
		case m.Parameter == "" && ok:
			x.mapped = append(x.mapped, mapped{m.Steps, path, v})
		case m.Parameter != "":
			delete(given, m.Parameter)
			if ok {
				if given[m.Parameter], err = jsontree.Marshal(v); err != nil {
					return err
				}
			}
		}
	}
	x.given = given // only now: each sees the parameters as the step brought them
	return nil
}

// mappedValue is what a mapping comes to; ok is false for nothing.
func (x *exchange) mappedValue(ctx context.Context, m *definition.Mapping) (any, bool, error) {
	fields := []string{}
	if m.Script != nil {
		for _, f := range m.Script.Fields {
			fields = append(fields, f.Name)
		}
	} else {
		parts, err := mergefields.Split(m.Text)
		if err != nil {
			return nil, false, err
		}
		for _, p := range parts {
			if p.Name != "" {
				fields = append(fields, p.Name)
			}
		}
	}
	for _, name := range fields {
		if _, known, _ := x.stepField(name); !known {
			names := slices.Concat(slices.Sorted(maps.Keys(x.given)), mergefields.OfAccount, mergefields.OfCall, mergefields.Supplied)
			return nil, false, &CallError{Kind: "input", Message: fmt.Sprintf("mapping %q: unknown merge field {{%s}}%s", m.Path, name, strictjson.DidYouMean(name, names))}
		}
	}
	if m.Script != nil {
		return x.evaluate(ctx, m.Script, x.stepField)
	}
	return mergefields.Tree(m.Text, x.stepField)
}

// stepField resolves merge fields where the step writes them: its own
// parameters and the system's, never what the credential holds.
func (x *exchange) stepField(name string) (v any, known, foreign bool) {
	if raw, ok := x.given[name]; ok {
		v, err := jsontree.Decode(raw)
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
	if slices.Contains(declared, name) || slices.Contains(mergefields.Supplied, name) {
		return nil
	}
	return &CallError{Kind: "input", Message: fmt.Sprintf("method %q has no parameter %q%s", x.m.Name, name, strictjson.DidYouMean(name, declared))}
}

// pristineBody is the body before any script, of an outbound request its part of it.
func (x *exchange) pristineBody(look mergefields.Lookup) (json.RawMessage, error) {
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
func (x *exchange) wholeBody(look mergefields.Lookup) (json.RawMessage, error) {
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
		if tree, err = jsontree.Decode(body); err != nil {
			return nil, &CallError{Kind: "input", Message: "the body is no JSON value"}
		}
	}
	for _, m := range x.mapped {
		var ok bool
		if tree, ok = location.Lay(tree, m.steps, m.value); !ok {
			return nil, &CallError{Kind: "input", Message: fmt.Sprintf("mapping %q: the body has something else than an object on the way there", m.path)}
		}
	}
	return jsontree.Marshal(tree)
}
