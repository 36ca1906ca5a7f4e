package jobs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hibiken/asynq"
	"github.com/oklog/ulid/v2"
	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/trace"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/spans"
)

// Errors of Client.Result.
var (
	ErrNotFinished      = errors.New("the execution has not ended yet")
	ErrUnknownExecution = errors.New("no execution of that id is known; results are kept for the step's retention")
)

// Client enqueues steps and reads results. It needs no key and no connectors.
// It is safe for concurrent use; the Redis client stays the caller's to close.
type Client struct {
	rdb       redis.UniversalClient
	asynq     *asynq.Client
	inspector *asynq.Inspector
	store     *credentials.Store
	tracer    trace.Tracer

	mu       sync.Mutex
	sealer   *credentials.StepSealer // as workers offered it
	sealerAt time.Time               // when it was read
}

// ClientOption is a setting of a Client.
type ClientOption func(*Client)

// WithTracerProvider has the spans of Enqueue and EnqueueBatch made by another
// OpenTelemetry provider than the global one (otel.SetTracerProvider).
func WithTracerProvider(p trace.TracerProvider) ClientOption {
	return func(c *Client) { c.tracer = spans.Tracer(p) }
}

// NewClient returns a client on the given Redis.
func NewClient(rdb redis.UniversalClient, options ...ClientOption) *Client {
	c := &Client{
		rdb:       rdb,
		tracer:    spans.Tracer(nil),
		asynq:     asynq.NewClientFromRedisClient(rdb),
		inspector: asynq.NewInspectorFromRedisClient(rdb),
		store:     credentials.NewStore(rdb, nil),
	}
	for _, set := range options {
		set(c)
	}
	return c
}

// Statuses of a Receipt.
const (
	Enqueued  = "enqueued"
	Duplicate = "duplicate" // the id exists until its execution has ended and its result is kept no longer
)

// Receipt answers one enqueued step. Err is set where the step was refused, or
// where it is not known whether it was accepted; then Status is empty.
type Receipt struct {
	ExecutionID string
	Status      string
	Err         error
}

// InvalidError is a step whose form is wrong; nothing was enqueued for it.
type InvalidError struct{ Reason string }

func (e *InvalidError) Error() string { return e.Reason }

// Enqueue accepts a step. Its execution goes on in the OpenTelemetry trace of ctx. An *InvalidError means that its form is wrong; any
// other error that Redis could not be asked, in which case it may or may not
// have been accepted: enqueue it again under the receipt's ExecutionID.
func (c *Client) Enqueue(ctx context.Context, step *Step) (Receipt, error) {
	r := c.EnqueueBatch(ctx, []*Step{step})[0]
	return r, r.Err
}

// enqueueWidth is how many steps of a batch are enqueued at once: asynq has
// no batch call, so a batch is made of concurrent single ones.
const enqueueWidth = 64

// batchPage is how many steps of a batch are counted and claimed together.
const batchPage = 1000

// accepted is a step on its way into Redis.
type accepted struct {
	step  *Step
	id    string
	raw   []byte
	owner string            // of the claim on its id
	queue string            // of its level
	heads map[string]string // of its task
	amiss bool              // it is counted as under way, and should not be
}

// EnqueueBatch enqueues many steps, in about their order; receipts come in
// the order of the steps. An invalid step never stops the others. Of steps
// with the same id, here or in another process, the one that is accepted first
// runs, with its payload; the others are duplicates.
//
// An execution goes on in the OpenTelemetry trace of ctx: its attempts, its API
// calls, and the task that reply_to names.
func (c *Client) EnqueueBatch(ctx context.Context, steps []*Step) []Receipt {
	receipts := make([]Receipt, len(steps))
	batch := make([]*accepted, len(steps))
	first := make(map[string]int, len(steps)) // by id, the step that claims it
	now, owner := time.Now(), ulid.Make().String()
	sending := c.startSending(ctx, steps)
	sealer := sync.OnceValues(func() (*credentials.StepSealer, error) { return c.stepSealer(ctx) }) // where Redis is away, it is asked once
	for i, s := range steps {
		a, err := accept(s, now, sealer)
		if err != nil {
			receipts[i] = Receipt{Err: err}
			if a != nil {
				receipts[i].ExecutionID = a.id
			} else if s != nil {
				receipts[i].ExecutionID = s.ExecutionID
			}
			continue
		}
		receipts[i].ExecutionID = a.id
		if _, again := first[a.id]; !again {
			first[a.id] = i
			a.owner = owner
			batch[i] = a
			a.heads = sending.headers(i, a)
		}
	}
	c.enqueueAll(ctx, batch, now, receipts)
	for i := range receipts {
		if r := &receipts[i]; r.Err == nil && r.Status == "" {
			if r.Err = receipts[first[r.ExecutionID]].Err; r.Err == nil {
				r.Status = Duplicate
			}
		}
	}
	sending.end(batch, receipts)
	return receipts
}

