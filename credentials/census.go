package credentials

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"
)

// CensusRow counts the credentials of one connector in one state, as Status
// tells it, and the executions that wait for them.
type CensusRow struct {
	Connector   string `json:"connector"`
	State       State  `json:"state"`
	Credentials int64  `json:"credentials"`
	// Failing are those whose last refresh has failed and is tried again.
	Failing int64 `json:"failing,omitempty"`
	Waiting int64 `json:"waiting,omitempty"`
	// WaitedFor are the credentials for which executions wait.
	WaitedFor int64 `json:"waited_for,omitempty"`
	// Oldest is since when the one waits that has waited longest; zero: nobody does.
	Oldest time.Time `json:"oldest,omitzero"`
}

// censusFields are what it takes of a credential's hash.
var censusFields = []string{"v", "deleted", "connector", "state", "refused", "refused_kind", "lease", "lease_until", "fails", "client"}

const censusPage = 500

// Census counts all credentials, in one pass and in small pages: others may
// have Redis between them. What changes meanwhile may be counted as it was.
func (s *Store) Census(ctx context.Context) ([]CensusRow, error) {
	waiting, err := s.WaitingCredentials(ctx)
	if err != nil {
		return nil, err
	}
	c := &census{s: s, waits: make(map[string]bool, len(waiting)), seen: map[string]bool{}, clients: map[string]bool{}, rows: map[censusKey]*CensusRow{}}
	for _, id := range waiting {
		c.waits[id] = true
	}
	for cursor := uint64(0); ; {
		var page []string
		if page, cursor, err = s.rdb.SScan(ctx, indexKey, cursor, "", censusPage).Result(); err != nil {
			return nil, err
		}
		if err := c.count(ctx, page); err != nil {
			return nil, err
		}
		if cursor == 0 {
			break
		}
	}
	all := make([]CensusRow, 0, len(c.rows))
	for _, r := range c.rows {
		all = append(all, *r)
	}
	return all, nil
}

// census is one under way.
type census struct {
	s       *Store
	waits   map[string]bool // credentials that may have waiting executions
	seen    map[string]bool // a scan may tell one twice
	clients map[string]bool // whether they are refused
	rows    map[censusKey]*CensusRow
}

type censusKey struct {
	connector string
	state     State
}

func (c *census) count(ctx context.Context, ids []string) error {
	type asked struct {
		hash    *redis.SliceCmd
		waiting *redis.IntCmd
		oldest  *redis.ZSliceCmd
	}
	pipe := c.s.rdb.Pipeline()
	all := make([]asked, 0, len(ids))
	for _, id := range ids {
		if c.seen[id] {
			continue
		}
		c.seen[id] = true
		a := asked{hash: pipe.HMGet(ctx, credKey(id), censusFields...)}
		if c.waits[id] {
			a.waiting, a.oldest = pipe.ZCard(ctx, waitingKey(id)), pipe.ZRangeWithScores(ctx, waitingKey(id), 0, 0)
		}
		all = append(all, a)
	}
	if len(all) == 0 {
		return nil
	}
	if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		return err
	}
	now := time.Now()
	for _, a := range all {
		h := make(map[string]string, len(censusFields))
		for i, v := range a.hash.Val() {
			if text, ok := v.(string); ok {
				h[censusFields[i]] = text
			}
		}
		if h["v"] == "" || h["deleted"] != "" {
			continue
		}
		m := readMeta(h)
		state, err := c.stateOf(ctx, &m, h["lease"] != "", now)
		if err != nil {
			return err
		}
		row := c.row(h["connector"], state)
		row.Credentials++
		if m.Failures > 0 {
			row.Failing++
		}
		if a.waiting == nil {
			continue
		}
		row.Waiting += a.waiting.Val()
		if a.waiting.Val() > 0 {
			row.WaitedFor++
		}
		if z := a.oldest.Val(); len(z) == 1 {
			if at := time.UnixMilli(int64(z[0].Score)).UTC(); row.Oldest.IsZero() || at.Before(row.Oldest) {
				row.Oldest = at
			}
		}
	}
	return nil
}

// stateOf is a credential's state with what is known of its client.
func (c *census) stateOf(ctx context.Context, m *Meta, leased bool, now time.Time) (State, error) {
	if m.Client != "" && m.State == Active {
		refused, known := c.clients[m.Client]
		if !known {
			var err error
			if refused, err = c.s.rdb.HExists(ctx, clientKey(m.Client), "since").Result(); err != nil {
				return "", err
			}
			c.clients[m.Client] = refused
		}
		if refused {
			return Misconfigured, nil
		}
	}
	return m.shown(m.State, leased, now), nil
}

func (c *census) row(connector string, state State) *CensusRow {
	key := censusKey{connector, state}
	r := c.rows[key]
	if r == nil {
		r = &CensusRow{Connector: connector, State: state}
		c.rows[key] = r
	}
	return r
}
