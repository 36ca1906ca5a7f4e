package credentials

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/internal/faultproxy"
	"github.com/stepworker/stepworker/internal/redistest"
)

var ctx = context.Background()

func newStore(t *testing.T) (*Store, *redistest.Server) {
	t.Helper()
	server := redistest.New(t)
	keys, err := ParseKeys(NewKey())
	if err != nil {
		t.Fatal(err)
	}
	return NewStore(server.Client(t), keys), server
}

func put(t *testing.T, s *Store, raw string, merge bool) int64 {
	t.Helper()
	in, err := DecodeInput([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	v, _, err := s.Put(ctx, in, merge)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

const oauthInput = `{"credential_id":"c","connector":"acme","client_secret":"the-client-secret","oauth2":{"access_token":"access-one","refresh_token":"refresh-one"}}`

func renewTo(access, refresh string) RefreshFunc {
	return func(context.Context, *Credential) (*Renewal, error) {
		return &Renewal{Token: &Token{AccessToken: NewSecret(access), RefreshToken: NewSecret(refresh)}}, nil
	}
}

func get(t *testing.T, s *Store) *Credential {
	t.Helper()
	c, err := s.Get(ctx, "c")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestPut_versionNeverFallsAcrossDelete(t *testing.T) {
	s, _ := newStore(t)
	if v := put(t, s, oauthInput, false); v != 1 {
		t.Errorf("first version %d", v)
	}
	put(t, s, oauthInput, false)
	if err := s.Delete(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(ctx, "c"); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if v := put(t, s, oauthInput, false); v != 3 {
		t.Errorf("version %d after delete, want 3", v)
	}
}

// A token or session of one alternative is never another's, a refresh token
// least of all.
func TestPut_anotherAuthenticationKeepsNoToken(t *testing.T) {
	s, _ := newStore(t)
	put(t, s, `{"credential_id":"c","connector":"acme","authentication":"one","client_id":"app","oauth2":{"access_token":"a-token","refresh_token":"r-token","expires_in":3600}}`, false)
	put(t, s, `{"credential_id":"c","authentication":"one","client_id":"app2"}`, true)
	if c, err := s.Get(ctx, "c"); err != nil || c.Secrets.OAuth2 == nil || c.Secrets.ClientID != "app2" {
		t.Fatalf("a merge that changes something else: %v", err)
	}
	put(t, s, `{"credential_id":"c","authentication":"two","oauth2":{}}`, true)
	c, err := s.Get(ctx, "c")
	if err != nil {
		t.Fatal(err)
	}
	if tok := c.Secrets.OAuth2; tok == nil || !tok.AccessToken.Empty() || !tok.RefreshToken.Empty() || len(c.Secrets.Session) > 0 || c.Secrets.Opened || c.Secrets.ClientID != "app2" {
		t.Errorf("it kept %+v", c.Secrets)
	}
}

func TestPut_mergeAndIfVersion(t *testing.T) {
	s, _ := newStore(t)
	put(t, s, oauthInput, false)
	put(t, s, `{"credential_id":"c","properties":{"domain":"eu1"}}`, true)
	c := get(t, s)
	if c.Secrets.OAuth2.AccessToken.Reveal() != "access-one" || string(c.Secrets.Properties["domain"]) != `"eu1"` {
		t.Errorf("merged to %v", c.Secrets.Properties)
	}
	in, _ := DecodeInput([]byte(`{"credential_id":"c","connector":"acme","if_version":1}`))
	var moved *VersionError
	if _, _, err := s.Put(ctx, in, false); !errors.As(err, &moved) || moved.Stored != 2 {
		t.Errorf("got %v", err)
	}
}

func TestSeal_aRecordMovedOrSetBackDoesNotOpen(t *testing.T) {
	s, server := newStore(t)
	put(t, s, oauthInput, false)
	rdb := server.Client(t)
	old, err := rdb.HGetAll(ctx, credKey("c")).Result()
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, oauthInput, false)
	var sealed *SealError
	// An older version's record under the newer number.
	if err := rdb.HSet(ctx, credKey("c"), "sealed", old["sealed"]).Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(ctx, "c"); !errors.As(err, &sealed) {
		t.Errorf("set back: %v", err)
	}
	// Another credential's record.
	if err := rdb.HSet(ctx, credKey("d"), old).Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(ctx, "d"); !errors.As(err, &sealed) {
		t.Errorf("moved: %v", err)
	}
}

func TestSeal_aWholeRecordSetBackDoesNotOpen(t *testing.T) {
	s, _ := newStore(t)
	put(t, s, oauthInput, false)
	if err := s.rdb.Copy(ctx, credKey("c"), "backup", 0, true).Err(); err != nil {
		t.Fatal(err)
	}
	put(t, s, oauthInput, false)
	if err := s.rdb.Copy(ctx, "backup", credKey("c"), 0, true).Err(); err != nil {
		t.Fatal(err)
	}
	var sealed *SealError
	if _, err := s.Get(ctx, "c"); !errors.As(err, &sealed) {
		t.Errorf("got %v, want a SealError", err)
	}
	if v := put(t, s, oauthInput, false); v != 3 {
		t.Errorf("version %d after a new put, want 3", v)
	}
	get(t, s)
}

func TestKeys_firstSealsAllOpen(t *testing.T) {
	_, server := newStore(t)
	oldKey, newKey := NewKey(), NewKey()
	use := func(text string) *Store {
		k, err := ParseKeys(text)
		if err != nil {
			t.Fatal(err)
		}
		return NewStore(server.Client(t), k)
	}
	s := use(oldKey)
	if err := s.VerifyKeys(ctx); err != nil {
		t.Fatal(err)
	}
	put(t, s, oauthInput, false)
	both := use(newKey + "," + oldKey)
	if err := both.VerifyKeys(ctx); err != nil {
		t.Errorf("both keys: %v", err)
	}
	if c := get(t, both); c.Secrets.OAuth2.AccessToken.Reveal() != "access-one" {
		t.Error("the old key's record does not open")
	}
	var wrong *KeyError
	if err := use(newKey).VerifyKeys(ctx); !errors.As(err, &wrong) {
		t.Errorf("a foreign key: %v", err)
	}
}

func TestSecrets_printNowhere(t *testing.T) {
	s, server := newStore(t)
	put(t, s, oauthInput, false)
	c := get(t, s)
	raw, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "credential", c, "secrets", c.Secrets, "token", c.Secrets.OAuth2)
	all := fmt.Sprintf("%v %+v %#v %s %s", *c, *c, c.Secrets, c.Secrets.OAuth2, c.Secrets.ClientSecret) + string(raw) + log.String() + string(server.Dump())
	for _, secret := range []string{"access-one", "refresh-one", "the-client-secret"} {
		if strings.Contains(all, secret) {
			t.Errorf("%q is shown", secret)
		}
	}
}

func TestRefresh_fiftyAtOnceAskOnce(t *testing.T) {
	s, _ := newStore(t)
	put(t, s, oauthInput, false)
	var asked atomic.Int64
	var wg sync.WaitGroup
	for range 50 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				res, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: 1, Kind: OAuth2}, func(ctx context.Context, c *Credential) (*Renewal, error) {
					asked.Add(1)
					return renewTo("access-two", "")(ctx, c)
				})
				if err != nil {
					t.Error(err)
					return
				}
				if res.Outcome == OutcomeRenewed || res.Outcome == OutcomeNewer {
					return
				}
				time.Sleep(time.Until(res.RetryAt) / 10) // a busy answer: look again
			}
		}()
	}
	wg.Wait()
	c := get(t, s)
	if asked.Load() != 1 || c.Version != 2 || c.Secrets.OAuth2.RefreshToken.Reveal() != "refresh-one" {
		t.Errorf("asked %d times, version %d; the old refresh token must be kept", asked.Load(), c.Version)
	}
}

