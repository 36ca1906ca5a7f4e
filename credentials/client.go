package credentials

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// A provider that refuses the client (its id, its secret, what it may ask for)
// refuses every credential of that client, so the refusal is remembered for
// the client. While it stands one credential asks from time to time, and the
// others of that client are held; the first success frees all.
//
//	stepworker:client:{KEY}  hash: since, err, next (ms), n refused trials, at
//	    (ms) the last one ended; trial its owner, trial_until; s:DIGEST settings
//	    that were refused, sn how many; g:DIGEST that were accepted since; f:FILE the same of the connector alone;
//	    c:ID (ms) credentials that were refused; ok (ms) when the last request was
//	    let in that accepted the client; probe (ms) when somebody last began to
//	    find out; teller, until when (ms) somebody tells people of it; told
func clientKey(key string) string { return "stepworker:client:{" + key + "}" }

// Limits of what is remembered of a client.
const (
	clientKept  = 7 * 24 * time.Hour
	clientKnown = time.Minute // how long an acceptance lets many ask at once
	// probeWait is how long others wait for the first who asks as a client of
	// which nothing is known: it may be refused.
	probeWait = time.Second
)

// Client is who asks a provider.
type Client struct {
	Key string // connector, token endpoint and client id, in short; "": nobody
	// Settings is what the client asks with, its secrets too: others may be
	// tried at once. Only a keyed hash of it is kept.
	Settings string
}

// ClientRefusal is a client that the provider has refused.
type ClientRefusal struct {
	Since   time.Time
	Err     string // masked
	NextTry time.Time
	// Trying is true while one credential asks whether it still stands.
	Trying  bool
	files   map[string]bool // the connector's settings that were refused
	refused map[string]bool // credentials that were
}

// Tried says that the provider has refused the client with the connector's
// settings as they are (RefreshRequest.Settings).
func (c *ClientRefusal) Tried(settings string) bool { return c.files[settings] }

// WasRefused says that the provider has refused the client on behalf of this credential.
func (c *ClientRefusal) WasRefused(credential string) bool { return c.refused[credential] }

// ClientRefusal is the refusal that stands for a client, nil if none does.
func (s *Store) ClientRefusal(ctx context.Context, key string) (*ClientRefusal, error) {
	h, err := s.rdb.HGetAll(ctx, clientKey(key)).Result()
	if err != nil || h["since"] == "" {
		return nil, err
	}
	c := &ClientRefusal{Since: parseMillis(h["since"]), Err: h["err"], NextTry: parseMillis(h["next"]),
		Trying: time.Now().Before(parseMillis(h["trial_until"])), files: map[string]bool{}, refused: map[string]bool{}}
	for k := range h {
		if file, ok := strings.CutPrefix(k, "f:"); ok {
			c.files[file] = true
		} else if id, ok := strings.CutPrefix(k, "c:"); ok {
			c.refused[id] = true
		}
	}
	return c, nil
}

// WithClient is a credential's state, seen together with that of its client:
// a refusal of that holds it too.
func (s *Store) WithClient(ctx context.Context, m Meta) (Meta, *ClientRefusal, error) {
	if m.Client == "" || m.State != Active {
		return m, nil, nil
	}
	c, err := s.ClientRefusal(ctx, m.Client)
	if c != nil {
		m.State, m.Since, m.LastError, m.NextTry = Misconfigured, c.Since, c.Err, c.NextTry
	}
	return m, c, err
}

// gate is what a client's record says to one who wants to ask.
type gate struct {
	way  string // open, trial, wait or refused
	next time.Time
	err  string
	at   int64 // ms, by Redis's clock
}

// enter asks whether this client may ask now. It waits a moment for somebody
// who is just finding out.
func (s *Store) enter(ctx context.Context, r RefreshRequest, client Client, owner string) (gate, string, error) {
	naming, err := s.dataKey(ctx)
	if err != nil {
		return gate{}, "", err
	}
	h := hmac.New(sha256.New, naming)
	h.Write([]byte("client\x00" + client.Settings))
	digest := hex.EncodeToString(h.Sum(nil)[:12])
	for {
		out, err := enterScript.Run(ctx, s.rdb, []string{clientKey(client.Key)}, owner, digest, millis(r.Asked), s.lease.Milliseconds(),
			clientKnown.Milliseconds(), probeWait.Milliseconds(), clientKept.Milliseconds()).StringSlice()
		if err != nil {
			return gate{}, "", err
		}
		g := gate{way: out[0], next: parseMillis(out[1]), err: out[2], at: num(out[3])}
		if g.way != "wait" {
			return g, digest, nil
		}
		select {
		case <-ctx.Done():
			return gate{}, "", ctx.Err()
		case <-time.After(25 * time.Millisecond):
		}
	}
}

