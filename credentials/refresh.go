package credentials

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	mrand "math/rand/v2"
	"strings"
	"sync"
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
	// Answered, if set, is asked once the lease is taken: true ends the refresh
	// with nothing asked, because what was wanted is known by now.
	Answered func(*Credential) bool
	// Settings is what the connector and its settings are, in short; a refusal
	// of them is remembered with it.
	Settings string
	// Client, if set, tells who asks: a refusal of it counts for all its credentials.
	Client func(*Credential) Client
	// Asked is when a person asked for this refresh, by the clock of Redis; zero:
	// nobody did. What has been found out of the client since is the answer.
	Asked time.Time
	// Trace, if set, is the refresh's trace context, asked for once the provider has
	// answered: it is kept with the last refresh.
	Trace func() string
}

// trace is what is kept of the refresh's trace context.
func (r *RefreshRequest) trace() string {
	if r.Trace == nil {
		return ""
	}
	return r.Trace()
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
	// Held: nothing was asked because the client is refused, and this credential
	// is held for it from now on. Freed: it is no more, so others can go on.
	Held, Freed bool
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
	if err == nil && t.answer != "" {
		if newerSeal([]byte(t.answer)) { // what was sent for it may be spent
			err = &NewerError{What: fmt.Sprintf("the answer kept of credential %q", r.ID)}
		}
		// Sealed by another key, it is asked for anew.
		c.Answer, _ = s.keys.open(answerPurpose(c), []byte(t.answer))
	}
	if err == nil && (c.Version != t.version || r.Answered != nil && r.Answered(c)) {
		err = ErrNotFound
	}
	if err != nil {
		_ = releaseScript.Run(context.WithoutCancel(ctx), s.rdb, []string{credKey(r.ID)}, owner).Err()
		if errors.Is(err, ErrNotFound) {
			return RefreshResult{Outcome: OutcomeNewer, Version: r.Version}, nil
		}
		return RefreshResult{}, err
	}
	if r.Client != nil {
		if t.client = r.Client(c); t.client.Key != "" {
			g, digest, err := s.enter(ctx, r, t.client, owner)
			if err != nil {
				_ = releaseScript.Run(context.WithoutCancel(ctx), s.rdb, []string{credKey(r.ID)}, owner).Err()
				return RefreshResult{}, err
			}
			if g.way == "refused" {
				return s.holdForClient(ctx, r, owner, t, g)
			}
			t.trial, t.digest, t.letIn = g.way == "trial", digest, g.at
		}
	}
	t.connector = c.Connector
	killpoint.KillPoint("refresh-before-send")
	renewal, err := s.ask(ctx, r.ID, owner, c, do)
	killpoint.KillPoint("refresh-answered")
	if err == nil && renewal == nil {
		err = &RefreshError{Verdict: Transient, Text: "the refresh brought nothing"}
	}
	if err == nil && renewal.Tested {
		return s.tested(ctx, r, owner, t)
	}
	if err == nil {
		res, err := s.save(ctx, r, owner, c, renewal)
		if err == nil {
			res.Freed = s.accepted(ctx, r, t, true)
		}
		return res, err
	}
	var verdict *RefreshError
	if !errors.As(err, &verdict) {
		verdict = &RefreshError{Verdict: Transient, Text: "the refresh could not be made"}
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
			verdict = &RefreshError{Verdict: Unknown, Text: "no answer came in time"}
		}
	}
	return s.remember(ctx, r, owner, t, verdict)
}