func TestRefresh_transientIsRememberedAndRetryAfterWins(t *testing.T) {
	s, _ := newStore(t)
	put(t, s, oauthInput, false)
	res, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: 1}, func(context.Context, *Credential) (*Renewal, error) {
		return nil, &RefreshError{Verdict: Transient, Status: 503, Text: "busy", RetryAfter: time.Hour}
	})
	if err != nil || res.Outcome != OutcomeTransient || time.Until(res.RetryAt) < 50*time.Minute {
		t.Fatalf("got %+v, %v", res, err)
	}
	res, err = s.Refresh(ctx, RefreshRequest{ID: "c", Version: 1}, func(context.Context, *Credential) (*Renewal, error) {
		t.Error("asked again too early")
		return nil, nil
	})
	if err != nil || res.Outcome != OutcomeLater {
		t.Errorf("got %+v, %v", res, err)
	}
}

func TestRefresh_revokedAsksNobodyAgainButForced(t *testing.T) {
	s, _ := newStore(t)
	put(t, s, oauthInput, false)
	refuse := func(context.Context, *Credential) (*Renewal, error) {
		return nil, &RefreshError{Verdict: VerdictRevoked, Status: 400, Text: "invalid_grant"}
	}
	if res, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: 1}, refuse); err != nil || res.Outcome != OutcomeRevoked {
		t.Fatalf("got %+v, %v", res, err)
	}
	if res, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: 1}, renewTo("x", "")); err != nil || res.Outcome != OutcomeRevoked {
		t.Errorf("got %+v, %v", res, err)
	}
	if res, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: 1, Force: true}, renewTo("access-two", "")); err != nil || res.Outcome != OutcomeRenewed {
		t.Errorf("got %+v, %v", res, err)
	}
	if c := get(t, s); c.Meta.State != Active {
		t.Errorf("state %s", c.Meta.State)
	}
}

