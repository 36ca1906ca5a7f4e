package jobs

import (
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// underwayFor is how long an execution counts as under way, from its being
// enqueued or due: what was deleted from the dashboard has no end to tell of.
const underwayFor = 24 * time.Hour

// underwayPage bounds the ids in one command.
const underwayPage = 500

// underwayKey is a sorted set of the executions of one account that are
// enqueued and have not ended, by when they were, or are due (ms). It only
// decides on levels: wherever it is lost or wrong, nothing else is.
func underwayKey(account string) string { return "stepworker:underway:{" + account + "}" }

// account is whose executions are counted together.
func (s *Step) account() string {
	if s.AccountID != "" {
		return "account:" + s.AccountID
	}
	return "credential:" + s.CredentialID
}

// place counts the steps of a batch as under way, in one round trip, and
// chooses the level of each by how many of its account are ahead of it. Where
// Redis does not tell (its user may not have the right), those of the batch are.
func (c *Client) place(ctx context.Context, batch []*accepted, now time.Time) {
	byAccount := map[string][]*accepted{}
	for _, a := range batch {
		if a != nil {
			byAccount[a.step.account()] = append(byAccount[a.step.account()], a)
		}
	}
	pipe := c.rdb.Pipeline()
	ahead := make(map[string]*redis.IntCmd, len(byAccount))
	for account, steps := range byAccount {
		ahead[account] = countUnderway(ctx, pipe, account, steps, now)
	}
	_, _ = pipe.Exec(ctx)
	for account, steps := range byAccount {
		n := ahead[account].Val()
		for i, a := range steps {
			a.queue = levelQueue(a.step.queue(), n+int64(i))
		}
	}
	c.placeKnown(ctx, batch)
}

// countUnderway adds steps of an account to its count; the answer is how many
// there were before.
func countUnderway(ctx context.Context, pipe redis.Pipeliner, account string, steps []*accepted, now time.Time) *redis.IntCmd {
	key, last := underwayKey(account), now
	pipe.ZRemRangeByScore(ctx, key, "-inf", strconv.FormatInt(now.Add(-underwayFor).UnixMilli(), 10))
	ahead := pipe.ZCard(ctx, key)
	for page := range slices.Chunk(steps, underwayPage) {
		members := make([]redis.Z, len(page))
		for i, a := range page {
			due := now
			if at := a.step.ProcessAt; at != nil && at.After(now) {
				due = *at
			}
			if due.After(last) {
				last = due
			}
			members[i] = redis.Z{Score: float64(due.UnixMilli()), Member: a.id}
		}
		pipe.ZAddNX(ctx, key, members...)
	}
	pipe.PExpire(ctx, key, last.Sub(now)+underwayFor)
	return ahead
}

// placeKnown moves those to the first level whose id has a task there: a flow
// enqueued it with asynq alone, whose ids are unique by queue only.
func (c *Client) placeKnown(ctx context.Context, batch []*accepted) {
	pipe := c.rdb.Pipeline()
	tasks := map[*accepted]*redis.IntCmd{}
	for _, a := range batch {
		if a != nil && a.step.ExecutionID != "" && a.queue != a.step.queue() {
			tasks[a] = pipe.Exists(ctx, "asynq:{"+a.step.queue()+"}:t:"+a.id)
		}
	}
	_, _ = pipe.Exec(ctx) // sends nothing where there is nothing to ask
	for a, task := range tasks {
		if task.Val() > 0 {
			a.queue = a.step.queue()
		}
	}
}

// uncount takes duplicates out of the counts that place put them in, and that
// are of executions that have ended, or of another account.
func (c *Client) uncount(ctx context.Context, batch []*accepted) {
	pipe := c.rdb.Pipeline()
	for _, a := range batch {
		if a != nil && a.amiss {
			pipe.ZRem(ctx, underwayKey(a.step.account()), a.id)
		}
	}
	_, _ = pipe.Exec(ctx) // else they lapse
}

// sameAccount says of the task that a duplicate is of that it counts for the
// same account.
func (a *accepted) sameAccount(payload []byte) bool {
	p, err := peek(payload)
	return err == nil && p.account() == a.step.account()
}

// recount counts an execution that had ended and is run again by a person.
func (a *attempt) recount(ctx context.Context) {
	pipe := a.p.rdb.Pipeline()
	countUnderway(ctx, pipe, a.step.account(), []*accepted{{step: &Step{}, id: a.id}}, a.at)
	_, _ = pipe.Exec(ctx) // else its account has one less
}

// end runs finishScript, and counts the execution no more, in one round trip.
// Where another attempt has begun it is counted out early, which harms nobody.
func (p *Pool) end(ctx context.Context, rec *record, id string, keys []string, args ...any) (int, error) {
	pipe := p.rdb.Pipeline()
	ended := finishScript.EvalSha(ctx, pipe, keys, args...)
	if rec.account != "" {
		pipe.ZRem(ctx, underwayKey(rec.account), id)
	}
	_, _ = pipe.Exec(ctx) // each command's own error is read
	if n, err := ended.Int(); !redis.HasErrorPrefix(err, "NOSCRIPT") {
		return n, err
	}
	return finishScript.Run(ctx, p.rdb, keys, args...).Int()
}
