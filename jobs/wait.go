package jobs

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/hibiken/asynq"
)

// UnknownError lists executions that nobody enqueued, that were lost with
// their task (deleted from the dashboard), or whose result is kept no longer.
type UnknownError struct{ IDs []string }

func (e *UnknownError) Error() string {
	shown := strings.Join(e.IDs[:min(len(e.IDs), 3)], ", ")
	if more := len(e.IDs) - 3; more > 0 {
		shown += fmt.Sprintf(" and %d more", more)
	}
	return "no execution of that id is known: " + shown
}

const (
	waitPage  = 500
	firstWait = 20 * time.Millisecond
	lastWait  = 250 * time.Millisecond

	// A task is looked for every taskLook while it is not found, and every
	// taskRest once it was; taskLooks executions at most in one round.
	taskLook  = time.Second
	taskRest  = 30 * time.Second
	taskLooks = 100
	// An execution without a task is given up after so many looks in a row:
	// early if nothing of it is known, else not before its claim may be taken
	// over, or its end has been written.
	looksUnknown   = 3
	looksAbandoned = int(claimGrace/taskLook) + 5
)

// waiting is one execution that is waited for.
type waiting struct {
	id     string
	next   time.Time // of the next look for its task
	misses int       // looks in a row that found none
}

// Wait calls fn once for each execution as it ends, until all have ended, fn
// returns an error, or ctx is done. Where some ids are of no execution (any
// more) that comes to light within a few seconds; Wait tells it with an
// *UnknownError, after all others have ended.
func (c *Client) Wait(ctx context.Context, ids []string, fn func(*Result) error) error {
	left := make([]*waiting, 0, len(ids))
	seen := make(map[string]bool, len(ids))
	for _, id := range ids {
		if !seen[id] {
			seen[id] = true
			left = append(left, &waiting{id: id, next: time.Now().Add(taskLook)})
		}
	}
	unknown := &UnknownError{}
	for wait := firstWait; len(left) > 0; {
		begun, before := time.Now(), len(left)
		keep, looks := left[:0], taskLooks
		for start := 0; start < before; start += waitPage {
			page := left[start:min(start+waitPage, before)]
			pageIDs := make([]string, len(page))
			for i, w := range page {
				pageIDs[i] = w.id
			}
			for i, l := range c.look(ctx, pageIDs) {
				w := page[i]
				switch {
				case l.result != nil:
					r, err := decodeResult(l.result)
					if err != nil {
						return err
					}
					if err := fn(r); err != nil {
						return err
					}
					continue
				case l.err != nil && lacksRight(l.err): // that does not pass
					return redisError(l.err)
				case l.err == nil && looks > 0 && begun.After(w.next):
					looks--
					if c.lost(w, l.queue, begun) {
						unknown.IDs = append(unknown.IDs, w.id)
						continue
					}
				}
				keep = append(keep, w) // also while Redis is away: the next round asks again
			}
		}
		if left = keep; len(left) == 0 {
			break
		}
		if wait = min(wait*3/2, lastWait); len(left) < before {
			wait = firstWait
		}
		if err := pause(ctx, max(wait, time.Since(begun))); err != nil {
			return err
		}
	}
	if len(unknown.IDs) > 0 {
		return unknown
	}
	return nil
}

// lost looks for the task of an execution that has no result, and says
// whether it is time to give it up.
func (c *Client) lost(w *waiting, queue string, now time.Time) bool {
	found, err := c.hasTask(queue, w.id)
	switch {
	case err != nil:
		w.next = now.Add(taskLook)
		return false
	case found:
		w.next, w.misses = now.Add(taskRest), 0
		return false
	}
	w.next = now.Add(taskLook)
	w.misses++
	return w.misses >= looksUnknown && queue == "" || w.misses >= looksAbandoned
}

// hasTask says whether an execution has a task that may still bring a result:
// in its queue, or, where no record names it (a flow may have enqueued it with
// asynq alone), in any. One that is completed brings none: results come first,
// and are lost where the server that had it was, see Client.enqueueClaimed.
func (c *Client) hasTask(queue, id string) (bool, error) {
	if queue != "" {
		info, err := c.taskInfo(queue, id)
		return info != nil && info.State != asynq.TaskStateCompleted, err
	}
	queue, err := c.queueOf(id)
	return queue != "", err
}

// queueOf finds the queue of an execution that no record names, "" if there is none.
func (c *Client) queueOf(id string) (string, error) {
	queues, err := c.inspector.Queues()
	if err != nil {
		return "", err
	}
	for _, q := range queues {
		info, err := c.taskInfo(q, id)
		if err != nil {
			return "", err
		}
		// One that ended and has no result has outlived it.
		if info != nil && info.Type == TypeStep && info.State != asynq.TaskStateArchived && info.State != asynq.TaskStateCompleted {
			return q, nil
		}
	}
	return "", nil
}
