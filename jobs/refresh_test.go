package jobs_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/jobs"
)

// withConnector gives the pool one connector of the test's own.
func withConnector(t *testing.T, yaml string) func(*jobs.PoolConfig) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "own.yaml"), []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	catalog, findings, err := definition.Load(dir)
	if err != nil || slices.ContainsFunc(findings, func(f definition.Finding) bool { return !f.Hint }) {
		t.Fatal(findings, err)
	}
	return func(cfg *jobs.PoolConfig) { cfg.Catalog = catalog }
}

// serve is an API of the test's own, which the connector finds at {{base}}.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

const keyed = `connector: own
base_url: "{{base}}"
auth: {type: api_key, name: X-Key, refresh_on: [401]}
post_install: {test_auth_method: me}
parameters: [{name: base, target: merge_field, property: account}]
methods:
  - {method: me, endpoint: /me}
  - {method: m, endpoint: /m}
`

// A dead key cannot be renewed: the test method is asked once, and what comes
// of it counts for every execution that was refused.
func TestDeadKey_allAreHeldAndTheTestMethodIsAskedOnce(t *testing.T) {
	t.Parallel()
	var tests atomic.Int64
	alive := atomic.Bool{}
	h := newHouse(t, withConnector(t, keyed))
	h.url = serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/me" {
			tests.Add(1)
			time.Sleep(300 * time.Millisecond) // the others are refused meanwhile
		}
		if !alive.Load() {
			w.WriteHeader(401)
			return
		}
		_, _ = w.Write([]byte(`{}`))
	})
	h.put(map[string]any{"credential_id": "c", "connector": "own", "api_key": "dead-key"})
	ids := h.enqueue(20, jobs.Step{CredentialID: "c", Method: "m"})
	h.until("all are held", func() bool {
		s, err := h.store.Status(context.Background(), "c")
		return err == nil && s.State == credentials.Revoked && s.Waiting == 20
	})
	if n := tests.Load(); n != 1 {
		t.Errorf("the test method was asked %d times", n)
	}
	alive.Store(true)
	h.put(map[string]any{"credential_id": "c", "connector": "own", "api_key": "good-key"})
	h.succeed(ids)
}

// While the test method cannot be asked nobody calls; once it has answered, the
// executions fail, and it is not asked again.
func TestDeadKey_aTestMethodThatCannotBeAskedIsWaitedFor(t *testing.T) {
	t.Parallel()
	var tests, calls atomic.Int64
	h := newHouse(t, withConnector(t, keyed))
	h.url = serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/m":
			calls.Add(1)
			w.WriteHeader(401)
		case tests.Add(1) <= 2:
			w.WriteHeader(503)
		default:
			_, _ = w.Write([]byte(`{}`))
		}
	})
	h.put(map[string]any{"credential_id": "c", "connector": "own", "api_key": "a-key"})
	ids := h.enqueue(5, jobs.Step{CredentialID: "c", Method: "m"})
	h.until("they wait", func() bool {
		s, err := h.store.Status(context.Background(), "c")
		return err == nil && s.Waiting == 5 && tests.Load() >= 1
	})
	for id, r := range h.results(ids) {
		if r.Error == nil || r.Error.Kind != jobs.KindAuth {
			t.Errorf("%s: %+v", id, r)
		}
	}
	if tests.Load() != 3 || calls.Load() > 10 {
		t.Errorf("the test method was asked %d times, want 3; the API %d times, want 10 at most", tests.Load(), calls.Load())
	}
	h.results(h.enqueue(1, jobs.Step{CredentialID: "c", Method: "m"}))
	if tests.Load() != 3 {
		t.Error("the test method was asked again")
	}
}

