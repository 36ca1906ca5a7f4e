package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// Value is one JSON value of an input, and the physical line on which it
// begins. Err is set instead of Raw for what is no JSON.
type Value struct {
	Line int
	Raw  json.RawMessage
	Err  error
}

// SyntaxError is a place in an input that is no JSON. Its Text may hold a
// character of the input.
type SyntaxError struct {
	Line, Column int
	Text         string
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("malformed JSON at line %d, column %d: %s", e.Line, e.Column, e.Text)
}

// ReadError is an input that could not be read to its end.
type ReadError struct{ Err error }

func (e *ReadError) Error() string { return "the input cannot be read: " + e.Err.Error() }
func (e *ReadError) Unwrap() error { return e.Err }

// Limits of an input, in bytes: of one object or line, and of an array.
const (
	maxObject = 8 << 20
	maxArray  = 1 << 30
)

// OpenInput opens the FILE of a command line, or standard input for "-" or none.
func OpenInput(args []string, stdin io.Reader) (io.ReadCloser, error) {
	if len(args) == 0 || args[0] == "-" {
		return io.NopCloser(stdin), nil
	}
	f, err := os.Open(args[0])
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read", args[0])
	}
	return f, nil
}

// Interruptible reads r until ctx is done. Nothing ends a read of a terminal
// or pipe that nobody writes to, so that one is left behind: the process is
// about to end.
func Interruptible(ctx context.Context, r io.Reader) (in io.Reader, end func()) {
	pr, pw := io.Pipe()
	go func() {
		_, err := io.Copy(pw, r)
		pw.CloseWithError(err)
	}()
	stop := context.AfterFunc(ctx, func() { pw.CloseWithError(ctx.Err()) })
	return pr, func() { stop(); pr.Close() }
}

// Values reads an input that is a JSON array, or objects: NDJSON, or written
// over several lines each. It calls fn for each value, in order and as soon as
// it is read. A malformed line, or object, stops no other: what follows the
// beginning of a malformed object is read again from the next line that begins
// with a brace. When ctx is done it ends with a *ReadError of ctx's.
func Values(ctx context.Context, r io.Reader, fn func(Value) error) error {
	r, end := Interruptible(ctx, r)
	defer end()
	in := &input{in: bufio.NewReaderSize(r, 64<<10), line: 1}
	first, skip := true, false
	for {
		at := in.line
		text, err := in.next()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if first {
			text = bytes.TrimPrefix(text, []byte("\ufeff"))
		}
		blank := bytes.TrimSpace(text)
		switch {
		case len(blank) == 0:
			continue
		case first && blank[0] == '[':
			return in.array(text, at, fn)
		case skip && text[0] != '{':
			continue
		}
		first, skip = false, false
		v := Value{Line: at}
		f := &feed{in: in, text: text, more: blank[0] == '{'}
		var unread *ReadError
		if v.Raw, err = f.value(at); errors.As(err, &unread) {
			return err
		} else if err != nil {
			v.Raw, v.Err = nil, err
			skip = in.again(f.text[len(text):])
		}
		if err := fn(v); err != nil {
			return err
		}
	}
}

// input is read by lines.
type input struct {
	in   *bufio.Reader
	back []byte // lines that are read again
	line int    // number of the next line
}

