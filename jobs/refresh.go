package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/hibiken/asynq"

	"github.com/stepworker/stepworker/connectors"
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
	refreshers         = 64               // at once in one process
	// hintEvery bounds how often one refresh is asked for again.
	hintEvery = 10 * time.Second
)

// refreshTask is the payload of credential:refresh.
type refreshTask struct {
	CredentialID string `json:"credential_id"`
	Version      int64  `json:"version"`
	Kind         string `json:"kind"`
}

// askRefresh makes sure that a refresh of this version is asked for. The task
// is only a hint: in each time slot it has a new id, so one that is archived,
// or active under a dead worker, blocks nothing for longer than that.
func (p *Pool) askRefresh(ctx context.Context, credential string, version int64, kind credentials.Kind) error {
	slot := time.Now().UnixNano() / int64(hintEvery)
	key := fmt.Sprintf("%s:%d:%s", credential, version, kind)
	if last, ok := p.asked.Load(key); ok && last == slot {
		return nil // this process has asked already
	}
	err := p.client.hint(ctx, refreshTask{CredentialID: credential, Version: version, Kind: string(kind)}, strconv.FormatInt(slot, 36))
	if err == nil {
		p.asked.Store(key, slot)
	}
	return err
}

// processRefresh runs one credential:refresh task.
func (p *Pool) processRefresh(ctx context.Context, t *asynq.Task) error {
	var r refreshTask
	if err := json.Unmarshal(t.Payload(), &r); err != nil || r.CredentialID == "" {
		return fmt.Errorf("the payload cannot be understood: %w", asynq.SkipRetry)
	}
	if r.Kind == kindResume {
		return p.resume(ctx, r.CredentialID)
	}
	kind := credentials.Kind(r.Kind)
	force := r.Kind == kindForced
	cred, err := p.cfg.Store.Get(ctx, r.CredentialID)
	var sealed *credentials.SealError
	switch {
	case errors.Is(err, credentials.ErrNotFound):
		return p.resume(ctx, r.CredentialID) // they fail, and say so
	case errors.As(err, &sealed):
		return nil // executions are held; a put makes it right
	case err != nil:
		return &waitError{why: "worker", text: "redis cannot be read", delay: 5 * time.Second}
	}
	def, ok := p.cfg.Catalog.Get(cred.Connector)
	if !ok {
		return &waitError{why: whyDeferred, text: fmt.Sprintf("this worker does not know connector %q", cred.Connector), delay: 5 * time.Second}
	}
	if force {
		oauth2, session := p.cfg.Caller.CanRefresh(def, cred)
		switch {
		case oauth2:
			kind = credentials.OAuth2
		case session:
			kind = credentials.Session
		default:
			return p.refreshByTest(ctx, def, cred)
		}
		if r.Version == 0 {
			r.Version = cred.Version
		}
	}
	res, err := p.cfg.Store.Refresh(ctx, credentials.RefreshRequest{ID: r.CredentialID, Version: r.Version, Kind: kind, Force: force},
		func(ctx context.Context, c *credentials.Credential) (*credentials.Renewal, error) {
			p.observe(Moment{What: "refreshing", CredentialID: c.ID, Connector: c.Connector}, nil)
			return p.cfg.Caller.Refresh(ctx, def, c, kind)
		})
	if err != nil {
		p.log.Error("refresh could not be done", "credential_id", r.CredentialID, "error", err.Error())
		return &waitError{why: "worker", text: "redis cannot be used", delay: 5 * time.Second}
	}
	if res.Outcome == credentials.OutcomeRenewed {
		if res, err = p.open(ctx, def, r.CredentialID, kind, res); err != nil {
			return &waitError{why: "worker", text: "redis cannot be used", delay: 5 * time.Second}
		}
	}
	return p.refreshed(ctx, cred, kind, res)
}

// open finishes a credential whose first token was just stored: the login
// method and the test method run once. The token comes first, because it must
// not be lost; until they have run, executions that wait are not resumed.
func (p *Pool) open(ctx context.Context, def *connectors.Definition, id string, kind credentials.Kind, renewed credentials.RefreshResult) (credentials.RefreshResult, error) {
	cred, err := p.cfg.Store.Get(ctx, id)
	if err != nil || cred.Secrets.Opened || cred.Version != renewed.Version {
		return renewed, nil
	}
	return p.cfg.Store.Refresh(ctx, credentials.RefreshRequest{ID: id, Version: cred.Version, Kind: kind, Force: true},
		func(ctx context.Context, c *credentials.Credential) (*credentials.Renewal, error) {
			return p.cfg.Caller.Open(ctx, def, c)
		})
}

