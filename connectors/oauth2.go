package connectors

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/stepworker/stepworker/connectors/coding"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/connectors/inline"
	"github.com/stepworker/stepworker/connectors/jsontree"
	"github.com/stepworker/stepworker/connectors/mergefields"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/hooks"
)

// tokenRequest is one request to a token endpoint. It stands under
// golang.org/x/oauth2 as its transport: that package supplies the grants, this
// type keeps the raw answer (an odd expires_in would lose the token there),
// runs the hooks, and knows whether the request was sent.
type tokenRequest struct {
	c     *Caller
	d     *definition.Connector
	cred  *credentials.Credential
	event string     // before_oauth2_refresh's "refresh", or "token"
	grant *codeGrant // nil: with what is stored

	requests   int
	fault      *fault
	status     int
	head       http.Header
	body       []byte
	answer     map[string]json.RawMessage
	token      *credentials.Token
	actionData json.RawMessage // from the hook before to the hook after
	hookErr    error
	problem    *credentials.RefreshError // the hook after failed, though there is a token
	given      []string                  // what must not be shown: assertions, tokens of the answer, whatever a hook made of it
	proof      url.Values                // assertions that join the request's form
	dated      time.Duration             // the skew by which they are dated
	clock      time.Duration             // the skew that the answer shows
}

// Refresh renews a credential: a token, or a session by the login method. The
// error is a *credentials.RefreshError.
func (c *Caller) Refresh(ctx context.Context, d *definition.Connector, cred *credentials.Credential, kind credentials.Kind) (*credentials.Renewal, error) {
	if kind == credentials.Session {
		return c.login(ctx, d, cred)
	}
	if d.Auth.Type != "oauth2" {
		return nil, &credentials.RefreshError{Verdict: credentials.VerdictMisconfigured, Text: fmt.Sprintf("connector %q has no oauth2 authentication to refresh", d.Name)}
	}
	return c.obtainToken(ctx, d, cred, nil)
}

// obtainToken asks the token endpoint in the style that it takes, with a code
// or with what is stored.
func (c *Caller) obtainToken(ctx context.Context, d *definition.Connector, cred *credentials.Credential, grant *codeGrant) (*credentials.Renewal, error) {
	if grant == nil && len(cred.Answer) > 0 {
		// What was sent for it may be spent, and the hook that reads it may have
		// been put right.
		t := &tokenRequest{c: c, d: d, cred: cred, event: tokenEvent(d), actionData: json.RawMessage(`{}`), status: http.StatusOK, head: http.Header{}, body: cred.Answer}
		if err := t.settle(ctx); err == nil && t.token != nil {
			return t.renewal()
		}
	}
	style := d.Auth.AuthStyle
	if style == "auto" {
		style = c.knownStyle(ctx, styleName(d))
	}
	try := style
	_, secret := c.clientOf(d, cred)
	if try != "header" && try != "params" && try != definition.PrivateKeyJWT {
		try = "header"
		if secret == "" {
			try = "params" // a public client has nothing to put into the header (RFC 6749 section 3.2.1)
		}
	}
	t, err := c.requestToken(ctx, d, cred, grant, try)
	if grant != nil && t.token == nil && t.misdated() {
		t, err = c.requestToken(ctx, d, cred, grant, try) // a person waits for it, and a refusal has issued nothing for the code
	}
	other := style != try && try == "header" && t.clientRefused() && t.fault == nil // it may be the other one
	if other && grant != nil {
		style = "" // a person waits for it, and a server that refuses the client has not spent the code
	}
	switch {
	case other && grant == nil && (style == credentials.StyleTrying || style == "" && !c.firstToTry(ctx, styleName(d))):
		return nil, &credentials.RefreshError{Verdict: credentials.Transient, Status: t.status, RetryAfter: 2 * time.Second,
			Text: "the token endpoint refused the client in the header; another request finds out whether it takes it in the body"}
	case other && style == "":
		t2, err2 := c.requestToken(ctx, d, cred, grant, "params")
		switch {
		case t2.token != nil:
			c.learnStyle(ctx, styleName(d), "params")
		case t2.clientRefused() && t2.fault == nil:
			c.learnStyle(ctx, styleName(d), credentials.StyleTried)
			t2, err2 = t, err
		default:
			c.learnStyle(ctx, styleName(d), "") // it told nothing about the client
		}
		t, err = t2, err2
	case style != try && t.token != nil && secret != "":
		c.learnStyle(ctx, styleName(d), try)
	}
	var re *credentials.RefreshError
	if errors.As(err, &re) {
		re.Answer = t.unread()
	}
	if err != nil {
		return nil, err
	}
	if t.token == nil {
		verdict := t.verdict()
		verdict.Answer = t.unread()
		return nil, verdict
	}
	return t.renewal()
}

