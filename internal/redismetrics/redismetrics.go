// Package redismetrics measures what a worker asks of Redis.
package redismetrics

import (
	"context"
	"errors"
	"net"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
)

// Classes of commands: a label for each command would be a hundred series for
// what one or two tell.
const (
	Read     = "read"
	Write    = "write"
	Script   = "script"
	Pipeline = "pipeline"
	Other    = "other" // connections, configuration
)

// Kinds of errors.
const (
	Unreachable = "unreachable" // no connection, or no answer in time
	Refused     = "refused"     // it takes no writes: out of memory, a read-only replica, a failing disk, no permission
	Failed      = "failed"      // any other answer that is an error
)

// Hook is a hook of a go-redis client, and a collector.
type Hook struct {
	seconds *prometheus.HistogramVec
	errs    *prometheus.CounterVec
	classes map[string]prometheus.Observer
}

// New returns a hook that has measured nothing.
func New() *Hook {
	h := &Hook{
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "stepworker_redis_seconds",
			Help:    "Time that Redis took, the network and the wait for a connection included, by class of command: read, write, script, pipeline, other.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .1, .5, 2.5}}, []string{"command"}),
		errs: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "stepworker_redis_errors_total",
			Help: "Commands and pipelines that failed: unreachable, refused (Redis takes no writes), failed (any other error)."}, []string{"kind"}),
		classes: map[string]prometheus.Observer{},
	}
	for _, class := range []string{Read, Write, Script, Pipeline, Other} {
		h.classes[class] = h.seconds.WithLabelValues(class)
	}
	for _, kind := range []string{Unreachable, Refused, Failed} {
		h.errs.WithLabelValues(kind)
	}
	return h
}

// Describe implements prometheus.Collector.
func (h *Hook) Describe(ch chan<- *prometheus.Desc) { h.seconds.Describe(ch); h.errs.Describe(ch) }

// Collect implements prometheus.Collector.
func (h *Hook) Collect(ch chan<- prometheus.Metric) { h.seconds.Collect(ch); h.errs.Collect(ch) }

// DialHook implements redis.Hook.
func (h *Hook) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

// ProcessHook implements redis.Hook.
func (h *Hook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		begun := time.Now()
		err := next(ctx, cmd)
		class := classOf(cmd.Name())
		h.classes[class].Observe(time.Since(begun).Seconds())
		h.failed(ctx, class, err)
		return err
	}
}

// ProcessPipelineHook implements redis.Hook.
func (h *Hook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		begun := time.Now()
		err := next(ctx, cmds)
		class := Pipeline
		if len(cmds) > 0 && setup[cmds[0].Name()] {
			class = Other
		}
		h.classes[class].Observe(time.Since(begun).Seconds())
		h.failed(ctx, class, err)
		return err
	}
}

// setup are the commands with which go-redis greets Redis on a new connection.
var setup = map[string]bool{"hello": true, "auth": true, "select": true, "client": true, "readonly": true}

// failed counts an error: an absent key is none, nor is a script that Redis does
// not know yet, and a caller that has given up tells nothing of Redis. That an
// older Redis does not know what a connection begins with, or that CONFIG is
// forbidden, is nothing amiss.
func (h *Hook) failed(ctx context.Context, class string, err error) {
	if err == nil || errors.Is(err, redis.Nil) || errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	var reply redis.Error
	switch answered := errors.As(err, &reply); {
	case answered && class == Other:
	case !answered:
		h.errs.WithLabelValues(Unreachable).Inc()
	case redis.HasErrorPrefix(err, "NOSCRIPT"):
	case refuses(err):
		h.errs.WithLabelValues(Refused).Inc()
	case redis.HasErrorPrefix(err, "LOADING"), redis.HasErrorPrefix(err, "CLUSTERDOWN"), redis.HasErrorPrefix(err, "MASTERDOWN"):
		h.errs.WithLabelValues(Unreachable).Inc()
	default:
		h.errs.WithLabelValues(Failed).Inc()
	}
}

// refuses says that Redis answers and takes no write. A script that may not write
// tells so in an error of its own, which quotes Redis' word for it.
func refuses(err error) bool {
	for _, word := range []string{"OOM", "READONLY", "MISCONF", "NOPERM", "NOREPLICAS"} {
		if redis.HasErrorPrefix(err, word) || strings.Contains(err.Error(), "-"+word+" ") {
			return true
		}
	}
	return false
}

var classes = map[string]string{
	"eval": Script, "evalsha": Script, "eval_ro": Script, "evalsha_ro": Script, "script": Script,
	"get": Read, "mget": Read, "exists": Read, "hget": Read, "hmget": Read, "hgetall": Read, "hexists": Read, "hlen": Read, "hkeys": Read, "hscan": Read,
	"llen": Read, "lrange": Read, "lindex": Read, "scard": Read, "sismember": Read, "smembers": Read, "sscan": Read, "scan": Read, "strlen": Read,
	"zcard": Read, "zcount": Read, "zrange": Read, "zrangebyscore": Read, "zrevrange": Read, "zscore": Read, "pttl": Read, "ttl": Read, "type": Read,
	"set": Write, "setnx": Write, "del": Write, "unlink": Write, "expire": Write, "pexpire": Write, "persist": Write, "incr": Write, "incrby": Write, "decr": Write,
	"append": Write, "hset": Write, "hsetnx": Write, "hdel": Write, "hincrby": Write, "lpush": Write, "rpush": Write, "lpop": Write, "rpop": Write, "lrem": Write, "ltrim": Write,
	"sadd": Write, "srem": Write, "zadd": Write, "zrem": Write, "zremrangebyscore": Write, "publish": Write, "rename": Write,
}

func classOf(name string) string {
	if class, ok := classes[name]; ok {
		return class
	}
	return Other
}
