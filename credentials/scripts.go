package credentials

import "github.com/redis/go-redis/v9"

// All keys of one credential share the hash tag {ID}.
//
//	stepworker:cred:{ID}          hash, see below
//	stepworker:cred:{ID}:version  its highest version ever
//	stepworker:cred:{ID}:waiting  zset of waiting executions, score: since (ms), see mark
//	stepworker:cred:{ID}:askers   list of trace contexts, only where attempts are traced
//	stepworker:line:{ID}          hash of package jobs: until (ms) the API has paused
//	                              its calls, row such pauses in a row, said by the API
//	stepworker:credentials        set of ids
//	stepworker:waiting            set of ids that may have waiting executions
//
// Those of notices are in notices.go.
//
// Fields of the hash: v version; connector, account_id, external_account_id;
// state, since; sealed; expiry, issued of the token, s_expiry, s_issued of the
// session (ms); refused (the version known refused), refused_kind, refused_method; made_for (the
// method whose refusal asked for this version); lr last
// refresh (JSON), saver and failer the owners of the last save and failure; err masked last error; fails, next (ms);
// heard:KIND passwords in a row that were neither taken nor refused;
// lease, lease_until; intent_v, intent_until, intent_n; no_key (the version
// that no key opens); unknown what it names that a worker does not have; denied how a method was
// refused that no refresh helps, after its name and a line break; tested (the version that the test method has answered);
// settings that were refused; client whose refusal holds it, see client.go; answer that had no
// token, sealed; ep what was told of the episode under way, see luaTell; deleted; u:METHOD counter of refreshes that did not help
// (JSON).
func credKey(id string) string    { return "stepworker:cred:{" + id + "}" }
func versionKey(id string) string { return "stepworker:cred:{" + id + "}:version" }
func waitingKey(id string) string { return "stepworker:cred:{" + id + "}:waiting" }
func askersKey(id string) string  { return "stepworker:cred:{" + id + "}:askers" }

// LineKey is the hash that package jobs keeps of a credential's calls.
func LineKey(id string) string { return "stepworker:line:{" + id + "}" }

// RecordKey is a credential's hash, for a script of package jobs that has to see
// whether it is deleted.
func RecordKey(id string) string { return credKey(id) }

const (
	indexKey        = "stepworker:credentials"
	waitingIndexKey = "stepworker:waiting"
	checkKey        = "stepworker:check"
	checkPurpose    = "check"
	holdKey         = "stepworker:hold"
)

const luaNow = `
local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
`

// luaEndPause gives a script the function endPause: a pause that the API asked
// for is over, as if by its time, and what went before it counts no more.
const luaEndPause = `
local function endPause(line)
  if redis.call('HEXISTS', line, 'until') == 1 then redis.call('HSET', line, 'until', '0', 'row', '0') end
end
`

// endPauseScript ends a pause.
//
//	KEYS  credential, its line
//	returns 1, or 0 if there is no such credential
var endPauseScript = redis.NewScript(luaEndPause + `
local h = redis.call('HMGET', KEYS[1], 'v', 'deleted')
if not h[1] or h[2] then return 0 end
endPause(KEYS[2])
return 1
`)

