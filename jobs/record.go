package jobs

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/credentials"
)

// Reasons to wait, as they stand in records, statuses and metrics.
const (
	whyParked   = "parked"
	whyHeld     = "held"
	whyDeferred = "deferred"
	whyRetry    = "retry"
	whyWorker   = "worker"
)

// record is what of an execution outlives an attempt. The zero value is that
// of a first attempt: it is written only when an attempt ends without a result.
type record struct {
	queue      string
	enqueuedAt int64 // ms
	end        Status
	why        string
	since      int64 // ms: start of the wait
	parkedAt   int64 // version it parked at; 0: it did not wait for a refresh
	forRefusal bool  // the refresh was asked for because the API refused it
	attempts   int
	refusals   int // by the API, in all
	refreshes  int // waited for that succeeded
	unhelpful  int // of those, made for a refusal of this execution
	faults     int // retries used up
	limited    int // 429 in a row
	waits      int // timer wake-ups of this wait
	retried    int // asynq's count when an attempt last ended alive
	unknown    int64
	lastRun    string // ms: the last successful run date that it saw; "": it has not looked
	actionData []byte // sealed
	newData    bool   // actionData is of this attempt: as it was read it is not written back, it may have been sealed anew meanwhile
	inSet      bool   // it may stand in its credential's waiting set
	pages      int    // of its call that are kept
	turn       int64  // ms: of its place in its method's rate limits; 0: it has none
	lined      int64  // it may stand in its credential's line: ms when the pause is over, 1 without one; 0: not

	account string // whose executions it is counted among; "": it is not
	attempt string // this attempt's token, see beginScript
	number  int    // of this attempt, from 1
	blank   bool   // nothing was known of the execution
	over    bool   // it has failed, and nobody runs it again
	cancel  bool   // it is to be cancelled, see markScript
	begun   bool   // an attempt before this one has
}

func readRecord(m map[string]string) *record {
	n := func(k string) int { v, _ := strconv.Atoi(m[k]); return v }
	n64 := func(k string) int64 { v, _ := strconv.ParseInt(m[k], 10, 64); return v }
	r := &record{
		queue: m["q"], enqueuedAt: n64("at"), end: Status(m["end"]), why: m["why"], since: n64("since"), parkedAt: n64("pv"),
		forRefusal: m["pr"] == "1", attempts: n("att"), refusals: n("ref"), refreshes: n("rfr"), unhelpful: n("ror"),
		faults: n("flt"), limited: n("d4"), waits: n("wts"), retried: n("asq"), unknown: n64("unk"), inSet: m["set"] == "1",
		lastRun: m["lrd"], turn: n64("turn"), lined: n64("lin"), pages: n("pg"),
		cancel: m["cx"] != "", begun: m["run"] != "",
	}
	if ad := m["ad"]; ad != "" {
		r.actionData = []byte(ad)
	}
	return r
}

func (r *record) fields() []any {
	flag := func(b bool) string {
		if b {
			return "1"
		}
		return "0"
	}
	all := []any{"q", r.queue, "at", r.enqueuedAt, "why", r.why, "since", r.since, "pv", r.parkedAt, "pr", flag(r.forRefusal),
		"att", r.attempts, "ref", r.refusals, "rfr", r.refreshes, "ror", r.unhelpful, "flt", r.faults, "d4", r.limited,
		"wts", r.waits, "asq", r.retried, "unk", r.unknown, "set", flag(r.inSet), "lrd", r.lastRun, "turn", r.turn, "lin", r.lined, "pg", r.pages}
	if r.newData {
		all = append(all, "ad", string(r.actionData))
	}
	return all
}

// beginScript begins an attempt: it leaves its token, and what an earlier
// attempt that still runs somewhere (on a worker that was stopped for a while)
// writes from now on is void. It begins nothing for a worker that lost its task
// before it had begun: asynq counts whenever it gives a task to another, and
// one of a higher count has begun. A failed execution that a person runs again
// sheds its end; one that asynq gives to another, because its worker died before
// it had ended the task too, keeps it.
//
//	KEYS  execution hash
//	ARGV  token, asynq's count of retries, who may begin, the root of its trace,
//	      should it have none ('': it gets none)
//	returns the hash as it was, with over if it has failed and keeps its end, and
//	with tp if that was just set; or {'behind'}
var beginScript = redis.NewScript(`
local h, m = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #h, 2 do m[h[i]] = h[i + 1] end
if ARGV[3] == 'marked' and (m['end'] or not m.cx) then return h end
local ahead = tonumber(ARGV[2]) - tonumber(m.cnt or ARGV[2])
if m['end'] == 'failed' and ahead > 0 then
  redis.call('HSET', KEYS[1], 'cnt', ARGV[2])
  h[#h + 1], h[#h + 2] = 'over', '1'
  return h
elseif m['end'] == 'failed' then
  redis.call('HDEL', KEYS[1], 'end')
  redis.call('PERSIST', KEYS[1])
elseif m['end'] then
  return h
elseif ahead < 0 then
  return {'behind'}
end
redis.call('HSET', KEYS[1], 'run', ARGV[1], 'cnt', ARGV[2], 'n', string.format('%d', (m.n or 0) + 1))
if ARGV[4] ~= '' and not m.tp then
  redis.call('HSET', KEYS[1], 'tp', ARGV[4])
  h[#h + 1], h[#h + 2] = 'tp', ARGV[4]
end
return h
`)

