package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/jobs"
)

// A worker is killed in the middle of a paged call, and one after its last
// page: others go on with the page it was at, and no page is asked for twice.
func TestPages_killedInTheMiddle(t *testing.T) {
	if testing.Short() {
		t.Skip("asynq takes a minute to notice a dead worker")
	}
	t.Parallel()
	w := newWorld(t)
	var mu sync.Mutex
	seen := map[string][]string{}
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		after := r.URL.Query().Get("after")
		mu.Lock()
		seen[r.URL.Path] = append(seen[r.URL.Path], after)
		mu.Unlock()
		rw.Header().Set("Content-Type", "application/json")
		n := len(after) + 1 // a token is as long as its page's number
		if n == 4 {
			fmt.Fprint(rw, `{"rows":[4]}`)
			return
		}
		fmt.Fprintf(rw, `{"rows":[%d],"next":%q}`, n, strings.Repeat("x", n))
	}))
	t.Cleanup(server.Close)
	dir := t.TempDir()
	file := `connector: paged
base_url: ` + server.URL + `
methods:
`
	for _, m := range []string{"second", "last"} {
		file += `  - method: ` + m + `
    endpoint: /` + m + `
    paging: {inbound: true}
    parameters:
      - {name: after, target: query_string, value: CYCLR_PAGE_TOKEN}
      - {name: next, target: response_field, value: CYCLR_PAGE_TOKEN}
    script: |
      function after_action() { action_data.n = (action_data.n || 0) + 1; }
      function after_action_paging() { method_response.n = action_data.n; }
`
	}
	if err := os.WriteFile(filepath.Join(dir, "paged.yaml"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	in, err := credentials.DecodeInput(json.RawMessage(`{"credential_id":"c","connector":"paged"}`))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.store.Put(t.Context(), in, false); err != nil {
		t.Fatal(err)
	}
	one := []string{"--connectors", dir, "--concurrency", "1"}
	ids := w.enqueue(1, jobs.Step{CredentialID: "c", Method: "second", MaxRetries: new(int)})
	first := w.start("page-kept#2", one...)
	<-first.Done
	ids = append(ids, w.enqueue(1, jobs.Step{CredentialID: "c", Method: "last", MaxRetries: new(int)})...)
	second := w.start("page-kept#4", one...)
	<-second.Done
	w.start("", "--connectors", dir)
	for _, r := range w.results(ids) {
		if r.Status != jobs.Succeeded || string(r.Content) != `{"rows":[1,2,3,4],"n":4}` || r.Pages != 4 {
			t.Errorf("%s: %s, %d pages, content %s, error %+v", r.Method, r.Status, r.Pages, r.Content, r.Error)
		}
	}
	want := map[string][]string{"/second": {"", "x", "xx", "xxx"}, "/last": {"", "x", "xx", "xxx"}}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
}
