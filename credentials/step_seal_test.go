package credentials

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/internal/redistest"
)

func TestStepSealing(t *testing.T) {
	server := redistest.New(t)
	old, fresh := NewKey(), NewKey()
	worker, other := NewStore(server.Client(t), ring(t, old)), NewStore(server.Client(t), ring(t, old))
	client := NewStore(server.Client(t), nil)
	sealer := func() *StepSealer {
		t.Helper()
		z, err := client.StepSealer(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return z
	}
	given := map[string]json.RawMessage{"pin": json.RawMessage(`"1234 and more"`), "since": json.RawMessage(`"2026"`), "nothing": nil}
	seal := func(z *StepSealer) map[string]json.RawMessage {
		t.Helper()
		sealed, _, err := z.Seal("x1", "pay", given)
		if err != nil {
			t.Fatal(err)
		}
		return sealed
	}
	if diff := cmp.Diff(given, seal(sealer())); diff != "" {
		t.Errorf("no worker has run yet: %s", diff)
	}
	offer := func(s *Store) {
		t.Helper()
		if err := s.OfferStepSealing(ctx, SensitiveParameters{"pay": {"pin", "nothing"}, "refund": {"since"}}); err != nil {
			t.Fatal(err)
		}
	}
	offer(worker)
	offer(other)
	before := seal(sealer())
	if text := string(before["pin"]); !strings.HasPrefix(text, `{"stepworker:sealed":`) || strings.Contains(text, "1234") || string(before["since"]) != `"2026"` || before["nothing"] != nil {
		t.Errorf("sealed: %s", before)
	}
	if string(given["pin"]) != `"1234 and more"` {
		t.Error("what was given was changed")
	}
	open := func(s *Store, execution string, sealed map[string]json.RawMessage) error {
		copied := map[string]json.RawMessage{}
		for name, value := range sealed {
			copied[name] = value
		}
		err := s.OpenStep(ctx, execution, copied)
		if err == nil && string(copied["pin"]) != string(given["pin"]) {
			t.Errorf("opened: %s", copied)
		}
		return err
	}
	for _, s := range []*Store{worker, other, NewStore(server.Client(t), ring(t, old))} {
		if err := open(s, "x1", before); err != nil {
			t.Error(err)
		}
	}
	var sealed *SealError
	if err := open(worker, "x2", before); !errors.As(err, &sealed) {
		t.Errorf("another execution opens it: %v", err)
	}
	if err := open(worker, "x1", map[string]json.RawMessage{"since": before["pin"]}); !errors.As(err, &sealed) {
		t.Errorf("another parameter opens it: %v", err)
	}
	for _, odd := range []string{`{"stepworker:sealed":"AAAA"}`, `{"stepworker:sealed":"!"}`, `{ "stepworker:sealed": "" }`} {
		if err := open(worker, "x1", map[string]json.RawMessage{"pin": json.RawMessage(odd)}); !errors.As(err, &sealed) {
			t.Errorf("%s opens: %v", odd, err)
		}
	}
	for _, plain := range []string{`{"stepworker:sealed":1}`, `{"stepworker:sealed":"AAAA","b":"AAAA"}`, `"stepworker:sealed"`, `["stepworker:sealed"]`} { // a flow's own
		values := map[string]json.RawMessage{"text": json.RawMessage(plain)}
		if err := worker.OpenStep(ctx, "x1", values); err != nil || string(values["text"]) != plain {
			t.Errorf("%s becomes %s: %v", plain, values["text"], err)
		}
	}
	// A worker without the key says so, and replaces nothing.
	stranger := NewStore(server.Client(t), ring(t, fresh))
	var strange *StepKeyError
	if err := stranger.OfferStepSealing(ctx, nil); !errors.As(err, &strange) {
		t.Errorf("a stranger offers: %v", err)
	}
	if err := open(stranger, "x1", before); !errors.As(err, &strange) {
		t.Errorf("a stranger opens: %v", err)
	}
	// What waits while the sealing keys are replaced opens with the new one.
	if err := worker.VerifyKeys(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := NewStore(server.Client(t), ring(t, fresh, old)).Rotate(ctx, RotateOptions{}); err != nil {
		t.Fatal(err)
	}
	rotated := NewStore(server.Client(t), ring(t, fresh))
	for _, s := range []*Store{rotated, worker} { // the second knows the private key already
		if err := open(s, "x1", before); err != nil {
			t.Error(err)
		}
	}
	// Redis was emptied under running workers: they offer again, another key.
	worker.rdb.FlushAll(ctx)
	offer(rotated)
	after := seal(sealer())
	if string(after["pin"]) == string(given["pin"]) {
		t.Error("nothing is sealed after Redis was emptied")
	}
	if err := open(rotated, "x1", after); err != nil {
		t.Error(err)
	}
	if err := open(rotated, "x1", before); !errors.As(err, &sealed) {
		t.Errorf("what the lost key sealed: %v", err)
	}
	if err := open(NewStore(server.Client(t), ring(t, fresh, old)), "x1", after); err != nil { // who has not offered yet
		t.Error(err)
	}
}

// Whoever puts a credential has the sealing keys, and no connectors. Until a
// worker says what is sensitive, all that a step gives is sealed.
func TestStepSealing_beforeTheFirstWorker(t *testing.T) {
	server := redistest.New(t)
	key := NewKey()
	client, worker := NewStore(server.Client(t), nil), NewStore(server.Client(t), ring(t, key))
	given := map[string]json.RawMessage{"pin": json.RawMessage(`"1234 and more"`)}
	seal := func() map[string]json.RawMessage {
		t.Helper()
		z, err := client.StepSealer(ctx)
		if err != nil {
			t.Fatal(err)
		}
		sealed, _, err := z.Seal("x1", "pay", given)
		if err != nil {
			t.Fatal(err)
		}
		return sealed
	}
	put(t, NewStore(server.Client(t), ring(t, key)), `{"credential_id":"c","connector":"acme"}`, false)
	sealed := seal()
	if strings.Contains(string(sealed["pin"]), "1234") {
		t.Errorf("sealed: %s", sealed)
	}
	if err := worker.OpenStep(ctx, "x1", sealed); err != nil || string(sealed["pin"]) != string(given["pin"]) {
		t.Errorf("opened: %s, %v", sealed, err)
	}
	if err := worker.OfferStepSealing(ctx, nil); err != nil { // nothing is sensitive
		t.Fatal(err)
	}
	if diff := cmp.Diff(given, seal()); diff != "" {
		t.Errorf("a worker has run: %s", diff)
	}
}

// Workers do not all have the same connectors. What Redis lost, all of it or a
// part, each offers again, whoever was first.
func TestStepSealing_eachOffersAgainWhatIsLost(t *testing.T) {
	server := redistest.New(t)
	key := NewKey()
	a, b := NewStore(server.Client(t), ring(t, key)), NewStore(server.Client(t), ring(t, key))
	offer := func() {
		t.Helper()
		for _, err := range []error{b.OfferStepSealing(ctx, SensitiveParameters{"pay": {"pin", "name"}}), a.OfferStepSealing(ctx, SensitiveParameters{"refund": {"pin"}})} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	offer()
	for name, lose := range map[string]func() error{
		"all":                 func() error { return a.rdb.FlushAll(ctx).Err() },
		"what is sealed":      func() error { return a.rdb.Del(ctx, stepSealedKey).Err() },
		"what was last added": func() error { return a.rdb.SRem(ctx, stepSealedKey, "refund pin").Err() },
	} {
		if err := lose(); err != nil {
			t.Fatal(err)
		}
		offer()
		got := a.rdb.SMembers(ctx, stepSealedKey).Val()
		slices.Sort(got)
		if diff := cmp.Diff([]string{offeredMark, "pay name", "pay pin", "refund pin"}, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
