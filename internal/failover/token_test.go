package failover

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/redistest"
	"github.com/stepworker/stepworker/jobs"
)

// A token was renewed, its step has succeeded, and the master that knows of it is
// killed while its replicas are far behind: the worker that renewed it stores it
// anew, and no worker sends the spent one before that.
func TestToken_thatTheNewMasterLacks(t *testing.T) {
	t.Parallel()
	for kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, kind, redistest.Options{})
			const key = "stepworker:cred:{c}"
			w.put("c", "acme")
			w.start()
			w.start()
			master := w.redis.holder(key)
			soon := time.Now().Add(4 * time.Second)
			known := jobs.Step{ExecutionID: "known", CredentialID: "c", Method: "list", ProcessAt: &soon}
			// Of a cluster, one whose end is not lost, too.
			for i := 0; kind == "cluster" && w.redis.holder("stepworker:x:{"+known.ExecutionID+"}") == master; i++ {
				known.ExecutionID = "known-" + strconv.Itoa(i)
			}
			w.accept(known)
			replicas := w.redis.replicas(key)
			told := master.Info("master_repl_offset")
			for _, r := range replicas {
				w.until("the replica knows the credential and the step", func() bool { return number(r.Info("master_repl_offset")) >= number(told) })
			}
			thaw := freeze(replicas)
			// More than the connections to them hold, which they read once they thaw:
			// what is written after it stays with the master.
			if _, err := master.Do("SET", "fill:{c}", strings.Repeat("x", 32<<20)); err != nil {
				t.Fatal(err)
			}
			before := number(master.Info("master_repl_offset"))
			w.api.KillToken("c")
			w.until("the token is renewed", func() bool {
				s, err := w.store.Status(t.Context(), "c")
				return err == nil && s.Version == 2
			})
			for _, n := range []int64{1, 0} { // it outlives the question
				w.until("the worker has asked the replicas, and none has acknowledged it", func() bool {
					found, err := w.rdb.Exists(t.Context(), key+":confirm").Result()
					return err == nil && found == n
				})
			}
			master.Kill()
			thaw()
			now := w.redis.replaced(key, master)
			if had := number(now.Info("second_repl_offset")) - 1; had <= 0 || had >= before {
				t.Fatalf("the new master was told of %d bytes, and should lack what follows %d", had, before)
			}
			steps := map[string]jobs.Step{known.ExecutionID: known}
			for i := range 10 {
				id := "next-" + strconv.Itoa(i)
				steps[id] = jobs.Step{ExecutionID: id, CredentialID: "c", Method: "list"}
				w.accept(steps[id])
			}
			w.until("the token is stored anew", func() bool {
				if w.api.Reused() > 0 {
					t.Fatal("the spent token was sent")
				}
				s, err := w.store.Status(t.Context(), "c")
				return err == nil && s.Version == 2
			})
			results, _ := w.results(steps)
			for id, r := range results {
				if r.Status != jobs.Succeeded {
					t.Errorf("%s: %s %+v", id, r.Status, r.Error)
				}
			}
			if s, err := w.store.Status(t.Context(), "c"); err != nil || s.Version != 2 || s.State != credentials.Active {
				t.Errorf("got %+v, %v", s, err)
			}
			if asked, spent := w.api.TokenRequests("c"), w.api.Reused(); asked != 1 || spent != 0 {
				t.Errorf("%d token requests, %d of them with a spent token", asked, spent)
			}
		})
	}
}

func number(text string) int64 {
	n, _ := strconv.ParseInt(text, 10, 64)
	return n
}

// A replica that is gone is nobody's concern. /readyz tells that a master is gone,
// whichever it is, and that another took its place.
func TestReady_onlyWithEveryMaster(t *testing.T) {
	t.Parallel()
	for kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, kind, redistest.Options{})
			p := w.start()
			key, queues := "", w.redis.holder("asynq:queues")
			for i := 0; key == "" || kind == "cluster" && w.redis.holder(key) == queues; i++ {
				key = strconv.Itoa(i)
			}
			// Without a replica all goes on.
			w.redis.replicas("asynq:queues")[0].Kill()
			w.put("c", "acme")
			if out := w.must("", "enqueue", "--credential", "c", "--method", "list", "--wait"); !strings.Contains(out, `"succeeded"`) || readyz(p) != 200 {
				t.Errorf("/readyz says %d, enqueue %s", readyz(p), out)
			}
			master := w.redis.holder(key)
			heal := w.redis.strand(key)
			master.Kill()
			w.until("the worker is not ready", func() bool { return readyz(p) == 503 })
			heal()
			w.redis.replaced(key, master)
			w.until("the worker is ready again", func() bool { return readyz(p) == 200 })
		})
	}
}