func (t *tokenRequest) renewal() (*credentials.Renewal, error) {
	raw, err := jsontree.Marshal(t.answer)
	if err != nil {
		return nil, err
	}
	// What opens a credential (login and test methods) comes after the token is stored.
	return &credentials.Renewal{Token: t.token, TokenRaw: raw, Status: t.status, Opened: t.d.LoginMethod == "" && t.d.TestMethod == "", Problem: t.problem}, nil
}

// unread is an answer of success in which no token was found: there may be one
// all the same. An answer that is an error has none.
func (t *tokenRequest) unread() []byte {
	if t.fault != nil || t.status < 200 || t.status > 299 || t.token != nil || readError(t.answer).code != "" {
		return nil
	}
	return t.body
}

// tokenEvent is what the hooks around a request for a new token are called by,
// with what is stored.
func tokenEvent(d *definition.Connector) string {
	if d.Auth.Grant == "authorization_code" {
		return "refresh"
	}
	return "token"
}

func (c *Caller) knownStyle(ctx context.Context, connector string) string {
	c.mu.Lock()
	style := c.styles[connector]
	c.mu.Unlock()
	if style == "" && c.cfg.AuthStyles != nil {
		if stored, err := c.cfg.AuthStyles.AuthStyle(ctx, connector); err == nil {
			style = stored
		}
	}
	return style
}

// firstToTry says that nobody else tries the other style just now.
func (c *Caller) firstToTry(ctx context.Context, connector string) bool {
	if c.cfg.AuthStyles == nil {
		return true
	}
	first, err := c.cfg.AuthStyles.TryAuthStyle(ctx, connector)
	return err != nil || first // without Redis the refresh ends elsewhere
}

func (c *Caller) learnStyle(ctx context.Context, connector, style string) {
	if style == "header" || style == "params" {
		c.mu.Lock()
		c.styles[connector] = style
		c.mu.Unlock()
	}
	if c.cfg.AuthStyles != nil {
		_ = c.cfg.AuthStyles.SetAuthStyle(ctx, connector, style) // forgotten, it is learned again
	}
}

// requestToken makes exactly one request. The error is a verdict that stands
// before or beside the answer's own.
func (c *Caller) requestToken(ctx context.Context, d *definition.Connector, cred *credentials.Credential, grant *codeGrant, style string) (*tokenRequest, error) {
	t := &tokenRequest{c: c, d: d, cred: cred, event: "token", grant: grant, actionData: json.RawMessage(`{}`)}
	misconfigured := func(text string) (*tokenRequest, error) {
		return t, &credentials.RefreshError{Verdict: credentials.VerdictMisconfigured, Text: text}
	}
	endpoint, err := mergefields.URL(d.Auth.TokenURL, func(name string) (any, bool, bool) { return c.ownField(d, cred, name) })
	if err != nil {
		return misconfigured("auth.token_url: " + err.Error())
	}
	id, secret := c.clientOf(d, cred)
	switch {
	case style == definition.PrivateKeyJWT:
		style, secret = "params", "" // the client's name; the assertion is its proof
	case d.Auth.Grant == definition.JWTBearer && d.Auth.AuthStyle == "auto" && secret == "":
		style, id = "params", "" // the grant's assertion says it all (RFC 7521 section 4.1)
	}
	t.dated = c.Skew(d.Name)
	if t.proof, err = c.assertions(d, cred, endpoint, time.Now().Add(t.dated)); err != nil {
		return misconfigured(err.Error())
	}
	for _, name := range []string{"assertion", "client_assertion"} {
		if a := t.proof.Get(name); a != "" {
			t.given = append(t.given, a)
			c.cfg.Trace.secret(name, a)
		}
	}
	conf := &oauth2.Config{ClientID: id, ClientSecret: secret, Scopes: d.Auth.Scopes, Endpoint: oauth2.Endpoint{TokenURL: endpoint, AuthStyle: oauth2.AuthStyleInHeader}}
	if style == "params" {
		conf.Endpoint.AuthStyle = oauth2.AuthStyleInParams
	}
	if id == "" && (secret != "" || d.Auth.Grant == "client_credentials") {
		return misconfigured(errNoClientID.Error())
	}
	ctx = context.WithValue(ctx, oauth2.HTTPClient, &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }})
	switch {
	case grant != nil:
		t.actionData = grant.actionData
		err = grant.exchange(ctx, conf)
	case d.Auth.Grant == "client_credentials", d.Auth.Grant == definition.JWTBearer: // whose grant_type is among the proof
		cc := clientcredentials.Config{ClientID: id, ClientSecret: secret, TokenURL: endpoint, Scopes: d.Auth.Scopes, AuthStyle: conf.Endpoint.AuthStyle}
		_, err = cc.Token(ctx)
	case d.Auth.Grant == "password":
		user, _ := c.property(d, cred, "account", "username")
		pass, _ := c.property(d, cred, "account", "password")
		u, ok1 := jsontree.Text(user)
		p, ok2 := jsontree.Text(pass)
		if !ok1 || !ok2 {
			return misconfigured("the password grant needs the credential's username and password")
		}
		_, err = conf.PasswordCredentialsToken(ctx, u, p)
	default:
		old := cred.Secrets.OAuth2
		if old == nil || old.RefreshToken.Empty() {
			return t, &credentials.RefreshError{Verdict: credentials.VerdictRevoked, Text: "there is no refresh token: authorize the account again and put the new credential"}
		}
		t.event = "refresh"
		_, err = conf.TokenSource(ctx, &oauth2.Token{RefreshToken: old.RefreshToken.Reveal()}).Token()
	}
	var re *credentials.RefreshError
	if errors.As(t.hookErr, &re) {
		return t, re
	}
	if t.hookErr != nil {
		return t, t.hookErr
	}
	if err != nil && t.requests == 0 {
		return misconfigured("the token request cannot be built")
	}
	return t, nil
}

