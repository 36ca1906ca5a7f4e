package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/hibiken/asynq"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/killpoint"
)

// Kinds of credential:refresh tasks beyond credentials.OAuth2 and Session.
const (
	kindForced = "forced" // a person asked: whatever the credential needs
	kindResume = "resume" // nothing to renew, only to resume
)

const (
	refreshTaskTimeout = 10 * time.Minute // a save may wait for Redis
	refreshers         = 256              // at once in one process
	// connectorShare is how many requests one connector may have under way, and
	// connectorWaits how many may wait for those: its token endpoint may hang, and
	// the others' refreshes must go on.
	connectorShare = 16
	connectorWaits = 48
	// hintEvery bounds how often one refresh is asked for again.
	hintEvery = 10 * time.Second
)

// refreshVersion is the newest version of a refresh's payload that this build
// reads, and the one that it writes.
const refreshVersion = 1

// refreshTask is the payload of credential:refresh. Members that a build does not
// know it ignores; what it must not ignore has the next version.
type refreshTask struct {
	V            int    `json:"v,omitempty"` // its version; left out: 1
	CredentialID string `json:"credential_id"`
	Version      int64  `json:"version"`
	Kind         string `json:"kind"`
	// Seen is when the last refresh had ended (ms) that a person saw who asks for
	// a forced one: another one is the answer.
	Seen int64 `json:"seen,omitempty"`
	// Until is how long a forced one is tried again (ms), where it fails
	// transiently: longer than anybody waits for it.
	Until int64 `json:"until,omitempty"`
	// Asked is when a forced one was asked for (ms), by the clock of Redis, as
	// what has been found out of clients is.
	Asked int64 `json:"asked,omitempty"`
}

// sees says that a refresh ended since it was asked for. Which of two times is
// the later one does not tell: they are of two workers' clocks.
func (r *refreshTask) sees(lr *credentials.LastRefresh) bool {
	return lr != nil && lr.At.UnixMilli() != r.Seen
}

// forcedFor is how long a forced refresh is tried.
const forcedFor = 2 * time.Minute

// askRefresh makes sure that a refresh of this version is asked for. The task
// is only a hint: in each time slot it has a new id, so one that is archived,
// or active under a dead worker, blocks nothing for longer than that.
func (p *Pool) askRefresh(ctx context.Context, credential string, version int64, kind credentials.Kind) error {
	slot := time.Now().UnixNano() / int64(hintEvery)
	key := fmt.Sprintf("%s:%d:%s", credential, version, kind)
	if last, ok := p.asked.Load(key); ok && last == slot {
		return nil // this process has asked already
	}
	if p.askedCount.Add(1)%10_000 == 0 {
		p.asked.Clear()
	}
	err := p.client.hint(ctx, refreshTask{CredentialID: credential, Version: version, Kind: string(kind)}, strconv.FormatInt(slot, 36))
	if err == nil {
		p.asked.Store(key, slot)
	}
	return err
}

