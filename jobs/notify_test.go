package jobs_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/programtest"
	"github.com/stepworker/stepworker/jobs"
)

const notifySecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="

// receiver verifies what it is told with the specification's own library.
type receiver struct {
	t      *testing.T
	url    string
	mu     sync.Mutex
	status int    // of its answers
	after  string // their Retry-After
	posts  int    // also those that were not taken
	ids    []string
	got    []string // "type of credential", in order
	bodies [][]byte
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	r := &receiver{t: t, status: http.StatusNoContent}
	hook, err := standardwebhooks.NewWebhook(notifySecret)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		r.mu.Lock()
		defer r.mu.Unlock()
		if req.Header.Get("Content-Type") != "application/json" || req.Method != http.MethodPost {
			t.Errorf("%s of %s", req.Method, req.Header.Get("Content-Type"))
		}
		if err := hook.Verify(body, req.Header); err != nil {
			t.Errorf("the signature: %v", err)
		}
		r.posts++
		if r.status/100 == 2 {
			var e struct {
				Type string
				Data struct {
					CredentialID string `json:"credential_id"`
				}
			}
			if err := json.Unmarshal(body, &e); err != nil {
				t.Error(err)
			}
			r.got = append(r.got, e.Type+" "+e.Data.CredentialID)
			r.ids = append(r.ids, req.Header.Get("webhook-id"))
			r.bodies = append(r.bodies, body)
		}
		w.Header().Set("Location", "/elsewhere")
		w.Header().Set("Retry-After", r.after)
		w.WriteHeader(r.status)
	}))
	t.Cleanup(server.Close)
	r.url = server.URL
	return r
}

func (r *receiver) answers(status int) { r.mu.Lock(); r.status = status; r.mu.Unlock() }

func (r *receiver) told() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.got...)
}

func (r *receiver) attempts() int { r.mu.Lock(); defer r.mu.Unlock(); return r.posts }

func (r *receiver) notify(cfg *jobs.PoolConfig) {
	cfg.NotifyURL, cfg.NotifySecret = r.url, credentials.NewSecret(notifySecret)
}

// quiet waits until no notice is pending.
func (h *house) quiet() {
	h.t.Helper()
	h.until("no notice is pending", func() bool {
		keys, err := h.rdb.Keys(context.Background(), "stepworker:cred:*:notices").Result()
		return err == nil && len(keys) == 0
	})
}

func (h *house) is(r *receiver, want ...string) {
	h.t.Helper()
	h.until("all is told", func() bool { return len(r.told()) >= len(want) })
	h.quiet()
	if diff := cmp.Diff(want, r.told()); diff != "" {
		h.t.Errorf("told (-want +got):\n%s", diff)
	}
}

func TestNotices_revokedAndRecoveredOnceOverTwoPools(t *testing.T) {
	t.Parallel()
	r := newReceiver(t)
	var cfg jobs.PoolConfig
	h := newHouse(t, func(c *jobs.PoolConfig) { r.notify(c); cfg = *c })
	second, err := jobs.NewPool(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(second.Shutdown)
	h.putOAuth("c", "crm")
	h.api.Revoke("c")
	ids := h.enqueue(200, jobs.Step{CredentialID: "c", Method: "list_contacts"})
	h.until("all are held", func() bool {
		s, err := h.store.Status(context.Background(), "c")
		return err == nil && s.State == credentials.Revoked && s.Waiting == 200
	})
	h.is(r, "credential.revoked c")
	// What a person puts is judged anew: refused again, it is told again.
	h.putOAuth("c", "crm")
	h.api.Revoke("c")
	h.until("it is revoked again", func() bool { return len(r.told()) == 2 })
	h.putOAuth("c", "crm")
	h.succeed(ids)
	h.is(r, "credential.revoked c", "credential.revoked c", "credential.recovered c")
	// A put over a credential that is well, and calls with it, are no news.
	h.putOAuth("c", "crm")
	h.succeed(h.enqueue(5, jobs.Step{CredentialID: "c", Method: "list_contacts"}))
	h.is(r, "credential.revoked c", "credential.revoked c", "credential.recovered c")
}

func TestNotices_failingOnceThenRecovered(t *testing.T) {
	t.Parallel()
	r := newReceiver(t)
	h := newHouse(t, r.notify)
	h.putOAuth("c", "crm")
	h.api.KillToken("c")
	h.api.FailTokens(3)
	h.succeed(h.enqueue(20, jobs.Step{CredentialID: "c", Method: "list_contacts"}))
	if n := h.api.TokenRequests("c"); n != 4 {
		t.Errorf("%d token requests, want 4", n)
	}
	h.is(r, "credential.failing c", "credential.recovered c")
	var failing struct {
		Timestamp time.Time
		Data      map[string]any
	}
	if err := json.Unmarshal(r.bodies[0], &failing); err != nil || time.Since(failing.Timestamp) > time.Hour {
		t.Fatalf("%v, %s", err, r.bodies[0])
	}
	for _, some := range []string{"since", "error", "next_try"} {
		if s, _ := failing.Data[some].(string); s == "" {
			t.Errorf("%s is missing: %s", some, r.bodies[0])
		}
		delete(failing.Data, some)
	}
	if n, _ := failing.Data["waiting"].(float64); n < 1 || n > 20 {
		t.Errorf("waiting: %v", failing.Data["waiting"])
	}
	delete(failing.Data, "waiting")
	if diff := cmp.Diff(map[string]any{"credential_id": "c", "connector": "crm", "account_id": "", "external_account_id": "", "state": "active",
		"version": 1.0, "verdict": "transient", "status": 503.0}, failing.Data); diff != "" {
		t.Error(diff)
	}
}

// A receiver that is away, redirects, or fails is told later, in order, with
// the same ids; another worker goes on where one stopped.
func TestNotices_receiverAway(t *testing.T) {
	for _, status := range []int{http.StatusInternalServerError, http.StatusTemporaryRedirect, http.StatusUnauthorized} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			r := newReceiver(t)
			r.answers(status)
			var cfg jobs.PoolConfig
			h := newHouse(t, func(c *jobs.PoolConfig) { r.notify(c); cfg = *c })
			h.putOAuth("c", "crm")
			h.api.KillToken("c")
			h.api.FailTokens(1)
			h.succeed(h.enqueue(1, jobs.Step{CredentialID: "c", Method: "list_contacts"}))
			h.until("it was tried", func() bool { return r.attempts() > 0 })
			h.pool.Shutdown()
			r.answers(http.StatusOK)
			second, err := jobs.NewPool(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if err := second.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(second.Shutdown)
			h.is(r, "credential.failing c", "credential.recovered c")
		})
	}
}

