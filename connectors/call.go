package connectors

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/stepworker/stepworker/connectors/dates"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/connectors/httpfield"
	"github.com/stepworker/stepworker/connectors/inline"
	"github.com/stepworker/stepworker/connectors/jsontree"
	"github.com/stepworker/stepworker/connectors/mergefields"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/hooks"
	"github.com/stepworker/stepworker/internal/spans"
)

// Caller calls methods. It is safe for concurrent use.
type Caller struct {
	cfg    CallerConfig
	client *http.Client
	policy *policy
	tracer trace.Tracer

	mu        sync.Mutex
	redactors map[string]*redactors    // by credential id
	styles    map[string]string        // auth styles known to work, by connector
	skews     map[string]time.Duration // of providers' clocks, by connector
}

type redactors struct {
	connector     string
	version       int64
	text, content *credentials.Redactor
}

// NewCaller returns a caller. An AllowNetworks that does not parse is an error.
func NewCaller(cfg CallerConfig) (*Caller, error) {
	if cfg.MaxResponse == 0 {
		cfg.MaxResponse = 10 << 20
	}
	if cfg.CallTimeout == 0 {
		cfg.CallTimeout = 60 * time.Second
	}
	p, err := newPolicy(&cfg)
	if err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Logger = spans.Logger(cfg.Logger)
	var guarded http.RoundTripper = transport{p.transport(), cfg.MaxResponse}
	if cfg.Transport != nil {
		guarded = cfg.Transport(guarded)
	}
	return &Caller{
		cfg: cfg, policy: p, tracer: spans.Tracer(cfg.TracerProvider), redactors: map[string]*redactors{}, styles: map[string]string{}, skews: map[string]time.Duration{},
		client: &http.Client{Transport: guarded, CheckRedirect: checkRedirect},
	}, nil
}

// Close drops idle connections.
func (c *Caller) Close() { c.client.CloseIdleConnections() }

// Forbid refuses further addresses (host:port) from now on, as
// CallerConfig.Forbidden does: servers of Redis that were not known before.
func (c *Caller) Forbid(hostports []string) { c.policy.forbid(hostports) }

// CanRefresh says what can be renewed: a token, a session.
func (c *Caller) CanRefresh(d *definition.Connector, _ *credentials.Credential) (oauth2, session bool) {
	return d.Auth.Type == "oauth2", d.LoginMethod != ""
}

// CanRenewToken says that a token request can bring a new token without a person.
func (c *Caller) CanRenewToken(d *definition.Connector, cred *credentials.Credential) bool {
	return d.Auth.Type == "oauth2" && (d.Auth.Grant != "authorization_code" || cred.Secrets.OAuth2 != nil && !cred.Secrets.OAuth2.RefreshToken.Empty())
}

// exchange is one call under way.
type exchange struct {
	c    *Caller
	call *Call
	d    *definition.Connector
	m    *definition.Method
	cred *credentials.Credential

	given  map[string]json.RawMessage // the step's parameters
	mapped []mapped                   // what its mappings make of its body
	values map[*inline.Script]any     // of inline script that no page changes
	book   book

	page // that is asked for

	actionData json.RawMessage
	session    json.RawMessage // session_properties
	ran        bool
	skew       time.Duration // of a login's server
	nextRun    time.Time     // as after_action_paging left it
	logs       []string
	found      []string // secrets beside the credential's: this call's sensitive values
	boundary   string   // between the parts of bodies, of all pages
	newSession bool     // a hook wrote to session_properties
	masks      *redactors
}