// ask makes the request within the deadline, and keeps the lease meanwhile.
func (s *Store) ask(ctx context.Context, id, owner string, c *Credential, do RefreshFunc) (*Renewal, error) {
	callCtx, cancel := context.WithCancelCause(ctx)
	// In two steps: a process that was stopped past the deadline has a moment to
	// read the answer that came meanwhile.
	grace := min(readGrace, s.deadline/4)
	deadline := time.AfterFunc(s.deadline-grace, func() {
		time.AfterFunc(grace, func() { cancel(context.DeadlineExceeded) })
	})
	defer deadline.Stop()
	defer cancel(nil)
	done := make(chan struct{})
	var watch sync.WaitGroup
	watch.Add(1)
	go func() {
		defer watch.Done()
		tick := time.NewTicker(s.lease / 12)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			kept, err := keepScript.Run(callCtx, s.rdb, []string{credKey(id)}, owner, c.Version, s.lease.Milliseconds()).Bool()
			if err == nil && !kept {
				cancel(context.Canceled) // a person has replaced or deleted it: the answer would be void
				return
			}
		}
	}()
	renewal, err := do(callCtx, c)
	close(done)
	watch.Wait()
	return renewal, err
}

// answerMax is how large an answer without a token may be to be kept.
const answerMax = 64 << 10

func answerPurpose(c *Credential) string {
	return "answer\x00" + sealPurpose(c.ID, c.Connector, c.Version)
}

// readGrace is the end of a request's deadline, in which only an answer that
// has come already can still be read.
const readGrace = time.Second

type taken struct {
	owner      string
	connector  string
	version    int64
	unanswered int64 // requests of this version whose answer never came
	failures   int64
	heard      int64 // passwords in a row that were neither taken nor refused
	deadline   time.Time
	result     RefreshResult // set: not taken

	answer string // kept of an earlier request, sealed

	client Client // who asks
	trial  bool   // whether its refusal still stands
	digest string // of its settings
	letIn  int64  // when (ms, by Redis's clock)
}

