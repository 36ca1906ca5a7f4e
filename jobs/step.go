package jobs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/internal/strictjson"
)

// Task types and queues of ours.
const (
	TypeStep     = "step:run"
	TypeRefresh  = "credential:refresh"
	QueueSteps   = "steps"   // default queue of steps
	QueueRefresh = "refresh" // reserved
)

// Defaults of a step's optional members.
const (
	DefaultMaxRetries = 3
	DefaultTimeout    = 5 * time.Minute
	DefaultRetention  = 24 * time.Hour
)

// Limits of a step's size, in bytes: of its compact JSON, with characters such
// as < and & as they are, and of its script.
const (
	MaxStepSize   = 1 << 20
	MaxScriptSize = 64 << 10
)

// A payload has the lowest version that says all of it, so that builds of before
// go on with as many as they can. Builds that know of no 2 wrote sealed parameters
// in 1, too: both are read alike.
const (
	payloadPlain   = 1
	payloadSealed  = 2 // parameters are sealed, see credentials.StepSealer
	payloadVersion = payloadSealed
)

var (
	executionID  = regexp.MustCompile(`^[A-Za-z0-9_.:-]{1,128}$`)
	httpMethod   = regexp.MustCompile(`^[A-Za-z]{1,32}$`)
	credentialID = regexp.MustCompile(`^[A-Za-z0-9_.:@-]{1,128}$`)
)

// Duration is a time.Duration that is written as Go writes it: "5m".
type Duration time.Duration

// MarshalJSON implements json.Marshaler.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// UnmarshalJSON implements json.Unmarshaler.
func (d *Duration) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf(`a duration is text such as "5m", not %s`, b)
	}
	v, err := time.ParseDuration(s)
	switch {
	case err != nil:
		return fmt.Errorf(`%q is no duration; write it as "90s", "5m" or "24h"`, s)
	case v == 0: // absent, to us
		return fmt.Errorf(`%q is not allowed; leave it out for the default`, s)
	}
	*d = Duration(v)
	return nil
}

// Step is what a flow asks for: call this method with this credential and
// this input. Only CredentialID and Method are required.
type Step struct {
	ExecutionID  string                     `json:"execution_id,omitempty"`
	CredentialID string                     `json:"credential_id"`
	Method       string                     `json:"method"`
	Parameters   map[string]json.RawMessage `json:"parameters,omitempty"`
	Body         json.RawMessage            `json:"body,omitempty"`
	Script       string                     `json:"script,omitempty"`
	Cycle        *Cycle                     `json:"cycle,omitempty"`
	Tag          string                     `json:"tag,omitempty"`
	// AccountID, if given, must equal the credential's.
	AccountID string `json:"account_id,omitempty"`
	// Deadline: an execution not begun by then fails with kind expired.
	Deadline *time.Time `json:"deadline,omitempty"`
	Queue    string     `json:"queue,omitempty"`
	// MaxRetries counts faults only: parks, holds and deferrals use up none.
	MaxRetries *int `json:"max_retries,omitempty"`
	// Timeout is of one attempt, in whole seconds.
	Timeout   Duration   `json:"timeout,omitempty"`
	ProcessAt *time.Time `json:"process_at,omitempty"`
	// Retention is how long the result is kept.
	Retention Duration `json:"retention,omitempty"`
	ReplyTo   *ReplyTo `json:"reply_to,omitempty"`

	// Mappings compute parts of the input: by place, as parameters.since or
	// body.total, a template or, with a leading =, inline script.
	Mappings map[string]string `json:"mappings,omitempty"`
	// FieldsInUse are the locations of response fields that the flow goes on with.
	FieldsInUse []string `json:"fields_in_use,omitempty"`
	// Webhook is the request that came, for a method of type webhook.
	Webhook *Webhook `json:"webhook,omitempty"`
}

// Cycle is the step's place in its flow.
type Cycle struct {
	CycleID       string                     `json:"cycle_id,omitempty"`
	CycleStepID   string                     `json:"cycle_step_id,omitempty"`
	TransactionID string                     `json:"transaction_id,omitempty"`
	Variables     map[string]json.RawMessage `json:"variables,omitempty"`
}

