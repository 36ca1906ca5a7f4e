package jobs

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/stepworker/stepworker/connectors"
)

// A call whose pages find no room is put off, and has its worker back.
func TestPages_withoutRoomTheCallIsPutOff(t *testing.T) {
	caller, err := connectors.NewCaller(connectors.CallerConfig{MaxResponse: 10})
	if err != nil {
		t.Fatal(err)
	}
	p := &Pool{cfg: PoolConfig{Caller: caller}, pagesRoom: semaphore.NewWeighted(caller.MaxPages())}
	if err := p.pagesRoom.Acquire(t.Context(), 60); err != nil {
		t.Fatal(err)
	}
	kept := &pages{a: &attempt{p: p, id: "e", rec: &record{pages: 2}}}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = kept.All(ctx, 2, 50)
	var ce *connectors.CallError
	if !errors.As(err, &ce) || !ce.Defer || ce.RetryAfter <= 0 {
		t.Errorf("got %v", err)
	}
	kept.free() // what it has not taken
	if !p.pagesRoom.TryAcquire(40) || p.pagesRoom.TryAcquire(1) {
		t.Error("the room that is left should be 40")
	}
}
