package credentials

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/stepworker/stepworker/internal/redistest"
)

// Wherever a sealed record stands, one of a newer build's is told from one that no
// key opens, and left as it is.
func TestNewer_eachSealedRecord(t *testing.T) {
	server := redistest.New(t)
	rdb := server.Client(t)
	key := NewKey()
	fresh := func() *Store { return NewStore(server.Client(t), ring(t, key)) } // one that has opened nothing yet
	s := fresh()
	if err := s.VerifyKeys(ctx); err != nil {
		t.Fatal(err)
	}
	in, err := DecodeInput([]byte(`{"credential_id":"c","connector":"acme","api_key":"k"}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Put(ctx, in, false); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ScriptData(ctx, DataRequest{CredentialID: "c", Op: "set", Key: "k", Value: "v"}); err != nil {
		t.Fatal(err)
	}
	if err := s.OfferStepSealing(ctx, SensitiveParameters{"pay": {"pin"}}); err != nil {
		t.Fatal(err)
	}
	z, err := NewStore(rdb, nil).StepSealer(ctx)
	if err != nil {
		t.Fatal(err)
	}
	parameters, sealed, err := z.Seal("e", "pay", map[string]json.RawMessage{"pin": json.RawMessage(`"1"`)})
	if err != nil || !sealed {
		t.Fatal(sealed, err)
	}
	const newer = "\x02 of another form"
	hash := func(key, field string) func(string) (was string) {
		return func(value string) string {
			was := rdb.HGet(ctx, key, field).Val()
			rdb.HSet(ctx, key, field, value)
			return was
		}
	}
	text := func(key string) func(string) (was string) {
		return func(value string) string {
			was := rdb.Get(ctx, key).Val()
			rdb.Set(ctx, key, value, 0)
			return was
		}
	}
	values := "stepworker:data:{c}:values"
	field := rdb.HKeys(ctx, values).Val()[0]
	for name, c := range map[string]struct {
		set   func(string) string
		newer string
		use   func(*Store) error
	}{
		"check value":                {text(checkKey), newer, func(s *Store) error { return s.VerifyKeys(ctx) }},
		"check value, in a rotation": {text(checkKey), newer, func(s *Store) error { _, err := s.Rotate(ctx, RotateOptions{}); return err }},
		"credential":                 {hash(credKey("c"), "sealed"), newer, func(s *Store) error { _, err := s.Get(ctx, "c"); return err }},
		"credential's state":         {hash(credKey("c"), "state"), "sleeping", func(s *Store) error { _, err := s.Get(ctx, "c"); return err }},
		"key that names scripts' data": {text(dataKeyKey), newer, func(s *Store) error {
			_, err := s.ScriptData(ctx, DataRequest{CredentialID: "c", Op: "get", Key: "k"})
			return err
		}},
		"scripts' data": {hash(values, field), "1 4 " + newer, func(s *Store) error {
			_, err := s.ScriptData(ctx, DataRequest{CredentialID: "c", Op: "get", Key: "k"})
			return err
		}},
		"private key of what steps give": {hash(stepKeyKey, "sealed"), newer, func(s *Store) error {
			p := map[string]json.RawMessage{"pin": parameters["pin"]}
			return s.OpenStep(ctx, "e", p)
		}},
		"answer that was kept of a refresh": {hash(credKey("c"), "answer"), newer, func(s *Store) error {
			_, err := s.Refresh(ctx, RefreshRequest{ID: "c", Version: 1, Kind: OAuth2}, nil)
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			was := c.set(c.newer)
			var e *NewerError
			if err := c.use(fresh()); !errors.As(err, &e) {
				t.Errorf("it is %v", err)
			}
			if now := c.set(was); now != c.newer {
				t.Errorf("it was changed to %q", now)
			}
			if was == "" { // there was none
				rdb.HDel(ctx, credKey("c"), "answer")
			} else if err := c.use(fresh()); err != nil {
				t.Errorf("set back: %v", err)
			}
		})
	}
}