// ownField resolves merge fields where there is no call: in token_url.
func (c *Caller) ownField(d *definition.Connector, cred *credentials.Credential, name string) (any, bool, bool) {
	for i := range d.Parameters {
		if q := &d.Parameters[i]; q.Name == name || q.Wire() == name {
			if q.HasValue {
				return unlessInline(q.Value), true, false
			}
			v, _ := c.property(d, cred, q.Property, q.Name)
			if v == nil && q.HasDef {
				v = unlessInline(q.Default)
			}
			return v, true, false
		}
	}
	return c.systemField(d, cred, name)
}

// unlessInline is a value that needs no script to be known.
func unlessInline(v any) any {
	if inline.Is(v) {
		return nil
	}
	return v
}

// RoundTrip implements http.RoundTripper for golang.org/x/oauth2.
func (t *tokenRequest) RoundTrip(req *http.Request) (*http.Response, error) {
	if t.requests++; t.requests > 1 {
		return nil, errors.New("one token request at a time")
	}
	raw, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	form, err := url.ParseQuery(string(raw))
	if err != nil {
		return nil, err
	}
	maps.Copy(form, t.proof)
	body, header := &jsontree.Object{}, &jsontree.Object{}
	keys := make([]string, 0, len(form))
	for k := range form {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		body.Set(k, form.Get(k))
	}
	for k := range req.Header {
		header.Set(k, req.Header.Get(k))
	}
	bodyJSON, _ := jsontree.Marshal(body)
	headerJSON, _ := jsontree.Marshal(header)
	before, err := t.hook(req.Context(), "before_oauth2_"+t.event,
		hooks.Global{Name: "method_request", JSON: bodyJSON, Write: true}, hooks.Global{Name: "method_request_headers", JSON: headerJSON, Write: true, Headers: true})
	if err != nil {
		t.hookErr = err
		return nil, err
	}
	bodyJSON, headerJSON = before.Value("method_request", bodyJSON), before.Value("method_request_headers", headerJSON)
	p, err := formPairs(bodyJSON)
	if err != nil {
		t.hookErr = &credentials.RefreshError{Verdict: credentials.VerdictMisconfigured, Text: "before_oauth2_" + t.event + " left a method_request that is no object"}
		return nil, t.hookErr
	}
	out, err := http.NewRequestWithContext(withPurpose(req.Context(), "token request"), http.MethodPost, req.URL.String(), strings.NewReader(p.encode()))
	if err != nil {
		return nil, err
	}
	if err := setHeaders(out.Header, headerJSON); err != nil {
		t.hookErr = &credentials.RefreshError{Verdict: credentials.VerdictMisconfigured, Text: "before_oauth2_" + t.event + " left headers that cannot be sent"}
		return nil, t.hookErr
	}
	if out.Header.Get("Accept") == "" {
		out.Header.Set("Accept", "application/json")
	}
	if out.Header.Get("User-Agent") == "" {
		out.Header.Set("User-Agent", "stepworker")
	}
	sent := time.Now()
	res, f := t.c.send(out, false, t.told())
	if f != nil {
		t.fault = f
		return nil, f
	}
	defer res.Body.Close()
	t.clock = t.c.learnClock(t.d.Name, res.Header, sent)
	t.status, t.head = res.StatusCode, res.Header
	var coded *codingError
	t.body, err = readAnswer(res, 1<<20)
	if err != nil && !errors.Is(err, coding.ErrTooLarge) && !errors.As(err, &coded) { // these two came, and hold no token
		t.fault = readFault(out.URL.Host, err)
		return nil, t.fault
	}
	if err := t.settle(req.Context()); err != nil {
		return nil, err
	}
	// x/oauth2 is given an answer that it cannot stumble over.
	plain := []byte(`{"error":"see the raw answer"}`)
	status := http.StatusBadRequest
	if t.token != nil {
		plain, status = []byte(`{"access_token":"kept elsewhere","token_type":"Bearer"}`), http.StatusOK
	}
	return &http.Response{StatusCode: status, Status: http.StatusText(status), Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(bytes.NewReader(plain)), ContentLength: int64(len(plain)), Request: req}, nil
}