// Without a test method nothing can tell that the key is dead: each execution
// fails, and is told what is missing.
func TestDeadKey_withoutATestMethodEachFails(t *testing.T) {
	h := newHouse(t, withConnector(t, strings.Replace(keyed, "post_install: {test_auth_method: me}\n", "", 1)))
	var alive atomic.Bool
	h.url = serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/m" && !alive.Load() {
			w.WriteHeader(401)
			return
		}
		_, _ = w.Write([]byte(`{}`))
	})
	h.put(map[string]any{"credential_id": "c", "connector": "own", "api_key": "dead-key"})
	for _, r := range h.results(h.enqueue(2, jobs.Step{CredentialID: "c", Method: "m"})) {
		if r.Error == nil || r.Error.Kind != jobs.KindAuth || !strings.Contains(r.Error.Message, "post_install.test_auth_method") {
			t.Errorf("%+v", r.Error)
		}
	}
	told := func() string {
		s, err := h.store.Status(context.Background(), "c")
		if err != nil || s.State != credentials.Active {
			t.Fatal(s, err)
		}
		return s.LastError
	}
	if text := told(); !strings.HasPrefix(text, `method "m": the API refused the credential`) {
		t.Errorf("the credential tells %q", text)
	}
	h.succeed(h.enqueue(1, jobs.Step{CredentialID: "c", Method: "me"}))
	if told() == "" {
		t.Error("another method's success says nothing of this one")
	}
	alive.Store(true)
	h.succeed(h.enqueue(1, jobs.Step{CredentialID: "c", Method: "m"}))
	if text := told(); text != "" {
		t.Errorf("the credential still tells %q", text)
	}
}

const renewable = `connector: own
base_url: "{{base}}"
auth: {type: oauth2, token_url: "{{base}}/token", auth_style: params, refresh_on: [401]}
post_install: {property_lookup_method: login, test_auth_method: me}
parameters:
  - {name: base, target: merge_field, property: account}
  - {name: sid, target: http_header, as: X-Sid, property: session}
methods:
  - {method: login, verb: POST, endpoint: /login, response: {fields: [{field: sid, system: sid}]}}
  - {method: me, endpoint: /me}
  - {method: m, endpoint: /m}
`

// Nobody calls before the login and the test method have run; a test method
// that cannot be asked is asked again.
func TestFirstUse_opensBeforeAnybodyCalls(t *testing.T) {
	t.Parallel()
	var order []string
	var mes int
	seen := make(chan string, 100)
	h := newHouse(t, withConnector(t, renewable))
	h.url = serve(t, func(w http.ResponseWriter, r *http.Request) {
		seen <- r.URL.Path
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/token":
			_, _ = w.Write([]byte(`{"access_token":"first-token","expires_in":3600}`))
		case "/login":
			_, _ = w.Write([]byte(`{"sid":"session-one"}`))
		case "/me":
			if mes++; mes == 1 {
				w.WriteHeader(503)
			}
			_, _ = w.Write([]byte(`{}`))
		default:
			_, _ = w.Write([]byte(`{}`))
		}
	})
	h.put(map[string]any{"credential_id": "c", "connector": "own", "client_id": "id", "oauth2": map[string]any{"refresh_token": "r-one"}})
	h.succeed(h.enqueue(5, jobs.Step{CredentialID: "c", Method: "m"}))
	close(seen)
	for p := range seen {
		order = append(order, p)
	}
	if got, want := fmt.Sprint(order), "[/token /login /me /login /me /m /m /m /m /m]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// noRefreshIsLeft says that the queue of refreshes is empty.
func (h *house) noRefreshIsLeft() bool {
	left := int64(0)
	all, err := h.rdb.TxPipelined(context.Background(), func(pipe redis.Pipeliner) error { // at once: they move
		pipe.LLen(context.Background(), "asynq:{refresh}:pending")
		pipe.LLen(context.Background(), "asynq:{refresh}:active")
		pipe.ZCard(context.Background(), "asynq:{refresh}:retry")
		return nil
	})
	for _, n := range all {
		left += n.(*redis.IntCmd).Val()
	}
	return err == nil && left == 0
}

