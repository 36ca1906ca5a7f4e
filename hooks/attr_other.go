//go:build !linux

package hooks

import (
	"io"
	"os"
	"syscall"
)

func hostAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

func yield(int) {}

// pipeRoom is what POSIX promises of a pipe.
func pipeRoom(io.Writer) int { return 4096 }

// confine: only Linux has limits that a Go program survives; elsewhere the
// Go memory limit alone holds, softly.
func confine(uint64) {}

func hostInput() io.Reader  { return os.Stdin }
func hostOutput() io.Writer { return os.Stdout }
