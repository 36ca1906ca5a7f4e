package credentials

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// exec runs a pipeline, and returns the first error that is more than that a key
// is not there. On a cluster some commands may succeed while others fail.
func exec(ctx context.Context, pipe redis.Pipeliner) error {
	cmds, err := pipe.Exec(ctx)
	if err == nil {
		return nil
	}
	for _, cmd := range cmds {
		if err := cmd.Err(); err != nil && !errors.Is(err, redis.Nil) {
			return err
		}
	}
	if errors.Is(err, redis.Nil) {
		return nil
	}
	return err
}

// masters are clients of the servers that hold keys of their own, of a cluster
// several.
func masters(ctx context.Context, rdb redis.UniversalClient) (all []redis.UniversalClient, err error) {
	cluster, ok := rdb.(*redis.ClusterClient)
	if !ok {
		return []redis.UniversalClient{rdb}, nil
	}
	var mu sync.Mutex
	err = cluster.ForEachMaster(ctx, func(_ context.Context, node *redis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, node)
		return nil
	})
	return all, err
}

// layout tells which server has which keys: two are equal if no slot of a cluster
// has moved in between.
func layout(ctx context.Context, rdb redis.UniversalClient) (string, error) {
	if _, ok := rdb.(*redis.ClusterClient); !ok {
		return "", nil
	}
	slots, err := rdb.ClusterSlots(ctx).Result() // CLUSTER SHARDS came with Redis 7
	var ranges []string
	for _, s := range slots {
		if len(s.Nodes) > 0 {
			ranges = append(ranges, fmt.Sprintf("%d-%d %s", s.Start, s.End, s.Nodes[0].ID))
		}
	}
	slices.Sort(ranges)
	return strings.Join(ranges, "\n"), err
}

// master is the server that holds a key.
func master(ctx context.Context, rdb redis.UniversalClient, key string) (redis.UniversalClient, error) {
	if cluster, ok := rdb.(*redis.ClusterClient); ok {
		return cluster.MasterForKey(ctx, key)
	}
	return rdb, nil
}

// replication is what a server says of itself; the zero value where it does not
// say (INFO is forbidden, or the server is an embedded one).
type replication struct {
	id       string // another one since it was started, or has become the master
	replicas int    // that are connected
}

// askReplication returns an error if the server does not answer.
func askReplication(ctx context.Context, rdb redis.UniversalClient) (replication, error) {
	text, err := rdb.Info(ctx, "replication").Result()
	var refused redis.Error
	if errors.As(err, &refused) && !redis.HasErrorPrefix(err, "LOADING") && !redis.HasErrorPrefix(err, "CLUSTERDOWN") {
		return replication{}, rdb.Ping(ctx).Err()
	} else if err != nil {
		return replication{}, err
	}
	var r replication
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch name {
		case "master_replid":
			r.id = value
		case "connected_slaves":
			r.replicas = int(num(value))
		}
	}
	return r, nil
}

// serversKept bounds how many servers are remembered.
const serversKept = 10_000

// NoteServers notes which servers hold keys, and returns an error if one of them
// does not answer. A worker calls it before it refreshes anything, and again
// every few seconds. The servers of the first time are taken for known ever since.
func (s *Store) NoteServers(ctx context.Context) error {
	all, err := masters(ctx, s.rdb)
	if err != nil {
		return err
	}
	replies, errs := make([]replication, len(all)), make([]error, len(all))
	var asked sync.WaitGroup
	for i, m := range all {
		asked.Go(func() { replies[i], errs[i] = askReplication(ctx, m) })
	}
	asked.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	since := time.Now()
	if s.servers == nil {
		since = time.Time{}
	}
	for _, r := range replies {
		s.noteServer(r, since)
	}
	return nil
}

// noteServer needs the lock.
func (s *Store) noteServer(r replication, since time.Time) {
	s.replicated = s.replicated || r.replicas > 0
	if s.servers == nil {
		s.servers = map[string]time.Time{}
	}
	if _, known := s.servers[r.id]; known || r.id == "" {
		return
	}
	if len(s.servers) >= serversKept {
		clear(s.servers)
	}
	s.servers[r.id] = since
}

// ServerSince is since when this process knows the server that holds a
// credential; zero: since it began. A server that has just become the master may
// lack what its predecessor had not told it yet.
func (s *Store) ServerSince(ctx context.Context, id string) (time.Time, error) {
	m, err := master(ctx, s.rdb, credKey(id))
	if err != nil {
		return time.Time{}, err
	}
	r, err := askReplication(ctx, m)
	if err != nil {
		return time.Time{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	since := time.Now()
	if s.servers == nil { // NoteServers was not called
		since = time.Time{}
	}
	s.noteServer(r, since)
	return s.servers[r.id], nil
}
