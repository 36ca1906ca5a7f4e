package hooks

import (
	"context"
	"slices"
	"time"
)

// line shares the processors out among events, in the order in which they
// come. An event that only waits, for an answer to http_request, gives its
// processor back; one that goes on and on loses it, so that no number of
// endless loops keeps others from running. Where all are taken a patient event
// is sent to a host on which another still runs: the host then goes on with it
// without having slept in between, which costs more than many an event.
type line struct {
	free, reserved int
	waiting        []*conversation // for a processor, or to follow
	urgent         []*conversation
}

// hold is an event's right to use a processor.
type hold int

const (
	nothing  hold = iota
	shared        // one of Config.Hosts
	reserved      // one of Config.Reserved
)

// turn is what an event that waited is given: a processor, or a host where it
// may run behind another. Lost: the one before took the host with it.
type turn struct {
	behind *host
	lost   bool
}

const (
	// maxFollowers is how many events may wait in one host's pipe.
	maxFollowers = 4
	// maxBehind is the largest event that may be sent behind another, in bytes:
	// a pipe takes so many at once, though nobody reads there yet.
	maxBehind = 12 << 10
)

// patient says that an event can run behind another and let one follow: it is
// small, and asks nothing of the worker, so that it is over soon.
func patient(ev *Event, sources []*scriptSource) bool {
	if ev.Urgent || ev.Inline {
		return false
	}
	size := 0
	for i := range ev.Globals {
		size += len(ev.Globals[i].JSON)
	}
	if size > maxBehind {
		return false
	}
	for _, s := range sources {
		if s.uses.asks {
			return false
		}
	}
	return true
}

// enter waits for a processor, or for a host where c may run behind another.
func (e *Engine) enter(ctx context.Context, c *conversation) (turn, error) {
	e.mu.Lock()
	if e.take(c) {
		e.mu.Unlock()
		return turn{}, nil
	}
	if c.patient && len(e.line.waiting) == 0 {
		var best *host
		for other := range e.active {
			if h := other.h; e.canFollow(h) && (best == nil || len(h.followers) < len(best.followers)) {
				best = h
			}
		}
		if best != nil {
			best.followers = append(best.followers, c)
			e.mu.Unlock()
			return turn{behind: best}, nil
		}
	}
	e.join(c, false)
	e.mu.Unlock()
	return e.wait(ctx, c)
}

// take takes a processor that is free. The engine is locked here and below.
func (e *Engine) take(c *conversation) bool {
	switch l := &e.line; {
	case l.free > 0:
		l.free--
		c.holds = shared
	case c.ev.Urgent && l.reserved > 0:
		l.reserved--
		c.holds = reserved
	default:
		return false
	}
	c.since = time.Now()
	return true
}

// join stands in line; first is for those who had a place already.
func (e *Engine) join(c *conversation, first bool) {
	q := &e.line.waiting
	if c.ev.Urgent {
		q = &e.line.urgent
	}
	if first {
		*q = slices.Insert(*q, 0, c)
	} else {
		*q = append(*q, c)
	}
}

// release gives a processor to the next in line.
func (e *Engine) release(c *conversation) {
	l := &e.line
	was := c.holds
	c.holds = nothing
	var next *conversation
	switch {
	case was == nothing:
		return
	case len(l.urgent) > 0:
		next, l.urgent = l.urgent[0], l.urgent[1:]
	case was == shared && len(l.waiting) > 0:
		next, l.waiting = l.waiting[0], l.waiting[1:]
	case was == shared:
		l.free++
		return
	default:
		l.reserved++
		return
	}
	next.holds, next.since = was, time.Now()
	next.turn <- turn{}
}

// canFollow says that an event may be sent to a host now: what was sent before
// is in the pipe.
func (e *Engine) canFollow(h *host) bool {
	r := h.runner
	if r == nil || !r.patient || r.holds == nothing || h.tainted || len(h.followers) == maxFollowers {
		return false
	}
	last := r
	if n := len(h.followers); n > 0 {
		last = h.followers[n-1]
	}
	return last.written
}

