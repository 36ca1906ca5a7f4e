package failover

import (
	"strings"
	"testing"

	"github.com/stepworker/stepworker/internal/cli"
	"github.com/stepworker/stepworker/internal/redistest"
)

// What is wrong with where Redis is said to be is told at once, and without a password.
func TestOpen_mistakes(t *testing.T) {
	if testing.Short() {
		t.Skip("twelve servers")
	}
	t.Parallel()
	c := redistest.NewCluster(t, redistest.Options{Password: "redis-secret"})
	s := redistest.NewSentinels(t, redistest.Options{Password: "redis-secret", SentinelPassword: "watch-secret"})
	first, server := s.Sentinels[0].Addr, c.Servers[0].Addr
	right := "redis-sentinel://:watch-secret@" + first + "/0?master=" + redistest.MasterName
	for name, mistake := range map[string]struct{ url, want string }{
		"one server of a cluster":     {"redis://:redis-secret@" + server, "is one of 3 masters of a cluster; redis-cluster://" + server},
		"a sentinel":                  {"redis://:watch-secret@" + first, "is a sentinel; redis-sentinel://" + first + "/0?master=NAME"},
		"no cluster":                  {"redis-cluster://:redis-secret@" + s.Servers[0].Addr, "cluster support disabled"},
		"the cluster's password":      {"redis-cluster://:wrong-secret@" + server, "WRONGPASS"},
		"no password of the cluster":  {"redis-cluster://" + server, "NOAUTH"},
		"another master":              {strings.ReplaceAll(right, "="+redistest.MasterName, "=other"), "no sentinel that can be reached knows that master"},
		"a dead sentinel":             {"redis-sentinel://127.0.0.1:1/0?master=" + redistest.MasterName, "from the sentinels"},
		"redis' password is missing":  {right, "redis itself gets username= and password="},
		"redis' password":             {right + "&password=wrong-secret", "WRONGPASS"},
		"the sentinels' password":     {strings.ReplaceAll(right, "watch-secret", "wrong-secret") + "&password=redis-secret", "WRONGPASS"},
		"the sentinels want password": {strings.ReplaceAll(right, ":watch-secret@", "") + "&password=redis-secret", "NOAUTH"},
	} {
		o, err := cli.ParseRedis(mistake.url)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		rdb, err := cli.Open(t.Context(), o)
		if err == nil {
			_ = rdb.Close()
			t.Errorf("%s: it opens", name)
		} else if !strings.Contains(err.Error(), mistake.want) || strings.Contains(err.Error(), "-secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
