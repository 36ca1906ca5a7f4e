// Package killpoint lets a test kill a worker at a named point of the
// protocol, as kill -9 does, so that every crash can be rehearsed.
package killpoint

import (
	"os"
	"syscall"
)

// KillPoint ends this process at once if STEPWORKER_KILL_AT names the point.
func KillPoint(name string) {
	if at, ok := os.LookupEnv("STEPWORKER_KILL_AT"); ok && at == name {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}
