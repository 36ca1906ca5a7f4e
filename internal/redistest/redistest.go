// Package redistest gives each test a real redis-server of its own, with an
// append-only file in a throw-away folder, that can be killed and restarted.
package redistest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// Server is one redis-server process.
type Server struct {
	Addr string
	URL  string
	Dir  string

	t    testing.TB
	port int
	args []string // more of the server's command line
	open func() *redis.Client
	cmd  *exec.Cmd
	done chan struct{}
}

// New starts a redis-server (append-only file on, noeviction) and stops it
// when the test ends. A missing redis-server fails the test, loudly.
func New(t testing.TB) *Server {
	t.Helper()
	return launch(t, func(s *Server) {
		s.args = []string{"--port", strconv.Itoa(s.port), "--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--rdbcompression", "no",
			"--maxmemory-policy", "noeviction", "--auto-aof-rewrite-percentage", "0"}
	})
}

// launch starts a server in a folder of its own; settle says how, once its port
// is known.
func launch(t testing.TB, settle func(*Server)) *Server {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Fatal("redis-server is not installed; `make test` installs it (Debian: apt-get install redis-server)")
	}
	dir, err := os.MkdirTemp("", "redistest")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Dir: dir, t: t}
	s.open = func() *redis.Client { return redis.NewClient(&redis.Options{Addr: s.Addr, MaxRetries: -1}) }
	for range 5 { // another process may take the free port first
		s.port = freePort(t)
		s.Addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port))
		s.URL = "redis://" + s.Addr + "/0"
		settle(s)
		if err = s.start(); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Kill()
		os.RemoveAll(dir)
	})
	return s
}

// Client returns a client that is closed when the test ends.
func (s *Server) Client(t testing.TB) redis.UniversalClient {
	c := redis.NewClient(&redis.Options{Addr: s.Addr})
	t.Cleanup(func() { c.Close() })
	return c
}

// Flush waits until what the server has acknowledged is in its file: while an
// fsync takes long, Redis puts its writes off for up to two seconds.
func (s *Server) Flush() {
	s.t.Helper()
	c := redis.NewClient(&redis.Options{Addr: s.Addr})
	defer c.Close()
	for deadline := time.Now().Add(10 * time.Second); ; {
		info, err := c.Info(context.Background(), "persistence").Result()
		if err == nil && strings.Contains(info, "aof_buffer_length:0") {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("redis keeps its writes back: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Kill ends the server as kill -9 does.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	<-s.done
	s.cmd = nil
}

// Freeze has the server stand still, as a machine does that hangs; Thaw ends it.
func (s *Server) Freeze() { s.signal(syscall.SIGSTOP) }

// Thaw has a frozen server go on.
func (s *Server) Thaw() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// Restart starts the killed server again on its port, with its file.
func (s *Server) Restart() {
	s.t.Helper()
	s.Kill()
	if err := s.start(); err != nil {
		s.t.Fatal(err)
	}
}

// Dump returns everything on disk: a fresh RDB snapshot and the append-only files.
func (s *Server) Dump() []byte {
	s.t.Helper()
	c := redis.NewClient(&redis.Options{Addr: s.Addr})
	defer c.Close()
	if err := c.Save(context.Background()).Err(); err != nil {
		s.t.Fatal(err)
	}
	var all []byte
	err := filepath.Walk(s.Dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		all = append(all, b...)
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return all
}

func (s *Server) start() error {
	log, err := os.OpenFile(filepath.Join(s.Dir, "redis.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("redis-server", append(s.args, "--bind", "127.0.0.1", "--dir", s.Dir)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = dieWithParent()
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	c := s.open()
	defer c.Close()
	deadline := time.After(20 * time.Second)
	for {
		if c.Ping(context.Background()).Err() == nil {
			s.cmd, s.done = cmd, done
			return nil
		}
		select {
		case <-done:
			return fmt.Errorf("redis-server ended at start, see its log in %s", s.Dir)
		case <-deadline:
			_ = cmd.Process.Kill()
			return fmt.Errorf("redis-server did not answer on %s", s.Addr)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// freePort is below the ports of outgoing connections, so that none takes it
// while a server is down, and leaves room for a cluster's bus, 10,000 above.
func freePort(t testing.TB) int {
	for range 100 {
		port := 12_000 + rand.IntN(20_000)
		if free(port) && free(port+10_000) {
			return port
		}
	}
	t.Fatal("there is no free port")
	return 0
}

func free(port int) bool {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return false
	}
	l.Close()
	return true
}
