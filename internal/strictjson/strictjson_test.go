package strictjson_test

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/internal/strictjson"
)

type thing struct {
	Name   string                     `json:"name"`
	Count  *int                       `json:"count"`
	At     *time.Time                 `json:"at"`
	Any    json.RawMessage            `json:"any"`
	Values map[string]json.RawMessage `json:"values"`
	Texts  map[string]string          `json:"texts"`
	Own    own                        `json:"own"`
	Sub    *struct {
		Inner string `json:"inner_name"`
	} `json:"sub"`
	Base
}

type Base struct {
	Deep bool `json:"deep"`
}

// own reads itself, and knows of a mistake in a member.
type own struct{ text string }

func (o *own) UnmarshalJSON(b []byte) error {
	switch string(b) {
	case "1":
		return errors.New("one is too few")
	case "2":
		return &strictjson.MemberError{Member: "part", Text: "two are too many"}
	}
	o.text = string(b)
	return nil
}

func TestDecode(t *testing.T) {
	three := 3
	noon := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		in   string
		want thing
	}{
		"nothing": {`{}`, thing{}},
		"all": {`{"name":"n","count":3,"at":"2026-12-01T12:00:00Z","any":[1, 2],"values":{"a":1,"A":null},"texts":{"x":"y"},"own":{},"sub":{"inner_name":"i"},"deep":true}`,
			thing{Name: "n", Count: &three, At: &noon, Any: json.RawMessage(`[1, 2]`), Values: map[string]json.RawMessage{"a": json.RawMessage("1"), "A": json.RawMessage("null")},
				Texts: map[string]string{"x": "y"}, Own: own{"{}"}, Sub: &struct {
					Inner string `json:"inner_name"`
				}{"i"}, Base: Base{true}}},
		"null is absent": {`{"name":null,"count":null,"at":null,"any":null,"values":null,"own":null,"sub":null,"deep":null}`, thing{Any: json.RawMessage("null")}},
		// What is not ours to read may be anything.
		"a member twice in what is not ours": {`{"any":{"a":1,"a":2}}`, thing{Any: json.RawMessage(`{"a":1,"a":2}`)}},
	} {
		t.Run(name, func(t *testing.T) {
			var got thing
			err := strictjson.Decode([]byte(c.in), &got, strictjson.Options{What: "a thing"})
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(own{})); diff != "" || err != nil {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestDecode_saysWhatIsWrong(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"no object":               {`[1]`, "a thing is a JSON object, not a list"},
		"null":                    {`null`, "a thing is a JSON object, not null"},
		"malformed":               {"{\n \"name\": x}", "malformed JSON at line 2, column 10: invalid character 'x' looking for beginning of value"},
		"two values":              {`{} {}`, "malformed JSON at line 1, column 4: invalid character '{' after top-level value"},
		"unknown":                 {`{"nam":1}`, `unknown member "nam"; did you mean "name"?`},
		"like nothing":            {`{"zzz":1}`, `unknown member "zzz"`},
		"another case":            {`{"Name":"n"}`, `unknown member "Name"; did you mean "name"?`},
		"one of another object's": {`{"iner_name":1}`, `unknown member "iner_name"; did you mean "inner_name"?`},
		"twice":                   {`{"name":"a","name":"b"}`, `member "name" is given twice`},
		"twice, once with escape": {`{"name":"a","n\u0061me":"b"}`, `member "name" is given twice`},
		"twice in a map":          {`{"values":{"a":1,"a":2}}`, `values: member "a" is given twice`},
		"another kind":            {`{"name":["a"]}`, "name: a list is not allowed here"},
		"another kind below":      {`{"sub":{"inner_name":true}}`, "sub.inner_name: a boolean is not allowed here"},
		"another kind in a map":   {`{"texts":{"a":1}}`, "texts.a: a number is not allowed here"},
		"no object below":         {`{"sub":"x"}`, "sub: a string is not allowed here"},
		"unknown below":           {`{"sub":{"innername":1}}`, `sub: unknown member "innername"; did you mean "inner_name"?`},
		"a fraction":              {`{"count":1.5}`, "count: a whole number is needed"},
		"no time":                 {`{"at":"noon"}`, "at: an RFC 3339 time is needed, such as 2026-12-01T10:00:00Z"},
		"its own mistake":         {`{"own":1}`, "own: one is too few"},
		"a member's of its own":   {`{"own":2}`, "own.part: two are too many"},
	} {
		t.Run(name, func(t *testing.T) {
			err := strictjson.Decode([]byte(c.in), &thing{}, strictjson.Options{What: "a thing"})
			if err == nil || err.Error() != c.want {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
	err := strictjson.Decode([]byte(`{"name":hunter2}`), &thing{}, strictjson.Options{Secret: true})
	if err == nil || err.Error() != "malformed JSON at line 1, column 9" {
		t.Errorf("with secrets: %v", err)
	}
}
