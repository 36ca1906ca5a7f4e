package credentials

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Status is a credential's state, without a secret.
type Status struct {
	CredentialID      string `json:"credential_id"`
	Connector         string `json:"connector"`
	AccountID         string `json:"account_id"`
	ExternalAccountID string `json:"external_account_id"`
	// Authentication is the connector's named alternative; "" is the default one.
	Authentication string       `json:"authentication,omitempty"`
	State          State        `json:"state"`
	Since          *time.Time   `json:"since"`
	Version        int64        `json:"version"`
	Expiry         *time.Time   `json:"expiry"`
	LastRefresh    *LastRefresh `json:"last_refresh"`
	LastError      string       `json:"last_error"`
	NextTry        *time.Time   `json:"next_try"`
	Waiting        int64        `json:"waiting"`
	OldestWaiting  *time.Time   `json:"oldest_waiting"`
	HeldUntil      *time.Time   `json:"held_until"`
	// PausedUntil is until when no call of the credential is sent, because its API
	// asked to wait, and PausedFor what it said.
	PausedUntil *time.Time `json:"paused_until,omitempty"`
	PausedFor   string     `json:"paused_for,omitempty"`
	// WaitsFor is what would have its waiting executions run, in a sentence; ""
	// where nothing keeps them.
	WaitsFor string `json:"waits_for,omitempty"`
	// RefusedAfterRenewal are methods to which the API refuses the credential
	// though it was renewed for them.
	RefusedAfterRenewal []RefusedMethod `json:"refused_after_renewal,omitempty"`
}

// RefusedMethod is a method to which renewed credentials were refused: Times
// in a row. Its refused executions fail at once until Until.
type RefusedMethod struct {
	Method string     `json:"method"`
	Times  int        `json:"times"`
	Until  *time.Time `json:"until,omitempty"`
}

// Status tells a credential's state; it needs no key.
func (s *Store) Status(ctx context.Context, id string) (*Status, error) {
	pipe := s.rdb.Pipeline()
	h, n := pipe.HGetAll(ctx, credKey(id)), pipe.ZCard(ctx, waitingKey(id))
	oldest, hold := pipe.ZRangeWithScores(ctx, waitingKey(id), 0, 0), pipe.Get(ctx, holdKey)
	line := pipe.HMGet(ctx, LineKey(id), "until", "said")
	if err := exec(ctx, pipe); err != nil {
		return nil, err
	}
	f := h.Val()
	if f["v"] == "" || f["deleted"] != "" {
		return nil, ErrNotFound
	}
	m, refused, err := s.WithClient(ctx, readMeta(f))
	if err != nil {
		return nil, err
	}
	st := &Status{
		CredentialID: id, Connector: f["connector"], AccountID: f["account_id"], ExternalAccountID: f["external_account_id"],
		Authentication: f["authentication"], State: m.State, Since: instant(m.Since), Version: num(f["v"]), Expiry: instant(m.expiry()), LastRefresh: m.LastRefresh,
		LastError: m.LastError, NextTry: instant(m.NextTry), Waiting: n.Val(),
	}
	if lr := st.LastRefresh; lr != nil && lr.Trace != "" { // for workers
		shown := *lr
		shown.Trace, st.LastRefresh = "", &shown
	}
	switch {
	case m.Unknown != "": // it comes before anything that the provider may have said
		st.LastError = m.Unknown
	case m.Denied != "":
		st.LastError = fmt.Sprintf("method %q: %s", m.DeniedTo, m.Denied)
	}
	st.State = m.shown(st.State, f["lease"] != "", time.Now())
	if z := oldest.Val(); len(z) == 1 {
		t := time.UnixMilli(int64(z[0].Score)).UTC()
		st.OldestWaiting = &t
		if ms, err := hold.Int64(); err == nil {
			until := t.Add(time.Duration(ms) * time.Millisecond)
			st.HeldUntil = &until
		}
	}
	text := func(i int) string { s, _ := line.Val()[i].(string); return s }
	if until := parseMillis(text(0)); until.After(time.Now()) {
		st.PausedUntil, st.PausedFor = instant(until), text(1)
	}
	st.WaitsFor = m.waitsFor(st, refused)
	for method, u := range m.Unhelped {
		if u.Count >= unhelpedAllowed {
			st.RefusedAfterRenewal = append(st.RefusedAfterRenewal, RefusedMethod{method, u.Count, instant(u.Until)})
		}
	}
	slices.SortFunc(st.RefusedAfterRenewal, func(a, b RefusedMethod) int { return strings.Compare(a.Method, b.Method) })
	return st, nil
}

// shown is the state that is told of a credential that has this one: somebody may
// be renewing it.
func (m *Meta) shown(state State, leased bool, now time.Time) State {
	if opening := state == Active && m.Refused && m.RefusedKind == Opening; opening || leased && now.Before(m.LeaseUntil) {
		return Refreshing
	}
	return state
}

// waitsFor says what would release those who wait for the credential.
func (m *Meta) waitsFor(st *Status, client *ClientRefusal) string {
	at := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	switch {
	case client != nil:
		return "a token request that accepts the client: tried again at " + at(client.NextTry) +
			", and at once after a `credential refresh`, a new client secret, or a start with another connector file or other partner settings"
	case st.State == Revoked && m.Unread:
		return "a start with a connector that finds the token in an answer that is kept (the provider gave it before it refused), a `credential authorize` or `credential put`, or a `credential refresh` that succeeds"
	case st.State == Revoked:
		return "a `credential authorize` or `credential put`, or a `credential refresh` that succeeds"
	case st.State == Misconfigured && m.NoKey:
		return "a worker with the key that sealed it, or a new `credential put`"
	case st.State == Misconfigured:
		return "a start with another connector file or other partner settings, a `credential refresh` that succeeds, or a new `credential put`"
	case st.State == Refreshing:
		return "the refresh that is under way"
	case !m.Refused && st.PausedUntil != nil:
		return fmt.Sprintf("the end of the pause that its API asked for, at %s, a `credential unpause`, or a new `credential put`", at(*st.PausedUntil))
	case !m.Refused:
		return ""
	case m.NextTry.After(time.Now()):
		return fmt.Sprintf("the next refresh, at %s (%d failed in a row)", at(m.NextTry), m.Failures)
	}
	return "a refresh, which is asked for"
}
