package connectors

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/stepworker/stepworker/connectors/dates"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/connectors/jsontree"
	"github.com/stepworker/stepworker/connectors/location"
	"github.com/stepworker/stepworker/connectors/mergefields"
)

// fit makes the body what the method's request fields say: defaults are put
// where nothing stands, values become what their types say. A location within
// lists counts for each of their items; of a list that is missing there are none.
func (x *exchange) fit(body json.RawMessage, look mergefields.Lookup) (json.RawMessage, error) {
	if x.m.Type == definition.TypeWebhook || len(x.m.Request) == 0 {
		return body, nil
	}
	var tree any
	if body != nil {
		var err error
		if tree, err = jsontree.Decode(body); err != nil {
			return nil, &CallError{Kind: "input", Message: "the body is no JSON value"}
		}
	}
	there := body != nil
	for i := range x.m.Request {
		f := fitting{RequestField: &x.m.Request[i], lone: x.m.DataType == definition.XML}
		if f.HasDef {
			var err error
			if f.value, f.filled, err = mergefields.Tree(f.Default, look); err != nil {
				return nil, err
			}
		}
		v, keep, err := f.put(tree, there, f.Steps)
		if err != nil {
			return nil, &CallError{Kind: "input", Message: fmt.Sprintf("field %q of the body %v", f.Field, err)}
		}
		tree, there = v, keep
	}
	if !there {
		return nil, nil
	}
	return jsontree.Marshal(tree)
}

// fitting is a field that is being put into a body.
type fitting struct {
	*definition.RequestField
	value  any // the default, filled
	filled bool
	lone   bool // what should be a list may be a single value: XML knows no lists
}

// put returns what stands at a place from now on, and whether anything does.
func (f *fitting) put(v any, there bool, steps []location.Step) (any, bool, error) {
	if len(steps) == 0 {
		if !there && f.filled {
			v, there = f.value, true
		}
		if v == nil {
			return v, there, f.missing()
		}
		v, err := f.write(v)
		return v, true, err
	}
	s := steps[0]
	if s.List && s.Name == "" {
		return f.items(v, there, steps[1:])
	}
	m, ok := v.(*jsontree.Object)
	switch {
	case v == nil:
		m = &jsontree.Object{}
	case !ok: // not what the location means
		return v, there, f.missing()
	}
	name := s.Name
	inner, has := m.Values[name]
	_, isList := inner.([]any)
	if literal := "[" + name + "]"; s.List && !isList && m.Values[literal] != nil {
		name, s.List = literal, false
		inner, has = m.Values[name], true
	}
	put := f.put
	if s.List {
		put = f.items
	}
	inner, keep, err := put(inner, has, steps[1:])
	if err != nil {
		return nil, false, err
	}
	if keep {
		m.Set(name, inner)
	}
	if keep || there && v != nil {
		return m, true, nil
	}
	return v, there, nil
}

// items puts the field into each item of a list.
func (f *fitting) items(v any, there bool, rest []location.Step) (any, bool, error) {
	list, ok := v.([]any)
	switch {
	case !ok && (v == nil || f.lone) && (len(rest) == 0 || v != nil): // the list itself, which may be missing; or a list of one
		return f.put(v, there, rest)
	case !ok:
		return v, there, f.missing()
	}
	for i, item := range list {
		out, _, err := f.put(item, true, rest)
		if err != nil {
			return nil, false, err
		}
		list[i] = out
	}
	return list, true, nil
}

func (f *fitting) missing() error {
	if f.Required {
		return errors.New("is missing")
	}
	return nil
}

// write gives a value the field's type.
func (f *fitting) write(v any) (any, error) {
	if list, ok := v.([]any); ok && f.Type != "" {
		out := make([]any, len(list))
		for i, e := range list {
			var err error
			if out[i], err = f.write(e); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	if f.Type == "datetime" && f.Format != "" && v != nil {
		text, _ := jsontree.Text(v)
		if _, ok := dates.ParseAs(text, f.Format); ok {
			return text, nil
		}
		t, ok := dates.Guess(text)
		if !ok {
			return nil, fmt.Errorf("must be a date, such as 2026-11-25T10:00:00Z, to be written as %s", f.Format)
		}
		return dates.Format(t, f.Format), nil
	}
	v, ok := jsontree.Coerce(v, f.Type)
	if !ok {
		return nil, fmt.Errorf("must be of type %s", f.Type)
	}
	if f.Type == "float" || f.Type == "decimal" {
		v = jsontree.Convert(v, f.Type, "")
	}
	return v, nil
}
