package connectors

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/hooks"
)

// Call is one call of a method.
type Call struct {
	Definition *definition.Connector
	Method     *definition.Method
	Credential *credentials.Credential
	// ExecutionID fills idempotency_header; "" for a login or a test call.
	ExecutionID string
	Parameters  map[string]json.RawMessage // the step's
	Body        json.RawMessage            // the step's; nil: the method's
	Script      string                     // the step's source; "" without
	Cycle       Cycle
	// Webhook is the request that came, for a method of type webhook.
	Webhook *Webhook
	// Mappings are the step's: a place of its input, and a template or inline
	// script.
	Mappings map[string]string
	// FieldsInUse are the response fields, by their locations, that the flow
	// goes on with.
	FieldsInUse []string
	// LastRun is the step's last successful run date; zero is the epoch.
	LastRun time.Time
	// Context is script_execution_context; "" is RUNNING_TRANSACTION.
	Context string
	// ActionData as the last attempt left it; nil is {}.
	ActionData json.RawMessage
	Timeout    time.Duration
	// Pacer, if set, is asked before each request.
	Pacer Pacer
	// Pages keeps the pages of a paged call over its attempts; nil: each
	// attempt begins at the first.
	Pages Pages
	// Urgent calls (a login, a test) have hook hosts reserved.
	Urgent bool
}

// Cycle is the step's place in its flow.
type Cycle struct {
	CycleID       string                     `json:"cycle_id,omitempty"`
	CycleStepID   string                     `json:"cycle_step_id,omitempty"`
	TransactionID string                     `json:"transaction_id,omitempty"`
	Variables     map[string]json.RawMessage `json:"variables,omitempty"`
}

// Answer is a call that ran to its end.
type Answer struct {
	StatusCode      int
	Content         json.RawMessage // nil: none
	ContentEncoding string          // "base64" for binary content
	Fields          json.RawMessage // object, nil without response fields
	Exit            *bool
	Warning         string    // set: status "warning"
	Pages           int       // answered page requests
	Began           time.Time // the call, in the first of its attempts
	Webhook         *WebhookAnswer
	Session         map[string]string
	// NextRun is what a script wants for the step's next last successful run
	// date; zero: nothing.
	NextRun time.Time
	Ran     bool // a script ran or a request was sent
	Logs    []string
}

// AuthError is a credential that shows that it is dead: the script threw
// AuthRefreshException or AuthSessionException, refresh_on matched, or the
// request needs a session that the credential does not have yet.
type AuthError struct {
	Kind    credentials.Kind
	Version int64 // the version this attempt used
	Text    string
	At      string
	Status  int
	Detail  string // the API's answer, capped, masked
	// ActionData as it stood at the throw. Session: properties set by the
	// script before AuthSessionException: the new session, without a login.
	ActionData json.RawMessage
	Session    map[string]string
	// NoRenewal: nothing can be renewed on this connector. Missing names the
	// setting, or Static what no setting makes renewable, such as an API key; if
	// the connector has a test method the caller tries it once.
	NoRenewal bool
	Missing   string
	Static    string
	// Restart: the call is made again from its first page.
	Restart bool
	// Unsent: no request was sent (a session was needed first).
	Unsent bool
	Ran    bool // a script ran or a request was sent
	Logs   []string
}

func (e *AuthError) Error() string { return e.Text }

// CannotRenew says of NoRenewal why, and what a person can do about it.
func (e *AuthError) CannotRenew() string {
	if e.Static != "" {
		return "the worker cannot renew " + e.Static + ": a person must put the credential anew (worker credential put)"
	}
	return "the connector cannot renew it: it has no " + e.Missing
}

