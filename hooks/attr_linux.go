package hooks

import (
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hostAttr: a host dies with its worker, and is in a process group of its own:
// what a terminal or a service manager sends to the worker's group is not for
// a host, whose event may end while the worker drains.
func hostAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}

// pipeRoom is how much a pipe takes while nobody reads, in bytes.
func pipeRoom(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	room := 0
	if conn, err := f.SyscallConn(); err == nil {
		_ = conn.Control(func(fd uintptr) { room, _ = unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0) })
	}
	return room
}

// yield gives a host, all threads of its process group, the lowest priority.
func yield(pid int) { _ = unix.Setpriority(unix.PRIO_PGRP, pid, 19) }

// confine is what a host takes from itself before it runs anybody's script.
// RLIMIT_AS is of no use: Go reserves far more address space than it uses.
// What the process has reserved by now it hardly uses, and a script cannot:
// it comes on top, or a small limit would leave a host none to run with.
func confine(memory uint64) {
	memory += dataReserved()
	set := func(what int, n uint64) { _ = unix.Setrlimit(what, &unix.Rlimit{Cur: n, Max: n}) }
	set(unix.RLIMIT_DATA, memory)
	set(unix.RLIMIT_CORE, 0)
	set(unix.RLIMIT_FSIZE, 0)
	set(unix.RLIMIT_NOFILE, 16)
	// First to go when the machine runs out of memory.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0)
}

// dataReserved is this process's data segment, in bytes.
func dataReserved() uint64 {
	raw, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	// size resident shared text lib data dt, in pages
	fields := strings.Fields(string(raw))
	if len(fields) < 6 {
		return 0
	}
	pages, _ := strconv.ParseUint(fields[5], 10, 64)
	return pages * uint64(os.Getpagesize())
}

// hostInput and hostOutput are a host's pipes, for a process whose only thread
// of work waits for the next event: under load it is there within
// milliseconds. A call that the Go scheduler does not see saves giving the
// processor up and taking it back on another thread, which costs more than
// many a handler. When idle it waits as everybody does.
func hostInput() io.Reader  { return rawPipe(0) }
func hostOutput() io.Writer { return rawPipe(1) }

type rawPipe int

func (p rawPipe) Read(b []byte) (int, error) {
	fds := [1]unix.PollFd{{Fd: int32(p), Events: unix.POLLIN}}
	// Below the 10 ms after which the scheduler would interrupt it.
	wait := unix.NsecToTimespec(int64(4 * time.Millisecond))
	ready, _, _ := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])), 1, uintptr(unsafe.Pointer(&wait)), 0, 0, 0)
	if ready != 1 || len(b) == 0 {
		return os.Stdin.Read(b)
	}
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(p), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	switch {
	case errno == unix.EINTR || errno == unix.EAGAIN:
		return os.Stdin.Read(b)
	case errno != 0:
		return 0, errno
	case n == 0:
		return 0, io.EOF
	}
	return int(n), nil
}

func (p rawPipe) Write(b []byte) (int, error) {
	if len(b) > 4<<10 { // more than a pipe takes at once may have to wait
		return os.Stdout.Write(b)
	}
	n, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(p), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	switch {
	case errno == unix.EINTR || errno == unix.EAGAIN:
		return os.Stdout.Write(b)
	case errno != 0:
		return 0, errno
	case int(n) < len(b):
		more, err := os.Stdout.Write(b[n:])
		return int(n) + more, err
	}
	return len(b), nil
}