// page is one request of a call and its answer: what is made anew, from the
// pristine input, for each.
type page struct {
	params  map[string]any        // resolved values by parameter name
	step    map[string]bool       // of these, supplied by the step
	wanted  *definition.Parameter // a session property that a template needs, and that has no value
	missing []missing             // required ones without a value, which before_action may supply

	template  string          // of the URL, the connector's own
	endpoint  string          // the same, hooks may change it
	headers   json.RawMessage // method_request_headers
	query     json.RawMessage
	body      json.RawMessage // nil: none
	merge     json.RawMessage // method_request_mergefields
	scriptPar json.RawMessage

	homes       []string // scheme://host of the URL and of base_url, as connector and credential alone name them
	target      string   // scheme://host of the endpoint as filled
	status      int
	reason      string
	resHead     http.Header
	resBody     []byte
	said        string          // the same as text
	content     json.RawMessage // method_response
	came        json.RawMessage // the same as it came, before hooks
	binary      bool
	ofXML       bool // content was read from XML
	unparsed    bool // content is text that came as another type than the method's
	tooLarge    bool
	faulted     bool // the request got no answer
	faultSent   bool // though something was sent
	resolved    bool // after_error made the error a success
	methodError json.RawMessage
	timeout     time.Duration
	sentURL     string // without what authenticates
	fingerprint string
	slices      int // outbound requests, in all
}

// Call makes one call of a method.
func (c *Caller) Call(ctx context.Context, call *Call) (*Answer, error) {
	x := &exchange{c: c, call: call, d: call.Definition, m: call.Method, cred: call.Credential, given: call.Parameters}
	answer, err := x.run(ctx)
	if err != nil {
		return nil, x.finish(ctx, err)
	}
	answer.NextRun = x.nextRun
	if w := answer.Webhook; w != nil && w.Reply != nil {
		w.Reply.Headers, w.Reply.Content = x.redactors().content.JSON(w.Reply.Headers), x.redactors().content.JSON(w.Reply.Content)
	}
	answer.Ran, answer.Logs = x.ran, x.maskLogs()
	answer.Content, answer.Fields = x.redactors().content.JSON(answer.Content), x.redactors().content.JSON(answer.Fields)
	return answer, nil
}

func (x *exchange) run(ctx context.Context) (*Answer, error) {
	if err := x.mapStep(ctx); err != nil {
		return nil, err
	}
	if err := x.suits(); err != nil {
		return nil, err
	}
	x.actionData = nextActionData(x.call.ActionData)
	if err := x.openBook(ctx); err != nil {
		return nil, err
	}
	before := x.book.Done
	for !x.book.Done {
		answer, err := x.onePage(ctx)
		if answer != nil || err != nil {
			return answer, err
		}
		if err := x.turn(ctx); err != nil {
			return nil, err
		}
	}
	answer := &Answer{}
	err := x.allPages(ctx)
	if err == nil {
		err = x.condition(ctx, answer)
	}
	if err != nil && !before {
		return nil, x.keepOnly(ctx, err)
	} else if err != nil {
		return nil, err
	}
	x.book.hand = nil
	return answer, x.collect(answer)
}

// onePage makes one request and runs the hooks around it. An Answer is there
// where the call is at its end with it.
func (x *exchange) onePage(ctx context.Context) (*Answer, error) {
	x.page = page{}
	if err := x.ready(ctx); err != nil {
		return nil, err
	}
	if x.m.Type == definition.TypeWebhook {
		return x.receive(ctx)
	}
	headers, body, merge := x.headers, x.body, x.merge
	// Who must wait does so before its scripts run, so that they run once.
	if handled(x.scripts("before_action"), "before_action") || x.m.Type == definition.TypeScript {
		if err := x.pace(ctx, PaceBegin); err != nil {
			return nil, err
		}
	}
	if err := x.hook(ctx, "before_action"); err != nil {
		return nil, err
	}
	if err := x.supplied(); err != nil {
		return nil, err
	}
	if x.m.Type == definition.TypeScript {
		return x.scripted(ctx)
	}
	if err := x.refill(headers, body, merge); err != nil {
		return nil, err
	}
	req, err := x.request(ctx)
	if err != nil {
		return nil, err
	}
	if again, err := x.asked(req); again || err != nil {
		return nil, err
	}
	if err := x.pace(ctx, PaceSend); err != nil {
		return nil, err
	}
	callCtx, cancel := context.WithTimeout(req.Context(), x.timeout)
	defer cancel()
	fault := x.send(req.WithContext(callCtx))
	if x.tooLarge {
		return nil, &CallError{Kind: "limit", Limit: LimitResponse, StatusCode: x.status, Message: fmt.Sprintf("the answer is larger than %d bytes (--max-response)", x.c.cfg.MaxResponse)}
	}
	x.came = x.content
	if fault != nil || x.status < 200 || x.status > 299 {
		return x.failed(ctx, fault)
	}
	return nil, x.hook(ctx, "after_action")
}