// refuseClient notes that the provider refused the client. all is false where
// it refuses this credential's requests while it accepts others': then the
// fault is the credential's own. news is true for the one who is to tell people
// of it: the first, or the next after one who died before he had (newsTold).
func (s *Store) refuseClient(ctx context.Context, r RefreshRequest, key, digest, owner, text string) (all, news bool, next time.Time, err error) {
	out, err := refuseClientScript.Run(ctx, s.rdb, []string{clientKey(key)}, owner, r.ID, digest, r.Settings, text,
		s.firstTrial.Milliseconds(), s.lastTrial.Milliseconds(), clientKept.Milliseconds(), s.lease.Milliseconds(), clientKnown.Milliseconds()).Int64Slice()
	if err != nil {
		return false, false, time.Time{}, err
	}
	return out[0] == 1, out[2] == 1, fromMillis(out[1]), nil
}

// newsTold notes that people were told of a client's refusal.
func (s *Store) newsTold(ctx context.Context, key string) error {
	return newsToldScript.Run(ctx, s.rdb, []string{clientKey(key)}).Err()
}

// acceptClient notes that the provider accepted the client in a request that
// was let in at a time (gate.at); freed is true if that ends a refusal.
func (s *Store) acceptClient(ctx context.Context, key, credential, owner, digest string, at int64) (freed bool, err error) {
	return acceptClientScript.Run(ctx, s.rdb, []string{clientKey(key)}, credential, clientKept.Milliseconds(), at, owner, digest).Bool()
}

// endTrial notes that a trial brought no answer about the client.
func (s *Store) endTrial(ctx context.Context, key, owner string) error {
	return endTrialScript.Run(ctx, s.rdb, []string{clientKey(key)}, owner, s.firstTrial.Milliseconds()).Err()
}

// enterScript lets one who wants to ask as a client in, or not.
//
//	KEYS  client
//	ARGV  owner, settings, when a person asked for it (ms, 0: nobody did), lease
//	      of a trial (ms), how long an acceptance lets many ask (ms), how long the
//	      first is waited for (ms), how long the record is kept (ms)
//	returns {'open'|'trial'|'wait'|'refused', next, err, now (ms)}
var enterScript = redis.NewScript(luaNow + `
local h = redis.call('HMGET', KEYS[1], 'since', 'next', 'err', 'at', 'trial_until', 'ok', 'probe', 'sn', 'g:' .. ARGV[2])
local t = now()
local at = string.format('%d', t)
if h[9] then return {'open', '0', '', at} end
if not h[1] then
  if h[6] and t - h[6] < tonumber(ARGV[5]) then return {'open', '0', '', at} end
  local age = t - (h[7] or 0)
  if age < tonumber(ARGV[6]) then return {'wait', '0', '', at} end
  if age >= tonumber(ARGV[5]) then
    redis.call('HSET', KEYS[1], 'probe', t)
    redis.call('PEXPIRE', KEYS[1], ARGV[7])
  end
  return {'open', '0', '', at}
end
local refused = {'refused', h[2], h[3], at}
if h[5] and tonumber(h[5]) > t then return refused end
local new = redis.call('HEXISTS', KEYS[1], 's:' .. ARGV[2]) == 0 and tonumber(h[8] or 0) < 100
if tonumber(h[2]) > t and not new and tonumber(ARGV[3]) <= tonumber(h[4]) then return refused end
redis.call('HSET', KEYS[1], 'trial', ARGV[1], 'trial_until', t + ARGV[4])
return {'trial', '0', '', at}
`)

