package credentials

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	mrand "math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/stepworker/stepworker/internal/killpoint"
)

// RefreshFunc asks the provider. A *RefreshError is its verdict.
type RefreshFunc func(ctx context.Context, c *Credential) (*Renewal, error)

// RefreshRequest asks for a refresh of one version.
type RefreshRequest struct {
	ID      string
	Version int64
	Kind    Kind
	// Force also asks for a revoked credential, and does not wait for NextTry.
	Force bool
}

// Outcomes of a refresh.
const (
	OutcomeRenewed       = "renewed"
	OutcomeNewer         = "newer" // a newer version is stored: nothing was asked, or its answer is void
	OutcomeBusy          = "busy"  // somebody else holds the lease
	OutcomeLater         = "later" // the last failure is being waited out
	OutcomeRevoked       = "revoked"
	OutcomeMisconfigured = "misconfigured"
	OutcomeTransient     = "transient"
	OutcomeUnknown       = "unknown" // the answer never came
	OutcomeGone          = "gone"
)

// RefreshResult tells how a refresh ended. RetryAt is when to look again for
// busy, later, transient and unknown. Err is the provider's verdict, if it was
// asked.
type RefreshResult struct {
	Outcome string
	Version int64
	RetryAt time.Time
	Err     *RefreshError
}

// Refresh renews one version of a credential, at most once over all workers;
// the package comment has the order of its steps. An error means that Redis
// could not be used before anything was asked.
func (s *Store) Refresh(ctx context.Context, r RefreshRequest, do RefreshFunc) (RefreshResult, error) {
	if s.keys == nil {
		return RefreshResult{}, errNoKeys
	}
	owner := rand.Text()
	t, err := s.take(ctx, r, owner)
	if err != nil || t.result.Outcome != "" {
		return t.result, err
	}
	c, err := s.Get(ctx, r.ID)
	if err == nil && c.Version != t.version {
		err = ErrNotFound
	}
	if err != nil {
		_ = releaseScript.Run(context.WithoutCancel(ctx), s.rdb, []string{credKey(r.ID)}, owner).Err()
		if errors.Is(err, ErrNotFound) {
			return RefreshResult{Outcome: OutcomeNewer, Version: r.Version}, nil
		}
		return RefreshResult{}, err
	}
	killpoint.KillPoint("refresh-before-send")
	callCtx, cancel := context.WithTimeout(ctx, s.deadline)
	renewal, err := do(callCtx, c)
	cancel()
	killpoint.KillPoint("refresh-answered")
	if err == nil && renewal == nil {
		err = &RefreshError{Verdict: Transient, Text: "the refresh brought nothing"}
	}
	if err == nil {
		return s.save(ctx, r, owner, c, renewal)
	}
	var verdict *RefreshError
	if !errors.As(err, &verdict) {
		verdict = &RefreshError{Verdict: Transient, Text: "the refresh could not be made"}
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
			verdict = &RefreshError{Verdict: Unknown, Text: "no answer came within " + s.deadline.String()}
		}
	}
	return s.remember(ctx, r, owner, t, verdict)
}

type taken struct {
	version    int64
	unanswered int64 // requests of this version whose answer never came
	failures   int64
	deadline   time.Time
	result     RefreshResult // set: not taken
}

func (s *Store) take(ctx context.Context, r RefreshRequest, owner string) (taken, error) {
	force := 0
	if r.Force {
		force = 1
	}
	out, err := takeScript.Run(ctx, s.rdb, []string{credKey(r.ID)}, owner, r.Version, s.lease.Milliseconds(), s.deadline.Milliseconds(), force).StringSlice()
	if err != nil {
		return taken{}, err
	}
	switch out[0] {
	case "taken":
		return taken{version: num(out[1]), unanswered: num(out[2]), failures: num(out[3]), deadline: parseMillis(out[4])}, nil
	case OutcomeBusy:
		// Its holder may end at any moment: look again soon, with jitter.
		soon := time.Now().Add(500*time.Millisecond + mrand.N(time.Second))
		if until := parseMillis(out[1]); until.Before(soon) {
			soon = until
		}
		return taken{result: RefreshResult{Outcome: OutcomeBusy, RetryAt: soon}}, nil
	case OutcomeLater:
		return taken{result: RefreshResult{Outcome: OutcomeLater, RetryAt: parseMillis(out[1])}}, nil
	case OutcomeGone:
		return taken{result: RefreshResult{Outcome: OutcomeGone}}, nil
	}
	return taken{result: RefreshResult{Outcome: out[0], Version: num(out[1])}}, nil
}