// accept checks a step's form and makes its payload, with sensitive parameters
// sealed. What could not be sealed has an id all the same.
func accept(s *Step, now time.Time, seals func() (*credentials.StepSealer, error)) (*accepted, error) {
	if s == nil {
		return nil, &InvalidError{"there is no step: it is nil"}
	}
	if err := s.Validate(); err != nil {
		return nil, &InvalidError{err.Error()}
	}
	p := payload{V: payloadPlain, EnqueuedAt: now.UTC().Truncate(time.Millisecond), Step: *s}
	if p.ExecutionID == "" {
		p.ExecutionID = ulid.Make().String()
	}
	if len(p.Parameters) > 0 {
		sealer, err := seals()
		sealed := false
		if err == nil {
			p.Parameters, sealed, err = sealer.Seal(p.ExecutionID, p.Method, p.Parameters)
		}
		if sealed {
			p.V = payloadSealed
		}
		if err != nil {
			return &accepted{id: p.ExecutionID}, redisError(err)
		}
	}
	raw, err := encode(p)
	if err == nil && len(raw) > MaxStepSize { // what we add to it is not the step's
		err = s.checkSize()
	}
	if err != nil {
		return nil, &InvalidError{err.Error()}
	}
	return &accepted{step: s, id: p.ExecutionID, raw: raw}, nil
}

// sealerStays is how long a client goes by what workers offered before it looks again.
const sealerStays = 2 * time.Second

// stepSealer seals what workers want to have sealed. Nobody waits for another's
// question to Redis, which may hang.
func (c *Client) stepSealer(ctx context.Context) (*credentials.StepSealer, error) {
	c.mu.Lock()
	z, at := c.sealer, c.sealerAt
	c.mu.Unlock()
	if z != nil && time.Since(at) <= sealerStays {
		return z, nil
	}
	at = time.Now()
	z, err := c.store.StepSealer(ctx)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if at.After(c.sealerAt) {
		c.sealer, c.sealerAt = z, at
	}
	return z, nil
}

// enqueueAll enqueues a batch, page by page.
func (c *Client) enqueueAll(ctx context.Context, batch []*accepted, now time.Time, receipts []Receipt) {
	var err error
	for len(batch) > 0 {
		n := min(len(batch), batchPage)
		err = c.enqueuePage(ctx, batch[:n], now, receipts[:n], err)
		batch, receipts = batch[n:], receipts[n:]
	}
}

// enqueuePage chooses the levels of steps and claims their ids, with a round
// trip for each, then enqueues; err is why nothing could be claimed before it, and
// so is what it returns: where Redis is away, it is asked once.
func (c *Client) enqueuePage(ctx context.Context, batch []*accepted, now time.Time, receipts []Receipt, err error) error {
	if err != nil {
		for i, a := range batch {
			if a != nil {
				receipts[i].Err = redisError(err)
			}
		}
		return err
	}
	c.place(ctx, batch, now)
	claims, err := c.claim(ctx, batch, now)
	var wg sync.WaitGroup
	slots := make(chan struct{}, enqueueWidth)
	for i, a := range batch {
		if claims[i] == nil {
			continue
		}
		slots <- struct{}{}
		wg.Add(1)
		go func() {
			defer func() { <-slots; wg.Done() }()
			status, err := c.enqueueClaimed(ctx, a, claims[i])
			if err != nil {
				receipts[i].Err = redisError(err)
			} else {
				receipts[i].Status = status
			}
		}()
	}
	wg.Wait()
	c.uncount(ctx, batch)
	return err
}

