package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/jobs"
)

// vault stores data, and keeps action_data over a refresh.
const vault = `
connector: vault
base_url: "{{base}}"
auth: {type: oauth2, grant: authorization_code, token_url: "{{base}}/oauth/token"}
parameters: [{name: base, target: merge_field, property: account}]
script: |
  function before_action() {
    action_data.begun = (action_data.begun || 0) + 1;
    return true;
  }
  function after_error() {
    if (method_error.statusCode.toString() === '403') { throw new AuthRefreshException(); }
    return true;
  }
  function after_action() {
    method_response = {begun: action_data.begun, count: cyclr_storage_increment('count')};
    return true;
  }
methods:
  - {method: keep, verb: GET, endpoint: /crm/contacts, idempotency_header: Idempotency-Key}
`

func (w *world) useKeys(keys string) {
	w.t.Helper()
	ring, err := credentials.ParseKeys(keys)
	if err != nil {
		w.t.Fatal(err)
	}
	w.key, w.store = keys, credentials.NewStore(w.rdb, ring)
}

// rotate runs `worker key rotate` with the world's keys.
func (w *world) rotate(env ...string) (stdout string, err error) {
	w.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command(exe, "key", "rotate")
	cmd.Env = append(os.Environ(), append(env, asWorker+"=1", "STEPWORKER_REDIS="+w.redis.URL, "STEPWORKER_KEYS="+w.key)...)
	out, err := cmd.Output()
	return string(out), err
}

// sealedWith counts the values in Redis that a key sealed, wherever they stand.
func (w *world) sealedWith(key string) (where []string) {
	w.t.Helper()
	ctx := context.Background()
	ring, err := credentials.ParseKeys(key)
	if err != nil {
		w.t.Fatal(err)
	}
	var id [4]byte
	if _, err := fmt.Sscanf(ring.Fingerprints()[0], "%02x%02x%02x%02x", &id[0], &id[1], &id[2], &id[3]); err != nil {
		w.t.Fatal(err)
	}
	mark := "\x01" + string(id[:])
	it := w.rdb.Scan(ctx, 0, "*", 1000).Iterator()
	for it.Next(ctx) {
		dump, err := w.rdb.Dump(ctx, it.Val()).Result()
		if err == nil && strings.Contains(dump, mark) {
			where = append(where, it.Val())
		}
	}
	if err := it.Err(); err != nil {
		w.t.Fatal(err)
	}
	return where
}

// Keys are replaced under load: tokens die and are renewed, scripts store data,
// executions are held with their action_data; the rotation itself is killed.
func TestKeyRotate_underLoadNoStepFails(t *testing.T) {
	if testing.Short() {
		t.Skip("worker processes")
	}
	t.Parallel()
	w := newWorld(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "vault.yaml"), []byte(vault), 0o600); err != nil {
		t.Fatal(err)
	}
	old, fresh := w.key, credentials.NewKey()
	const many = 300
	id := func(i int) string { return fmt.Sprint("c", i) }
	for i := range many {
		w.put(id(i), "vault")
	}
	step := func(credential string) jobs.Step { return jobs.Step{CredentialID: credential, Method: "keep"} }

	// The old key alone: data is stored, and executions are held.
	first := w.start("", "--connectors", dir)
	w.succeed(w.enqueue(20, step(id(0))))
	w.put("held", "vault")
	w.api.Revoke("held")
	held := w.enqueue(30, step("held"))
	w.waiting("held", 30)
	begun, kept := map[string]int{}, 0 // those that were refused themselves keep action_data
	for _, execution := range held {
		w.until("it is written down that it is held", func() bool {
			return w.rdb.HGet(context.Background(), "stepworker:x:{"+execution+"}", "why").Val() == "held"
		})
		begun[execution] = 1
		if w.rdb.HGet(context.Background(), "stepworker:x:{"+execution+"}", "ad").Val() != "" {
			begun[execution] = 2
			kept++
		}
	}
	if kept == 0 {
		t.Fatal("no execution keeps action_data")
	}

	// Both keys, the old one first; a rolling restart follows.
	w.useKeys(old + "," + fresh)
	second := w.start("", "--connectors", dir)
	first.drain(w)
	<-first.Done
	stop := make(chan struct{})
	var loading sync.WaitGroup
	var loaded []string
	loading.Go(func() { loaded = w.load(stop, "keep", 20) })
	w.useKeys(fresh + "," + old)
	third := w.start("", "--connectors", dir)
	if _, err := w.rotate("STEPWORKER_KILL_AT=rotated-page#2"); err == nil {
		t.Error("the rotation was not killed")
	}
	out, err := w.rotate()
	if err == nil || !strings.Contains(out, "workers still seal with") {
		t.Errorf("a worker that seals with the old key still runs: %v\n%s", err, out)
	}
	second.drain(w)
	<-second.Done
	out, err = w.rotate()
	if err != nil || !strings.Contains(out, " may go") {
		t.Errorf("%v\n%s", err, out)
	}
	close(stop)
	loading.Wait()
	w.succeed(loaded)
	if where := w.sealedWith(old); len(where) > 0 {
		t.Errorf("sealed with the old key: %q", where)
	}
	if len(w.sealedWith(fresh)) < many {
		t.Error("nothing is found that the new key sealed")
	}

	// The new key alone.
	third.drain(w)
	<-third.Done
	w.useKeys(fresh)
	w.start("", "--connectors", dir)
	w.put("held", "vault")
	w.succeed(held)
	for _, execution := range held {
		w.content(execution, begun[execution], 0)
	}
	var all []string
	for i := range many {
		all = append(all, w.enqueue(1, step(id(i)))...)
	}
	w.succeed(all)
	w.content(all[0], 1, 21)
	w.content(all[many-1], 1, 1)
	refreshes := 0
	for i := range 20 {
		refreshes += w.api.TokenRequests(id(1 + i))
	}
	if refreshes < 10 || w.api.ServedTwice() != 0 || w.api.Reused() != 0 {
		t.Errorf("%d refreshes, %d served twice, %d spent tokens presented", refreshes, w.api.ServedTwice(), w.api.Reused())
	}
	t.Logf("%d steps while the keys were replaced, %d refreshes", len(loaded), refreshes)
}

