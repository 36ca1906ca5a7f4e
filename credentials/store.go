package credentials

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	mrand "math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// ErrNotFound is a credential that does not exist, or was deleted.
var ErrNotFound = errors.New("unknown credential")

// VersionError refuses a put whose if_version is not the stored version.
type VersionError struct{ Want, Stored int64 }

func (e *VersionError) Error() string {
	return fmt.Sprintf("if_version is %d, but version %d is stored", e.Want, e.Stored)
}

// Store keeps credentials in Redis. It is safe for concurrent use.
type Store struct {
	rdb  redis.UniversalClient
	keys *Keyring

	lease, deadline     time.Duration // of one refresh; tests shorten them
	firstWait, lastWait time.Duration // between failing refreshes
	// between trials of a client that was refused
	firstTrial, lastTrial time.Duration
	sealingLasts          time.Duration // see NoteSealing

	mu     sync.Mutex
	opened map[string]openedSecrets // by id: the hot path opens a record once
	naming []byte                   // names fields of scripts' data; nil: not read yet
	// stepOpener opens what clients sealed of steps.
	stepOpener  stepOpener
	stepOffered int64 // how many parameters they were to seal when this store last looked, 0: it has not offered its own
	// unconfirmed is what was saved lately, oldest first.
	unconfirmed []*unconfirmed
	replicated  bool                 // Redis has had a replica
	servers     map[string]time.Time // by replication id, since when they are known, see NoteServers
}

type openedSecrets struct {
	version int64
	sealed  []byte
	secrets Secrets
}

const openedMax = 10_000

// NewStore returns a store. Without keys only what needs no secret works:
// Status, List, Delete, the waiting set.
func NewStore(rdb redis.UniversalClient, keys *Keyring) *Store {
	return &Store{
		rdb: rdb, keys: keys, opened: map[string]openedSecrets{},
		lease: 60 * time.Second, deadline: 40 * time.Second, firstWait: time.Second, lastWait: 5 * time.Minute,
		firstTrial: time.Minute, lastTrial: time.Hour,
		sealingLasts: 3 * SealingEvery,
	}
}

var errNoKeys = errors.New("this needs the sealing keys (STEPWORKER_KEYS or --keys-file)")

// VerifyKeys opens the check value that the first worker sealed; a *KeyError
// says that these keys are others, a *NewerError that a newer build sealed it.
func (s *Store) VerifyKeys(ctx context.Context) error {
	if s.keys == nil {
		return errNoKeys
	}
	if err := s.rdb.SetNX(ctx, checkKey, s.keys.seal(checkPurpose, []byte("stepworker")), 0).Err(); err != nil {
		return err
	}
	sealed, err := s.rdb.Get(ctx, checkKey).Bytes()
	if err != nil {
		return err
	}
	return s.opensCheck(sealed)
}

// opensCheck is nil if the keys open the check value.
func (s *Store) opensCheck(sealed []byte) error {
	if newerSeal(sealed) {
		return &NewerError{What: checkKey}
	}
	if _, ok := s.keys.open(checkPurpose, sealed); !ok {
		return &KeyError{}
	}
	return nil
}

// Seal seals other data for a purpose; Open opens it again.
func (s *Store) Seal(purpose string, plain []byte) ([]byte, error) {
	if s.keys == nil {
		return nil, errNoKeys
	}
	return s.keys.seal(purpose, plain), nil
}

// Open opens what Seal sealed for the same purpose. A *SealError says that no key
// does, a *NewerError that a newer build sealed it.
func (s *Store) Open(purpose string, sealed []byte) ([]byte, error) {
	if s.keys == nil {
		return nil, errNoKeys
	}
	plain, ok := s.keys.open(purpose, sealed)
	if !ok {
		return nil, unopened("this data", sealed)
	}
	return plain, nil
}

func sealPurpose(id, connector string, version int64) string {
	return "credential\x00" + id + "\x00" + connector + "\x00" + strconv.FormatInt(version, 10)
}