// ready makes a request's parts from the pristine input.
func (x *exchange) ready(ctx context.Context) error {
	if err := x.resolve(ctx); err != nil {
		return err
	}
	err := x.prepare()
	if x.wanted != nil { // whatever else went wrong without it
		return x.noSession(x.wanted)
	}
	return err
}

// failed runs after_error and decides what the error becomes: a success or a
// warning, with which the call is at its end, or an error. After the first page
// a success is a page like the others.
func (x *exchange) failed(ctx context.Context, f *fault) (*Answer, error) {
	if f != nil && f.refused != nil {
		return nil, &CallError{Kind: "input", Message: f.text}
	}
	if f != nil && f.coded != nil {
		return nil, &CallError{Kind: "http", StatusCode: x.status, Message: f.text}
	}
	x.faulted, x.faultSent = f != nil, f != nil && f.sent
	me, err := x.afterError(ctx, f)
	var ce *CallError
	if f != nil && errors.As(err, &ce) && ce.script != nil && ce.script.Engine {
		// Without an answer there is no status: a handler that reads
		// statusCode.toString() stumbles, which must not hide the fault.
		return nil, x.apiError(f)
	}
	if err != nil {
		return nil, err
	}
	switch {
	case me.IsSuccess || !me.IsError && !me.IsWarning:
		x.resolved = true
		x.content, x.binary = x.parseText(me.Content, x.m.ResponseDT), false
		if x.came = x.content; x.book.Page > 1 {
			return nil, nil
		}
		x.book.answered(x)
		answer := &Answer{}
		if err := x.condition(ctx, answer); err != nil {
			return nil, err
		}
		return answer, x.collect(answer)
	case me.IsWarning:
		answer := &Answer{StatusCode: x.status, Warning: fmt.Sprintf("the API answered %s, which the connector takes as a warning", x.statusText())}
		if f != nil {
			answer.Warning = f.text
		}
		answer.Warning = x.mask().String(answer.Warning)
		answer.Pages = x.book.Pages
		if x.status != 0 {
			answer.Pages++
		}
		return answer, nil
	}
	if !x.call.Urgent && slices.Contains(x.d.Auth.RefreshOn, x.status) { // a login or a test can cause no refresh
		kind := hooks.AuthSession
		if x.d.Auth.Type == "oauth2" {
			kind = hooks.AuthRefresh
		}
		return nil, x.authError(&hooks.Exception{Kind: kind, Level: hooks.LevelConnector, Text: fmt.Sprintf("the API answered %s", x.statusText())})
	}
	return nil, x.apiError(f)
}

// apiError is an unresolved error of the API or the network.
func (x *exchange) apiError(f *fault) *CallError {
	repeat := x.m.MayRepeat()
	if f != nil {
		return &CallError{Kind: "network", Message: f.text, Repeat: repeat || !f.sent}
	}
	e := &CallError{Kind: "http", StatusCode: x.status, Message: fmt.Sprintf("the API answered %s", x.statusText()), Detail: x.detail(x.said)}
	wait := retryAfter(x.resHead)
	switch {
	case x.status == http.StatusTooManyRequests, x.status == http.StatusServiceUnavailable && wait > 0:
		e.Kind, e.Defer, e.Limited, e.RetryAfter = "rate", true, true, wait
	case x.status == http.StatusRequestTimeout, x.status >= 500:
		e.Repeat, e.RetryAfter = repeat, wait
	case redirects(x.status):
		switch to, host := x.leadsTo(); {
		case host != "":
			e.Kind, e.Message = "input", fmt.Sprintf("%s: it leads to host %q, which is neither the connector's nor in auth.hosts", e.Message, host)
		case to != "":
			e.Message += ": it leads to " + to + ", where no redirect is followed"
		}
	}
	return e
}

