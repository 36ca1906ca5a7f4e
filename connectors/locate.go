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
// Lists give a list, with null for items without the member.
func dig(v gjson.Result, steps []pathStep) (out any, found bool) {
	for i, s := range steps {
		if s.name != "" || !s.list {
			var ok bool
			if v, ok = memberOf(v, s.name); !ok {
				return nil, false
			}
		}
		if s.list {
			if !v.IsArray() {
				return nil, false
			}
			all := []any{}
			v.ForEach(func(_, item gjson.Result) bool {
				value, _ := dig(item, steps[i+1:])
				if inner, ok := value.([]any); ok && hasList(steps[i+1:]) {
					all = append(all, inner...)
				} else {
					all = append(all, value)
				}
				return true
			})
			return all, true
		}
	}
	if !v.Exists() {
		return nil, false
	}
	out, err := decodeJSON([]byte(v.Raw))
	return out, err == nil
}

func hasList(steps []pathStep) bool {
	for _, s := range steps {
		if s.list {
			return true
		}
	}
	return false
}

// tooDeep says that valid JSON is nested deeper than maxDepth.
func tooDeep(raw json.RawMessage) bool {
	depth, text := 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case text && c == '\\':
			i++
		case c == '"':
			text = !text
		case text:
		case c == '[' || c == '{':
			if depth++; depth > maxDepth {
				return true
			}
		case c == ']' || c == '}':
			depth--
		}
	}
	return false
}
