package connectors

import (
	"encoding/json"
	"unsafe"

	"github.com/tidwall/gjson"
)

// view looks into JSON without decoding it: an answer of many megabytes is
// read for a few of its values. raw must be valid, and must not change while
// the view is used.
func view(raw json.RawMessage) gjson.Result {
	if len(raw) == 0 {
		return gjson.Result{}
	}
	return gjson.Parse(unsafe.String(unsafe.SliceData(raw), len(raw)))
}

// memberOf is an object's member; of several of one name the last, as
// everything else here reads them.
func memberOf(v gjson.Result, name string) (out gjson.Result, found bool) {
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

// dig reads a location in a body: found is false where a member is missing.
// Lists give a list, with gap for items without the member. A name in square
// brackets whose value is no list is read as the member of that very name,
// brackets included, if there is one. Where lone says so, as XML needs it, it
// is a list of one.
func dig(v gjson.Result, steps []pathStep, lone bool, gap any) (out any, found bool) {
	for i, s := range steps {
		list := s.list
		if s.name != "" || !list {
			named, ok := memberOf(v, s.name)
			if list && !named.IsArray() {
				if literal, there := memberOf(v, "["+s.name+"]"); there {
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
			value, ok := dig(item, steps[i+1:], lone, gap)
			inner, several := value.([]any)
			switch {
			case ok && several && hasList(steps[i+1:]):
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
	out, err := decodeJSON([]byte(v.Raw))
	return out, err == nil
}

// dig reads a location in this call's answer.
func (x *exchange) dig(v gjson.Result, steps []pathStep, gap any) (out any, found bool) {
	return dig(v, steps, x.lone(), gap)
}

func hasList(steps []pathStep) bool {
	for _, s := range steps {
		if s.list {
			return true
		}
	}
	return false
}

// tooDeep says that valid JSON is nested deeper than most.
func tooDeep(raw json.RawMessage, most int) bool {
	depth, text := 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case text && c == '\\':
			i++
		case c == '"':
			text = !text
		case text:
		case c == '[' || c == '{':
			if depth++; depth > most {
				return true
			}
		case c == ']' || c == '}':
			depth--
		}
	}
	return false
}
