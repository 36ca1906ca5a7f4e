package main

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/cli"
	"github.com/stepworker/stepworker/jobs"
)

// fits is nil if this build may work on what a Redis holds, and the keys, where
// a store with keys is given, are its own. It is asked before anything else is
// read or written: what a newer build left is not to be misread.
func fits(ctx context.Context, rdb redis.UniversalClient, withKeys *credentials.Store) error {
	err := jobs.CheckFormat(ctx, rdb)
	if err == nil && withKeys != nil {
		err = withKeys.VerifyKeys(ctx)
	}
	var key *credentials.KeyError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &key), tooNew(err):
		return cli.Usage("%v", err)
	}
	return cli.Usage("redis: %v", err)
}

// tooNew says that a newer build has stored what this one cannot read.
func tooNew(err error) bool {
	var format *jobs.FormatError
	var record *credentials.NewerError
	return errors.As(err, &format) || errors.As(err, &record)
}

// fitEvery is how often a worker that does not fit looks again.
const fitEvery = 5 * time.Second

// start begins to take tasks, as soon as this build may work on what Redis holds:
// until then it touches nothing, and /readyz says why. It has not begun where it
// was told to end before it could.
func (w *Worker) start(ctx context.Context) (began bool, err error) {
	for {
		err := w.begin(ctx)
		if !tooNew(err) {
			w.unfit.Store(nil)
			return err == nil, err
		}
		if w.unfit.Swap(&err) == nil {
			w.log.Error("worker fault", "text", err.Error(), "http", w.listens())
		}
		select {
		case <-ctx.Done():
			return false, nil
		case <-time.After(fitEvery):
		}
	}
}

func (w *Worker) begin(ctx context.Context) error {
	if err := jobs.CheckFormat(ctx, w.rdb); tooNew(err) {
		return err
	} else if err != nil {
		return cli.Usage("redis: %v", err)
	}
	var key *credentials.KeyError
	if err := w.store.VerifyKeys(ctx); errors.As(err, &key) {
		w.wrongKeys.Store(&err) // steps are put back, and /readyz says why
		w.log.Error("worker fault", "text", err.Error())
		w.pool.WrongKeys()
	} else if tooNew(err) {
		return err
	} else if err != nil {
		return cli.Usage("redis: %v", err)
	}
	_ = w.store.NoteHold(ctx, w.cfg.hold) // only what `credential get` shows
	if err := w.pool.Start(); tooNew(err) {
		return err
	} else if err != nil {
		return cli.Failed("%v", err)
	}
	return nil
}

// listens is the address of the worker's HTTP server.
func (w *Worker) listens() string {
	if w.Addr == "" {
		return "off"
	}
	return w.Addr
}
