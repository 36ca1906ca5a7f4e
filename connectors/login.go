package connectors

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/stepworker/stepworker/credentials"
)

// login calls the login method and returns the session it found.
func (c *Caller) login(ctx context.Context, d *Definition, cred *credentials.Credential) (*credentials.Renewal, error) {
	m, ok := d.Methods[d.LoginMethod]
	if !ok {
		return nil, &credentials.RefreshError{Verdict: credentials.VerdictMisconfigured,
			Text: fmt.Sprintf("connector %q has no login method (post_install.property_lookup_method)", d.Name)}
	}
	x := &exchange{c: c, d: d, m: m, cred: cred, call: &Call{Definition: d, Method: m, Credential: cred, Urgent: true}}
	answer, err := x.run(ctx)
	defer func() { c.logScript(cred, x.maskLogs()) }()
	if err != nil {
		return nil, x.loginVerdict(fmt.Sprintf("login method %q", m.Name), x.finish(ctx, err))
	}
	misconfigured := func(format string, args ...any) error {
		return &credentials.RefreshError{Verdict: credentials.VerdictMisconfigured, Status: x.status, Text: fmt.Sprintf(format, args...)}
	}
	if len(answer.Session) == 0 && len(d.SessionNames) > 0 {
		return nil, misconfigured("login method %q answered, but filled none of the session properties: check its response fields", m.Name)
	}
	for _, name := range d.SessionNames {
		if _, stored := c.property(d, cred, "session", name); answer.Session[name] == "" && !stored {
			return nil, misconfigured("login method %q answered, but left session property %q without a value", m.Name, name)
		}
	}
	r := &credentials.Renewal{Session: answer.Session, Status: x.status, Opened: true}
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

// loginVerdict reads a failed login or test (promise 7). What a server says
// while it is out of order, or a firewall's HTML page, refuses nobody, whatever
// the connector's script makes of it.
func (x *exchange) loginVerdict(what string, err error) error {
	var auth *AuthError
	var ce *CallError
	e := &credentials.RefreshError{Status: x.status}
	html := strings.Contains(strings.ToLower(x.resHead.Get("Content-Type")), "html") && x.resHead.Get("WWW-Authenticate") == ""
	page := html && (x.status == http.StatusBadRequest || x.status == http.StatusForbidden)
	verdict := func(v credentials.Verdict, format string, args ...any) {
		e.Verdict, e.Text = v, what+" "+fmt.Sprintf(format, args...)
	}
	isAuth, isCall := errors.As(err, &auth), errors.As(err, &ce)
	engine := isCall && ce.script != nil && ce.script.Engine
	switch {
	case !isAuth && !isCall:
		return err
	case isAuth && auth.Unsent:
		verdict(credentials.VerdictMisconfigured, "needs what it is to bring: %s", auth.Text)
	case isCall && ce.Defer:
		verdict(credentials.Transient, "has to wait: %s", ce.Message)
		e.RetryAfter = ce.RetryAfter
	case x.faultSent:
		verdict(credentials.Unknown, "got no answer: %s", err)
	case engine, isCall && (ce.Kind == "limit" || ce.Kind == "input" && x.status/100 != 3): // a redirect is the server's word, to a page of its maintenance perhaps
		verdict(credentials.VerdictMisconfigured, "cannot be called as the connector says: %s", at(ce.Message, ce.At))
	case page:
		verdict(credentials.Transient, "answered %s with an HTML page; it is tried again", x.statusText())
	case temporary(x.status), x.faulted:
		verdict(credentials.Transient, "failed, and is tried again: %s", err)
		e.RetryAfter = retryAfter(x.resHead)
	case isAuth:
		verdict(credentials.VerdictRevoked, "was refused: %s", auth.Text)
	case ce.script != nil && ce.script.Fault:
		verdict(credentials.Transient, "failed, and is tried again: %s", at(ce.Message, ce.At))
	case ce.Kind == "script":
		verdict(credentials.VerdictRevoked, "was refused: %s", at(ce.Message, ce.At))
	case ce.Kind == "http" && (x.status == 400 || x.status == 401 || x.status == 403):
		verdict(credentials.VerdictRevoked, "was refused with %s: check what the account logs in with, and put the credential again", x.statusText())
	case ce.Kind == "http" && x.status >= 200 && x.status <= 299:
		verdict(credentials.VerdictMisconfigured, "answered what cannot be read: %s", ce.Message)
	case ce.Kind == "http" && (x.status == 404 || x.status == 405):
		verdict(credentials.VerdictMisconfigured, "answered %s: check the method's endpoint and verb", x.statusText())
	default:
		verdict(credentials.Transient, "failed, and is tried again: %s", ce.Message)
	}
	return e
}

// temporary says that a status tells of the server, not of who asks.
func temporary(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusLocked, http.StatusTooEarly, http.StatusTooManyRequests:
		return true
	}
	return status >= 500
}

// Open finishes a credential whose first token was just stored: the login
// method, then the test method, each if there is one. A refused test: revoked.
func (c *Caller) Open(ctx context.Context, d *Definition, cred *credentials.Credential) (*credentials.Renewal, error) {
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
func (c *Caller) Test(ctx context.Context, d *Definition, cred *credentials.Credential) error {
	return c.test(ctx, d, cred, nil)
}

func (c *Caller) test(ctx context.Context, d *Definition, cred *credentials.Credential, found []string) error {
	m, ok := d.Methods[d.TestMethod]
	if !ok {
		return nil
	}
	x := &exchange{c: c, d: d, m: m, cred: cred, found: found, call: &Call{Definition: d, Method: m, Credential: cred, Urgent: true}}
	_, err := x.run(ctx)
	defer func() { c.logScript(cred, x.maskLogs()) }()
	if err != nil {
		return x.loginVerdict(fmt.Sprintf("test method %q", m.Name), x.finish(ctx, err))
	}
	return nil
}