// refuseClientScript notes a refusal.
//
//	KEYS  client
//	ARGV  owner, credential, settings, the connector's settings, err, first and
//	      longest time between trials (ms), how long the record is kept (ms), how
//	      long one has to tell people (ms), for how long an acceptance is news (ms)
//	returns {1, next, 1 if people are to be told}, or {0, 0, 0} if it is only the credential's
var refuseClientScript = redis.NewScript(luaNow + `
local h = redis.call('HMGET', KEYS[1], 'since', 'ok', 'c:' .. ARGV[2], 'n', 'trial', 'next', 'told', 'teller')
local t = now()
if not h[1] and h[2] and h[3] and tonumber(h[2]) >= tonumber(h[3]) then return {0, 0, 0} end
local n, next = tonumber(h[4] or 0), tonumber(h[6] or 0)
if not h[1] or h[5] == ARGV[1] then -- others asked at the same time as the first
  if not h[1] and h[2] and t - h[2] < tonumber(ARGV[10]) then next = t -- just accepted: another may try at once
  else
    next = t + math.min(ARGV[6] * 2 ^ n, tonumber(ARGV[7]))
    n = n + 1
  end
end
redis.call('HDEL', KEYS[1], 'g:' .. ARGV[3])
if redis.call('HSETNX', KEYS[1], 's:' .. ARGV[3], 1) == 1 then redis.call('HINCRBY', KEYS[1], 'sn', 1) end
redis.call('HSET', KEYS[1], 'since', h[1] or t, 'err', ARGV[5], 'at', t, 'n', n, 'next', string.format('%d', next),
  'c:' .. ARGV[2], t, 'f:' .. ARGV[4], 1)
if h[5] == ARGV[1] then redis.call('HDEL', KEYS[1], 'trial', 'trial_until') end
local news = not h[7] and tonumber(h[8] or 0) <= t
if news then redis.call('HSET', KEYS[1], 'teller', t + ARGV[9]) end
redis.call('PEXPIRE', KEYS[1], ARGV[8])
return {1, next, news and 1 or 0}
`)

// newsToldScript notes that people were told of the refusal that stands.
//
//	KEYS  client
var newsToldScript = redis.NewScript(`
if redis.call('HEXISTS', KEYS[1], 'since') == 0 then return 0 end
redis.call('HDEL', KEYS[1], 'teller')
return redis.call('HSET', KEYS[1], 'told', 1)
`)

// acceptClientScript notes an acceptance. Which credentials were refused stays:
// one that is refused again has only itself to blame. It is as old as its
// request: the answer to one that was let in before a refusal says nothing
// against that. A trial is made because of it.
//
//	KEYS  client
//	ARGV  credential, how long the record is kept (ms), when its request was let in (ms),
//	      owner, settings
//	returns 1 if it ends a refusal, for all or for who asks with these settings; else 0
var acceptClientScript = redis.NewScript(`
local h = redis.call('HMGET', KEYS[1], 'since', 'at', 'ok', 'trial', 's:' .. ARGV[5])
local stood = h[1] and (tonumber(ARGV[3]) >= tonumber(h[2]) or h[4] == ARGV[4]) and 1 or 0
if tonumber(ARGV[3]) > tonumber(h[3] or 0) then redis.call('HSET', KEYS[1], 'ok', ARGV[3]) end
redis.call('HDEL', KEYS[1], 'c:' .. ARGV[1])
if stood == 1 and not h[5] then
  -- Other settings than those that were refused: who asks with those waits on.
  redis.call('HSET', KEYS[1], 'g:' .. ARGV[5], 1, 'n', 0)
  if h[4] == ARGV[4] then redis.call('HDEL', KEYS[1], 'trial', 'trial_until') end
elseif stood == 1 then
  redis.call('HDEL', KEYS[1], 'since', 'err', 'next', 'at', 'n', 'trial', 'trial_until', 'sn', 'told', 'teller')
  for _, k in ipairs(redis.call('HKEYS', KEYS[1])) do
    local p = string.sub(k, 1, 2)
    if p == 's:' or p == 'f:' or p == 'g:' then redis.call('HDEL', KEYS[1], k) end
  end
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return stood
`)

// endTrialScript ends a trial that told nothing about the client.
//
//	KEYS  client
//	ARGV  owner, time to the next one (ms)
var endTrialScript = redis.NewScript(luaNow + `
if redis.call('HGET', KEYS[1], 'trial') ~= ARGV[1] then return 0 end
redis.call('HDEL', KEYS[1], 'trial', 'trial_until')
redis.call('HSET', KEYS[1], 'next', now() + ARGV[2], 'at', now())
return 1
`)
