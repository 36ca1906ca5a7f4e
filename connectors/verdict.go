package connectors

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/hooks"
)

// This is the one table of what a refresh that brought nothing means (promise
// 7): what a token endpoint answered, how a login or a test ended, and the
// scripts around them. The first row that fits counts; a column that is not
// set fits whatever was heard. What the server's state or the way to it
// explains stands above what the answer says of the account, so that nothing
// of that kind is ever taken as final.
//
// In a text {who} is what was asked, {status} its status, {said} what the
// answer says, {why} the fault or a script's words, {again} that it is asked
// again by itself.
var verdicts = []row{
	// The way there.
	{of: token, wire: forbidden, verdict: misconfigured, text: "auth.token_url: {why}"},
	{of: login, script: needsValue, verdict: misconfigured, text: "{who} needs what it is to bring: {why}"},
	{of: login, script: asksToWait, verdict: transient, text: "{who} has to wait: {why}"},
	{of: around, script: asksToWait, verdict: transient, text: "{who} asks to wait: {why}"},
	{of: token, wire: unanswered, verdict: unknown, text: "the token endpoint's answer never came, and is waited out: {why}"},
	{of: login, wire: unanswered, verdict: unknown, text: "{who} got no answer, and is waited out: {why}"},
	{of: token, wire: unsent, verdict: transient, text: "the token endpoint: {why}{again}"},

	// A login that was answered, or that its after_error has resolved.
	{of: login, script: foundNothing, verdict: misconfigured, text: "{who} answered, but {why}: check its response fields"},

	// The server is not itself just now, or never heard of it: a page before it.
	{of: token, status: outOfOrder, verdict: transient, text: "the token endpoint answered {status}{said}{again}"},
	{of: login, status: outOfOrder, verdict: transient, text: "{who} failed, and is tried again: {why}"},
	{of: token, status: blocked, page: true, verdict: transient, text: "the token endpoint answered {status} with an HTML page{again}"},
	{of: login, status: blocked, page: true, verdict: transient, text: "{who} answered {status} with an HTML page, and is tried again"},

	// Scripts: what their author has to put right, and what they find out.
	{of: login, script: broken, verdict: misconfigured, text: "{who} cannot be called as the connector says: {why}"},
	{of: around, script: broken | threwAuth, verdict: misconfigured, text: "{why}: correct the connector's script"},
	{of: around, script: threw, verdict: transient, text: "{why}; it is asked again"},
	{of: login, wire: unsent, verdict: transient, text: "{who} failed, and is tried again: {why}"},
	{of: login, script: requestFailed, verdict: transient, text: "{who} failed, and is tried again: {why}"},
	{of: login, script: threw | threwAuth, verdict: revoked, text: "{who} was refused: {why}; check what the account logs in with, and put the credential again"},

	// What a token endpoint says, of itself, of the account, of the connector.
	{of: token, code: aboutItself, verdict: transient, text: "the token endpoint cannot answer just now{said}{again}"},
	{of: token, code: aboutAccount, verdict: revoked, text: "the provider refused the account{said}: authorize it again and put the new credential"},
	{of: token, code: aboutClient, verdict: misconfigured, text: "the provider refused the connector{said}: check client_id, client_secret and scopes"},
	{of: token, status: absent, verdict: misconfigured, text: "the token endpoint answered {status}: check auth.token_url"},

	// What a status alone says of a login.
	{of: login, status: refusing, verdict: revoked, text: "{who} was refused with {status}: check what the account logs in with, and put the credential again"},
	{of: login, status: fine, verdict: misconfigured, text: "{who} answered what cannot be read: {why}"},
	{of: login, status: absent, verdict: misconfigured, text: "{who} answered {status}: check the method's endpoint and verb"},

	{of: token, verdict: transient, text: "the token endpoint answered {status}{said}{again}"},
	{of: login, verdict: transient, text: "{who} failed, and is tried again: {why}"},
}