// processRefresh runs one task of the refresh queue.
func (p *Pool) processRefresh(ctx context.Context, t *asynq.Task) error {
	if t.Type() == TypeCancel {
		return p.canceller.process(ctx, t)
	}
	var r refreshTask
	if err := json.Unmarshal(t.Payload(), &r); err != nil || r.CredentialID == "" {
		return fmt.Errorf("the payload cannot be understood: %w", asynq.SkipRetry)
	}
	if r.V > refreshVersion {
		return p.workerFault((&newerError{r.V, refreshVersion}).Error())
	}
	switch credentials.Kind(r.Kind) {
	case credentials.OAuth2, credentials.Session, credentials.Opening, credentials.Testing, kindForced, kindResume:
	default:
		return fmt.Errorf("the payload cannot be understood: no refresh is of kind %q: %w", clip(r.Kind, 40), asynq.SkipRetry)
	}
	if r.Kind == kindResume {
		return p.resume(ctx, r.CredentialID)
	}
	if p.settling(ctx, r.CredentialID) {
		return putOff("redis was away, or another server took over", redisGap)
	}
	force := r.Kind == kindForced
	cred, err := p.cfg.Store.Get(ctx, r.CredentialID)
	var sealed *credentials.SealError
	switch {
	case errors.Is(err, credentials.ErrNotFound):
		return p.resume(ctx, r.CredentialID) // they fail, and say so
	case errors.As(err, &sealed):
		if err := p.cfg.Store.VerifyKeys(ctx); err != nil {
			return p.workerFault("its keys do not open the check value sealed at first start")
		}
		return nil // executions are held; a put makes it right
	case err != nil:
		if fault := p.newerFault(err); fault != nil {
			return fault
		}
		return putOff("redis cannot be used", 5*time.Second)
	}
	if err := p.noteUnknown(ctx, cred); err != nil {
		return putOff("redis cannot be used", 5*time.Second)
	}
	def, ok := p.cfg.Catalog.Get(cred.Connector)
	if !ok {
		// Another worker may. Somebody waits for the answer to a forced one; what
		// executions need is asked for again as long as they wait.
		if !force || time.Now().UnixMilli() > r.Until {
			return nil
		}
		return putOff(fmt.Sprintf("this worker does not know connector %q", cred.Connector), 5*time.Second)
	}
	own, ok := def.For(cred)
	if !ok {
		return p.noAuthentication(ctx, cred, force)
	}
	def = own
	// Somebody else's question may have been answered meanwhile, and it is the same.
	answered := func(c *credentials.Credential) bool {
		lr := c.Meta.LastRefresh
		ended := r.sees(lr) && lr.Verdict != credentials.Transient && lr.Verdict != credentials.Unknown
		return r.Kind == kindForced && (ended || r.Version != 0 && c.Version > r.Version)
	}
	failedSince := func(c *credentials.Credential) bool {
		lr := c.Meta.LastRefresh
		return force && r.sees(lr) && c.Meta.NextTry.After(time.Now())
	}
	if answered(cred) {
		return p.resume(ctx, r.CredentialID)
	}
	if failedSince(cred) { // it was tried at once: from now on with patience
		if time.Now().UnixMilli() > r.Until {
			return nil
		}
		return putOff("it failed, and is tried again", max(time.Until(cred.Meta.NextTry), time.Second))
	}
	done, ok := p.takeShare(ctx, def.Name)
	if !ok {
		return putOff("other refreshes of the connector come first", time.Second)
	}
	defer done()
	kind := credentials.Kind(r.Kind)
	if r.Kind == kindForced {
		var note *credentials.RefreshError
		if kind, note = p.forcedKind(def, cred); note != nil {
			if err := p.cfg.Store.Note(ctx, cred.ID, cred.Version, credentials.Session, note); err != nil {
				return putOff("redis cannot be used", 5*time.Second)
			}
			return nil
		}
		r.Version = cred.Version
	}
	if kind == credentials.Testing && (!cred.Meta.Refused || cred.Meta.RefusedKind != credentials.Testing) {
		return p.resume(ctx, r.CredentialID) // it has answered
	}
	if kind == credentials.Opening {
		if !cred.Meta.Refused || cred.Meta.RefusedKind != credentials.Opening {
			return p.resume(ctx, r.CredentialID) // it is open
		}
		return p.opened(ctx, def, cred, r.Kind == kindForced, p.traceRefresh(kind))
	}
	asked := kind
	if kind == kindTest || kind == credentials.Testing {
		asked = credentials.Session
	}
	request := p.cfg.Caller.RefreshRequest(def, cred, asked)
	request.Version, request.Force = r.Version, force
	if r.Asked != 0 {
		request.Asked = time.UnixMilli(r.Asked)
	}
	request.Answered = func(c *credentials.Credential) bool { return answered(c) || failedSince(c) }
	traced := p.traceRefresh(kind)
	defer traced.end()
	request.Trace = traced.text
	var before replaced
	var asking asking
	res, err := p.cfg.Store.Refresh(ctx, request, traced.around(asking.time(
		func(ctx context.Context, c *credentials.Credential) (*credentials.Renewal, error) {
			p.observe(Moment{What: "refreshing", CredentialID: c.ID, Connector: c.Connector}, nil)
			if kind == kindTest || kind == credentials.Testing {
				if err := p.cfg.Caller.Test(ctx, def, c); err != nil {
					return nil, err
				}
				return &credentials.Renewal{Opened: true, Tested: kind == credentials.Testing}, nil
			}
			return before.note(c)(p.cfg.Caller.Refresh(ctx, def, c, kind))
		})))
	traced.outcome(ctx, cred.ID, res, err)
	ctx = traced.context(ctx)
	if err == nil {
		p.metrics.refreshed(cred.Connector, kind, &asking, res)
	}
	if err == nil && res.Freed {
		p.log.InfoContext(ctx, "the provider accepts the client again", "connector", cred.Connector)
		p.wakeSweeper() // the others of that client
	}
	if err == nil && res.Outcome == credentials.OutcomeRenewed && kind == credentials.OAuth2 {
		renewed, err := p.cfg.Store.Get(ctx, cred.ID)
		if err == nil && renewed.Version == res.Version && renewed.Meta.RefusedKind == credentials.Opening && renewed.Meta.Refused {
			return p.opened(ctx, def, renewed, r.Kind == kindForced, traced)
		}
	}
	ended := p.refreshed(ctx, cred, kind, r.Kind == kindForced)(res, err)
	p.logout(ctx, def, before, res)
	return ended
}