// putScript stores a whole credential. What the API said to the one before tells
// nothing of this one.
//
//	KEYS  credential, its version, its line
//	ARGV  version read, connector, account, external account, sealed, expiry
//	      of the token, of the session, now (ms), refused kind ('' : it may be used),
//	      named authentication ('' : the default one)
//	returns 1, or 0 if the version moved
var putScript = redis.NewScript(luaEndPause + `
local v = redis.call('HGET', KEYS[1], 'v') or '0'
if v ~= ARGV[1] then return 0 end
-- Set back, its versions were given out before: it goes on above them.
local newest = redis.call('GET', KEYS[2])
if newest and tonumber(newest) > tonumber(v) then v = newest end
local n = string.format('%d', tonumber(v) + 1)
if n ~= string.format('%d', tonumber(ARGV[1]) + 1) then
  redis.call('HSET', KEYS[1], 'v', v)
  return 0
end
local ep = redis.call('HEXISTS', KEYS[1], 'ep')
redis.call('DEL', KEYS[1])
if ep == 1 then redis.call('HSET', KEYS[1], 'ep', 'put') end
redis.call('HSET', KEYS[1], 'v', n, 'connector', ARGV[2], 'account_id', ARGV[3], 'external_account_id', ARGV[4], 'sealed', ARGV[5],
  'expiry', ARGV[6], 'issued', ARGV[8], 's_expiry', ARGV[7], 's_issued', ARGV[8], 'state', 'active', 'since', ARGV[8])
if ARGV[9] ~= '' then redis.call('HSET', KEYS[1], 'refused', n, 'refused_kind', ARGV[9]) end
if ARGV[10] ~= '' then redis.call('HSET', KEYS[1], 'authentication', ARGV[10]) end
redis.call('SET', KEYS[2], n)
endPause(KEYS[3])
return 1
`)

// testedScript notes that the test method has answered with a version that was
// refused: it may be used, and is not tested again.
//
//	KEYS  credential
//	ARGV  owner, version
//	returns {'saved', v}, {'newer', v}, {'gone'} or {'lost'}
var testedScript = redis.NewScript(luaTell + `
local h = redis.call('HMGET', KEYS[1], 'v', 'deleted', 'lease')
if not h[1] or h[2] then return {'gone'} end
if h[1] ~= ARGV[2] then return {'newer', h[1]} end
if h[3] ~= ARGV[1] then return {'lost'} end
redis.call('HSET', KEYS[1], 'tested', h[1])
redis.call('HDEL', KEYS[1], 'refused', 'refused_kind', 'err', 'fails', 'next', 'lease', 'lease_until', 'intent_v', 'intent_until', 'intent_n')
tell('recovered')
return {'saved', h[1]}
`)

// noteScript keeps a verdict without consequences.
//
//	KEYS  credential
//	ARGV  version, err, last refresh
var noteScript = redis.NewScript(`
if redis.call('HGET', KEYS[1], 'v') ~= ARGV[1] or redis.call('HEXISTS', KEYS[1], 'deleted') == 1 then return 0 end
redis.call('HSET', KEYS[1], 'err', ARGV[2], 'lr', ARGV[3])
return 1
`)

// unopenedScript notes that no key opens an active credential.
//
//	KEYS  credential
//	ARGV  version, text, now (ms)
var unopenedScript = redis.NewScript(luaTell + `
local h = redis.call('HMGET', KEYS[1], 'v', 'deleted', 'state')
if h[1] ~= ARGV[1] or h[2] or (h[3] and h[3] ~= 'active') then return 0 end
redis.call('HSET', KEYS[1], 'state', 'misconfigured', 'since', ARGV[3], 'err', ARGV[2], 'no_key', ARGV[1])
tell('misconfigured')
return 1
`)

// openedScript takes that back.
//
//	KEYS  credential
//	ARGV  version, now (ms)
var openedScript = redis.NewScript(luaTell + `
local h = redis.call('HMGET', KEYS[1], 'v', 'no_key')
if h[1] ~= ARGV[1] or h[2] ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'state', 'active', 'since', ARGV[2])
redis.call('HDEL', KEYS[1], 'err', 'no_key')
tell('recovered')
return 1
`)

// remarkScript notes something about a credential that its state does not show.
//
//	KEYS  credential
//	ARGV  version, field, text ('' : it is so no more)
var remarkScript = redis.NewScript(`
local h = redis.call('HMGET', KEYS[1], 'v', 'deleted')
if h[1] ~= ARGV[1] or h[2] then return 0 end
if ARGV[3] == '' then return redis.call('HDEL', KEYS[1], ARGV[2]) end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
return 1
`)

// deleteScript leaves the version, so that it never falls.
//
//	KEYS  credential
//	returns 1, or 0 if there is none
var deleteScript = redis.NewScript(`
local v = redis.call('HGET', KEYS[1], 'v')
if not v or redis.call('HEXISTS', KEYS[1], 'deleted') == 1 then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'v', v, 'deleted', '1')
return 1
`)

