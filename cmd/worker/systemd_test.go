package main

import (
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// systemd is told that a worker is ready, and that it drains.
func TestSystemd_isTold(t *testing.T) {
	if testing.Short() {
		t.Skip("worker processes")
	}
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	told := func() string {
		b := make([]byte, 1000)
		n, err := l.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	w := newWorld(t)
	p := w.startWith([]string{"NOTIFY_SOCKET=" + socket})
	if state := told(); state != "READY=1" {
		t.Errorf("told %q", state)
	}
	if err := p.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if state := told(); state != "STOPPING=1" {
		t.Errorf("told %q", state)
	}
	w.drained(p)
}
