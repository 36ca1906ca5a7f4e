//go:build !linux

package hooks

import "syscall"

func hostAttr() *syscall.SysProcAttr { return nil }

// confine: only Linux has limits that a Go program survives; elsewhere the
// Go memory limit alone holds, softly.
func confine(uint64) {}