// parkScript joins the waiting set and reads the version in one go: a refresh
// raises the version and then reads the set, so one of the two sees the other.
//
//	KEYS  credential, waiting set, askers
//	ARGV  execution, version used, refused (0/1), kind, mark, method, trace context ('': none)
//	returns {'gone'}, {'newer', v} or {'parked', v, state, err, next, lease_until, client}
var parkScript = redis.NewScript(`
local h = redis.call('HMGET', KEYS[1], 'v', 'deleted', 'state', 'err', 'next', 'lease_until', 'refused', 'client')
if not h[1] or h[2] then return {'gone'} end
if tonumber(h[1]) > tonumber(ARGV[2]) then return {'newer', h[1]} end
if ARGV[3] == '1' and h[7] ~= h[1] then
  redis.call('HSET', KEYS[1], 'refused', h[1], 'refused_kind', ARGV[4], 'refused_method', ARGV[6])
end
redis.call('ZADD', KEYS[2], ARGV[5], ARGV[1])
if ARGV[7] ~= '' then
  redis.call('LREM', KEYS[3], 0, ARGV[7]) -- it is held after it has parked
  redis.call('LPUSH', KEYS[3], ARGV[7])
  redis.call('LTRIM', KEYS[3], 0, 127)
  redis.call('EXPIRE', KEYS[3], 86400)
end
return {'parked', h[1], h[3] or 'active', h[4] or '', h[5] or '0', h[6] or '0', h[8] or ''}
`)

// leaveScript takes an execution out of a waiting set, if it has not parked anew.
//
//	KEYS  waiting set
//	ARGV  execution, mark
var leaveScript = redis.NewScript(`
local m = redis.call('ZSCORE', KEYS[1], ARGV[1])
if m and tonumber(m) == tonumber(ARGV[2]) then redis.call('ZREM', KEYS[1], ARGV[1]) end
return 1
`)

// takeScript takes the lease and writes the intent, before the request.
//
//	KEYS  credential
//	ARGV  owner, version, lease (ms), deadline (ms), force (0/1), name of heard
//	returns {'gone'}, {'newer', v}, {'revoked'|'misconfigured', v}, {'busy', until},
//	        {'later', at}, {'taken', v, unanswered so far, fails, intent until, answer, heard}
var takeScript = redis.NewScript(luaNow + `
local h = redis.call('HMGET', KEYS[1], 'v', 'deleted', 'state', 'lease', 'lease_until', 'next', 'intent_v', 'intent_until', 'intent_n', 'fails', 'answer', ARGV[6])
if not h[1] or h[2] then return {'gone'} end
if tonumber(h[1]) > tonumber(ARGV[2]) then return {'newer', h[1]} end
local force, t = ARGV[5] == '1', now()
if not force and (h[3] == 'revoked' or h[3] == 'misconfigured') then return {h[3], h[1]} end
-- Our own lease, if the answer was lost.
if h[4] == ARGV[1] and h[7] == h[1] then return {'taken', h[1], h[9], h[10] or '0', h[8], h[11] or '', h[12] or '0'} end
if h[4] and tonumber(h[5]) > t then return {'busy', h[5]} end
if not force and h[6] and tonumber(h[6]) > t then return {'later', h[6]} end
local n = 0
if h[7] == h[1] then
  if tonumber(h[8]) > t then return {'later', h[8]} end
  n = tonumber(h[9]) + 1
end
local deadline = string.format('%d', t + ARGV[4])
redis.call('HSET', KEYS[1], 'lease', ARGV[1], 'lease_until', string.format('%d', t + ARGV[3]),
  'intent_v', h[1], 'intent_until', deadline, 'intent_n', string.format('%d', n))
return {'taken', h[1], string.format('%d', n), h[10] or '0', deadline, h[11] or '', h[12] or '0'}
`)