// Many people who ask at once ask once, and once only.
func TestForced_doNotPileUp(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]struct {
		failures int64 // with a 503, first
		status   int
		body     string
	}{"renewed": {0, 200, `{"access_token":"new-token"}`}, "refused": {0, 400, `{"error":"invalid_grant"}`}, "failing first": {2, 200, `{"access_token":"new-token"}`}} {
		t.Run(name, func(t *testing.T) {
			var requests atomic.Int64
			asked := make(chan struct{}) // closed once all have asked: no answer comes before
			h := newHouse(t, withConnector(t, renewable))
			h.url = serve(t, func(w http.ResponseWriter, r *http.Request) {
				<-asked
				if requests.Add(1) <= answer.failures {
					w.WriteHeader(503)
					return
				}
				w.WriteHeader(answer.status)
				_, _ = w.Write([]byte(answer.body))
			})
			h.put(map[string]any{"credential_id": "c", "connector": "own", "client_id": "id", "oauth2": map[string]any{"access_token": "a-token", "refresh_token": "r-one"}})
			for range 20 {
				if err := h.client.RequestRefresh(context.Background(), "c"); err != nil {
					t.Fatal(err)
				}
			}
			close(asked)
			h.until("no request is left", h.noRefreshIsLeft)
			if n := requests.Load(); n != answer.failures+1 {
				t.Errorf("%d token requests, want %d", n, answer.failures+1)
			}
		})
	}
}

// The clock of the worker that refreshed before was ahead: what this one found
// out is the answer all the same, to all who ask.
func TestForced_answeredByAWorkerWhoseClockIsBehind(t *testing.T) {
	var requests atomic.Int64
	h := newHouse(t, withConnector(t, renewable))
	h.url = serve(t, func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		w.WriteHeader(400)
		_, _ = w.Write([]byte(`{"error":"invalid_grant"}`))
	})
	h.put(map[string]any{"credential_id": "c", "connector": "own", "client_id": "id", "oauth2": map[string]any{"access_token": "a-token", "refresh_token": "r-one"}})
	h.rdb.HSet(context.Background(), "stepworker:cred:{c}", "lr", fmt.Sprintf(`{"at":%q,"kind":"oauth2","verdict":"renewed"}`, time.Now().Add(time.Minute).UTC().Format(time.RFC3339)))
	st, err := h.store.Status(context.Background(), "c")
	if err != nil || st.LastRefresh == nil {
		t.Fatal(st, err)
	}
	client := asynq.NewClientFromRedisClient(h.rdb)
	for range 20 { // they all saw the same
		payload := fmt.Sprintf(`{"credential_id":"c","version":1,"kind":"forced","seen":%d,"until":%d}`, st.LastRefresh.At.UnixMilli(), time.Now().Add(time.Minute).UnixMilli())
		if _, err := client.Enqueue(asynq.NewTask(jobs.TypeRefresh, []byte(payload)), asynq.Queue(jobs.QueueRefresh)); err != nil {
			t.Fatal(err)
		}
	}
	h.until("no request is left", h.noRefreshIsLeft)
	if n := requests.Load(); n != 1 {
		t.Errorf("%d token requests, want 1", n)
	}
}

// The refresh of a connector that nobody here knows (any more) is not looked at
// for ever: for those who wait it is asked for again.
func TestRefresh_ofAnUnknownConnectorIsNotKept(t *testing.T) {
	h := newHouse(t, withConnector(t, renewable))
	h.put(map[string]any{"credential_id": "c", "connector": "gone", "client_id": "id", "oauth2": map[string]any{"access_token": "a-token", "refresh_token": "r-one"}})
	client := asynq.NewClientFromRedisClient(h.rdb)
	for _, payload := range []string{
		`{"credential_id":"c","version":1,"kind":"oauth2"}`,
		fmt.Sprintf(`{"credential_id":"c","version":1,"kind":"forced","until":%d}`, time.Now().Add(-time.Second).UnixMilli()),
	} {
		if _, err := client.Enqueue(asynq.NewTask(jobs.TypeRefresh, []byte(payload)), asynq.Queue(jobs.QueueRefresh)); err != nil {
			t.Fatal(err)
		}
	}
	h.until("none is left", h.noRefreshIsLeft)
}

