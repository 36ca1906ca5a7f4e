package connectors

import (
	"encoding/json"
	"errors"
	"strings"

	"go.yaml.in/yaml/v4"
)

// filterField is the target of a parameter that lets only newer items of an
// answer pass: as (default its name) is a location in a list, and of its items
// those stay whose value there is later, or greater, than the parameter's.
const filterField = "filter_field"

func (p *fileParser) filterLocation(n *yaml.Node, q *Parameter) {
	steps, err := parsePath(q.wire())
	if err != nil {
		p.find(n, "parameter %q: location %q: %v", q.Name, q.wire(), err)
	} else if toList(steps) == nil {
		p.find(n, "parameter %q filters the items of a list: its location (as) must name one, such as [records].updated_at", q.Name)
	}
}

// filtered is the content without the items that the method's filter
// parameters keep back. One without a value, or with an empty text, keeps back
// nothing, nor does one whose list is not there.
func (x *exchange) filtered(content json.RawMessage) (json.RawMessage, error) {
	var tree any
	for i := range x.m.Parameters {
		q := &x.m.Parameters[i]
		least, ok := x.params[q.Name]
		if q.Target != filterField || !ok || least == "" {
			continue
		}
		if tree == nil {
			if x.unparsed {
				content = x.parseLeft(content, x.m.ResponseDT)
			}
			var ok bool
			var err error
			if tree, ok, err = listed(content); errors.Is(err, errTooDeep) {
				return nil, x.nestedDeeper(maxDepth)
			} else if !ok {
				return content, nil
			}
		}
		steps, err := parsePath(q.wire())
		if err != nil {
			return nil, err
		}
		tree = keepLater(tree, steps, len(toList(steps)), least, x.lone())
	}
	if tree == nil {
		return content, nil
	}
	return marshal(tree)
}

// listed is content that a list may be in: not nothing, and no text.
func listed(content json.RawMessage) (tree any, ok bool, err error) {
	if tree, err = decodeJSON(content); err != nil {
		return nil, false, err
	}
	switch tree.(type) {
	case []any, *OrderedMap:
		return tree, true, nil
	}
	return nil, false, nil
}

// keepLater goes down to the last list of a location, which is its step with
// that number, and leaves there what is later. With lone a single value may be
// what stands there, as in XML.
func keepLater(v any, steps []pathStep, list int, least any, lone bool) any {
	inside := v
	var holder *OrderedMap
	if s := steps[0]; s.name != "" || !s.list {
		holder, _ = v.(*OrderedMap)
		if holder == nil {
			return v
		}
		var there bool
		if inside, there = holder.Values[s.name]; !there {
			return v
		}
	}
	if items, ok := inside.([]any); ok && steps[0].list {
		kept := make([]any, 0, len(items))
		for _, item := range items {
			if list > 1 {
				kept = append(kept, keepLater(item, steps[1:], list-1, least, lone))
			} else if at, _ := memberAt(item, steps[1:]); later(at, least) {
				kept = append(kept, item)
			}
		}
		inside = kept
	} else if (!steps[0].list || lone && inside != nil) && list > 1 {
		inside = keepLater(inside, steps[1:], list-1, least, lone)
	}
	if _, many := inside.([]any); lone && steps[0].list && list == 1 && !many {
		if at, _ := memberAt(inside, steps[1:]); !later(at, least) {
			inside = []any{}
		}
	}
	if holder == nil {
		return inside
	}
	holder.Set(steps[0].name, inside)
	return v
}

// later compares numbers as numbers, dates as dates, and all else as text.
// Nothing, and an empty text, is not later than anything.
func later(v, than any) bool {
	a, there := scalar(v)
	b, _ := scalar(than)
	if !there {
		return false
	}
	if x, ok := amount(a); ok {
		if y, ok := amount(b); ok {
			return x.Cmp(y) > 0
		}
	}
	if x, ok := dateOf(v); ok {
		if y, ok := dateOf(than); ok {
			return x.After(y)
		}
	}
	return strings.Compare(a, b) > 0
}
