package credentials

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// told are the pending notices of credential c, oldest first.
func told(t *testing.T, s *Store) string {
	t.Helper()
	list, err := s.rdb.LRange(ctx, noticesKey("c"), 0, -1).Result()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, text := range list {
		n := readNotice("c", text)
		if n == nil {
			t.Fatalf("it cannot be read: %s", text)
		}
		all = append(all, n.What)
	}
	return strings.Join(all, " ")
}

func TestNotices_episodes(t *testing.T) {
	failing := func(v Verdict) func(*testing.T, *Store) {
		return func(t *testing.T, s *Store) {
			t.Helper()
			_, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: get(t, s).Version, Kind: OAuth2, Force: true},
				func(context.Context, *Credential) (*Renewal, error) {
					return nil, &RefreshError{Verdict: v, Text: "no"}
				})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	renewed := func(t *testing.T, s *Store) {
		t.Helper()
		if _, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: get(t, s).Version, Kind: OAuth2, Force: true},
			func(context.Context, *Credential) (*Renewal, error) {
				return &Renewal{Token: &Token{AccessToken: NewSecret("access-two")}, Opened: true}, nil
			}); err != nil {
			t.Fatal(err)
		}
	}
	again := func(t *testing.T, s *Store) { put(t, s, oauthInput, false) }
	used := func(t *testing.T, s *Store) {
		if err := s.NoteUsed(ctx, "c", get(t, s).Version); err != nil {
			t.Fatal(err)
		}
	}
	deleted := func(t *testing.T, s *Store) {
		if err := s.Delete(ctx, "c"); err != nil {
			t.Fatal(err)
		}
	}
	unopened := func(t *testing.T, s *Store) {
		if err := s.NoteUnopened(ctx, "c", get(t, s).Version, "no key"); err != nil {
			t.Fatal(err)
		}
	}
	opened := func(t *testing.T, s *Store) {
		if err := s.NoteOpened(ctx, "c", get(t, s).Version); err != nil {
			t.Fatal(err)
		}
	}
	transient, revoked, wrong := failing(Transient), failing(VerdictRevoked), failing(VerdictMisconfigured)
	type do = func(*testing.T, *Store)
	for name, c := range map[string]struct {
		steps []do
		want  string
	}{
		"well":                        {[]do{renewed, again, used, renewed}, ""},
		"fails, comes back":           {[]do{transient, transient, renewed, transient, renewed}, "failing recovered failing recovered"},
		"fails, then revoked":         {[]do{transient, revoked, revoked, transient, renewed}, "failing revoked recovered"},
		"misconfigured, then revoked": {[]do{wrong, revoked, wrong, renewed}, "misconfigured revoked recovered"},
		"put and used":                {[]do{revoked, again, used, used}, "revoked recovered"},
		"put and renewed":             {[]do{revoked, again, renewed, used}, "revoked recovered"},
		"put is refused":              {[]do{revoked, again, revoked, again, again, used}, "revoked revoked recovered"},
		"put fails, but is used":      {[]do{transient, again, transient, used, renewed}, "failing failing recovered"},
		"used is no recovery":         {[]do{transient, used}, "failing"},
		"deleted":                     {[]do{revoked, deleted, again, used, renewed}, "revoked"},
		"no key":                      {[]do{unopened, unopened, opened, opened}, "misconfigured recovered"},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := newStore(t)
			if err := s.WantNotices(ctx); err != nil {
				t.Fatal(err)
			}
			put(t, s, oauthInput, false)
			for _, step := range c.steps {
				step(t, s)
			}
			if got := told(t, s); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// Those that rest do not stand before those that are due, and somebody who
// announces himself is not forgotten.
func TestNotices_restingOnesAreOutOfTheWay(t *testing.T) {
	s, _ := newStore(t)
	if err := s.WantNotices(ctx); err != nil {
		t.Fatal(err)
	}
	note := func(id string) {
		if err := noticingScript.Run(ctx, s.rdb, []string{noticingKey, noticesWantedKey}, id, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	due := func() []Noticing {
		d, err := s.DueNotices(ctx, 3)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for i := range 3 {
		note(fmt.Sprint(i))
	}
	for _, d := range due() {
		if err := s.RestNotices(ctx, d); err != nil {
			t.Fatal(err)
		}
	}
	if d := due(); len(d) != 0 {
		t.Fatalf("%v rest", d)
	}
	note("0") // announced again: it is due at once
	d := due()
	if len(d) != 1 || d[0].CredentialID != "0" {
		t.Fatalf("due are %v", d)
	}
	stale := Noticing{"0", "1"}
	if err := s.RestNotices(ctx, stale); err != nil {
		t.Fatal(err)
	}
	if len(due()) != 1 {
		t.Error("one who had announced himself was put to rest")
	}
	// One that rested, and has nothing still, is forgotten.
	at := fmt.Sprintf("%d.5", time.Now().Add(-time.Hour).UnixMilli())
	s.rdb.Do(ctx, "ZADD", noticingKey, at, "1")
	for _, d := range due() {
		if err := s.RestNotices(ctx, d); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := s.rdb.ZScore(ctx, noticingKey, "1").Result(); err == nil {
		t.Errorf("it is noted still: %v", n)
	}
}
