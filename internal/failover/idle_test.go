package failover

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stepworker/stepworker/internal/redistest"
	"github.com/stepworker/stepworker/jobs"
)

// Sentinels tell a master that is well only after some ten seconds that another
// one took its place. Until then it has nothing for who waits there: idle workers
// leave it before.
func TestIdle_leaveTheOldMaster(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "sentinel", redistest.Options{})
	w.put("c", "acme")
	w.start()
	old := w.redis.holder("")
	waiting := func() int {
		clients, _ := old.Do("CLIENT", "LIST")
		return strings.Count(fmt.Sprint(clients), " cmd=blmove ")
	}
	w.until("idle workers wait in Redis", func() bool { return waiting() > 0 })
	w.redis.order("")
	w.redis.replaced("", old)
	w.until("nobody waits at the old master", func() bool { return waiting() == 0 })
	if role := old.Info("role"); role != "master" {
		t.Errorf("they left it when it had become a %s", role)
	}
	s := jobs.Step{ExecutionID: "next", CredentialID: "c", Method: "list"}
	w.accept(s)
	if r, _ := w.results(map[string]jobs.Step{s.ExecutionID: s}); r[s.ExecutionID].Status != jobs.Succeeded {
		t.Errorf("%+v", r[s.ExecutionID])
	}
}