// A person's put, or delete, during a refresh wins.
func TestRefresh_putOrDeleteMeanwhileWins(t *testing.T) {
	s, _ := newStore(t)
	put(t, s, oauthInput, false)
	res, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: 1}, func(ctx context.Context, c *Credential) (*Renewal, error) {
		put(t, s, strings.ReplaceAll(oauthInput, "access-one", "access-person"), false)
		return renewTo("access-late", "refresh-late")(ctx, c)
	})
	if err != nil || res.Outcome != OutcomeNewer {
		t.Errorf("got %+v, %v", res, err)
	}
	c := get(t, s)
	if c.Secrets.OAuth2.AccessToken.Reveal() != "access-person" {
		t.Error("the person's token was overwritten")
	}
	res, err = s.Refresh(ctx, RefreshRequest{ID: "c", Version: c.Version}, func(ctx context.Context, c *Credential) (*Renewal, error) {
		if err := s.Delete(ctx, "c"); err != nil {
			t.Error(err)
		}
		return renewTo("access-late", "")(ctx, c)
	})
	if err != nil || res.Outcome != OutcomeGone {
		t.Errorf("got %+v, %v", res, err)
	}
	if _, err := s.Get(ctx, "c"); !errors.Is(err, ErrNotFound) {
		t.Error("a deleted credential came back")
	}
}

// A holder that slept beyond its lease stores nothing once another took over.
func TestRefresh_lateHolderIsFenced(t *testing.T) {
	s, _ := newStore(t)
	s.lease, s.deadline = 50*time.Millisecond, 20*time.Millisecond
	put(t, s, oauthInput, false)
	res, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: 1}, func(_ context.Context, c *Credential) (*Renewal, error) {
		var second RefreshResult
		for second.Outcome != OutcomeRenewed {
			var err error
			if second, err = s.Refresh(ctx, RefreshRequest{ID: "c", Version: 1}, renewTo("access-second", "refresh-second")); err != nil {
				t.Fatal(err)
			}
		}
		return renewTo("access-late", "refresh-late")(ctx, c)
	})
	if err != nil || res.Outcome != OutcomeNewer {
		t.Errorf("got %+v, %v", res, err)
	}
	if c := get(t, s); c.Secrets.OAuth2.AccessToken.Reveal() != "access-second" || c.Version != 2 {
		t.Errorf("version %d: the newer token must stand", c.Version)
	}
}

// Redis did what was asked, and its answer got lost: asked again, it says so again.
func TestRefresh_lostAnswersAreAskedForAgain(t *testing.T) {
	direct, server := newStore(t)
	far := faultproxy.New(t, server.Addr)
	rdb := redis.NewClient(&redis.Options{Addr: far.Addr})
	t.Cleanup(func() { rdb.Close() })
	s := NewStore(rdb, direct.keys)
	put(t, direct, oauthInput, false)
	request := RefreshRequest{ID: "c", Version: 1, Kind: OAuth2}

	lost := far.LoseAnswer(heardField(OAuth2)) // of taking the lease
	res, err := s.Refresh(ctx, request, func(context.Context, *Credential) (*Renewal, error) {
		lostAlready(t, "lease", lost)
		lost = far.LoseAnswer(`"verdict":"transient"`)
		return nil, &RefreshError{Verdict: Transient, Text: "503"}
	})
	lostAlready(t, "failure", lost)
	if err != nil || res.Outcome != OutcomeTransient {
		t.Fatalf("got %+v, %v", res, err)
	}
	if n := server.Client(t).HGet(ctx, credKey("c"), "fails").Val(); n != "1" {
		t.Errorf("it counts %s failures", n)
	}
	request.Force = true
	res, err = s.Refresh(ctx, request, func(context.Context, *Credential) (*Renewal, error) {
		lost = far.LoseAnswer(`"verdict":"renewed"`)
		return renewTo("access-two", "refresh-two")(ctx, nil)
	})
	lostAlready(t, "save", lost)
	if err != nil || res.Outcome != OutcomeRenewed || res.Version != 2 {
		t.Errorf("got %+v, %v", res, err)
	}
}

func lostAlready(t *testing.T, what string, lost <-chan struct{}) {
	t.Helper()
	select {
	case <-lost:
	default:
		t.Errorf("the answer was not lost: %s", what)
	}
}

// A late answer counts as long as nothing newer is stored: what was sent is spent.
func TestRefresh_lateAnswerIsNotThrownAway(t *testing.T) {
	s, _ := newStore(t)
	s.lease, s.deadline = 50*time.Millisecond, 20*time.Millisecond
	put(t, s, oauthInput, false)
	res, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: 1}, func(_ context.Context, c *Credential) (*Renewal, error) {
		for second := (RefreshResult{}); second.Outcome != OutcomeTransient; { // it takes the lease over, and fails
			var err error
			if second, err = s.Refresh(ctx, RefreshRequest{ID: "c", Version: 1}, func(context.Context, *Credential) (*Renewal, error) {
				return nil, &RefreshError{Verdict: Transient, Text: "503"}
			}); err != nil {
				t.Fatal(err)
			}
		}
		return renewTo("access-late", "refresh-late")(ctx, c)
	})
	if err != nil || res.Outcome != OutcomeRenewed {
		t.Errorf("got %+v, %v", res, err)
	}
	if c := get(t, s); c.Secrets.OAuth2.AccessToken.Reveal() != "access-late" || c.Version != 2 || c.Meta.LastError != "" {
		t.Errorf("version %d, %+v", c.Version, c.Meta)
	}
}