// Put stores a whole credential; with merge the given members are laid over
// the stored ones. It raises the version, makes the credential active, ends a
// pause that the API asked for, and thereby asks for everything that waits to be
// resumed; waiting is how many are parked or held.
func (s *Store) Put(ctx context.Context, in *Input, merge bool) (version, waiting int64, err error) {
	if s.keys == nil {
		return 0, 0, errNoKeys
	}
	if err := s.ensureStepKey(ctx); err != nil {
		return 0, 0, err
	}
	if err := s.rdb.SAdd(ctx, indexKey, in.CredentialID).Err(); err != nil {
		return 0, 0, err
	}
	for range 20 {
		stored := int64(0)
		fields, err := s.rdb.HMGet(ctx, credKey(in.CredentialID), "v", "deleted", "connector").Result()
		if err != nil {
			return 0, 0, err
		}
		if v, ok := fields[0].(string); ok {
			stored, _ = strconv.ParseInt(v, 10, 64)
		}
		if in.IfVersion != nil && *in.IfVersion != stored {
			return 0, 0, &VersionError{*in.IfVersion, stored}
		}
		c := &Credential{ID: in.CredentialID}
		if merge && stored > 0 && fields[1] == nil {
			if c, err = s.Get(ctx, in.CredentialID); err != nil {
				return 0, 0, err
			}
			if c.Version != stored {
				continue
			}
			c.Secrets = c.Secrets.clone()
		}
		now := time.Now()
		if err := in.apply(c, merge, now); err != nil {
			return 0, 0, err
		}
		if in.Check != nil {
			if err := in.Check(c); err != nil {
				return 0, 0, err
			}
		}
		// What scripts stored belongs to one connector; a delete may have been cut off.
		if stored > 0 && fields[2] != c.Connector {
			if err := s.forgetData(ctx, c.ID); err != nil {
				return 0, 0, err
			}
		}
		plain, err := c.Secrets.encode()
		if err != nil {
			return 0, 0, err
		}
		sealed := s.keys.seal(sealPurpose(c.ID, c.Connector, stored+1), plain)
		refused := Kind("")
		if in.Unopened {
			refused = Opening
		}
		done, err := putScript.Run(ctx, s.rdb, []string{credKey(c.ID), versionKey(c.ID), LineKey(c.ID)}, stored, c.Connector, c.AccountID, c.ExternalAccountID,
			sealed, millis(c.Secrets.tokenExpiry()), millis(c.Secrets.sessionExpiry(0)), millis(now), string(refused), c.Authentication).Int()
		if err != nil {
			return 0, 0, err
		}
		if done == 1 {
			waiting, err = s.rdb.ZCard(ctx, waitingKey(c.ID)).Result()
			return stored + 1, waiting, err
		}
	}
	return 0, 0, errors.New("the credential keeps changing; try again")
}

// Get opens a credential: ErrNotFound, or a *SealError beside what stands in
// clear if no key opens it, or a *NewerError if this build cannot read it.
func (s *Store) Get(ctx context.Context, id string) (*Credential, error) {
	return s.GetWith(ctx, id, func(redis.Pipeliner) {})
}

// GetWith is Get, with further commands in the same round trip.
func (s *Store) GetWith(ctx context.Context, id string, extra func(redis.Pipeliner)) (*Credential, error) {
	pipe := s.rdb.Pipeline()
	cmd, newest := pipe.HGetAll(ctx, credKey(id)), pipe.Get(ctx, versionKey(id))
	extra(pipe)
	_, _ = pipe.Exec(ctx) // each command's own error counts, the extra ones' are the caller's
	if err := cmd.Err(); err != nil {
		return nil, err
	}
	if err := newest.Err(); err != nil && !errors.Is(err, redis.Nil) {
		return nil, err
	}
	return s.open(id, cmd.Val(), num(newest.Val()))
}