// claim claims the ids of a page, in a round trip or two; the error is why all
// failed, where Redis did not answer.
func (c *Client) claim(ctx context.Context, batch []*accepted, now time.Time) ([]*redis.Cmd, error) {
	keys := make([]string, len(batch))
	for i, a := range batch {
		if a != nil {
			keys[i] = execKey(a.id)
		}
	}
	claims := runEach(ctx, c.rdb, claimScript, keys, func(i int) []any { return []any{batch[i].queue, now.UnixMilli(), batch[i].owner, "-"} })
	var away error
	for _, claim := range claims {
		var reply redis.Error
		if claim == nil {
			continue
		}
		if away = claim.Err(); away == nil || errors.As(away, &reply) {
			return claims, nil
		}
	}
	return claims, away
}

// enqueueClaimed enqueues a step whose id is claimed. While the id is another
// owner's, and no task shows what became of his claim, it waits for one of the
// two; a claim that was abandoned (a crash between claim and task, or a task
// deleted from the dashboard) is taken over. So is one whose task is completed
// while nothing tells of its end: in a cluster a failover may lose the one, on
// one server, and not the other.
func (c *Client) enqueueClaimed(ctx context.Context, a *accepted, claim *redis.Cmd) (string, error) {
	for completed := false; ; {
		answer, err := claim.Slice()
		if err != nil {
			return "", err
		}
		state, _ := answer[0].(int64)
		queue, _ := answer[1].(string)
		switch state {
		case 2:
			a.amiss = true // it has ended
			return Duplicate, nil
		case 1:
			return c.enqueueOwned(ctx, a, queue)
		}
		switch info, err := c.taskInfo(queue, a.id); {
		case err != nil:
			return "", err
		case info != nil && info.State != asynq.TaskStateCompleted:
			a.amiss = !a.sameAccount(info.Payload)
			return Duplicate, nil
		case info != nil && !completed:
			completed = true // its end is there now, if it is anywhere
			claim = claimScript.Run(ctx, c.rdb, []string{execKey(a.id)}, a.queue, time.Now().UnixMilli(), a.owner, "-")
			continue
		}
		owner, _ := answer[2].(string)
		replaces := "-"
		if age, _ := answer[3].(int64); max(age, -age) >= claimGrace.Milliseconds() { // or a clock was set back
			replaces = owner
		} else if err := pause(ctx, 50*time.Millisecond); err != nil {
			return "", err
		}
		claim = claimScript.Run(ctx, c.rdb, []string{execKey(a.id)}, a.queue, time.Now().UnixMilli(), a.owner, replaces)
	}
}

// enqueueOwned enqueues a step whose id is its own by claim.
func (c *Client) enqueueOwned(ctx context.Context, a *accepted, queue string) (string, error) {
	opts := []asynq.Option{
		asynq.TaskID(a.id), asynq.Queue(queue),
		// asynq's own budget must never run out: at its limit a task is
		// archived even when it only parks. outcome.go ends executions.
		asynq.MaxRetry(asynqMaxRetry),
		// Ours ends first, so that an attempt's end is always ours to tell.
		asynq.Timeout(a.step.timeout() + attemptGrace),
		asynq.Retention(a.step.retention()),
	}
	if at := a.step.ProcessAt; at != nil && at.After(time.Now()) {
		if d := a.step.Deadline; d != nil && d.Before(*at) {
			at = d // it fails then, and not later
		}
		opts = append(opts, asynq.ProcessAt(at.Add(time.Second))) // asynq counts whole seconds, downwards
	}
	for {
		_, err := c.asynq.EnqueueContext(ctx, asynq.NewTaskWithHeaders(TypeStep, a.raw, a.heads), opts...)
		if !errors.Is(err, asynq.ErrTaskIDConflict) {
			return Enqueued, err
		}
		switch info, err := c.taskInfo(queue, a.id); {
		case err != nil:
			return "", err
		case info == nil: // gone meanwhile
		case bytes.Equal(info.Payload, a.raw):
			return Enqueued, nil // ours: the answer was lost, and asked for again
		case info.State == asynq.TaskStateArchived || info.State == asynq.TaskStateCompleted:
			// It ended, and its result is kept no longer: the id is free.
			if err := c.inspector.DeleteTask(queue, a.id); err != nil && !errors.Is(err, asynq.ErrTaskNotFound) {
				return "", err
			}
		default:
			// Enqueued by a flow with asynq alone, run again from the
			// dashboard, or by the owner whose claim was taken over.
			a.amiss = !a.sameAccount(info.Payload)
			return Duplicate, nil
		}
	}
}

