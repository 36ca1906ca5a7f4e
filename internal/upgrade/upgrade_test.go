package upgrade

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hibiken/asynq"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/jobs"
)

// What every build left, this one goes on with: all that waits ends well, and all
// that ended can be read.
func TestUpgrade_goesOnWithWhatOldBuildsLeft(t *testing.T) {
	if testing.Short() {
		t.Skip("worker processes")
	}
	files, err := filepath.Glob(filepath.Join("testdata", "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatal("there are no fixtures", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var f Fixture
			if err := json.Unmarshal(raw, &f); err != nil {
				t.Fatal(err)
			}
			upgrade(t, &f)
		})
	}
}

func upgrade(t *testing.T, f *Fixture) {
	ctx := context.Background()
	provider, stop, err := Listen(false)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	w := newWorld(t, built(), f.SealingKey, f.Connectors)
	if err := f.Load(ctx, w.rdb); err != nil {
		t.Fatal(err)
	}
	for id, before := range f.Executions { // they are told of as before, with nobody at work yet
		now, state := w.status(id)
		if was := stateOf(t, before); state != was {
			t.Errorf("%s is %s, and was %s", id, state, was)
		} else if ended(state) {
			same(t, id, before, now)
		}
	}
	inspector := asynq.NewInspectorFromRedisClient(w.rdb)
	p := w.start()
	var held, left []string
	for id, before := range f.Executions {
		switch state := stateOf(t, before); {
		case ended(state):
		case state == "scheduled":
			if err := inspector.RunTask("steps", id); err != nil {
				t.Error(id, err)
			}
			left = append(left, id)
		case state == "held" && id != "replaced":
			held = append(held, id)
		default:
			left = append(left, id)
		}
	}
	for _, id := range left {
		w.until(id+" ends well", func() bool {
			raw, state := w.status(id)
			if ended(state) && state != "succeeded" {
				t.Errorf("%s: %s", id, raw)
			}
			return ended(state)
		})
	}
	for _, id := range held {
		if raw, state := w.status(id); state != "held" {
			t.Errorf("%s was held: %s", id, raw)
		}
	}
	s := New(f.Connectors)
	for _, c := range []string{"revoked-books", "club-books"} {
		w.must(built().worker, []object{put(s, c)}, "credential", "put")
	}
	w.must(built().worker, []object{{"credential_id": "refused-desk", "properties": object{"password": "password-of-refused-desk"}}}, "credential", "put", "--merge")
	for _, id := range held {
		w.until(id+" ends well once its credential is put", func() bool {
			raw, state := w.status(id)
			if ended(state) && state != "succeeded" {
				t.Errorf("%s: %s", id, raw)
			}
			return ended(state)
		})
	}
	for _, id := range left {
		w.counted(id)
	}
	w.kept(f, provider)
	// A failed one that was archived is run again.
	if err := inspector.RunTask("steps", "broken"); err != nil {
		t.Error(err)
	}
	w.until("what had failed succeeds", func() bool { _, state := w.status("broken"); return state == "succeeded" })
	if code, text := p.readyz(); code != 200 {
		t.Errorf("the worker is not ready: %s", text)
	}
	if strings.Contains(p.Log.String(), "worker fault") {
		t.Error("the worker was at fault")
	}
	if format := w.rdb.HGet(ctx, "stepworker:schema", "format").Val(); format != "2" {
		t.Errorf("the format of what is stored is %q", format)
	}
	p.Kill()
	w.rotated()
}