// saveScript stores what the provider gave, as long as nothing newer is
// stored: the token that was sent is spent, so this one counts, whoever holds
// the lease by now. One whose credential a person has replaced or deleted
// meanwhile stores nothing.
//
//	KEYS  credential, its version
//	ARGV  owner, version, sealed, expiry and issued of the token, of the session
//	      ('' keeps them), last refresh, now (ms), state, err, next (ms), refused kind ('' : it may be used),
//	      name of heard, settings
//	returns {'saved', v}, {'newer', v} or {'gone'}
var saveScript = redis.NewScript(luaTell + `
local h = redis.call('HMGET', KEYS[1], 'v', 'deleted', 'state', 'saver')
if not h[1] or h[2] then return {'gone'} end
if h[1] ~= ARGV[2] then
  -- Our own save, whose answer was lost.
  if h[4] == ARGV[1] then return {'saved', h[1]} end
  return {'newer', h[1]}
end
local v = string.format('%d', tonumber(h[1]) + 1)
redis.call('HSET', KEYS[1], 'made_for', redis.call('HGET', KEYS[1], 'refused_method') or '')
redis.call('HDEL', KEYS[1], 'refused_method')
redis.call('HSET', KEYS[1], 'v', v, 'sealed', ARGV[3], 'lr', ARGV[8], 'state', ARGV[10], 'saver', ARGV[1])
redis.call('SET', KEYS[2], v)
if ARGV[5] ~= '' then redis.call('HSET', KEYS[1], 'expiry', ARGV[4], 'issued', ARGV[5]) end
if ARGV[7] ~= '' then redis.call('HSET', KEYS[1], 's_expiry', ARGV[6], 's_issued', ARGV[7]) end
if h[3] ~= ARGV[10] then redis.call('HSET', KEYS[1], 'since', ARGV[9]) end
redis.call('HDEL', KEYS[1], 'refused', 'refused_kind', 'err', 'fails', 'next', 'lease', 'lease_until', 'intent_v', 'intent_until', 'intent_n', 'settings', 'client', 'answer', ARGV[14])
if ARGV[11] ~= '' then redis.call('HSET', KEYS[1], 'err', ARGV[11], 'next', ARGV[12]) end
if ARGV[10] == 'misconfigured' then redis.call('HSET', KEYS[1], 'settings', ARGV[15]) end
if ARGV[13] ~= '' then redis.call('HSET', KEYS[1], 'refused', v, 'refused_kind', ARGV[13]) end
if ARGV[10] ~= 'active' then tell(ARGV[10])
elseif ARGV[11] ~= '' then tell('failing')
elseif ARGV[13] == '' then tell('recovered') end
return {'saved', v}
`)

// failScript remembers a refusal or a failure for the version.
//
//	KEYS  credential
//	ARGV  owner, version, state ('' keeps it), err, next (ms), last refresh, keep intent (0/1), now (ms), settings,
//	      the client that was refused ('': none), sealed answer ('' keeps it), name of heard, counts (0/1),
//	      the client's refusal is news (0/1)
//	returns {'failed', v}, {'newer', v}, {'gone'} or {'lost'}
var failScript = redis.NewScript(luaTell + `
local h = redis.call('HMGET', KEYS[1], 'v', 'deleted', 'lease', 'state', 'failer')
if not h[1] or h[2] then return {'gone'} end
if h[1] ~= ARGV[2] then return {'newer', h[1]} end
if h[3] ~= ARGV[1] then
  if h[5] == ARGV[1] then return {'failed', h[1]} end -- our own, whose answer was lost
  return {'lost'}
end
redis.call('HSET', KEYS[1], 'failer', ARGV[1], 'err', ARGV[4], 'lr', ARGV[6])
if ARGV[11] ~= '' then redis.call('HSET', KEYS[1], 'answer', ARGV[11]) end
if ARGV[10] ~= '' then -- when it is tried again is the client's affair
  redis.call('HSET', KEYS[1], 'client', ARGV[10])
  if h[4] == 'misconfigured' then redis.call('HSET', KEYS[1], 'state', 'active', 'since', ARGV[8]) end
  redis.call('HDEL', KEYS[1], 'next', 'fails')
elseif ARGV[3] ~= '' then
  redis.call('HSET', KEYS[1], 'settings', ARGV[9]) -- these, and not those of a failure, were refused
  if h[4] ~= ARGV[3] then redis.call('HSET', KEYS[1], 'state', ARGV[3], 'since', ARGV[8]) end
  redis.call('HDEL', KEYS[1], 'next', 'fails', 'client', ARGV[12])
else
  redis.call('HSET', KEYS[1], 'next', ARGV[5])
  redis.call('HINCRBY', KEYS[1], 'fails', 1)
  if ARGV[13] == '1' then redis.call('HINCRBY', KEYS[1], ARGV[12], 1) end
end
redis.call('HDEL', KEYS[1], 'lease', 'lease_until')
if ARGV[7] == '0' then redis.call('HDEL', KEYS[1], 'intent_v', 'intent_until', 'intent_n') end
if ARGV[10] == '' then tell(ARGV[3] ~= '' and ARGV[3] or 'failing')
elseif ARGV[14] == '1' then tell('misconfigured') end -- once for all its credentials
return {'failed', h[1]}
`)

