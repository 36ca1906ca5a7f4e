// Package cli is what both programs need of a command line: flags that the
// environment may set, mistakes told all at once, and a Redis client.
package cli

import (
	"errors"
	"fmt"
	"io"
)

// Exit codes.
const (
	ExitFailed  = 1
	ExitUsage   = 2
	ExitTimeout = 3
)

// Error carries an exit code. Its text may be empty: all was said already.
type Error struct {
	Code int
	Text string
}

func (e *Error) Error() string { return e.Text }

// Usage is a configuration mistake: exit code 2.
func Usage(format string, args ...any) error { return &Error{ExitUsage, fmt.Sprintf(format, args...)} }

// Failed is any other failure: exit code 1.
func Failed(format string, args ...any) error {
	return &Error{ExitFailed, fmt.Sprintf(format, args...)}
}

// Exit prints an error and returns its exit code.
func Exit(stderr io.Writer, err error) int {
	if err == nil {
		return 0
	}
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{ExitUsage, err.Error()}
	}
	if e.Text != "" {
		fmt.Fprintln(stderr, e.Text)
	}
	return e.Code
}