// A first token is stored at once, and nobody calls with it before it is open.
func TestRefresh_firstTokenWaitsToBeOpened(t *testing.T) {
	s, _ := newStore(t)
	put(t, s, `{"credential_id":"c","connector":"acme","oauth2":{}}`, false)
	if _, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: 1, Kind: OAuth2}, renewTo("one", "r")); err != nil {
		t.Fatal(err)
	}
	if c := get(t, s); !c.Meta.Refused || c.Meta.RefusedKind != Opening || c.Version != 2 {
		t.Errorf("%+v", c.Meta)
	}
	if u, err := s.Usable(ctx, "c"); err != nil || u.Usable {
		t.Errorf("usable %+v, %v", u, err)
	}
	opened := func(context.Context, *Credential) (*Renewal, error) { return &Renewal{Opened: true}, nil }
	if _, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: 2, Kind: Session}, opened); err != nil {
		t.Fatal(err)
	}
	if u, err := s.Usable(ctx, "c"); err != nil || !u.Usable || u.Version != 3 {
		t.Errorf("usable %+v, %v", u, err)
	}
}

// A token whose hook failed is stored, and the verdict stands beside it.
func TestRefresh_aTokenWithAProblem(t *testing.T) {
	s, _ := newStore(t)
	put(t, s, oauthInput, false)
	res, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: 1, Kind: OAuth2, Settings: "file"}, func(context.Context, *Credential) (*Renewal, error) {
		return &Renewal{Token: &Token{AccessToken: NewSecret("two")}, Problem: &RefreshError{Verdict: VerdictMisconfigured, Text: "after_oauth2_refresh: TypeError"}}, nil
	})
	if err != nil || res.Outcome != OutcomeMisconfigured {
		t.Fatalf("got %+v, %v", res, err)
	}
	if c := get(t, s); c.Secrets.OAuth2.AccessToken.Reveal() != "two" || c.Version != 2 || c.Meta.State != Misconfigured || c.Meta.LastError == "" || c.Meta.Settings != "file" {
		t.Errorf("version %d, %+v", c.Version, c.Meta)
	}
}

// What was refused is remembered as long as nothing else was: a failure with
// other settings does not say that those were refused.
func TestRefresh_aFailureLeavesTheSettingsThatWereRefused(t *testing.T) {
	s, _ := newStore(t)
	put(t, s, oauthInput, false)
	for _, r := range []struct {
		settings string
		verdict  Verdict
		kept     string
	}{{"wrong", VerdictMisconfigured, "wrong"}, {"put right", Transient, "wrong"}, {"put right", VerdictMisconfigured, "put right"}} {
		if _, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: 1, Kind: OAuth2, Settings: r.settings, Force: true},
			func(context.Context, *Credential) (*Renewal, error) {
				return nil, &RefreshError{Verdict: r.verdict, Status: 503, Text: "no"}
			}); err != nil {
			t.Fatal(err)
		}
		if c := get(t, s); c.Meta.State != Misconfigured || c.Meta.Settings != r.kept {
			t.Errorf("after %s of %q: %+v", r.verdict, r.settings, c.Meta)
		}
	}
}

func TestRefresh_aTestThatAnswersChangesNothing(t *testing.T) {
	s, _ := newStore(t)
	put(t, s, oauthInput, false)
	if _, err := s.Park(ctx, ParkRequest{ID: "c", Execution: "q|e", Version: 1, Kind: Testing, Refused: true, Since: time.Now()}); err != nil {
		t.Fatal(err)
	}
	answers := func(context.Context, *Credential) (*Renewal, error) { return &Renewal{Tested: true}, nil }
	if res, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: 1, Kind: Testing}, answers); err != nil || res.Outcome != OutcomeNewer {
		t.Errorf("got %+v, %v", res, err)
	}
	if c := get(t, s); !c.Meta.Tested || c.Meta.Refused || c.Version != 1 {
		t.Errorf("version %d, %+v", c.Version, c.Meta)
	}
}

// An answer that never came is waited out and asked for once more.
func TestRefresh_unknownOutcomeIsRepeatedOnce(t *testing.T) {
	s, _ := newStore(t)
	s.lease, s.deadline = 200*time.Millisecond, 100*time.Millisecond
	put(t, s, oauthInput, false)
	asked := 0
	hang := func(ctx context.Context, _ *Credential) (*Renewal, error) {
		asked++
		<-ctx.Done()
		return nil, &RefreshError{Verdict: Unknown, Text: "the answer never came"}
	}
	var res RefreshResult
	for deadline := time.Now().Add(5 * time.Second); asked < 2 && time.Now().Before(deadline); {
		var err error
		if res, err = s.Refresh(ctx, RefreshRequest{ID: "c", Version: 1}, hang); err != nil {
			t.Fatal(err)
		}
		if wait := time.Until(res.RetryAt); asked < 2 && wait > 0 {
			time.Sleep(wait)
		}
	}
	if asked != 2 || time.Until(res.RetryAt) < 150*time.Millisecond {
		t.Errorf("asked %d times, next try in %s", asked, time.Until(res.RetryAt))
	}
}

