package credentials_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/redistest"
)

// A census tells what the Status of each credential tells, put together.
func TestCensus_isWhatEachStatusTells(t *testing.T) {
	ctx := context.Background()
	rdb := redistest.New(t).Client(t)
	keys, err := credentials.ParseKeys(credentials.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	store := credentials.NewStore(rdb, keys)
	rows, err := store.Census(ctx)
	if err != nil || len(rows) != 0 {
		t.Fatalf("of nothing: %v, %v", rows, err)
	}
	put := func(id, connector string) {
		t.Helper()
		in, err := credentials.DecodeInput([]byte(fmt.Sprintf(`{"credential_id":%q,"connector":%q,"api_key":"k-0123456789"}`, id, connector)))
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := store.Put(ctx, in, false); err != nil {
			t.Fatal(err)
		}
	}
	refresh := func(id string, verdict credentials.RefreshError, client string) {
		t.Helper()
		r := credentials.RefreshRequest{ID: id, Version: 1, Kind: credentials.OAuth2}
		if client != "" {
			r.Client = func(*credentials.Credential) credentials.Client { return credentials.Client{Key: client} }
		}
		_, err := store.Refresh(ctx, r, func(context.Context, *credentials.Credential) (*credentials.Renewal, error) { return nil, &verdict })
		if err != nil {
			t.Fatal(err)
		}
	}
	park := func(id string, n int, ago time.Duration) {
		t.Helper()
		for i := range n {
			_, err := store.Park(ctx, credentials.ParkRequest{ID: id, Execution: fmt.Sprintf("steps:%s-%d", id, i), Version: 1, Since: time.Now().Add(-ago)})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range 1200 { // more than a page
		put(fmt.Sprintf("many-%d", i), "crm")
	}
	put("good", "acme")
	put("failing", "acme")
	refresh("failing", credentials.RefreshError{Verdict: credentials.Transient}, "")
	park("failing", 3, time.Minute)
	put("failing-2", "acme")
	refresh("failing-2", credentials.RefreshError{Verdict: credentials.Transient}, "")
	park("failing-2", 2, 3*time.Minute)
	put("revoked", "acme")
	park("revoked", 4, time.Hour)
	refresh("revoked", credentials.RefreshError{Verdict: credentials.VerdictRevoked}, "")
	put("refused-client", "acme")
	refresh("refused-client", credentials.RefreshError{Verdict: credentials.VerdictMisconfigured, Client: true}, "client")
	put("deleted", "acme")
	if err := store.Delete(ctx, "deleted"); err != nil {
		t.Fatal(err)
	}

	if rows, err = store.Census(ctx); err != nil {
		t.Fatal(err)
	}
	got := map[string]credentials.CensusRow{}
	for _, r := range rows {
		got[r.Connector+" "+string(r.State)] = r
	}
	want := map[string]credentials.CensusRow{}
	err = store.List(ctx, credentials.Filter{}, func(s *credentials.Status) error {
		key := s.Connector + " " + string(s.State)
		r := want[key]
		r.Connector, r.State = s.Connector, s.State
		r.Credentials++
		if s.LastRefresh != nil && s.LastRefresh.Verdict == credentials.Transient {
			r.Failing++
		}
		if r.Waiting += s.Waiting; s.Waiting > 0 {
			r.WaitedFor++
		}
		if s.OldestWaiting != nil && (r.Oldest.IsZero() || s.OldestWaiting.Before(r.Oldest)) {
			r.Oldest = *s.OldestWaiting
		}
		want[key] = r
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("census (-each status +census):\n%s", diff)
	}
	for key, n := range map[string]int64{"crm active": 1200, "acme active": 3, "acme revoked": 1, "acme misconfigured": 1} {
		if got[key].Credentials != n {
			t.Errorf("%d are %s, want %d", got[key].Credentials, key, n)
		}
	}
	if a := got["acme active"]; a.Waiting != 5 || a.Failing != 2 || time.Since(a.Oldest) < 2*time.Minute {
		t.Errorf("acme active: %+v", a)
	}
}
