package deploy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/programtest"
	"github.com/stepworker/stepworker/internal/redistest"
	"github.com/stepworker/stepworker/internal/sampleapi"
	"github.com/stepworker/stepworker/jobs"
)

func TestMain(m *testing.M) { programtest.Main(m, 4, "worker") }

// site is a Redis, the sample provider, and the workers of a deployment.
type site struct {
	t      *testing.T
	redis  *redistest.Server
	rdb    redis.UniversalClient
	key    string
	store  *credentials.Store
	client *jobs.Client
	api    *sampleapi.Provider
	url    string

	mu      sync.Mutex
	begun   map[string]int                   // calls that arrived, by execution
	asked   int                              // token requests
	onToken func(n int, r *http.Request)     // before the n-th token request is answered
	onCall  func(id string, r *http.Request) // before a call is answered
}

func newSite(t *testing.T) *site {
	t.Helper()
	if testing.Short() {
		t.Skip("worker processes")
	}
	s := &site{t: t, redis: redistest.New(t), key: credentials.NewKey(), api: sampleapi.New(), begun: map[string]int{}}
	s.rdb = s.redis.Client(t)
	keys, err := credentials.ParseKeys(s.key)
	if err != nil {
		t.Fatal(err)
	}
	s.store, s.client = credentials.NewStore(s.rdb, keys), jobs.NewClient(s.rdb)
	server := httptest.NewServer(s)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	s.url = server.URL
	return s
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/oauth/token" {
		_ = r.ParseForm() // whole, so that it is noticed when the client goes
		s.mu.Lock()
		s.asked++
		n := s.asked
		s.mu.Unlock()
		if s.onToken != nil {
			s.onToken(n, r)
		}
	} else {
		id := r.Header.Get("Idempotency-Key")
		s.mu.Lock()
		s.begun[id]++
		s.mu.Unlock()
		if s.onCall != nil {
			s.onCall(id, r)
		}
	}
	if r.Context().Err() == nil { // who went away has not been served
		s.api.ServeHTTP(w, r)
	}
}

// arrived are the calls of an execution that the API has seen.
func (s *site) arrived(id string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.begun[id]
}

func (s *site) requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

func (s *site) put(account string) {
	s.t.Helper()
	access, refresh := s.api.Issue(account)
	in, err := credentials.DecodeInput(fmt.Appendf(nil,
		`{"credential_id":%q,"connector":"crm","client_id":%q,"client_secret":%q,"properties":{"base":%q},"oauth2":{"access_token":%q,"refresh_token":%q,"expires_in":3600}}`,
		account, sampleapi.ClientID, sampleapi.ClientSecret, s.url, access, refresh))
	if err != nil {
		s.t.Fatal(err)
	}
	if _, _, err := s.store.Put(s.t.Context(), in, false); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) enqueue(n int, step jobs.Step) (ids []string) {
	s.t.Helper()
	steps := make([]*jobs.Step, n)
	for i := range steps {
		one := step
		one.MaxRetries = new(int)
		steps[i] = &one
	}
	for _, r := range s.client.EnqueueBatch(s.t.Context(), steps) {
		if r.Err != nil {
			s.t.Fatal(r.Err)
		}
		ids = append(ids, r.ExecutionID)
	}
	return ids
}

func (s *site) until(what string, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("it did not come to: %s", what)
		}
	}
}

func (s *site) waiting(account string, n int64) {
	s.t.Helper()
	s.until(fmt.Sprintf("%d wait for %s", n, account), func() bool {
		st, err := s.store.Status(s.t.Context(), account)
		return err == nil && st.Waiting == n
	})
}

// succeed waits for all: each has one result, and it is good.
func (s *site) succeed(ids []string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 4*time.Minute)
	defer cancel()
	ended := map[string]int{}
	err := s.client.Wait(ctx, ids, func(r *jobs.Result) error {
		ended[r.ExecutionID]++
		if r.Status != jobs.Succeeded {
			raw, _ := json.Marshal(r)
			return fmt.Errorf("%s", raw)
		}
		return nil
	})
	if err != nil || len(ended) != len(ids) {
		s.t.Fatalf("%d of %d ended: %v", len(ended), len(ids), err)
	}
}