// Without a test method the execution that was refused says who can help.
func TestDeadKey_withoutATestMethodThePersonIsNamed(t *testing.T) {
	h := newHouse(t, withConnector(t, strings.NewReplacer("post_install: {test_auth_method: me}\n", "", ", refresh_on: [401]", "").Replace(keyed)+`script: |
  function after_error() {
    // A gateway in front of the API may hand out session_properties; this one does not.
    throw new AuthSessionException();
  }
`))
	h.url = serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) })
	h.put(map[string]any{"credential_id": "c", "connector": "own", "api_key": "dead-key"})
	ids := h.enqueue(1, jobs.Step{CredentialID: "c", Method: "m"})
	r := h.results(ids)[ids[0]]
	const want = "and the worker cannot renew an API key: a person must put the credential anew (worker credential put); without post_install"
	if r.Error == nil || r.Error.Kind != jobs.KindAuth || !strings.Contains(r.Error.Message, want) {
		t.Errorf("%+v", r.Error)
	}
}

// Where there is nothing to renew a forced refresh changes nothing.
func TestForced_withNothingToRenewHarmsNobody(t *testing.T) {
	h := newHouse(t, nil)
	h.put(map[string]any{"credential_id": "c", "connector": "weather", "api_key": "sample-api-key"})
	if err := h.client.RequestRefresh(context.Background(), "c"); err != nil {
		t.Fatal(err)
	}
	h.until("it is told", func() bool {
		s, err := h.store.Status(context.Background(), "c")
		return err == nil && s.LastRefresh != nil && s.LastError != ""
	})
	if s, err := h.store.Status(context.Background(), "c"); err != nil || s.State != credentials.Active || s.Version != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	h.succeed(h.enqueue(1, jobs.Step{CredentialID: "c", Method: "now"}))
}

const scoped = `connector: own
base_url: "{{base}}"
auth: {type: oauth2, token_url: "{{base}}/token", auth_style: params, refresh_on: [401, 403]}
parameters: [{name: base, target: merge_field, property: account}]
methods:
  - {method: read, endpoint: /read}
  - {method: write, verb: POST, endpoint: /write}
`

// A missing scope is not expiry: who needs it fails, at once and without a
// token request, and nobody else notices.
func TestMissingScope_isNotExpiry(t *testing.T) {
	var tokens, writes atomic.Int64
	h := newHouse(t, withConnector(t, scoped))
	h.url = serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/token":
			tokens.Add(1)
		case "/write":
			writes.Add(1)
			w.Header().Set("WWW-Authenticate", `Bearer error="insufficient_scope", scope="things.write"`)
			w.WriteHeader(403)
			return
		}
		_, _ = w.Write([]byte(`{}`))
	})
	h.put(map[string]any{"credential_id": "c", "connector": "own", "client_id": "id", "oauth2": map[string]any{"access_token": "a-token", "refresh_token": "r-one"}})
	refused := h.enqueue(30, jobs.Step{CredentialID: "c", Method: "write"})
	fine := h.enqueue(100, jobs.Step{CredentialID: "c", Method: "read"})
	h.succeed(fine)
	for id, r := range h.results(refused) {
		if r.Error == nil || r.Error.Kind != jobs.KindAuth || !strings.Contains(r.Error.Message, `"things.write"`) || r.Attempts != 1 || r.StatusCode != 403 {
			t.Errorf("%s: %+v", id, r)
		}
	}
	for _, id := range fine {
		if s := h.story(id); strings.Contains(s, "parked") {
			t.Errorf("%s was parked:\n%s", id, s)
		}
	}
	if c, err := h.store.Get(context.Background(), "c"); err != nil || c.Version != 1 || c.Meta.Refused {
		t.Errorf("got %+v, %v", c, err)
	}
	if tokens.Load() != 0 || writes.Load() != 30 {
		t.Errorf("%d token requests, want none; %d calls, want 30", tokens.Load(), writes.Load())
	}
}

