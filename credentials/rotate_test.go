package credentials

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/stepworker/stepworker/internal/redistest"
)

// ring is a keyring of some keys.
func ring(t *testing.T, keys ...string) *Keyring {
	t.Helper()
	r, err := ParseKeys(strings.Join(keys, ","))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// everySealed puts a record into each place, and some that hold none.
func everySealed(t *testing.T, s *Store, n int) {
	t.Helper()
	if err := s.VerifyKeys(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.OfferStepSealing(ctx, nil); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		put(t, s, fmt.Sprintf(`{"credential_id":"c%d","connector":"acme","api_key":"the-key-of-%d"}`, i, i), false)
		id := fmt.Sprint("c", i)
		answer, err := s.Seal(answerPurpose(&Credential{ID: id, Connector: "acme", Version: 1}), []byte(`{"odd":1}`))
		if err != nil {
			t.Fatal(err)
		}
		s.rdb.HSet(ctx, credKey(id), "answer", answer)
		sealed, err := s.Seal(ActionDataPurpose(fmt.Sprint("e", i)), []byte(`{"mark":1}`))
		if err != nil {
			t.Fatal(err)
		}
		s.rdb.HSet(ctx, fmt.Sprintf("stepworker:x:{e%d}", i), "q", "steps", "ad", sealed)
		s.rdb.HSet(ctx, fmt.Sprintf("stepworker:x:{none%d}", i), "q", "steps")
	}
	put(t, s, `{"credential_id":"gone","connector":"acme"}`, false)
	if err := s.Delete(ctx, "gone"); err != nil {
		t.Fatal(err)
	}
	for i := range 3 * n {
		for _, cycle := range []string{"", "a:{b}\nc"} {
			ask(t, s, DataRequest{CredentialID: "c0", CycleID: cycle, Op: "set", Key: fmt.Sprint("k", i), Value: fmt.Sprint("v", i)})
		}
	}
}

// opens says whether a store with these keys opens all that everySealed put.
func opens(t *testing.T, s *Store, n int) {
	t.Helper()
	if err := s.VerifyKeys(ctx); err != nil {
		t.Error(err)
	}
	if _, err := s.stepKey(ctx); err != nil {
		t.Error(err)
	}
	for i := range n {
		c, err := s.Get(ctx, fmt.Sprint("c", i))
		if err != nil || c.Secrets.APIKey.Reveal() != fmt.Sprint("the-key-of-", i) || c.Version != 1 || c.Meta.State != Active {
			t.Fatalf("credential %d: %v", i, err)
		}
		answer, _ := s.rdb.HGet(ctx, credKey(c.ID), "answer").Bytes()
		if text, err := s.Open(answerPurpose(c), answer); err != nil || string(text) != `{"odd":1}` {
			t.Fatalf("answer %d: %s %v", i, text, err)
		}
		sealed, _ := s.rdb.HGet(ctx, fmt.Sprintf("stepworker:x:{e%d}", i), "ad").Bytes()
		if data, err := s.Open(ActionDataPurpose(fmt.Sprint("e", i)), sealed); err != nil || string(data) != `{"mark":1}` {
			t.Fatalf("action_data %d: %s %v", i, data, err)
		}
	}
	for _, cycle := range []string{"", "a:{b}\nc"} {
		var want []string
		for i := range 3 * n {
			want = append(want, fmt.Sprintf("%q", fmt.Sprint("v", i)))
		}
		got := ask(t, s, DataRequest{CredentialID: "c0", CycleID: cycle, Op: "list_values"})
		if diff := cmp.Diff("["+strings.Join(want, ",")+"]", got); diff != "" {
			t.Fatalf("cycle %q: %s", cycle, diff)
		}
		if got := ask(t, s, DataRequest{CredentialID: "c0", CycleID: cycle, Op: "get", Key: "k1"}); got != `"v1"` {
			t.Fatalf("k1 is %s", got)
		}
	}
}

func TestRotate_everythingOpensWithTheFirstKeyAlone(t *testing.T) {
	const n = 300 // some pages
	server := redistest.New(t)
	old, fresh := NewKey(), NewKey()
	everySealed(t, NewStore(server.Client(t), ring(t, old)), n)
	s := NewStore(server.Client(t), ring(t, fresh, old))
	names := s.keys.Fingerprints()

	looked, err := s.Rotate(ctx, RotateOptions{DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	kinds := func(resealed bool, by string) (want []RotatedKind) {
		for _, k := range []RotatedKind{{Kind: "check value", Records: 1}, {Kind: "key that names stored data", Records: 1}, {Kind: "key that opens what steps give", Records: 1}, {Kind: "credentials", Records: n},
			{Kind: "answers kept of failed refreshes", Records: n}, {Kind: "action_data of waiting executions", Records: n}, {Kind: "keys and values that scripts stored", Records: 12 * n}} {
			k.By = map[string]int{by: k.Records}
			if resealed {
				k.Resealed = k.Records
			}
			want = append(want, k)
		}
		return want
	}
	if diff := cmp.Diff(&Rotation{Kinds: kinds(false, names[1])}, looked, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("dry run: (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(names[1:], looked.InUse(names[0])); diff != "" {
		t.Error(diff)
	}
	r, err := s.Rotate(ctx, RotateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&Rotation{Kinds: kinds(true, names[0])}, r, cmpopts.EquateEmpty()); diff != "" || len(r.InUse(names[0])) > 0 {
		t.Errorf("rotated: (-want +got)\n%s", diff)
	}
	opens(t, NewStore(server.Client(t), ring(t, fresh)), n)
}

// Interrupted after any page, it goes on where it was.
func TestRotate_interruptedAndRunAgain(t *testing.T) {
	const n = 100
	server := redistest.New(t)
	old, fresh := NewKey(), NewKey()
	everySealed(t, NewStore(server.Client(t), ring(t, old)), n)
	s := NewStore(server.Client(t), ring(t, fresh, old))
	interrupted := 0
	for pages := 1; ; pages++ {
		c, cancel := context.WithCancel(ctx)
		left := pages
		_, err := s.Rotate(c, RotateOptions{Looked: func(int) {
			if left--; left == 0 {
				cancel()
			}
		}})
		cancel()
		opens(t, NewStore(server.Client(t), ring(t, old, fresh)), n) // all along
		if err == nil {
			break
		}
		interrupted++
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	if interrupted < 5 {
		t.Errorf("interrupted %d times", interrupted)
	}
	opens(t, NewStore(server.Client(t), ring(t, fresh)), n)
}

// Whoever writes meanwhile wins: with the old key first, too, as in a rolling restart.
func TestRotate_whileOthersWrite(t *testing.T) {
	server := redistest.New(t)
	old, fresh := NewKey(), NewKey()
	s := NewStore(server.Client(t), ring(t, fresh, old))
	writers := []*Store{NewStore(server.Client(t), ring(t, old, fresh)), NewStore(server.Client(t), ring(t, fresh, old))}
	put(t, writers[0], oauthInput, false)
	var stop atomic.Bool
	var refreshes, counted atomic.Int64
	var wg sync.WaitGroup
	for _, w := range writers {
		wg.Go(func() {
			for !stop.Load() {
				c, err := w.Get(ctx, "c")
				if err != nil {
					t.Error(err)
					return
				}
				res, err := w.Refresh(ctx, RefreshRequest{ID: "c", Version: c.Version, Kind: OAuth2, Force: true}, renewTo("a", "r"))
				if err != nil {
					t.Error(err)
					return
				}
				if res.Outcome == OutcomeRenewed {
					refreshes.Add(1)
				}
				if _, err := w.ScriptData(ctx, DataRequest{CredentialID: "c", Op: "increment", Key: "n", Amount: 1}); err != nil {
					t.Error(err)
					return
				}
				counted.Add(1)
			}
		})
	}
	for counted.Load() < 300 {
		if r, err := s.Rotate(ctx, RotateOptions{}); err != nil || len(r.Unopened) > 0 {
			t.Fatalf("%+v %v", r, err)
		}
	}
	stop.Store(true)
	wg.Wait()
	if r, err := s.Rotate(ctx, RotateOptions{}); err != nil || r.Unsteady || len(r.InUse(s.keys.Fingerprints()[0])) > 0 {
		t.Fatalf("%+v %v", r, err)
	}
	alone := NewStore(server.Client(t), ring(t, fresh))
	if c := get(t, alone); c.Version != 1+refreshes.Load() || refreshes.Load() == 0 {
		t.Errorf("version %d after %d refreshes", c.Version, refreshes.Load())
	}
	if got := ask(t, alone, DataRequest{Op: "get", Key: "n"}); got != fmt.Sprintf(`"%d"`, counted.Load()) {
		t.Errorf("counted to %s, want %d", got, counted.Load())
	}
}

// As long as each pass finds something new, it says so.
func TestRotate_recordsSealedWithAnOldKeyGoOnToAppear(t *testing.T) {
	server := redistest.New(t)
	old, fresh := NewKey(), NewKey()
	s, cli := NewStore(server.Client(t), ring(t, fresh, old)), NewStore(server.Client(t), ring(t, old, fresh))
	put(t, cli, oauthInput, false)
	r, err := s.Rotate(ctx, RotateOptions{Looked: func(int) { put(t, cli, oauthInput, false) }})
	if err != nil || !r.Unsteady {
		t.Fatalf("%+v %v", r, err)
	}
	if r, err = s.Rotate(ctx, RotateOptions{}); err != nil || r.Unsteady {
		t.Fatalf("%+v %v", r, err)
	}
}

func TestRotate_namesWhatNoKeyOpens(t *testing.T) {
	server := redistest.New(t)
	old, fresh, lost := NewKey(), NewKey(), NewKey()
	s := NewStore(server.Client(t), ring(t, fresh, old))
	if err := s.VerifyKeys(ctx); err != nil {
		t.Fatal(err)
	}
	put(t, s, oauthInput, false)
	put(t, NewStore(server.Client(t), ring(t, lost)), `{"credential_id":"lost","connector":"acme"}`, false)
	put(t, NewStore(server.Client(t), ring(t, old)), `{"credential_id":"moved","connector":"acme"}`, false)
	s.rdb.HSet(ctx, credKey("moved"), "connector", "other")
	r, err := s.Rotate(ctx, RotateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, u := range r.Unopened {
		got[u.Key] = u.Fingerprint
	}
	want := map[string]string{credKey("lost"): ring(t, lost).Fingerprints()[0], credKey("moved"): ring(t, old).Fingerprints()[0]}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	var wrong *KeyError
	if _, err := NewStore(server.Client(t), ring(t, lost)).Rotate(ctx, RotateOptions{}); !errors.As(err, &wrong) {
		t.Errorf("with strange keys: %v", err)
	}
}

// A worker that seals with an old key may have a record in its hands: as long
// as it lives the key is needed.
func TestRotate_workersThatSealWithAnOldKey(t *testing.T) {
	server := redistest.New(t)
	old, fresh := NewKey(), NewKey()
	s, worker := NewStore(server.Client(t), ring(t, fresh, old)), NewStore(server.Client(t), ring(t, old, fresh))
	s.sealingLasts, worker.sealingLasts = 500*time.Millisecond, 500*time.Millisecond
	put(t, worker, oauthInput, false)
	if err := s.NoteSealing(ctx); err != nil { // one with the right first key is none
		t.Fatal(err)
	}
	if err := worker.NoteSealing(ctx); err != nil {
		t.Fatal(err)
	}
	c, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for c.Err() == nil {
			_ = worker.NoteSealing(c)
			time.Sleep(50 * time.Millisecond)
		}
	})
	r, err := s.Rotate(ctx, RotateOptions{})
	stop()
	wg.Wait()
	names := s.keys.Fingerprints()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(names[1:], r.Sealing); diff != "" || cmp.Diff(names[1:], r.InUse(names[0])) != "" {
		t.Error(diff)
	}
	// It saves as it ends; the rotation waits for its end, and then looks again.
	put(t, worker, oauthInput, false)
	if err := worker.NoteSealing(ctx); err != nil {
		t.Fatal(err)
	}
	if r, err = s.Rotate(ctx, RotateOptions{}); err != nil || len(r.Sealing) > 0 || len(r.InUse(names[0])) > 0 {
		t.Errorf("%+v %v", r, err)
	}
	get(t, NewStore(server.Client(t), ring(t, fresh)))
}