func (s *Store) open(id string, h map[string]string, newest int64) (*Credential, error) {
	if h["v"] == "" || h["deleted"] != "" {
		return nil, ErrNotFound
	}
	c := &Credential{
		ID: id, Connector: h["connector"], AccountID: h["account_id"], ExternalAccountID: h["external_account_id"],
		Authentication: h["authentication"], Version: num(h["v"]), Meta: readMeta(h),
	}
	if s.keys == nil {
		return c, errNoKeys
	}
	if st := c.Meta.State; st != Active && st != Revoked && st != Misconfigured {
		return c, &NewerError{What: fmt.Sprintf("the state of credential %q, %q,", id, st)}
	}
	if c.Version < newest {
		return c, &SealError{What: fmt.Sprintf("credential %q: its record was set back from version %d to %d", id, newest, c.Version)}
	}
	sealed := []byte(h["sealed"])
	s.mu.Lock()
	o, ok := s.opened[id]
	s.mu.Unlock()
	if ok && o.version == c.Version && bytes.Equal(o.sealed, sealed) {
		c.Secrets = o.secrets
		return c, nil
	}
	plain, ok := s.keys.open(sealPurpose(id, c.Connector, c.Version), sealed)
	if !ok {
		return c, unopened(fmt.Sprintf("credential %q", id), sealed)
	}
	secrets, err := decodeSecrets(plain)
	if err != nil {
		return c, &SealError{What: fmt.Sprintf("credential %q", id)}
	}
	c.Secrets = secrets
	s.mu.Lock()
	if len(s.opened) >= openedMax {
		clear(s.opened)
	}
	s.opened[id] = openedSecrets{c.Version, sealed, secrets}
	s.mu.Unlock()
	return c, nil
}

func readMeta(h map[string]string) Meta {
	m := Meta{
		State: State(h["state"]), Since: parseMillis(h["since"]), Settings: h["settings"], Unread: h["answer"] != "", MadeFor: h["made_for"],
		Token:   Life{parseMillis(h["issued"]), parseMillis(h["expiry"])},
		Session: Life{parseMillis(h["s_issued"]), parseMillis(h["s_expiry"])},
		Refused: h["refused"] != "" && h["refused"] == h["v"], RefusedKind: Kind(h["refused_kind"]),
		NoKey: h["no_key"] != "" && h["no_key"] == h["v"], LastError: h["err"], Unknown: h["unknown"],
		Failures: int(num(h["fails"])), NextTry: parseMillis(h["next"]), LeaseUntil: parseMillis(h["lease_until"]), Client: h["client"],
	}
	m.DeniedTo, m.Denied, _ = strings.Cut(h["denied"], "\n")
	if m.State == "" {
		m.State = Active
	}
	m.Proving = h["ep"] == "put"
	m.Tested = h["tested"] != "" && h["tested"] == h["v"]
	if lr := h["lr"]; lr != "" {
		var l LastRefresh
		if json.Unmarshal([]byte(lr), &l) == nil {
			m.LastRefresh = &l
		}
	}
	for k, v := range h {
		if method, ok := strings.CutPrefix(k, "u:"); ok {
			if m.Unhelped == nil {
				m.Unhelped = map[string]Unhelped{}
			}
			m.Unhelped[method] = readUnhelped(v)
		}
	}
	return m
}

func readUnhelped(text string) Unhelped {
	var u struct {
		C, V, T, B int64
	}
	if json.Unmarshal([]byte(text), &u) != nil {
		return Unhelped{}
	}
	return Unhelped{int(u.C), u.V, fromMillis(u.T), int(u.B)}
}

// Margins of promise 6.
const expiryMargin = 60 * time.Second

