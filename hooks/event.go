package hooks

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Level says whose script a handler is in.
type Level string

// The three levels, in the order in which their sources are loaded.
const (
	LevelConnector Level = "connector"
	LevelMethod    Level = "method"
	LevelStep      Level = "step"
)

// SortLevels puts levels in the order in which their handlers of an event run.
func SortLevels(event string, levels []Level) {
	slices.SortStableFunc(levels, func(a, b Level) int { return turnOf(event, a) - turnOf(event, b) })
}

func turnOf(event string, l Level) int {
	switch {
	case l == LevelStep:
		return 2
	case strings.HasPrefix(event, "before") == (l == LevelMethod):
		return 0
	}
	return 1
}

// Script is one author's source at one level. The zero value is no script.
type Script struct {
	Level Level
	// File is the name shown in positions: "acme.js", "acme.yaml", "step".
	File string
	// Line and Column are where the source's first character stands in File,
	// both counted from 1; zero means 1. Indent is how many columns a YAML
	// block scalar took off every further line.
	Line, Column, Indent int
	Source               string
	// Place, if set, says where a place of Source stands in File, where File
	// does not hold it verbatim: a quoted or folded scalar of YAML.
	Place func(line, column int) (int, int)
}

// Event is one hook event of one call: the scripts of all levels and the data
// they see. Handlers run before_*: method, connector, step; all others:
// connector, method, step.
type Event struct {
	// Name is the handler's name: before_action, after_error, ...
	Name    string
	Scripts []Script
	Globals []Global
	// Inline makes it no event but one inline script: the only Script is an
	// expression, or statements whose last value counts, and what it comes to
	// is Outcome.Result. It has no handlers.
	Inline bool
	// Doer answers http_request; nil makes http_request throw.
	Doer Doer
	// Storage answers cyclr_storage_* and cycle_storage_*; nil makes them throw.
	Storage Storage
	// Urgent events (those around a refresh or a login) have hosts reserved.
	Urgent bool
}

// Global is one JavaScript global of an event.
type Global struct {
	Name string
	// JSON is the value; nil means undefined. Make, if set, makes it: it is
	// called only where some script can reach the global.
	JSON json.RawMessage
	Make func() json.RawMessage
	// Write says that a change is reported in Outcome.Changed. A change of a
	// global without Write is lost when the handler that made it returns:
	// the next level's handler sees a fresh value.
	Write bool
	// Headers makes look-up of members ignore case (names stay as given).
	// HeadersIn does so for the named member (method_error.headers).
	Headers   bool
	HeadersIn string
	// NotStep says that what a step's script changes is not reported; what the
	// other levels changed before it is.
	NotStep bool
}

// Doer performs a script's http_request in the parent process.
type Doer interface {
	DoHook(ctx context.Context, req HTTPRequest) (*HTTPResponse, error)
}

// HTTPRequest is what a script passed to http_request.
type HTTPRequest struct {
	Method     string            `json:"method"`
	URL        string            `json:"url"`
	Parameters json.RawMessage   `json:"parameters,omitempty"` // an object
	Headers    map[string]string `json:"headers,omitempty"`
	Data       string            `json:"data,omitempty"`
	HasData    bool              `json:"has_data,omitempty"`
}

// HTTPResponse is what http_request returns to the script. Non-2xx is no error.
type HTTPResponse struct {
	StatusCode int             `json:"status_code"`
	Headers    json.RawMessage `json:"headers"` // object: string, or list when repeated
	Content    string          `json:"content"`
	Request    json.RawMessage `json:"request"`
}

// Storage keeps what scripts store, in the parent process. A *StorageError is
// thrown into the script as an Error; any other error ends the event with it.
type Storage interface {
	DoStorage(ctx context.Context, req StorageRequest) (json.RawMessage, error)
}

// StorageRequest is one call of a storage function.
type StorageRequest struct {
	Cycle  bool    `json:"cycle,omitempty"` // cycle_storage_*: only within the step's cycle
	Op     string  `json:"op"`              // list_values list_keys get set append delete delete_all increment decrement
	Key    string  `json:"key,omitempty"`
	Value  string  `json:"value,omitempty"`  // set, append
	Amount float64 `json:"amount,omitempty"` // increment, decrement
}

// StorageError is a storage function's complaint about what a script asked.
type StorageError struct{ Text string }

func (e *StorageError) Error() string { return e.Text }

// Outcome is what an event left behind. It is returned beside an error too
// whenever a script ran: action_data and session_properties survive a throw.
type Outcome struct {
	// Ran says that at least one handler of the event existed.
	Ran bool
	// Result is the last handler's return value; nil is undefined, or no JSON.
	Result json.RawMessage
	// Changed holds the new JSON of each writable global that was changed.
	// A global set to undefined is there with a nil value.
	Changed map[string]json.RawMessage
	// Logs are the lines of console.log, in order.
	Logs []string
}

// Value reports the new value of a global, or the old one.
func (o *Outcome) Value(name string, old json.RawMessage) json.RawMessage {
	if o != nil {
		if v, ok := o.Changed[name]; ok {
			return v
		}
	}
	return old
}

// ScriptError is a script's own failure: a thrown value, a syntax error, an
// engine error, false from a handler, a promise that never settles.
type ScriptError struct {
	Event   string
	Level   Level
	Message string // one sentence that names handler and level
	At      string // the author's file:line:col, or ""
	// Engine is true for TypeError, ReferenceError, SyntaxError and the like
	// raised by the engine, false for a value the author threw or false.
	Engine bool
	// False is true when the handler returned false.
	False bool
	// Fault is true for an Error that http_request threw and nobody caught: the
	// network's fault, not the script's.
	Fault bool
}

func (e *ScriptError) Error() string { return e.Message }

// Exception kinds.
type ExceptionKind string

const (
	AuthRefresh ExceptionKind = "AuthRefreshException"
	AuthSession ExceptionKind = "AuthSessionException"
	RetryLater  ExceptionKind = "RetryLaterException"
)

// Exception is one of the three exception classes leaving a handler,
// recognised by identity, never by name or text.
type Exception struct {
	Kind  ExceptionKind
	Event string
	Level Level // of the handler that it left
	Text  string
	At    string
	After time.Duration // RetryLater: how long to wait
}

func (e *Exception) Error() string {
	return fmt.Sprintf("%s from %s at %s level", e.Kind, e.Event, e.Level)
}

// LimitError is a broken limit: time, memory, call depth, source size, number
// of http_requests, or the death of the hook host that ran the event.
type LimitError struct {
	Event   string
	Message string
	At      string // file:line:col, if known
	Limit   Limit
}

func (e *LimitError) Error() string { return e.Message }

// Limit says which limit an event broke, in a word.
type Limit string

// Limits of an event.
const (
	LimitTime   Limit = "script_time"
	LimitMemory Limit = "script_memory"
	LimitDepth  Limit = "script_depth"
	LimitSource Limit = "script_source" // nobody will compile it
	LimitData   Limit = "script_data"   // it was given, or left, too much
	LimitHost   Limit = "script_host"   // its hook host died of it
)
