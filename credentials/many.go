package credentials

import (
	"context"

	"github.com/redis/go-redis/v9"
)

// GetMany opens many credentials in one round trip. Those that do not exist,
// or that no key opens, are left out.
func (s *Store) GetMany(ctx context.Context, ids []string) (map[string]*Credential, error) {
	pipe := s.rdb.Pipeline()
	cmds, newest := make([]*redis.MapStringStringCmd, len(ids)), make([]*redis.StringCmd, len(ids))
	for i, id := range ids {
		cmds[i], newest[i] = pipe.HGetAll(ctx, credKey(id)), pipe.Get(ctx, versionKey(id))
	}
	if err := exec(ctx, pipe); err != nil {
		return nil, err
	}
	opened := make(map[string]*Credential, len(ids))
	for i, id := range ids {
		if c, err := s.open(id, cmds[i].Val(), num(newest[i].Val())); err == nil {
			opened[id] = c
		}
	}
	return opened, nil
}