// Over says that a token or session is within its margin of expiry: 60 s or a
// tenth of the life it was issued with, whichever is less. So one just issued
// is not over, however short it lives.
func (l Life) Over(now time.Time) bool {
	if l.Expiry.IsZero() {
		return false
	}
	margin := expiryMargin
	if life := l.Expiry.Sub(l.Issued); !l.Issued.IsZero() && life/10 < margin {
		margin = max(life/10, 0)
	}
	return !now.Before(l.Expiry.Add(-margin))
}

// Ahead is when a token is renewed while it is still good, if it is used: 70 to
// 85 % of the life it was issued with, by the credential, so that not all that
// were issued together are renewed together. It is zero where that is not known.
func (l Life) Ahead(id string, version int64) time.Time {
	if l.Expiry.IsZero() || l.Issued.IsZero() || !l.Expiry.After(l.Issued) {
		return time.Time{}
	}
	h := fnv.New32a()
	fmt.Fprintf(h, "%s %d", id, version)
	share := 0.7 + 0.15*float64(h.Sum32())/math.MaxUint32
	return l.Issued.Add(time.Duration(share * float64(l.Expiry.Sub(l.Issued))))
}

// expiry is the earlier of the token's and the session's.
func (m *Meta) expiry() time.Time {
	at := m.Token.Expiry
	if s := m.Session.Expiry; !s.IsZero() && (at.IsZero() || s.Before(at)) {
		at = s
	}
	return at
}

// NoteHold publishes how long this pool lets executions wait.
func (s *Store) NoteHold(ctx context.Context, hold time.Duration) error {
	return s.rdb.Set(ctx, holdKey, hold.Milliseconds(), 0).Err()
}

// Filter chooses credentials for List; empty members choose all.
type Filter struct {
	State     State
	Connector string
	Account   string
}

// List calls fn for each credential, in no order, until fn returns an error.
func (s *Store) List(ctx context.Context, f Filter, fn func(*Status) error) error {
	seen := map[string]bool{}
	it := s.rdb.SScan(ctx, indexKey, 0, "", 1000).Iterator()
	for it.Next(ctx) {
		id := it.Val()
		if seen[id] {
			continue
		}
		seen[id] = true
		st, err := s.Status(ctx, id)
		if errors.Is(err, ErrNotFound) {
			continue
		} else if err != nil {
			return err
		}
		if f.State != "" && st.State != f.State || f.Connector != "" && st.Connector != f.Connector || f.Account != "" && st.AccountID != f.Account {
			continue
		}
		if err := fn(st); err != nil {
			return err
		}
	}
	return it.Err()
}

// Delete forgets a credential but for its version, and what scripts stored
// with it. Executions that wait for it stay in its waiting set; resumed, they
// fail.
func (s *Store) Delete(ctx context.Context, id string) error {
	n, err := deleteScript.Run(ctx, s.rdb, []string{credKey(id)}).Int()
	if err != nil {
		return err
	}
	// Also of one that is gone: its delete may have been cut off here.
	if err := s.forgetData(ctx, id); err != nil {
		return err
	}
	if n == 0 {
		return ErrNotFound
	}
	return s.rdb.SRem(ctx, indexKey, id).Err()
}

// EndPause lets a credential's calls go on whose API asked to wait, as if the
// time that it named were over: one as a trial, then the others.
func (s *Store) EndPause(ctx context.Context, id string) error {
	n, err := endPauseScript.Run(ctx, s.rdb, []string{credKey(id), LineKey(id)}).Int()
	if err == nil && n == 0 {
		return ErrNotFound
	}
	return err
}

// ParkRequest asks to wait for a credential.
type ParkRequest struct {
	ID        string
	Execution string
	Version   int64 // that the attempt used
	Kind      Kind  // of the refresh that it needs
	Method    string
	// Refused marks this version as one that cannot be used: others park
	// without calling the API.
	Refused bool
	Since   time.Time // when this wait began
	Trace   string    // the attempt's trace context, for the refresh to link to; "" without
}

