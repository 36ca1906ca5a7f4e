package credentials

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// asClient makes a request of a client.
func asClient(id, secret string, force bool) RefreshRequest {
	r := RefreshRequest{ID: id, Version: 1, Kind: OAuth2, Settings: "file", Force: force,
		Client: func(*Credential) Client { return Client{Key: "acme:client", Settings: secret} }}
	if force {
		r.Asked = time.Now()
	}
	return r
}

func refuseTheClient(asked *atomic.Int64) RefreshFunc {
	return func(context.Context, *Credential) (*Renewal, error) {
		asked.Add(1)
		return nil, &RefreshError{Verdict: VerdictMisconfigured, Status: 401, Text: "invalid_client", Client: true}
	}
}

func putNumbered(t *testing.T, s *Store, n int) []string {
	t.Helper()
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf("c%d", i)
		put(t, s, strings.Replace(oauthInput, `"c"`, `"`+ids[i]+`"`, 1), false)
	}
	return ids
}

// A refused client is asked for once, then by one credential at each trial, at
// growing intervals; the first success frees all.
func TestClient_refusedOnceForAll(t *testing.T) {
	s, _ := newStore(t)
	s.firstTrial, s.lastTrial = 400*time.Millisecond, time.Second
	if err := s.WantNotices(ctx); err != nil {
		t.Fatal(err)
	}
	ids := putNumbered(t, s, 20)
	var asked atomic.Int64
	everybody := func(do RefreshFunc) (outcomes map[string]int, freed int) {
		t.Helper()
		outcomes = map[string]int{}
		var mu sync.Mutex
		var wg sync.WaitGroup
		for _, id := range ids {
			wg.Add(1)
			go func() {
				defer wg.Done()
				res, err := s.Refresh(ctx, asClient(id, "wrong", false), do)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Error(err)
				}
				outcomes[res.Outcome]++
				if res.Freed {
					freed++
				}
			}()
		}
		wg.Wait()
		return outcomes, freed
	}
	if out, _ := everybody(refuseTheClient(&asked)); asked.Load() != 1 || out[OutcomeMisconfigured] != 20 {
		t.Fatalf("asked %d times, want 1: %v", asked.Load(), out)
	}
	for _, id := range ids {
		st, err := s.Status(ctx, id)
		if err != nil || st.State != Misconfigured || st.LastError != "invalid_client" || st.NextTry == nil {
			t.Fatalf("%s: %+v, %v", id, st, err)
		}
	}
	due := func() bool {
		c, err := s.ClientRefusal(ctx, "acme:client")
		return err == nil && c != nil && !c.Trying && time.Now().After(c.NextTry)
	}
	for trial := int64(2); trial <= 3; trial++ {
		eventually(t, due)
		if everybody(refuseTheClient(&asked)); asked.Load() != trial {
			t.Fatalf("asked %d times, want %d", asked.Load(), trial)
		}
	}
	c, err := s.ClientRefusal(ctx, "acme:client")
	if wait := time.Until(c.NextTry); err != nil || wait < 600*time.Millisecond || wait > time.Second {
		t.Errorf("the third refusal is waited out for %s, want the longest time, 1s: %v", wait, err)
	}
	eventually(t, due)
	out, freed := everybody(renewTo("access-two", ""))
	if freed != 1 || out[OutcomeRenewed] == 0 {
		t.Errorf("freed %d times: %v", freed, out)
	}
	if out, _ := everybody(renewTo("access-two", "")); out[OutcomeNewer]+out[OutcomeRenewed] != 20 {
		t.Errorf("after the success: %v", out)
	}
	for _, id := range ids {
		if st, err := s.Status(ctx, id); err != nil || st.State != Active || st.Version != 2 || st.LastError != "" {
			t.Errorf("%s: %+v, %v", id, st, err)
		}
	}
	told := map[string]int{}
	for _, id := range ids {
		for _, text := range s.rdb.LRange(ctx, noticesKey(id), 0, -1).Val() {
			n := readNotice(id, text)
			told[n.What+" "+string(n.State)]++
		}
	}
	if want := map[string]int{"misconfigured misconfigured": 1, "recovered active": 1}; !maps.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not come to it")
		}
	}
}