func TestRefresh_saveSurvivesARestartOfRedis(t *testing.T) {
	s, server := newStore(t)
	put(t, s, oauthInput, false)
	server.Flush()
	restarted := make(chan struct{})
	res, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: 1}, func(ctx context.Context, c *Credential) (*Renewal, error) {
		server.Kill() // just after the provider rotated
		go func() { defer close(restarted); server.Restart() }()
		return renewTo("access-two", "refresh-two")(ctx, c)
	})
	<-restarted
	if err != nil || res.Outcome != OutcomeRenewed {
		t.Fatalf("got %+v, %v", res, err)
	}
	if c := get(t, s); c.Secrets.OAuth2.RefreshToken.Reveal() != "refresh-two" {
		t.Error("the rotated token is lost")
	}
}

// Redis acknowledged a save, was killed before it stood in its file, and came
// back with an older one.
func TestConfirm_savesAgainWhatRedisHasLost(t *testing.T) {
	s, _ := newStore(t)
	put(t, s, oauthInput, false)
	before := s.rdb.Dump(ctx, credKey("c")).Val()
	if _, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: 1}, renewTo("access-two", "refresh-two")); err != nil {
		t.Fatal(err)
	}
	if err := s.Confirm(ctx); err != nil || len(s.unconfirmed) != 1 {
		t.Fatalf("too early: %v, %d", err, len(s.unconfirmed))
	}
	s.rdb.RestoreReplace(ctx, credKey("c"), 0, before)
	s.rdb.Set(ctx, versionKey("c"), 1, 0)
	s.unconfirmed[0].saved = time.Now().Add(-2 * confirmAfter)
	if err := s.Confirm(ctx); err != nil {
		t.Fatal(err)
	}
	if c := get(t, s); c.Version != 2 || c.Secrets.OAuth2.RefreshToken.Reveal() != "refresh-two" || len(s.unconfirmed) != 1 {
		t.Errorf("version %d, %d unconfirmed", c.Version, len(s.unconfirmed))
	}
	s.unconfirmed[0].saved = time.Now().Add(-2 * confirmAfter) // it is in the file now
	if err := s.Confirm(ctx); err != nil || len(s.unconfirmed) != 0 {
		t.Fatalf("%v, %d unconfirmed", err, len(s.unconfirmed))
	}
	// What a person has put since stands.
	if _, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: 2}, renewTo("access-three", "")); err != nil {
		t.Fatal(err)
	}
	put(t, s, oauthInput, false)
	s.unconfirmed[0].saved = time.Now().Add(-2 * confirmAfter)
	if err := s.Confirm(ctx); err != nil {
		t.Fatal(err)
	}
	if c := get(t, s); c.Version != 4 || c.Secrets.OAuth2.AccessToken.Reveal() != "access-one" {
		t.Errorf("version %d", c.Version)
	}
}

func TestPark_newerGoneAndWaiting(t *testing.T) {
	s, _ := newStore(t)
	if p, err := s.Park(ctx, ParkRequest{ID: "c", Execution: "e", Version: 1}); err != nil || !p.Gone {
		t.Errorf("got %+v, %v", p, err)
	}
	put(t, s, oauthInput, false)
	now := time.Now()
	if p, err := s.Park(ctx, ParkRequest{ID: "c", Execution: "q|e", Version: 1, Kind: OAuth2, Refused: true, Since: now}); err != nil || p.Newer || p.Gone {
		t.Fatalf("got %+v, %v", p, err)
	}
	if c := get(t, s); !c.Meta.Refused || c.Meta.RefusedKind != OAuth2 {
		t.Errorf("meta %+v", c.Meta)
	}
	if ids, err := s.WaitingCredentials(ctx); err != nil || len(ids) != 1 {
		t.Errorf("waiting: %v, %v", ids, err)
	}
	if _, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: 1}, renewTo("two", "")); err != nil {
		t.Fatal(err)
	}
	if p, err := s.Park(ctx, ParkRequest{ID: "c", Execution: "q|f", Version: 1, Refused: true}); err != nil || !p.Newer {
		t.Errorf("got %+v, %v", p, err)
	}
	if u, err := s.Usable(ctx, "c"); err != nil || !u.Usable {
		t.Errorf("usable %+v, %v", u, err)
	}
	places, err := s.Waiters(ctx, "c", 0, 10)
	if err != nil || len(places) != 1 || places[0].Execution != "q|e" {
		t.Fatalf("waiters %v, %v", places, err)
	}
	// It was put back to pending, and has parked again before we took it out.
	if _, err := s.Park(ctx, ParkRequest{ID: "c", Execution: "q|e", Version: 2, Since: now.Add(time.Second)}); err != nil {
		t.Fatal(err)
	}
	if err := s.Leave(ctx, "c", places[0]); err != nil {
		t.Fatal(err)
	}
	places, err = s.Waiters(ctx, "c", 0, 10)
	if err != nil || len(places) != 1 {
		t.Fatalf("a late hand took out a new place: %v, %v", places, err)
	}
	if err := s.Leave(ctx, "c", places[0]); err != nil {
		t.Fatal(err)
	}
	if err := s.Tidy(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	if ids, err := s.WaitingCredentials(ctx); err != nil || len(ids) != 0 {
		t.Errorf("waiting: %v, %v", ids, err)
	}
}