// taskInfo returns an execution's task, nil if there is none.
func (c *Client) taskInfo(queue, id string) (*asynq.TaskInfo, error) {
	info, err := c.inspector.GetTaskInfo(queue, id)
	if errors.Is(err, asynq.ErrTaskNotFound) || errors.Is(err, asynq.ErrQueueNotFound) {
		return nil, nil
	}
	return info, err
}

// redisError says what a Redis user may not do, where that is the reason.
func redisError(err error) error {
	if lacksRight(err) {
		return fmt.Errorf("this Redis user lacks a right that steps need, docs/security.md names them all: %w", err)
	}
	return fmt.Errorf("redis: %w", err)
}

// lacksRight says that a Redis user may not do something, itself or in a script.
func lacksRight(err error) bool {
	return strings.Contains(err.Error(), "NOPERM") || strings.Contains(err.Error(), "The user executing the script can't")
}

// pause waits, or ends with ctx.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// Result returns how an execution ended, or ErrNotFinished, or
// ErrUnknownExecution.
func (c *Client) Result(ctx context.Context, id string) (*Result, error) {
	look := c.look(ctx, []string{id})[0]
	switch {
	case look.err != nil:
		return nil, redisError(look.err)
	case look.result != nil:
		return decodeResult(look.result)
	case look.queue == "":
		return nil, ErrUnknownExecution
	}
	return nil, ErrNotFinished
}

// Results returns the results of those of many executions that have ended, by
// id, in one round trip.
func (c *Client) Results(ctx context.Context, ids []string) (map[string]*Result, error) {
	results := make(map[string]*Result, len(ids))
	for i, l := range c.look(ctx, ids) {
		if l.err != nil {
			return nil, redisError(l.err)
		}
		if l.result != nil {
			r, err := decodeResult(l.result)
			if err != nil {
				return nil, err
			}
			results[ids[i]] = r
		}
	}
	return results, nil
}

// look is what the keys of an execution say. One that is known has a queue.
type look struct {
	result []byte
	queue  string
	err    error
}

// look reads the keys of many executions in one round trip.
func (c *Client) look(ctx context.Context, ids []string) []look {
	pipe := c.rdb.Pipeline()
	results, records := make([]*redis.StringCmd, len(ids)), make([]*redis.SliceCmd, len(ids))
	for i, id := range ids {
		results[i], records[i] = pipe.Get(ctx, resultKey(id)), pipe.HMGet(ctx, execKey(id), "q", "end")
	}
	_, _ = pipe.Exec(ctx) // each command's own error is read below
	looks := make([]look, len(ids))
	for i := range ids {
		l := &looks[i]
		record, err := records[i].Result()
		if err != nil {
			l.err = err
			continue
		}
		l.queue, _ = record[0].(string)
		// An archived execution that is run again has a record without an end.
		if running := l.queue != "" && record[1] == nil; !running {
			if l.result, l.err = results[i].Bytes(); errors.Is(l.err, redis.Nil) {
				l.result, l.err = nil, nil
			}
		}
	}
	return looks
}

func decodeResult(raw []byte) (*Result, error) {
	var r Result
	raw, err := unpackResult(raw)
	if err == nil {
		err = json.Unmarshal(raw, &r)
	}
	if err != nil {
		return nil, fmt.Errorf("a stored result cannot be read: %w", err)
	}
	return &r, nil
}

// ExecutionStatus tells where an execution stands that has not ended.
type ExecutionStatus struct {
	ExecutionID  string              `json:"execution_id"`
	Status       string              `json:"status"` // pending active scheduled parked held deferred retry
	CredentialID string              `json:"credential_id,omitempty"`
	WaitsFor     string              `json:"waits_for,omitempty"`
	Since        *Time               `json:"since,omitempty"`
	NextTry      *Time               `json:"next_try,omitempty"`
	Credential   *credentials.Status `json:"credential,omitempty"`
}

