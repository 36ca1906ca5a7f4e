package jobs

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/killpoint"
)

// A credential's line is where its calls wait that max_concurrent or a 429
// holds back: those inside are in their call, those behind come one after
// another, the oldest first, each called up by the worker whose call has ended.
//
// A connector without max_concurrent has a line only from a 429 until nobody
// waits any more; whether there is one is read as an attempt begins, in the
// round trip that reads its credential.
//
//	stepworker:line:{CREDENTIAL}         hash: until (ms) nothing is sent; row:
//	                                     429 in a row; ramp: how many calls at
//	                                     once since; epoch: of the last 429 that
//	                                     counted; said: by the API; max
//	stepworker:line:{CREDENTIAL}:in      zset: attempt's token → its lease (ms)
//	stepworker:line:{CREDENTIAL}:wait    zset: id|queue → since (ms)
//	stepworker:line:{CREDENTIAL}:called  zset: of those, called up → when (ms)
func lineKey(credential string) string { return credentials.LineKey(credential) }

func lineKeys(credential string) []string {
	k := lineKey(credential)
	return []string{k, k + ":in", k + ":wait", k + ":called", credentials.RecordKey(credential)}
}

const (
	// linesKey is the set of credentials that have a line, for the sweeper.
	linesKey = "stepworker:lines"

	// placeLease is how long a place outlives its worker, placeRenew how often
	// a living one renews it.
	placeLease = 30 * time.Second
	placeRenew = 10 * time.Second
	// calledFor is how long a place is kept free for one that was called up:
	// it may stand in a long queue, or be gone.
	calledFor = time.Second
	// lineTimer is when one that waits looks by itself, lineSpread how much
	// later the one behind it does: a dead man's switch and no flood.
	lineTimer  = time.Minute
	lineSpread = 50 * time.Millisecond
	lineLast   = time.Hour
	// lineLook is how old an attempt's knowledge of its line may be when it
	// sends: one of many pages, or of a slow script, looks again.
	lineLook = 250 * time.Millisecond
	// backOfLine is the 429 in a row with which an execution goes to the back:
	// one method's own quota must not hold up the others for ever.
	backOfLine = 2
)

// What becomes of an attempt's place, see lineScript.
const (
	outNone    = "none"    // the call ended, nothing is known of the API
	outOK      = "ok"      // the API answered, and not with a 429
	outLimited = "limited" // it asked to wait
	outDropped = "dropped" // it waits no more: parked, ended, gone
)

