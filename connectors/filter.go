package connectors

import (
	"encoding/json"
	"errors"
	"strings"

	"github.com/stepworker/stepworker/connectors/dates"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/connectors/jsontree"
	"github.com/stepworker/stepworker/connectors/location"
)

// filtered is the content without the items that the method's filter
// parameters keep back. One without a value, or with an empty text, keeps back
// nothing, nor does one whose list is not there.
func (x *exchange) filtered(content json.RawMessage) (json.RawMessage, error) {
	var tree any
	for i := range x.m.Parameters {
		q := &x.m.Parameters[i]
		least, ok := x.params[q.Name]
		if q.Target != definition.FilterField || !ok || least == "" {
			continue
		}
		if tree == nil {
			if x.unparsed {
				content = x.parseLeft(content, x.m.ResponseDT)
			}
			var ok bool
			var err error
			if tree, ok, err = listed(content); errors.Is(err, jsontree.ErrTooDeep) {
				return nil, x.nestedDeeper(jsontree.MaxDepth)
			} else if !ok {
				return content, nil
			}
		}
		steps, err := location.Parse(q.Wire())
		if err != nil {
			return nil, err
		}
		tree = keepLater(tree, steps, len(location.ToList(steps)), least, x.lone())
	}
	if tree == nil {
		return content, nil
	}
	return jsontree.Marshal(tree)
}

// listed is content that a list may be in: not nothing, and no text.
func listed(content json.RawMessage) (tree any, ok bool, err error) {
	if tree, err = jsontree.Decode(content); err != nil {
		return nil, false, err
	}
	switch tree.(type) {
	case []any, *jsontree.Object:
		return tree, true, nil
	}
	return nil, false, nil
}

// keepLater goes down to the last list of a location, which is its step with
// that number, and leaves there what is later. With lone a single value may be
// what stands there, as in XML.
func keepLater(v any, steps []location.Step, list int, least any, lone bool) any {
	inside := v
	var holder *jsontree.Object
	if s := steps[0]; s.Name != "" || !s.List {
		holder, _ = v.(*jsontree.Object)
		if holder == nil {
			return v
		}
		var there bool
		if inside, there = holder.Values[s.Name]; !there {
			return v
		}
	}
	if items, ok := inside.([]any); ok && steps[0].List {
		kept := make([]any, 0, len(items))
		for _, item := range items {
			if list > 1 {
				kept = append(kept, keepLater(item, steps[1:], list-1, least, lone))
			} else if at, _ := location.Member(item, steps[1:]); later(at, least) {
				kept = append(kept, item)
			}
		}
		inside = kept
	} else if (!steps[0].List || lone && inside != nil) && list > 1 {
		inside = keepLater(inside, steps[1:], list-1, least, lone)
	}
	if _, many := inside.([]any); lone && steps[0].List && list == 1 && !many {
		if at, _ := location.Member(inside, steps[1:]); !later(at, least) {
			inside = []any{}
		}
	}
	if holder == nil {
		return inside
	}
	holder.Set(steps[0].Name, inside)
	return v
}

// later compares numbers as numbers, dates as dates, and all else as text.
// Nothing, and an empty text, is not later than anything.
func later(v, than any) bool {
	a, there := jsontree.Text(v)
	b, _ := jsontree.Text(than)
	if !there {
		return false
	}
	if x, ok := jsontree.Amount(a); ok {
		if y, ok := jsontree.Amount(b); ok {
			return x.Cmp(y) > 0
		}
	}
	if x, ok := dates.Of(v); ok {
		if y, ok := dates.Of(than); ok {
			return x.After(y)
		}
	}
	return strings.Compare(a, b) > 0
}
