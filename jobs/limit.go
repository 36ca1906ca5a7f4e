package jobs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/connectors/definition"
)

const (
	// sitOut is how long an attempt waits for its turn in the worker, in all;
	// longer waits hold none.
	sitOut = time.Second
	// turnGrace is how much later than its turn the timer of a deferred
	// execution is: should the process that wakes it be gone.
	turnGrace = 2 * time.Second
	// sendLates is how often a grant is moved whose answer is late.
	sendLates = 3
	// placeGrace is how long the place is kept of one that does not come.
	placeGrace = 15 * time.Minute

	// A window is counted in that many parts. One more of them than a window
	// has holds no more requests than the limit: so no window does, wherever it
	// begins, and a two-hundredth is lost.
	windowParts = 200
	// Turns are a little further apart than the limit asks for, so that who
	// comes late to his finds room, and pushes nobody on.
	turnMargin = 0.005
)

// limitScript asks the limits of one call, decides, and counts, in one go and
// by Redis's clock.
//
// Of each limit there are two keys: what was granted within the last window,
// as a count for each of its parts, and the places of those who wait, by the
// time of their turn. Turns are 1/rate apart, on a grid; a new one is the first
// free after those of all limits, so who waits for one limit takes nothing of
// another meanwhile. Where granted and waiting together are fewer than the
// limit nobody needs to wait, and calls go out as they come.
//
//	KEYS  for each limit: log (hash: part → granted, last → time), wait (zset)
//	ARGV  mode: begin, send, extra or late; execution id; of extra "1": it uses
//	      the place; of late the time of the grant (µs), which is moved to now;
//	      grace of a place (ms); for each limit: requests, length of a part
//	      (ms), parts of a window, distance of turns (ms)
//	returns {wait (µs), index of the limit that asks for it}; {0, time of the
//	grant (µs)} if granted
//
// Memory: two hundred fields for each limit, and one member for each who waits.
// Time: O(log n) of those who wait.
var limitScript = redis.NewScript(`
local mode, id, grace = ARGV[1], ARGV[2], tonumber(ARGV[4])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + clock[2] / 1000
local text = function(n) return string.format('%.3f', n) end

local limits, mine, reserved = {}, 0, true
for i = 1, #KEYS / 2 do
  local a = 4 + (i - 1) * 4
  local l = {log = KEYS[2 * i - 1], wait = KEYS[2 * i], max = tonumber(ARGV[a + 1]), part = tonumber(ARGV[a + 2]),
    parts = tonumber(ARGV[a + 3]), gap = tonumber(ARGV[a + 4]), sum = 0, last = 0, free = now}
  l.at = math.floor(now / l.part)
  local h, live, old = redis.call('HGETALL', l.log), {}, {}
  for k = 1, #h, 2 do
    local b, n = tonumber(h[k]), tonumber(h[k + 1])
    if not b then l.last = n
    elseif b < l.at - l.parts then old[#old + 1] = h[k]
    else
      l.sum = l.sum + n
      live[#live + 1] = {b, n}
    end
  end
  for k = 1, #old do redis.call('HDEL', l.log, old[k]) end
  if l.sum >= l.max then
    table.sort(live, function(x, y) return x[1] < y[1] end)
    local left = l.sum
    for _, e in ipairs(live) do
      left = left - e[2]
      l.free = (e[1] + l.parts + 1) * l.part
      if left < l.max then break end
    end
  end
  redis.call('ZREMRANGEBYSCORE', l.wait, '-inf', '(' .. text(now - grace))
  local slot = redis.call('ZSCORE', l.wait, id)
  if slot then mine = math.max(mine, tonumber(slot)) else reserved = false end
  limits[i] = l
end

local grant = function()
  for _, l in ipairs(limits) do
    redis.call('HINCRBY', l.log, string.format('%.0f', l.at), 1)
    redis.call('HSET', l.log, 'last', text(now))
    redis.call('PEXPIRE', l.log, math.ceil((l.parts + 2) * l.part + l.gap))
    if mode ~= 'extra' or ARGV[3] == '1' then redis.call('ZREM', l.wait, id) end
  end
  return {0, math.floor(now * 1000)}
end
local place = function(at)
  for _, l in ipairs(limits) do
    redis.call('ZADD', l.wait, text(at), id)
    local ttl = math.ceil(at - now + 2 * grace)
    if redis.call('PTTL', l.wait) < ttl then redis.call('PEXPIRE', l.wait, ttl) end
  end
end
local go = function()
  if mode == 'send' then return grant() end
  place(now)
  return {0, math.floor(now * 1000)}
end
local off = function(at, i) return {math.max(1, math.ceil((at - now) * 1000)), i} end

if mode == 'extra' then return grant() end
if mode == 'late' then
  -- The window that ends now has both times, so it has no more than before;
  -- those to come count the request when it is sent.
  for _, l in ipairs(limits) do
    local was = string.format('%.0f', math.floor(tonumber(ARGV[3]) / 1000 / l.part))
    if redis.call('HINCRBY', l.log, was, -1) <= 0 then redis.call('HDEL', l.log, was) end
  end
  return grant()
end

local late, by = now, 0
for i, l in ipairs(limits) do
  if l.free > late then late, by = l.free, i end
end
if reserved then
  if mine > now then return off(mine, 1) end
  if by == 0 then return go() end
  -- Its turn has come, but somebody was late to his: the oldest go first.
  local at = late + redis.call('ZRANK', limits[by].wait, id) * limits[by].gap
  if at > now + 1000 then place(at) end
  return off(at, by)
end

-- turn is the first free one of a limit, at t or later.
local turn = function(l, t)
  if l.sum + l.waiting < l.max then return t end
  t = math.max(t, l.free, l.last + l.gap)
  local first, from = math.ceil(now / l.gap), math.ceil(t / l.gap)
  local cell = '(' .. text((from - 1) * l.gap)
  local free = function(k)
    local upto = text(k * l.gap)
    return redis.call('ZCOUNT', l.wait, '-inf', upto) <= k - first and redis.call('ZCOUNT', l.wait, cell, upto) <= k - from
  end
  if free(from) then return t end
  local low, step = from, 1
  while not free(low + step) do low, step = low + step, step * 2 end
  local high = low + step
  while high - low > 1 do
    local mid = math.floor((low + high) / 2)
    if free(mid) then high = mid else low = mid end
  end
  return high * l.gap
end
for _, l in ipairs(limits) do
  redis.call('ZREM', l.wait, id)
  l.waiting = redis.call('ZCARD', l.wait)
end
local at, which = now, 0
for _ = 1, 4 do -- until all agree, or nearly
  local before = at
  for i, l in ipairs(limits) do
    local t = turn(l, at)
    if t > at then at, which = t, i end
  end
  if at == before then break end
end
if at <= now then return go() end
place(at)
return off(at, which)
`)