// noAuthentication ends a refresh of a credential whose authentication the
// connector does not have: those who wait fail, and say so, and who asked is told.
func (p *Pool) noAuthentication(ctx context.Context, cred *credentials.Credential, force bool) error {
	if force {
		note := &credentials.RefreshError{Verdict: credentials.VerdictMisconfigured} // noteUnknown has the text
		if err := p.cfg.Store.Note(ctx, cred.ID, cred.Version, credentials.Session, note); err != nil {
			return putOff("redis cannot be used", 5*time.Second)
		}
	}
	return p.resume(ctx, cred.ID)
}

// kindTest is a forced refresh where nothing can be renewed: the test method's
// answer decides.
const kindTest credentials.Kind = "forced test"

// forcedKind is what a credential needs when a person asks for a refresh; a
// note says why nothing can be done.
func (p *Pool) forcedKind(def *definition.Connector, cred *credentials.Credential) (credentials.Kind, *credentials.RefreshError) {
	nothing := func(text string) (credentials.Kind, *credentials.RefreshError) {
		return "", &credentials.RefreshError{Verdict: credentials.VerdictMisconfigured, Text: text}
	}
	oauth2, session := p.cfg.Caller.CanRefresh(def, cred)
	switch {
	case cred.Meta.Refused && cred.Meta.RefusedKind == credentials.Opening:
		return credentials.Opening, nil
	case oauth2:
		if t := cred.Secrets.OAuth2; def.Auth.Grant == "authorization_code" && t != nil && t.RefreshToken.Empty() && !t.AccessToken.Empty() &&
			!cred.Meta.Refused && cred.Meta.State == credentials.Active && !cred.Meta.Token.Over(time.Now()) {
			return nothing("there is no refresh token, so nothing was asked; the access token that is stored goes on being used")
		}
		return credentials.OAuth2, nil
	case session:
		return credentials.Session, nil
	case def.TestMethod != "":
		return kindTest, nil
	}
	return nothing(fmt.Sprintf("connector %q has nothing to renew and no test method: put the credential again", def.Name))
}

// share is what one connector has of this process's refreshers.
type share struct {
	running chan struct{}
	waiting atomic.Int64
}

// takeShare takes one of the connector's refreshes at once in this process. It
// waits a moment for it: most token endpoints answer soon.
func (p *Pool) takeShare(ctx context.Context, connector string) (done func(), ok bool) {
	kept, _ := p.shares.LoadOrStore(connector, &share{running: make(chan struct{}, connectorShare)})
	s := kept.(*share)
	done = func() { <-s.running }
	select {
	case s.running <- struct{}{}:
		return done, true
	default:
	}
	defer s.waiting.Add(-1)
	if s.waiting.Add(1) > connectorWaits {
		return nil, false
	}
	wait := time.NewTimer(time.Second)
	defer wait.Stop()
	select {
	case s.running <- struct{}{}:
		return done, true
	case <-wait.C:
	case <-ctx.Done():
	}
	return nil, false
}