// codes says what the error codes of a token endpoint are about.
var codes = map[string]meaning{
	// RFC 6749 sections 4.1.2.1 and 5.2, RFC 8628 section 3.5.
	"server_error": aboutItself, "temporarily_unavailable": aboutItself, "slow_down": aboutItself,
	// RFC 6749 sections 4.1.2.1 and 5.2, OpenID Connect Core 1.0 section 3.1.2.6.
	"invalid_grant": aboutAccount, "access_denied": aboutAccount,
	"login_required": aboutAccount, "consent_required": aboutAccount, "interaction_required": aboutAccount,
	// RFC 6749 section 5.2, RFC 8707 section 2.
	"invalid_client": aboutClient, "unauthorized_client": aboutClient, "invalid_scope": aboutClient,
	"invalid_request": aboutClient, "unsupported_grant_type": aboutClient, "invalid_target": aboutClient,
}

// ofTheClient are the codes that tell of the client, whoever's account it asks
// for: what it is, and what the connector has it ask for. See also
// tokenRequest.deniedToAccount.
var ofTheClient = []string{"invalid_client", "unauthorized_client", "invalid_scope", "unsupported_grant_type"}

// spellings are providers' own words for the codes above, in lower case. A
// number stands behind the member or the type that it came with.
var spellings = map[string]string{
	"bad_refresh_token":     "invalid_grant", // GitHub; HubSpot, in capitals, as its status
	"bad_verification_code": "invalid_grant", // GitHub
	"bad_auth_code":         "invalid_grant", // HubSpot
	"invalid_refresh_token": "invalid_grant", // Slack
	"token_revoked":         "invalid_grant", // Slack
	"token_expired":         "invalid_grant", // Slack
	"account_inactive":      "invalid_grant", // Slack
	"invalid_code":          "invalid_grant", // Zoho, of a refresh token too; Slack
	"invalid_token":         "invalid_grant", // Spring Security OAuth, of a refresh token
	"refresh_token invalid": "invalid_grant", // Strava: field and code
	"oauthexception 190":    "invalid_grant", // Facebook, Instagram: "get a new access token"
	"oauthexception 102":    "invalid_grant", // Facebook: the same
	"inactive_user":         "invalid_grant", // Salesforce
	"inactive_org":          "invalid_grant", // Salesforce
	"errcode 40030":         "invalid_grant", // WeChat: invalid refresh_token
	"errcode 42002":         "invalid_grant", // WeChat: refresh_token has expired

	"admin_policy_enforced": "access_denied", // Google: a workspace's policy, of a refresh too
	"policy_enforced":       "access_denied", // Google: Advanced Protection

	"incorrect_client_credentials": "invalid_client", // GitHub
	"bad_client_id":                "invalid_client", // HubSpot
	"bad_client_secret":            "invalid_client", // Slack, HubSpot
	"invalid_client_id":            "invalid_client", // Slack, Salesforce
	"invalid_client_secret":        "invalid_client", // Zoho
	"deleted_client":               "invalid_client", // Google
	"disabled_client":              "invalid_client", // Google
	"client_id invalid":            "invalid_client", // Strava
	"client_secret invalid":        "invalid_client", // Strava
	"errcode 40013":                "invalid_client", // WeChat: invalid appid
	"errcode 40125":                "invalid_client", // WeChat: invalid appsecret

	"invalid_client: invalid client_id or client_secret": "invalid_client", // Dropbox: code and description in one

	"ratelimited":         "slow_down",    // Slack
	"rate_limit_exceeded": "slow_down",    // Salesforce
	"oauthexception 4":    "slow_down",    // Facebook: too many calls
	"oauthexception 17":   "slow_down",    // Facebook: too many calls of the user
	"oauthexception 2":    "server_error", // Facebook: service, "wait and retry"
	"internal_error":      "server_error", // Slack
	"fatal_error":         "server_error", // Slack
	"service_unavailable": "server_error", // Slack
	"errcode -1":          "server_error", // WeChat: system busy
}

// sentences are the messages, in lower case, of providers whose answers have no
// code at all. Nothing shorter stands here: gateways say "Forbidden" too.
var sentences = map[string]string{
	"invalid refresh token": "invalid_grant",  // Twitch
	"invalid client secret": "invalid_client", // Twitch
}