// Parked answers a ParkRequest. Newer: a newer version is stored, run again
// now; Gone: there is no such credential. In both cases nothing waits.
type Parked struct {
	Newer, Gone bool
	Version     int64
	Meta        Meta // State, LastError, NextTry, LeaseUntil and Client only
}

// Park joins the waiting set unless a newer version is stored.
func (s *Store) Park(ctx context.Context, r ParkRequest) (Parked, error) {
	refused := 0
	if r.Refused {
		refused = 1
	}
	out, err := parkScript.Run(ctx, s.rdb, []string{credKey(r.ID), waitingKey(r.ID), askersKey(r.ID)}, r.Execution, r.Version, refused, string(r.Kind), mark(r.Since), r.Method, r.Trace).StringSlice()
	if err != nil {
		return Parked{}, err
	}
	switch out[0] {
	case "gone":
		return Parked{Gone: true}, nil
	case "newer":
		return Parked{Newer: true, Version: num(out[1])}, nil
	}
	// After it has joined: whoever tidies up meanwhile sees it in the set.
	if err := s.rdb.SAdd(ctx, waitingIndexKey, r.ID).Err(); err != nil {
		return Parked{}, err
	}
	return Parked{Version: num(out[1]), Meta: Meta{State: State(out[2]), LastError: out[3], NextTry: parseMillis(out[4]), LeaseUntil: parseMillis(out[5]), Client: out[6]}}, nil
}

// Askers are the trace contexts of the attempts that parked last, 128 at most,
// since a refresh has taken them.
func (s *Store) Askers(ctx context.Context, id string) ([]string, error) {
	return s.rdb.LRange(ctx, askersKey(id), 0, -1).Result()
}

// TakeAskers forgets them: the refresh that they waited for is told of them.
func (s *Store) TakeAskers(ctx context.Context, id string) error {
	return s.rdb.Del(ctx, askersKey(id)).Err()
}

// mark is a place in a waiting set: since when (ms), and a fraction that no
// other parking of the same execution is likely to share.
func mark(since time.Time) string {
	return strconv.FormatFloat(float64(millis(since))+float64(mrand.IntN(4096))/4096, 'f', -1, 64)
}

// NoteUnopened shows a credential as misconfigured that no key of this worker
// opens, though its other keys are right.
func (s *Store) NoteUnopened(ctx context.Context, id string, version int64, text string) error {
	return s.change(ctx, unopenedScript, id, nil, version, text, millis(time.Now())).Err()
}

// NoteOpened takes that back: a worker has the key.
func (s *Store) NoteOpened(ctx context.Context, id string, version int64) error {
	return s.change(ctx, openedScript, id, nil, version, millis(time.Now())).Err()
}

// NoteUnknown notes what the credential names that this worker does not have; ""
// takes that back: a worker has it. The state stays as it is.
func (s *Store) NoteUnknown(ctx context.Context, id string, version int64, text string) error {
	return remarkScript.Run(ctx, s.rdb, []string{credKey(id)}, version, "unknown", text).Err()
}

// NoteDenied notes how the API refused a method what nobody can renew or test,
// so that nobody knows whether it is dead; text "" takes that back. The state
// stays as it is.
func (s *Store) NoteDenied(ctx context.Context, id string, version int64, method, text string) error {
	if text != "" {
		text = method + "\n" + clipText(text, 500)
	}
	return remarkScript.Run(ctx, s.rdb, []string{credKey(id)}, version, "denied", text).Err()
}

// Unwait takes an execution out of the waiting set: it has ended.
func (s *Store) Unwait(ctx context.Context, id, execution string) error {
	if err := s.rdb.ZRem(ctx, waitingKey(id), execution).Err(); err != nil {
		return err
	}
	return s.Tidy(ctx, id)
}