// putOff has a refresh task looked at again.
func putOff(text string, delay time.Duration) error {
	return &waitError{why: whyDeferred, text: "refresh: " + clip(text, 400), delay: delay + rand.N(delay/4+1)}
}

// opened finishes a credential whose first token is stored: the login method and
// the test method run once. The token came first, because it must not be lost;
// until they have run nobody calls with it.
func (p *Pool) opened(ctx context.Context, def *definition.Connector, cred *credentials.Credential, force bool, traced *refreshTrace) error {
	defer traced.end()
	kind := credentials.OAuth2
	if def.LoginMethod != "" {
		kind = credentials.Session
	}
	request := p.cfg.Caller.RefreshRequest(def, cred, kind)
	request.Force, request.Client, request.Trace = force, nil, traced.text // no token is asked for
	var before replaced
	var asking asking
	res, err := p.cfg.Store.Refresh(ctx, request, traced.around(asking.time(
		func(ctx context.Context, c *credentials.Credential) (*credentials.Renewal, error) {
			return before.note(c)(p.cfg.Caller.Open(ctx, def, c))
		})))
	traced.outcome(ctx, cred.ID, res, err)
	ctx = traced.context(ctx)
	if err == nil {
		p.metrics.refreshed(cred.Connector, credentials.Opening, &asking, res)
	}
	ended := p.refreshed(ctx, cred, credentials.Opening, force)(res, err)
	p.logout(ctx, def, before, res)
	return ended
}

// replaced is a credential as it was before a login found another session.
type replaced struct {
	cred    *credentials.Credential
	session map[string]string // the new one
}

func (r *replaced) note(c *credentials.Credential) func(*credentials.Renewal, error) (*credentials.Renewal, error) {
	return func(renewal *credentials.Renewal, err error) (*credentials.Renewal, error) {
		if err == nil && renewal != nil && len(renewal.Session) > 0 {
			*r = replaced{c, renewal.Session}
		}
		return renewal, err
	}
}

// logoutTimeout bounds a logout: nobody waits for it but this refresher, which
// the connector's share holds back meanwhile.
const logoutTimeout = 10 * time.Second

// logout ends the old session, once the new one is stored, the lease given back
// and who waited resumed. It is tried once, and nothing depends on it.
func (p *Pool) logout(ctx context.Context, def *definition.Connector, before replaced, res credentials.RefreshResult) {
	if before.cred == nil || res.Outcome != credentials.OutcomeRenewed {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, logoutTimeout)
	defer cancel()
	if err := p.cfg.Caller.Logout(ctx, def, before.cred, before.session); err != nil {
		p.log.InfoContext(ctx, "the old session could not be logged out", "credential_id", before.cred.ID, "connector", def.Name, "error", clip(err.Error(), 500))
	}
}

// refreshed returns what has to be done once a refresh has ended; somebody
// waits for the answer to a forced one.
func (p *Pool) refreshed(ctx context.Context, cred *credentials.Credential, kind credentials.Kind, forced bool) func(credentials.RefreshResult, error) error {
	return func(res credentials.RefreshResult, err error) error {
		if fault := p.newerFault(err); fault != nil {
			return fault
		}
		if err != nil {
			p.log.ErrorContext(ctx, "refresh could not be done", "credential_id", cred.ID, "connector", cred.Connector, "kind", kind, "error", err.Error())
			return putOff("redis cannot be used", 5*time.Second)
		}
		log := p.log.With("credential_id", cred.ID, "connector", cred.Connector, "kind", kind, "outcome", res.Outcome, "version", res.Version)
		text := ""
		if res.Err != nil {
			text = res.Err.Text
		}
		if res.Err != nil {
			fields := []any{"status", res.Err.Status, "error", text}
			if !res.RetryAt.IsZero() {
				fields = append(fields, "next_try", res.RetryAt)
			}
			log.WarnContext(ctx, "refresh failed", fields...)
			p.observe(Moment{What: "refresh_failed", CredentialID: cred.ID, Connector: cred.Connector, Text: text}, nil)
		}
		switch res.Outcome {
		case credentials.OutcomeRenewed:
			p.countWaiting(ctx, cred)
			log.InfoContext(ctx, "credential renewed")
			p.observe(Moment{What: "refreshed", CredentialID: cred.ID, Connector: cred.Connector}, nil)
			return p.resume(ctx, cred.ID)
		case credentials.OutcomeNewer, credentials.OutcomeGone:
			return p.resume(ctx, cred.ID)
		case credentials.OutcomeRevoked, credentials.OutcomeMisconfigured:
			if res.Err != nil || res.Held { // just now
				p.resumer.look(ctx, cred.ID)
			}
			return nil
		case credentials.OutcomeBusy, credentials.OutcomeLater:
			if !forced {
				return nil // its holder, or the sweeper, sees to those who wait
			}
		}
		return putOff(res.Outcome+" "+text, max(time.Until(res.RetryAt), time.Second))
	}
}

