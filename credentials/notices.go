package credentials

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/redis/go-redis/v9"
)

// What a notice tells of a credential.
const (
	NoticeFailing       = "failing" // transiently, or without an answer
	NoticeRevoked       = "revoked"
	NoticeMisconfigured = "misconfigured"
	NoticeRecovered     = "recovered"
)

// Notice is something that happened to a credential and is to be told to
// people, as things stood when it happened. It holds no secret.
//
// Of one episode, from the first failure to the recovery, each is told once: a
// notice is written by the script that changes the credential, and by no other.
type Notice struct {
	ID                string // the same at each attempt
	What              string
	At                time.Time
	CredentialID      string
	Connector         string
	AccountID         string
	ExternalAccountID string
	State             State
	Since             time.Time
	Version           int64
	Verdict           Verdict // '' where the credential recovered
	Status            int     // of the provider's answer, 0 without one
	Error             string  // masked
	NextTry           time.Time
	Waiting           int64 // executions
	Attempts          int   // to tell it, so far

	stored string // as it stands in Redis
}

// storedNotice is a notice as luaTell writes it.
type storedNotice struct {
	ID       string            `json:"id"`
	What     string            `json:"what"`
	At       string            `json:"at"`
	Waiting  string            `json:"waiting"`
	Attempts int               `json:"attempts,omitempty"`
	Fields   map[string]string `json:"fields"` // of the credential's hash
}

// These share a hash tag, so that one script may touch both on a Redis Cluster.
//
//	stepworker:{notices}         zset of ids of credentials that may have pending
//	                             notices, score: when to look at them (ms); it
//	                             ends in .5 where there were none the last time
//	stepworker:{notices}:wanted  is there while some worker tells notices
//	stepworker:{notices}:sender  the worker that does so now
//
// Of each credential, under its own hash tag:
//
//	stepworker:cred:{ID}:notices list of pending notices, oldest first
const (
	noticingKey      = "stepworker:{notices}"
	noticesWantedKey = "stepworker:{notices}:wanted"
	noticeSenderKey  = "stepworker:{notices}:sender"
)

func noticesKey(id string) string { return "stepworker:cred:{" + id + "}:notices" }

const (
	// NoticeLife is for how long a notice is tried to be told.
	NoticeLife = 72 * time.Hour
	// noticeRest is how long a credential without notices stays noted: somebody
	// may have announced himself who has not written yet.
	noticeRest = 10 * time.Second
)

// luaTell gives a script that runs by Store.change the function tell. The hash's
// field ep holds what was told of the episode under way; a put leaves 'put' in
// it: what a person gave is judged anew, and has recovered when it was used or
// renewed. It is kept also while nobody wants notices.
//
//	KEYS  credential, …, notices, waiting set
//	ARGV  …, id of the notice ('': nobody wants it)
//
// At most 16 notices are kept, for a day longer than they are tried.
const luaTell = luaNow + `
local function tell(what)
  local ep = redis.call('HGET', KEYS[1], 'ep') or ''
  if what == 'recovered' then
    if ep == '' then return end
    redis.call('HDEL', KEYS[1], 'ep')
  elseif string.find(ep, what, 1, true) or what == 'failing' and redis.call('HGET', KEYS[1], 'state') ~= 'active' then
    return
  else
    redis.call('HSET', KEYS[1], 'ep', ep .. ' ' .. what)
  end
  local id = ARGV[#ARGV]
  if id == '' then return end
  local names = {'v', 'connector', 'account_id', 'external_account_id', 'state', 'since', 'lr', 'err', 'next'}
  local values, fields = redis.call('HMGET', KEYS[1], unpack(names)), {}
  for i, name in ipairs(names) do
    if values[i] then fields[name] = values[i] end
  end
  local notices = KEYS[#KEYS - 1]
  redis.call('RPUSH', notices, cjson.encode({id = id, what = what, at = string.format('%d', now()),
    waiting = tostring(redis.call('ZCARD', KEYS[#KEYS])), fields = fields}))
  redis.call('LTRIM', notices, -16, -1)
  redis.call('PEXPIRE', notices, 4 * 24 * 3600 * 1000)
end
`