// exceptions are answers whose description says something else than their
// code does, and says so in no other way.
var exceptions = []struct {
	code  string
	says  *regexp.Regexp
	means string
}{
	{"access_denied", regexp.MustCompile(`(?i)rate limit exceeded`), "slow_down"},                       // Exact Online: asked again too early
	{"access_denied", regexp.MustCompile(`^Unauthorized$`), "invalid_client"},                           // Auth0: a wrong secret
	{"unauthorized_client", regexp.MustCompile(`refresh_token is invalid`), "invalid_grant"},            // Atlassian: of one account
	{"invalid_request", regexp.MustCompile(`Invalid "refresh_token" in request`), "invalid_grant"},      // Authlib before 0.11
	{"invalid_request", regexp.MustCompile(`^Invalid refresh_token$`), "invalid_grant"},                 // Bitbucket
	{"invalid_request", regexp.MustCompile(`^The refresh_token is invalid`), "invalid_grant"},           // DeviantArt
	{"invalid_request", regexp.MustCompile(`^Value passed for the token was invalid`), "invalid_grant"}, // X
	{"unauthorized_client", regexp.MustCompile(`^Old refresh token used`), "invalid_grant"},             // Exact Online: of one account
	{"invalid_grant", regexp.MustCompile(`^issuer_not_found$`), "invalid_client"},                       // DocuSign: the client id
	{"invalid_grant", regexp.MustCompile(`(?i)ip restricted|login hours`), "temporarily_unavailable"},   // Salesforce: from there, or just now
	{"invalid_grant", regexp.MustCompile(`token request is already being processed`), "slow_down"},      // Salesforce: two requests at once
	{"invalid_grant", regexp.MustCompile(`AADSTS50196`), "slow_down"},                                   // Microsoft: the same request too often
	{"invalid_request", regexp.MustCompile(`AADSTS50196`), "slow_down"},                                 // Microsoft: the same
	// A JWT whose times the provider's clock does not like: the next is made by
	// that clock.
	{"invalid_grant", regexp.MustCompile(`must be a short-lived token|Check your iat and exp values`), "temporarily_unavailable"}, // Google
	{"invalid_grant", regexp.MustCompile(`check the 'exp' claim|listed in the 'exp' claim`), "temporarily_unavailable"},           // Box
	{"invalid_client", regexp.MustCompile(`AADSTS700024`), "temporarily_unavailable"},                                             // Microsoft
	{"invalid_grant", regexp.MustCompile(`^no_valid_keys_or_signatures$`), "temporarily_unavailable"},                             // DocuSign: of a wrong key too, which cannot be told
}

// row of the table.
type row struct {
	of      asked
	wire    wire
	script  ended // one of them
	status  func(int) bool
	code    meaning
	page    bool
	verdict credentials.Verdict
	text    string
}

// heard is what is known of one refresh that brought nothing.
type heard struct {
	of     asked
	wire   wire
	script ended
	status int
	code   meaning
	page   bool

	who, said, why, again string // for the text
	statusText            string
}

type asked int

const (
	token  asked = iota + 1 // a token endpoint
	login                   // a login or a test method
	around                  // a hook around a token request
)

// wire is how far the request came that got no answer.
type wire int

const (
	forbidden  wire = iota + 1 // the network policy refuses the address
	unsent                     // no name, no connection, no TLS
	unanswered                 // sent, and no answer
)

// ended is how the script ended that was the end of it.
type ended int

const (
	needsValue    ended = 1 << iota // the request needs a value that there is not
	asksToWait                      // RetryLaterException, or an answer that asks for it
	broken                          // an engine error, a broken limit, input that is none
	threw                           // a value, or false
	threwAuth                       // AuthRefreshException, AuthSessionException
	requestFailed                   // an http_request that got no answer
	foundNothing                    // no session in what was answered
)

// meaning of an error code.
type meaning int

const (
	aboutItself  meaning = iota + 1 // the server is busy, or broken
	aboutAccount                    // the grant, the account, the consent
	aboutClient                     // the client, its scopes, its request
)

