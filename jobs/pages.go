package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/killpoint"
)

// pagesKept is how long the pages of a call that nobody goes on with are kept.
const pagesKept = 30 * 24 * time.Hour

// Of a paged call's pages each is a field of one hash, and so is the bookmark
// behind them; both sealed and compressed.
//
//	stepworker:pages:{ID}   hash: mark, 1, 2, …
func pagesKey(id string) string { return "stepworker:pages:{" + id + "}" }

const markField = "mark"

const (
	pagesAtOnce = 32               // that are read in a round trip
	pagesWait   = 10 * time.Second // for room for them, with a worker in hand
)

// pages is connectors.Pages of one attempt. Keeping a page shows that the call
// is getting on: the execution's budgets begin anew.
type pages struct {
	a    *attempt
	room int64 // that it has of Pool.pagesRoom
}

// keepScript adds a page.
//
//	KEYS  execution hash, pages
//	ARGV  token, ms to keep, bookmark, number of the page, page, then the
//	      record: field, value, ...
//	returns 1, or 0 if another attempt has begun
var keepScript = redis.NewScript(`
if redis.call('HGET', KEYS[1], 'run') ~= ARGV[1] then return 0 end
if ARGV[4] == '1' then redis.call('DEL', KEYS[2]) end
redis.call('HSET', KEYS[2], 'mark', ARGV[3], ARGV[4], ARGV[5])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
redis.call('HSET', KEYS[1], unpack(ARGV, 6))
return 1
`)

// Load implements connectors.Pages.
func (p *pages) Load(ctx context.Context) (json.RawMessage, error) {
	a := p.a
	if a.rec.pages == 0 {
		return nil, nil
	}
	pipe := a.p.rdb.Pipeline()
	mark, n := pipe.HGet(ctx, pagesKey(a.id), markField), pipe.HLen(ctx, pagesKey(a.id))
	if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		return nil, err
	}
	if n.Val() != int64(a.rec.pages)+1 { // they lapsed, or somebody deleted them: the call begins anew
		a.rec.pages = 0
		return nil, nil
	}
	return p.open(markField, mark.Val())
}

// All implements connectors.Pages. What a worker puts together at once is no
// more than the largest single call may be; who finds no room for long leaves
// its worker to others.
func (p *pages) All(ctx context.Context, n int, size int64) ([]json.RawMessage, error) {
	a := p.a
	waiting, cancel := context.WithTimeout(ctx, pagesWait)
	defer cancel()
	room := min(size, a.p.cfg.Caller.MaxPages())
	if err := a.p.pagesRoom.Acquire(waiting, room); err != nil {
		return nil, &connectors.CallError{Kind: KindRate, Defer: true, RetryAfter: time.Second,
			Message: fmt.Sprintf("this worker puts the pages of other calls together; those of this one are in, %d bytes", size)}
	}
	p.room = room
	all := make([]json.RawMessage, 0, n)
	for len(all) < n {
		var fields []string
		for i := len(all) + 1; i <= n && len(fields) < pagesAtOnce; i++ {
			fields = append(fields, strconv.Itoa(i))
		}
		values, err := a.p.rdb.HMGet(ctx, pagesKey(a.id), fields...).Result()
		if err != nil {
			return nil, err
		}
		for i, f := range fields {
			sealed, ok := values[i].(string)
			if !ok {
				a.rec.pages = 0
				return nil, &connectors.CallError{Kind: KindRate, Defer: true, RetryAfter: time.Millisecond, Message: "its pages were deleted: the call begins anew"}
			}
			page, err := p.open(f, sealed)
			if err != nil {
				return nil, err
			}
			all, values[i] = append(all, page), nil
		}
	}
	return all, nil
}

// free gives back the room that the pages took: at the end of their attempt, or
// once their call has failed.
func (p *pages) free() {
	if p.room > 0 {
		p.a.p.pagesRoom.Release(p.room)
		p.room = 0
	}
}

// Keep implements connectors.Pages.
func (p *pages) Keep(ctx context.Context, bookmark json.RawMessage, n int, page, actionData json.RawMessage) error {
	a := p.a
	ctx = detached(ctx) // what was fetched is kept
	if err := a.worked(ctx); err != nil {
		return err
	}
	a.rec.pages, a.rec.faults, a.rec.limited, a.rec.refusals, a.rec.unhelpful = n, 0, 0, 0, 0
	if err := a.p.keepActionData(a.id, a.rec, actionData); err != nil {
		return err
	}
	mark, err := p.seal(markField, bookmark)
	if err != nil {
		return err
	}
	number := strconv.Itoa(n)
	sealed, err := p.seal(number, page)
	if err != nil {
		return err
	}
	killpoint.KillPoint("before-page-kept")
	kept, err := keepScript.Run(ctx, a.p.rdb, []string{execKey(a.id), pagesKey(a.id)},
		append([]any{a.rec.attempt, pagesKept.Milliseconds(), mark, number, sealed}, a.rec.fields()...)...).Int()
	if err == nil && kept == 0 {
		return errOvertaken
	}
	killpoint.KillPoint("page-kept")
	return err
}

// Leaving implements connectors.Pages.
func (p *pages) Leaving() bool { return p.a.p.draining.Load() }

func (p *pages) open(field, sealed string) (json.RawMessage, error) {
	packed, err := p.a.p.cfg.Store.Open(credentials.PagesPurpose(p.a.id, field), []byte(sealed))
	if err != nil {
		return nil, err
	}
	return decompress(packed)
}

func (p *pages) seal(field string, raw []byte) ([]byte, error) {
	packed, err := compress(int64(len(raw)), raw)
	if err != nil {
		return nil, err
	}
	return p.a.p.cfg.Store.Seal(credentials.PagesPurpose(p.a.id, field), packed)
}

var _ connectors.Pages = (*pages)(nil)
