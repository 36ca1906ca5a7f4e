package redistest

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

// Cluster is a Redis Cluster of three masters with a replica each.
type Cluster struct {
	URL     string
	Servers []*Server

	t   testing.TB
	ids map[*Server]string
}

const slots = 16384

// NewCluster starts one. A master that is gone for two seconds is replaced.
func NewCluster(t testing.TB, o Options) *Cluster {
	t.Helper()
	c := &Cluster{t: t, ids: map[*Server]string{}}
	more := []string{"cluster-enabled", "yes", "cluster-node-timeout", "2000", "cluster-config-file", "nodes.conf"}
	if o.TLS != nil {
		more = append(more, "tls-cluster", "yes")
	}
	do := func(s *Server, args ...any) any {
		t.Helper()
		answer, err := s.Do(args...)
		if err != nil {
			t.Fatalf("%v: %v", args[:2], err)
		}
		return answer
	}
	for range 6 {
		s := o.server(t, more...)
		c.Servers = append(c.Servers, s)
		c.ids[s] = fmt.Sprint(do(s, "CLUSTER", "MYID"))
	}
	for i, s := range c.Servers[:3] {
		assign := []any{"CLUSTER", "ADDSLOTS"}
		for slot := i * slots / 3; slot < (i+1)*slots/3; slot++ {
			assign = append(assign, slot)
		}
		do(s, assign...)
		do(s, "CLUSTER", "SET-CONFIG-EPOCH", i+1)
	}
	for _, s := range c.Servers[1:] {
		do(s, "CLUSTER", "MEET", "127.0.0.1", c.Servers[0].port)
	}
	all := func(what string, ok func(s *Server) bool) {
		t.Helper()
		until(t, what, func() bool {
			for _, s := range c.Servers {
				if !ok(s) {
					return false
				}
			}
			return true
		})
	}
	all("the servers of the cluster know each other", func(s *Server) bool { return strings.Count(fmt.Sprint(do(s, "CLUSTER", "NODES")), " connected") == 6 })
	for i, s := range c.Servers[3:] {
		do(s, "CLUSTER", "REPLICATE", c.ids[c.Servers[i]])
	}
	all("the cluster has masters and replicas", func(s *Server) bool {
		return strings.Contains(fmt.Sprint(do(s, "CLUSTER", "INFO")), "cluster_state:ok") && strings.Count(fmt.Sprint(do(s, "CLUSTER", "NODES")), "slave ") == 3 &&
			(s.Info("role") == "master" && s.Info("connected_slaves") == "1" || s.Info("master_link_status") == "up")
	})
	c.URL = scheme(o, "cluster") + userinfo(o.Password) + addrs(c.Servers[:2])
	return c
}

// Master is the server that has a key, as the living ones see it.
func (c *Cluster) Master(key string) *Server {
	c.t.Helper()
	servers := c.of(key)
	if len(servers) == 0 {
		c.t.Fatalf("no server has %s", key)
	}
	return servers[0]
}

// Replica is a replica of that server: the others learn by and by that it follows.
func (c *Cluster) Replica(key string) *Server {
	c.t.Helper()
	var servers []*Server
	until(c.t, key+" has a replica", func() bool { servers = c.of(key); return len(servers) > 1 })
	return servers[1]
}

func (c *Cluster) of(key string) (servers []*Server) {
	ctx := context.Background()
	for _, s := range c.Servers {
		client := s.open()
		slot, err := client.ClusterKeySlot(ctx, key).Result()
		ranges, err2 := client.ClusterSlots(ctx).Result() //nolint:staticcheck // CLUSTER SHARDS came with Redis 7
		_ = client.Close()
		if err != nil || err2 != nil {
			continue // it is down
		}
		for _, r := range ranges {
			if int64(r.Start) <= slot && slot <= int64(r.End) {
				for _, n := range r.Nodes {
					servers = append(servers, c.byID(n))
				}
				return servers
			}
		}
	}
	return nil
}

func (c *Cluster) byID(n redis.ClusterNode) *Server {
	for s, id := range c.ids {
		if id == n.ID {
			return s
		}
	}
	c.t.Fatalf("server %s is of another cluster", n.ID)
	return nil
}

// Replaced waits until another server than that has the key, and answers.
func (c *Cluster) Replaced(key string, old *Server) *Server {
	c.t.Helper()
	until(c.t, "another server has "+key, func() bool {
		servers := c.of(key)
		return len(servers) > 0 && servers[0] != old && servers[0].Info("role") == "master" && servers[0].Info("cluster_enabled") == "1" &&
			strings.Contains(fmt.Sprint(first(servers[0].Do("CLUSTER", "INFO"))), "cluster_state:ok")
	})
	return c.Master(key)
}

func first(v any, _ error) any { return v }

// Failover has a replica take the place of the server that has a key, in
// agreement with it.
func (c *Cluster) Failover(key string) {
	c.t.Helper()
	until(c.t, "a replica takes over", func() bool {
		_, err := c.Replica(key).Do("CLUSTER", "FAILOVER")
		return err == nil
	})
}