func TestCountUnhelped_eachVersionOnce(t *testing.T) {
	s, _ := newStore(t)
	put(t, s, oauthInput, false)
	for i, c := range []struct {
		version int64
		count   int
		blocked bool
	}{{1, 1, false}, {1, 1, false}, {2, 2, true}, {2, 2, true}, {3, 3, true}} {
		u, err := s.CountUnhelped(ctx, "c", "m", c.version)
		if err != nil || u.Count != c.count || time.Now().Before(u.Until) != c.blocked {
			t.Errorf("%d: %+v, %v", i, u, err)
		}
	}
	if err := s.Helped(ctx, "c", "m"); err != nil {
		t.Fatal(err)
	}
	if c := get(t, s); len(c.Meta.Unhelped) != 0 {
		t.Errorf("not forgotten: %v", c.Meta.Unhelped)
	}
}

func TestExpired_margins(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		life, age time.Duration
		expired   bool
	}{
		"an hour, new":         {time.Hour, 0, false},
		"an hour, 59.5 min":    {time.Hour, 59*time.Minute + 30*time.Second, true},
		"an hour, 58 min":      {time.Hour, 58 * time.Minute, false},
		"five seconds, new":    {5 * time.Second, 0, false},
		"five seconds, 4 s":    {5 * time.Second, 4 * time.Second, false},
		"five seconds, 4.6 s":  {5 * time.Second, 4600 * time.Millisecond, true},
		"expired when it came": {-time.Second, 0, true},
	} {
		l := Life{Issued: now.Add(-c.age), Expiry: now.Add(-c.age).Add(c.life)}
		if l.Over(now) != c.expired {
			t.Errorf("%s: %v", name, l.Over(now))
		}
	}
	if (Life{}).Over(now) {
		t.Error("an unknown expiry is not expired")
	}
}

func TestAhead_atAShareOfTheLifeByCredential(t *testing.T) {
	issued := time.Now()
	seen := map[time.Time]bool{}
	for _, life := range []time.Duration{5 * time.Second, time.Minute, time.Hour, 60 * 24 * time.Hour} {
		l := Life{Issued: issued, Expiry: issued.Add(life)}
		for i := range 100 {
			at := l.Ahead(fmt.Sprint("c", i), 7)
			seen[at] = true
			if share := float64(at.Sub(issued)) / float64(life); share < 0.7 || share > 0.85 || l.Over(at) {
				t.Errorf("a life of %s: ahead at %.2f of it", life, share)
			}
		}
	}
	if len(seen) < 390 {
		t.Errorf("%d instants for 400 tokens", len(seen))
	}
	for name, l := range map[string]Life{"unknown": {}, "not issued here": {Expiry: issued}, "no life": {Issued: issued, Expiry: issued.Add(-1)}} {
		if at := l.Ahead("c", 1); !at.IsZero() {
			t.Errorf("%s: %s", name, at)
		}
	}
}

// An answer without a token is kept, sealed, for the next who asks, and dropped
// with the first token.
func TestRefresh_anAnswerWithoutATokenIsKept(t *testing.T) {
	s, _ := newStore(t)
	put(t, s, oauthInput, false)
	const answer = `{"data":{"token":"a-token-that-nobody-found"}}`
	for i, want := range []string{"", answer, answer} {
		_, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: 1, Force: true}, func(_ context.Context, c *Credential) (*Renewal, error) {
			if string(c.Answer) != want {
				t.Errorf("%d: got %q", i, c.Answer)
			}
			e := &RefreshError{Verdict: Transient, Status: 200, Text: "no token"}
			if i == 0 {
				e.Answer = []byte(answer)
			}
			return nil, e
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if h := s.rdb.HGetAll(ctx, credKey("c")).Val(); strings.Contains(fmt.Sprint(h), "nobody-found") {
		t.Error("it stands in Redis in clear")
	}
	if _, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: 1, Force: true}, renewTo("access-two", "")); err != nil {
		t.Fatal(err)
	}
	if s.rdb.HExists(ctx, credKey("c"), "answer").Val() {
		t.Error("it outlives the token")
	}
}

// The lease lasts as long as the request, and a request whose answer would be
// void is given up.
func TestRefresh_theLeaseIsKeptUntilAPersonPuts(t *testing.T) {
	s, _ := newStore(t)
	s.lease = 1200 * time.Millisecond // and so looked after every 100 ms
	put(t, s, oauthInput, false)
	begun := time.Now()
	_, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: 1}, func(callCtx context.Context, _ *Credential) (*Renewal, error) {
		eventually(t, func() bool { return time.Since(begun) > 2*s.lease })
		if until := get(t, s).Meta.LeaseUntil; time.Now().After(until) {
			t.Error("the lease lapsed under a request")
		}
		put(t, s, oauthInput, false)
		select {
		case <-callCtx.Done():
		case <-time.After(10 * time.Second):
			t.Error("the request goes on")
		}
		return nil, callCtx.Err()
	})
	if err != nil {
		t.Error(err)
	}
	if m := get(t, s).Meta; m.State != Active || m.LastError != "" || get(t, s).Version != 2 {
		t.Errorf("the person's credential is %+v", m)
	}
}