// Webhook is a request that a flow received, for a method of type webhook to
// judge. Values of headers and query are text or lists of text; a body that is
// no JSON is text.
type Webhook struct {
	URL     string                     `json:"url,omitempty"`
	Method  string                     `json:"method,omitempty"`
	Headers map[string]json.RawMessage `json:"headers,omitempty"`
	Query   map[string]json.RawMessage `json:"query,omitempty"`
	Body    json.RawMessage            `json:"body,omitempty"`
}

// ReplyTo names the asynq task that brings the result back to a flow.
type ReplyTo struct {
	Queue string `json:"queue"`
	Type  string `json:"type"`
}

// payload is a step as it stands in the task.
type payload struct {
	V          int       `json:"v"`
	EnqueuedAt time.Time `json:"enqueued_at,omitzero"`
	Step
}

func (p *payload) known() bool { return p.V >= payloadPlain && p.V <= payloadVersion }

// DecodeStep reads one step strictly: an unknown member is an error that
// names the nearest known one, a member given twice is one too. It does not
// Validate.
func DecodeStep(raw []byte) (*Step, error) {
	var s Step
	if err := decodeStrict(raw, &s, stepMembers); err != nil {
		return nil, err
	}
	if s.ExecutionID == "" && bytes.Contains(raw, []byte(`"execution_id"`)) {
		var given struct {
			ID *string `json:"execution_id"`
		}
		if json.Unmarshal(raw, &given) == nil && given.ID != nil { // a flow's variable that is not set
			return nil, errors.New("execution_id is empty; leave it out to have one made")
		}
	}
	if len(raw) > MaxStepSize { // unless it is only blanks that make it so
		if err := s.checkSize(); err != nil {
			return nil, err
		}
	}
	return &s, nil
}

func (s *Step) checkSize() error {
	raw, err := encode(s)
	if err == nil && len(raw) > MaxStepSize {
		err = fmt.Errorf("the step has %d bytes; at most %d are allowed", len(raw), MaxStepSize)
	}
	return err
}

// encode is json.Marshal without escapes for HTML: they would make six bytes
// of one, and nobody puts a payload into a page.
func encode(v any) ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}

// stepMembers are offered where a member is misspelt.
var stepMembers = []string{"execution_id", "credential_id", "method", "parameters", "body", "mappings", "script", "cycle",
	"fields_in_use", "tag", "account_id", "deadline", "queue", "max_retries", "timeout", "process_at", "retention", "reply_to", "webhook",
	"url", "headers", "query", "cycle_id", "cycle_step_id", "transaction_id", "variables", "type"}

func decodeStrict(raw []byte, into any, members []string) error {
	return strictjson.Decode(raw, into, strictjson.Options{What: "a step", Suggest: members})
}

// nearest returns the name most like the given one, or "" if none is alike.
func nearest(name string, known []string) string { return strictjson.Nearest(name, known) }