// load enqueues steps of accounts c1 to cN in turn, each time with a token that
// has died, and returns all ids.
func (w *world) load(stop <-chan struct{}, method string, accounts int) (all []string) {
	ctx := context.Background()
	last := make([]string, accounts)
	for n := 0; ; n = (n + 1) % accounts {
		for last[n] != "" { // a token that dies again under the same executions would use up their refreshes
			if _, err := w.client.Result(ctx, last[n]); err == nil {
				break
			}
			select {
			case <-stop:
				return all
			case <-time.After(5 * time.Millisecond):
			}
		}
		select {
		case <-stop:
			return all
		default:
		}
		account := fmt.Sprint("c", 1+n)
		w.api.KillToken(account)
		r, err := w.client.Enqueue(ctx, &jobs.Step{CredentialID: account, Method: method})
		if err != nil {
			w.t.Error(err)
			return all
		}
		last[n] = r.ExecutionID
		all = append(all, r.ExecutionID)
	}
}

// content looks at what vault answered; count 0 is any.
func (w *world) content(execution string, begun, count int) {
	w.t.Helper()
	r, err := w.client.Result(context.Background(), execution)
	if err != nil {
		w.t.Fatal(err)
	}
	var got struct {
		Begun int         `json:"begun"`
		Count json.Number `json:"count"`
	}
	if err := json.Unmarshal(r.Content, &got); err != nil || got.Begun != begun || count > 0 && got.Count.String() != fmt.Sprint(count) {
		w.t.Errorf("%s: %s %v, want begun %d, count %d", execution, r.Content, err, begun, count)
	}
}

// A dry run tells records from workers: what is still sealed with another key,
// and who still seals with it.
func TestRotated_dryRunNamesWhoNeedsTheOtherKey(t *testing.T) {
	records := func(by map[string]int) *credentials.Rotation {
		return &credentials.Rotation{Kinds: []credentials.RotatedKind{{Kind: "credentials", Records: 3, By: by}}, Sealing: []string{"old"}}
	}
	for want, r := range map[string]*credentials.Rotation{
		"not every record opens with the first key (new): key old is still needed": records(map[string]int{"new": 2, "old": 1}),
		"workers still seal with old: restart them with new as their first key":    records(map[string]int{"new": 3}),
	} {
		if text, done := rotated(r, []string{"new", "old"}, true); done || !strings.Contains(text, want) {
			t.Errorf("want %q, got %t, %s", want, done, text)
		}
	}
}