// kept asserts that nothing was asked for twice, and that what steps, scripts and
// calls under way had brought is still there.
func (w *world) kept(f *Fixture, provider *Provider) {
	t := w.t
	want := map[string]int{"login fails-desk": 1, "login refused-desk": 1, "fails-books.r0": 1, "forced.r0": 1}
	if slices.Contains(f.Connectors, "shelf") {
		want["fails-shelf.r0"] = 1
		for _, account := range []string{"fails-shelf", "hangs-shelf"} {
			if n := provider.Calls("shelf 1 " + account); n != 0 {
				t.Errorf("the first page of %s was fetched again", account)
			}
		}
		for _, id := range []string{"pages", "hanging"} {
			raw, _ := w.status(id)
			var r struct{ Content []int }
			if err := json.Unmarshal(raw, &r); err != nil || !slices.Equal(r.Content, []int{1, 2, 3, 4, 5}) {
				t.Errorf("%s: %s", id, raw)
			}
		}
	}
	if slices.Contains(f.Connectors, "vault") {
		want["fails-vault.r0"] = 1
		for _, account := range []string{"vault", "fails-vault"} {
			if pin := provider.Seen()["pin of "+account]; pin != Pin {
				t.Errorf("%s was opened with %q", account, pin)
			}
		}
	}
	got := provider.Renewals()
	delete(got, "club-books.r0") // a trial of the client may have come due
	if !maps.Equal(got, want) {
		t.Errorf("tokens and sessions were asked for (-want +got):\n%s", cmp.Diff(want, got))
	}
	if mark := provider.Seen()["mark"]; mark == "" || mark != f.Seen["mark"] {
		t.Errorf("action_data was %q, and is %q", f.Seen["mark"], mark)
	}
	if n := w.rdb.LLen(context.Background(), "asynq:{flows}:pending").Val(); n != 1 {
		t.Errorf("%d replies came", n)
	}
	for _, k := range f.Keys {
		if k.Key == "stepworker:cred:{revoked-books}:notices" {
			w.until("the notice is told", func() bool { return provider.Notices("credential.revoked revoked-books") > 0 })
		}
	}
	more := []object{step("recalled", "notes", "recall", nil)}
	if slices.Contains(f.Connectors, "since") {
		more = append(more, step("since2", "since", "get", object{"cycle": object{"cycle_step_id": "s1"}}))
	}
	w.must(built().enqueue, more, "--wait")
	raw, _ := w.status("recalled")
	var recalled struct{ Content map[string]any }
	_ = json.Unmarshal(raw, &recalled)
	first := map[string]any{"colour": nil, "visits": "1"} // of a build whose scripts could store nothing
	if state := stateOf(t, f.Executions["kept"]); state == "succeeded" {
		first = map[string]any{"colour": "ultramarine", "visits": "42"}
	}
	if diff := cmp.Diff(first, recalled.Content); diff != "" {
		t.Errorf("what scripts stored (-want +got):\n%s", diff)
	}
	if slices.Contains(f.Connectors, "since") {
		// Its last good run began ten minutes ago, as Load has it.
		if after := provider.Seen()["since"]; after == "" || after < "2026" || after == f.Seen["since"] {
			t.Errorf("the last good run was at %q", after)
		}
	}
}

// counted asserts that the result of an execution that waited tells of what it
// did under the old build, too.
func (w *world) counted(id string) {
	raw, _ := w.status(id)
	var r jobs.Result
	if err := json.Unmarshal(raw, &r); err != nil {
		w.t.Fatalf("%s: %s", id, raw)
	}
	type counts struct{ Attempts, Refreshes int }
	want, known := map[string]counts{
		"remember": {2, 1}, "parked1": {1, 1}, "flaky": {r.Attempts, 0}, "busy": {2, 0}, "pages": {2, 1}, "locked": {2, 1},
	}[id]
	if got := (counts{r.Attempts, r.Refreshes}); known && got != want {
		w.t.Errorf("%s counts %+v, not %+v", id, got, want)
	}
	if id == "flaky" && r.Attempts < 3 {
		w.t.Errorf("%s had tried again and again, and counts %d attempts", id, r.Attempts)
	}
	if (id == "pages" || id == "hanging") && r.Pages != 3 {
		w.t.Errorf("%s counts %d pages", id, r.Pages)
	}
}

// rotated replaces the key that sealed the fixture.
func (w *world) rotated() {
	old, fresh := w.keys, credentials.NewKey()
	w.keys = fresh + "," + old
	if out := w.must(built().worker, nil, "key", "rotate"); !strings.Contains(out, "may go") {
		w.t.Errorf("key rotate: %s", out)
	}
	w.keys = fresh
	w.start()
	w.must(built().enqueue, []object{step("after-all", "active", "get", nil), step("recalled-again", "notes", "recall", nil)}, "--wait", "--timeout", "60s")
}

func stateOf(t *testing.T, raw json.RawMessage) string {
	t.Helper()
	var s struct{ Status string }
	if err := json.Unmarshal(raw, &s); err != nil {
		t.Fatal(err)
	}
	return s.Status
}

// same asserts that a result is told as the old build told it, and perhaps more.
func same(t *testing.T, id string, before, now json.RawMessage) {
	t.Helper()
	var want, got map[string]any
	if json.Unmarshal(before, &want) != nil || json.Unmarshal(now, &got) != nil {
		t.Fatalf("%s: %s, %s", id, before, now)
	}
	for k := range got {
		if _, known := want[k]; !known {
			delete(got, k)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-before +now):\n%s", id, diff)
	}
	var r jobs.Result
	if err := json.Unmarshal(now, &r); err != nil {
		t.Errorf("%s: %v", id, err)
	}
}
