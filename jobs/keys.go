package jobs

import (
	"context"

	"time"

	"github.com/redis/go-redis/v9"
)

// Keys of one execution share a hash tag, so that scripts may touch both on a
// Redis Cluster.
//
//	stepworker:x:{ID}   hash: q queue, at enqueued (ms), once it has ended its
//	                    end status and by the token of the attempt that ended
//	                    it; and what outlives an attempt, see record
//	stepworker:r:{ID}   string: the result's JSON, for the retention
//
// and stepworker:pages:{ID}, see pagesKey.
func execKey(id string) string   { return "stepworker:x:{" + id + "}" }
func resultKey(id string) string { return "stepworker:r:{" + id + "}" }

// claimGrace is how long a claim without a task may belong to somebody who is
// just enqueueing; after that he is taken for dead.
const claimGrace = 10 * time.Second

// claimScript reserves an execution id in the whole Redis for one owner, who
// alone may enqueue. Ages are by Redis's clock: claimers run on many machines.
//
//	KEYS  execution hash
//	ARGV  queue, now (ms), owner, the owner whose abandoned claim is replaced
//	      ("" for one without an owner), or "-" for none
//	returns {1, queue} if it is the owner's now, also by an earlier call whose
//	answer was lost; {0, queue, owner, age (ms)} if it is another's;
//	{2, queue} if it has ended and is kept
//
// A claim that is replaced keeps its queue: asynq's ids are unique by queue
// only, and its first owner may yet wake up and enqueue there.
var claimScript = redis.NewScript(`
local h = redis.call('HMGET', KEYS[1], 'q', 'end', 'own', 'claimed')
local q, own = h[1], h[3] or ''
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
if q then
  if h[2] then return {2, q} end
  if own == ARGV[3] then return {1, q} end
  if own ~= ARGV[4] then return {0, q, own, now - (h[4] or 0)} end
  redis.call('DEL', KEYS[1])
else
  q = ARGV[1]
end
redis.call('HSET', KEYS[1], 'q', q, 'at', ARGV[2], 'own', ARGV[3], 'claimed', now)
return {1, q}
`)

// finishScript ends an execution: its result is kept, its budgets are gone; asynq's
// count stays, which tells a person's rerun from a dead worker's, see beginScript,
// and so does its trace.
//
//	KEYS  execution hash, result, pages
//	ARGV  queue, enqueued at (ms), status, result, retention (ms), attempt's token ('': whoever)
//	returns 1, or 0 if another attempt has begun
var finishScript = redis.NewScript(`
if ARGV[6] ~= '' then
  local h = redis.call('HMGET', KEYS[1], 'run', 'by')
  if h[2] == ARGV[6] then return 1 end -- our own, whose answer was lost
  if h[1] ~= ARGV[6] then return 0 end
end
local kept = redis.call('HMGET', KEYS[1], 'cnt', 'tp')
redis.call('DEL', KEYS[1], KEYS[3])
redis.call('HSET', KEYS[1], 'q', ARGV[1], 'at', ARGV[2], 'end', ARGV[3], 'by', ARGV[6])
if kept[1] then redis.call('HSET', KEYS[1], 'cnt', kept[1]) end
if kept[2] then redis.call('HSET', KEYS[1], 'tp', kept[2]) end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[5])
return 1
`)

// runEach runs a script on each of some keys, but for those that are empty, in
// one round trip, or two where a server has not seen the script yet. Each
// command's own error is the caller's to read.
func runEach(ctx context.Context, rdb redis.UniversalClient, script *redis.Script, keys []string, args func(int) []any) []*redis.Cmd {
	answers := make([]*redis.Cmd, len(keys))
	run := script.EvalSha
	for range 2 {
		pipe := rdb.Pipeline()
		for i, key := range keys {
			if key != "" && (answers[i] == nil || redis.HasErrorPrefix(answers[i].Err(), "NOSCRIPT")) {
				answers[i] = run(ctx, pipe, []string{key}, args(i)...)
			}
		}
		_, _ = pipe.Exec(ctx) // without a command nothing is sent
		run = script.Eval
	}
	return answers
}