// lineScript moves one execution in or out of its credential's line, and calls
// up who is next, by Redis's clock.
//
// After a 429 nothing goes until the pause is over. Then one goes alone; with
// each round that the API answers, one more at once: a crowd begins at a gentle
// pace, and a second 429 stops it after a few requests. When nobody waits any
// more the line is as before. Only a call that went out after the last 429
// counts for or against it: those of before tell nothing new.
//
// A place that is free is kept for a second for who is called up to it; then
// whoever comes may have it. Who does not come in a quarter of a minute is
// passed over, and joins anew should it come after all.
//
// Of a credential that was deleted nobody is held back, and nobody gets in: all
// are called up, to find that out.
//
//	KEYS  line, in, wait, called, credential
//	ARGV  mode: enter, join, leave or look; attempt's token; id|queue; its place
//	      (ms); max_concurrent (0: any, -1: as last noted); lease (ms); outcome;
//	      epoch that the attempt knows; pause (ms) that the API asks for; what
//	      it said; growth (ms) of the pause with the first 429, the second, ...
//	returns {1 if inside, 2 if paused, 3 held back after a pause, 4 by
//	max_concurrent; left of the pause (ms); how many are before it, of look how
//	many wait; the number of places, 0: any; epoch; what the API said; then
//	id|queue of each that was called up}
var lineScript = redis.NewScript(`
local line, inside, wait, called = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local mode, token, me, place, max, lease = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local clock = redis.call('TIME')
local micros = clock[1] * 1000000 + clock[2]
local now = math.floor(micros / 1000)
local h = redis.call('HMGET', line, 'until', 'row', 'ramp', 'epoch', 'said', 'max')
local till, row, ramp, epoch, said = tonumber(h[1] or 0), tonumber(h[2] or 0), tonumber(h[3] or 0), h[4] or '', h[5] or ''
if max < 0 then max = tonumber(h[6] or 0) end
local gone = redis.call('HEXISTS', KEYS[5], 'deleted') == 1
if gone then till, ramp, epoch, max = 0, 0, '', 0 end
redis.call('ZREMRANGEBYSCORE', inside, '-inf', now)

local atOnce = function() return math.floor(ramp + 0.000001) end
local places = function()
  local n = math.huge
  if max > 0 then n = max end
  if ramp > 0 then n = math.min(n, atOnce()) end
  return n
end
local keep = function()
  local ttl = math.max(till - now, 0) + 86400000
  for i = 1, 4 do redis.call('PEXPIRE', KEYS[i], ttl) end
end
local join = function()
  redis.call('ZADD', wait, place, me)
  redis.call('ZREM', called, me)
  redis.call('HSET', line, 'max', max)
end
local recent = function() return redis.call('ZCOUNT', called, '(' .. (now - ` + fmt.Sprint(calledFor.Milliseconds()) + `), '+inf') end

local up = {}
local call = function()
  for _, m in ipairs(redis.call('ZRANGEBYSCORE', called, '-inf', now - 15000)) do
    redis.call('ZREM', called, m)
    redis.call('ZREM', wait, m)
  end
  if till > now or redis.call('ZCARD', wait) == 0 then return end
  local out, n = redis.call('ZCARD', called), places()
  local room = math.min(n - redis.call('ZCARD', inside) - recent(), 2 * n + 8 - out, 100)
  if room <= 0 then return end
  for _, m in ipairs(redis.call('ZRANGE', wait, 0, out + room - 1)) do
    if #up < room and not redis.call('ZSCORE', called, m) then
      redis.call('ZADD', called, now, m)
      up[#up + 1] = m
    end
  end
  if #up > 0 then redis.call('PEXPIRE', called, 86400000) end
end
local answer = function(state, count)
  local n = places()
  if n == math.huge then n = 0 end
  local r = {state, math.max(till - now, 0), count, n, epoch, said}
  for _, m in ipairs(up) do r[#r + 1] = m end
  return r
end
local held = function()
  if till > now then return 2 end
  if ramp > 0 and (max == 0 or atOnce() < max) then return 3 end
  return 4
end
local before = function() return redis.call('ZRANK', wait, me) or 0 end

if mode == 'enter' then
  local free = places() - redis.call('ZCARD', inside)
  if not redis.call('ZSCORE', called, me) then free = free - recent() end
  if till <= now and free > 0 and not gone then
    redis.call('ZADD', inside, now + lease, token)
    redis.call('ZREM', wait, me)
    redis.call('ZREM', called, me)
    keep()
    call()
    return answer(1, 0)
  end
end
if mode == 'enter' or mode == 'join' then
  redis.call('ZREM', inside, token)
  join()
  keep()
  local state, count = held(), before()
  call()
  return answer(state, count)
end
if mode == 'look' then
  call()
  return answer(held(), redis.call('ZCARD', wait))
end

-- leave
if token ~= '' then redis.call('ZREM', inside, token) end
local outcome, knew, count = ARGV[7], ARGV[8], 0
if outcome == 'dropped' then
  redis.call('ZREM', wait, me)
  redis.call('ZREM', called, me)
elseif outcome == 'ok' and epoch ~= '' and knew == epoch then
  if redis.call('ZCARD', wait) == 0 then
    redis.call('DEL', line)
    till, row, ramp, epoch = 0, 0, 0, ''
  else
    row, ramp = 0, ramp + 1 / math.max(atOnce(), 1)
    redis.call('HSET', line, 'row', 0, 'ramp', string.format('%.9f', ramp))
  end
elseif outcome == 'limited' and gone then
  join()
  keep()
elseif outcome == 'limited' then
  local growth = function() return tonumber(ARGV[10 + math.min(math.max(row, 1), #ARGV - 10)]) end
  if epoch == '' or knew == epoch then
    row = row + 1
    till, epoch = now + tonumber(ARGV[9]) + growth(), string.format('%.0f', micros)
  else
    till = math.max(till, now + tonumber(ARGV[9]) + growth())
  end
  ramp, said = 1, ARGV[10]
  redis.call('HSET', line, 'until', string.format('%.0f', till), 'row', row, 'ramp', 1, 'epoch', epoch, 'said', said)
  join()
  keep()
  count = before()
end
call()
return answer(held(), count)
`)