const loggedIn = `connector: own
base_url: "{{base}}"
auth: {type: none, refresh_on: [401]}
post_install: {property_lookup_method: login, logout_method: logout}
parameters:
  - {name: base, target: merge_field, property: account}
  - {name: sid, target: http_header, as: X-Sid, property: session}
methods:
  - {method: login, verb: POST, endpoint: /login, response: {fields: [{field: sid, system: sid}]}}
  - {method: logout, verb: POST, endpoint: /logout}
  - {method: m, endpoint: /m}
`

// The old session is logged out once the new one is stored, once for all, and
// whatever comes of it changes nothing.
func TestLogout_ofTheOldSessionOnceTheNewOneIsStored(t *testing.T) {
	for name, status := range map[string]int{"taken": 204, "refused": 401, "failed": 500} {
		t.Run(name, func(t *testing.T) {
			var logins, good atomic.Int64
			type logout struct {
				sid     string
				version int64
			}
			logouts := make(chan logout, 100)
			h := newHouse(t, withConnector(t, loggedIn))
			h.url = serve(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				switch sid := r.Header.Get("X-Sid"); {
				case r.URL.Path == "/login":
					n := logins.Add(1)
					good.Store(n)
					_, _ = fmt.Fprintf(w, `{"sid":"session-%d"}`, n)
				case r.URL.Path == "/logout":
					l := logout{sid: sid}
					if c, err := h.store.Get(context.Background(), "c"); err == nil {
						l.version = c.Version
					}
					logouts <- l
					w.WriteHeader(status)
				case sid != fmt.Sprintf("session-%d", good.Load()):
					w.WriteHeader(401)
				default:
					_, _ = w.Write([]byte(`{}`))
				}
			})
			h.put(map[string]any{"credential_id": "c", "connector": "own"})
			h.succeed(h.enqueue(20, jobs.Step{CredentialID: "c", Method: "m"}))
			if n := len(logouts); n != 0 {
				t.Errorf("%d logouts, though there was no session before", n)
			}
			good.Store(-1) // the server forgets the session
			h.succeed(h.enqueue(50, jobs.Step{CredentialID: "c", Method: "m"}))
			h.until("the old session is logged out", func() bool { return len(logouts) > 0 })
			h.pool.Shutdown()
			if l := <-logouts; l.sid != "session-1" || l.version != 3 || len(logouts) != 0 {
				t.Errorf("got %+v and %d more", l, len(logouts))
			}
			if n := logins.Load(); n != 2 {
				t.Errorf("%d logins", n)
			}
			if c, err := h.store.Get(context.Background(), "c"); err != nil || c.Version != 3 || c.Meta.State != credentials.Active || c.Meta.LastError != "" || c.Secrets.Session["sid"] != "session-2" {
				t.Errorf("got %+v, %v", c, err)
			}
		})
	}
}

func TestInput_aLogoutIsNoStep(t *testing.T) {
	h := newHouse(t, withConnector(t, loggedIn))
	h.url = serve(t, func(w http.ResponseWriter, _ *http.Request) { t.Error("it was called") })
	h.put(map[string]any{"credential_id": "c", "connector": "own", "properties": map[string]any{"sid": "a-session"}})
	for id, r := range h.results(h.enqueue(1, jobs.Step{CredentialID: "c", Method: "logout"})) {
		if r.Error == nil || r.Error.Kind != jobs.KindInput || !strings.Contains(r.Error.Message, "logout method") {
			t.Errorf("%s: %+v", id, r)
		}
	}
}
