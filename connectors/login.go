package connectors

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/connectors/jsontree"
	"github.com/stepworker/stepworker/credentials"
)

// login calls the login method and returns the session it found.
func (c *Caller) login(ctx context.Context, d *definition.Connector, cred *credentials.Credential) (*credentials.Renewal, error) {
	m, ok := d.Methods[d.LoginMethod]
	if !ok {
		return nil, &credentials.RefreshError{Verdict: credentials.VerdictMisconfigured,
			Text: fmt.Sprintf("connector %q has no login method (post_install.property_lookup_method)", d.Name)}
	}
	x := &exchange{c: c, d: d, m: m, cred: cred, call: &Call{Definition: d, Method: m, Credential: cred, Urgent: true}}
	answer, err := x.run(ctx)
	defer func() { c.logScript(ctx, cred, x.maskLogs()) }()
	if err != nil {
		return nil, x.verdict(fmt.Sprintf("login method %q", m.Name), x.finish(ctx, err))
	}
	found := func(what string) error {
		h := &heard{of: login, script: foundNothing, status: x.status, who: fmt.Sprintf("login method %q", m.Name), why: what}
		return h.verdict()
	}
	if len(answer.Session) == 0 && len(d.SessionNames) > 0 {
		return nil, found("filled none of the session properties")
	}
	for _, name := range d.SessionNames {
		if _, stored := c.property(d, cred, "session", name); answer.Session[name] == "" && !stored {
			return nil, found(fmt.Sprintf("left session property %q without a value", name))
		}
	}
	r := &credentials.Renewal{Session: answer.Session, Status: x.status, Opened: true}
	if _, own := x.changedSession()["session_expires"]; !own { // what a script set is by our clock, as its new Date() is
		r.Skew = x.skew
	}
	first := len(d.SessionNames) > 0 // session of this credential
	for _, name := range d.SessionNames {
		if _, stored := c.property(d, cred, "session", name); stored {
			first = false
		}
	}
	if d.TestMethod == "" || cred.Secrets.Opened && !first {
		return r, nil
	}
	// The login that opens a credential's first session: the test method, once.
	opened := *cred
	opened.Secrets.Session = map[string]string{}
	maps.Copy(opened.Secrets.Session, cred.Secrets.Session)
	maps.Copy(opened.Secrets.Session, answer.Session)
	if err := c.test(ctx, d, &opened, slices.Collect(maps.Values(answer.Session))); err != nil {
		return nil, err
	}
	return r, nil
}

// Open finishes a credential whose first token was just stored: the login
// method, then the test method, each if there is one. A refused test: revoked.
func (c *Caller) Open(ctx context.Context, d *definition.Connector, cred *credentials.Credential) (*credentials.Renewal, error) {
	if d.LoginMethod != "" {
		return c.login(ctx, d, cred)
	}
	if d.TestMethod != "" {
		if err := c.Test(ctx, d, cred); err != nil {
			return nil, err
		}
	}
	return &credentials.Renewal{Opened: true}, nil
}

// Test calls the test method. The error is a *credentials.RefreshError, by the
// rules of a login: revoked if the API refused it. It cannot cause a refresh.
func (c *Caller) Test(ctx context.Context, d *definition.Connector, cred *credentials.Credential) error {
	return c.test(ctx, d, cred, nil)
}

func (c *Caller) test(ctx context.Context, d *definition.Connector, cred *credentials.Credential, found []string) error {
	m, ok := d.Methods[d.TestMethod]
	if !ok {
		return nil
	}
	x := &exchange{c: c, d: d, m: m, cred: cred, found: found, call: &Call{Definition: d, Method: m, Credential: cred, Urgent: true}}
	_, err := x.run(ctx)
	defer func() { c.logScript(ctx, cred, x.maskLogs()) }()
	if err != nil {
		return x.verdict(fmt.Sprintf("test method %q", m.Name), x.finish(ctx, err))
	}
	return nil
}

// Logout calls the logout method with the session that a credential had before
// a login found another, which must be stored by now: whatever comes of it
// changes nothing. Where there was no session, or the login gave the same one
// again, nothing is called. The error is masked, and cannot cause a refresh.
func (c *Caller) Logout(ctx context.Context, d *definition.Connector, old *credentials.Credential, session map[string]string) error {
	m, ok := d.Methods[d.LogoutMethod]
	if !ok || !c.replaced(d, old, session) {
		return nil
	}
	x := &exchange{c: c, d: d, m: m, cred: old, found: slices.Collect(maps.Values(session)), call: &Call{Definition: d, Method: m, Credential: old, Urgent: true}}
	_, err := x.run(ctx)
	defer func() { c.logScript(ctx, old, x.maskLogs()) }()
	if err != nil {
		return x.finish(ctx, err)
	}
	return nil
}

// replaced says that a credential had a session, and that this is another.
func (c *Caller) replaced(d *definition.Connector, old *credentials.Credential, session map[string]string) bool {
	for _, name := range d.SessionNames {
		v, had := c.property(d, old, "session", name)
		before, _ := jsontree.Text(v)
		if now := session[name]; had && now != "" && now != before {
			return true
		}
	}
	return false
}
