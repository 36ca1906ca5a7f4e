package jobs

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/hibiken/asynq"
	"github.com/oklog/ulid/v2"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/killpoint"
)

const (
	resumeWidth = 16
	resumePage  = 1000
	// resumeStay is how long a resume looks again at executions that are still
	// on their way from active to retry; what is left then is the sweeper's.
	resumeStay = 5 * time.Second
	// asksInRound bounds how many refreshes of one connector a round of the
	// sweeper asks for: its token endpoint takes them one by one.
	asksInRound = 500
	sweepEvery  = 5 * time.Second
)

// resumer puts waiting executions back to pending, and sweeps for those whose
// wake-up was lost.
type resumer struct {
	p  *Pool
	me string // owner of its locks
}

func newResumer(p *Pool) *resumer { return &resumer{p: p, me: ulid.Make().String()} }

// run goes through a credential's waiting set until nobody is left, or the
// credential cannot be used (any more).
func (s *resumer) run(ctx context.Context, credential string) error {
	unlock := s.lock(ctx, credential)
	defer unlock()
	begun := time.Now()
	for {
		u, err := s.p.cfg.Store.Usable(ctx, credential)
		gone := errors.Is(err, credentials.ErrNotFound)
		if err != nil && !gone {
			return &waitError{why: whyWorker, text: "redis cannot be used", delay: 2 * time.Second}
		}
		if !u.Usable && !gone {
			return nil
		}
		left, err := s.round(ctx, credential, "resumed")
		if err != nil {
			return &waitError{why: whyWorker, text: "redis cannot be used", delay: 2 * time.Second}
		}
		if left == 0 || time.Since(begun) > resumeStay {
			return s.p.cfg.Store.Tidy(ctx, credential)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(30 * time.Millisecond):
		}
	}
}

// look has every waiter look at its credential once: it was refused, and they
// are held now, which is to be seen.
func (s *resumer) look(ctx context.Context, credential string) {
	defer s.lock(ctx, credential)()
	if _, err := s.round(ctx, credential, "looks"); err != nil {
		s.p.log.Warn("waiting executions look later", "credential_id", credential)
	}
}

// lock keeps two processes from going through one set side by side: a task
// that one has resumed may have ended when the other comes to it. It is a
// courtesy, not a guard, so after a while it is passed by.
func (s *resumer) lock(ctx context.Context, credential string) (unlock func()) {
	key, owner := "stepworker:cred:{"+credential+"}:resuming", ulid.Make().String()
	for begun := time.Now(); time.Since(begun) < resumeStay+time.Second; {
		ok, err := s.p.rdb.SetNX(ctx, key, owner, 2*resumeStay).Result()
		if err != nil || ok {
			break
		}
		select {
		case <-ctx.Done():
			return func() {}
		case <-time.After(50 * time.Millisecond):
		}
	}
	return func() {
		ctx := detached(ctx)
		if v, err := s.p.rdb.Get(ctx, key).Result(); err == nil && v == owner {
			s.p.rdb.Del(ctx, key)
		}
	}
}

