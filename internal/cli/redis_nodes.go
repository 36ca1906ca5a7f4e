package cli

import (
	"context"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// nodesWithin bounds the question which servers there are.
const nodesWithin = 3 * time.Second

// Nodes are the addresses of all servers behind a Redis, as far as they can be
// told now: those that the URL names, and the masters, replicas and sentinels
// that these know of. Without a client nobody is asked.
func (o *RedisOptions) Nodes(ctx context.Context, rdb redis.UniversalClient) []string {
	ctx, cancel := context.WithTimeout(ctx, nodesWithin)
	defer cancel()
	nodes := o.seeds()
	add := func(host, port string) {
		if host != "" && port != "" {
			nodes = append(nodes, net.JoinHostPort(host, port))
		}
	}
	switch {
	case rdb == nil:
	case o.sentinel != nil:
		for _, addr := range o.sentinel.SentinelAddrs {
			if o.askSentinel(ctx, addr, add) {
				break
			}
		}
	case o.cluster != nil:
		text, _ := rdb.ClusterNodes(ctx).Result() // not told, those that are known stay
		for line := range strings.Lines(text) {
			// ID IP:PORT@BUS[,HOSTNAME…] FLAGS …
			fields := strings.Fields(line)
			if len(fields) < 2 {
				continue
			}
			addr, names, _ := strings.Cut(fields[1], "@")
			if i := strings.LastIndexByte(addr, ':'); i >= 0 {
				add(strings.Trim(addr[:i], "[]"), addr[i+1:])
				if name := strings.Split(names, ","); len(name) > 1 {
					add(name[1], addr[i+1:])
				}
			}
		}
	}
	return nodes
}

// askSentinel asks a sentinel for all servers of the master; false if it does
// not answer.
func (o *RedisOptions) askSentinel(ctx context.Context, addr string, add func(host, port string)) bool {
	f := o.sentinel
	s := redis.NewSentinelClient(&redis.Options{Addr: addr, Username: f.SentinelUsername, Password: f.SentinelPassword, TLSConfig: f.TLSConfig,
		Protocol: f.Protocol, ClientName: f.ClientName, DialTimeout: nodesWithin / 3, ReadTimeout: nodesWithin / 3, MaxRetries: -1, DialerRetries: 1})
	defer s.Close()
	master, err := s.GetMasterAddrByName(ctx, f.MasterName).Result()
	if err != nil || len(master) != 2 {
		return false
	}
	add(master[0], master[1])
	for _, ask := range []func(context.Context, string) *redis.MapStringStringSliceCmd{s.Replicas, s.Sentinels} {
		servers, _ := ask(ctx, f.MasterName).Result()
		for _, v := range servers {
			add(v["ip"], v["port"])
		}
	}
	return true
}