// pace is the call's connectors.Pacer.
func (a *attempt) pace(ctx context.Context, at connectors.Pace) error {
	if at != connectors.PaceExtra {
		if err := a.p.awake.sure(a.taken); err != nil {
			return err
		}
		if err := a.stillOpen(ctx); err != nil {
			return err
		}
	}
	if len(a.meth.RateLimits) == 0 {
		return nil
	}
	if at == connectors.PaceExtra {
		uses := a.meth.Type == definition.TypeScript // it has no request of its own
		flag := "0"
		if uses {
			flag = "1"
		}
		if _, err := a.ask(ctx, "extra", flag); err != nil {
			a.p.log.WarnContext(ctx, "a script's request was not counted", append(a.ids(), "error", err.Error())...)
		} else if uses {
			a.rec.turn = 0
		}
		return nil
	}
	mode := "begin"
	if at == connectors.PaceSend {
		mode = "send"
	}
	sits := false
	defer func() {
		if sits {
			<-a.p.sitting
		}
	}()
	for left := sitOut; ; {
		asked := time.Now()
		v, err := a.ask(ctx, mode, "")
		if err != nil {
			return err
		}
		if v.wait == 0 {
			if a.rec.turn = 0; mode == "begin" {
				a.rec.turn = time.Now().UnixMilli()
				return nil
			}
			return a.sendLate(ctx, v, asked)
		}
		a.rec.turn = time.Now().Add(v.wait).UnixMilli()
		if v.wait > left || !sits && !a.sit() {
			return &connectors.PaceError{Limit: v.limit, At: time.Now().Add(v.wait)}
		}
		sits, left = true, left-v.wait
		if err := pause(ctx, v.wait); err != nil {
			return err
		}
	}
}

// sit takes one of the quarter of the worker's slots in which a short wait may
// be sat out.
func (a *attempt) sit() bool {
	select {
	case a.p.sitting <- struct{}{}:
		return true
	default:
		return false
	}
}

// sendLate has a grant count as of now whose answer was long on its way: the
// worker, or Redis, was held up, and the request would come after its window.
func (a *attempt) sendLate(ctx context.Context, v verdict, asked time.Time) error {
	shortest := slices.MinFunc(a.meth.RateLimits, func(x, y definition.RateLimit) int { return cmp.Compare(x.Per, y.Per) })
	for range sendLates {
		if time.Since(asked) <= jitter(shortest.Per)/4 {
			return nil
		}
		asked = time.Now()
		moved, err := a.ask(ctx, "late", strconv.FormatInt(v.granted, 10))
		if err != nil {
			return err
		}
		v = moved
	}
	return nil
}

