package cli

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// RedisOptions say how Redis is reached: as one server, as the master that
// sentinels name, or as a cluster. One of the three is set.
type RedisOptions struct {
	// Log, if set, is told of connections that come and go, by go-redis as a whole.
	Log *slog.Logger

	single   *redis.Options
	sentinel *redis.FailoverOptions
	cluster  *redis.ClusterOptions
}

const (
	poolSize   = 64 // connections, to each server
	clientName = "stepworker"
	// stateEvery is how soon pipelines go to the server that took a dead one's place:
	// unlike single commands they ask nobody where that is. go-redis' own is a minute.
	stateEvery = time.Second
	// protocol is RESP 2: looking for push messages of RESP 3 would cost a share of
	// every command.
	protocol = 2
)

// ParseRedis reads the URL of a Redis:
//
//	redis://[USER:PASSWORD@]HOST:6379/DB                     rediss:// with TLS
//	redis-socket://[USER:PASSWORD@]/PATH?db=N
//	redis-sentinel://[USER:PASSWORD@]HOST:26379,…/DB?master=NAME  rediss-sentinel://
//	redis-cluster://[USER:PASSWORD@]HOST:6379,…              rediss-cluster://
//
// with go-redis' options behind the question mark. What stands before the @ of a
// sentinel URL is for the sentinels, as go-redis and asynq have it; its options
// username and password are for Redis itself. No error holds a part of the URL
// that may be a password.
func ParseRedis(text string) (*RedisOptions, error) {
	u := split(text)
	switch u.scheme {
	case "redis", "rediss":
		if strings.Contains(u.hosts, ",") {
			return nil, fmt.Errorf("%s:// names one server; several are redis-sentinel:// or redis-cluster://", u.scheme)
		}
		return single(text)
	case "redis-socket":
		return single("unix://" + strings.TrimPrefix(text, "redis-socket://"))
	case "redis-sentinel", "rediss-sentinel":
		return u.sentinel()
	case "redis-cluster", "rediss-cluster":
		return u.cluster()
	}
	return nil, errors.New("a URL that begins with redis://, rediss://, redis-socket://, redis-sentinel:// or redis-cluster:// is needed")
}

func single(text string) (*RedisOptions, error) {
	o, err := redis.ParseURL(text)
	if err != nil {
		return nil, unreadable(err)
	}
	if o.Protocol == 0 {
		o.Protocol = protocol
	}
	o.PoolSize, o.ClientName = poolSize, clientName
	return &RedisOptions{single: o}, nil
}

func (u parts) sentinel() (*RedisOptions, error) {
	addrs, query, err := u.read("26379")
	if err != nil {
		return nil, err
	}
	if query.Has("master") {
		if query.Has("master_name") {
			return nil, errors.New("master and master_name are the same option: give one of them")
		}
		query.Set("master_name", query.Get("master"))
		query.Del("master")
	}
	if query.Get("master_name") == "" {
		return nil, fmt.Errorf("?master=NAME is missing, the name by which the sentinels know the master: %s://HOST:26379,HOST:26379/0?master=NAME", u.scheme)
	}
	o, err := redis.ParseFailoverURL(u.plain(addrs[0], query))
	if err != nil {
		return nil, unreadable(err)
	}
	if o.Protocol == 0 {
		o.Protocol = protocol
	}
	o.SentinelAddrs, o.PoolSize, o.ClientName = addrs, poolSize, clientName
	if o.TLSConfig != nil {
		o.TLSConfig.ServerName = "" // each server has its own
	}
	return &RedisOptions{sentinel: o}, nil
}

func (u parts) cluster() (*RedisOptions, error) {
	addrs, query, err := u.read("6379")
	if err != nil {
		return nil, err
	}
	if db := strings.Trim(u.path, "/"); db != "" && db != "0" || query.Has("db") && query.Get("db") != "0" {
		return nil, errors.New("a cluster has no other database than 0")
	}
	query.Del("db")
	// go-redis' reading of a cluster's URL does not know it.
	skip, insecure := query.Get("skip_verify"), false
	if skip != "" {
		if insecure, err = strconv.ParseBool(skip); err != nil {
			return nil, errors.New("skip_verify is true or false")
		}
	}
	query.Del("skip_verify")
	u.path = ""
	o, err := redis.ParseClusterURL(u.plain(addrs[0], query))
	if err != nil {
		return nil, unreadable(err)
	}
	if o.Protocol == 0 {
		o.Protocol = protocol
	}
	o.Addrs, o.PoolSize, o.ClientName, o.ClusterStateReloadInterval = addrs, poolSize, clientName, stateEvery
	if o.TLSConfig != nil {
		o.TLSConfig.ServerName, o.TLSConfig.InsecureSkipVerify = "", insecure
	}
	return &RedisOptions{cluster: o}, nil
}

// parts is a URL taken apart: package net/url reads none of several hosts.
type parts struct{ scheme, user, hosts, path, query string }

