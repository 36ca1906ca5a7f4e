package credentials

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"
)

// unconfirmed is a save that Redis has acknowledged and may yet come back
// without: it may not be in its file, because while that is slow to be synced
// Redis keeps what it writes back for up to two seconds; nor on a replica, which
// may become the master.
type unconfirmed struct {
	id      string
	version int64
	first   time.Time // when it was saved
	saved   time.Time // when it was saved last
	again   func(context.Context) ([]string, error)
}

const (
	// confirmAfter is when a save is in the file of a Redis that still runs.
	confirmAfter = 3 * time.Second
	// confirmFor is how long a save is looked after that no replica acknowledges,
	// though there were replicas; confirmMax how many of those at most.
	confirmFor = 10 * time.Minute
	confirmMax = 10_000
	// replicaWait is how long replicas have to acknowledge it.
	replicaWait = 200 * time.Millisecond
)

// Confirm looks at what this process has saved a few seconds ago, and saves it
// again where Redis came back without it: one that was killed, or a replica that
// has become the master. It goes on to look until the save is in Redis' file and,
// if Redis has replicas, one of them has acknowledged it. A worker calls it every
// few seconds.
func (s *Store) Confirm(ctx context.Context) error { return s.confirm(ctx, confirmAfter) }

// ConfirmAll is Confirm, of what was saved just now, too: this process ends.
func (s *Store) ConfirmAll(ctx context.Context) error { return s.confirm(ctx, 0) }

func (s *Store) confirm(ctx context.Context, after time.Duration) error {
	s.mu.Lock()
	var due []*unconfirmed
	for _, u := range s.unconfirmed {
		if time.Since(u.saved) >= after {
			due = append(due, u)
		}
	}
	s.mu.Unlock()
	if len(due) == 0 {
		return nil
	}
	var errs []error
	byMaster := map[redis.UniversalClient][]*unconfirmed{} // of each in their order
	for _, u := range due {
		m, err := master(ctx, s.rdb, credKey(u.id))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		byMaster[m] = append(byMaster[m], u)
	}
	done := map[*unconfirmed]bool{}
	for m, saves := range byMaster {
		errs = append(errs, s.confirmOn(ctx, m, saves, done))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := make([]*unconfirmed, 0, len(s.unconfirmed))
	for i, u := range s.unconfirmed {
		if !done[u] && time.Since(u.first) < confirmFor && len(s.unconfirmed)-i <= confirmMax {
			kept = append(kept, u)
		}
	}
	s.unconfirmed = kept
	return errors.Join(errs...)
}

// confirmOn does so for those of one server; done are those that are confirmed.
func (s *Store) confirmOn(ctx context.Context, rdb redis.UniversalClient, saves []*unconfirmed, done map[*unconfirmed]bool) error {
	r, err := askReplication(ctx, rdb)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.replicated = s.replicated || r.replicas > 0
	replicated := s.replicated
	s.mu.Unlock()
	pipe := rdb.Pipeline()
	stored := make([]*redis.StringCmd, len(saves))
	for i, u := range saves {
		stored[i] = pipe.HGet(ctx, credKey(u.id), "v")
	}
	var acknowledged *redis.Cmd
	if r.replicas > 0 {
		// WAIT is about what its own connection has written, so there is something:
		// what was written before has reached who acknowledges it.
		pipe.Set(ctx, credKey(saves[0].id)+":confirm", 1, time.Second)
		acknowledged = pipe.Do(ctx, "WAIT", 1, replicaWait.Milliseconds())
	}
	_, _ = pipe.Exec(ctx) // each command's own error is read: who may not WAIT still looks
	safe := !replicated
	if acknowledged != nil {
		n, err := acknowledged.Int()
		safe = err == nil && n > 0
	}
	for i, u := range saves {
		if err := stored[i].Err(); err != nil && !errors.Is(err, redis.Nil) {
			return err
		}
		if num(stored[i].Val()) >= u.version {
			done[u] = safe
			continue
		}
		out, err := u.again(ctx)
		if err != nil {
			return err
		}
		done[u] = out[0] == "gone"
		s.mu.Lock()
		u.saved = time.Now()
		s.mu.Unlock()
	}
	return nil
}
