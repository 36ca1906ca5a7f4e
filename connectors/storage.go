package connectors

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/hooks"
)

// scriptStorage is what scripts store: the credential's own, and within it
// each cycle's.
type scriptStorage struct{ x *exchange }

func (s *scriptStorage) DoStorage(ctx context.Context, r hooks.StorageRequest) (json.RawMessage, error) {
	data, id := s.x.c.cfg.Data, s.x.call.Cycle.CycleID
	switch {
	case data == nil:
		return nil, &hooks.StorageError{Text: "there is no storage here"}
	case !r.Cycle:
		id = ""
	case id == "":
		return nil, &hooks.StorageError{Text: "the step has no cycle (cycle.cycle_id), so it has no storage of one either"}
	}
	v, err := data.ScriptData(ctx, credentials.DataRequest{CredentialID: s.x.cred.ID, CycleID: id, Op: r.Op, Key: r.Key, Value: r.Value, Amount: r.Amount})
	// What is wrong with this credential's data stays so: as the worker's own
	// fault it would put the execution back, and make its call again, for ever.
	var wrong *credentials.DataError
	var sealed *credentials.SealError
	switch {
	case errors.As(err, &wrong):
		return nil, &hooks.StorageError{Text: wrong.Text}
	case errors.As(err, &sealed):
		return nil, &hooks.StorageError{Text: sealed.Error()}
	case errors.Is(err, credentials.ErrNotFound):
		return nil, &hooks.StorageError{Text: "there is no such credential stored, so it has no data either"}
	}
	return v, err
}
