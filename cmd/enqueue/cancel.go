package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/stepworker/stepworker/internal/cli"
	"github.com/stepworker/stepworker/jobs"
)

const (
	// askAgain is how soon what was asked for is asked for again: a worker of an
	// older version may have thrown the question away.
	askAgain = 15 * time.Second
	// noWorker is how long it is waited before it is said that none runs.
	noWorker = 3 * time.Second
	// maxIDLine bounds one line of ids.
	maxIDLine = 2 * jobs.MaxStepSize
)

// cancelAll ends executions, and prints how each of them ended.
func (e *enqueue) cancelAll(ctx context.Context) error {
	for _, id := range e.cancel {
		if id != "-" {
			e.ids = append(e.ids, id)
		} else if err := e.readIDs(ctx); err != nil {
			return err
		}
	}
	seen := make(map[string]bool, len(e.ids)) // each has one line
	e.ids = slices.DeleteFunc(e.ids, func(id string) bool { again := seen[id]; seen[id] = true; return again })
	ctx, stop := e.limit(ctx)
	defer stop()
	var unknown *jobs.UnknownError
	switch err := e.client.Cancel(ctx, e.ids...); {
	case errors.As(err, &unknown):
		if err := e.without(unknown.IDs); err != nil {
			return err
		}
	case err != nil && ctx.Err() == nil:
		return cli.Usage("%v: not all that was asked for may be noted; it is safe to ask again", err)
	}
	watching, done := context.WithCancel(ctx)
	said := make(chan struct{})
	go func() { defer close(said); e.watch(watching) }()
	err := e.await(ctx, func(r *jobs.Result) bool { return r.Status == jobs.Cancelled })
	done()
	<-said
	if unknown == nil {
		return err
	}
	code := cli.ExitFailed
	var ended *cli.Error
	if errors.As(err, &ended) {
		code = ended.Code
	}
	return &cli.Error{Code: code, Text: unknown.Error() + "; results are kept for the step's retention"}
}

// without prints a line for each id that is unknown; nobody waits for those.
func (e *enqueue) without(unknown []string) error {
	left := map[string]bool{}
	for _, id := range unknown {
		left[id] = true
	}
	e.ids = slices.DeleteFunc(e.ids, func(id string) bool { return left[id] })
	return e.rest(unknown, left, "unknown")
}

// watch asks again, and says so where no worker runs.
func (e *enqueue) watch(ctx context.Context) {
	again, look := time.NewTicker(askAgain), time.NewTimer(noWorker)
	defer again.Stop()
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			if workers, err := e.client.Workers(ctx); err == nil && len(workers) == 0 {
				fmt.Fprintln(e.stderr, "no worker runs: what was asked for is noted, and done as soon as one does")
			}
		case <-again.C:
			_ = e.client.Cancel(ctx, e.ids...) // else in the next round
		}
	}
}

// readIDs reads ids from standard input: one in each line, or a JSON object with
// a member execution_id, as enqueue prints and reads them.
func (e *enqueue) readIDs(ctx context.Context) error {
	stdin, end := cli.Interruptible(ctx, e.stdin)
	defer end()
	in := bufio.NewScanner(stdin)
	in.Buffer(nil, maxIDLine)
	for n := 1; in.Scan(); n++ {
		line := strings.TrimSpace(in.Text())
		if strings.HasPrefix(line, "{") {
			var v struct {
				ID string `json:"execution_id"`
			}
			if err := json.Unmarshal([]byte(line), &v); err != nil {
				return cli.Usage("line %d of the ids is no JSON object: nothing was cancelled", n)
			}
			line = v.ID // "" of a line that says a step was invalid
		}
		if line != "" {
			e.ids = append(e.ids, line)
		}
	}
	switch err := in.Err(); {
	case ctx.Err() != nil:
		return cli.Failed("interrupted: nothing was cancelled")
	case err != nil:
		return cli.Usage("standard input: %v: nothing was cancelled", err)
	}
	return nil
}
