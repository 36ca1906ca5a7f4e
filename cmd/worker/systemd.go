package main

import (
	"context"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// tellSystemd tells systemd that this worker is ready, once it is, where a unit
// of Type=notify has started it (sd_notify(3)).
func (w *Worker) tellSystemd(ctx context.Context) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return
	}
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for w.ready() != nil {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
	w.notifySystemd(daemon.SdNotifyReady)
}

func (w *Worker) notifySystemd(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		w.log.Warn("systemd cannot be told", "state", state, "error", err.Error())
	}
}