const (
	transient     = credentials.Transient
	revoked       = credentials.VerdictRevoked
	misconfigured = credentials.VerdictMisconfigured
	unknown       = credentials.Unknown
)

// outOfOrder statuses tell of the server or of the moment, not of who asks,
// whatever a body or a script says beside them.
func outOfOrder(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusConflict, http.StatusLocked, http.StatusTooEarly, http.StatusTooManyRequests:
		return true
	}
	return status >= 500
}

func blocked(status int) bool {
	return status == http.StatusBadRequest || status == http.StatusForbidden
}
func refusing(status int) bool { return blocked(status) || status == http.StatusUnauthorized }
func fine(status int) bool     { return status >= 200 && status <= 299 }
func absent(status int) bool {
	return status == http.StatusNotFound || status == http.StatusMethodNotAllowed
}

// verdict finds the row.
func (h *heard) verdict() *credentials.RefreshError {
	for _, r := range verdicts {
		if r.fits(h) {
			status := h.statusText
			if status == "" {
				status = strconv.Itoa(h.status)
			}
			text := strings.NewReplacer("{who}", h.who, "{status}", status, "{said}", h.said, "{why}", h.why, "{again}", h.again).Replace(r.text)
			return &credentials.RefreshError{Verdict: r.verdict, Status: h.status, Text: text}
		}
	}
	return &credentials.RefreshError{Verdict: transient, Status: h.status, Text: h.why}
}

func (r *row) fits(h *heard) bool {
	return r.of == h.of && (r.wire == 0 || r.wire == h.wire) && (r.script == 0 || r.script&h.script != 0) &&
		(r.status == nil || r.status(h.status)) && (r.code == 0 || r.code == h.code) && (!r.page || h.page)
}

// verdict of a token endpoint's answer, or of none.
func (t *tokenRequest) verdict() *credentials.RefreshError {
	said := readError(t.answer)
	h := &heard{of: token, status: t.status, code: codes[said.code], page: t.answer == nil && isPage(t.head)}
	if f := t.fault; f != nil {
		h.wire, h.why = f.wire(), f.text
	}
	r := t.c.redactorsOf(t.d, t.cred).text
	if len(t.given) > 0 {
		r = credentials.NewRedactor(append(t.c.Secrets(t.d, t.cred), t.given...), 6)
	}
	h.said = clip(r.String(said.written), 100)
	if said.text != "" {
		if h.said != "" {
			h.said += ": "
		}
		h.said += clip(r.String(said.text), 200)
	}
	if h.said != "" {
		h.said = " (" + h.said + ")"
	}
	if t.grant == nil {
		h.again = "; it is asked again"
	}
	e := h.verdict()
	if e.Verdict != transient && t.misdated() {
		e.Verdict, e.Text = transient, fmt.Sprintf("the token endpoint refused an assertion that was dated %s off its clock%s; the next is dated by that", (t.clock-t.dated).Abs(), h.said)
	}
	e.Text = r.String(e.Text)
	if e.Verdict == transient {
		e.RetryAfter = retryAfter(t.head)
	}
	e.Counts = t.d.Auth.Grant == "password" && heardPassword(e)
	e.Client = e.Verdict == misconfigured && slices.Contains(ofTheClient, said.code) && !t.deniedToAccount(said.code)
	return e
}

// deniedToAccount says that an unauthorized_client is of one account: a grant by
// assertion asks in the name of its subject, whose administrator has not let
// the client do so (Google's domain-wide delegation).
func (t *tokenRequest) deniedToAccount(code string) bool {
	return t.d.Auth.Grant == definition.JWTBearer && code == "unauthorized_client"
}

