package jobs_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/jobs"
)

const tokened = `connector: own
base_url: "{{base}}"
auth: {type: oauth2, token_url: "{{base}}/token", auth_style: params, refresh_on: [401]}
parameters: [{name: base, target: merge_field, property: account}]
methods: [{method: m, endpoint: /m}]
`

// A wrong client secret is one fault, however many accounts it is used for: one
// token request, all are held; once it is put right all run, by themselves.
func TestClient_wrongSecretOfManyCredentialsCostsOneRequest(t *testing.T) {
	const n = 150
	var asked atomic.Int64
	right := atomic.Bool{}
	h := newHouse(t, withConnector(t, tokened))
	h.url = serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token" && right.Load():
			asked.Add(1)
			_, _ = w.Write([]byte(`{"access_token":"new-access-token","expires_in":3600}`))
		case r.URL.Path == "/token":
			asked.Add(1)
			w.WriteHeader(401)
			_, _ = w.Write([]byte(`{"error":"invalid_client"}`))
		case r.Header.Get("Authorization") != "Bearer new-access-token":
			w.WriteHeader(401)
		default:
			_, _ = w.Write([]byte(`{}`))
		}
	})
	var ids []string
	for i := range n {
		id := fmt.Sprintf("c%d", i)
		h.put(map[string]any{"credential_id": id, "connector": "own", "client_id": "one-client", "client_secret": "one-secret",
			"oauth2": map[string]any{"access_token": "old-access-token", "refresh_token": "refresh-" + id}})
		ids = append(ids, h.enqueue(1, jobs.Step{CredentialID: id, Method: "m"})...)
	}
	h.until("all are held", func() bool {
		held := 0
		err := h.store.List(context.Background(), credentials.Filter{State: credentials.Misconfigured}, func(s *credentials.Status) error {
			if s.Waiting == 1 {
				held++
			}
			return nil
		})
		return err == nil && held == n
	})
	if asked.Load() != 1 {
		t.Errorf("%d token requests, want 1", asked.Load())
	}
	st, err := h.client.Status(context.Background(), ids[7])
	if err != nil || st.Status != "held" || st.NextTry == nil || !strings.Contains(st.Credential.WaitsFor, "a token request that accepts the client") {
		t.Errorf("it says of its wait: %+v, %v", st, err)
	}
	right.Store(true)
	// As after the minute that a trial waits for.
	keys, err := h.rdb.Keys(context.Background(), "stepworker:client:*").Result()
	if err != nil || len(keys) != 1 {
		t.Fatal(keys, err)
	}
	h.rdb.HSet(context.Background(), keys[0], "next", time.Now().Add(-time.Second).UnixMilli())
	h.succeed(ids)
	if asked.Load() != n+1 {
		t.Errorf("%d token requests for %d credentials and one refusal", asked.Load(), n)
	}
}
