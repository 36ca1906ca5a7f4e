// Package cli is what both programs need of a command line: flags that the
// environment may set, mistakes told all at once, and a Redis client.
package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/pflag"
)

// Exit codes.
const (
	ExitFailed  = 1
	ExitUsage   = 2
	ExitTimeout = 3
)

// Error carries an exit code. Its text may be empty: all was said already.
type Error struct {
	Code int
	Text string
}

func (e *Error) Error() string { return e.Text }

// Usage is a configuration mistake: exit code 2.
func Usage(format string, args ...any) error { return &Error{ExitUsage, fmt.Sprintf(format, args...)} }

// Failed is any other failure: exit code 1.
func Failed(format string, args ...any) error {
	return &Error{ExitFailed, fmt.Sprintf(format, args...)}
}

// Exit prints an error and returns its exit code.
func Exit(stderr io.Writer, err error) int {
	if err == nil {
		return 0
	}
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{ExitUsage, err.Error()}
	}
	if e.Text != "" {
		fmt.Fprintln(stderr, e.Text)
	}
	return e.Code
}

// EnvName is the environment's name of a flag.
func EnvName(flag string) string {
	return "STEPWORKER_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// FromEnv gives flags that the command line did not set their environment's
// value, and returns every mistake.
func FromEnv(fs *pflag.FlagSet) []string {
	var mistakes []string
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Changed || f.Name == "help" {
			return
		}
		v, ok := os.LookupEnv(EnvName(f.Name))
		if !ok {
			return
		}
		if err := fs.Set(f.Name, v); err != nil {
			mistakes = append(mistakes, fmt.Sprintf("%s: %q is not valid: %s", EnvName(f.Name), v, plain(err)))
		}
	})
	return mistakes
}

func plain(err error) string {
	text := err.Error()
	if i := strings.LastIndex(text, ": "); i >= 0 {
		text = text[i+2:]
	}
	return text
}

// Bool is a strict boolean flag: true, false, 1, 0.
type Bool bool

func (b *Bool) Set(s string) error {
	switch s {
	case "true", "1":
		*b = true
	case "false", "0", "":
		*b = false
	default:
		return errors.New("true, false, 1 or 0 is needed")
	}
	return nil
}
func (b *Bool) String() string { return fmt.Sprint(bool(*b)) }
func (b *Bool) Type() string   { return "bool" }

// BoolVar adds a strict boolean flag.
func BoolVar(fs *pflag.FlagSet, b *Bool, name, usage string) {
	fs.Var(b, name, usage)
	fs.Lookup(name).NoOptDefVal = "true"
}

// Later are flags of later versions: given, they are refused with a sentence.
func Later(fs *pflag.FlagSet, names ...string) {
	for _, n := range names {
		fs.Var(later{}, n, "not supported yet")
		_ = fs.MarkHidden(n)
	}
}

type later struct{}

func (later) Set(v string) error {
	if v == "" {
		return nil
	}
	return errors.New("this option is not supported yet")
}
func (later) String() string { return "" }
func (later) Type() string   { return "string" }

// Redis are the options that say where Redis is.
type Redis struct{ URL, File string }

// Add adds the options.
func (r *Redis) Add(fs *pflag.FlagSet) {
	fs.StringVar(&r.URL, "redis", "redis://127.0.0.1:6379/0", "Redis: redis://, rediss:// or redis-socket:// (one with a password: by STEPWORKER_REDIS or --redis-file)")
	fs.StringVar(&r.File, "redis-file", "", "file that holds the Redis URL")
}

// Options reads the URL. No error holds it: it may hold a password.
func (r *Redis) Options(fs *pflag.FlagSet) (*redis.Options, error) {
	text := r.URL
	if r.File != "" {
		raw, err := os.ReadFile(r.File)
		if err != nil {
			return nil, fmt.Errorf("--redis-file: %s cannot be read", r.File)
		}
		text = strings.TrimSpace(string(raw))
	} else if u, err := url.Parse(text); err == nil && fs.Changed("redis") && os.Getenv("STEPWORKER_REDIS") != text {
		if _, has := u.User.Password(); has {
			return nil, errors.New("--redis: a URL with a password does not belong on a command line; use STEPWORKER_REDIS or --redis-file")
		}
	}
	scheme, rest, _ := strings.Cut(text, "://")
	switch scheme {
	case "redis", "rediss":
	case "redis-socket":
		text = "unix://" + rest
	case "redis-sentinel", "redis-cluster":
		return nil, fmt.Errorf("--redis: %s:// is not supported yet", scheme)
	default:
		return nil, errors.New("--redis: a URL that begins with redis://, rediss:// or redis-socket:// is needed")
	}
	o, err := redis.ParseURL(text)
	if err != nil {
		return nil, errors.New("--redis: the URL cannot be read")
	}
	o.PoolSize = 64
	o.ClientName = "stepworker"
	return o, nil
}