func split(text string) parts {
	var u parts
	var rest string
	u.scheme, rest, _ = strings.Cut(text, "://")
	rest, u.query, _ = strings.Cut(rest, "?")
	u.hosts = rest
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		u.hosts, u.path = rest[:i], rest[i:]
	}
	if i := strings.LastIndexByte(u.hosts, '@'); i >= 0 {
		u.user, u.hosts = u.hosts[:i], u.hosts[i+1:]
	}
	return u
}

// holdsPassword also suspects what looks as if a password had not been escaped.
func (u parts) holdsPassword() bool {
	return strings.Contains(u.user, ":") || strings.Contains(u.path+u.query, "@") || strings.Contains(strings.ToLower(u.query), "password")
}

// ofReplicas are options that would have a replica read, which lags behind: the
// order of what is written and read is what nothing is lost by.
var ofReplicas = []string{"read_only", "route_by_latency", "route_by_latency_tolerance", "route_randomly", "replica_only", "use_disconnected_replicas"}

// read reads the hosts and options.
func (u parts) read(port string) (addrs []string, query url.Values, err error) {
	for i, h := range strings.Split(u.hosts, ",") {
		if h == "" {
			return nil, nil, fmt.Errorf("host %d of the URL is empty: %s://HOST:%s,HOST:%s is needed", i+1, u.scheme, port, port)
		}
		host, p, err := net.SplitHostPort(h)
		if err != nil {
			host, p, err = net.SplitHostPort(h + ":" + port)
		}
		if n, bad := strconv.ParseUint(p, 10, 16); err != nil || bad != nil || n == 0 || host == "" || strings.ContainsAny(host, "@ #%") {
			return nil, nil, fmt.Errorf("host %d of the URL is no HOST:PORT; in a password the characters :/?#[]@, are written as %%XX", i+1)
		}
		addrs = append(addrs, net.JoinHostPort(host, p))
	}
	if query, err = url.ParseQuery(u.query); err != nil {
		return nil, nil, errors.New("the options behind the ? of the URL cannot be read")
	}
	for _, name := range ofReplicas {
		if query.Has(name) {
			return nil, nil, fmt.Errorf("option %s is of no use: replicas lag behind, so they are never read", name)
		}
	}
	if query.Has("addr") {
		return nil, nil, fmt.Errorf("option addr: the addresses stand in the URL itself, %s://HOST:%s,HOST:%s", u.scheme, port, port)
	}
	return addrs, query, nil
}

// plain is the URL of one host, as go-redis reads it.
func (u parts) plain(addr string, query url.Values) string {
	scheme, _, _ := strings.Cut(u.scheme, "-")
	text := scheme + "://"
	if u.user != "" {
		text += u.user + "@"
	}
	return text + addr + u.path + "?" + query.Encode()
}

// unreadable tells what is wrong with a URL, by the names of its options alone.
func unreadable(err error) error {
	if names, ok := strings.CutPrefix(err.Error(), "redis: unexpected option: "); ok {
		return fmt.Errorf("the URL has an option that is not known: %s", names)
	}
	return errors.New("the URL cannot be read")
}

// String names the servers, and no user or password.
func (o *RedisOptions) String() string {
	switch {
	case o.sentinel != nil:
		return fmt.Sprintf("redis master %q of the sentinels at %s", o.sentinel.MasterName, strings.Join(o.sentinel.SentinelAddrs, ", "))
	case o.cluster != nil:
		return "the redis cluster at " + strings.Join(o.cluster.Addrs, ", ")
	}
	return "redis at " + o.single.Addr
}

func (o *RedisOptions) client() redis.UniversalClient {
	switch {
	case o.sentinel != nil:
		return redis.NewFailoverClient(o.sentinel)
	case o.cluster != nil:
		return redis.NewClusterClient(o.cluster)
	}
	return redis.NewClient(o.single)
}

// Waiting returns another client, for commands that wait in Redis: with so many
// connections to each server, and of none that breaks off is it tried again.
func (o *RedisOptions) Waiting(connections int) redis.UniversalClient {
	switch {
	case o.sentinel != nil:
		c := *o.sentinel
		c.PoolSize, c.MinIdleConns, c.MaxRetries = connections, 0, -1
		return redis.NewFailoverClient(&c)
	case o.cluster != nil:
		c := *o.cluster
		c.PoolSize, c.MinIdleConns = connections, 0
		return redis.NewClusterClient(&c)
	}
	c := *o.single
	c.PoolSize, c.MinIdleConns, c.MaxRetries = connections, 0, -1
	return redis.NewClient(&c)
}

// seeds are the addresses that the URL names; none for a socket.
func (o *RedisOptions) seeds() []string {
	switch {
	case o.sentinel != nil:
		return slices.Clone(o.sentinel.SentinelAddrs)
	case o.cluster != nil:
		return slices.Clone(o.cluster.Addrs)
	case o.single.Network == "unix":
		return nil
	}
	return []string{o.single.Addr}
}