// save stores what the provider gave, for as long as this process lives: the
// old refresh token may be spent.
func (s *Store) save(ctx context.Context, r RefreshRequest, owner string, c *Credential, renewal *Renewal) (RefreshResult, error) {
	ctx = context.WithoutCancel(ctx)
	now := time.Now()
	secrets := c.Secrets.clone()
	if renewal.Token != nil {
		old := secrets.OAuth2
		t := *renewal.Token
		if t.RefreshToken.Empty() && old != nil {
			t.RefreshToken = old.RefreshToken
		}
		secrets.OAuth2, secrets.TokenRaw = &t, renewal.TokenRaw
	}
	if len(renewal.Session) > 0 {
		if secrets.Session == nil {
			secrets.Session = map[string]string{}
		}
		maps.Copy(secrets.Session, renewal.Session)
	}
	secrets.Opened = secrets.Opened || renewal.Opened
	expiry := secrets.expiry()
	if !renewal.Expiry.IsZero() && (expiry.IsZero() || renewal.Expiry.Before(expiry)) {
		expiry = renewal.Expiry
	}
	plain, err := secrets.encode()
	if err != nil {
		return RefreshResult{}, err
	}
	sealed := s.keys.seal(sealPurpose(c.ID, c.Connector, c.Version+1), plain)
	last, err := json.Marshal(LastRefresh{At: now.UTC().Truncate(time.Millisecond), Kind: r.Kind, Verdict: Renewed, Status: renewal.Status})
	if err != nil {
		return RefreshResult{}, err
	}
	waits := s.backoff()
	for {
		out, err := saveScript.Run(ctx, s.rdb, []string{credKey(r.ID)}, owner, c.Version, sealed, millis(expiry), millis(now), last, millis(now)).StringSlice()
		if err == nil {
			killpoint.KillPoint("refresh-saved")
			switch out[0] {
			case "saved":
				return RefreshResult{Outcome: OutcomeRenewed, Version: num(out[1])}, nil
			case "gone":
				return RefreshResult{Outcome: OutcomeGone}, nil
			default: // newer, or a later holder is at work: its word counts
				return RefreshResult{Outcome: OutcomeNewer, Version: c.Version}, nil
			}
		}
		time.Sleep(waits.NextBackOff()) // Redis is away, or refuses writes
	}
}

// remember notes a refusal or failure, so that no other worker asks again.
func (s *Store) remember(ctx context.Context, r RefreshRequest, owner string, t taken, e *RefreshError) (RefreshResult, error) {
	ctx = context.WithoutCancel(ctx)
	now := time.Now()
	res := RefreshResult{Version: t.version, Err: e}
	state, keepIntent := State(""), 0
	next := now.Add(s.delay(t.failures))
	switch e.Verdict {
	case VerdictRevoked:
		state, res.Outcome = Revoked, OutcomeRevoked
	case VerdictMisconfigured:
		state, res.Outcome = Misconfigured, OutcomeMisconfigured
	case Unknown:
		res.Outcome = OutcomeUnknown
		if t.unanswered == 0 {
			// Neither success nor refusal: wait the request out, then try once.
			keepIntent, next = 1, t.deadline
		} else {
			next = now.Add(max(s.delay(t.failures+6), s.lease))
		}
	default:
		res.Outcome = OutcomeTransient
	}
	if e.RetryAfter > 0 {
		next = now.Add(e.RetryAfter)
	}
	if state == "" {
		res.RetryAt = next
	}
	last, err := json.Marshal(LastRefresh{At: now.UTC().Truncate(time.Millisecond), Kind: r.Kind, Verdict: e.Verdict, Status: e.Status})
	if err != nil {
		return RefreshResult{}, err
	}
	waits := s.backoff()
	for begun := now; ; {
		out, err := failScript.Run(ctx, s.rdb, []string{credKey(r.ID)}, owner, t.version, string(state), clipText(e.Text, 500), millis(next), last, keepIntent, millis(now)).StringSlice()
		if err == nil {
			switch out[0] {
			case "newer", "lost": // a person, or a later holder, knows better
				return RefreshResult{Outcome: OutcomeNewer, Version: t.version}, nil
			case "gone":
				return RefreshResult{Outcome: OutcomeGone}, nil
			}
			return res, nil
		}
		if time.Since(begun) > s.lease {
			return res, fmt.Errorf("remembering a failed refresh: %w", err) // the intent stands, and is waited out
		}
		time.Sleep(waits.NextBackOff())
	}
}

// delay is how long to wait after the n-th failure in a row.
func (s *Store) delay(n int64) time.Duration {
	d := min(s.firstWait<<min(n, 20), s.lastWait)
	return d/2 + mrand.N(d/2+1)
}

func (s *Store) backoff() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = 50*time.Millisecond, 2*time.Second
	return b
}

func (s *Secrets) clone() Secrets {
	c := *s
	c.Properties, c.Session, c.Fields = maps.Clone(s.Properties), maps.Clone(s.Session), maps.Clone(s.Fields)
	if s.OAuth2 != nil {
		t := *s.OAuth2
		c.OAuth2 = &t
	}
	return c
}

// expiry is the earlier of the token's and the session's (session_expires).
func (s *Secrets) expiry() time.Time {
	var at time.Time
	if s.OAuth2 != nil {
		at = s.OAuth2.Expiry
	}
	if e, ok := ParseExpiry(s.Session["session_expires"]); ok && (at.IsZero() || e.Before(at)) {
		at = e
	}
	return at
}

func clipText(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}