// usedScript notes that somebody used what a person had put in place of a
// credential that was of no use.
//
//	KEYS, ARGV  as luaTell has them; ARGV begins with the version
var usedScript = redis.NewScript(luaTell + `
local h = redis.call('HMGET', KEYS[1], 'v', 'deleted', 'state', 'ep')
if h[1] == ARGV[1] and not h[2] and h[3] == 'active' and h[4] == 'put' then tell('recovered') end
return 1
`)

// noticingScript has a credential looked at, not before any time that is noted.
//
//	KEYS  noticing, wanted
//	ARGV  credential, in how long (ms)
//	returns 1, or 0 if nobody wants notices
var noticingScript = redis.NewScript(luaNow + `
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
local at, t = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or '0'), now() + ARGV[2]
if at < t or at % 1 ~= 0 then redis.call('ZADD', KEYS[1], string.format('%d', t), ARGV[1]) end
return 1
`)

// dueNoticesScript finds credentials to be looked at.
//
//	KEYS  noticing
//	ARGV  how many
//	returns {credential, since when (ms), …}
var dueNoticesScript = redis.NewScript(luaNow + `
return redis.call('ZRANGE', KEYS[1], '-inf', string.format('%d', now()), 'BYSCORE', 'LIMIT', 0, ARGV[1], 'WITHSCORES')
`)

// restScript has a credential without notices looked at once more after a
// while, and then forgets it, unless somebody has announced himself meanwhile.
//
//	KEYS  noticing
//	ARGV  credential, since when (ms), the while (ms)
var restScript = redis.NewScript(luaNow + `
local at = redis.call('ZSCORE', KEYS[1], ARGV[1])
if at ~= ARGV[2] then return 0 end
if tonumber(at) % 1 ~= 0 then return redis.call('ZREM', KEYS[1], ARGV[1]) end
return redis.call('ZADD', KEYS[1], string.format('%d.5', now() + ARGV[3]), ARGV[1])
`)

// settleNoticeScript replaces the oldest notice, or takes it away, unless it
// was dropped meanwhile for newer ones.
//
//	KEYS  notices
//	ARGV  as it was, as it is ('' : it is done with)
var settleNoticeScript = redis.NewScript(`
if redis.call('LINDEX', KEYS[1], 0) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then redis.call('LPOP', KEYS[1]) else redis.call('LSET', KEYS[1], 0, ARGV[2]) end
return 1
`)

// senderScript makes one worker the sender, for a while.
//
//	KEYS  sender
//	ARGV  worker, for how long (ms; 0: it leaves)
//	returns 1 if it is
var senderScript = redis.NewScript(`
local is = redis.call('GET', KEYS[1])
if is and is ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return 1
`)

// change runs a script that may have something to tell. The credential is
// announced first: a worker that dies in between leaves an entry that harms
// nothing, and one that dies after the script a notice that others find.
func (s *Store) change(ctx context.Context, script *redis.Script, id string, more []string, args ...any) *redis.Cmd {
	announce := func() (int, error) {
		return noticingScript.Run(ctx, s.rdb, []string{noticingKey, noticesWantedKey}, id, 0).Int()
	}
	notice, begun := ulid.Make().String(), time.Now()
	wanted, err := announce()
	if err == nil && wanted == 0 {
		notice = ""
	}
	keys := append(append([]string{credKey(id)}, more...), noticesKey(id), waitingKey(id))
	cmd := script.Run(ctx, s.rdb, keys, append(args, notice)...)
	if late := time.Since(begun) > noticeRest/2; cmd.Err() == nil && notice != "" && (err != nil || late) {
		_, _ = announce() // it may be forgotten; and what is saved does not wait for it
	}
	return cmd
}

// NoteUsed notes that a call with a version that a person had put has
// succeeded; see Meta.Proving.
func (s *Store) NoteUsed(ctx context.Context, id string, version int64) error {
	return s.change(ctx, usedScript, id, nil, version).Err()
}

// WantNotices has notices written, by everybody who changes credentials, for
// as long as a notice is tried to be told.
func (s *Store) WantNotices(ctx context.Context) error {
	return s.rdb.Set(ctx, noticesWantedKey, 1, NoticeLife).Err()
}

