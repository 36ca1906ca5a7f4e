package cli_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/internal/cli"
)

func TestValues(t *testing.T) {
	const badA = `malformed JSON at line 1, column 6: invalid character ',' looking for beginning of value`
	for name, c := range map[string]struct {
		in   string
		want []string
	}{
		"nothing":                {"", nil},
		"blanks":                 {" \n\t\n", nil},
		"one object":             {`{"a":1}`, []string{`1 {"a":1}`}},
		"a byte order mark":      {"\ufeff" + `{"a":1}`, []string{`1 {"a":1}`}},
		"lines":                  {"{\"a\":1}\n\n  {\"a\":2}\r\n{\"a\":3}", []string{`1 {"a":1}`, `3 {"a":2}`, `4 {"a":3}`}},
		"a malformed line":       {"{\"a\":,}\n{\"a\":2}\n", []string{"1 " + badA, `2 {"a":2}`}},
		"malformed lines":        {"{\"a\":,}\nb\n5\n", []string{"1 " + badA, "2 malformed JSON at line 2, column 1: invalid character 'b' looking for beginning of value", "3 5"}},
		"its last byte is wrong": {`{"a":}`, []string{"1 malformed JSON at line 1, column 6: invalid character '}' looking for beginning of value"}},
		"two objects in a line":  {"{\"a\":1} {\"a\":2}\n{\"a\":3}\n", []string{"1 malformed JSON at line 1, column 9: something stands after the JSON value", `2 {"a":3}`}},
		"an array in a line":     {"{\"a\":1}\n[2,\n{\"a\":3}\n", []string{`1 {"a":1}`, "2 malformed JSON at line 2, column 4: it ends too early", `3 {"a":3}`}},

		"an object over lines":  {"\n{\n \"a\": 1\n}\n", []string{"2 {\n \"a\": 1\n}"}},
		"objects over lines":    {"{\n \"a\": 1\n}\n{\n \"a\": 2\n}\n{\"a\":3}\n", []string{"1 {\n \"a\": 1\n}", "4 {\n \"a\": 2\n}", `7 {"a":3}`}},
		"braces at the margin":  {"{\"a\": [\n{\"b\": 1}\n]}\n", []string{"1 {\"a\": [\n{\"b\": 1}\n]}"}},
		"malformed over lines":  {"{\n \"a\": 1,,\n \"b\": 2\n}\n{\"a\":2}\n", []string{"1 malformed JSON at line 2, column 9: invalid character ',' looking for beginning of object key string", `5 {"a":2}`}},
		"more behind its end":   {"{\n\"a\": 1\n} x\n{\"a\":2}\n", []string{"1 malformed JSON at line 3, column 3: something stands after the JSON value", `4 {"a":2}`}},
		"a line that is cut":    {"{\"a\":1,\n\n{\"a\":2}\n{\"a\":3}\n", []string{"1 malformed JSON at line 3, column 1: invalid character '{' looking for beginning of object key string", `3 {"a":2}`, `4 {"a":3}`}},
		"and swallows another":  {"{\"a\":\n{\"a\":2}\n{\"a\":3}\n", []string{"1 malformed JSON at line 3, column 1: invalid character '{' after object key:value pair", `2 {"a":2}`, `3 {"a":3}`}},
		"and the input with it": {"{\"a\":\n{\"a\":2}\n", []string{"1 malformed JSON at line 2, column 8: it ends too early", `2 {"a":2}`}},
		"text over two lines":   {"{\"a\":\"x\ny\"}\n{\"a\":2}\n", []string{`1 malformed JSON at line 1, column 8: invalid character '\n' in string literal`, "2 malformed JSON at line 2, column 1: invalid character 'y' looking for beginning of value", `3 {"a":2}`}},
		"an object too large":   {"{\"a\":\n\"" + strings.Repeat("x", 9<<20) + "\"}\n{\"a\":2}\n", []string{"1 an object has more than 8 MiB", `3 {"a":2}`}},
		"a line too long":       {strings.Repeat("x", 9<<20) + "\n{\"a\":2}\n", []string{"1 an object has more than 8 MiB", `2 {"a":2}`}},

		"an array":                  {"\n [\n{\"a\":1}, 2,\n\n{\"a\":3}\n]\n", []string{`3 {"a":1}`, "3 2", `5 {"a":3}`}},
		"an empty array":            {"[ ]", nil},
		"a malformed array":         {"[\n{\"a\":1},\n{\"a\":,}\n]", []string{`2 {"a":1}`, "3 malformed JSON at line 3, column 6: invalid character ',' looking for beginning of value"}},
		"an array with a comma":     {"[1,\n]", []string{"1 1", "2 malformed JSON at line 2, column 1: invalid character ']' looking for beginning of value"}},
		"an array without its end":  {"[1,\n2\n", []string{"1 1", "2 2", "2 malformed JSON at line 2, column 2: it ends too early"}},
		"an object behind an array": {"[1]\n\n {\"a\":2}\n[3]\n", []string{"1 1", "3 malformed JSON at line 3, column 2: something stands after the array"}},
		"text behind an array":      {"[1] x", []string{"1 1", "1 malformed JSON at line 1, column 5: something stands after the array"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			err := cli.Values(t.Context(), strings.NewReader(c.in), func(v cli.Value) error {
				if v.Err != nil {
					got = append(got, fmt.Sprintf("%d %v", v.Line, v.Err))
				} else {
					got = append(got, fmt.Sprintf("%d %s", v.Line, v.Raw))
				}
				return nil
			})
			if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
}

// Somebody types, or a program writes a line and waits for its answer.
func TestValues_areAnsweredAtOnce(t *testing.T) {
	in, out := io.Pipe()
	defer out.Close()
	answers := make(chan string, 1)
	go func() {
		_ = cli.Values(t.Context(), in, func(v cli.Value) error {
			answers <- fmt.Sprint(v.Line, v.Err != nil)
			return nil
		})
		close(answers)
	}()
	for _, c := range []struct{ write, want string }{
		{"{\"a\":1}\n", "1 false"},
		{"{\"a\":,}\n", "2 true"},
		{"x\n", "3 true"},
		{"{\n\"a\":1\n}\n", "4 false"},
		{"{\n\"a\":,\n", "7 true"},
		{"\"b\":1}\n{\"a\":1}\n", "10 false"},
	} {
		go func() { _, _ = io.WriteString(out, c.write) }()
		select {
		case got := <-answers:
			if got != c.want {
				t.Errorf("%q: got %s, want %s", c.write, got, c.want)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%q is not answered", c.write)
		}
	}
}

func TestValues_readError(t *testing.T) {
	broken := errors.New("broken pipe")
	n := 0
	err := cli.Values(t.Context(), io.MultiReader(strings.NewReader("{\"a\":1}\n{\n"), iotest.ErrReader(broken)), func(cli.Value) error { n++; return nil })
	var read *cli.ReadError
	if !errors.As(err, &read) || !errors.Is(err, broken) || n != 1 {
		t.Errorf("%d values, %v", n, err)
	}
}

func TestValues_interrupted(t *testing.T) {
	in, out := io.Pipe()
	defer out.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { _, _ = io.WriteString(out, "{\"a\":1}\n") }()
	err := cli.Values(ctx, in, func(cli.Value) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
