// Package killpoint lets a test kill or stop a worker at a named point of the
// protocol, as kill -9 and SIGSTOP do, or have it panic there, so that every
// crash can be rehearsed.
package killpoint

import (
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

var kill, stop, fault point

// point counts how often its place was passed.
type point struct{ passes atomic.Int64 }

// KillPoint ends this process at once if STEPWORKER_KILL_AT names the point,
// stops it, until SIGCONT, if STEPWORKER_STOP_AT does, and panics if
// STEPWORKER_PANIC_AT does. A name with #2 means the second time that it is
// passed.
func KillPoint(name string) {
	if kill.reached("STEPWORKER_KILL_AT", name) {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	if stop.reached("STEPWORKER_STOP_AT", name) {
		woken := make(chan os.Signal, 1)
		signal.Notify(woken, syscall.SIGCONT)
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		<-woken // this thread may run on for a moment before it is stopped
		signal.Stop(woken)
	}
	if fault.reached("STEPWORKER_PANIC_AT", name) {
		panic("a fault at " + name)
	}
}

func (p *point) reached(variable, name string) bool {
	at, ok := os.LookupEnv(variable)
	if !ok {
		return false
	}
	at, nth, _ := strings.Cut(at, "#")
	if at != name {
		return false
	}
	n, err := strconv.ParseInt(nth, 10, 64)
	if err != nil {
		n = 1
	}
	return p.passes.Add(1) == n
}