// countWaiting counts who waited for a refresh that has succeeded.
func (p *Pool) countWaiting(ctx context.Context, cred *credentials.Credential) {
	if n, err := p.cfg.Store.Waiting(ctx, cred.ID); err == nil {
		p.metrics.refreshGroup.WithLabelValues(p.metrics.connector(cred.Connector)).Observe(float64(n))
	}
}

// nothingToRenew handles an exception on a connector where neither a token nor
// a session can be renewed: the test method decides, once for the version.
func (a *attempt) nothingToRenew(ctx context.Context, e *connectors.AuthError, failure *ResultError) error {
	failure.Message = fmt.Sprintf("the API refused the credential (%s), and %s", e.Text, e.CannotRenew())
	if a.def.TestMethod == "" {
		failure.Message += "; without post_install.test_auth_method nothing can tell whether the credential is dead"
		if a.cred.Meta.Denied == "" {
			if err := a.p.cfg.Store.NoteDenied(ctx, a.cred.ID, e.Version, a.meth.Name, failure.Message); err != nil {
				return a.p.workerFault("redis cannot be written")
			}
		}
		return a.failCode(ctx, failure, e.Status)
	}
	if a.cred.Meta.Tested {
		failure.Message = fmt.Sprintf("method %q was refused (%s) while the test method answers: check the account's permissions", a.meth.Name, e.Text)
		return a.failCode(ctx, failure, e.Status)
	}
	// What comes of the test counts for all who were refused.
	return a.park(ctx, refusal{kind: credentials.Testing, version: e.Version, text: e.Text, refused: true})
}

// adoptSession stores the session that a script found in the refusal itself:
// the new session, without a login.
func (a *attempt) adoptSession(ctx context.Context, e *connectors.AuthError) error {
	res, err := a.p.cfg.Store.Refresh(ctx, credentials.RefreshRequest{ID: a.cred.ID, Version: e.Version, Kind: credentials.Session, Trace: a.traced},
		func(context.Context, *credentials.Credential) (*credentials.Renewal, error) {
			return &credentials.Renewal{Session: e.Session, Opened: true}, nil
		})
	if err != nil {
		return a.p.workerFault("redis cannot be written")
	}
	switch res.Outcome {
	case "renewed":
		a.rec.parkedAt, a.rec.forRefusal = e.Version, true
		a.rec.since = a.at.UnixMilli()
		fallthrough
	case "newer":
		if err := a.p.resume(ctx, a.cred.ID); err != nil {
			a.p.log.WarnContext(ctx, "resume is left to the sweeper", a.ids()...)
		}
		return a.again(ctx)
	}
	return a.park(ctx, refusal{kind: credentials.Session, version: e.Version, text: e.Text, refused: true})
}

// resume puts the executions that wait for a credential back to pending, in
// about the order in which they parked.
func (p *Pool) resume(ctx context.Context, credential string) error {
	killpoint.KillPoint("resuming")
	_, _ = p.line.look(ctx, credential) // a pause may have been ended; else the sweeper looks
	return p.resumer.run(ctx, credential)
}