func (p *Pool) refreshed(ctx context.Context, cred *credentials.Credential, kind credentials.Kind, res credentials.RefreshResult) error {
	log := p.log.With("credential_id", cred.ID, "connector", cred.Connector, "kind", kind, "outcome", res.Outcome, "version", res.Version)
	count := func(v credentials.Verdict) {
		p.metrics.refreshes.WithLabelValues(cred.Connector, string(kind), string(v)).Inc()
	}
	text := ""
	if res.Err != nil {
		text = res.Err.Text
	}
	switch res.Outcome {
	case "renewed":
		count(credentials.Renewed)
		log.Info("credential renewed")
		p.observe(Moment{What: "refreshed", CredentialID: cred.ID, Connector: cred.Connector}, nil)
		return p.resume(ctx, cred.ID)
	case "newer", "gone":
		return p.resume(ctx, cred.ID)
	case "revoked", "misconfigured":
		if res.Err != nil {
			count(res.Err.Verdict)
			log.Warn("credential refused", "status", res.Err.Status, "error", text)
		}
		p.observe(Moment{What: "refresh_failed", CredentialID: cred.ID, Connector: cred.Connector, Text: text}, nil)
		return nil
	case "transient", "unknown":
		if res.Err != nil {
			count(res.Err.Verdict)
			log.Warn("refresh failed", "status", res.Err.Status, "error", text, "next_try", res.RetryAt)
			p.observe(Moment{What: "refresh_failed", CredentialID: cred.ID, Connector: cred.Connector, Text: text}, nil)
		}
	}
	// busy, later, transient, unknown: look again then.
	return &waitError{why: whyDeferred, text: "refresh: " + res.Outcome + " " + clip(text, 400), delay: max(time.Until(res.RetryAt), time.Second)}
}

// refreshByTest serves `credential refresh` where nothing can be renewed: the
// test method's answer decides.
func (p *Pool) refreshByTest(ctx context.Context, def *connectors.Definition, cred *credentials.Credential) error {
	res, err := p.cfg.Store.Refresh(ctx, credentials.RefreshRequest{ID: cred.ID, Version: cred.Version, Kind: credentials.Session, Force: true},
		func(ctx context.Context, c *credentials.Credential) (*credentials.Renewal, error) {
			if def.TestMethod == "" {
				return nil, &credentials.RefreshError{Verdict: credentials.VerdictMisconfigured,
					Text: fmt.Sprintf("connector %q has nothing to renew: set auth.type: oauth2 or post_install.property_lookup_method, or put the credential again", def.Name)}
			}
			if err := p.cfg.Caller.Test(ctx, def, c); err != nil {
				return nil, err
			}
			return &credentials.Renewal{Opened: true}, nil
		})
	if err != nil {
		return &waitError{why: "worker", text: "redis cannot be used", delay: 5 * time.Second}
	}
	return p.refreshed(ctx, cred, credentials.Session, res)
}

// testedKey remembers that a version's test method has answered.
func testedKey(credential string, version int64) string {
	return fmt.Sprintf("stepworker:cred:{%s}:tested:%d", credential, version)
}

// nothingToRenew handles an exception on a connector where neither a token nor
// a session can be renewed: the test method decides, once for the version.
func (a *attempt) nothingToRenew(ctx context.Context, e *connectors.AuthError, failure *ResultError) error {
	p := a.p
	failure.Message = fmt.Sprintf("the API refused the credential (%s), and the connector cannot renew it: it has no %s", e.Text, e.Missing)
	if a.def.TestMethod == "" {
		return a.failCode(ctx, failure, e.Status)
	}
	first, err := p.rdb.SetNX(ctx, testedKey(a.cred.ID, e.Version), "1", 24*time.Hour).Result()
	if err != nil {
		return p.workerFault("redis cannot be written")
	}
	if !first {
		return a.failCode(ctx, failure, e.Status)
	}
	err = p.cfg.Caller.Test(ctx, a.def, a.cred)
	if err == nil {
		failure.Message = fmt.Sprintf("method %q was refused (%s) while the test method answers: check the account's permissions", a.meth.Name, e.Text)
		return a.failCode(ctx, failure, e.Status)
	}
	var verdict *credentials.RefreshError
	if !errors.As(err, &verdict) || verdict.Verdict != credentials.VerdictRevoked {
		_ = p.rdb.Del(ctx, testedKey(a.cred.ID, e.Version)).Err()
		return a.failCode(ctx, failure, e.Status)
	}
	res, err := p.cfg.Store.Refresh(ctx, credentials.RefreshRequest{ID: a.cred.ID, Version: e.Version, Kind: e.Kind, Force: true},
		func(context.Context, *credentials.Credential) (*credentials.Renewal, error) { return nil, verdict })
	if err != nil {
		return p.workerFault("redis cannot be written")
	}
	if res.Outcome == "newer" {
		return a.again(ctx)
	}
	a.cred.Meta.State, a.cred.Meta.LastError = credentials.Revoked, verdict.Text
	return a.hold(ctx, heldText(a.cred))
}

// adoptSession stores the session that a script found in the refusal itself:
// the new session, without a login.
func (a *attempt) adoptSession(ctx context.Context, e *connectors.AuthError) error {
	res, err := a.p.cfg.Store.Refresh(ctx, credentials.RefreshRequest{ID: a.cred.ID, Version: e.Version, Kind: credentials.Session},
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
			a.p.log.Warn("resume is left to the sweeper", "credential_id", a.cred.ID)
		}
		return a.again(ctx)
	}
	return a.park(ctx, refusal{kind: credentials.Session, version: e.Version, text: e.Text, refused: true})
}

// resume puts the executions that wait for a credential back to pending, in
// about the order in which they parked.
func (p *Pool) resume(ctx context.Context, credential string) error {
	killpoint.KillPoint("resuming")
	return p.resumer.run(ctx, credential)
}