// Open returns a client that has answered.
func Open(ctx context.Context, o *redis.Options) (redis.UniversalClient, error) {
	c := redis.NewClient(o)
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := c.Ping(ctx).Err(); err != nil {
		_ = c.Close()
		return nil, Usage("redis at %s does not answer: %s", o.Addr, plain(err))
	}
	return c, nil
}

// Value is one JSON value of an input, and the line on which it begins. Err is
// set for a line that is no JSON.
type Value struct {
	Line int
	Raw  json.RawMessage
	Err  error
}

// Values reads an input that is one JSON object, a JSON array, or NDJSON, and
// calls fn for each value, in order. A malformed line of NDJSON stops nobody.
func Values(r io.Reader, fn func(Value) error) error {
	in := bufio.NewReaderSize(r, 64<<10)
	line := 1
	for {
		c, _, err := in.ReadRune()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if c == '\n' {
			line++
		}
		if c == '\ufeff' || unicode.IsSpace(c) {
			continue
		}
		if err := in.UnreadRune(); err != nil {
			return err
		}
		if c == '[' {
			return array(in, line, fn)
		}
		break
	}
	return lines(in, line, fn)
}

// maxObject bounds one JSON object that is written over several lines.
const maxObject = 8 << 20

// lines reads NDJSON, or one object over several lines: which of the two, the
// first line tells, or else the whole.
func lines(in *bufio.Reader, line int, fn func(Value) error) error {
	first, err := in.ReadBytes('\n')
	if err != nil && err != io.EOF {
		return err
	}
	if text := bytes.TrimSpace(first); !json.Valid(text) && err == nil {
		rest, err := io.ReadAll(io.LimitReader(in, maxObject))
		if err != nil {
			return err
		}
		if whole := bytes.TrimSpace(append(bytes.Clone(first), rest...)); json.Valid(whole) && len(rest) < maxObject {
			return fn(Value{Line: line, Raw: whole})
		}
		// No: every line stands for itself, and a malformed one stops nobody.
		in = bufio.NewReaderSize(io.MultiReader(bytes.NewReader(rest), in), 64<<10)
	}
	for text := first; ; line++ {
		if raw := bytes.TrimSpace(text); len(raw) > 0 {
			v := Value{Line: line, Raw: bytes.Clone(raw)}
			if !json.Valid(raw) {
				v.Err = malformed(raw, line)
			}
			if err := fn(v); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		text, err = in.ReadBytes('\n')
	}
}

func malformed(raw []byte, line int) error {
	var v any
	err := json.Unmarshal(raw, &v)
	var syntax *json.SyntaxError
	if !errors.As(err, &syntax) {
		return errors.New("malformed JSON")
	}
	head := raw[:min(int(max(syntax.Offset-1, 0)), len(raw))]
	return fmt.Errorf("malformed JSON at line %d, column %d: %s", line+bytes.Count(head, []byte("\n")), len(head)-bytes.LastIndexByte(head, '\n'), syntax.Error())
}

func array(in *bufio.Reader, line int, fn func(Value) error) error {
	raw, err := io.ReadAll(io.LimitReader(in, 1<<30))
	if err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if _, err := dec.Token(); err != nil {
		return fn(Value{Line: line, Err: malformed(raw, line)})
	}
	for dec.More() {
		from := dec.InputOffset()
		for from < int64(len(raw)) && (unicode.IsSpace(rune(raw[from])) || raw[from] == ',') {
			from++
		}
		v := Value{Line: line + bytes.Count(raw[:from], []byte("\n"))}
		if err := dec.Decode(&v.Raw); err != nil {
			v.Err = malformed(raw, line)
			return fn(v)
		}
		if err := fn(v); err != nil {
			return err
		}
	}
	if _, err := dec.Token(); err != nil {
		return fn(Value{Line: line + bytes.Count(raw, []byte("\n")), Err: malformed(raw, line)})
	}
	return nil
}
