package hooks

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func hostAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// confine is what a host takes from itself before it runs anybody's script.
// RLIMIT_AS is of no use: Go reserves far more address space than it uses.
func confine(memory uint64) {
	set := func(what int, n uint64) { _ = unix.Setrlimit(what, &unix.Rlimit{Cur: n, Max: n}) }
	set(unix.RLIMIT_DATA, memory)
	set(unix.RLIMIT_CORE, 0)
	set(unix.RLIMIT_FSIZE, 0)
	set(unix.RLIMIT_NOFILE, 16)
	// First to go when the machine runs out of memory.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0)
}
