package upgrade

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hibiken/asynq"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/jobs"
)

// newBooks is a world with two credentials of which one is dead.
func newBooks(t *testing.T) *world {
	t.Helper()
	if testing.Short() {
		t.Skip("worker processes")
	}
	_, stop, err := Listen(false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	w := newWorld(t, built(), credentials.NewKey(), []string{"books"})
	w.must(built().worker, []object{
		{"credential_id": "active", "connector": "books", "client_id": "i", "client_secret": "s", "oauth2": token("active", 0)["oauth2"]},
		{"credential_id": "dead-1", "connector": "books", "client_id": "i", "client_secret": "s", "oauth2": token("dead-1", 0)["oauth2"]},
	}, "credential", "put")
	return w
}

// unready waits until a worker says that it is not ready, and why.
func (p *process) unready(why string) {
	p.w.t.Helper()
	p.w.until("it is not ready: "+why, func() bool {
		code, text := p.readyz()
		return code == 503 && strings.Contains(text, why)
	})
}

func (p *process) ready() {
	p.w.t.Helper()
	p.w.until("it is ready", func() bool { code, _ := p.readyz(); return code == 200 })
}

func (w *world) succeeds(id string) {
	w.t.Helper()
	w.until(id+" succeeds", func() bool {
		raw, state := w.status(id)
		if ended(state) && state != "succeeded" {
			w.t.Fatalf("%s: %s", id, raw)
		}
		return ended(state)
	})
}

// putBack waits until an execution was put back because of the worker.
func (w *world) putBack(id, why string) {
	w.t.Helper()
	inspector := asynq.NewInspectorFromRedisClient(w.rdb)
	w.until(id+" is put back", func() bool {
		info, err := inspector.GetTaskInfo("steps", id)
		return err == nil && info.State == asynq.TaskStateRetry && strings.HasPrefix(info.LastErr, "worker: ") && strings.Contains(info.LastErr, why)
	})
}

func (w *world) dump() []Key {
	w.t.Helper()
	keys, err := Dump(context.Background(), w.rdb)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := range keys {
		keys[i].TTL = 0
	}
	return keys
}

// What is stored is too new: a worker that is started touches nothing, one that
// runs takes nothing more, and both go on once they may.
func TestNewer_formatOfAllThatIsStored(t *testing.T) {
	w := newBooks(t)
	ctx := context.Background()
	w.must(built().enqueue, []object{step("e1", "active", "get", nil), step("e2", "dead-1", "get", nil)})
	w.rdb.HSet(ctx, "stepworker:schema", "format", 99, "oldest", 98, "build", "v9.9.9")
	before := w.dump()
	p := w.start()
	p.unready("only builds that know format 98 or a later one may work on it")
	for _, args := range [][]string{{"credential", "put"}, {"credential", "get", "active"}, {"key", "rotate"}} {
		if out, ok := w.run(built().worker, nil, args...); ok || !strings.Contains(out, "upgrade this worker") {
			t.Errorf("worker %v: %s", args, out)
		}
	}
	if diff := cmp.Diff(before, w.dump()); diff != "" {
		t.Errorf("something was touched (-before +after):\n%s", diff)
	}
	w.rdb.Del(ctx, "stepworker:schema")
	w.succeeds("e1")
	w.succeeds("e2")
	p.ready()

	w.rdb.HSet(ctx, "stepworker:schema", "format", 99, "oldest", 98)
	p.unready("upgrade this worker")
	w.must(built().enqueue, []object{step("e3", "active", "get", nil)})
	out, _ := w.run(built().enqueue, nil, "--wait", "--timeout", "2s", "--credential", "active", "--method", "get")
	if !strings.Contains(out, `"status":"pending"`) {
		t.Errorf("a step was taken: %s", out)
	}
	if _, state := w.status("e3"); state != "pending" {
		t.Errorf("e3 is %s", state)
	}
	w.rdb.HSet(ctx, "stepworker:schema", "format", 99, "oldest", jobs.Format)
	w.succeeds("e3")
	p.ready()
	if format := w.rdb.HGet(ctx, "stepworker:schema", "format").Val(); format != "99" {
		t.Errorf("the format fell to %s", format)
	}
}

// A sealed record of a newer build is no missing key: who needs it is put back,
// nothing is noted of it, and it is read once a build can.
func TestNewer_sealedRecord(t *testing.T) {
	w := newBooks(t)
	ctx := context.Background()
	p := w.start()
	p.ready()
	for _, id := range []string{"active", "dead-1"} {
		key := "stepworker:cred:{" + id + "}"
		sealed := w.rdb.HGet(ctx, key, "sealed").Val()
		w.rdb.HSet(ctx, key, "sealed", "\x02"+sealed[1:])
		before := w.rdb.HGetAll(ctx, key).Val()
		w.must(built().enqueue, []object{step("e-"+id, id, "get", nil)})
		w.putBack("e-"+id, "stored by a newer build")
		p.unready("stored by a newer build")
		w.must(built().worker, nil, "credential", "get", id) // needs no secret
		_, _ = w.run(built().worker, nil, "credential", "refresh", id, "--timeout", "1s")
		if out, ok := w.run(built().worker, nil, "key", "rotate"); ok || !strings.Contains(out, "was sealed by a newer build") || strings.Contains(out, "no key opens") {
			t.Errorf("key rotate: %s", out)
		}
		if diff := cmp.Diff(before, w.rdb.HGetAll(ctx, key).Val()); diff != "" {
			t.Errorf("the record was changed (-before +after):\n%s", diff)
		}
		w.rdb.HSet(ctx, key, "sealed", sealed)
		w.succeeds("e-" + id)
		p.ready()
	}
	// Of all: the worker does not start.
	p.Kill()
	check := w.rdb.Get(ctx, "stepworker:check").Val()
	w.rdb.Set(ctx, "stepworker:check", "\x02"+check[1:], 0)
	p = w.start()
	p.unready("stepworker:check was stored by a newer build")
	w.rdb.Set(ctx, "stepworker:check", check, 0)
	p.ready()
}

// Payloads of a newer build are put back as they are.
func TestNewer_payloads(t *testing.T) {
	w := newBooks(t)
	ctx := context.Background()
	client := asynq.NewClientFromRedisClient(w.rdb)
	inspector := asynq.NewInspectorFromRedisClient(w.rdb)
	p := w.start()
	p.ready()
	enqueue := func(kind, queue, id, payload string) {
		t.Helper()
		if _, err := client.EnqueueContext(ctx, asynq.NewTask(kind, []byte(payload)), asynq.TaskID(id), asynq.Queue(queue), asynq.MaxRetry(1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	of := func(v string) string {
		return `{"v":` + v + `,"execution_id":"e","credential_id":"active","method":"get"}`
	}
	newer := strings.TrimSuffix(of("99"), "}") + `,"whatever":{"it":"is"}}`
	enqueue("step:run", "steps", "e", newer)
	w.putBack("e", "the payload's version is 99, this build reads up to 2")
	p.unready("the payload's version is 99")
	info, err := inspector.GetTaskInfo("steps", "e")
	if err != nil || string(info.Payload) != newer {
		t.Errorf("the payload is %s, %v", info.Payload, err)
	}
	refresh := `{"v":99,"credential_id":"dead-1","version":1,"kind":"something new"}`
	enqueue("credential:refresh", "refresh", "r", refresh)
	w.until("the refresh is put back", func() bool {
		info, err := inspector.GetTaskInfo("refresh", "r")
		return err == nil && info.State == asynq.TaskStateRetry && strings.Contains(info.LastErr, "worker: the payload's version is 99, this build reads up to 1") && string(info.Payload) == refresh
	})
	// What nobody ever wrote is no newer build's.
	enqueue("credential:refresh", "refresh", "odd", `{"credential_id":"dead-1","version":1,"kind":"something odd"}`)
	w.until("an odd one is archived", func() bool {
		info, err := inspector.GetTaskInfo("refresh", "odd")
		return err == nil && info.State == asynq.TaskStateArchived && strings.Contains(info.LastErr, `no refresh is of kind "something odd"`)
	})
	// A build that can read them has come.
	for queue, id := range map[string]string{"steps": "e", "refresh": "r"} {
		w.until(id+" is taken out", func() bool { return inspector.DeleteTask(queue, id) == nil }) // it may be active just now
	}
	enqueue("step:run", "steps", "e", of("2"))
	enqueue("credential:refresh", "refresh", "r", `{"v":1,"credential_id":"dead-1","version":1,"kind":"oauth2"}`)
	w.succeeds("e")
	w.until("the credential is renewed", func() bool {
		var s struct{ Version int }
		_ = json.Unmarshal([]byte(w.must(built().worker, nil, "credential", "get", "dead-1")), &s)
		return s.Version == 2
	})
	p.ready()
}

// What a newer build added to hashes and inside sealed credentials is still there
// after this build has worked on them.
func TestNewer_membersAreKept(t *testing.T) {
	w := newBooks(t)
	ctx := context.Background()
	keys, err := credentials.ParseKeys(w.keys)
	if err != nil {
		t.Fatal(err)
	}
	store := credentials.NewStore(w.rdb, keys)
	purpose := func(version string) string { return "credential\x00dead-1\x00books\x00" + version }
	const cred = "stepworker:cred:{dead-1}"
	plain, err := store.Open(purpose("1"), []byte(w.rdb.HGet(ctx, cred, "sealed").Val()))
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := store.Seal(purpose("1"), append(plain[:len(plain)-1], `,"added":{"later":[1,2]}}`...))
	if err != nil {
		t.Fatal(err)
	}
	w.rdb.HSet(ctx, cred, "sealed", sealed, "added", "too")
	w.must(built().enqueue, []object{step("e", "dead-1", "remember", nil)})
	w.rdb.HSet(ctx, "stepworker:x:{e}", "added", "too")
	p := w.start()
	w.until("the API has refused it, and it waits", func() bool {
		return w.rdb.HGet(ctx, "stepworker:x:{e}", "pv").Val() != "" || w.rdb.HGet(ctx, cred, "v").Val() == "2"
	})
	w.succeeds("e")
	p.ready()
	plain, err = store.Open(purpose("2"), []byte(w.rdb.HGet(ctx, cred, "sealed").Val()))
	var now map[string]json.RawMessage
	if err != nil || json.Unmarshal(plain, &now) != nil || string(now["added"]) != `{"later":[1,2]}` {
		t.Errorf("inside the sealed record: %v, %s", err, now["added"])
	}
	if v := w.rdb.HGet(ctx, cred, "added").Val(); v != "too" {
		t.Errorf("in its hash: %q", v)
	}
}

// Operators see which builds run.
func TestWorkers_tellTheirBuild(t *testing.T) {
	w := newBooks(t)
	p := w.start()
	p.ready()
	var all []jobs.WorkerInfo
	w.until("the worker is listed", func() bool {
		var one jobs.WorkerInfo
		all = nil
		for line := range strings.Lines(w.must(built().worker, nil, "version", "--running")) {
			if json.Unmarshal([]byte(line), &one) == nil {
				all = append(all, one)
			}
		}
		return len(all) == 1 && all[0].Build != ""
	})
	if all[0].PID != p.Cmd.Process.Pid || all[0].Format != jobs.Format || !strings.HasPrefix(all[0].Build, "dev, commit ") {
		t.Errorf("%+v", all[0])
	}
	// One that tells nothing is of before builds did.
	w.rdb.Set(context.Background(), "stepworker:build:"+all[0].Host+":1", "x", 0)
	if out := w.must(built().worker, nil, "version", "--running"); strings.Count(out, "\n") != 1 {
		t.Errorf("what is not running is listed: %s", out)
	}
}
