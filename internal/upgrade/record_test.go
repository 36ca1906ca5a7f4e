package upgrade

import (
	"context"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stepworker/stepworker/credentials"
)

var (
	recordName    = flag.String("record-name", "", "name of the fixture that is to be made")
	recordWorker  = flag.String("record-worker", "", "the binary whose fixture it is")
	recordEnqueue = flag.String("record-enqueue", "", "its enqueue")
)

// TestRecord makes the fixture of a build; CONTRIBUTING.md says how.
func TestRecord(t *testing.T) {
	if *recordName == "" {
		t.Skip("makes a fixture where -record-name, -record-worker and -record-enqueue are given")
	}
	old := programs{*recordWorker, *recordEnqueue}
	provider, stop, err := Listen(true)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	f := &Fixture{SealingKey: credentials.NewKey(), Executions: map[string]json.RawMessage{}}
	for _, c := range connectors(t) { // each by itself: what it does not know it says
		one := newWorld(t, old, f.SealingKey, []string{c})
		if _, ok := one.run(old.worker, nil, "check", one.connectors); ok {
			f.Connectors = append(f.Connectors, c)
		}
	}
	w := newWorld(t, old, f.SealingKey, f.Connectors)
	f.Build = strings.TrimSpace(w.must(old.worker, nil, "version"))
	s := New(f.Connectors)
	p := w.start()
	w.must(old.worker, s.Credentials, "credential", "put")
	w.until("what is sensitive is told", func() bool {
		code, _ := p.readyz()
		return code == 200
	})
	for _, step := range s.Taken {
		id, _ := step["execution_id"].(string)
		w.must(old.enqueue, []object{step})
		w.until(id+" has settled", func() bool {
			_, state := w.status(id)
			return settled(state) || id == "hanging" && provider.Hanging() > 0
		})
	}
	p.Kill()
	w.must(old.enqueue, s.Left)
	_, _ = w.run(old.worker, nil, "credential", "refresh", "forced", "--timeout", "1s") // nobody answers
	w.must(old.worker, []object{put(s, "revoked-replaced")}, "credential", "put")
	f.RecordedAt = time.Now().UnixMilli()
	f.Seen = provider.Seen()
	for _, step := range slices.Concat(s.Taken, s.Left) {
		id, _ := step["execution_id"].(string)
		f.Executions[id], _ = w.status(id)
	}
	if f.Keys, err = Dump(context.Background(), w.rdb); err != nil {
		t.Fatal(err)
	}
	raw, err := json.MarshalIndent(f, "", " ")
	if err == nil {
		err = os.WriteFile(filepath.Join("testdata", *recordName+".json"), append(raw, '\n'), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// connectors are those of testdata, by name.
func connectors(t *testing.T) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "connectors", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatal("there are no connectors", err)
	}
	for _, f := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(f), ".yaml"))
	}
	return names
}

// put is a credential of the scenario with another token, as a person puts it who
// has connected the account anew.
func put(s *Scenario, id string) object {
	c := object{}
	for _, stored := range s.Credentials {
		if stored["credential_id"] == id {
			for k, v := range stored {
				c[k] = v
			}
			for k, v := range token(id, 5) {
				c[k] = v
			}
			c["client_secret"] = "right"
		}
	}
	return c
}