// SendNotices says whether the given worker may send notices for so long, as
// the only one; 0 leaves it to others.
func (s *Store) SendNotices(ctx context.Context, worker string, d time.Duration) (bool, error) {
	n, err := senderScript.Run(ctx, s.rdb, []string{noticeSenderKey}, worker, d.Milliseconds()).Int()
	return n == 1, err
}

// Noticing is a credential that may have notices, and since when.
type Noticing struct{ CredentialID, since string }

// DueNotices are up to n credentials whose notices are to be told now.
func (s *Store) DueNotices(ctx context.Context, n int) ([]Noticing, error) {
	out, err := dueNoticesScript.Run(ctx, s.rdb, []string{noticingKey}, n).StringSlice()
	if err != nil {
		return nil, err
	}
	due := make([]Noticing, 0, len(out)/2)
	for i := 0; i+1 < len(out); i += 2 {
		due = append(due, Noticing{out[i], out[i+1]})
	}
	return due, nil
}

// NextNotice is a credential's oldest pending notice, or nil.
func (s *Store) NextNotice(ctx context.Context, id string) (*Notice, error) {
	for {
		text, err := s.rdb.LIndex(ctx, noticesKey(id), 0).Result()
		if errors.Is(err, redis.Nil) {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
		if n := readNotice(id, text); n != nil {
			return n, nil
		}
		// Nothing of ours: it would stand before the others for ever.
		if err := s.settleNotice(ctx, id, text, ""); err != nil {
			return nil, err
		}
	}
}

// RestNotices forgets a credential that has no notices.
func (s *Store) RestNotices(ctx context.Context, n Noticing) error {
	return restScript.Run(ctx, s.rdb, []string{noticingKey}, n.CredentialID, n.since, noticeRest.Milliseconds()).Err()
}

// NoticeDone takes a notice away that was told or is given up.
func (s *Store) NoticeDone(ctx context.Context, n *Notice) error {
	return s.settleNotice(ctx, n.CredentialID, n.stored, "")
}

// NoticeFailed counts an attempt that failed; the credential's notices are
// looked at again after the delay.
func (s *Store) NoticeFailed(ctx context.Context, n *Notice, delay time.Duration) error {
	var e storedNotice
	if err := json.Unmarshal([]byte(n.stored), &e); err != nil {
		return err
	}
	e.Attempts = n.Attempts + 1
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if err := noticingScript.Run(ctx, s.rdb, []string{noticingKey, noticesWantedKey}, n.CredentialID, delay.Milliseconds()).Err(); err != nil {
		return err
	}
	return s.settleNotice(ctx, n.CredentialID, n.stored, string(text))
}

func (s *Store) settleNotice(ctx context.Context, id, was, is string) error {
	return settleNoticeScript.Run(ctx, s.rdb, []string{noticesKey(id)}, was, is).Err()
}

func readNotice(id, text string) *Notice {
	var e storedNotice
	if json.Unmarshal([]byte(text), &e) != nil || e.ID == "" {
		return nil
	}
	m := readMeta(e.Fields)
	n := &Notice{
		ID: e.ID, What: e.What, At: parseMillis(e.At), CredentialID: id,
		Connector: e.Fields["connector"], AccountID: e.Fields["account_id"], ExternalAccountID: e.Fields["external_account_id"],
		State: m.State, Since: m.Since, Version: num(e.Fields["v"]), Error: m.LastError, NextTry: m.NextTry, Waiting: num(e.Waiting),
		Attempts: e.Attempts, stored: text,
	}
	switch n.What {
	case NoticeRevoked, NoticeMisconfigured:
		n.State, n.Verdict = State(n.What), Verdict(n.What) // held for its client it has no such state of its own
	case NoticeFailing:
		n.Verdict = Transient
	}
	// The last refresh need not be what is told: a record that no key opens was
	// found by a step.
	if l := m.LastRefresh; l != nil && (l.Verdict == n.Verdict || n.What == NoticeFailing && l.Verdict == Unknown) {
		n.Verdict, n.Status = l.Verdict, l.Status
	}
	return n
}