// stand is what the line says of an execution.
type stand struct {
	state  int
	pause  time.Duration // left of it
	before int
	places int // 0: any number
	epoch  string
	said   string // by the API, with its last 429
	called []string
}

// States of a stand.
const (
	standInside = iota + 1
	standPaused
	standAfterPause
	standConcurrency
)

// until is when the pause is over; now where there is none.
func (s *stand) until() time.Time { return time.Now().Add(s.pause) }

// text says why one waits that stands there.
func (s *stand) text(said string) string {
	behind := fmt.Sprintf("%d are before this one", s.before)
	if s.before == 1 {
		behind = "1 is before this one"
	}
	switch s.state {
	case standPaused:
		text := fmt.Sprintf("%s; its turn is at %s", said, s.until().UTC().Format("2006-01-02T15:04:05.000Z"))
		if s.before > 0 {
			text = fmt.Sprintf("%s or later: %s", text, behind)
		}
		return text
	case standAfterPause:
		return fmt.Sprintf("%s, and calls go on slowly; %s", said, behind)
	}
	calls := "calls"
	if s.places == 1 {
		calls = "call"
	}
	return fmt.Sprintf("max_concurrent: %d %s at once for one credential; %s", s.places, calls, behind)
}

// reason is the label of the deferral.
func (s *stand) reason() string {
	if s.state == standConcurrency {
		return reasonConcurrency
	}
	return reason429
}

// enter takes a place for the call. Without one, the stand says why.
func (a *attempt) enter(ctx context.Context) (*stand, error) {
	a.looked = time.Now()
	if a.def.MaxConcurrent == 0 && a.epoch == "" || a.meth.Type == definition.TypeWebhook {
		return nil, nil
	}
	s, err := a.askLine(ctx, "enter", "", nil)
	switch {
	case err != nil:
		return nil, err
	case s.state != standInside:
		return s, nil
	}
	a.inside, a.rec.lined, a.epoch = true, 0, s.epoch
	a.p.line.hold(a.rec.attempt, a.cred.ID)
	killpoint.KillPoint("in-line")
	return nil, nil
}

// exit gives the place of a call back that has ended, and tells the line how.
// After a 429 the execution stands in it; the stand says where.
func (a *attempt) exit(ctx context.Context, err error) *stand {
	ctx = detached(ctx)
	outcome, ce := ended(err)
	if !a.inside && outcome != outLimited {
		return nil
	}
	s, failed := a.askLine(ctx, "leave", outcome, ce)
	a.p.line.release(a.rec.attempt)
	a.inside = false
	switch {
	case failed != nil: // it lapses
		a.p.log.WarnContext(ctx, "a place in a line could not be given back", append(a.ids(), "error", failed.Error())...)
		return nil
	case outcome == outLimited:
		a.p.line.lookAt(a.cred.ID, s.until())
		return s
	}
	return nil
}

// ended is what the end of a call tells of its API.
func ended(err error) (outcome string, ce *connectors.CallError) {
	status := 0
	var auth *connectors.AuthError
	switch {
	case err == nil:
		return outOK, nil
	case errors.As(err, &auth):
		status = auth.Status
	case errors.As(err, &ce):
		if ce.Limited {
			return outLimited, ce
		}
		status = ce.StatusCode
	}
	if status != 0 && status != http.StatusTooManyRequests && status < 500 {
		return outOK, nil
	}
	return outNone, nil
}