// follow sends the first in line behind the events of a host.
func (e *Engine) follow(h *host) {
	l := &e.line
	if len(l.waiting) > 0 && l.waiting[0].patient && l.waiting[0].h == nil && e.canFollow(h) {
		c := l.waiting[0]
		h.followers, l.waiting = append(h.followers, c), l.waiting[1:]
		c.turn <- turn{behind: h}
	}
}

// unfollow takes away who waits behind an event that goes on for long, or whose
// outcome nobody will read: what they sent is void.
func (e *Engine) unfollow(h *host) {
	for _, f := range h.followers {
		f.turn <- turn{lost: true}
	}
	h.tainted = h.tainted || len(h.followers) > 0
	h.followers = nil
}

// wait waits for what c is given. An error is ctx's: c has no place any more.
func (e *Engine) wait(ctx context.Context, c *conversation) (turn, error) {
	select {
	case t := <-c.turn:
		return t, nil
	case <-ctx.Done():
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	gone := func(other *conversation) bool { return other == c }
	e.line.waiting, e.line.urgent = slices.DeleteFunc(e.line.waiting, gone), slices.DeleteFunc(e.line.urgent, gone)
	h, sent := c.h, c.h != nil
	for len(c.turn) > 0 { // given just now
		if t := <-c.turn; t.behind != nil {
			h = t.behind
		}
	}
	_, running := e.active[c]
	switch {
	case h == nil || running:
	case slices.Contains(h.followers, c):
		h.followers = slices.DeleteFunc(h.followers, gone)
		if sent {
			h.tainted = true
			e.unfollow(h)
		}
		e.follow(h)
	case h.runner == c: // what it has sent runs, and nobody will read what comes of it
		e.unfollow(h)
		h.runner, h.tainted = nil, true
		go e.end(h)
	}
	e.release(c)
	return turn{}, ctx.Err()
}

// decline leaves the place behind another. It is too late if that one has ended.
func (e *Engine) decline(c *conversation) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !slices.Contains(c.h.followers, c) {
		return false
	}
	c.h.followers, c.patient = slices.DeleteFunc(c.h.followers, func(other *conversation) bool { return other == c }), false
	e.follow(c.h)
	return true
}

// regain waits for a processor for an event that had one, or had a place: it
// goes before those that have not begun.
func (e *Engine) regain(ctx context.Context, c *conversation) error {
	e.mu.Lock()
	c.patient = false
	if c.holds != nothing || e.take(c) {
		e.mu.Unlock()
		return nil
	}
	e.join(c, true)
	e.mu.Unlock()
	_, err := e.wait(ctx, c)
	return err
}

// giveBack gives a processor back.
func (e *Engine) giveBack(c *conversation) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.release(c)
}

// pause is giveBack for an event that waits for the worker: nobody waits behind it.
func (e *Engine) pause(c *conversation) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.unfollow(c.h)
	e.release(c)
}

// sent notes that a follower's event is in the pipe.
func (e *Engine) sent(c *conversation) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c.written = true
	e.follow(c.h)
}

// begin notes that an event runs on its host.
func (e *Engine) begin(c *conversation) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c.written, c.h.runner = true, c
	e.active[c] = struct{}{}
	e.follow(c.h)
}

// finish hands host and processor on: to who follows, else to the next in line.
func (e *Engine) finish(c *conversation, alive bool) {
	e.mu.Lock()
	h := c.h
	delete(e.active, c)
	h.runner = nil
	// What watch did after run had looked is told only here.
	alive = alive && !h.tainted && !c.slow.Load() && !c.timedOut.Load()
	if len(h.followers) > 0 {
		// The processor goes with the host, or without it.
		f := h.followers[0]
		f.holds, f.since, c.holds = c.holds, time.Now(), nothing
		if alive {
			h.runner, h.followers = f, h.followers[1:]
			f.turn <- turn{}
			e.follow(h)
			e.mu.Unlock()
			return
		}
		e.unfollow(h)
	}
	e.release(c)
	if alive && !e.closed && e.wanted == 0 && len(e.idle) < e.cfg.Hosts+e.cfg.Reserved {
		e.idle = append(e.idle, h)
		e.mu.Unlock()
		return
	}
	e.mu.Unlock()
	e.end(h)
}
