package flows_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/jobs"
)

const connector = `connector: own
base_url: "{{base}}"
auth: {type: api_key, name: X-Key, refresh_on: [401]}
parameters: [{name: base, target: merge_field, property: account}]
methods:
  - {method: quick, endpoint: /quick, parameters: [{name: pin, target: query_string, optional: true, sensitive: true}]}
  - {method: hangs, endpoint: /hangs}
`

// lines are the ACL lines of docs/security.md: one for every Redis, and one for
// Redis 7, which can allow to read alone.
func lines(t *testing.T) (any, seven []string) {
	t.Helper()
	raw, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^ACL SETUSER flow reset .*$`).FindAllString(string(raw), -1)
	if len(found) != 2 || strings.Contains(found[0], "%R~") || !strings.Contains(found[1], "%R~") {
		t.Fatalf("docs/security.md has these lines: %q", found)
	}
	return strings.Fields(found[0]), strings.Fields(found[1])
}

// userOf creates the user of a line.
func (r *rig) userOf(line []string) *flow {
	r.t.Helper()
	args := make([]any, len(line))
	for i, word := range line {
		args[i] = word
	}
	if err := r.rdb.Do(context.Background(), args...).Err(); err != nil {
		r.t.Fatal(err)
	}
	return &flow{rig: r, user: "flow", password: "password"}
}

func newFlowRig(t *testing.T) *rig {
	t.Helper()
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hangs" {
			<-r.Context().Done()
			return
		}
		_, _ = fmt.Fprintf(w, `{"pin": %q}`, r.URL.Query().Get("pin"))
	}))
	t.Cleanup(func() { api.CloseClientConnections(); api.Close() })
	r := newRig(t, connector, api)
	r.worker()
	r.until("it says what is to be sealed", func() bool {
		return r.rdb.SCard(context.Background(), "stepworker:step_sealed").Val() > 0
	})
	return r
}

// Everything that a flow does works with the rights that docs/security.md names.
func TestFlowUser_may(t *testing.T) {
	sixTwo, seven := lines(t)
	for name, line := range map[string][]string{"6.2": sixTwo, "7": seven} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFlowRig(t).userOf(line)
			well := func(exit int, out []map[string]any, stderr string) []map[string]any {
				t.Helper()
				if exit != 0 {
					t.Fatalf("exit %d: %v %s", exit, out, stderr)
				}
				return out
			}
			out := well(f.enqueue("", "--credential", "c", "--method", "quick", "--parameter", "pin=1234-secret", "--wait"))
			if got, _ := json.Marshal(out[1]["content"]); out[1]["status"] != "succeeded" || string(got) != `{"pin":"1234-secret"}` {
				t.Errorf("got %v", out)
			}
			if bytes.Contains(f.redis.Dump(), []byte(`"parameters":{"pin":"1234-secret"`)) {
				t.Error("the sensitive parameter was not sealed")
			}
			var batch strings.Builder
			for i := range 1000 {
				fmt.Fprintf(&batch, `{"execution_id": "b%d", "credential_id": "c", "method": "quick"}`+"\n", i)
			}
			if out = well(f.enqueue(batch.String(), "--wait")); len(out) != 2000 {
				t.Errorf("%d lines", len(out))
			}
			if out = well(f.enqueue(batch.String())); out[0]["status"] != "duplicate" {
				t.Errorf("got %v", out[0])
			}
			out = well(f.enqueue(`{"execution_id": "later", "credential_id": "c", "method": "quick", "process_at": "2099-01-01T00:00:00Z", "reply_to": {"queue": "flows", "type": "done"}}
{"execution_id": "active", "credential_id": "c", "method": "hangs", "reply_to": {"queue": "flows", "type": "done"}}`))
			if len(out) != 2 {
				t.Errorf("got %v", out)
			}
			f.until("one is active", func() bool {
				return well(f.enqueue("", "--status", "active"))[0]["status"] == "active"
			})
			if out = well(f.enqueue("", "--status", "later")); out[0]["status"] != "scheduled" || out[0]["credential"] != nil {
				t.Errorf("got %v", out)
			}
			for _, line := range well(f.enqueue("", "--cancel", "later", "active")) {
				if line["status"] != "cancelled" {
					t.Errorf("got %v", line)
				}
			}
			f.replies(t, 2)
			f.package_(t)
		})
	}
}

// replies has the flow read its queue, with its own user and asynq.
func (f *flow) replies(t *testing.T, n int) {
	t.Helper()
	o, err := redis.ParseURL(f.url())
	if err != nil {
		t.Fatal(err)
	}
	rdb := redis.NewClient(o)
	t.Cleanup(func() { rdb.Close() })
	came := make(chan string, n)
	server := asynq.NewServerFromRedisClient(rdb, asynq.Config{Queues: map[string]int{"flows": 1}, TaskCheckInterval: 50 * time.Millisecond, LogLevel: asynq.FatalLevel})
	err = server.Start(asynq.HandlerFunc(func(_ context.Context, t *asynq.Task) error {
		came <- string(t.Payload())
		return nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Shutdown()
	for range n {
		select {
		case reply := <-came:
			if !strings.Contains(reply, `"status":"cancelled"`) {
				t.Errorf("got %s", reply)
			}
		case <-time.After(time.Minute):
			t.Fatal("the replies do not come")
		}
	}
}

// package_ uses package jobs, as a flow written in Go does.
func (f *flow) package_(t *testing.T) {
	t.Helper()
	o, err := redis.ParseURL(f.url())
	if err != nil {
		t.Fatal(err)
	}
	rdb := redis.NewClient(o)
	defer rdb.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client := jobs.NewClient(rdb)
	at := time.Now().Add(time.Hour)
	r, err := client.Enqueue(ctx, &jobs.Step{CredentialID: "c", Method: "quick", ProcessAt: &at, Parameters: map[string]json.RawMessage{"pin": []byte(`"1"`)}})
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Cancel(ctx, r.ExecutionID); err != nil {
		t.Fatal(err)
	}
	if err := client.Wait(ctx, []string{r.ExecutionID}, func(*jobs.Result) error { return nil }); err != nil {
		t.Fatal(err)
	}
	results, err := client.Results(ctx, []string{r.ExecutionID, "b1"})
	if err != nil || len(results) != 2 || results[r.ExecutionID].Status != jobs.Cancelled {
		t.Errorf("got %v, %v", results, err)
	}
	if workers, err := client.Workers(ctx); err != nil || len(workers) == 0 {
		t.Errorf("got %v, %v", workers, err)
	}
}

// A flow reads and changes nothing but what is its own.
func TestFlowUser_mayNot(t *testing.T) {
	t.Parallel()
	sixTwo, seven := lines(t)
	everywhere := []string{
		"HGETALL stepworker:cred:{c}", "DEL stepworker:cred:{c}", "HSET stepworker:cred:{c} v 9", "GET stepworker:cred:{c}:version",
		"ZADD stepworker:cred:{c}:waiting 1 x", "SMEMBERS stepworker:credentials", "SADD stepworker:waiting c", "GET stepworker:check", "SET stepworker:check x",
		"GET stepworker:data_key", "HGETALL stepworker:data:{own}", "HGETALL stepworker:pages:{b1}", "SET stepworker:hold 1", "DEL stepworker:sweeper",
		"HGETALL stepworker:sealing", "HGETALL stepworker:line:{c}", "DEL stepworker:lines", "LRANGE stepworker:cred:{c}:notices 0 -1", "GET stepworker:auth_style:own",
		"HGETALL stepworker:client:{x}", "RENAME stepworker:cred:{c} stepworker:x:{mine}", "COPY stepworker:cred:{c} stepworker:x:{mine}", "GET elsewhere",
		"EVAL return(redis.call('HGETALL',KEYS[1])) 1 stepworker:cred:{c}", "EVAL return(redis.call('HGETALL','stepworker:cred:{c}')) 0",
		"KEYS *", "SCAN 0", "DBSIZE", "RANDOMKEY", "FLUSHALL", "FLUSHDB", "SWAPDB 0 1", "CONFIG GET *", "CONFIG SET dir /tmp", "ACL LIST", "ACL SETUSER flow +@all", "ACL WHOAMI",
		"SHUTDOWN", "SAVE", "BGSAVE", "BGREWRITEAOF", "MONITOR", "CLIENT LIST", "CLIENT KILL TYPE normal", "CLIENT PAUSE 1", "INFO", "SLOWLOG GET", "REPLICAOF NO ONE",
		"SCRIPT FLUSH", "SCRIPT KILL", "FUNCTION LIST", "MODULE LIST", "MEMORY USAGE asynq:queues", "SORT asynq:queues BY nosort GET stepworker:cred:*",
		"PUBLISH stepworker:cancel x", "SUBSCRIBE stepworker:cancel", "PSUBSCRIBE *", "BLPOP asynq:x 0", "DUMP stepworker:x:{b1}",
	}
	for name, c := range map[string]struct{ line, more []string }{
		"6.2": {sixTwo, nil},
		"7":   {seven, []string{"HSET stepworker:step_key public x", "DEL stepworker:step_sealed", "SET stepworker:r:{b1} x", "DEL stepworker:r:{b1}"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, connector, httptest.NewServer(http.NotFoundHandler()))
			f := r.userOf(c.line)
			o, err := redis.ParseURL(f.url())
			if err != nil {
				t.Fatal(err)
			}
			o.MaxRetries = -1
			rdb := redis.NewClient(o)
			defer rdb.Close()
			for _, command := range append(everywhere, c.more...) {
				var args []any
				for _, word := range strings.Fields(command) {
					args = append(args, word)
				}
				if err := rdb.Do(context.Background(), args...).Err(); err == nil || !strings.Contains(err.Error(), "NOPERM") && !strings.Contains(err.Error(), "The user executing the script can't") {
					t.Errorf("%s: %v", command, err)
				}
			}
		})
	}
}

// Where a right is missing a sentence says so.
func TestFlowUser_missingRight(t *testing.T) {
	t.Parallel()
	line, _ := lines(t)
	r := newFlowRig(t)
	const sentence = "this Redis user lacks a right that steps need, docs/security.md names them all: "
	step := `{"execution_id": "e%d", "credential_id": "c", "method": "quick", "parameters": {"pin": "1"}, "process_at": "2099-01-01T00:00:00Z"}`
	cases := map[string][]string{
		"~asynq:*":             {"enqueue", "status", "cancel"},
		"~stepworker:x:*":      {"enqueue", "status", "cancel"},
		"~stepworker:r:*":      {"cancel"}, // of one that has not ended the status is known
		"~stepworker:step_*":   {"enqueue"},
		"+evalsha":             {"enqueue", "status", "cancel"},
		"~stepworker:underway": {}, // only the level of its queue is not known
	}
	n := 0
	for right, fail := range cases {
		var less []string
		for _, word := range line {
			if !strings.HasPrefix(word, right) {
				less = append(less, word)
			}
		}
		if len(less) != len(line)-1 {
			t.Fatalf("%s does not stand in the line once", right)
		}
		if exit, out, stderr := r.userOf(line).enqueue(fmt.Sprintf(step, n)); exit != 0 || len(out) != 1 {
			t.Fatalf("exit %d, %v %s", exit, out, stderr)
		}
		f := r.userOf(less)
		n++
		before := fmt.Sprintf("e%d", n-1)
		for _, args := range [][]string{{"enqueue"}, {"status", "--status", before}, {"cancel", "--cancel", before, "--timeout", "30s"}} { // what is cancelled has a status of its own
			what, args := args[0], args[1:]
			exit, out, stderr := f.enqueue(fmt.Sprintf(step, n), args...)
			said := strings.Contains(stderr, sentence)
			for _, line := range out {
				text, _ := line["error"].(string)
				said = said || strings.HasPrefix(text, sentence)
			}
			want := false
			for _, w := range fail {
				want = want || w == what
			}
			if want && (!said || exit == 0) {
				t.Errorf("without %s: %s: exit %d, %v %s", right, what, exit, out, stderr)
			}
			if !want && (said || exit != 0) {
				t.Errorf("without %s: %s: %v %s", right, what, out, stderr)
			}
		}
		n++
	}
}
