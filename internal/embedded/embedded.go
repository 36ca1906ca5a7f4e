// Package embedded is a Redis inside the process, for `worker dev`, `worker
// demo` and trials: nothing to install, nothing kept.
package embedded

import (
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"
)

// Redis is an embedded Redis.
type Redis struct {
	m    *miniredis.Miniredis
	stop chan struct{}
	done sync.WaitGroup
}

// Start listens on a free port of the loopback address.
func Start() (*Redis, error) {
	m := miniredis.NewMiniRedis()
	if err := m.Start(); err != nil {
		return nil, err
	}
	r := &Redis{m: m, stop: make(chan struct{})}
	r.done.Add(1)
	go func() { // miniredis' own clock stands still: keys would never expire
		defer r.done.Done()
		t := time.NewTicker(time.Second)
		defer t.Stop()
		for {
			select {
			case <-r.stop:
				return
			case <-t.C:
				m.FastForward(time.Second)
			}
		}
	}()
	return r, nil
}

// URL is how to reach it.
func (r *Redis) URL() string { return "redis://" + r.m.Addr() + "/0" }

// Close forgets everything.
func (r *Redis) Close() {
	close(r.stop)
	r.done.Wait()
	r.m.Close()
}
