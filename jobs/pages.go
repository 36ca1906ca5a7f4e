package jobs

import (
	"context"
	"encoding/json"
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

// pages is connectors.Pages of one attempt. Keeping a page shows that the call
// is getting on: the execution's budgets begin anew.
type pages struct{ a *attempt }

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
func (p pages) Load(ctx context.Context) (json.RawMessage, []json.RawMessage, error) {
	a := p.a
	if a.rec.pages == 0 {
		return nil, nil, nil
	}
	fields := []string{markField}
	for n := 1; n <= a.rec.pages; n++ {
		fields = append(fields, strconv.Itoa(n))
	}
	values, err := a.p.rdb.HMGet(ctx, pagesKey(a.id), fields...).Result()
	if err != nil {
		return nil, nil, err
	}
	all := make([]json.RawMessage, len(fields))
	for i, f := range fields {
		sealed, ok := values[i].(string)
		if !ok { // they lapsed, or somebody deleted them: the call begins anew
			a.rec.pages = 0
			return nil, nil, nil
		}
		packed, err := a.p.cfg.Store.Open(credentials.PagesPurpose(a.id, f), []byte(sealed))
		if err != nil {
			return nil, nil, err
		}
		if all[i], err = decompress(packed); err != nil {
			return nil, nil, err
		}
	}
	return all[0], all[1:], nil
}

// Keep implements connectors.Pages.
func (p pages) Keep(ctx context.Context, bookmark json.RawMessage, n int, page, actionData json.RawMessage) error {
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
func (p pages) Leaving() bool { return p.a.p.draining.Load() }

func (p pages) seal(field string, raw []byte) ([]byte, error) {
	packed, err := compress(int64(len(raw)), raw)
	if err != nil {
		return nil, err
	}
	return p.a.p.cfg.Store.Seal(credentials.PagesPurpose(p.a.id, field), packed)
}

var _ connectors.Pages = pages{}
