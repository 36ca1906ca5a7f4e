package redistest

import "syscall"

// dieWithParent ends the server with the test binary, also when that is killed.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