// settle finds the token in an answer, with the hook after it. The error is
// the hook's, where there is no token.
func (t *tokenRequest) settle(ctx context.Context) error {
	t.answer = parseToken(t.body)
	t.c.cfg.Trace.tokens(t.answer)
	t.keep(t.answer)
	if t.status < 200 || t.status > 299 {
		return nil
	}
	answer, err := jsontree.Marshal(t.answer)
	if err != nil || t.answer == nil {
		answer = jsontree.Quote(string(t.body))
	}
	after, err := t.hook(ctx, "after_oauth2_"+t.event,
		hooks.Global{Name: "method_response", JSON: answer, Write: true}, hooks.Global{Name: "method_response_headers", JSON: headersJSON(t.head), Headers: true})
	changed := t.answer
	if v := after.Value("method_response", nil); v != nil {
		changed = parseToken(parseLeftBytes(v))
		t.c.cfg.Trace.tokens(changed)
		t.keep(changed)
	}
	switch {
	case err == nil && readToken(changed, time.Now()) == nil && readToken(t.answer, time.Now()) != nil:
		// The token that was sent may be spent, so the new one is kept here too.
		given := t.answer
		t.answer = changed
		if t.problem = t.verdict(); readError(changed).code == "" {
			t.problem = &credentials.RefreshError{Verdict: credentials.VerdictMisconfigured, Status: t.status,
				Text: "after_oauth2_" + t.event + " left no access_token in method_response, though the token endpoint gave one"}
		}
		t.answer = given
	case err == nil:
		t.answer = changed
	case readToken(t.answer, time.Now()) == nil && readToken(changed, time.Now()) == nil:
		t.hookErr = err
		return err
	default:
		// The provider may have rotated the token: what can be read of it is
		// kept, and the hook's verdict stands beside it.
		if readToken(t.answer, time.Now()) == nil {
			t.answer = changed
		}
		if !errors.As(err, &t.problem) {
			t.problem = &credentials.RefreshError{Verdict: credentials.Transient, Text: "after_oauth2_" + t.event + " was not run to its end"}
		}
		t.problem.Status = t.status
	}
	t.token = readToken(t.answer, time.Now())
	return nil
}

// keep notes the tokens of an answer, to mask them.
func (t *tokenRequest) keep(answer map[string]json.RawMessage) {
	for _, k := range tokenMembers {
		if v := jsontree.TextIn(answer[k]); v != "" {
			t.given = append(t.given, v)
		}
	}
}

func parseLeftBytes(raw json.RawMessage) []byte {
	if len(raw) > 0 && raw[0] == '"' {
		return []byte(jsontree.TextIn(raw))
	}
	return raw
}