// CallError is every other way in which a call fails. Kind is the result's
// error.kind: http network script limit rate input auth.
type CallError struct {
	Kind       string
	Message    string // one sentence a person can act on, masked
	Detail     string // the API's answer, capped, masked
	At         string // file:line:col of a script
	StatusCode int
	// Repeat: a fault of network, time or server, and the call may be repeated.
	Repeat bool
	// Defer: 429, 503 with Retry-After, RetryLaterException: not a failure,
	// try again after RetryAfter (0 for a 429 without the header).
	Defer bool
	// Limited: it is the API itself that asks to wait, by 429 or 503 with
	// Retry-After: other calls of the credential are to wait, too.
	Limited    bool
	RetryAfter time.Duration
	// TurnAt is set where the connector's own rate limit puts the call off, to
	// when its place comes.
	TurnAt     time.Time
	ActionData json.RawMessage
	// Limit says which limit of kind limit was broken, in a word.
	Limit string
	Ran   bool // a script ran or a request was sent
	Logs  []string

	script *hooks.ScriptError // whose error it is, for a login's verdict
}

func (e *CallError) Error() string { return e.Message }

// Limits of a call that are no script's; those are hooks.Limit.
const (
	LimitResponse = "response" // an answer is larger than --max-response
	LimitPages    = "pages"    // there are more, or they are larger together, than may be
	LimitDepth    = "depth"    // of JSON
)

// Limits are all that a call may break, scripts' included.
func Limits() []string {
	return []string{
		LimitResponse, LimitPages, LimitDepth, string(hooks.LimitTime), string(hooks.LimitMemory), string(hooks.LimitDepth),
		string(hooks.LimitSource), string(hooks.LimitData), string(hooks.LimitHost),
	}
}

// HostError is this worker's own fault: its hook hosts cannot run an event. It
// tells nothing about the call, so the execution is to be put back.
//
// Call returns an AuthError, a CallError, a HostError, a PacerError, a
// PagesError, or an error of its context, and nothing else.
type HostError struct{ Err error }

func (e *HostError) Error() string { return "a hook cannot be run: " + e.Err.Error() }

func (e *HostError) Unwrap() error { return e.Err }

// CallerConfig is what a Caller needs.
type CallerConfig struct {
	Engine *hooks.Engine
	// Partner settings by connector name.
	Partner map[string]definition.PartnerSettings
	// AllowPrivate lets APIs be on loopback and private addresses;
	// AllowNetworks (CIDR) opens single networks, link-local ones only if they
	// are that themselves; Forbidden (host:port) are always refused, by every
	// address of this machine if they are on it: all servers of Redis (see
	// Caller.Forbid) and the worker's own --http address.
	AllowPrivate  bool
	AllowNetworks []string
	Forbidden     []string
	MaxResponse   int64         // bytes; 0: 10 MiB
	CallTimeout   time.Duration // 0: 60 s
	// Logger is told what scripts log in a login, a test or around a token
	// request; nil: nobody.
	Logger *slog.Logger
	// OnAnswer, if set, is told of each request to a connector's API, those of
	// scripts included, and not those to token endpoints: its status, 0 where no
	// answer came, and how long the answer took to be here.
	OnAnswer func(connector string, status int, d time.Duration)
	// AuthStyles remembers what auth_style: auto learned; nil: in memory only.
	AuthStyles AuthStyles
	// TracerProvider makes the spans of requests and events; nil: the global one.
	TracerProvider trace.TracerProvider
	// Trace is told what scripts do, and Transport lies over the guarded one, so
	// that every request passes by it: for `worker try`; nil: none.
	Trace     *Trace
	Transport func(http.RoundTripper) http.RoundTripper
	// Data keeps what scripts store; nil: storage functions throw.
	Data ScriptData
}

// ScriptData keeps what scripts store durably: credentials.Store. A
// *credentials.DataError is the script's own fault.
type ScriptData interface {
	ScriptData(ctx context.Context, r credentials.DataRequest) (json.RawMessage, error)
}

// AuthStyles keeps the client authentication style that worked for a
// connector, and sees to it that one request at a time finds it out:
// credentials.Store.
type AuthStyles interface {
	AuthStyle(ctx context.Context, connector string) (style string, err error)
	TryAuthStyle(ctx context.Context, connector string) (first bool, err error)
	SetAuthStyle(ctx context.Context, connector, style string) error
}
