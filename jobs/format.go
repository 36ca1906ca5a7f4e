package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/credentials"
)

// Format is the format of stored data that this build writes; it reads every
// one below. A release that stores something in a form that builds before it
// would misread has the next number.
//
//	1  what builds left that knew of no formats
//	2  payloads of steps with sealed parameters have version 2
const Format = 2

// oldestFormat is the lowest format that a build has to know to work beside this
// one. It rises only where old builds would misread what they cannot see to be
// newer: payloads and sealed records tell that themselves.
const oldestFormat = 1

// formatKey is a hash: format, the newest that a worker on this Redis writes;
// build, the first to write it; oldest, what a build has to know to work here.
// Redis without it is at format 1.
const formatKey = "stepworker:schema"

// formatEvery is how often a worker looks whether it may still work, and says
// which build it is.
const formatEvery = 5 * time.Second

// FormatError says that what is stored is too new for this build, which must
// leave it alone.
type FormatError struct{ Format, Oldest, Build string }

func (e *FormatError) Error() string {
	if e.Oldest == "" {
		return fmt.Sprintf("%s cannot be read: a newer build has written it; this one knows format %d of stored data: upgrade this worker", formatKey, Format)
	}
	by := ""
	if e.Build != "" {
		by = ", written by " + clip(e.Build, 100)
	}
	return fmt.Sprintf("this Redis is at format %s of stored data%s, and only builds that know format %s or a later one may work on it; this one knows %d: upgrade this worker",
		clip(e.Format, 20), by, clip(e.Oldest, 20), Format)
}

// CheckFormat returns a *FormatError if this build may not work on this Redis.
// It writes nothing.
func CheckFormat(ctx context.Context, rdb redis.UniversalClient) error {
	h, err := rdb.HMGet(ctx, formatKey, "format", "oldest", "build").Result()
	if redis.HasErrorPrefix(err, "WRONGTYPE") {
		return &FormatError{}
	}
	if err != nil {
		return err
	}
	var e FormatError
	for i, into := range []*string{&e.Format, &e.Oldest, &e.Build} {
		*into, _ = h[i].(string)
	}
	if e == (FormatError{}) {
		return nil
	}
	oldest, err := strconv.Atoi(e.Oldest)
	if _, bad := strconv.Atoi(e.Format); err != nil || bad != nil {
		return &FormatError{}
	}
	if oldest > Format {
		return &e
	}
	return nil
}

// enterFormat says that this build works here, or returns a *FormatError.
func (p *Pool) enterFormat(ctx context.Context) error {
	if err := CheckFormat(ctx, p.rdb); err != nil {
		return err
	}
	n, err := formatScript.Run(ctx, p.rdb, []string{formatKey}, Format, oldestFormat, p.cfg.Build).Int()
	if err == nil && n == 0 { // it has risen just now
		return CheckFormat(ctx, p.rdb)
	}
	return err
}

// formatScript raises the format of what is stored; it never falls.
//
//	KEYS  hash
//	ARGV  format, oldest, build
//	returns 1, or 0 if this build may not work here
var formatScript = redis.NewScript(`
local h = redis.call('HMGET', KEYS[1], 'format', 'oldest')
local format, oldest = tonumber(h[1] or 0), tonumber(h[2] or 0)
if not format or not oldest or oldest > tonumber(ARGV[1]) then return 0 end
if format < tonumber(ARGV[1]) then redis.call('HSET', KEYS[1], 'format', ARGV[1], 'build', ARGV[3]) end
if oldest < tonumber(ARGV[2]) then redis.call('HSET', KEYS[1], 'oldest', ARGV[2]) end
return 1
`)

// lookAtFormat stops the taking of tasks while what is stored is too new for
// this build, and begins it again. What runs ends, and what it brings is kept.
func (p *Pool) lookAtFormat(ctx context.Context) {
	err := p.enterFormat(ctx)
	var newer *FormatError
	if errors.As(err, &newer) {
		if p.behind.Swap(newer) == nil {
			p.log.Error("worker fault", "text", newer.Error())
		}
		p.gate.hold(true)
	} else if err == nil && p.behind.Swap(nil) != nil {
		p.gate.hold(false)
		p.log.Info("this build may work on what is stored again")
	}
	p.noteBuild(ctx)
}

// buildKey tells which build a process is, for a moment.
func buildKey(process string) string { return "stepworker:build:" + process }

func process(host string, pid int) string { return fmt.Sprintf("%s:%d", host, pid) }

// build is a process's build, as it notes it.
type build struct {
	Build  string `json:"build"`
	Format int    `json:"format"`
}

func (p *Pool) noteBuild(ctx context.Context) {
	host, err := os.Hostname() // as asynq names it
	if err != nil {
		host = "unknown-host"
	}
	raw, err := json.Marshal(build{p.cfg.Build, Format})
	if err == nil {
		err = p.rdb.Set(ctx, buildKey(process(host, os.Getpid())), raw, 3*formatEvery).Err()
	}
	if err != nil {
		p.log.Debug("redis does not take which build this is", "error", err.Error())
	}
}

// WorkerInfo is a worker process that runs now.
type WorkerInfo struct {
	Host string `json:"host"`
	PID  int    `json:"pid"`
	// Build is its version; "" is one that knew of no formats.
	Build   string `json:"build"`
	Format  int    `json:"format"` // of stored data that it writes
	Started *Time  `json:"started"`
}

// Workers are the worker processes that run now, of whatever build. A flow's
// Redis user may not read which: their builds are "" then.
func (c *Client) Workers(ctx context.Context) ([]WorkerInfo, error) {
	servers, err := c.inspector.Servers()
	if err != nil {
		return nil, fmt.Errorf("redis: %w", err)
	}
	first := map[string]WorkerInfo{}
	ours := map[string]bool{}
	for _, s := range servers {
		id := process(s.Host, s.PID)
		if w, ok := first[id]; !ok || s.Started.Before(w.Started.Time) {
			first[id] = WorkerInfo{Host: s.Host, PID: s.PID, Format: 1, Started: timeOf(s.Started)}
		}
		if _, refreshes := s.Queues[QueueRefresh]; refreshes { // others' servers take none
			ours[id] = true
		}
	}
	var all []WorkerInfo
	for id, w := range first {
		raw, err := c.rdb.Get(ctx, buildKey(id)).Bytes()
		var b build
		switch {
		case err == nil && json.Unmarshal(raw, &b) == nil:
			w.Build, w.Format = b.Build, b.Format
		case err != nil && !errors.Is(err, redis.Nil) && !redis.HasErrorPrefix(err, "NOPERM"):
			return nil, fmt.Errorf("redis: %w", err)
		case !ours[id]:
			continue
		}
		all = append(all, w)
	}
	slices.SortFunc(all, func(a, b WorkerInfo) int {
		if n := strings.Compare(a.Host, b.Host); n != 0 {
			return n
		}
		return a.PID - b.PID
	})
	return all, nil
}

// newerFault is the worker's own fault if err says that a newer build stored what
// was to be read; nil if it says something else.
func (p *Pool) newerFault(err error) error {
	var newer *credentials.NewerError
	if !errors.As(err, &newer) {
		return nil
	}
	return p.workerFault(newer.Error())
}
