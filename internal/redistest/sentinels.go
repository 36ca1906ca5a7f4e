package redistest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

// MasterName is by which sentinels know the master.
const MasterName = "steps"

// Sentinels are three servers, one of which is the master, and three sentinels
// that watch them: what Debian's package redis-sentinel runs.
type Sentinels struct {
	URL       string
	Servers   []*Server
	Sentinels []*Server

	t testing.TB
	o Options
}

// NewSentinels starts them. A master that is gone for two seconds is replaced.
func NewSentinels(t testing.TB, o Options) *Sentinels {
	t.Helper()
	s := &Sentinels{t: t, o: o, Servers: []*Server{o.server(t)}}
	master := s.Servers[0]
	for range 2 {
		s.Servers = append(s.Servers, o.server(t, "replicaof", fmt.Sprintf("127.0.0.1 %d", master.port)))
	}
	for range 3 {
		s.Sentinels = append(s.Sentinels, o.sentinel(t, master))
	}
	for _, server := range s.Servers[1:] {
		until(t, "a replica follows the master", func() bool { return server.Info("master_link_status") == "up" })
	}
	for _, sentinel := range s.Sentinels {
		until(t, "the sentinels know each other and the replicas", func() bool {
			return strings.HasSuffix(sentinel.Info("master0"), ",slaves=2,sentinels=3")
		})
	}
	s.URL = scheme(o, "sentinel") + userinfo(o.SentinelPassword) + addrs(s.Sentinels) + "/0?master=" + MasterName
	if o.Password != "" {
		s.URL += "&password=" + o.Password
	}
	return s
}

func (o Options) sentinel(t testing.TB, master *Server) *Server {
	t.Helper()
	return launch(t, func(s *Server) {
		s.open = func() *redis.Client {
			return redis.NewClient(&redis.Options{Addr: s.Addr, Password: o.SentinelPassword, TLSConfig: o.tls(), MaxRetries: -1, Protocol: 2})
		}
		settings := append(o.settings(s.port), "sentinel monitor "+MasterName, fmt.Sprintf("127.0.0.1 %d 2", master.port),
			"sentinel down-after-milliseconds "+MasterName, "2000", "sentinel failover-timeout "+MasterName, "10000", "sentinel parallel-syncs "+MasterName, "2")
		if o.Password != "" {
			settings = append(settings, "sentinel auth-pass "+MasterName, o.Password)
		}
		if o.SentinelPassword != "" {
			settings = append(settings, "requirepass", o.SentinelPassword, "sentinel sentinel-pass", o.SentinelPassword)
		}
		var text strings.Builder
		for i := 0; i < len(settings); i += 2 {
			fmt.Fprintf(&text, "%s %s\n", settings[i], settings[i+1])
		}
		file := filepath.Join(s.Dir, "sentinel-"+strconv.Itoa(s.port)+".conf") // it writes there what it learns
		if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		s.args = []string{file, "--sentinel"}
	})
}

// AddReplica starts one more server, which the sentinels find by themselves.
func (s *Sentinels) AddReplica() *Server {
	s.t.Helper()
	added := s.o.server(s.t, "replicaof", fmt.Sprintf("127.0.0.1 %d", s.Master().port))
	s.Servers = append(s.Servers, added)
	return added
}

// Master is the server that the sentinels take for the master.
func (s *Sentinels) Master() *Server {
	s.t.Helper()
	for _, sentinel := range s.Sentinels {
		answer, err := sentinel.Do("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MasterName)
		pair, ok := answer.([]any)
		if err != nil || !ok || len(pair) != 2 {
			continue
		}
		for _, server := range s.Servers {
			if strconv.Itoa(server.port) == fmt.Sprint(pair[1]) {
				return server
			}
		}
	}
	s.t.Fatal("no sentinel knows the master")
	return nil
}

// Failover has the sentinels replace the master, which is well. It takes no writes
// meanwhile: what it took between the choice of the new master and its own demotion
// would be lost. Kill or Freeze of the master have it replaced, too.
func (s *Sentinels) Failover() {
	s.t.Helper()
	if _, err := s.Master().Do("CLIENT", "PAUSE", 10_000, "WRITE"); err != nil {
		s.t.Fatal(err)
	}
	until(s.t, "the sentinels agree to a failover", func() bool {
		_, err := s.Sentinels[0].Do("SENTINEL", "FAILOVER", MasterName)
		return err == nil
	})
}

// Replaced waits until another server than that is the master.
func (s *Sentinels) Replaced(old *Server) *Server {
	s.t.Helper()
	until(s.t, "another server is the master", func() bool { m := s.Master(); return m != old && m.Info("role") == "master" })
	return s.Master()
}
