package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hibiken/asynq"
	"github.com/spf13/pflag"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/cli"
	"github.com/stepworker/stepworker/jobs"
)

// open opens a worker that takes no tasks, with one connector file.
func open(t *testing.T, connector string) *Worker {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "c.yaml"), []byte(connector), 0o600); err != nil {
		t.Fatal(err)
	}
	c := &config{log: &cli.Log{Level: "info"}}
	c.add(pflag.NewFlagSet("", pflag.ContinueOnError))
	c.connectors, c.http = dir, "127.0.0.1:0"
	c.queueWeights = map[string]int{"steps": 1}
	env, err := openDev(context.Background(), c, io.Discard, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(env.Close)
	return env.worker
}

func (w *Worker) get(t *testing.T, path string) string {
	t.Helper()
	res, err := http.Get("http://" + w.Addr + path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatal(res.Status, err)
	}
	return string(body)
}

// Whatever member a secret of the credential stands in, and however it is
// written: no page shows it.
func TestDashboard_masksTheSecretsOfTheCredential(t *testing.T) {
	w := open(t, `
connector: acme
base_url: https://acme.example
auth: {type: api_key, name: X-Key}
parameters:
  - {name: pin, target: query_string, property: account, sensitive: true}
methods:
  - method: get
    verb: GET
    endpoint: /
    parameters:
      - {name: answer, target: query_string, optional: true, sensitive: true}
`)
	const key, pin, answer = `k3y/with+<odd> "characters"`, "pin-of-account", "answer-of-step"
	ctx := context.Background()
	in, err := credentials.DecodeInput([]byte(fmt.Sprintf(`{"credential_id":"c","connector":"acme","api_key":%q,"properties":{"pin":%q,"domain":"eu1-north"}}`, key, pin)))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.store.Put(ctx, in, false); err != nil {
		t.Fatal(err)
	}
	quoted, err := json.Marshal(key)
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]string{"plain": key, "url": url.QueryEscape(key), "base64": base64.StdEncoding.EncodeToString([]byte("user:" + key)),
		"json": string(quoted), key: "a member's name", "pin": pin, "answer": answer, "domain": "eu1-north"}
	body, err := json.Marshal(said)
	if err != nil {
		t.Fatal(err)
	}
	step := jobs.Step{CredentialID: "c", Method: "get", Tag: key, Body: body, Parameters: map[string]json.RawMessage{"answer": json.RawMessage(`"` + answer + `"`)}}
	client := jobs.NewClient(w.rdb)
	for id, queue := range map[string]string{"waits": "steps", "later": "steps", "ended": "steps", "fails": "other"} {
		s := step
		s.ExecutionID, s.Queue = id, queue
		if id == "later" {
			at := time.Now().Add(time.Hour)
			s.ProcessAt = &at
		}
		if _, err := client.Enqueue(ctx, &s); err != nil {
			t.Fatal(err)
		}
	}
	inspector := asynq.NewInspectorFromRedisClient(w.rdb)
	if err := inspector.ArchiveTask("steps", "ended"); err != nil {
		t.Fatal(err)
	}
	result, err := json.Marshal(jobs.Result{ExecutionID: "ended", CredentialID: "c", Status: jobs.Failed, Content: body, Error: &jobs.ResultError{Message: "not " + key}})
	if err != nil {
		t.Fatal(err)
	}
	w.rdb.HSet(ctx, "stepworker:x:{ended}", "end", "failed")
	w.rdb.Set(ctx, "stepworker:r:{ended}", result, 0)
	server := asynq.NewServerFromRedisClient(w.rdb, asynq.Config{Queues: map[string]int{"other": 1}, LogLevel: asynq.FatalLevel})
	if err := server.Start(asynq.HandlerFunc(func(context.Context, *asynq.Task) error { return errors.New("refused: " + key) })); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if info, err := inspector.GetTaskInfo("other", "fails"); err == nil && info.State == asynq.TaskStateRetry {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the task does not fail")
		}
	}
	server.Shutdown()

	for name, path := range map[string]string{
		"pending": "steps/pending_tasks", "scheduled": "steps/scheduled_tasks", "archived": "steps/archived_tasks", "retry": "other/retry_tasks",
		"one that waits": "steps/tasks/waits", "one that ended": "steps/tasks/ended", "one that fails": "other/tasks/fails",
	} {
		t.Run(name, func(t *testing.T) {
			page := w.get(t, "/monitoring/api/queues/"+path)
			if !strings.Contains(page, "eu1-north") {
				t.Fatalf("nothing is shown: %s", page)
			}
			if ended := strings.Contains(name, "ended") || name == "archived"; ended && !strings.Contains(page, "not [redacted]") {
				t.Errorf("no result is shown: %s", page)
			}
			if fails := strings.Contains(name, "fails") || name == "retry"; fails && !strings.Contains(page, "refused: [redacted]") {
				t.Errorf("no error is shown: %s", page)
			}
			for _, secret := range []string{"characters", "k3y", base64.StdEncoding.EncodeToString([]byte(key))[4:12], pin, answer} {
				if strings.Contains(page, secret) {
					t.Errorf("%q is shown: %s", secret, page)
				}
			}
		})
	}
}