// Other settings, and a person, are asked at once; a person's question only
// once, however many ask it together.
func TestClient_otherSettingsAndAPersonAreAskedAtOnce(t *testing.T) {
	s, _ := newStore(t)
	putNumbered(t, s, 5)
	var asked atomic.Int64
	refuse := refuseTheClient(&asked)
	try := func(r RefreshRequest, do RefreshFunc) RefreshResult {
		t.Helper()
		res, err := s.Refresh(ctx, r, do)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	try(asClient("c0", "wrong", false), refuse)
	if res := try(asClient("c1", "wrong", false), refuse); asked.Load() != 1 || !res.Held || res.Outcome != OutcomeMisconfigured {
		t.Fatalf("asked %d times: %+v", asked.Load(), res)
	}
	try(asClient("c1", "also wrong", false), refuse)
	try(asClient("c1", "wrong", false), refuse)
	try(asClient("c1", "also wrong", false), refuse)
	if asked.Load() != 2 {
		t.Fatalf("asked %d times with two secrets", asked.Load())
	}
	refused := time.Now()
	eventually(t, func() bool { return time.Since(refused) > 2*time.Millisecond }) // to Redis, a moment later
	early, late := asClient("c2", "wrong", true), asClient("c3", "wrong", true)
	try(early, refuse)
	try(late, refuse)
	if asked.Load() != 3 {
		t.Errorf("two persons who asked together made %d requests, want 1", asked.Load()-2)
	}
	if st, err := s.Status(ctx, "c3"); err != nil || st.LastRefresh == nil || st.LastRefresh.Verdict != VerdictMisconfigured {
		t.Errorf("who asked is not answered: %+v, %v", st, err)
	}
	if res := try(asClient("c4", "right", false), renewTo("access-two", "")); !res.Freed {
		t.Errorf("the right secret frees nobody: %+v", res)
	}
}

// A provider that refuses one account's request as the client's, while it
// accepts the others', does not have them all held again and again.
func TestClient_refusedForOneCredentialAlone(t *testing.T) {
	s, _ := newStore(t)
	putNumbered(t, s, 3)
	var asked atomic.Int64
	try := func(r RefreshRequest, do RefreshFunc) RefreshResult {
		t.Helper()
		res, err := s.Refresh(ctx, r, do)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	try(asClient("c0", "x", false), refuseTheClient(&asked))
	person := asClient("c1", "x", true)
	person.Asked = time.Now().Add(time.Second) // after the refusal, by any clock
	if res := try(person, renewTo("access-two", "")); !res.Freed {
		t.Fatalf("%+v", res)
	}
	if res := try(asClient("c0", "x", false), refuseTheClient(&asked)); res.Outcome != OutcomeMisconfigured || asked.Load() != 2 {
		t.Fatalf("asked %d times: %+v", asked.Load(), res)
	}
	if c, err := s.ClientRefusal(ctx, "acme:client"); c != nil || err != nil {
		t.Errorf("the client counts as refused: %+v, %v", c, err)
	}
	if st, err := s.Status(ctx, "c0"); err != nil || st.State != Misconfigured {
		t.Errorf("%+v, %v", st, err)
	}
	if res := try(asClient("c2", "x", false), renewTo("access-two", "")); res.Outcome != OutcomeRenewed {
		t.Errorf("another credential: %+v", res)
	}
}

// A trial that brings no answer about the client is no acceptance.
func TestClient_aTrialWithoutAnAnswerLeavesItRefused(t *testing.T) {
	s, _ := newStore(t)
	putNumbered(t, s, 2)
	var asked atomic.Int64
	if _, err := s.Refresh(ctx, asClient("c0", "x", false), refuseTheClient(&asked)); err != nil {
		t.Fatal(err)
	}
	busy := func(context.Context, *Credential) (*Renewal, error) {
		return nil, &RefreshError{Verdict: Transient, Status: 503, Text: "busy"}
	}
	person := asClient("c1", "x", true)
	person.Asked = time.Now().Add(time.Second)
	if _, err := s.Refresh(ctx, person, busy); err != nil {
		t.Fatal(err)
	}
	c, err := s.ClientRefusal(ctx, "acme:client")
	if err != nil || c == nil || c.Trying || time.Until(c.NextTry) < 50*time.Second {
		t.Errorf("got %+v, %v", c, err)
	}
}

// A credential that has nothing to ask with tells nothing about the client.
func TestClient_whoAskedNothingFreesNobody(t *testing.T) {
	s, _ := newStore(t)
	putNumbered(t, s, 2)
	var asked atomic.Int64
	if _, err := s.Refresh(ctx, asClient("c0", "x", false), refuseTheClient(&asked)); err != nil {
		t.Fatal(err)
	}
	person := asClient("c1", "x", true)
	person.Asked = time.Now().Add(time.Second)
	res, err := s.Refresh(ctx, person, func(context.Context, *Credential) (*Renewal, error) {
		return nil, &RefreshError{Verdict: VerdictRevoked, Text: "there is no refresh token"}
	})
	if err != nil || res.Freed || res.Outcome != OutcomeRevoked {
		t.Errorf("got %+v, %v", res, err)
	}
	c, err := s.ClientRefusal(ctx, "acme:client")
	if err != nil || c == nil || c.Trying || time.Until(c.NextTry) < 50*time.Second {
		t.Errorf("got %+v, %v", c, err)
	}
}

// An answer that was asked for before the client was refused does not end the
// refusal, and does not make it the refused credential's own.
func TestClient_theAnswerToAnEarlierRequestEndsNoRefusal(t *testing.T) {
	s, _ := newStore(t)
	putNumbered(t, s, 2)
	var asked atomic.Int64
	res, err := s.Refresh(ctx, asClient("c1", "x", false), func(ctx context.Context, c *Credential) (*Renewal, error) {
		s.rdb.HSet(ctx, clientKey("acme:client"), "probe", time.Now().Add(-2*probeWait).UnixMilli()) // it takes long
		let := time.Now()
		eventually(t, func() bool { return time.Since(let) > 2*time.Millisecond })
		if _, err := s.Refresh(ctx, asClient("c0", "x", false), refuseTheClient(&asked)); err != nil {
			t.Error(err)
		}
		return renewTo("access-two", "")(ctx, c)
	})
	if err != nil || res.Outcome != OutcomeRenewed || res.Freed {
		t.Errorf("got %+v, %v", res, err)
	}
	if c, err := s.ClientRefusal(ctx, "acme:client"); err != nil || c == nil {
		t.Errorf("the refusal does not stand: %v", err)
	}
	again := asClient("c0", "x", true)
	again.Asked = time.Now().Add(time.Second)
	if _, err := s.Refresh(ctx, again, refuseTheClient(&asked)); err != nil || asked.Load() != 2 {
		t.Fatalf("asked %d times, %v", asked.Load(), err)
	}
	if c := get0(t, s); c.Meta.State != Active || c.Meta.Client == "" {
		t.Errorf("it is held for itself, and the client's success would not free it: %+v", c.Meta)
	}
}

func get0(t *testing.T, s *Store) *Credential {
	t.Helper()
	c, err := s.Get(ctx, "c0")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Who was to tell people of a refused client died before he did, or had no
// credential left to tell it with: the next one who is refused tells them, once.
func TestClient_peopleAreToldByTheNextOne(t *testing.T) {
	s, _ := newStore(t)
	s.lease = 50 * time.Millisecond
	if err := s.WantNotices(ctx); err != nil {
		t.Fatal(err)
	}
	ids := putNumbered(t, s, 4)
	refuse := func(id string, do RefreshFunc) {
		t.Helper()
		r := asClient(id, "x", true)
		r.Asked = time.Now().Add(time.Hour)
		if _, err := s.Refresh(ctx, r, do); err != nil {
			t.Fatal(err)
		}
	}
	var asked atomic.Int64
	refuse("c0", func(ctx context.Context, c *Credential) (*Renewal, error) {
		if err := s.Delete(ctx, "c0"); err != nil {
			t.Fatal(err)
		}
		return refuseTheClient(&asked)(ctx, c)
	})
	told := func() (n int) {
		for _, id := range ids {
			n += len(s.rdb.LRange(ctx, noticesKey(id), 0, -1).Val())
		}
		return n
	}
	if told() != 0 {
		t.Fatal("the deleted credential tells it")
	}
	since := time.Now()
	eventually(t, func() bool { return time.Since(since) > 2*s.lease })
	for _, id := range ids[1:] {
		refuse(id, refuseTheClient(&asked))
		since := time.Now()
		eventually(t, func() bool { return time.Since(since) > 2*s.lease })
	}
	if asked.Load() != 4 || told() != 1 {
		t.Errorf("asked %d times, told %d times, want 4 and 1", asked.Load(), told())
	}
}

// A credential that was refused for itself waits for the client as others do,
// once that is what is refused: success frees it too.
func TestClient_refusedForItselfAndThenForTheClient(t *testing.T) {
	s, _ := newStore(t)
	putNumbered(t, s, 3)
	notFound := func(context.Context, *Credential) (*Renewal, error) {
		return nil, &RefreshError{Verdict: VerdictMisconfigured, Status: 404, Text: "not found"}
	}
	for _, id := range []string{"c0", "c1"} {
		if _, err := s.Refresh(ctx, asClient(id, "x", false), notFound); err != nil {
			t.Fatal(err)
		}
	}
	var asked atomic.Int64
	for i, id := range []string{"c0", "c1"} {
		r := asClient(id, "x", true)
		if i == 1 {
			r.Asked = time.Now().Add(-time.Hour) // the refusal is the answer
		}
		if _, err := s.Refresh(ctx, r, refuseTheClient(&asked)); err != nil {
			t.Fatal(err)
		}
		c, err := s.Get(ctx, id)
		if err != nil || c.Meta.State != Active || c.Meta.Client == "" {
			t.Errorf("%s: %+v, %v", id, c.Meta, err)
		}
		if st, err := s.Status(ctx, id); err != nil || st.State != Misconfigured || st.LastError != "invalid_client" {
			t.Errorf("%s: %+v, %v", id, st, err)
		}
	}
	if asked.Load() != 1 {
		t.Errorf("asked %d times", asked.Load())
	}
}

// An account that is refused as if the client were, a moment after the client
// was accepted, holds nobody: another one tries at once.
func TestClient_refusedAMomentAfterItWasAccepted(t *testing.T) {
	s, _ := newStore(t)
	putNumbered(t, s, 6)
	var asked atomic.Int64
	try := func(id string, do RefreshFunc) RefreshResult {
		t.Helper()
		res, err := s.Refresh(ctx, asClient(id, "x", false), do)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	try("c0", renewTo("access-two", ""))
	try("c1", refuseTheClient(&asked))
	if res := try("c2", renewTo("access-two", "")); res.Outcome != OutcomeRenewed || !res.Freed {
		t.Errorf("a good account: %+v", res)
	}
	if c, err := s.ClientRefusal(ctx, "acme:client"); c != nil || err != nil {
		t.Errorf("%+v, %v", c, err)
	}
	for _, id := range []string{"c3", "c4", "c5"} { // refused indeed, it costs that one trial
		try(id, refuseTheClient(&asked))
	}
	if asked.Load() != 3 {
		t.Errorf("asked %d times, want 1 and then 2", asked.Load())
	}
}

// Accounts whose wrong secret is put right one by one go on, and those that
// have the wrong one still are not asked again for each.
func TestClient_putRightOneByOne(t *testing.T) {
	s, _ := newStore(t)
	ids := putNumbered(t, s, 12)
	var asked atomic.Int64
	for _, id := range ids {
		if _, err := s.Refresh(ctx, asClient(id, "wrong", false), refuseTheClient(&asked)); err != nil {
			t.Fatal(err)
		}
	}
	for i, id := range ids[:10] {
		if res, err := s.Refresh(ctx, asClient(id, "right", false), renewTo("access-two", "")); err != nil || res.Outcome != OutcomeRenewed || i == 0 && !res.Freed {
			t.Fatalf("%d: %+v, %v", i, res, err)
		}
		for _, wrong := range ids[10:] {
			if _, err := s.Refresh(ctx, asClient(wrong, "wrong", false), refuseTheClient(&asked)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if asked.Load() != 1 {
		t.Errorf("the wrong secret was tried %d times, want 1", asked.Load())
	}
}
