package failover

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stepworker/stepworker/internal/cli"
	"github.com/stepworker/stepworker/internal/redistest"
	"github.com/stepworker/stepworker/jobs"
)

// A flow's own user, with the rights that docs/security.md names, does all that
// enqueue offers, before a failover and after it.
func TestFlowUser_onSeveralServers(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	line := func(begin string) (words []any) {
		t.Helper()
		found := regexp.MustCompile(`(?m)^ACL SETUSER `+regexp.QuoteMeta(begin)+`.*$`).FindAllString(string(raw), -1)
		if len(found) == 0 {
			t.Fatalf("docs/security.md has no line ACL SETUSER %s…", begin)
		}
		for _, word := range strings.Fields(found[len(found)-1]) { // the last is for Redis 7
			words = append(words, word)
		}
		return words
	}
	for kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, kind, redistest.Options{})
			do := func(s *redistest.Server, args []any) {
				t.Helper()
				if _, err := s.Do(args...); err != nil {
					t.Fatal(err)
				}
			}
			w.put("c", "acme")
			w.start()
			switch r := w.redis.(type) {
			case sentinels:
				for _, s := range r.Servers {
					do(s, line("flow reset "))
				}
				for _, s := range r.Sentinels.Sentinels {
					do(s, line("watch reset "))
				}
				w.url = strings.Replace(r.URL, "://", "://watch:password@", 1) + "&username=flow&password=password"
			case cluster:
				for _, s := range r.Servers {
					do(s, line("flow reset "))
					do(s, line("flow +"))
				}
				w.url = strings.Replace(r.URL, "://", "://flow:password@", 1)
			}
			all := func() {
				t.Helper()
				out := w.must("", "enqueue", "--credential", "c", "--method", "list", "--wait")
				if !strings.Contains(out, `"succeeded"`) {
					t.Error(out)
				}
				if out := w.must("", "enqueue", "--status", between(out, `"execution_id":"`, `"`)); !strings.Contains(out, `"succeeded"`) {
					t.Error(out)
				}
				later := w.must(`{"credential_id":"c","method":"list","process_at":"2099-01-01T00:00:00Z"}`, "enqueue")
				if out := w.must(later, "enqueue", "--cancel", "-"); !strings.Contains(out, `"cancelled"`) {
					t.Error(out)
				}
			}
			o, err := cli.ParseRedis(w.url)
			if err != nil {
				t.Fatal(err)
			}
			rdb, err := cli.Open(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			defer rdb.Close()
			w.client = jobs.NewClient(rdb) // one that is there before and after
			all()
			if _, err := w.do("", "worker", "credential", "list"); err == nil || !strings.Contains(err.Error(), "NOPERM") {
				t.Errorf("the flow reads credentials: %v", err)
			}
			old := w.redis.holder(jobs.QueueSteps)
			w.redis.order(jobs.QueueSteps)
			w.redis.replaced(jobs.QueueSteps, old)
			s := jobs.Step{ExecutionID: "after", CredentialID: "c", Method: "list"}
			w.accept(s)
			if r, _ := w.results(map[string]jobs.Step{s.ExecutionID: s}); r[s.ExecutionID].Status != jobs.Succeeded {
				t.Errorf("%+v", r[s.ExecutionID])
			}
			all()
		})
	}
}