// verdict is what the limits say of a call.
type verdict struct {
	wait    time.Duration // 0: granted
	limit   definition.RateLimit
	granted int64 // µs, by Redis's clock
}

// ask runs the script.
func (a *attempt) ask(ctx context.Context, mode, arg string) (verdict, error) {
	keys := make([]string, 0, 2*len(a.meth.RateLimits))
	args := append(make([]any, 0, 4+4*len(a.meth.RateLimits)), mode, a.id, arg, placeGrace.Milliseconds())
	for _, l := range a.meth.RateLimits {
		log, waiting := a.limitKeys(l)
		keys = append(keys, log, waiting)
		args = append(args, window(l)...)
	}
	out, err := limitScript.Run(ctx, a.p.rdb, keys, args...).Int64Slice()
	switch {
	case err != nil && ctx.Err() != nil:
		return verdict{}, ctx.Err()
	case err != nil:
		return verdict{}, err
	case len(out) == 2 && out[0] == 0:
		return verdict{granted: out[1]}, nil
	case len(out) == 2 && out[1] >= 1 && int(out[1]) <= len(a.meth.RateLimits):
		return verdict{wait: time.Duration(out[0]) * time.Microsecond, limit: a.meth.RateLimits[out[1]-1]}, nil
	}
	return verdict{}, errors.New("redis answered what is no answer of the limits' script")
}

// window is a limit as the script counts it: requests, length of a part (ms),
// parts of a window, distance of turns (ms).
func window(l definition.RateLimit) []any {
	per := float64(l.Per+jitter(l.Per)) / float64(time.Millisecond)
	part := max(per/windowParts, 1)
	parts := math.Ceil(per / part)
	gap := (parts + 1) * part / float64(l.Requests) * (1 + turnMargin)
	number := func(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }
	return []any{l.Requests, number(part), number(parts), number(gap)}
}

// jitter is by how much a window is longer than the API's: the time between a
// grant and the request's arrival differs, and what comes late counts with
// what comes after it. A second is 3 % longer, a minute 1 %.
func jitter(per time.Duration) time.Duration {
	return max(min(per*3/100, 30*time.Millisecond), min(per/100, 2*time.Second))
}

// limitKeys of one connector share a hash tag, so that one script may ask
// several on a Redis Cluster. They do not name the number of requests: where
// that is changed, what was granted before counts.
func (a *attempt) limitKeys(l definition.RateLimit) (log, waiting string) {
	base := fmt.Sprintf("stepworker:rate:{%s}:%s:%s", a.def.Name, l.Per, l.Method)
	if l.Scope == definition.ScopeCredential {
		base += ":c:" + a.cred.ID
	}
	return base + ":log", base + ":wait"
}

// awaitTurn defers an execution to its turn. This process wakes it then: the
// clock of asynq has whole seconds.
func (a *attempt) awaitTurn(ctx context.Context, ce *connectors.CallError) error {
	a.put = true
	a.p.metrics.deferrals.WithLabelValues(a.connector(), reasonRate).Inc()
	a.p.observe(Moment{What: "deferred", Text: ce.Message}, a)
	timer := ce.TurnAt.Add(turnGrace)
	err := a.putBack(ctx, whyDeferred, ce.Message, time.Until(timer))
	var w *waitError
	if errors.As(err, &w) && w.why == whyDeferred {
		a.p.waker.add(alarm{at: ce.TurnAt, timer: timer, queue: a.rec.queue, id: a.id})
	}
	return err
}

// giveBack gives a place back that this attempt did not use and does not wait
// for. Should that fail it lapses, see placeGrace.
func (a *attempt) giveBack(ctx context.Context) {
	if a.put || a.rec.turn == 0 || a.cred == nil {
		return
	}
	if a.meth == nil { // it ended before it was looked up: past its deadline
		a.def, _ = a.p.cfg.Catalog.Get(a.cred.Connector)
		if a.def == nil {
			return
		}
		if a.meth, _ = a.def.Method(a.step.Method); a.meth == nil {
			return
		}
	}
	pipe := a.p.rdb.Pipeline()
	for _, l := range a.meth.RateLimits {
		_, waiting := a.limitKeys(l)
		pipe.ZRem(ctx, waiting, a.id)
	}
	if _, err := pipe.Exec(ctx); err == nil {
		a.rec.turn = 0
	}
}
