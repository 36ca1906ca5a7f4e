// Package faultproxy stands between one worker and its Redis in tests, and
// does what networks do: it delays, cuts, falls silent, and loses the answer of
// a command that was executed. What Redis itself can do for real (be killed,
// refuse writes) tests have it do.
package faultproxy

import (
	"bytes"
	"net"
	"sync"
	"testing"
	"time"
)

// Proxy passes TCP connections on to one address.
type Proxy struct {
	Addr string
	URL  string // as STEPWORKER_REDIS

	target   string
	listener net.Listener
	pumps    sync.WaitGroup

	mu     sync.Mutex
	moved  *sync.Cond // something below has changed
	links  map[*link]bool
	delay  time.Duration
	silent bool
	cut    bool
	closed bool
	mark   []byte        // a command that holds it loses its answer
	lost   chan struct{} // closed once it has
}

// link is one client's connection and ours to the target.
type link struct {
	client, server net.Conn
	losing         bool // guarded by Proxy.mu: the next answer is lost
}

// New starts a proxy to a target, until the test ends.
func New(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Addr: l.Addr().String(), target: target, listener: l, links: map[*link]bool{}}
	p.URL = "redis://" + p.Addr + "/0"
	p.moved = sync.NewCond(&p.mu)
	p.pumps.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

// Delay holds everything back for a while, in both directions.
func (p *Proxy) Delay(d time.Duration) { p.set(func() { p.delay = d }) }

// Silence lets nothing through any more, in either direction, and tells nobody.
func (p *Proxy) Silence() { p.set(func() { p.silent = true }) }

// Cut ends every connection, and each new one at once.
func (p *Proxy) Cut() {
	p.set(func() {
		p.cut = true
		p.end()
	})
}

// Heal takes Delay, Silence and Cut back. What was held back goes on its way.
func (p *Proxy) Heal() { p.set(func() { p.delay, p.silent, p.cut = 0, false, false }) }

// LoseAnswer lets the next command that holds mark be executed, and cuts its
// connection in place of the answer; the channel is closed then. An answer that
// is an error goes through: that command was not executed.
func (p *Proxy) LoseAnswer(mark string) <-chan struct{} {
	lost := make(chan struct{})
	p.set(func() { p.mark, p.lost = []byte(mark), lost })
	return lost
}

func (p *Proxy) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	p.moved.Broadcast()
}

// end closes every connection; p.mu is held.
func (p *Proxy) end() {
	for l := range p.links {
		l.client.Close()
		l.server.Close()
	}
}

func (p *Proxy) close() {
	p.set(func() {
		p.closed = true
		p.end()
	})
	p.listener.Close()
	p.pumps.Wait()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.target)
		if err != nil {
			client.Close()
			continue
		}
		l := &link{client: client, server: server}
		p.mu.Lock()
		p.links[l] = true
		if p.cut || p.closed {
			p.end()
		}
		p.mu.Unlock()
		p.pumps.Go(func() { p.pump(l, client, server, p.asked) })
		p.pumps.Go(func() { p.pump(l, server, client, p.answered) })
	}
}

// pump passes on what comes from one side; look sees it first, and ends the
// connection with false.
func (p *Proxy) pump(l *link, from, to net.Conn, look func(*link, []byte) bool) {
	defer p.set(func() {
		l.client.Close()
		l.server.Close()
		delete(p.links, l)
	})
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil || !p.pass(l) || !look(l, buf[:n]) {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// pass waits out a delay or a silence; false: the connection has ended.
func (p *Proxy) pass(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d := p.delay; d > 0 {
		p.mu.Unlock()
		time.Sleep(d)
		p.mu.Lock()
	}
	for p.silent && !p.closed && p.links[l] {
		p.moved.Wait()
	}
	return !p.closed && p.links[l]
}

func (p *Proxy) asked(l *link, b []byte) bool {
	p.set(func() { l.losing = len(p.mark) > 0 && bytes.Contains(b, p.mark) })
	return true
}

func (p *Proxy) answered(l *link, b []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !l.losing || len(p.mark) == 0 || bytes.HasPrefix(b, []byte("-")) {
		return true
	}
	p.mark = nil
	close(p.lost)
	return false
}