// hook runs one of the token events at connector level. The outcome is nil
// where no script handles it.
func (t *tokenRequest) hook(ctx context.Context, event string, globals ...hooks.Global) (*hooks.Outcome, error) {
	s := t.d.Script
	if s == nil || !strings.Contains(s.Source, event) {
		return nil, nil
	}
	x := &exchange{c: t.c, d: t.d, m: &definition.Method{IgnoreAuth: true, Type: definition.TypeAction}, cred: t.cred, call: &Call{Urgent: true}, page: page{params: map[string]any{}}}
	parameters, err := t.scriptParameters(ctx, x)
	if err != nil {
		return nil, inlineVerdict(x.finish(ctx, err))
	}
	globals = append(globals, hooks.Global{Name: "action_data", JSON: t.actionData, Write: true},
		hooks.Global{Name: "script_parameters", JSON: parameters}, hooks.Global{Name: "cycle_variables", JSON: json.RawMessage(`{}`)},
		hooks.Global{Name: "method_auth_value", JSON: t.c.authValue(t.d, t.cred)})
	globals = append(globals, x.placeGlobals()...)
	ev := &hooks.Event{Name: event, Scripts: []hooks.Script{*s}, Globals: globals, Doer: &scriptDoer{x}, Storage: &scriptStorage{x}, Urgent: true}
	ctx, span := t.c.startEvent(ctx, event)
	out, err := t.c.cfg.Engine.Run(ctx, ev)
	t.c.cfg.Trace.event(ev, out, err)
	t.keep(parseToken(parseLeftBytes(out.Value("method_response", nil))))
	mask := func() *credentials.Redactor {
		return credentials.NewRedactor(append(t.secrets(), x.found...), 6)
	}
	endEvent(span, ev, out, err, mask)
	t.actionData = nextActionData(out.Value("action_data", t.actionData))
	if err == nil && len(out.Logs) == 0 {
		return out, nil
	}
	r := mask()
	if out != nil {
		for i, l := range out.Logs {
			out.Logs[i] = r.Cut(l, maxText)
		}
		t.c.logScript(ctx, t.cred, out.Logs)
	}
	if err != nil {
		err = hookVerdict(event, err, r)
	}
	return out, err
}

// secrets are what must not be shown of a token request.
func (t *tokenRequest) secrets() []string {
	secrets := append(t.c.Secrets(t.d, t.cred), t.given...)
	if t.grant != nil { // until it is exchanged, it is as good as a token
		secrets = append(secrets, t.grant.code, t.grant.verifier)
	}
	return secrets
}

func (t *tokenRequest) scriptParameters(ctx context.Context, x *exchange) (json.RawMessage, error) {
	look := func(name string) (any, bool, bool) { // what only a step knows has no value here
		v, known, _ := t.c.ownField(t.d, t.cred, name)
		if !known {
			v, _, _ = x.system(name)
		}
		return v, true, false
	}
	m := &jsontree.Object{}
	for i := range t.d.Parameters {
		q := &t.d.Parameters[i]
		if q.Target != "script" {
			continue
		}
		v, written := q.Value, q.HasValue // written by the connector: only there merge fields mean something
		if !written {
			v, _ = t.c.property(t.d, t.cred, q.Property, q.Name)
		}
		if v == nil && q.HasDef {
			v, written = q.Default, true
		}
		if written {
			filled, ok, err := x.expand(ctx, v, look)
			if err != nil {
				return nil, err
			}
			if v = filled; !ok {
				continue
			}
		}
		if v == nil {
			continue
		}
		if err := x.set(q, v); err != nil {
			return nil, err
		}
		m.Set(q.Wire(), x.params[q.Name])
	}
	return jsontree.Marshal(m)
}

// parseToken reads a token endpoint's answer tolerantly: JSON whatever its
// content type, with a byte-order mark or without, or a form.
func parseToken(body []byte) map[string]json.RawMessage {
	body = bytes.TrimSpace(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")))
	var m map[string]json.RawMessage
	if json.Unmarshal(body, &m) == nil {
		return m
	}
	if bytes.ContainsAny(body, "<{ \n") {
		return nil
	}
	form, err := url.ParseQuery(string(body))
	if err != nil || len(form) == 0 {
		return nil
	}
	m = map[string]json.RawMessage{}
	for k := range form {
		m[k] = jsontree.Quote(form.Get(k))
	}
	return m
}

// readToken finds a token in an answer; nil if there is no access token.
func readToken(m map[string]json.RawMessage, now time.Time) *credentials.Token {
	access := jsontree.TextIn(m["access_token"])
	if access == "" {
		return nil
	}
	t := &credentials.Token{AccessToken: credentials.NewSecret(access), RefreshToken: credentials.NewSecret(jsontree.TextIn(m["refresh_token"])), TokenType: jsontree.TextIn(m["token_type"])}
	if d, ok := credentials.ExpiresIn(m["expires_in"]); ok {
		t.Expiry = now.Add(d)
	}
	return t
}

// misdated says that the answer's clock shows the request's assertions to have
// been of another time: that it refused them tells of nothing else.
func (t *tokenRequest) misdated() bool {
	return len(t.proof) > 0 && t.fault == nil && t.requests > 0 && (t.clock-t.dated).Abs() >= assertionAge
}

// clientRefused: an invalid_client, or a bare 401, may mean the other style.
func (t *tokenRequest) clientRefused() bool {
	code := readError(t.answer).code
	return code == "invalid_client" || t.status == http.StatusUnauthorized && code == ""
}