// Tidy forgets that a credential has waiting executions, if it has none.
func (s *Store) Tidy(ctx context.Context, id string) error {
	if n, err := s.rdb.ZCard(ctx, waitingKey(id)).Result(); err != nil || n > 0 {
		return err
	}
	if err := s.rdb.SRem(ctx, waitingIndexKey, id).Err(); err != nil {
		return err
	}
	// Somebody may have joined between the two.
	if n, err := s.rdb.ZCard(ctx, waitingKey(id)).Result(); err != nil || n == 0 {
		return err
	}
	return s.rdb.SAdd(ctx, waitingIndexKey, id).Err()
}

// Waiter is one place in a waiting set. Each time an execution parks it takes
// a new place, which Mark tells from an earlier one of its own.
type Waiter struct {
	Execution string
	Mark      float64
}

// Waiters are n waiting executions from the given rank on, oldest first.
func (s *Store) Waiters(ctx context.Context, id string, from, n int64) ([]Waiter, error) {
	zs, err := s.rdb.ZRangeWithScores(ctx, waitingKey(id), from, from+n-1).Result()
	if err != nil {
		return nil, err
	}
	all := make([]Waiter, len(zs))
	for i, z := range zs {
		member, _ := z.Member.(string)
		all[i] = Waiter{member, z.Score}
	}
	return all, nil
}

// Leave takes an execution that was put back to pending out of the waiting
// set, unless it has parked again meanwhile.
func (s *Store) Leave(ctx context.Context, id string, w Waiter, also ...func(redis.Pipeliner)) error {
	pipe := s.rdb.Pipeline()
	leaveScript.Eval(ctx, pipe, []string{waitingKey(id)}, w.Execution, strconv.FormatFloat(w.Mark, 'f', -1, 64))
	for _, add := range also {
		add(pipe)
	}
	_, err := pipe.Exec(ctx)
	return err
}

// Waiting is how many executions wait for a credential.
func (s *Store) Waiting(ctx context.Context, id string) (int64, error) {
	return s.rdb.ZCard(ctx, waitingKey(id)).Result()
}

// WaitingCredentials are the ids that may have waiting executions.
func (s *Store) WaitingCredentials(ctx context.Context) ([]string, error) {
	return s.rdb.SMembers(ctx, waitingIndexKey).Result()
}

// IDs are the ids of some credentials, at most about n.
func (s *Store) IDs(ctx context.Context, n int64) ([]string, error) {
	ids, _, err := s.rdb.SScan(ctx, indexKey, 0, "", n).Result()
	return ids, err
}

// Note keeps the verdict on a refresh that was asked for and not made; state
// and secrets stay as they are.
func (s *Store) Note(ctx context.Context, id string, version int64, kind Kind, e *RefreshError) error {
	last, err := json.Marshal(LastRefresh{At: time.Now().UTC().Truncate(time.Millisecond), Kind: kind, Verdict: e.Verdict, Status: e.Status})
	if err != nil {
		return err
	}
	return noteScript.Run(ctx, s.rdb, []string{credKey(id)}, version, clipText(e.Text, 500), last).Err()
}

// Usable says that executions may call with the stored version: it is active
// and not known refused.
func (s *Store) Usable(ctx context.Context, id string) (Usability, error) {
	all, err := s.UsableMany(ctx, []string{id})
	if err != nil {
		return Usability{}, err
	}
	u, ok := all[id]
	if !ok {
		return Usability{}, ErrNotFound
	}
	return u, nil
}

// usabilityFields are what it takes of a credential's hash.
var usabilityFields = []string{"v", "deleted", "connector", "state", "refused", "refused_kind", "no_key", "next", "lease_until", "settings", "client", "answer"}

