package credentials

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/internal/redistest"
)

// A save counts as safe once a replica has it, and not because the master does.
func TestConfirm_goesOnUntilAReplicaHasIt(t *testing.T) {
	if testing.Short() {
		t.Skip("six servers")
	}
	t.Parallel()
	servers := redistest.NewSentinels(t, redistest.Options{})
	for _, s := range servers.Sentinels { // nobody is to be replaced here
		s.Kill()
	}
	keys, err := ParseKeys(NewKey())
	if err != nil {
		t.Fatal(err)
	}
	rdb := redis.NewClient(&redis.Options{Addr: servers.Servers[0].Addr, Protocol: 2})
	t.Cleanup(func() { _ = rdb.Close() })
	s := NewStore(rdb, keys)
	put(t, s, oauthInput, false)
	for _, replica := range servers.Servers[1:] {
		replica.Freeze()
	}
	if _, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: 1}, renewTo("access-two", "refresh-two")); err != nil {
		t.Fatal(err)
	}
	look := func() int {
		t.Helper()
		s.mu.Lock()
		for _, u := range s.unconfirmed {
			u.saved = time.Now().Add(-2 * confirmAfter)
		}
		s.mu.Unlock()
		if err := s.Confirm(ctx); err != nil {
			t.Fatal(err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.unconfirmed)
	}
	if n := look(); n != 1 {
		t.Errorf("no replica has it, and %d are looked after", n)
	}
	servers.Servers[1].Thaw()
	for deadline := time.Now().Add(time.Minute); look() != 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a replica has it, and it is looked after still")
		}
	}
	// One that was there once, and is gone, may become the master yet.
	for _, replica := range servers.Servers[1:] {
		replica.Kill()
	}
	for deadline := time.Now().Add(time.Minute); servers.Servers[0].Info("connected_slaves") != "0"; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the master does not notice that its replicas are gone")
		}
	}
	if _, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: 2}, renewTo("access-three", "refresh-three")); err != nil {
		t.Fatal(err)
	}
	if n := look(); n != 1 {
		t.Errorf("no replica is there, and %d are looked after", n)
	}
	s.unconfirmed[0].first = time.Now().Add(-2 * confirmFor)
	if n := look(); n != 0 {
		t.Errorf("%d are looked after for ever", n)
	}
}

func TestServerSince_tellsOfANewMaster(t *testing.T) {
	s, server := newStore(t)
	put(t, s, oauthInput, false)
	if err := s.NoteServers(ctx); err != nil {
		t.Fatal(err)
	}
	if since, err := s.ServerSince(ctx, "c"); err != nil || !since.IsZero() {
		t.Errorf("known from the start: %v, %v", since, err)
	}
	server.Flush()
	server.Restart() // has another replication id, as a replica that takes over has
	before := time.Now()
	if since, err := s.ServerSince(ctx, "c"); err != nil || since.Before(before) {
		t.Errorf("new: %v, %v", since, err)
	}
	if err := s.NoteServers(ctx); err != nil {
		t.Fatal(err)
	}
	if since, err := s.ServerSince(ctx, "c"); err != nil || since.IsZero() || since.After(time.Now()) {
		t.Errorf("known since a moment: %v, %v", since, err)
	}
}