// keepScript renews the lease of a request that is under way.
//
//	KEYS  credential
//	ARGV  owner, version, lease (ms)
//	returns 1, or 0 if the credential was replaced or deleted
var keepScript = redis.NewScript(luaNow + `
local h = redis.call('HMGET', KEYS[1], 'v', 'deleted', 'lease')
if h[1] ~= ARGV[2] or h[2] then return 0 end
if h[3] == ARGV[1] then redis.call('HSET', KEYS[1], 'lease_until', string.format('%d', now() + ARGV[3])) end
return 1
`)

// releaseScript gives a lease back that was not used.
//
//	KEYS  credential
//	ARGV  owner
var releaseScript = redis.NewScript(`
if redis.call('HGET', KEYS[1], 'lease') == ARGV[1] then
  redis.call('HDEL', KEYS[1], 'lease', 'lease_until', 'intent_v', 'intent_until', 'intent_n')
end
return 1
`)

// holdScript gives a lease back that was not used, because the client is refused.
//
//	KEYS  credential
//	ARGV  owner, version, client, last refresh ('' keeps it), now (ms)
//	returns 1 if it was not held for that client yet, else 0
var holdScript = redis.NewScript(`
local h = redis.call('HMGET', KEYS[1], 'v', 'lease', 'client', 'state')
if h[1] ~= ARGV[2] or h[2] ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'client', ARGV[3])
-- What it was refused for itself has been put right, perhaps: the client decides.
if h[4] == 'misconfigured' then redis.call('HSET', KEYS[1], 'state', 'active', 'since', ARGV[5]) end
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'lr', ARGV[4]) end
redis.call('HDEL', KEYS[1], 'lease', 'lease_until', 'intent_v', 'intent_until', 'intent_n')
if h[3] == ARGV[3] then return 0 end
return 1
`)

// unhelpedScript counts a refresh that did not help a method's executions:
// each version once, however many executions it was refused to.
//
//	KEYS  credential
//	ARGV  field, version, now (ms), first block (ms), longest block (ms), allowed in a row
//	returns {count, version, until, blocks}
var unhelpedScript = redis.NewScript(`
local c, v, till, b = 0, 0, 0, 0
local old = redis.call('HGET', KEYS[1], ARGV[1])
if old then
  local o = cjson.decode(old)
  c, v, till, b = o.c, o.v, o.t, o.b
end
local version, t = tonumber(ARGV[2]), tonumber(ARGV[3])
if version > v then
  c, v = c + 1, version
  if c >= tonumber(ARGV[6]) then
    till = t + math.min(tonumber(ARGV[4]) * 2 ^ b, tonumber(ARGV[5]))
    b = b + 1
  end
  if redis.call('HEXISTS', KEYS[1], 'v') == 1 then
    redis.call('HSET', KEYS[1], ARGV[1], string.format('{"c":%d,"v":%d,"t":%d,"b":%d}', c, v, till, b))
  end
end
return {c, v, till, b}
`)
