package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
)

// difference is a place where two JSON values are not the same; a side that
// has nothing there is nil.
type difference struct {
	path     string
	old, new json.RawMessage
}

// differences compares two JSON values, members in any order. Whole values are
// told where one side has them and the other has not.
func differences(path string, old, now json.RawMessage) []difference {
	a, errA := decode(old)
	b, errB := decode(now)
	if errA != nil || errB != nil {
		if bytes.Equal(old, now) {
			return nil
		}
		return []difference{{path, old, now}}
	}
	return compare(path, a, b, nil)
}

func compare(path string, a, b any, found []difference) []difference {
	switch x := a.(type) {
	case map[string]any:
		y, ok := b.(map[string]any)
		if !ok {
			break
		}
		names := slices.Collect(maps.Keys(x))
		for k := range y {
			if _, both := x[k]; !both {
				names = append(names, k)
			}
		}
		slices.Sort(names)
		for _, k := range names {
			below := k
			if path != "" {
				below = path + "." + k
			}
			left, inLeft := x[k]
			right, inRight := y[k]
			switch {
			case !inLeft:
				found = append(found, difference{below, nil, compact(right)})
			case !inRight:
				found = append(found, difference{below, compact(left), nil})
			default:
				found = compare(below, left, right, found)
			}
		}
		return found
	case []any:
		y, ok := b.([]any)
		if !ok || len(x) != len(y) {
			break
		}
		for i := range x {
			found = compare(fmt.Sprintf("%s[%d]", path, i), x[i], y[i], found)
		}
		return found
	}
	if !reflect.DeepEqual(a, b) {
		found = append(found, difference{path, compact(a), compact(b)})
	}
	return found
}

func compact(v any) json.RawMessage {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // it was decoded from JSON
	return bytes.TrimSpace(b.Bytes())
}