// pod is one worker process, as a container runs it.
type pod struct {
	*programtest.Process
	addr string
}

// start starts a worker with a folder of connectors.
func (s *site) start(connectors string) *pod {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	cmd := exec.Command(programtest.Path("worker"), "run")
	cmd.Env = append(os.Environ(), "STEPWORKER_REDIS="+s.redis.URL, "STEPWORKER_KEYS="+s.key, "STEPWORKER_CONNECTORS="+connectors,
		"STEPWORKER_HTTP="+addr, "STEPWORKER_ALLOW_NETWORK=127.0.0.0/8")
	return &pod{programtest.Start(s.t, cmd), addr}
}

// ready waits for a worker as a readiness probe does.
func (s *site) ready(p *pod) {
	s.t.Helper()
	if out, err := exec.Command(p.Cmd.Path, "probe", "--http", p.addr, "--wait", "2m").CombinedOutput(); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
}

func (s *site) signal(p *pod, sig syscall.Signal) {
	s.t.Helper()
	if err := p.Cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// drained waits until a worker that was told to go has gone, in order.
func (s *site) drained(p *pod) {
	s.t.Helper()
	select {
	case <-p.Done:
	case <-time.After(2 * time.Minute):
		s.t.Fatal("the worker does not end")
	}
	if code := p.Cmd.ProcessState.ExitCode(); code != 0 {
		s.t.Errorf("the worker ended with %d:\n%s", code, p.Log)
	}
}

// connectors makes a folder of connector files: the sample CRM, with more methods.
func connectors(t *testing.T, methods string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"crm.yaml", "crm.js"} {
		raw, err := os.ReadFile(filepath.Join("connectors", name))
		if err != nil {
			t.Fatal(err)
		}
		if name == "crm.yaml" {
			raw = append(raw, methods...)
		}
		if err := os.WriteFile(filepath.Join(dir, name), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const newMethod = `
  - method: list_leads
    verb: GET
    endpoint: /crm/contacts
    idempotency_header: Idempotency-Key
`

// All workers are replaced as Kubernetes does it, a successor ready before each
// goes, by ones with newer connector files, while thousands of steps flow, some
// are parked, a refresh runs, some are held, and some need the newer files.
func TestRolling_newConnectorsWhileStepsFlow(t *testing.T) {
	s := newSite(t)
	t.Parallel()
	answer := make(chan struct{})
	s.onToken = func(_ int, r *http.Request) {
		select {
		case <-answer:
		case <-r.Context().Done():
		}
	}
	s.onCall = func(_ string, r *http.Request) {
		select { // an API that takes its time
		case <-time.After(20 * time.Millisecond):
		case <-r.Context().Done():
		}
	}
	const flow, parked, held, newer = 1000, 300, 200, 50
	older, later := connectors(t, ""), connectors(t, newMethod)
	for _, account := range []string{"live", "dead", "gone"} {
		s.put(account)
	}
	old := []*pod{s.start(older), s.start(older), s.start(older)}
	for _, p := range old {
		s.ready(p)
	}
	// One account that is revoked: its refresh is answered before the other's.
	s.api.Revoke("gone")
	heldIDs := s.enqueue(held, jobs.Step{CredentialID: "gone", Method: "list_contacts"})
	s.until("the provider is asked", func() bool { return s.requests() == 1 })
	answer <- struct{}{}
	s.until("it is revoked", func() bool {
		st, err := s.store.Status(t.Context(), "gone")
		return err == nil && st.State == credentials.Revoked && st.Waiting == held
	})
	s.api.KillToken("dead")
	ids := s.enqueue(parked, jobs.Step{CredentialID: "dead", Method: "list_contacts"})
	s.waiting("dead", parked)
	ids = append(ids, s.enqueue(newer, jobs.Step{CredentialID: "live", Method: "list_leads"})...)
	for i, p := range old {
		ids = append(ids, s.enqueue(flow, jobs.Step{CredentialID: "live", Method: "list_contacts"})...)
		s.ready(s.start(later))
		s.signal(p, syscall.SIGTERM)
		if i == len(old)-1 {
			close(answer) // the last is told to go while the refresh runs
		}
	}
	for _, p := range old {
		s.drained(p)
	}
	ids = append(ids, s.enqueue(flow, jobs.Step{CredentialID: "live", Method: "list_leads"})...)
	s.succeed(ids)
	for _, id := range ids[parked:] {
		if n := s.arrived(id); n != 1 {
			t.Errorf("%s: the API saw %d calls", id, n)
		}
	}
	if st, err := s.store.Status(t.Context(), "gone"); err != nil || st.Waiting != held {
		t.Errorf("%v, %+v: %d must still be held", err, st, held)
	}
	s.put("gone")
	s.succeed(heldIDs)
	if n := s.api.TokenRequests("dead"); n != 1 {
		t.Errorf("%d token requests, want 1", n)
	}
	if n, twice := s.api.Reused(), s.api.ServedTwice(); n != 0 || twice != 0 {
		t.Errorf("%d spent tokens were presented, %d executions served twice", n, twice)
	}
}

// The grace period is over before the drain: SIGTERM, then SIGKILL. What the
// worker had in hand is taken up by another, its token request is repeated.
func TestRolling_killedAfterTheGracePeriod(t *testing.T) {
	s := newSite(t)
	t.Parallel()
	const hanging = 20
	hang := make(chan struct{})
	var slow []string
	for i := range hanging {
		slow = append(slow, fmt.Sprintf("slow-%d", i))
	}
	s.onToken = func(n int, r *http.Request) {
		if n == 1 {
			<-r.Context().Done() // it never got to it
		}
	}
	s.onCall = func(id string, r *http.Request) {
		if strings.HasPrefix(id, "slow-") && s.arrived(id) == 1 {
			select {
			case <-hang:
			case <-r.Context().Done():
			}
		}
	}
	folder := connectors(t, "")
	s.put("live")
	s.put("dead")
	s.api.KillToken("dead")
	first := s.start(folder)
	s.ready(first)
	parked := s.enqueue(50, jobs.Step{CredentialID: "dead", Method: "list_contacts"})
	s.until("the provider is asked", func() bool { return s.requests() == 1 })
	s.waiting("dead", 50)
	for _, id := range slow {
		s.enqueue(1, jobs.Step{CredentialID: "live", Method: "list_contacts", ExecutionID: id})
	}
	s.until("the API has all calls that hang", func() bool {
		for _, id := range slow {
			if s.arrived(id) == 0 {
				return false
			}
		}
		return true
	})
	s.ready(s.start(folder))
	s.signal(first, syscall.SIGTERM)
	s.until("it drains", func() bool {
		out, _ := exec.Command(first.Cmd.Path, "probe", "--http", first.addr).CombinedOutput()
		return strings.Contains(string(out), "draining")
	})
	flow := s.enqueue(1000, jobs.Step{CredentialID: "live", Method: "list_contacts"})
	s.succeed(flow) // by the other
	s.signal(first, syscall.SIGKILL)
	<-first.Done
	s.succeed(append(slow, parked...))
	close(hang)
	for _, id := range flow {
		if n := s.arrived(id); n != 1 {
			t.Errorf("%s: the API saw %d calls, and its worker did not die", id, n)
		}
	}
	for _, id := range slow {
		if n := s.arrived(id); n != 2 {
			t.Errorf("%s: the API saw %d calls, want 2: one that its worker died in", id, n)
		}
	}
	if n := s.requests(); n != 2 {
		t.Errorf("%d token requests, want 2: one whose worker died, and one", n)
	}
	if n, twice := s.api.Reused(), s.api.ServedTwice(); n != 0 || twice != 0 {
		t.Errorf("%d spent tokens were presented, %d executions served twice", n, twice)
	}
}