func TestMask_byName(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"text":           {`{"password":"a"}`, `{"password":"[redacted]"}`},
		"a number":       {`{"pin_token":1}`, `{"pin_token":"[redacted]"}`},
		"a list":         {`{"x":{"api_keys":["a","b"]}}`, `{"x":{"api_keys":"[redacted]"}}`},
		"an object":      {`[{"Authorization":{"a":"b"}}]`, `[{"Authorization":"[redacted]"}]`},
		"null":           {`{"session":null}`, `{"session":null}`},
		"other members":  {`{"credential_id":"a","n":12345678901234567890,"t":"<&>"}`, `{"credential_id":"a","n":12345678901234567890,"t":"<&>"}`},
		"nothing":        {``, ``},
		"no JSON at all": {`password=a`, `[not JSON]`},
	} {
		t.Run(name, func(t *testing.T) {
			got := strings.NewReplacer("\n", "", "  ", "", `": `, `":`).Replace(mask([]byte(c.in)))
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// The page of servers names tasks by another member than the other pages do.
func TestDashboard_masksWhatARunningStepBrings(t *testing.T) {
	called, done := make(chan struct{}, 1), make(chan struct{})
	api := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { called <- struct{}{}; <-done }))
	defer api.Close()
	w := open(t, `
connector: acme
base_url: `+api.URL+`
methods: [{method: get, endpoint: /, parameters: [{name: answer, target: query_string, sensitive: true}]}]
`)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- w.Run(ctx) }()
	defer func() {
		close(done)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	in, err := credentials.DecodeInput([]byte(`{"credential_id":"c","connector":"acme"}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.store.Put(ctx, in, false); err != nil {
		t.Fatal(err)
	}
	step := jobs.Step{CredentialID: "c", Method: "get", Tag: "eu1-north canary-text", Parameters: map[string]json.RawMessage{"answer": json.RawMessage(`"canary-text"`)}}
	if _, err := jobs.NewClient(w.rdb).Enqueue(ctx, &step); err != nil {
		t.Fatal(err)
	}
	<-called
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) { // servers tell every few seconds what they run
		page := w.get(t, "/monitoring/api/servers")
		if strings.Contains(page, "canary") {
			t.Fatalf("shown: %s", page)
		}
		if strings.Contains(page, "eu1-north") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the step is not shown: %s", page)
		}
	}
}

// What a step brings for a sensitive parameter is hidden in whatever form it
// comes, also once its credential is gone and nobody knows the connector.
func TestDashboard_masksWhatAStepBrings(t *testing.T) {
	w := open(t, `
connector: acme
base_url: https://acme.example
parameters:
  - {name: answer, target: query_string, optional: true, sensitive: true}
methods: [{method: get, endpoint: /}]
`)
	ctx := context.Background()
	in, err := credentials.DecodeInput([]byte(`{"credential_id":"c","connector":"acme"}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.store.Put(ctx, in, false); err != nil {
		t.Fatal(err)
	}
	for _, sealed := range []bool{false, true} { // without: a flow may use asynq alone
		if sealed {
			if err := w.store.OfferStepSealing(ctx, w.catalog.Sensitive()); err != nil {
				t.Fatal(err)
			}
		} else if err := w.rdb.Del(ctx, "stepworker:step_key").Err(); err != nil {
			t.Fatal(err)
		}
		client := jobs.NewClient(w.rdb)
		for _, id := range []string{"c", "gone"} {
			for _, answer := range []string{`"canary-text"`, `["canary one","canary two"]`, `{"a":["canary/three"]}`, `123456789`} {
				step := jobs.Step{CredentialID: id, Method: "get", Tag: "eu1-north " + answer, Parameters: map[string]json.RawMessage{"answer": json.RawMessage(answer)}}
				if _, err := client.Enqueue(ctx, &step); err != nil {
					t.Fatal(err)
				}
			}
			step := jobs.Step{CredentialID: id, Method: "get", Mappings: map[string]string{"parameters.answer": "canary-mapped"}}
			if _, err := client.Enqueue(ctx, &step); err != nil {
				t.Fatal(err)
			}
		}
	}
	page := w.get(t, "/monitoring/api/queues/steps/pending_tasks")
	if strings.Count(page, "eu1-north") != 16 || strings.Contains(page, "canary") || strings.Contains(page, "123456789") {
		t.Errorf("shown: %s", page)
	}
}
