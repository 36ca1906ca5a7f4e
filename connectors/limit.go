package connectors

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/stepworker/stepworker/connectors/definition"
)

// Pace is the moment in a call at which its limits are asked.
type Pace int

const (
	// PaceBegin: before the first hook. Nothing is counted yet, but who may go
	// on has a place kept for its request.
	PaceBegin Pace = iota
	// PaceSend: right before the request, which counts from now on.
	PaceSend
	// PaceExtra: before a script's own request to the API. It counts and is
	// not held back: a script cannot be put off in its middle.
	PaceExtra
)

// Pacer holds a call back until its rate limits have room, and while its
// credential is not to be sent with. Else it returns nil; a *PaceError says when to try again; any other error is the
// worker's own fault.
type Pacer func(ctx context.Context, p Pace) error

// PaceError puts a call off: its place in the limit that holds it back is kept
// until then. Reason, if set, is what else than a limit does.
type PaceError struct {
	Limit  definition.RateLimit
	Reason string
	At     time.Time
}

func (e *PaceError) Error() string {
	why := e.Reason
	if why == "" {
		why = "rate limit: " + e.Limit.String()
	}
	return fmt.Sprintf("%s; its turn is at %s", why, e.At.UTC().Format("2006-01-02T15:04:05.000Z"))
}

// PacerError is this worker's own fault, as when the limits cannot be asked. It tells
// nothing about the call, so the execution is to be put back.
type PacerError struct{ Err error }

func (e *PacerError) Error() string { return "nothing was sent: " + e.Err.Error() }

func (e *PacerError) Unwrap() error { return e.Err }

// pace asks the call's pacer. A login, a test or a logout has none.
func (x *exchange) pace(ctx context.Context, p Pace) error {
	if x.call.Pacer == nil {
		return nil
	}
	err := x.call.Pacer(ctx, p)
	var off *PaceError
	if err == nil || errors.As(err, &off) || ofContext(err) {
		return err
	}
	return &PacerError{err}
}