// verdict of a failed login or test. An error of the context or of this worker
// is none.
func (x *exchange) verdict(who string, err error) error {
	var auth *AuthError
	var ce *CallError
	h := &heard{of: login, who: who, status: x.status, statusText: x.statusText(), page: isPage(x.resHead)}
	if x.resolved { // so an answer like any other: SOAP 1.1 (section 6.2) says 500 with every fault, a wrong password too
		h.status, h.page = http.StatusOK, false
	}
	switch {
	case x.faultSent:
		h.wire = unanswered
	case x.faulted:
		h.wire = unsent
	}
	var wait time.Duration
	var brokenLimit string
	switch {
	case errors.As(err, &auth):
		h.script, h.why = threwAuth, auth.Text
		if auth.Unsent {
			h.script = needsValue
		}
	case errors.As(err, &ce):
		h.script, h.why, wait, brokenLimit = ce.ended(), at(ce.Message, ce.At), ce.RetryAfter, ce.Limit
	default:
		return err
	}
	e := h.verdict()
	e.Status, e.Limit = x.status, brokenLimit
	switch {
	case h.script == asksToWait:
		e.RetryAfter = wait
	case e.Verdict == transient:
		e.RetryAfter = retryAfter(x.resHead)
	}
	e.Counts = x.m.IsLogin && h.script != asksToWait && heardPassword(e)
	return e
}

// ended is what a CallError tells of how a login's scripts ended.
func (e *CallError) ended() ended {
	switch {
	case e.Defer:
		return asksToWait
	case e.script != nil && e.script.Engine, e.Kind == "limit":
		return broken
	case e.script != nil && e.script.Fault:
		return requestFailed
	case e.Kind == "script":
		return threw
	case e.Kind == "input" && e.StatusCode/100 != 3: // a redirect is the server's word, to a page of its maintenance perhaps
		return broken
	}
	return 0
}

// hookVerdict reads the failure of a hook around a token request.
func hookVerdict(event string, err error, r *credentials.Redactor) error {
	var exc *hooks.Exception
	var script *hooks.ScriptError
	var limit *hooks.LimitError
	h := &heard{of: around, who: event}
	var wait time.Duration
	var brokenLimit string
	switch {
	case errors.As(err, &exc) && exc.Kind == hooks.RetryLater:
		h.script, h.why, wait = asksToWait, exc.Text, max(exc.After, time.Second)
	case errors.As(err, &exc):
		h.script, h.why = threwAuth, fmt.Sprintf("%s threw %s, which cannot cause a refresh here", event, exc.Kind)
	case errors.As(err, &script):
		h.script, h.why = threw, at(script.Message, script.At)
		if script.Engine {
			h.script = broken
		}
	case errors.As(err, &limit):
		h.script, h.why, brokenLimit = broken, at(limit.Message, limit.At), string(limit.Limit)
	default:
		return err
	}
	e := h.verdict()
	e.Text, e.RetryAfter, e.Limit = r.Cut(e.Text, maxText), wait, brokenLimit
	return e
}

// inlineVerdict reads the failure of inline script that a hook around a
// refresh needs: what a connector says there is its author's to put right.
func inlineVerdict(err error) error {
	var auth *AuthError
	var ce *CallError
	h := &heard{of: around, script: broken}
	var brokenLimit string
	switch {
	case errors.As(err, &ce):
		h.why, brokenLimit = at(ce.Message, ce.At), ce.Limit
	case errors.As(err, &auth):
		h.why = at(auth.Text, auth.At)
	default:
		return err
	}
	e := h.verdict()
	e.Limit = brokenLimit
	return e
}

func at(text, place string) string {
	if place == "" {
		return text
	}
	return text + " (" + place + ")"
}

// isPage says that an answer is a page for people: a firewall's, say. What has
// a challenge beside it is the server's own.
func isPage(h http.Header) bool {
	return strings.Contains(strings.ToLower(h.Get("Content-Type")), "html") && h.Get("WWW-Authenticate") == ""
}

// wire is how far the request came.
func (f *fault) wire() wire {
	switch {
	case f.refused != nil:
		return forbidden
	case f.sent:
		return unanswered
	}
	return unsent
}

// heardPassword says that an answer came of a server that is in order.
func heardPassword(e *credentials.RefreshError) bool {
	switch e.Status {
	case 0, http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return false
	}
	return e.Verdict == transient && e.Status < 500
}
