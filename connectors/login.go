package connectors

import (
	"context"
	"errors"
	"fmt"
	"net/http"
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
	if err != nil {
		return nil, x.loginVerdict(x.finish(ctx, err))
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
	if at, ok := credentials.ParseExpiry(answer.Session["session_expires"]); ok {
		r.Expiry = at
	}
	if cred.Secrets.Opened || d.TestMethod == "" {
		return r, nil
	}
	// The login that opens a credential's first session: the test method, once.
	opened := *cred
	opened.Secrets.Session = answer.Session
	if err := c.Test(ctx, d, &opened); err != nil {
		return nil, err
	}
	return r, nil
}

// loginVerdict reads a failed login (promise 7).
func (x *exchange) loginVerdict(err error) error {
	var auth *AuthError
	var ce *CallError
	e := &credentials.RefreshError{Status: x.status}
	html := strings.Contains(strings.ToLower(x.resHead.Get("Content-Type")), "html") && x.resHead.Get("WWW-Authenticate") == ""
	switch {
	case errors.As(err, &auth) && auth.Unsent:
		e.Verdict, e.Text = credentials.VerdictMisconfigured, "the login method needs what it is to bring: "+auth.Text
	case errors.As(err, &auth):
		e.Verdict, e.Text = credentials.VerdictRevoked, "the login was refused: "+auth.Text
	case errors.As(err, &ce) && ce.Defer:
		e.Verdict, e.Text, e.RetryAfter = credentials.Transient, "the login has to wait: "+ce.Message, ce.RetryAfter
	case errors.As(err, &ce) && ce.Kind == "script" && (ce.script == nil || !ce.script.Engine):
		e.Verdict, e.Text = credentials.VerdictRevoked, "the login was refused: "+at(ce.Message, ce.At)
	case errors.As(err, &ce) && (ce.Kind == "script" || ce.Kind == "limit" || ce.Kind == "input"):
		e.Verdict, e.Text = credentials.VerdictMisconfigured, "the login method: "+at(ce.Message, ce.At)
	case errors.As(err, &ce) && ce.Kind == "http" && html && (x.status == http.StatusBadRequest || x.status == http.StatusForbidden):
		e.Verdict, e.Text = credentials.Transient, fmt.Sprintf("the login answered %s with an HTML page; it is tried again", x.statusText())
	case errors.As(err, &ce) && ce.Kind == "http" && (x.status == 400 || x.status == 401 || x.status == 403):
		e.Verdict, e.Text = credentials.VerdictRevoked, fmt.Sprintf("the login was refused with %s: check user name and password, and put the credential again", x.statusText())
	case errors.As(err, &ce) && ce.Kind == "http" && (x.status == 404 || x.status == 405):
		e.Verdict, e.Text = credentials.VerdictMisconfigured, fmt.Sprintf("the login answered %s: check the login method's endpoint", x.statusText())
	case errors.As(err, &ce) && ce.Kind == "network" && x.faultSent:
		e.Verdict, e.Text = credentials.Unknown, "the login's answer never came: "+ce.Message
	case errors.As(err, &ce):
		e.Verdict, e.Text, e.RetryAfter = credentials.Transient, "the login failed: "+ce.Message, ce.RetryAfter
	default:
		return err
	}
	return e
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

// Test calls the test method. The error is a *credentials.RefreshError:
// revoked if the API refused it, transient for all else. It cannot cause a
// refresh.
func (c *Caller) Test(ctx context.Context, d *Definition, cred *credentials.Credential) error {
	m, ok := d.Methods[d.TestMethod]
	if !ok {
		return nil
	}
	_, err := c.Call(ctx, &Call{Definition: d, Method: m, Credential: cred, Urgent: true})
	if err == nil {
		return nil
	}
	var auth *AuthError
	var ce *CallError
	e := &credentials.RefreshError{Verdict: credentials.Transient}
	switch {
	case errors.As(err, &auth):
		e.Verdict, e.Status, e.Text = credentials.VerdictRevoked, auth.Status, "the test method was refused: "+auth.Text
	case errors.As(err, &ce):
		e.Status, e.Text, e.RetryAfter = ce.StatusCode, "the test method failed: "+ce.Message, ce.RetryAfter
		if ce.StatusCode == 401 || ce.StatusCode == 403 {
			e.Verdict, e.Text = credentials.VerdictRevoked, "the test method was refused: "+ce.Message
		}
	default:
		return err
	}
	return e
}
