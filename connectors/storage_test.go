package connectors

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/hooks"
)

// noted answers with what it was asked.
type noted struct {
	asked []credentials.DataRequest
	err   error
}

func (n *noted) ScriptData(_ context.Context, r credentials.DataRequest) (json.RawMessage, error) {
	n.asked = append(n.asked, r)
	return json.RawMessage(`"v"`), n.err
}

func TestScriptStorage(t *testing.T) {
	broken := errors.New("redis is away")
	cases := map[string]struct {
		cycle string
		in    hooks.StorageRequest
		err   error
		asked []credentials.DataRequest
		want  error
	}{
		"the credential's": {"c1", hooks.StorageRequest{Op: "set", Key: "k", Value: "v"}, nil,
			[]credentials.DataRequest{{CredentialID: "id", Op: "set", Key: "k", Value: "v"}}, nil},
		"the cycle's": {"c1", hooks.StorageRequest{Cycle: true, Op: "increment", Key: "k", Amount: 1.5}, nil,
			[]credentials.DataRequest{{CredentialID: "id", CycleID: "c1", Op: "increment", Key: "k", Amount: 1.5}}, nil},
		"without a cycle": {"", hooks.StorageRequest{Cycle: true, Op: "get", Key: "k"}, nil, nil,
			&hooks.StorageError{Text: "the step has no cycle (cycle.cycle_id), so it has no storage of one either"}},
		"the script's own fault": {"", hooks.StorageRequest{Op: "get"}, &credentials.DataError{Text: "a key is needed"},
			[]credentials.DataRequest{{CredentialID: "id", Op: "get"}}, &hooks.StorageError{Text: "a key is needed"}},
		"what no key opens": {"", hooks.StorageRequest{Op: "get", Key: "k"}, &credentials.SealError{What: "an item"},
			[]credentials.DataRequest{{CredentialID: "id", Op: "get", Key: "k"}}, &hooks.StorageError{Text: "no key opens an item"}},
		"deleted meanwhile": {"", hooks.StorageRequest{Op: "set", Key: "k"}, credentials.ErrNotFound,
			[]credentials.DataRequest{{CredentialID: "id", Op: "set", Key: "k"}}, &hooks.StorageError{Text: "there is no such credential stored, so it has no data either"}},
		"the worker's own": {"", hooks.StorageRequest{Op: "get", Key: "k"}, broken, []credentials.DataRequest{{CredentialID: "id", Op: "get", Key: "k"}}, broken},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			data := &noted{err: c.err}
			s := &scriptStorage{&exchange{c: &Caller{cfg: CallerConfig{Data: data}}, cred: &credentials.Credential{ID: "id"}, call: &Call{Cycle: Cycle{CycleID: c.cycle}}}}
			_, err := s.DoStorage(t.Context(), c.in)
			var got, want *hooks.StorageError
			if errors.As(err, &got) != errors.As(c.want, &want) || got != nil && got.Text != want.Text || got == nil && err != c.want {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if d := cmp.Diff(c.asked, data.asked); d != "" {
				t.Error(d)
			}
		})
	}
}
