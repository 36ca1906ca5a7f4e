package location

import (
	"encoding/json"
	"unsafe"

	"github.com/tidwall/gjson"

	"github.com/stepworker/stepworker/connectors/jsontree"
)

// View looks into JSON without decoding it: an answer of many megabytes is
// read for a few of its values. raw must be valid, and must not change while
// the view is used.
func View(raw json.RawMessage) gjson.Result {
	if len(raw) == 0 {
		return gjson.Result{}
	}
	return gjson.Parse(unsafe.String(unsafe.SliceData(raw), len(raw)))
}

// MemberOf is an object's member; of several of one name the last, as
// everything else here reads them.
func MemberOf(v gjson.Result, name string) (out gjson.Result, found bool) {
	if !v.IsObject() {
		return gjson.Result{}, false
	}
	v.ForEach(func(k, value gjson.Result) bool {
		if k.Str == name {
			out, found = value, true
		}
		return true
	})
	return out, found
}

// Dig reads a location in a body: found is false where a member is missing.
// Lists give a list, with gap for items without the member. A name in square
// brackets whose value is no list is read as the member of that very name,
// brackets included, if there is one. Where lone says so, as XML needs it, it
// is a list of one.
func Dig(v gjson.Result, steps []Step, lone bool, gap any) (out any, found bool) {
	for i, s := range steps {
		list := s.List
		if s.Name != "" || !list {
			named, ok := MemberOf(v, s.Name)
			if list && !named.IsArray() {
				if literal, there := MemberOf(v, "["+s.Name+"]"); there {
					named, ok, list = literal, true, false
				}
			}
			if v = named; !ok {
				return nil, false
			}
		}
		if !list {
			continue
		}
		all := []any{}
		each := func(_, item gjson.Result) bool {
			value, ok := Dig(item, steps[i+1:], lone, gap)
			inner, several := value.([]any)
			switch {
			case ok && several && HasList(steps[i+1:]):
				all = append(all, inner...)
			case ok:
				all = append(all, value)
			default:
				all = append(all, gap)
			}
			return true
		}
		switch {
		case v.IsArray():
			v.ForEach(each)
		case lone:
			each(gjson.Result{}, v)
		default:
			return nil, false
		}
		return all, true
	}
	if !v.Exists() {
		return nil, false
	}
	switch v.Type {
	case gjson.Null:
		return nil, true
	case gjson.True, gjson.False:
		return v.Bool(), true
	case gjson.Number:
		return json.Number(v.Raw), true
	case gjson.String:
		return v.Str, true
	}
	out, err := jsontree.Decode([]byte(v.Raw))
	return out, err == nil
}