// next returns the next line, with its end, or io.EOF.
func (in *input) next() ([]byte, error) {
	var text []byte
	if len(in.back) > 0 {
		end := bytes.IndexByte(in.back, '\n') + 1
		if end == 0 {
			end = len(in.back)
		}
		text, in.back = in.back[:end:end], in.back[end:]
		in.line++
		return text, nil
	}
	for {
		part, err := in.in.ReadSlice('\n')
		if len(text) <= maxObject { // of a longer one only so much that it is seen to be too long
			text = append(text, part...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil && !errors.Is(err, io.EOF):
			return nil, &ReadError{err}
		case len(text) == 0:
			return nil, io.EOF
		}
		in.line++
		return text, nil
	}
}

// again puts the lines behind a malformed first one back, from the first that
// begins with a brace. It says whether lines up to such a one are to be skipped.
func (in *input) again(rest []byte) (skip bool) {
	if len(rest) == 0 {
		return false
	}
	for len(rest) > 0 && rest[0] != '{' {
		end := bytes.IndexByte(rest, '\n') + 1
		if end == 0 {
			end = len(rest)
		}
		rest = rest[end:]
	}
	in.line -= bytes.Count(rest, []byte("\n"))
	if len(rest) > 0 && rest[len(rest)-1] != '\n' {
		in.line--
	}
	in.back = append(bytes.Clone(rest), in.back...)
	return true
}

// feed gives a JSON decoder one line after the other, each only when the
// lines before are the beginning of a value.
type feed struct {
	in   *input
	text []byte // all lines so far
	read int
	more bool // the value may go on in the next line
}

var errTooLong = errors.New("too long")

func (f *feed) Read(p []byte) (int, error) {
	if len(f.text) > maxObject {
		return 0, errTooLong
	}
	if f.read == len(f.text) {
		if !f.more {
			return 0, io.EOF
		}
		text, err := f.in.next()
		if err != nil {
			return 0, err
		}
		f.text = append(f.text, text...)
	}
	n := copy(p, f.text[f.read:])
	f.read += n
	return n, nil
}

// value returns the one value that stands in the lines from the given one on:
// a *SyntaxError if there is none, or more than that.
func (f *feed) value(line int) (json.RawMessage, error) {
	dec := json.NewDecoder(f)
	var raw json.RawMessage
	err := dec.Decode(&raw)
	var unread *ReadError
	switch {
	case errors.As(err, &unread):
		return nil, err
	case errors.Is(err, errTooLong):
		return nil, fmt.Errorf("an object has more than %d MiB", maxObject>>20)
	case err != nil:
		return nil, malformed(f.text, line)
	}
	end := int(dec.InputOffset())
	if rest := bytes.TrimLeft(f.text[end:], " \t\r\n"); len(rest) > 0 {
		return nil, place(f.text, len(f.text)-len(rest), line, "something stands after the JSON value")
	}
	return raw, nil
}

// malformed says where text, which begins with the given line, is no JSON.
func malformed(text []byte, line int) error {
	var syntax *json.SyntaxError
	var v json.RawMessage
	// With one byte more, an end that comes too early is none of text's.
	if errors.As(json.Unmarshal(append(bytes.Clone(text), '\n'), &v), &syntax) && int(syntax.Offset) <= len(text) {
		return place(text, int(syntax.Offset)-1, line, syntax.Error())
	}
	return place(text, len(bytes.TrimRight(text, " \t\r\n")), line, "it ends too early")
}

func place(text []byte, offset, line int, what string) error {
	head := text[:max(offset, 0)]
	return &SyntaxError{line + bytes.Count(head, []byte("\n")), len(head) - bytes.LastIndexByte(head, '\n'), what}
}

// array reads the values of an array that begins in the given line.
func (in *input) array(text []byte, line int, fn func(Value) error) error {
	rest, err := io.ReadAll(io.LimitReader(in.in, maxArray))
	if err != nil {
		return &ReadError{err}
	}
	if len(rest) == maxArray {
		return fn(Value{Line: line, Err: fmt.Errorf("an array has more than %d GiB; write one object in each line instead", maxArray>>30)})
	}
	text = append(text, rest...)
	seen, at := 0, line
	lineOf := func(offset int) int {
		at += bytes.Count(text[seen:offset], []byte("\n"))
		seen = offset
		return at
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	_, err = dec.Token()
	for err == nil && dec.More() {
		from := int(dec.InputOffset())
		from = len(text) - len(bytes.TrimLeft(text[from:], " \t\r\n,"))
		v := Value{Line: lineOf(from)}
		if err = dec.Decode(&v.Raw); err != nil {
			return fn(Value{Line: v.Line, Err: malformed(text, line)})
		}
		if err := fn(v); err != nil {
			return err
		}
	}
	if err == nil {
		_, err = dec.Token()
	}
	if err != nil {
		return fn(Value{Line: lineOf(len(bytes.TrimRight(text, " \t\r\n"))), Err: malformed(text, line)})
	}
	end := int(dec.InputOffset())
	if rest := bytes.TrimLeft(text[end:], " \t\r\n"); len(rest) > 0 {
		offset := len(text) - len(rest)
		return fn(Value{Line: lineOf(offset), Err: place(text, offset, line, "something stands after the array")})
	}
	return nil
}
