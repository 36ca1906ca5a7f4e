package jobs

import (
	"context"
	"encoding/json"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// Reasons to wait, as they stand in records, statuses and metrics.
const (
	whyParked   = "parked"
	whyHeld     = "held"
	whyDeferred = "deferred"
	whyRetry    = "retry"
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
	actionData []byte // sealed
}

func readRecord(m map[string]string) *record {
	n := func(k string) int { v, _ := strconv.Atoi(m[k]); return v }
	n64 := func(k string) int64 { v, _ := strconv.ParseInt(m[k], 10, 64); return v }
	r := &record{
		queue: m["q"], enqueuedAt: n64("at"), end: Status(m["end"]), why: m["why"], since: n64("since"), parkedAt: n64("pv"),
		forRefusal: m["pr"] == "1", attempts: n("att"), refusals: n("ref"), refreshes: n("rfr"), unhelpful: n("ror"),
		faults: n("flt"), limited: n("d4"), waits: n("wts"), retried: n("asq"), unknown: n64("unk"),
	}
	if ad := m["ad"]; ad != "" {
		r.actionData = []byte(ad)
	}
	if r.end == Failed { // run again by a person: fresh budgets
		return &record{queue: r.queue, enqueuedAt: r.enqueuedAt}
	}
	return r
}

func (r *record) fields() []any {
	refusal := "0"
	if r.forRefusal {
		refusal = "1"
	}
	return []any{"q", r.queue, "at", r.enqueuedAt, "why", r.why, "since", r.since, "pv", r.parkedAt, "pr", refusal,
		"att", r.attempts, "ref", r.refusals, "rfr", r.refreshes, "ror", r.unhelpful, "flt", r.faults, "d4", r.limited,
		"wts", r.waits, "asq", r.retried, "unk", r.unknown, "ad", string(r.actionData)}
}

// saveScript writes a record. A failed execution that is run again sheds its end.
//
//	KEYS  execution hash
//	ARGV  field, value, ...
var saveScript = redis.NewScript(`
redis.call('HDEL', KEYS[1], 'end')
redis.call('PERSIST', KEYS[1])
redis.call('HSET', KEYS[1], unpack(ARGV))
return 1
`)

func (p *Pool) saveRecord(ctx context.Context, id string, r *record) error {
	return saveScript.Run(ctx, p.rdb, []string{execKey(id)}, r.fields()...).Err()
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
	return p.cfg.Store.Open("action_data:"+id, r.actionData)
}

func (p *Pool) keepActionData(id string, r *record, data json.RawMessage) error {
	if len(data) == 0 || string(data) == "{}" || string(data) == "null" {
		r.actionData = nil
		return nil
	}
	sealed, err := p.cfg.Store.Seal("action_data:"+id, data)
	if err != nil {
		return err
	}
	r.actionData = sealed
	return nil
}