// UsableMany is Usable for many, in one round trip. Those that do not exist
// are left out.
func (s *Store) UsableMany(ctx context.Context, ids []string) (map[string]Usability, error) {
	pipe := s.rdb.Pipeline()
	cmds := make([]*redis.SliceCmd, len(ids))
	for i, id := range ids {
		cmds[i] = pipe.HMGet(ctx, credKey(id), usabilityFields...)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, err
	}
	all := make(map[string]Usability, len(ids))
	for i, id := range ids {
		h := make(map[string]string, len(usabilityFields))
		for j, v := range cmds[i].Val() {
			if text, ok := v.(string); ok {
				h[usabilityFields[j]] = text
			}
		}
		if h["v"] == "" || h["deleted"] != "" {
			continue
		}
		m := readMeta(h)
		all[id] = Usability{Usable: m.State == Active && !m.Refused, Meta: m, Version: num(h["v"]), Connector: h["connector"]}
	}
	return all, nil
}

// Usability answers Usable.
type Usability struct {
	Usable    bool
	Meta      Meta // what of it matters to those who wait
	Version   int64
	Connector string
}

// Limits of promise 5.
const (
	unhelpedAllowed = 2
	firstBlock      = time.Minute
	longestBlock    = time.Hour
)

// CountUnhelped counts a refresh that did not help the execution it was made
// for: each version once. From the second in a row on, Until is set.
func (s *Store) CountUnhelped(ctx context.Context, id, method string, version int64) (Unhelped, error) {
	out, err := unhelpedScript.Run(ctx, s.rdb, []string{credKey(id)}, "u:"+method, version, millis(time.Now()),
		firstBlock.Milliseconds(), longestBlock.Milliseconds(), unhelpedAllowed).Int64Slice()
	if err != nil {
		return Unhelped{}, err
	}
	return Unhelped{int(out[0]), out[1], fromMillis(out[2]), int(out[3])}, nil
}

// Unhelped is that count as it is now, unless a version newer than the given
// one is stored: that one may help.
func (s *Store) Unhelped(ctx context.Context, id, method string, version int64) (Unhelped, error) {
	f, err := s.rdb.HMGet(ctx, credKey(id), "v", "u:"+method).Result()
	if err != nil {
		return Unhelped{}, err
	}
	v, _ := f[0].(string)
	count, _ := f[1].(string)
	if num(v) > version {
		return Unhelped{}, nil
	}
	return readUnhelped(count), nil
}

// Helped forgets the count: a call of the method succeeded.
func (s *Store) Helped(ctx context.Context, id, method string) error {
	return s.rdb.HDel(ctx, credKey(id), "u:"+method, "made_for").Err()
}

// What is known of the client authentication style of a connector's token
// endpoint, beside "header" and "params".
const (
	StyleTrying = "trying" // somebody finds it out right now
	StyleTried  = "tried"  // neither worked, a while ago
)

func styleKey(connector string) string { return "stepworker:auth_style:" + connector }

// AuthStyle is the client authentication that a connector's token endpoint is
// known to accept: "header", "params", StyleTrying, StyleTried, or "" if
// nothing is known yet.
func (s *Store) AuthStyle(ctx context.Context, connector string) (string, error) {
	v, err := s.rdb.Get(ctx, styleKey(connector)).Result()
	if errors.Is(err, redis.Nil) {
		return "", nil
	}
	return v, err
}

// TryAuthStyle makes the caller the one who tries the other style.
func (s *Store) TryAuthStyle(ctx context.Context, connector string) (first bool, err error) {
	return s.rdb.SetNX(ctx, styleKey(connector), StyleTrying, s.lease).Result()
}

// SetAuthStyle remembers what came of it: "" for nothing; that neither worked
// for a while only, because a wrong secret looks the same.
func (s *Store) SetAuthStyle(ctx context.Context, connector, style string) error {
	if style == "" {
		return s.rdb.Del(ctx, styleKey(connector)).Err()
	}
	keep := time.Duration(0)
	if style == StyleTried {
		keep = 10 * time.Minute
	}
	return s.rdb.Set(ctx, styleKey(connector), style, keep).Err()
}

func num(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64)
	return n
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

func parseMillis(s string) time.Time { return fromMillis(num(s)) }

func instant(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	u := t.UTC()
	return &u
}