// Validate checks the step's form. Whether its credential, connector and
// method exist is the worker's to say.
func (s *Step) Validate() error {
	switch {
	case s.CredentialID == "":
		return errors.New("credential_id is missing")
	case !credentialID.MatchString(s.CredentialID):
		return fmt.Errorf("credential_id %q: 1 to 128 of A-Z a-z 0-9 _ . : @ - are allowed", clip(s.CredentialID, 140))
	case s.Method == "":
		return errors.New("method is missing")
	case s.ExecutionID != "" && !executionID.MatchString(s.ExecutionID):
		return fmt.Errorf("execution_id %q: 1 to 128 of A-Z a-z 0-9 _ . : - are allowed", clip(s.ExecutionID, 140))
	case len(s.Script) > MaxScriptSize:
		return fmt.Errorf("the script has %d bytes; at most %d are allowed", len(s.Script), MaxScriptSize)
	case strings.ContainsAny(s.Queue, "{}"):
		return fmt.Errorf("queue %q: a queue's name holds no braces", s.Queue)
	case s.Queue != "" && strings.TrimSpace(s.Queue) == "":
		return errors.New("queue: the name is blank")
	case s.Queue == QueueRefresh:
		return fmt.Errorf("queue %q is reserved", QueueRefresh)
	case IsOverflow(s.Queue):
		return fmt.Errorf("queue %q is reserved: names that end in .2 and .3 are of overflow", clip(s.Queue, 140))
	case s.MaxRetries != nil && (*s.MaxRetries < 0 || *s.MaxRetries > 100):
		return fmt.Errorf("max_retries is %d; 0 to 100 are allowed", *s.MaxRetries)
	case s.Timeout != 0 && (time.Duration(s.Timeout) < time.Second || time.Duration(s.Timeout)%time.Second != 0):
		return fmt.Errorf("timeout is %s; whole seconds, at least one, are allowed", time.Duration(s.Timeout))
	case s.Retention < 0 || s.Retention != 0 && time.Duration(s.Retention) < time.Second:
		return fmt.Errorf("retention is %s; at least 1s is needed", time.Duration(s.Retention))
	}
	if s.Webhook != nil {
		if err := s.Webhook.Validate(); err != nil {
			return err
		}
	}
	for _, path := range slices.Sorted(maps.Keys(s.Mappings)) {
		if err := definition.CheckMapping(path, s.Mappings[path]); err != nil {
			return err
		}
	}
	if r := s.ReplyTo; r != nil {
		switch {
		case strings.TrimSpace(r.Queue) == "" || strings.TrimSpace(r.Type) == "":
			return errors.New("reply_to needs both queue and type, and neither may be blank")
		case strings.ContainsAny(r.Queue, "{}"):
			return fmt.Errorf("reply_to.queue %q: a queue's name holds no braces", r.Queue)
		case r.Queue == QueueRefresh || ofQueue(r.Queue, QueueSteps) || ofQueue(r.Queue, s.queue()):
			return fmt.Errorf("reply_to.queue %q is one of Stepworker's own; results need a queue of the flow's", r.Queue)
		case r.Type == TypeStep || r.Type == TypeRefresh || r.Type == TypeCancel:
			return fmt.Errorf("reply_to.type %q is one of Stepworker's own", r.Type)
		}
	}
	return nil
}

// Validate checks the request's form.
func (w *Webhook) Validate() error {
	if w.URL != "" {
		if u, err := url.Parse(w.URL); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return errors.New("webhook.url: an absolute http or https URL is needed")
		}
	}
	if w.Method != "" && !httpMethod.MatchString(w.Method) {
		return fmt.Errorf("webhook.method %q is no HTTP method", clip(w.Method, 40))
	}
	for member, values := range map[string]map[string]json.RawMessage{"headers": w.Headers, "query": w.Query} {
		for _, name := range slices.Sorted(maps.Keys(values)) {
			var text string
			var list []string
			if json.Unmarshal(values[name], &text) != nil && json.Unmarshal(values[name], &list) != nil {
				return fmt.Errorf("webhook.%s.%s: text or a list of texts is needed", member, clip(name, 60))
			}
		}
	}
	return nil
}

// inlineScript is the first mapping that is JavaScript, "" without.
func (s *Step) inlineScript() string {
	for _, path := range slices.Sorted(maps.Keys(s.Mappings)) {
		if definition.IsInlineScript(s.Mappings[path]) {
			return path
		}
	}
	return ""
}

func (s *Step) queue() string {
	if s.Queue == "" {
		return QueueSteps
	}
	return s.Queue
}

func (s *Step) maxRetries() int {
	if s.MaxRetries == nil {
		return DefaultMaxRetries
	}
	return *s.MaxRetries
}

func (s *Step) timeout() time.Duration {
	if s.Timeout == 0 {
		return DefaultTimeout
	}
	return time.Duration(s.Timeout)
}

func (s *Step) retention() time.Duration {
	if s.Retention == 0 {
		return DefaultRetention
	}
	return time.Duration(s.Retention)
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}