func (s *Store) take(ctx context.Context, r RefreshRequest, owner string) (taken, error) {
	force := 0
	if r.Force {
		force = 1
	}
	out, err := takeScript.Run(ctx, s.rdb, []string{credKey(r.ID)}, owner, r.Version, s.lease.Milliseconds(), s.deadline.Milliseconds(), force, heardField(r.Kind)).StringSlice()
	if err != nil {
		return taken{}, err
	}
	switch out[0] {
	case "taken":
		return taken{owner: owner, version: num(out[1]), unanswered: num(out[2]), failures: num(out[3]), deadline: parseMillis(out[4]), answer: out[5], heard: num(out[6])}, nil
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
	secrets := c.Secrets.renewed(renewal)
	plain, err := secrets.encode()
	if err != nil {
		return RefreshResult{}, err
	}
	sealed := s.keys.seal(sealPurpose(c.ID, c.Connector, c.Version+1), plain)
	issued, sessionIssued := any(""), any("")
	if renewal.Token != nil {
		issued = millis(now)
	}
	if len(renewal.Session) > 0 {
		sessionIssued = millis(now)
	}
	res := RefreshResult{Outcome: OutcomeRenewed}
	verdict, state, text, refused := Renewed, Active, "", Kind("")
	if renewal.Token != nil && !secrets.Opened {
		refused = Opening
	}
	if e := renewal.Problem; e != nil {
		res.Err, verdict, text = e, e.Verdict, clipText(e.Text, 500)
		switch e.Verdict {
		case VerdictRevoked:
			state, res.Outcome = Revoked, OutcomeRevoked
		case VerdictMisconfigured:
			state, refused, res.Outcome = Misconfigured, r.Kind, OutcomeMisconfigured
		default:
			refused, res.Outcome, res.RetryAt = r.Kind, OutcomeTransient, now.Add(max(e.RetryAfter, s.firstWait))
		}
	}
	last, err := json.Marshal(LastRefresh{At: now.UTC().Truncate(time.Millisecond), Kind: r.Kind, Verdict: verdict, Status: renewal.Status, Trace: r.trace()})
	if err != nil {
		return RefreshResult{}, err
	}
	run := func(ctx context.Context) ([]string, error) {
		return s.change(ctx, saveScript, r.ID, []string{versionKey(r.ID)}, owner, c.Version, sealed,
			millis(secrets.tokenExpiry()), issued, millis(secrets.sessionExpiry(renewal.Skew)), sessionIssued, last, millis(now),
			string(state), text, millis(res.RetryAt), string(refused), heardField(r.Kind), r.Settings).StringSlice()
	}
	waits := s.backoff()
	for {
		out, err := run(ctx)
		if err == nil {
			killpoint.KillPoint("refresh-saved")
			switch out[0] {
			case "saved":
				res.Version = num(out[1])
				s.mu.Lock()
				s.unconfirmed = append(s.unconfirmed, &unconfirmed{id: r.ID, version: res.Version, first: time.Now(), saved: time.Now(), again: run})
				s.mu.Unlock()
				return res, nil
			case "gone":
				return RefreshResult{Outcome: OutcomeGone}, nil
			default:
				return RefreshResult{Outcome: OutcomeNewer, Version: c.Version}, nil
			}
		}
		time.Sleep(waits.NextBackOff()) // Redis is away, or refuses writes
	}
}

// tested notes that the test method has answered.
func (s *Store) tested(ctx context.Context, r RefreshRequest, owner string, t taken) (RefreshResult, error) {
	out, err := s.change(context.WithoutCancel(ctx), testedScript, r.ID, nil, owner, t.version).StringSlice()
	switch {
	case err != nil:
		return RefreshResult{}, err // the lease lapses, and it is asked again
	case out[0] == "gone":
		return RefreshResult{Outcome: OutcomeGone}, nil
	}
	return RefreshResult{Outcome: OutcomeNewer, Version: t.version}, nil
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
		// Neither success nor refusal: wait the request out, then try once. If
		// that one is not answered either, only now and then.
		keepIntent, next = 1, t.deadline
		if t.unanswered > 0 {
			next = now.Add(min(s.lease<<min(t.unanswered, 10), longestBlock))
		}
	default:
		res.Outcome = OutcomeTransient
	}
	if e.RetryAfter > 0 {
		next = now.Add(e.RetryAfter)
	}
	client, news := "", 0
	if e.Client && t.client.Key != "" {
		// Before the credential's own state: whoever comes now asks no more.
		all, first, until, err := s.refuseClient(ctx, r, t.client.Key, t.digest, owner, clipText(e.Text, 500))
		if err != nil {
			return res, fmt.Errorf("remembering a refused client: %w", err) // the intent stands, and is waited out
		}
		if all {
			client, state, next = t.client.Key, "", until
			if first {
				news = 1
			}
		}
	}
	counts := 0
	if e.Counts && res.Outcome == OutcomeTransient {
		counts = 1
		if pause := loginPause(t.heard + 1); pause > 0 {
			e.Text = fmt.Sprintf("%d logins in a row were neither taken nor refused, so the next one waits, lest the server bans us: %s", t.heard+1, e.Text)
			if at := now.Add(pause); at.After(next) {
				next = at
			}
		}
	}
	if state == "" {
		res.RetryAt = next
	}
	last, err := json.Marshal(LastRefresh{At: now.UTC().Truncate(time.Millisecond), Kind: r.Kind, Verdict: e.Verdict, Status: e.Status, Trace: r.trace()})
	if err != nil {
		return RefreshResult{}, err
	}
	answer := []byte(nil)
	if len(e.Answer) > 0 && len(e.Answer) <= answerMax {
		answer = s.keys.seal(answerPurpose(&Credential{ID: r.ID, Connector: t.connector, Version: t.version}), e.Answer)
	}
	waits := s.backoff()
	for begun := now; ; {
		out, err := s.change(ctx, failScript, r.ID, nil, owner, t.version, string(state), clipText(e.Text, 500), millis(next), last, keepIntent, millis(now), r.Settings, client, answer, heardField(r.Kind), counts, news).StringSlice()
		if err == nil {
			if client == "" { // asked, it refused the account, and not the client
				res.Freed = s.accepted(ctx, r, t, e.Verdict == VerdictRevoked && e.Status != 0)
			} else if news == 1 && out[0] == "failed" {
				_ = s.newsTold(ctx, client) // else people may be told once more
			}
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

// holdForClient gives the lease back unused: the client is refused, so this
// credential is held as its others are.
func (s *Store) holdForClient(ctx context.Context, r RefreshRequest, owner string, t taken, g gate) (RefreshResult, error) {
	ctx = context.WithoutCancel(ctx)
	last := []byte(nil)
	if r.Force { // who asked is answered
		now := time.Now().UTC().Truncate(time.Millisecond)
		var err error
		if last, err = json.Marshal(LastRefresh{At: now, Kind: r.Kind, Verdict: VerdictMisconfigured}); err != nil {
			return RefreshResult{}, err
		}
	}
	held, err := holdScript.Run(ctx, s.rdb, []string{credKey(r.ID)}, owner, t.version, t.client.Key, last, millis(time.Now())).Bool()
	if err != nil {
		return RefreshResult{}, err // the lease lapses, and it is found out again
	}
	return RefreshResult{Outcome: OutcomeMisconfigured, Version: t.version, RetryAt: g.next, Held: held}, nil
}

// accepted notes whether the provider's answer says that it accepts the client;
// freed is true if that ends a refusal. Redis may be away: then the next one
// notes it.
func (s *Store) accepted(ctx context.Context, r RefreshRequest, t taken, yes bool) (freed bool) {
	if t.client.Key == "" {
		return false
	}
	ctx = context.WithoutCancel(ctx)
	if yes {
		freed, _ = s.acceptClient(ctx, t.client.Key, r.ID, t.owner, t.digest, t.letIn)
	}
	if t.trial && !freed {
		_ = s.endTrial(ctx, t.client.Key, t.owner)
	}
	return freed
}

// delay is how long to wait after the n-th failure in a row.
func (s *Store) delay(n int64) time.Duration {
	d := min(s.firstWait<<min(n, 20), s.lastWait)
	return d/2 + mrand.N(d/2+1)
}

// The login budget: some servers ban who has sent a password five times
// without success.
const (
	freeLogins  = 2 // in a row, at the pace of any other failure
	firstPause  = 15 * time.Minute
	longestWait = time.Hour
)

// loginPause is how long to wait after the n-th login in a row that was neither
// taken nor refused; 0: as after any failure.
func loginPause(n int64) time.Duration {
	if n <= freeLogins {
		return 0
	}
	d := min(firstPause<<min(n-freeLogins-1, 10), longestWait)
	return d + mrand.N(d/10)
}

func heardField(k Kind) string { return "heard:" + string(k) }

func (s *Store) backoff() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = 50*time.Millisecond, time.Second
	return b
}

func (s *Secrets) clone() Secrets {
	c := *s
	c.Properties, c.Session, c.Fields = maps.Clone(s.Properties), maps.Clone(s.Session), maps.Clone(s.Fields)
	if s.OAuth2 != nil {
		t := *s.OAuth2
		c.OAuth2 = &t
	}
	if s.OAuth1 != nil {
		o := *s.OAuth1
		c.OAuth1 = &o
	}
	return c
}

func (s *Secrets) tokenExpiry() time.Time {
	if s.OAuth2 == nil {
		return time.Time{}
	}
	return s.OAuth2.Expiry
}

// sessionExpiry is session_expires, as the login found it or as it was put, by
// our clock: the one it was told by is ahead of it by skew.
func (s *Secrets) sessionExpiry(skew time.Duration) time.Time {
	text, ok := s.Session["session_expires"]
	if !ok {
		text = strings.Trim(string(s.Properties["session_expires"]), `"`)
	}
	at, ok := ParseExpiry(text)
	if !ok {
		return time.Time{}
	}
	return at.Add(-skew)
}

func clipText(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}
