// Package cli is what both programs need of a command line: flags that the
// environment may set, mistakes told all at once, and a Redis client.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

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

func plain(err error) string {
	text := err.Error()
	if i := strings.LastIndex(text, ": "); i >= 0 {
		text = text[i+2:]
	}
	return text
}

// Redis are the options that say where Redis is.
type Redis struct{ URL, File string }

// Add adds the options.
func (r *Redis) Add(fs *pflag.FlagSet) {
	fs.StringVar(&r.URL, "redis", "redis://127.0.0.1:6379/0", "Redis: redis://, rediss:// or redis-socket:// (one with a password: by STEPWORKER_REDIS or --redis-file)")
	fs.StringVar(&r.File, "redis-file", "", "file that holds the Redis URL")
}

// Options reads the URL: of the two options one that the command line gives
// wins over the environment's. No error holds it: it may hold a password.
func (r *Redis) Options(fs *pflag.FlagSet) (*redis.Options, error) {
	byURL, byFile := fs.Changed("redis") && r.URL != "", r.File != ""
	urlHere, fileHere := OnCommandLine(fs, "redis"), OnCommandLine(fs, "redis-file")
	switch {
	case !byURL || !byFile:
	case urlHere && fileHere:
		return nil, errors.New("--redis and --redis-file: give one of them")
	case !urlHere && !fileHere:
		return nil, errors.New("STEPWORKER_REDIS and STEPWORKER_REDIS_FILE: give one of them")
	default:
		byFile = fileHere
	}
	text := r.URL
	if byFile {
		raw, err := os.ReadFile(r.File)
		if err != nil {
			return nil, fmt.Errorf("--redis-file: %s cannot be read", r.File)
		}
		text = strings.TrimSpace(string(raw))
	} else if u, err := url.Parse(text); err == nil && urlHere {
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
	if o.Protocol == 0 {
		o.Protocol = 2 // looking for RESP 3's push messages would cost a share of every command
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
