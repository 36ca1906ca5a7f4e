package jobs

import (
	"encoding/json"
	"time"

	"github.com/stepworker/stepworker/connectors"
)

// Status of a result.
type Status string

// The ways in which an execution ends.
const (
	Succeeded Status = "succeeded"
	Warning   Status = "warning" // a hook said so
	Failed    Status = "failed"
	Cancelled Status = "cancelled"
)

// Kinds of errors in results.
const (
	KindAuth    = "auth"
	KindHTTP    = "http"
	KindNetwork = "network"
	KindScript  = "script"
	KindLimit   = "limit"
	KindRate    = "rate"
	KindInput   = "input"
	KindRevoked = "revoked"
	KindExpired = "expired"
	// KindCancelled stands with status Cancelled alone; the message says
	// whether a call may have been made.
	KindCancelled = "cancelled"
)

// Result is how an execution ended. It is kept for the step's retention,
// failures too.
type Result struct {
	ExecutionID     string          `json:"execution_id"`
	CredentialID    string          `json:"credential_id,omitempty"`
	Connector       string          `json:"connector,omitempty"`
	Method          string          `json:"method,omitempty"`
	Status          Status          `json:"status"`
	Exit            *bool           `json:"exit,omitempty"` // only where the method has an action_condition
	StatusCode      int             `json:"status_code,omitempty"`
	Content         json.RawMessage `json:"content,omitempty"`
	ContentEncoding string          `json:"content_encoding,omitempty"` // "base64"
	ContentOmitted  bool            `json:"content_omitted,omitempty"`  // in reply_to tasks, above 256 KiB
	Fields          json.RawMessage `json:"fields,omitempty"`
	Pages           int             `json:"pages,omitempty"` // answered page requests
	Webhook         *WebhookResult  `json:"webhook,omitempty"`
	Tag             string          `json:"tag,omitempty"`
	Cycle           *Cycle          `json:"cycle,omitempty"`
	// Attempts counts tries that ran a script or sent a request; Refreshes
	// those this execution waited for that succeeded.
	Attempts   int          `json:"attempts"`
	Refreshes  int          `json:"refreshes"`
	EnqueuedAt *Time        `json:"enqueued_at,omitempty"`
	FinishedAt *Time        `json:"finished_at,omitempty"`
	Error      *ResultError `json:"error,omitempty"`
}

// Short is the result as a reply_to task and the dashboard have it: without a
// content above 256 KiB, which stays with the result itself.
func (r *Result) Short() *Result {
	w := r.Webhook
	if len(r.Content) <= maxReplyContent && (w == nil || w.Reply == nil || len(w.Reply.Content) <= maxReplyContent) {
		return r
	}
	short := *r
	short.Content, short.ContentEncoding, short.ContentOmitted = nil, "", true
	if w != nil && w.Reply != nil {
		short.Webhook = &WebhookResult{Accepted: w.Accepted, Reply: &WebhookReply{Headers: w.Reply.Headers}}
	}
	return &short
}

// WebhookResult is what a webhook's hooks decided. Where they did not accept
// it, nothing is to be started.
type WebhookResult struct {
	Accepted bool          `json:"accepted"`
	Reply    *WebhookReply `json:"reply,omitempty"`
}

// WebhookReply is what they want answered to whoever called.
type WebhookReply struct {
	Headers json.RawMessage `json:"headers"` // an object: text, or a list of texts
	Content json.RawMessage `json:"content,omitempty"`
}

// NewWebhookResult is a caller's answer as results have it; nil for nil.
func NewWebhookResult(w *connectors.WebhookAnswer) *WebhookResult {
	if w == nil {
		return nil
	}
	r := &WebhookResult{Accepted: w.Accepted}
	if w.Reply != nil {
		r.Reply = &WebhookReply{Headers: w.Reply.Headers, Content: w.Reply.Content}
	}
	return r
}

// ResultError says why an execution did not succeed.
type ResultError struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`          // one sentence a person can act on
	Detail  string `json:"detail,omitempty"` // the API's answer, or a script's line with a caret; capped and masked
	At      string `json:"at,omitempty"`     // file:line:col of a script
}

// Time is written as RFC 3339 in UTC with milliseconds.
type Time struct{ time.Time }

// MarshalJSON implements json.Marshaler.
func (t Time) MarshalJSON() ([]byte, error) {
	return []byte(t.UTC().Format(`"2006-01-02T15:04:05.000Z07:00"`)), nil
}

func timeOf(t time.Time) *Time {
	if t.IsZero() {
		return nil
	}
	return &Time{t}
}

// maxReplyContent is the most content that a reply_to task carries, in bytes.
const maxReplyContent = 256 << 10
