package connectors

import (
	"encoding/json"
	"errors"
	"fmt"

	"go.yaml.in/yaml/v4"
)

// About is what a file says of a field to people and to programs that offer
// its values. What a step gives need not be one of Values.
type About struct {
	Title       string
	Description string
	Values      []any
	Trigger     string // a lookup whose answer offers further values
}

// RequestField names where in a body a value stands, and as what it is written.
type RequestField struct {
	About
	Field    string
	System   string
	Type     string
	Format   string // of a datetime, in .NET's words
	Required bool
	Default  any
	HasDef   bool

	steps []pathStep
}

func (p *fileParser) request(n *yaml.Node, m *Method) {
	p.mapping(n, "request", keys{
		"fields": func(n *yaml.Node) {
			seen := map[string]bool{}
			p.sequence(n, func(n *yaml.Node) {
				f, optional := RequestField{}, true
				k := p.about(&f.About)
				k["field"], k["system"], k["type"], k["format"] = p.text(&f.Field), p.text(&f.System), p.enum(&f.Type, fieldTypes), p.text(&f.Format)
				k["optional"] = p.boolean(&optional)
				k["default"] = func(n *yaml.Node) {
					f.Default, f.HasDef = p.free(n), true
					p.templatesIn(n, m, "body")
				}
				got := p.mapping(n, "a request field", k)
				if f.Field == "" && n.Kind == yaml.MappingNode && got["field"] == nil {
					p.find(n, "a request field needs a location: key \"field\"")
				}
				f.Required = !optional
				f.steps = p.location(n, f.Field, seen)
				p.dateFormat(got["format"], f.Type, f.Format)
				if f.System == "" {
					f.System = f.Field
				}
				m.Request = append(m.Request, f)
			})
		},
	})
}

// about reads the keys that say what a field is.
func (p *fileParser) about(a *About) keys {
	return keys{
		"title": p.text(&a.Title), "description": p.text(&a.Description),
		"trigger": p.lookup(&a.Trigger),
		"values":  func(n *yaml.Node) { p.sequence(n, func(n *yaml.Node) { a.Values = append(a.Values, p.free(n)) }) },
	}
}

// location reads where a field stands; seen are those before it in its list.
func (p *fileParser) location(n *yaml.Node, field string, seen map[string]bool) []pathStep {
	if at := valueOf(n, "field"); field == "" {
		if at != nil && at.Kind == yaml.ScalarNode && at.ShortTag() == "!!str" { // else text is missing, which is told
			p.find(at, "field is empty: a location is needed, such as [records].id")
		}
		return nil
	}
	steps, err := parsePath(field)
	switch {
	case err != nil:
		p.find(n, "field %q: %v", field, err)
	case seen[field]:
		p.hint(n, "field %q stands here twice", field)
	}
	seen[field] = true
	return steps
}

// dateFormat checks a field's format.
func (p *fileParser) dateFormat(key *yaml.Node, typ, format string) {
	if key == nil {
		return
	}
	if typ != "datetime" {
		p.find(key, "format has a meaning for type datetime alone")
	} else if err := checkFormat(format); err != nil {
		p.find(key, "format: %v", err)
	}
}

// webhookFields are read from a webhook's body as response fields are.
func webhookFields(request []RequestField) (all []ResponseField) {
	for _, f := range request {
		all = append(all, ResponseField{Field: f.Field, System: f.System, Type: f.Type, Format: f.Format, Title: f.Title, Description: f.Description,
			Optional: !f.Required, Default: f.Default, HasDef: f.HasDef, steps: f.steps})
	}
	return all
}

// fit makes the body what the method's request fields say: defaults are put
// where nothing stands, values become what their types say. A location within
// lists counts for each of their items; of a list that is missing there are none.
func (x *exchange) fit(body json.RawMessage, look lookup) (json.RawMessage, error) {
	if x.m.Type == TypeWebhook || len(x.m.Request) == 0 {
		return body, nil
	}
	var tree any
	if body != nil {
		var err error
		if tree, err = decodeJSON(body); err != nil {
			return nil, &CallError{Kind: "input", Message: "the body is no JSON value"}
		}
	}
	there := body != nil
	for i := range x.m.Request {
		f := fitting{RequestField: &x.m.Request[i], lone: x.m.DataType == XML}
		if f.HasDef {
			var err error
			if f.value, f.filled, err = expandTree(f.Default, look); err != nil {
				return nil, err
			}
		}
		v, keep, err := f.put(tree, there, f.steps)
		if err != nil {
			return nil, &CallError{Kind: "input", Message: fmt.Sprintf("field %q of the body %v", f.Field, err)}
		}
		tree, there = v, keep
	}
	if !there {
		return nil, nil
	}
	return marshal(tree)
}

// fitting is a field that is being put into a body.
type fitting struct {
	*RequestField
	value  any // the default, filled
	filled bool
	lone   bool // what should be a list may be a single value: XML knows no lists
}

// put returns what stands at a place from now on, and whether anything does.
func (f *fitting) put(v any, there bool, steps []pathStep) (any, bool, error) {
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
	if s.list && s.name == "" {
		return f.items(v, there, steps[1:])
	}
	m, ok := v.(*OrderedMap)
	switch {
	case v == nil:
		m = &OrderedMap{}
	case !ok: // not what the location means
		return v, there, f.missing()
	}
	name := s.name
	inner, has := m.Values[name]
	_, isList := inner.([]any)
	if literal := "[" + name + "]"; s.list && !isList && m.Values[literal] != nil {
		name, s.list = literal, false
		inner, has = m.Values[name], true
	}
	put := f.put
	if s.list {
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
func (f *fitting) items(v any, there bool, rest []pathStep) (any, bool, error) {
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
		text, _ := scalar(v)
		if _, ok := readFormat(text, f.Format); ok {
			return text, nil
		}
		t, ok := guessDate(text)
		if !ok {
			return nil, fmt.Errorf("must be a date, such as 2026-11-25T10:00:00Z, to be written as %s", f.Format)
		}
		return formatDate(t, f.Format), nil
	}
	v, ok := coerce(v, f.Type)
	if !ok {
		return nil, fmt.Errorf("must be of type %s", f.Type)
	}
	if f.Type == "float" || f.Type == "decimal" {
		v = convert(v, f.Type, "")
	}
	return v, nil
}
