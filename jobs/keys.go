package jobs

import "github.com/redis/go-redis/v9"

// Keys of one execution share a hash tag, so that scripts may touch both on a
// Redis Cluster.
//
//	stepworker:x:{ID}   hash: q queue, at enqueued (ms), end status once ended,
//	                    and what outlives an attempt, see record
//	stepworker:r:{ID}   string: the result's JSON, for the retention
func execKey(id string) string   { return "stepworker:x:{" + id + "}" }
func resultKey(id string) string { return "stepworker:r:{" + id + "}" }

// claimScript reserves an execution id in the whole Redis.
//
//	KEYS  execution hash
//	ARGV  queue, now (ms)
//	returns {1, queue} if it is new, {0, queue} if it is known,
//	{2, queue} if it has ended and is kept
var claimScript = redis.NewScript(`
local q = redis.call('HGET', KEYS[1], 'q')
if q then
  if redis.call('HEXISTS', KEYS[1], 'end') == 1 then return {2, q} end
  return {0, q}
end
redis.call('HSET', KEYS[1], 'q', ARGV[1], 'at', ARGV[2])
return {1, ARGV[1]}
`)

// finishScript ends an execution: its result is kept, its budgets are gone.
//
//	KEYS  execution hash, result
//	ARGV  queue, enqueued at (ms), status, result, retention (ms), attempt's token ('': whoever)
//	returns 1, or 0 if another attempt has begun
var finishScript = redis.NewScript(`
if ARGV[6] ~= '' and redis.call('HGET', KEYS[1], 'run') ~= ARGV[6] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'q', ARGV[1], 'at', ARGV[2], 'end', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[5])
return 1
`)
