// Package strictjson decodes JSON that people write. An unknown or misspelt
// member is an error, so is one that is given twice; names match exactly, null
// counts as absent, and every error says where and what, never with a value.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"unicode/utf8"

	"github.com/agext/levenshtein"
)

// Options say how errors are worded.
type Options struct {
	What    string   // what the whole is: "a step"
	Suggest []string // what an unknown member may be meant for; nil: any member
	Secret  bool     // no error holds a character of the input, but for members' names
}

// MemberError is what an UnmarshalJSON returns for a mistake in a member of
// its own.
type MemberError struct{ Member, Text string }

func (e *MemberError) Error() string { return e.Member + ": " + e.Text }

// Decode reads raw into a struct. Null leaves a member as it is; a
// json.RawMessage alone holds it.
func Decode(raw []byte, into any, o Options) error {
	var whole json.RawMessage
	var syntax *json.SyntaxError
	for i := 0; i < len(raw); { // the standard library would put another text in its place
		r, size := utf8.DecodeRune(raw[i:])
		if r == utf8.RuneError && size == 1 {
			return fmt.Errorf("malformed JSON at line %d, column %d: it is not UTF-8", 1+bytes.Count(raw[:i], []byte("\n")), i-bytes.LastIndexByte(raw[:i], '\n'))
		}
		i += size
	}
	if err := json.Unmarshal(raw, &whole); errors.As(err, &syntax) {
		head := raw[:min(max(int(syntax.Offset)-1, 0), len(raw))]
		place := fmt.Sprintf("malformed JSON at line %d, column %d", 1+bytes.Count(head, []byte("\n")), len(head)-bytes.LastIndexByte(head, '\n'))
		if o.Secret {
			return errors.New(place)
		}
		return fmt.Errorf("%s: %w", place, syntax)
	} else if err != nil {
		return err
	}
	v := reflect.ValueOf(into).Elem()
	d := &decoder{suggest: o.Suggest, whole: v.Type()}
	if kind := kindOf(whole); kind != "an object" {
		return fmt.Errorf("%s is a JSON object, not %s", o.What, kind)
	}
	return d.value(whole, v, "")
}

type decoder struct {
	suggest []string
	whole   reflect.Type
}

var rawMessage = reflect.TypeFor[json.RawMessage]()

// value decodes into v, which stands at path.
func (d *decoder) value(raw json.RawMessage, v reflect.Value, path string) error {
	if v.Type() == rawMessage {
		v.SetBytes(slices.Clone(raw))
		return nil
	}
	if string(raw) == "null" {
		return nil
	}
	if u, ok := v.Addr().Interface().(json.Unmarshaler); ok {
		return d.custom(raw, u, path)
	}
	switch v.Kind() {
	case reflect.Pointer:
		p := reflect.New(v.Type().Elem())
		if err := d.value(raw, p.Elem(), path); err != nil {
			return err
		}
		v.Set(p)
		return nil
	case reflect.Struct, reflect.Map:
		return d.object(raw, v, path)
	}
	var typ *json.UnmarshalTypeError
	if err := json.Unmarshal(raw, v.Addr().Interface()); errors.As(err, &typ) {
		kind := kindOf(raw)
		if kind == "a number" && v.CanInt() {
			return at(path, "a whole number is needed")
		}
		if v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.String { // it or an item is at fault
			return at(path, "a list of texts is needed")
		}
		return at(path, kind+" is not allowed here")
	} else if err != nil {
		return at(path, "it cannot be read")
	}
	return nil
}

// custom decodes what reads itself.
func (d *decoder) custom(raw json.RawMessage, u json.Unmarshaler, path string) error {
	err := u.UnmarshalJSON(raw)
	var member *MemberError
	switch _, isTime := u.(*time.Time); {
	case err == nil:
		return nil
	case isTime:
		return at(path, "an RFC 3339 time is needed, such as 2026-12-01T10:00:00Z")
	case errors.As(err, &member):
		return at(path+"."+member.Member, member.Text)
	}
	return at(path, err.Error())
}

func (d *decoder) object(raw json.RawMessage, v reflect.Value, path string) error {
	if kind := kindOf(raw); kind != "an object" {
		return at(path, kind+" is not allowed here")
	}
	var fields map[string][]int
	if v.Kind() == reflect.Struct {
		fields = fieldsOf(v.Type())
	} else {
		v.Set(reflect.MakeMap(v.Type()))
	}
	seen := map[string]bool{}
	dec := json.NewDecoder(bytes.NewReader(raw))
	_, err := dec.Token()
	for err == nil && dec.More() {
		var token json.Token
		if token, err = dec.Token(); err != nil {
			break
		}
		name, _ := token.(string)
		if seen[name] {
			return at(path, fmt.Sprintf("member %q is given twice", name))
		}
		seen[name] = true
		var member json.RawMessage
		if err = dec.Decode(&member); err != nil {
			break
		}
		below := strings.TrimPrefix(path+"."+name, ".")
		if fields == nil {
			elem := reflect.New(v.Type().Elem()).Elem()
			if err := d.value(member, elem, below); err != nil {
				return err
			}
			v.SetMapIndex(reflect.ValueOf(name), elem)
			continue
		}
		index, ok := fields[name]
		if !ok {
			return at(path, d.unknown(name, fields))
		}
		if err := d.value(member, v.FieldByIndex(index), below); err != nil {
			return err
		}
	}
	return err
}

func (d *decoder) unknown(name string, here map[string][]int) string {
	names := d.suggest
	if names == nil {
		names = namesIn(d.whole, nil)
	}
	known := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return here[n] == nil })
	near := Nearest(name, known)
	if near == "" { // it may belong elsewhere
		near = Nearest(name, names)
	}
	if near == "" {
		return fmt.Sprintf("unknown member %q", name)
	}
	return fmt.Sprintf("unknown member %q; did you mean %q?", name, near)
}

// fieldsOf are a struct's fields by the names of their members.
func fieldsOf(t reflect.Type) map[string][]int {
	fields := map[string][]int{}
	for _, f := range reflect.VisibleFields(t) {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
			fields[name] = f.Index
		}
	}
	return fields
}

// namesIn are the names of all members of a type, below it too.
func namesIn(t reflect.Type, names []string) []string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t == reflect.TypeFor[time.Time]() {
		return names
	}
	for name, index := range fieldsOf(t) {
		names = namesIn(t.FieldByIndex(index).Type, append(names, name))
	}
	return names
}

func kindOf(raw json.RawMessage) string {
	switch raw[0] {
	case '{':
		return "an object"
	case '[':
		return "a list"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	}
	return "a number"
}

func at(path, text string) error {
	if path == "" {
		return errors.New(text)
	}
	return errors.New(path + ": " + text)
}

// Nearest returns the name most like the given one, or "" if none is alike.
func Nearest(name string, known []string) string {
	known = slices.Clone(known)
	slices.Sort(known) // of equals always the same
	best, score := "", 0.55
	for _, k := range known {
		if s := levenshtein.Similarity(strings.ToLower(name), strings.ToLower(k), nil); s > score {
			best, score = k, s
		}
	}
	return best
}

// DidYouMean ends a text about an unknown name with the nearest known one; it is
// "" if none is near.
func DidYouMean(name string, known []string) string {
	if n := Nearest(name, known); n != "" {
		return fmt.Sprintf("; did you mean %q?", n)
	}
	return ""
}
