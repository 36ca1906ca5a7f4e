package jobs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
)

// A step's last successful run date is kept by its account and its
// cycle_step_id; without the latter there is none, and nothing is stored.
//
// The order matters. An execution notes the date that it saw in its own record
// before it calls, so that every later attempt sees the same. A good end moves
// the date first and stores the result then: whoever reads the result and
// starts the next run finds the date moved, and a worker that dies between the
// two leaves an execution that runs once more with the date it saw. Each write
// is made only while the attempt's token stands in the record, so that a worker
// that comes back late does not set the date back.

// lastRunKept is how long a date is kept that no run has looked at: longer than
// any cycle pauses, so that steps which are gone leave nothing for ever.
const lastRunKept = 400 * 24 * time.Hour

// lastRunKey is hashed because a cycle_step_id may be any text.
func lastRunKey(c *credentials.Credential, cycleStep string) string {
	owner := "account\x00" + c.AccountID
	if c.AccountID == "" {
		owner = "credential\x00" + c.ID
	}
	sum := sha256.Sum256([]byte(owner + "\x00" + cycleStep))
	return "stepworker:last_run:{" + hex.EncodeToString(sum[:16]) + "}"
}

// cycleStep is the step's id if it has a last successful run date. A webhook
// fetches nothing, so it has none.
func (a *attempt) cycleStep() string {
	if a.step.Cycle == nil || a.meth.Type == definition.TypeWebhook {
		return ""
	}
	return a.step.Cycle.CycleStepID
}

// seeLastRun finds the date for this execution, zero without one. On the
// step's first run it is now: nobody asked for what came before.
func (a *attempt) seeLastRun(ctx context.Context) (time.Time, error) {
	id := a.cycleStep()
	if id == "" {
		return time.Time{}, nil
	}
	if a.rec.lastRun == "" {
		key := lastRunKey(a.cred, id)
		pipe := a.p.rdb.Pipeline()
		pipe.SetNX(ctx, key, a.at.UnixMilli(), lastRunKept)
		found := pipe.Get(ctx, key)
		pipe.Expire(ctx, key, lastRunKept)
		if _, err := pipe.Exec(ctx); err != nil {
			return time.Time{}, err
		}
		a.rec.lastRun = found.Val()
		if err := a.p.saveRecord(ctx, a.id, a.rec); err != nil {
			return time.Time{}, err
		}
	}
	ms, err := strconv.ParseInt(a.rec.lastRun, 10, 64)
	return time.UnixMilli(ms), err
}

// moveLastRun sets the date for the step's next run: what its script wants, or
// when this attempt began; of a call whose pages came in several the first.
func (a *attempt) moveLastRun(ctx context.Context, ans *connectors.Answer) error {
	id := a.cycleStep()
	if id == "" {
		return nil
	}
	next := ans.NextRun
	if next.IsZero() {
		next = a.at
		if !ans.Began.IsZero() && ans.Began.Before(next) { // its first page came in an earlier one
			next = ans.Began
		}
	}
	owner, err := a.p.rdb.HGet(ctx, execKey(a.id), "run").Result()
	switch {
	case err != nil && !errors.Is(err, redis.Nil):
		return err
	case owner != a.rec.attempt:
		return errOvertaken
	}
	return a.p.rdb.Set(ctx, lastRunKey(a.cred, id), next.UnixMilli(), lastRunKept).Err()
}