func TestDecodeInput_saysWhatIsWrongAndNoValue(t *testing.T) {
	for raw, want := range map[string]string{
		`{"credential_id":"c","conector":"hunter2"}`:                            `unknown member "conector"; did you mean "connector"?`,
		`{"credential_id":"c d","connector":"acme"}`:                            "credential_id",
		`{"credential_id":"c","connector":"acme","api_key":"a","oauth2":{}}`:    "a credential has one of them",
		`{"credential_id":"c","connector":"acme","oauth2":{"access_token":[]}}`: "oauth2.access_token: text is needed",
		`{"credential_id":"c","connector":"acme","oauth1":{},"oauth2":{}}`:      "oauth2 and oauth1: a credential has one of them",
		`{"credential_id":"c",`:                                                 "malformed JSON",
		`[]`:                                                                    "a credential is a JSON object",
	} {
		_, err := DecodeInput([]byte(raw))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", raw, err)
		}
	}
}

func TestExpiresIn_oddAnswers(t *testing.T) {
	for raw, want := range map[string]time.Duration{`3600`: time.Hour, `3600.0`: time.Hour, `"3600"`: time.Hour, `3599.7`: 3599700 * time.Millisecond,
		`""`: 0, `"1h"`: 0, `-1`: 0, `null`: 0, ``: 0, `{}`: 0, `1e300`: 0} {
		if d, _ := ExpiresIn(json.RawMessage(raw)); d != want {
			t.Errorf("%s: %s", raw, d)
		}
	}
}

func TestRedactor_everyEncoding(t *testing.T) {
	const secret = `s3cr/t+v! (ab) "é`
	r := NewRedactor([]string{secret}, 6)
	js, _ := json.Marshal(secret)
	body, _ := json.Marshal(string(js))
	for name, text := range map[string]string{
		"json in json": string(body), "ascii json in json": `{"body":"{\"a\":\"s3cr/t+v! (ab) \\\"\\u00e9\"}"}`,
		"plain": secret, "query": url.QueryEscape(secret), "path": url.PathEscape(secret), "lower": lowerHex(url.QueryEscape(secret)),
		"json": string(js), "base64": base64.StdEncoding.EncodeToString([]byte(secret)), "basic": base64.StdEncoding.EncodeToString([]byte("u:" + secret)),
		"component": "s3cr%2Ft%2Bv!%20(ab)%20%22%C3%A9", "quote": "s3cr/t%2Bv%21%20%28ab%29%20%22%C3%A9", "ascii json": `s3cr/t+v! (ab) \"\u00e9`,
		"client": base64.StdEncoding.EncodeToString([]byte("id:" + url.QueryEscape(secret))), "inside": base64.StdEncoding.EncodeToString([]byte("xx" + secret + "tail")), "url base64": base64.RawURLEncoding.EncodeToString([]byte("user" + secret)),
	} {
		if got := r.String("a " + text + " b"); !strings.Contains(got, redacted) {
			t.Errorf("%s: %s", name, got)
		}
	}
	long := strings.Repeat("k3y", 400)
	if got := NewRedactor([]string{long}, 6).Cut(strings.Repeat(long, 60)[:65_000]+"…", 2000); strings.Contains(got, "k3yk3y") {
		t.Errorf("what was cut before shows a secret's beginning: %s", got)
	}
	if got := NewRedactor([]string{"abc"}, 6).String("abc"); got != "abc" {
		t.Errorf("a short secret was masked: %s", got)
	}
	raw := json.RawMessage(`{"a":"` + strings.Repeat("k", 20) + `"}`)
	if got := NewRedactor([]string{strings.Repeat("k", 20)}, 16).JSON(raw); string(got) != `{"a":"[redacted]"}` {
		t.Errorf("got %s", got)
	}
}

