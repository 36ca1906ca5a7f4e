package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/pflag"
)

// Redis are the options that say where Redis is.
type Redis struct{ URL, File string }

// Add adds the options.
func (r *Redis) Add(fs *pflag.FlagSet) {
	fs.StringVar(&r.URL, "redis", "redis://127.0.0.1:6379/0",
		"Redis: redis://, rediss://, redis-socket://, redis-sentinel:// or redis-cluster:// (one with a password: by STEPWORKER_REDIS or --redis-file)")
	fs.StringVar(&r.File, "redis-file", "", "file that holds the Redis URL")
}

// Options reads the URL: of the two options one that the command line gives
// wins over the environment's. No error holds it: it may hold a password.
func (r *Redis) Options(fs *pflag.FlagSet) (*RedisOptions, error) {
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
	} else if urlHere && split(text).holdsPassword() {
		return nil, errors.New("--redis: a URL with a password does not belong on a command line; use STEPWORKER_REDIS or --redis-file")
	}
	o, err := ParseRedis(text)
	if err != nil {
		return nil, fmt.Errorf("--redis: %w", err)
	}
	return o, nil
}

const openWithin = 5 * time.Second

// Open returns a client that has answered: on a cluster, whose every master has.
func Open(ctx context.Context, o *RedisOptions) (redis.UniversalClient, error) {
	if o.Log != nil {
		redis.SetLogger(redisLog{o.Log})
	}
	c := o.client()
	ctx, cancel := context.WithTimeout(ctx, openWithin)
	defer cancel()
	if err := answers(ctx, c); err != nil {
		_ = c.Close()
		return nil, Usage("%s does not answer: %s", o, o.explain(err))
	}
	if other := o.other(ctx, c); other != "" {
		_ = c.Close()
		return nil, Usage("--redis: %s", other)
	}
	return c, nil
}

// other says that what a URL takes for a single server is another kind of Redis,
// which answers and is of no use.
func (o *RedisOptions) other(ctx context.Context, c redis.UniversalClient) string {
	if o.single == nil {
		return ""
	}
	text, _ := c.Info(ctx, "server").Result() // what is not told is not known to be wrong
	switch {
	case strings.Contains(text, "redis_mode:sentinel"):
		return fmt.Sprintf("%s is a sentinel; redis-sentinel://%s/0?master=NAME asks it for the master", o, o.single.Addr)
	case strings.Contains(text, "redis_mode:cluster"):
		masters := map[string]bool{}
		slots, _ := c.ClusterSlots(ctx).Result()
		for _, s := range slots {
			if len(s.Nodes) > 0 {
				masters[s.Nodes[0].Addr] = true
			}
		}
		if len(masters) > 1 {
			return fmt.Sprintf("%s is one of %d masters of a cluster; redis-cluster://%[3]s finds them all", o, len(masters), o.single.Addr)
		}
	}
	return ""
}

func answers(ctx context.Context, c redis.UniversalClient) error {
	if cluster, ok := c.(*redis.ClusterClient); ok {
		return cluster.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error { return node.Ping(ctx).Err() })
	}
	return c.Ping(ctx).Err()
}

// redisLog is go-redis' own log, of connections that come and go: what matters
// of it reaches its caller as an error.
type redisLog struct{ log *slog.Logger }

func (l redisLog) Printf(ctx context.Context, format string, v ...any) {
	l.log.DebugContext(ctx, "redis", "text", fmt.Sprintf(format, v...))
}

// explain is the end of an error's text, which has no address in it, and what is
// often meant by it.
func (o *RedisOptions) explain(err error) string {
	text := err.Error()
	if i := strings.LastIndex(text, ": "); i >= 0 {
		text = text[i+2:]
	}
	late := errors.Is(err, context.DeadlineExceeded)
	if late {
		text = fmt.Sprintf("nothing came within %s", openWithin)
	}
	switch {
	case o.sentinel == nil:
	case late:
		text += " from the sentinels, or from the master that they name"
	case redis.HasErrorPrefix(err, "NOAUTH"), redis.HasErrorPrefix(err, "WRONGPASS"):
		text += " (what stands before the @ is for the sentinels; redis itself gets username= and password= behind the ?)"
	case strings.Contains(err.Error(), "all sentinels specified in configuration are unreachable"):
		text = "no sentinel that can be reached knows that master"
	}
	return text
}