// askLine runs the script for this attempt.
func (a *attempt) askLine(ctx context.Context, mode, outcome string, ce *connectors.CallError) (*stand, error) {
	place := a.rec.enqueuedAt
	if place == 0 {
		place = a.at.UnixMilli()
	}
	r := lineRequest{mode: mode, token: a.rec.attempt, waiter: a.waiter(), outcome: outcome, epoch: a.epoch}
	if a.def != nil {
		r.max = a.def.MaxConcurrent
	}
	if ce != nil {
		if a.rec.limited++; a.rec.limited >= backOfLine {
			place = time.Now().UnixMilli()
		}
		r.said = clip(ce.Message, 200)
		if r.pause = ce.RetryAfter; r.pause <= 0 {
			r.pause = rateWait
		}
	} else if a.rec.limited >= backOfLine {
		place = max(place, a.rec.since)
	}
	r.place = place
	return a.p.line.ask(ctx, a.cred.ID, r)
}

// wait defers an execution that stands in its credential's line.
func (a *attempt) wait(ctx context.Context, s *stand, said string) error {
	if said == "" {
		said = s.said
	}
	a.rec.lined, a.stands = 1, true
	delay := min(time.Duration(s.before)*lineSpread, lineLast)
	if s.state == standPaused {
		a.rec.lined = s.until().UnixMilli()
		delay += s.pause + turnGrace
	} else {
		delay += lineTimer
	}
	delay += time.Duration(rand.Int64N(int64(delay-s.pause)/4 + 1))
	// Should that fail the timers see to it.
	_ = a.p.rdb.SAdd(detached(ctx), linesKey, a.cred.ID).Err()
	a.p.metrics.deferrals.WithLabelValues(a.connector(), s.reason()).Inc()
	text := s.text(said)
	a.p.observe(Moment{What: "deferred", Text: text}, a)
	return a.putBack(ctx, whyDeferred, text, delay)
}

// stillOpen looks whether a pause has begun since the attempt last looked: a
// call of many pages, or of a slow script, stops then.
func (a *attempt) stillOpen(ctx context.Context) error {
	if time.Since(a.looked) < lineLook {
		return nil
	}
	a.looked = time.Now()
	epoch, err := a.p.rdb.HGet(ctx, lineKey(a.cred.ID), "epoch").Result()
	switch {
	case errors.Is(err, redis.Nil):
		return nil
	case err != nil:
		return err
	case epoch == a.epoch:
		return nil
	}
	s, err := a.p.line.ask(ctx, a.cred.ID, lineRequest{mode: "look", max: -1})
	if err != nil || s.state != standPaused {
		return err
	}
	a.paused = true
	return &connectors.PaceError{Reason: s.said, At: s.until()}
}

// outOfLine takes an execution out that waits for something else now, or has
// ended.
func (a *attempt) outOfLine(ctx context.Context) {
	if a.stands || a.rec.lined == 0 {
		return
	}
	if a.p.line.drop(ctx, a.step.CredentialID, a.waiter()) == nil { // else it is passed over
		a.rec.lined = 0
	}
}

// lineRequest are the script's arguments.
type lineRequest struct {
	mode, token, waiter string
	place               int64
	max                 int
	outcome, epoch      string
	pause               time.Duration
	said                string
}

func (r lineRequest) args() []any {
	all := []any{r.mode, r.token, r.waiter, r.place, r.max, placeLease.Milliseconds(), r.outcome, r.epoch, r.pause.Milliseconds(), r.said}
	for _, d := range rateGrowth {
		all = append(all, d.Milliseconds())
	}
	return all
}

func readStand(out []any) (*stand, error) {
	number := func(i int) int { n, _ := out[i].(int64); return int(n) }
	text := func(i int) string { s, _ := out[i].(string); return s }
	if len(out) < 6 || number(0) == 0 {
		return nil, errors.New("redis answered what is no answer of the line's script")
	}
	s := &stand{state: number(0), pause: time.Duration(number(1)) * time.Millisecond, before: number(2), places: number(3), epoch: text(4), said: text(5)}
	for i := range out[6:] {
		s.called = append(s.called, text(6+i))
	}
	return s, nil
}

// waiterName is an execution's name in a set. The id comes first: of those that
// were enqueued in the same millisecond the older goes first then, whatever
// level of the queue it is in, as ids that we make are in order.
func waiterName(queue, id string) string { return id + "|" + queue }

// splitWaiter takes it apart: no id holds a bar, a queue's name may.
func splitWaiter(name string) (queue, id string) {
	id, queue, _ = strings.Cut(name, "|")
	return queue, id
}