// Some JSON writers escape more than they must, each in its own way.
func TestRedactor_aSecretNumberLeavesTheRest(t *testing.T) {
	r := NewRedactor([]string{"8877665544332211", `{"pass":"word-a"}`, "n-sixteen-or-more"}, 16)
	for in, want := range map[string]string{
		`{"a":[1,8877665544332211],"b":"x"}`:                `{"a":[1,"[redacted]"],"b":"x"}`,
		`{"a":"8877665544332211","b":-8877665544332211e1}`:  `{"a":"[redacted]","b":"[redacted]"}`,
		`128877665544332211.5`:                              `"[redacted]"`,
		`{"\"8877665544332211":8877665544332211, "c":true}`: `{"\"[redacted]":"[redacted]", "c":true}`,
		`{"a":{"pass":"word-a"},"b":1}`:                     `{"a":"[redacted]","b":1}`,
		`["\n-sixteen-or-more",8877665544332211]`:           `"[redacted]"`, // what cannot be told apart is masked whole
	} {
		if got := r.JSON([]byte(in)); string(got) != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}

func TestRedactor_escapedByNumber(t *testing.T) {
	r := NewRedactor([]string{`a+b/c==`, `p"w\é😀'x`}, 6)
	for text, want := range map[string]string{
		`{"token":"a\u002Bb/c=="}`:                    `{"token":"[redacted]"}`, // .NET
		`{"token":"a+b/c\u003d\u003D"}`:               `{"token":"[redacted]"}`, // Gson
		`{"t":"xa\u002bb\/c\u003D=y","é":"\u00e9\n"}`: `{"t":"x[redacted]y","é":"\u00e9\n"}`,
		`p\u0022w\u005c\u00E9\uD83D\uDE00\u0027x`:     `[redacted]`,
		`"p\"w\\é\ud83d\ude00\u0027x" a\u002bb/c=`:    `"[redacted]" a\u002bb/c=`,
		// JSON in JSON: of PHP in PHP, of another in Python, of .NET in another.
		`{"body":"{\"t\":\"a+b\\\/c==\"}"}`:                       `{"body":"{\"t\":\"[redacted]\"}"}`,
		`{"body":"{\"t\":\"p\\\"w\\\\\u00e9\ud83d\ude00'x\"}"}`:   `{"body":"{\"t\":\"[redacted]\"}"}`,
		`{"body":"{\"t\":\"a\\u002Bb/c==\"}","t":"a\u002Bb/c=="}`: `{"body":"{\"t\":\"[redacted]\"}","t":"[redacted]"}`,
		`\u`:          `\u`,
		`\ud83dx\u12`: `\ud83dx\u12`,
	} {
		if got := r.String(text); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
	if got := r.JSON([]byte(`{"a":"a\u002Bb\/c=="}`)); string(got) != `{"a":"[redacted]"}` {
		t.Errorf("%s", got)
	}
}

func TestRefresh_sessionExpiryIsByTheProvidersClock(t *testing.T) {
	s, _ := newStore(t)
	put(t, s, oauthInput, false)
	until := time.Now().Add(time.Hour).Truncate(time.Second)
	for version, skew := range []time.Duration{0, 10 * time.Minute, -10 * time.Minute} {
		res, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: int64(version + 1), Kind: Session}, func(context.Context, *Credential) (*Renewal, error) {
			return &Renewal{Session: map[string]string{"session_expires": until.Format(time.RFC3339)}, Skew: skew}, nil
		})
		if err != nil || res.Outcome != OutcomeRenewed {
			t.Fatalf("got %+v, %v", res, err)
		}
		if at := get(t, s).Meta.Session.Expiry; !at.Equal(until.Add(-skew)) {
			t.Errorf("a clock that is %s ahead: ends at %s, told %s", skew, at, until)
		}
	}
}

// Some servers ban who logs in five times without success: from the third in a
// row on the next waits long, whatever the server says of its pace.
func TestRefresh_loginBudget(t *testing.T) {
	s, _ := newStore(t)
	put(t, s, oauthInput, false)
	failed := func(e RefreshError) RefreshResult {
		t.Helper()
		res, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: 1, Kind: Session, Force: true}, func(context.Context, *Credential) (*Renewal, error) { return nil, &e })
		if err != nil || res.Outcome != OutcomeTransient {
			t.Fatalf("got %+v, %v", res, err)
		}
		return res
	}
	heard := RefreshError{Verdict: Transient, Status: 409, Text: "no", Counts: true, RetryAfter: 10 * time.Second}
	busy := RefreshError{Verdict: Transient, Status: 503, Text: "busy", RetryAfter: 10 * time.Second}
	waits := func(what string, res RefreshResult, least, most time.Duration) {
		t.Helper()
		if w := time.Until(res.RetryAt); w < least-5*time.Second || w > most {
			t.Errorf("%s: the next waits %s, want %s to %s", what, w, least, most)
		}
	}
	waits("first", failed(heard), 10*time.Second, 10*time.Second)
	waits("second", failed(heard), 10*time.Second, 10*time.Second)
	waits("busy", failed(busy), 10*time.Second, 10*time.Second)
	waits("third", failed(heard), 15*time.Minute, 17*time.Minute)
	if c := get(t, s); !strings.Contains(c.Meta.LastError, "3 logins in a row") || c.Meta.State != Active {
		t.Errorf("got %+v", c.Meta)
	}
	if res, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: 1, Kind: Session}, func(context.Context, *Credential) (*Renewal, error) {
		t.Error("asked before its time")
		return nil, nil
	}); err != nil || res.Outcome != OutcomeLater {
		t.Errorf("got %+v, %v", res, err)
	}
	waits("fourth", failed(heard), 30*time.Minute, 34*time.Minute)
	waits("fifth", failed(heard), time.Hour, 67*time.Minute)
	waits("sixth", failed(heard), time.Hour, 67*time.Minute)
	// A token is no login: the count stands.
	if res, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: 1, Kind: OAuth2, Force: true}, renewTo("access-two", "")); err != nil || res.Outcome != OutcomeRenewed {
		t.Fatalf("got %+v, %v", res, err)
	}
	again := func(version int64) RefreshResult {
		t.Helper()
		res, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: version, Kind: Session, Force: true}, func(context.Context, *Credential) (*Renewal, error) { e := heard; return nil, &e })
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	waits("after a token", again(2), time.Hour, 67*time.Minute)
	if res, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: 2, Kind: Session, Force: true}, func(context.Context, *Credential) (*Renewal, error) {
		return &Renewal{Session: map[string]string{"sid": "x"}}, nil
	}); err != nil || res.Outcome != OutcomeRenewed {
		t.Fatalf("got %+v, %v", res, err)
	}
	waits("after a login", again(3), 10*time.Second, 10*time.Second)
}
