package jobs_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hibiken/asynq"

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
	t.Parallel()
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

// What the connector's file was refused for is asked again by workers that have
// another file: also where a token was stored beside it, and where the first
// answer to the new file tells nothing.
func TestMisconfigured_anotherFileReleases(t *testing.T) {
	t.Parallel()
	const broken = tokened + "script: |\n  function after_oauth2_refresh() { var nothing = null; nothing.at = 1; }\n"
	for name, c := range map[string]struct {
		file    string
		refused int // status of the first token request's answer
	}{"a script beside the token": {broken, 200}, "the token endpoint": {tokened, 404}} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int64
			var cfg jobs.PoolConfig
			h := newHouse(t, func(p *jobs.PoolConfig) { withConnector(t, c.file)(p); cfg = *p })
			h.url = serve(t, func(w http.ResponseWriter, r *http.Request) {
				n := asked.Load()
				if r.URL.Path == "/token" {
					n = asked.Add(1)
				}
				switch {
				case r.URL.Path == "/token" && n == 1:
					w.WriteHeader(c.refused)
					_, _ = w.Write([]byte(`{"access_token":"access-token-1"}`))
				case r.URL.Path == "/token" && n == 2:
					w.WriteHeader(503)
				case r.URL.Path == "/token":
					_, _ = w.Write([]byte(`{"access_token":"access-token-3"}`))
				case r.Header.Get("Authorization") != "Bearer access-token-3":
					w.WriteHeader(401)
				default:
					_, _ = w.Write([]byte(`{}`))
				}
			})
			h.put(map[string]any{"credential_id": "c", "connector": "own", "client_id": "client",
				"oauth2": map[string]any{"access_token": "access-token-0", "refresh_token": "refresh-token"}})
			ids := h.enqueue(20, jobs.Step{CredentialID: "c", Method: "m"})
			h.until("all are held", func() bool {
				s, err := h.store.Status(context.Background(), "c")
				return err == nil && s.State == credentials.Misconfigured && s.Waiting == 20
			})
			h.pool.Shutdown()
			withConnector(t, tokened+"title: put right\n")(&cfg)
			right, err := jobs.NewPool(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if err := right.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(right.Shutdown)
			h.succeed(ids)
			if asked.Load() != 3 {
				t.Errorf("%d token requests, want 3", asked.Load())
			}
		})
	}
}

// An answer in which no token was found may have spent the refresh token, so
// that asking again revokes. It is kept, and a start with a connector that can
// read it is enough.
func TestRevoked_theAnswerThatIsKeptIsReadByACorrectedConnector(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	var cfg jobs.PoolConfig
	own := withConnector(t, tokened)
	h := newHouse(t, func(c *jobs.PoolConfig) { own(c); cfg = *c })
	h.url = serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token" && asked.Add(1) == 1:
			_, _ = w.Write([]byte(`{"data":{"token":"new-access-token","refresh":"new-refresh-token"}}`))
		case r.URL.Path == "/token":
			w.WriteHeader(400)
			_, _ = w.Write([]byte(`{"error":"invalid_grant"}`))
		case r.Header.Get("Authorization") != "Bearer new-access-token":
			w.WriteHeader(401)
		default:
			_, _ = w.Write([]byte(`{}`))
		}
	})
	h.put(map[string]any{"credential_id": "c", "connector": "own", "client_id": "one-client", "client_secret": "one-secret",
		"oauth2": map[string]any{"access_token": "old-access-token", "refresh_token": "old-refresh-token"}})
	ids := h.enqueue(5, jobs.Step{CredentialID: "c", Method: "m"})
	h.until("it is revoked", func() bool {
		st, err := h.store.Status(context.Background(), "c")
		return err == nil && st.State == credentials.Revoked && strings.Contains(st.WaitsFor, "an answer that is kept")
	})
	n := asked.Load()
	h.pool.Shutdown()
	withConnector(t, tokened+`script: |
  function after_oauth2_refresh() {
    method_response = {access_token: method_response.data.token, refresh_token: method_response.data.refresh};
  }
`)(&cfg)
	pool, err := jobs.NewPool(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := pool.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Shutdown)
	h.succeed(ids)
	if asked.Load() != n {
		t.Errorf("%d more token requests", asked.Load()-n)
	}
}

// Many who ask for refreshes together are one question to a refused client,
// whatever the clock says of the machine where they were asked.
func TestClient_aPersonsClockMayBeAhead(t *testing.T) {
	var asked atomic.Int64
	h := newHouse(t, withConnector(t, tokened))
	h.url = serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		w.WriteHeader(401)
		_, _ = w.Write([]byte(`{"error":"invalid_client"}`))
	})
	now, err := h.rdb.Time(context.Background()).Result()
	if err != nil {
		t.Fatal(err)
	}
	client := asynq.NewClientFromRedisClient(h.rdb)
	for i := range 20 {
		id := fmt.Sprintf("c%d", i)
		h.put(map[string]any{"credential_id": id, "connector": "own", "client_id": "one-client", "client_secret": "one-secret",
			"oauth2": map[string]any{"access_token": "old-access-token", "refresh_token": "refresh-" + id}})
		payload := fmt.Sprintf(`{"credential_id":%q,"version":1,"kind":"forced","until":%d,"asked":%d}`, id, time.Now().Add(time.Hour).UnixMilli(), now.UnixMilli())
		if _, err := client.Enqueue(asynq.NewTask(jobs.TypeRefresh, []byte(payload)), asynq.Queue(jobs.QueueRefresh)); err != nil {
			t.Fatal(err)
		}
		h.until("it is answered", h.noRefreshIsLeft)
	}
	if asked.Load() != 1 {
		t.Errorf("%d token requests, want 1", asked.Load())
	}
}