// round looks at every waiter once; left is how many have to be looked at again.
func (s *resumer) round(ctx context.Context, credential, what string) (left int64, err error) {
	for {
		page, err := s.p.cfg.Store.Waiters(ctx, credential, left, resumePage)
		if err != nil {
			return 0, err
		}
		var mu sync.Mutex
		var kept int64
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(resumeWidth)
		for _, w := range page {
			g.Go(func() error {
				stays, err := s.one(gctx, credential, what, w)
				if stays {
					mu.Lock()
					kept++
					mu.Unlock()
				}
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return 0, err
		}
		left += kept
		if len(page) < resumePage {
			return left, nil
		}
	}
}

// one resumes one waiter, and then takes it out of the set: a worker that dies
// between the two leaves it there, for the next one to look at. An execution
// that is refused again joins anew, with a mark that this hand does not know.
func (s *resumer) one(ctx context.Context, credential, what string, w credentials.Waiter) (stays bool, err error) {
	queue, id := splitWaiter(w.Execution)
	info, err := s.p.client.inspector.GetTaskInfo(queue, id)
	switch {
	case errors.Is(err, asynq.ErrTaskNotFound), errors.Is(err, asynq.ErrQueueNotFound):
		return false, s.p.cfg.Store.Leave(ctx, credential, w)
	case err != nil:
		return false, err
	}
	switch info.State {
	case asynq.TaskStateActive:
		return true, nil // on its way from active to retry, or running by its timer
	case asynq.TaskStateRetry:
		if !waits(info.LastErr) {
			break // it ran, and is deferred now: that is not ours to cut short
		}
		if err := s.p.client.inspector.RunTask(queue, id); err == nil {
			killpoint.KillPoint("resumed-one")
			s.p.observe(Moment{What: what, ExecutionID: id, CredentialID: credential}, nil)
			return false, s.p.cfg.Store.Leave(ctx, credential, w, func(pipe redis.Pipeliner) {
				pendingScript.Eval(ctx, pipe, []string{"asynq:{" + queue + "}:t:" + id}, time.Now().UnixNano())
			})
		} else if ctx.Err() != nil {
			return false, ctx.Err()
		} // else its timer was quicker: it runs already
	}
	return false, s.p.cfg.Store.Leave(ctx, credential, w)
}

// pendingScript notes since when a task is pending that was run: asynq does so
// only of those whose own time came, and a queue's latency is told by it.
//
//	KEYS  task
//	ARGV  now (ns)
var pendingScript = redis.NewScript(`
if redis.call('HGET', KEYS[1], 'state') == 'pending' then redis.call('HSETNX', KEYS[1], 'pending_since', ARGV[1]) end
return 1
`)

// sweep closes what a crash left open: waiters of a usable or deleted
// credential are resumed, a refresh that nobody has under way is asked for.
// One worker at a time does it.
func (s *resumer) sweep(ctx context.Context) {
	ok, err := s.p.rdb.SetNX(ctx, "stepworker:sweeper", s.me, 2*sweepEvery).Result()
	if err != nil {
		return
	}
	if !ok {
		if owner, err := s.p.rdb.Get(ctx, "stepworker:sweeper").Result(); err != nil || owner != s.me {
			return
		}
		s.p.rdb.PExpire(ctx, "stepworker:sweeper", 2*sweepEvery)
	}
	s.p.line.sweep(ctx)
	round := &sweep{clients: map[string]*credentials.ClientRefusal{}, asked: map[string]int{}, trials: map[string]trial{}}
	ids, err := s.p.cfg.Store.WaitingCredentials(ctx)
	if err != nil {
		return
	}
	for page := range slices.Chunk(ids, resumePage) {
		all, err := s.p.cfg.Store.UsableMany(ctx, page)
		if err != nil {
			return
		}
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(8)
		for _, id := range page {
			u, known := all[id]
			g.Go(func() error {
				if err := s.sweepOne(gctx, round, id, u, !known); err != nil {
					s.p.log.Warn("waiting executions are seen to later", "credential_id", id)
				}
				return nil
			})
		}
		_ = g.Wait()
	}
	for _, t := range round.trials {
		_ = s.p.askRefresh(ctx, t.id, t.u.Version, t.u.Meta.RefusedKind) // else in the next round
	}
}

// sweep is what one round of the sweeper has found out.
type sweep struct {
	mu      sync.Mutex
	clients map[string]*credentials.ClientRefusal // refusals that stand, nil for none
	asked   map[string]int                        // refreshes asked for, by connector
	trials  map[string]trial                      // by client: who asks whether its refusal still stands
}

type trial struct {
	id   string
	u    credentials.Usability
	seen int // how many were to choose from
	was  bool
}

// refusal is the refusal of a client that stands.
func (r *sweep) refusal(ctx context.Context, s *credentials.Store, client string) (*credentials.ClientRefusal, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, known := r.clients[client]
	if known {
		return c, nil
	}
	c, err := s.ClientRefusal(ctx, client)
	if err == nil {
		r.clients[client] = c
	}
	return c, err
}

// offer has one of a client's waiting credentials try, rather one that was not
// the one refused: that may be its own fault.
func (r *sweep) offer(client string, c *credentials.ClientRefusal, id string, u credentials.Usability) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t, was := r.trials[client], c.WasRefused(id)
	if t.id == "" || t.was && !was {
		t = trial{id: id, u: u, was: was}
	}
	if t.was != was {
		return
	}
	if t.seen++; rand.IntN(t.seen) == 0 { // each with the same chance
		t.id, t.u = id, u
	}
	r.trials[client] = t
}

// may says whether one more refresh of a connector is asked for in this round.
func (r *sweep) may(connector string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked[connector]++
	return r.asked[connector] <= asksInRound
}

func (s *resumer) sweepOne(ctx context.Context, round *sweep, id string, u credentials.Usability, gone bool) error {
	store, meta, now := s.p.cfg.Store, u.Meta, time.Now()
	def, here := s.p.cfg.Catalog.Get(u.Connector)
	free := now.After(meta.LeaseUntil)
	switch {
	case u.Usable || gone:
		return s.run(ctx, id)
	case meta.NoKey: // this worker may have the key
		c, err := store.Get(ctx, id)
		var sealed *credentials.SealError
		if errors.As(err, &sealed) {
			return nil
		}
		if err == nil {
			err = store.NoteOpened(ctx, id, c.Version)
		}
		if err != nil {
			return err
		}
		return s.run(ctx, id)
	case meta.Settings != "" && (meta.State == credentials.Misconfigured || meta.State == credentials.Revoked && meta.Unread):
		// What was refused may have been put right, or what was answered before
		// can be read now: that is asked once.
		if here && free && now.After(meta.NextTry) && s.p.cfg.Caller.Settings(def) != meta.Settings && round.may(u.Connector) {
			return s.p.client.RequestRefresh(ctx, id)
		}
		return nil
	case meta.State == credentials.Revoked || meta.State == credentials.Misconfigured:
		return nil
	case !meta.Refused || !free:
		return nil
	}
	if meta.Client != "" {
		c, err := round.refusal(ctx, store, meta.Client)
		switch {
		case err != nil:
			return err
		case c == nil: // accepted again
		case here && !c.Tried(s.p.cfg.Caller.Settings(def)): // put right, perhaps
		default:
			if !c.Trying && now.After(c.NextTry) {
				round.offer(meta.Client, c, id, u)
			}
			return nil
		}
	}
	if now.After(meta.NextTry) && round.may(u.Connector) {
		return s.p.askRefresh(ctx, id, u.Version, meta.RefusedKind)
	}
	return nil
}
