package connectors

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"golang.org/x/oauth2"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/connectors/jsontree"
	"github.com/stepworker/stepworker/connectors/mergefields"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/hooks"
)

// Authorization is one person's way to the provider and back with a code (RFC
// 6749 section 4.1), by PKCE bound to who asked for it (RFC 7636).
type Authorization struct {
	URL   string // for the person's browser
	State string // comes back beside the code, or the answer is somebody else's

	redirect, verifier string          // as the URL says; "" where it says nothing
	actionData         json.RawMessage // from the hook before to those around the exchange
}

// Authorize begins an authorization that comes back to the redirect URL. The
// error is a *credentials.RefreshError.
func (c *Caller) Authorize(ctx context.Context, d *definition.Connector, cred *credentials.Credential, redirect string) (*Authorization, error) {
	misconfigured := func(format string, args ...any) (*Authorization, error) {
		return nil, &credentials.RefreshError{Verdict: credentials.VerdictMisconfigured, Text: fmt.Sprintf(format, args...)}
	}
	endpoint, err := mergefields.URL(d.Auth.AuthorizeURL, func(name string) (any, bool, bool) { return c.ownField(d, cred, name) })
	if err != nil {
		return misconfigured("auth.authorize_url: %v", err)
	}
	id, _ := c.clientOf(d, cred)
	if id == "" {
		return misconfigured("%v", errNoClientID)
	}
	a := &Authorization{State: rand.Text(), verifier: oauth2.GenerateVerifier()}
	conf := &oauth2.Config{ClientID: id, RedirectURL: redirect, Scopes: d.Auth.Scopes, Endpoint: oauth2.Endpoint{AuthURL: endpoint}}
	path, query, _ := strings.Cut(conf.AuthCodeURL(a.State, oauth2.S256ChallengeOption(a.verifier)), "?")
	a.URL = path + "?" + mergefields.EscapeBlanks(query)
	t := &tokenRequest{c: c, d: d, cred: cred, actionData: json.RawMessage(`{}`)}
	out, err := t.hook(ctx, "before_oauth2_authorise", hooks.Global{Name: "method_endpoint", JSON: jsontree.Quote(a.URL), Write: true})
	var verdict *credentials.RefreshError
	if errors.As(err, &verdict) {
		return nil, verdict
	} else if err != nil {
		return nil, &credentials.RefreshError{Verdict: credentials.Transient, Text: "before_oauth2_authorise was not run to its end"}
	}
	a.actionData = t.actionData
	a.URL = jsontree.TextIn(out.Value("method_endpoint", jsontree.Quote(a.URL)))
	u, err := url.Parse(a.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return misconfigured("before_oauth2_authorise left a method_endpoint that is no http or https URL")
	}
	asked := u.Query()
	if len(asked["state"]) != 1 || asked.Get("state") != a.State { // without it anybody's answer would be taken, with another nobody's
		asked.Set("state", a.State)
		u.RawQuery = mergefields.EscapeBlanks(asked.Encode())
		a.URL = u.String()
	}
	// What the script took out for a provider that refuses it is missing from
	// the exchange too.
	a.redirect = asked.Get("redirect_uri")
	if asked.Get("code_challenge") != oauth2.S256ChallengeFromVerifier(a.verifier) {
		a.verifier = ""
	}
	return a, nil
}

// ExchangeCode gives the code that came back for the account's first token.
// The error is a *credentials.RefreshError.
func (c *Caller) ExchangeCode(ctx context.Context, d *definition.Connector, cred *credentials.Credential, a *Authorization, code string) (*credentials.Renewal, error) {
	return c.obtainToken(ctx, d, cred, &codeGrant{a, code})
}

// codeGrant is what a token request has in place of a refresh token.
type codeGrant struct {
	*Authorization
	code string
}

func (g *codeGrant) exchange(ctx context.Context, conf *oauth2.Config) error {
	conf.RedirectURL = g.redirect
	var options []oauth2.AuthCodeOption
	if g.verifier != "" {
		options = append(options, oauth2.VerifierOption(g.verifier))
	}
	_, err := conf.Exchange(ctx, g.code, options...)
	return err
}