// Status tells where an execution stands. Of one that has ended, ask Result.
func (c *Client) Status(ctx context.Context, id string) (*ExecutionStatus, error) {
	exec, err := c.rdb.HGetAll(ctx, execKey(id)).Result()
	if err != nil {
		return nil, redisError(err)
	}
	if exec["q"] == "" {
		return nil, ErrUnknownExecution
	}
	info, err := c.taskInfo(exec["q"], id)
	if err != nil {
		return nil, redisError(err)
	}
	if info == nil {
		return nil, ErrUnknownExecution
	}
	s := &ExecutionStatus{ExecutionID: id, Status: info.State.String()}
	if !info.NextProcessAt.IsZero() && info.State != asynq.TaskStatePending {
		s.NextTry = timeOf(info.NextProcessAt)
	}
	if p, err := peek(info.Payload); err == nil {
		s.CredentialID = p.CredentialID
	}
	if info.State == asynq.TaskStateRetry {
		s.WaitsFor = info.LastErr
		if why := exec["why"]; why != "" {
			s.Status = why
		}
		if ms, err := strconv.ParseInt(exec["turn"], 10, 64); err == nil && ms > 0 && s.Status == whyDeferred {
			s.NextTry = timeOf(time.UnixMilli(ms)) // its timer is for a process that is gone
		}
		inLine := false
		if ms, err := strconv.ParseInt(exec["lin"], 10, 64); err == nil && ms > 0 && s.Status == whyDeferred {
			inLine = true
			if s.NextTry = nil; ms > 1 {
				s.NextTry = timeOf(time.UnixMilli(ms))
			}
		}
		if ms, err := strconv.ParseInt(exec["since"], 10, 64); err == nil {
			s.Since = timeOf(time.UnixMilli(ms))
		}
		if st, err := c.store.Status(ctx, s.CredentialID); err == nil {
			s.Credential = st
			if inLine { // as the line is now: the pause may have been ended, or grown
				if s.NextTry = nil; st.PausedUntil != nil {
					s.NextTry = timeOf(*st.PausedUntil)
				}
			}
			if s.Status == whyParked || s.Status == whyHeld { // its own timer only guards against a lost wake-up
				s.NextTry = nil
				if st.NextTry != nil {
					s.NextTry = timeOf(*st.NextTry)
				}
			}
			if s.Status == whyParked && st.State != credentials.Active && st.State != credentials.Refreshing {
				s.Status = whyHeld
			}
		}
	}
	return s, nil
}

// RequestRefresh asks the pool to refresh a credential now, also a revoked one.
func (c *Client) RequestRefresh(ctx context.Context, credential string) error {
	st, err := c.store.Status(ctx, credential)
	if err != nil {
		return err
	}
	// The version asked for goes along: what a running refresh renews meanwhile
	// answers this request too.
	now, err := c.rdb.Time(ctx).Result()
	if err != nil {
		return err
	}
	r := refreshTask{CredentialID: credential, Version: st.Version, Kind: kindForced, Until: time.Now().Add(forcedFor).UnixMilli(), Asked: now.UnixMilli()}
	if st.LastRefresh != nil {
		r.Seen = st.LastRefresh.At.UnixMilli()
	}
	return c.hint(ctx, r, ulid.Make().String())
}

// RequestResume asks the pool to put a credential's waiting executions back
// to pending. The request is a hint: the sweeper does the same a little later.
func (c *Client) RequestResume(ctx context.Context, credential string) error {
	return c.hint(ctx, refreshTask{CredentialID: credential, Kind: kindResume}, ulid.Make().String())
}

// Unpause lets a credential's calls go on whose API asked to wait: one as a
// trial, then the others. It returns credentials.ErrNotFound for an unknown one.
func (c *Client) Unpause(ctx context.Context, credential string) error {
	if err := c.store.EndPause(ctx, credential); err != nil {
		return err
	}
	return c.RequestResume(ctx, credential)
}

// hint enqueues a credential:refresh task. What makes a refresh single is the
// credential's lease in Redis; a task may be lost, doubled, archived or stuck
// under a dead worker without harm, since each further request has a new id.
func (c *Client) hint(ctx context.Context, r refreshTask, suffix string) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	id := fmt.Sprintf("%s:v%d:%s:%s", r.CredentialID, r.Version, r.Kind, suffix)
	_, err = c.asynq.EnqueueContext(ctx, asynq.NewTaskWithHeaders(TypeRefresh, raw, spans.Headers(ctx)), asynq.TaskID(id), asynq.Queue(QueueRefresh),
		asynq.MaxRetry(asynqMaxRetry), asynq.Timeout(refreshTaskTimeout))
	if errors.Is(err, asynq.ErrTaskIDConflict) {
		return nil
	}
	return err
}