// Who may begin an attempt, see beginScript.
const (
	beginAny    = "any"
	beginMarked = "marked" // it is to be cancelled, and has not ended
)

// saveScript writes a record.
//
//	KEYS  execution hash
//	ARGV  token, field, value, ...
//	returns 1, or 0 if another attempt has begun
var saveScript = redis.NewScript(`
if redis.call('HGET', KEYS[1], 'run') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
return 1
`)

// errOvertaken is an attempt that another one has replaced.
var errOvertaken = errors.New("another attempt has begun")

func (p *Pool) saveRecord(ctx context.Context, id string, r *record) error {
	n, err := saveScript.Run(ctx, p.rdb, []string{execKey(id)}, append([]any{r.attempt}, r.fields()...)...).Int()
	if err == nil && n == 0 {
		return errOvertaken
	}
	return err
}

// begin opens an execution's record and its credential in one round trip; count
// is asynq's, of retries.
func (a *attempt) begin(ctx context.Context, count int, who string) (cred *credentials.Credential, opened error, err error) {
	token := rand.Text()
	run := beginScript.EvalSha
	var root root
	if who == beginAny {
		root = a.newRoot(ctx)
	}
	for range 2 {
		var cmd *redis.Cmd
		var epoch *redis.StringCmd
		cred, opened = a.p.cfg.Store.GetWith(ctx, a.step.CredentialID, func(pipe redis.Pipeliner) {
			epoch = pipe.HGet(ctx, lineKey(a.step.CredentialID), "epoch")
			cmd = run(ctx, pipe, []string{execKey(a.id)}, token, count, who, root.text())
		})
		if cmd == nil {
			return nil, nil, opened
		}
		if err = cmd.Err(); err == nil {
			pairs, err := cmd.StringSlice()
			if err != nil {
				return nil, nil, err
			}
			if len(pairs) == 1 {
				return nil, nil, errOvertaken
			}
			m := make(map[string]string, len(pairs)/2)
			for i := 0; i+1 < len(pairs); i += 2 {
				m[pairs[i]] = pairs[i+1]
			}
			a.origin = root.settle(a.origin, m["tp"])
			delete(m, "tp")
			before, _ := strconv.Atoi(m["n"])
			a.rec, a.epoch = readRecord(m), epoch.Val() // without it the line is asked when the API asks to wait
			a.rec.attempt, a.rec.blank, a.rec.over, a.rec.number = token, len(m) == 0, m["over"] != "", before+1
			return cred, opened, nil
		}
		if !redis.HasErrorPrefix(err, "NOSCRIPT") {
			return nil, nil, err
		}
		run = beginScript.Eval // which that server remembers
	}
	return nil, nil, err
}

// wait notes that the execution waits, and since when: a wait goes on through
// wake-ups that found nothing changed.
func (r *record) wait(why string, now time.Time) {
	waiting := r.why == whyParked || r.why == whyHeld
	if continues := waiting && (why == whyParked || why == whyHeld); continues && r.since != 0 {
		r.waits++
	} else {
		r.since, r.waits = now.UnixMilli(), 0
	}
	r.why = why
}

func (p *Pool) actionData(id string, r *record) (json.RawMessage, error) {
	if len(r.actionData) == 0 {
		return nil, nil
	}
	return p.cfg.Store.Open(credentials.ActionDataPurpose(id), r.actionData)
}

func (p *Pool) keepActionData(id string, r *record, data json.RawMessage) error {
	r.newData = true
	if len(data) == 0 || string(data) == "{}" || string(data) == "null" {
		r.actionData = nil
		return nil
	}
	sealed, err := p.cfg.Store.Seal(credentials.ActionDataPurpose(id), data)
	if err != nil {
		return err
	}
	r.actionData = sealed
	return nil
}