func TestNotices_retryAfterIsRespected(t *testing.T) {
	r := newReceiver(t)
	r.answers(http.StatusTooManyRequests)
	r.after = "7200"
	h := newHouse(t, r.notify)
	h.putOAuth("c", "crm")
	h.api.Revoke("c")
	h.enqueue(1, jobs.Step{CredentialID: "c", Method: "list_contacts"})
	h.until("it is put off", func() bool {
		at, err := h.rdb.ZScore(context.Background(), "stepworker:{notices}", "c").Result()
		return err == nil && at > float64(time.Now().Add(90*time.Minute).UnixMilli())
	})
}

// A receiver that is gone for good is not asked twice.
func TestNotices_410IsGivenUp(t *testing.T) {
	r := newReceiver(t)
	r.answers(http.StatusGone)
	log := &programtest.Log{}
	h := newHouse(t, func(c *jobs.PoolConfig) { r.notify(c); c.Logger = slog.New(slog.NewTextHandler(log, nil)) })
	h.putOAuth("c", "crm")
	h.api.Revoke("c")
	h.enqueue(1, jobs.Step{CredentialID: "c", Method: "list_contacts"})
	h.until("it was posted", func() bool { return r.attempts() > 0 })
	h.quiet()
	if r.attempts() != 1 || !strings.Contains(log.String(), "notice given up") {
		t.Errorf("%d posts", r.attempts())
	}
}

// Without a worker that tells notices none are kept.
func TestNotices_nobodyWantsThem(t *testing.T) {
	h := newHouse(t, nil)
	h.putOAuth("c", "crm")
	h.api.Revoke("c")
	h.enqueue(1, jobs.Step{CredentialID: "c", Method: "list_contacts"})
	h.until("it is revoked", func() bool {
		s, err := h.store.Status(context.Background(), "c")
		return err == nil && s.State == credentials.Revoked
	})
	if keys, err := h.rdb.Keys(context.Background(), "stepworker:*notices*").Result(); err != nil || len(keys) > 0 {
		t.Errorf("%v, %v", keys, err)
	}
}

// A token endpoint that echoes every secret: none is told, logged or kept.
func TestNotices_holdNoSecret(t *testing.T) {
	t.Parallel()
	r := newReceiver(t)
	log := &programtest.Log{}
	own := withConnector(t, renewable)
	h := newHouse(t, func(c *jobs.PoolConfig) {
		own(c)
		r.notify(c)
		c.NotifyURL = strings.Replace(c.NotifyURL, "http://", "http://me:canary-password@", 1)
		c.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	r.answers(http.StatusInternalServerError)
	h.url = serve(t, func(w http.ResponseWriter, req *http.Request) {
		_ = req.ParseForm()
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(map[string]string{"error": "invalid_grant", "error_description": "echo " + req.Form.Encode() + " canary-access"})
	})
	h.put(map[string]any{"credential_id": "c", "connector": "own", "client_id": "id", "client_secret": "canary-secret",
		"oauth2": map[string]any{"access_token": "canary-access", "refresh_token": "canary-refresh"}})
	if err := h.client.RequestRefresh(context.Background(), "c"); err != nil {
		t.Fatal(err)
	}
	h.until("it was tried", func() bool { return r.attempts() > 0 })
	h.until("that is logged", func() bool { return strings.Contains(log.String(), "not delivered") })
	dump := h.redis.Dump()
	r.answers(http.StatusOK)
	h.is(r, "credential.revoked c")
	if !bytes.Contains(r.bodies[0], []byte("echo ")) {
		t.Errorf("what the endpoint said is not told: %s", r.bodies[0])
	}
	for where, text := range map[string]string{"body": string(r.bodies[0]), "log": log.String(), "redis": string(dump)} {
		for _, secret := range []string{"canary", strings.TrimPrefix(notifySecret, "whsec_")} {
			if strings.Contains(text, secret) {
				t.Errorf("%s holds %s", where, secret)
			}
		}
	}
}