// redirects says that a status leads elsewhere by its Location: 304 and the like do not.
func redirects(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// leadsTo is the origin that a redirect leads to, unless it is the one that was
// asked, and its host, unless that is the connector's. What differs from the
// connector's in scheme or port alone, as https from http, is no stranger.
func (x *exchange) leadsTo() (origin, host string) {
	u, err := url.Parse(x.resHead.Get("Location"))
	if err != nil || u.Host == "" {
		return "", ""
	}
	if u.Scheme == "" {
		u.Scheme, _, _ = strings.Cut(x.target, ":")
	}
	at := originOf(u)
	if at == x.target {
		return "", ""
	}
	if x.mayReceive(u) || slices.ContainsFunc(x.homes, func(home string) bool {
		h, err := url.Parse(home)
		return err == nil && strings.EqualFold(h.Hostname(), u.Hostname())
	}) {
		return at, ""
	}
	return at, u.Host
}

func (x *exchange) statusText() string {
	if x.reason == "" {
		return fmt.Sprint(x.status)
	}
	return fmt.Sprintf("%d %s", x.status, x.reason)
}

// hook runs one event at all levels and takes over what it changed.
func (x *exchange) hook(ctx context.Context, event string) error {
	_, err := x.event(ctx, event)
	return err
}

func (x *exchange) event(ctx context.Context, event string) (*hooks.Outcome, error) {
	scripts := x.scripts(event)
	// A step's script must compile before anything is sent.
	if !handled(scripts, event) && (event != "before_action" && event != "before_webhook" || x.call.Script == "") {
		return nil, nil
	}
	ev := &hooks.Event{Name: event, Scripts: scripts, Globals: x.globals(event), Doer: &scriptDoer{x}, Storage: &scriptStorage{x}, Urgent: x.call.Urgent}
	ctx, span := x.c.startEvent(ctx, event)
	out, err := x.c.cfg.Engine.Run(ctx, ev)
	x.c.cfg.Trace.event(ev, out, err)
	told := err
	out, err = x.ended(out, err)
	endEvent(span, ev, out, told, x.mask)
	return out, err
}

// ended takes over what an event left, and says how the call goes on.
func (x *exchange) ended(out *hooks.Outcome, err error) (*hooks.Outcome, error) {
	x.ran = x.ran || out == nil || out.Ran // a script that does not compile does not run
	if out != nil {
		x.logs = append(x.logs, out.Logs...)
		x.take(out)
		if x.c.cfg.Trace != nil {
			x.c.cfg.Trace.secrets(x.changedSession())
		}
	}
	var exc *hooks.Exception
	var script *hooks.ScriptError
	var limit *hooks.LimitError
	switch {
	case err == nil:
		return out, nil
	case errors.As(err, &exc):
		return out, x.exception(exc)
	case errors.As(err, &script):
		return out, &CallError{Kind: "script", Message: script.Message, At: script.At, StatusCode: x.status, script: script}
	case errors.As(err, &limit):
		return out, &CallError{Kind: "limit", Limit: string(limit.Limit), Message: limit.Message, At: limit.At, StatusCode: x.status}
	case ofContext(err):
		return out, err
	}
	return out, &HostError{err}
}

func ofContext(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// handled says that some script may handle an event.
func handled(scripts []hooks.Script, event string) bool {
	return slices.ContainsFunc(scripts, func(s hooks.Script) bool { return strings.Contains(s.Source, event) })
}

// scripts are those that may handle an event: how a method ends is not the
// step's to say.
func (x *exchange) scripts(event string) []hooks.Script {
	all := make([]hooks.Script, 0, 3)
	if s := x.d.Script; s != nil {
		all = append(all, *s)
	}
	if s := x.m.Script; s != nil {
		all = append(all, *s)
	}
	if x.call.Script != "" && event != "action_condition" {
		all = append(all, hooks.Script{Level: hooks.LevelStep, File: "step", Source: x.call.Script})
	}
	return all
}

// nextActionData is the action_data of the next event, or attempt: one may set
// a member of it without looking whether a script emptied it.
func nextActionData(left json.RawMessage) json.RawMessage {
	if len(left) == 0 || string(left) == "null" {
		return json.RawMessage(`{}`)
	}
	return left
}

// take lays what an event changed over the call's own data.
func (x *exchange) take(out *hooks.Outcome) {
	if v, ok := out.Changed["method_endpoint"]; ok {
		x.endpoint = jsontree.TextIn(v)
	}
	x.headers = out.Value("method_request_headers", x.headers)
	x.query = out.Value("method_request_parameters", x.query)
	x.body = out.Value("method_request", x.body)
	x.merge = out.Value("method_request_mergefields", x.merge)
	x.actionData = nextActionData(out.Value("action_data", x.actionData))
	if v, ok := out.Changed["session_properties"]; ok {
		x.session, x.newSession, x.masks = v, true, nil // what is masked is found anew
	}
	if v, ok := out.Changed["method_response"]; ok {
		x.content, x.binary = x.parseLeft(v, x.m.ResponseDT), false
		x.unparsed = false
	}
}

// paging runs after_action_paging, which may say what the step's next last
// successful run date is to be.
func (x *exchange) paging(ctx context.Context) error {
	out, err := x.event(ctx, "after_action_paging")
	if err == nil {
		x.content, err = x.filtered(x.content)
	}
	if err != nil || out == nil {
		return err
	}
	const name = "next_last_successful_run_date"
	next := out.Value(name, nil)
	if next == nil || string(next) == "null" {
		return nil
	}
	var ok bool
	if x.nextRun, ok = dates.FromJSON(next); !ok {
		return &CallError{Kind: "script", StatusCode: x.status,
			Message: fmt.Sprintf("after_action_paging left a %s that is no date: %s; a Date is needed, or text such as 2026-11-25T10:00:00Z", name, clip(string(next), 60))}
	}
	return nil
}

// exception is one of the three classes leaving a handler.
func (x *exchange) exception(e *hooks.Exception) error {
	if e.Level == hooks.LevelStep {
		return &CallError{Kind: "script", At: e.At, StatusCode: x.status,
			Message: fmt.Sprintf("%s is for connector scripts: it was thrown by %s of the step's script", e.Kind, e.Event)}
	}
	if e.Kind == hooks.RetryLater {
		text := "the connector's script asks to wait"
		if e.Text != "" {
			text = e.Text
		}
		return &CallError{Kind: "rate", Message: text, At: e.At, Defer: true, RetryAfter: max(e.After, time.Second), StatusCode: x.status}
	}
	if !slices.Contains(authEvents, e.Event) {
		return &CallError{Kind: "script", At: e.At, StatusCode: x.status,
			Message: fmt.Sprintf("%s cannot be thrown from %s: throw it from one of %s", e.Kind, e.Event, strings.Join(authEvents, ", "))}
	}
	return x.authError(e)
}

// authEvents are where a script may say that the credential is dead.
var authEvents = []string{"before_action", "after_action", "after_action_paging", "after_error"}

// authError is a credential that shows that it is dead. A login or a test can
// cause no refresh and ends by its verdict; else an answer that misses a scope
// is told apart: another token of the same kind would miss it too.
func (x *exchange) authError(e *hooks.Exception) error {
	if scopes, missing := httpfield.MissingScope(x.resHead); missing && !x.call.Urgent {
		return &CallError{Kind: "auth", At: e.At, StatusCode: x.status, Detail: x.detail(x.said), Message: x.scopeText(scopes)}
	}
	a := &AuthError{Restart: e.Event == "after_action_paging" && !x.m.Paging.Outbound, Kind: credentials.OAuth2, Version: x.cred.Version, At: e.At, Status: x.status, Detail: x.detail(x.said), Text: e.Text}
	if e.Kind == hooks.AuthSession {
		a.Kind = credentials.Session
		a.Session = x.changedSession()
	}
	if a.Text == "" {
		a.Text = fmt.Sprintf("%s threw %s", e.Event, e.Kind)
	}
	oauth2, session := x.c.CanRefresh(x.d, x.cred)
	switch static := staticCredentials[x.d.Auth.Type]; {
	case static != "" && !session && len(a.Session) == 0:
		a.NoRenewal, a.Static = true, static
	case a.Kind == credentials.OAuth2 && !oauth2:
		a.NoRenewal, a.Missing = true, "auth.type: oauth2"
	case a.Kind == credentials.Session && !session && len(a.Session) == 0:
		a.NoRenewal, a.Missing = true, "post_install.property_lookup_method"
	}
	return a
}

// staticCredentials are what no token request and, where there is no login
// method, no login renews.
var staticCredentials = map[string]string{
	"api_key": "an API key", "basic": "a user name and password", "oauth1": "an OAuth 1.0a token", definition.AuthFields: "the fields of an account",
}

// scopeText says what to do about a scope that is missing.
func (x *exchange) scopeText(scopes []string) string {
	what := "a scope"
	switch {
	case len(scopes) == 1:
		what = fmt.Sprintf("scope %q", scopes[0])
	case len(scopes) > 1:
		what = fmt.Sprintf("one of the scopes %q", scopes)
	}
	text := fmt.Sprintf("the credential lacks %s, which the API asks of method %q (insufficient_scope), and a new token would lack it too: ", what, x.m.Name)
	if x.d.Auth.Type != "oauth2" {
		return text + "give the account that permission"
	}
	return text + "see that auth.scopes names it, and authorize the account again"
}

// condition runs action_condition; its presence gives the method two exits.
func (x *exchange) condition(ctx context.Context, answer *Answer) error {
	out, err := x.event(ctx, "action_condition")
	if err != nil || out == nil || !out.Ran {
		return err
	}
	exit := string(out.Result) != "false" // as from other handlers, what is neither counts as true
	answer.Exit = &exit
	return nil
}

// finish gives an error what every error needs: what outlives the attempt, and
// a text without secrets.
func (x *exchange) finish(ctx context.Context, err error) error {
	var auth *AuthError
	var ce *CallError
	var exp *mergefields.Error
	var host *HostError
	var pacer *PacerError
	var pages *PagesError
	var pace *PaceError
	r := x.mask()
	switch {
	case errors.As(err, &auth):
		auth.ActionData, auth.Ran, auth.Logs = x.actionData, x.ran, x.maskLogs()
		auth.Text, auth.Detail = r.Cut(auth.Text, maxText), r.String(auth.Detail)
		return auth
	case errors.As(err, &ce):
	case errors.As(err, &exp):
		ce = &CallError{Kind: "input", Message: exp.Text}
	case errors.As(err, &host), errors.As(err, &pacer), errors.As(err, &pages), ofContext(err):
		return err
	case errors.As(err, &pace):
		ce = &CallError{Kind: "rate", Message: pace.Error(), Defer: true, RetryAfter: max(time.Until(pace.At), time.Millisecond), TurnAt: pace.At}
	case x.status != 0: // what could not be read or written then is the answer
		ce = &CallError{Kind: "http", StatusCode: x.status, Message: "the answer cannot be used: " + err.Error()}
	default:
		ce = &CallError{Kind: "input", Message: "the request cannot be made: " + err.Error()}
	}
	if (ce.Kind == "script" || ce.Kind == "limit") && ce.Detail == "" {
		ce.Detail = x.excerpt(ce.At)
	}
	ce.ActionData, ce.Ran, ce.Logs = x.actionData, x.ran, x.maskLogs()
	ce.Message, ce.Detail = r.Cut(ce.Message, maxText), r.String(ce.Detail)
	return ce
}

const (
	maxText = 2000     // of a script's or an API's text that is kept, in bytes
	maxSaid = 64 << 10 // of an answer that is looked at for it
)

// maskLogs masks before it cuts: a secret's beginning is no less secret.
func (x *exchange) maskLogs() []string {
	r := x.mask()
	for i, l := range x.logs {
		x.logs[i] = r.Cut(l, maxText)
	}
	return x.logs
}

// detail is what an API said, masked before it is cut.
func (x *exchange) detail(said string) string {
	return x.mask().Cut(clip(said, maxSaid), maxText)
}

// mask masks what must not be shown.
func (x *exchange) mask() *credentials.Redactor { return x.redactors().text }

// redactors mask the credential's secrets, the sensitive values of this call,
// and the session that a login or a hook just found.
func (x *exchange) redactors() *redactors {
	if !x.m.IsLogin && !x.newSession && x.found == nil {
		return x.c.redactorsOf(x.d, x.cred)
	}
	if x.masks == nil || x.m.IsLogin {
		secrets := append(x.c.Secrets(x.d, x.cred), x.found...)
		session := x.changedSession
		if x.m.IsLogin {
			session = x.foundSession
		}
		for _, v := range session() {
			secrets = append(secrets, v)
		}
		x.masks = newRedactors(secrets)
	}
	return x.masks
}

func newRedactors(secrets []string) *redactors {
	return &redactors{text: credentials.NewRedactor(secrets, 6), content: credentials.NewRedactor(secrets, 16)}
}

// redactorsOf are a credential's, made once for each version.
func (c *Caller) redactorsOf(d *definition.Connector, cred *credentials.Credential) *redactors {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.redactors[cred.ID]; r != nil && r.version == cred.Version && r.connector == d.Name {
		return r
	}
	r := newRedactors(c.Secrets(d, cred))
	r.connector, r.version = d.Name, cred.Version
	if len(c.redactors) > 10_000 {
		clear(c.redactors)
	}
	c.redactors[cred.ID] = r
	return r
}

// Secrets is everything that must not be shown: the credential's secrets,
// a session that was put among its properties, and what the connector marks as
// sensitive.
func (c *Caller) Secrets(d *definition.Connector, cred *credentials.Credential) []string {
	secrets := cred.SecretValues()
	add := func(q definition.Parameter) {
		if !q.Sensitive && q.Property != "session" {
			return
		}
		if v, ok := c.property(d, cred, q.Property, q.Name); ok {
			if s, ok := jsontree.Text(v); ok {
				secrets = append(secrets, s)
			}
		}
		if s, ok := jsontree.Text(q.Value); ok && q.Sensitive && q.HasValue && !inline.Is(q.Value) { // what an inline script comes to is masked as it comes
			secrets = append(secrets, s)
		}
	}
	for _, q := range d.Parameters {
		add(q)
	}
	for _, m := range d.Methods {
		for _, q := range m.Parameters {
			add(q)
		}
	}
	p := c.cfg.Partner[d.Name]
	if p.ClientSecret != "" {
		secrets = append(secrets, p.ClientSecret)
	}
	if v, _ := c.property(d, cred, "account", clientSecretProperty); v != nil {
		secrets = append(secrets, leaves(v)...)
	}
	for _, s := range sealedOf(p) {
		secrets = append(secrets, s.Value)
	}
	if !p.PrivateKey.Empty() {
		secrets = append(secrets, credentials.KeyParts(p.PrivateKey)...)
	}
	if cred.Secrets.HasBasic {
		secrets = append(secrets, cred.Secrets.Username+":"+cred.Secrets.Password.Reveal())
	}
	return secrets
}

// logScript logs the lines of a script that runs for a credential and for no
// execution. They are masked already.
func (c *Caller) logScript(ctx context.Context, cred *credentials.Credential, lines []string) {
	for _, l := range lines {
		c.cfg.Logger.InfoContext(ctx, "script", "credential_id", cred.ID, "connector", cred.Connector, "text", l)
	}
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}
