package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/cli"
	"github.com/stepworker/stepworker/internal/sampleapi"
	"github.com/stepworker/stepworker/jobs"
)

// demoTimeout bounds one story.
const demoTimeout = 40 * time.Second

func newDemo(log *cli.Log) *cobra.Command {
	c := &config{log: log}
	var exit bool
	cmd := &cobra.Command{Use: "demo", Short: "See dead credentials become non-events: a sample provider, sample steps, their stories", Args: cobra.NoArgs}
	c.add(cmd.Flags())
	cmd.Flags().StringVar(&c.http, "http", "127.0.0.1:0", "address of the dashboard")
	cli.Bool(cmd.Flags(), &exit, "exit", "end when the stories are told; status 0 only if each ended as it should")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if !cmd.Flags().Changed("log-level") {
			c.log.Level = "error"
		}
		if m := c.resolve(cmd.Flags(), false, false); len(m) > 0 {
			return cli.Usage("%s", strings.Join(m, "\n"))
		}
		return demo(cmd.Context(), c, cmd.OutOrStdout(), cmd.ErrOrStderr(), exit)
	}
	return cmd
}

// teller prints the moments of a story as they happen.
type teller struct {
	out   io.Writer
	mu    sync.Mutex
	begun time.Time
	brief bool            // many executions: count, do not tell each
	seen  map[string]int  // moments of this story
	ended map[string]bool // executions whose end was told
	news  chan struct{}   // something was told
}

func newTeller(out io.Writer) *teller {
	return &teller{out: out, begun: time.Now(), seen: map[string]int{}, ended: map[string]bool{}, news: make(chan struct{}, 1)}
}

func (t *teller) say(format string, args ...any) {
	fmt.Fprintf(t.out, "  %6.2fs  %s\n", time.Since(t.begun).Seconds(), fmt.Sprintf(format, args...))
}

func (t *teller) observe(m jobs.Moment) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seen[m.What]++
	switch jobs.Status(m.What) {
	case jobs.Succeeded, jobs.Warning, jobs.Failed, jobs.Cancelled:
		t.ended[m.ExecutionID] = true
	}
	select {
	case t.news <- struct{}{}:
	default:
	}
	aboutRefresh := strings.HasPrefix(m.What, "refresh")
	if t.brief && !aboutRefresh {
		return
	}
	switch m.What {
	case "called":
		t.say("called      %s.%s", m.Connector, m.Method)
	case "refused":
		t.say("refused     %s", m.Text)
	case "parked":
		t.say("parked      it holds no worker while it waits")
	case "refreshing":
		t.say("refreshing  one request for all who wait")
	case "refreshed":
		t.say("refreshed   the new token or session is stored")
	case "refresh_failed":
		t.say("refused     by the provider: %s", m.Text)
	case "held":
		t.say("held        %s", m.Text)
	case "resumed":
		t.say("resumed     by itself")
	case "looks":
	default:
		t.say("%-11s %s", m.What, m.Text)
	}
}

func (t *teller) begin(title string, brief bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begun, t.brief, t.seen = time.Now(), brief, map[string]int{}
	fmt.Fprintf(t.out, "\n%s\n", title)
}

func (t *teller) count(what string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.seen[what]
}

// heard waits until the end of each of these executions was told: results can
// be read a moment earlier than the worker that stored them tells of it.
func (t *teller) heard(ctx context.Context, ids []string) error {
	missing := func(id string) bool { return !t.ended[id] }
	for {
		t.mu.Lock()
		all := !slices.ContainsFunc(ids, missing)
		t.mu.Unlock()
		if all {
			return nil
		}
		select {
		case <-t.news:
		case <-ctx.Done():
			return errors.New("the worker did not tell of the end of every execution")
		}
	}
}

// story is one thing that happens to credentials, and how it should end.
type story struct {
	name, title string
	steps       int
	requests    int // token requests or logins that it should take
	run         func(ctx context.Context, s *stage) (requests int, err error)
}

// stage is what stories play on.
type stage struct {
	env    *devEnv
	client *jobs.Client
	api    *sampleapi.Provider
	base   string
	tell   *teller
}

func demo(ctx context.Context, c *config, out, stderr io.Writer, exit bool) error {
	api := sampleapi.New()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return cli.Failed("%v", err)
	}
	server := &http.Server{Handler: api, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = server.Serve(l) }()
	defer server.Close()

	tell := newTeller(out)
	env, err := openDev(ctx, c, stderr, tell.observe)
	if err != nil {
		return err
	}
	defer env.Close()
	run, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- env.worker.Run(run) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			fmt.Fprintln(stderr, err)
		}
	}()

	dashboard := "off"
	if env.worker.Addr != "" {
		dashboard = "http://" + env.worker.Addr + "/monitoring"
	}
	fmt.Fprintf(out, "Stepworker demo: an embedded Redis and a sample provider on %s. Dashboard: %s\n", l.Addr(), dashboard)
	s := &stage{env: env, client: jobs.NewClient(env.worker.rdb), api: api, base: "http://" + l.Addr().String(), tell: tell}
	wrong := 0
	var table strings.Builder
	tw := tabwriter.NewWriter(&table, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, "story\tsteps\tsucceeded\ttoken requests or logins\tas it should")
	for _, st := range stories() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		tell.begin(st.title, st.steps > 1)
		sctx, cancel := context.WithTimeout(ctx, demoTimeout)
		requests, err := st.run(sctx, s)
		cancel()
		verdict := "yes"
		if n := tell.count("succeeded"); err == nil && n != st.steps {
			err = fmt.Errorf("%d of %d steps succeeded once", n, st.steps)
		}
		if err == nil && requests != st.requests {
			err = fmt.Errorf("%d requests instead of %d", requests, st.requests)
		}
		if err != nil {
			verdict = "NO: " + err.Error()
			wrong++
		}
		fmt.Fprintf(tw, "%s\t%d\t%d\t%d\t%s\n", st.name, st.steps, tell.count("succeeded"), requests, verdict)
	}
	_ = tw.Flush()
	fmt.Fprintf(out, "\n%s", table.String())
	if wrong > 0 {
		fmt.Fprintf(out, "\n%d stories did not end as they should.\n", wrong)
	} else {
		fmt.Fprintln(out, "\nEvery story ended as it should.")
	}
	if !exit {
		fmt.Fprintf(out, "It stays up until Ctrl-C. Dashboard: %s\n", dashboard)
		<-ctx.Done()
	}
	if wrong > 0 {
		return &cli.Error{Code: cli.ExitFailed}
	}
	return nil
}

func stories() []story {
	return []story{
		{"it just works", "A step with a good key just works.", 1, 0, func(ctx context.Context, s *stage) (int, error) {
			if err := s.put(ctx, map[string]any{"credential_id": "weather-1", "connector": "weather", "api_key": "sample-api-key", "properties": s.props(nil)}); err != nil {
				return 0, err
			}
			return 0, s.steps(ctx, "weather-1", "now", 1)
		}},
		{"200, invalid_grant", "The token is dead, and the API says so in a cheerful 200 (after_action throws AuthRefreshException).", 1, 1, oauthStory("orders", "list_orders", 1)},
		{"403, token", "The token is dead, and the API answers 403 (after_error throws AuthRefreshException).", 1, 1, oauthStory("crm", "list_contacts", 1)},
		{"200, not logged on", "The session is lost, and the API says so in a 200 (after_action throws AuthSessionException).", 1, 1, sessionStory("ledger", "list_entries")},
		{"403, session", "The session is lost, and the API answers 403 (after_error throws AuthSessionException).", 1, 1, sessionStory("helpdesk", "list_tickets")},
		{"stampede", "200 steps meet one dead token: one token request.", 200, 1, oauthStory("orders", "list_orders", 200)},
		{"revoked, then released", "The provider revokes the account: the step is held, asks nobody again, and runs by itself once a new credential is put.", 1, 1, revokedStory},
	}
}

func oauthStory(connector, method string, n int) func(context.Context, *stage) (int, error) {
	return func(ctx context.Context, s *stage) (int, error) {
		account := fmt.Sprintf("%s-%d", connector, n)
		if err := s.putOAuth(ctx, account, connector); err != nil {
			return 0, err
		}
		s.api.KillToken(account)
		err := s.steps(ctx, account, method, n)
		s.tell.mu.Lock()
		if n > 1 {
			s.tell.say("%d called, %d refused, %d parked, %d resumed, %d succeeded", s.tell.seen["called"], s.tell.seen["refused"], s.tell.seen["parked"], s.tell.seen["resumed"], s.tell.seen["succeeded"])
		}
		s.tell.mu.Unlock()
		return s.api.TokenRequests(account), err
	}
}

func sessionStory(connector, method string) func(context.Context, *stage) (int, error) {
	return func(ctx context.Context, s *stage) (int, error) {
		id := connector + "-1"
		// A session that died long ago stands in the credential.
		err := s.put(ctx, map[string]any{"credential_id": id, "connector": connector, "basic": map[string]string{"username": sampleapi.Username, "password": sampleapi.Password},
			"properties": s.props(map[string]any{"session_id": "session-of-yesterday"})})
		if err != nil {
			return 0, err
		}
		before, _, _ := s.api.Counts()
		err = s.steps(ctx, id, method, 1)
		after, _, _ := s.api.Counts()
		return after - before, err
	}
}

func revokedStory(ctx context.Context, s *stage) (int, error) {
	const id = "crm-revoked"
	if err := s.putOAuth(ctx, id, "crm"); err != nil {
		return 0, err
	}
	s.api.Revoke(id)
	r, err := s.client.Enqueue(ctx, &jobs.Step{CredentialID: id, Method: "list_contacts"})
	if err != nil {
		return 0, err
	}
	for {
		st, err := s.env.worker.store.Status(ctx, id)
		if err != nil {
			return 0, err
		}
		if st.State == credentials.Revoked && st.Waiting == 1 {
			break
		}
		select {
		case <-ctx.Done():
			return 0, errors.New("the credential was not revoked")
		case <-time.After(20 * time.Millisecond):
		}
	}
	s.tell.mu.Lock()
	s.tell.say("held        nobody is asked again; a person puts a new credential")
	s.tell.mu.Unlock()
	requests := s.api.TokenRequests(id)
	if err := s.putOAuth(ctx, id, "crm"); err != nil {
		return requests, err
	}
	if err := s.client.RequestResume(ctx, id); err != nil {
		return requests, err
	}
	return requests, s.wait(ctx, []string{r.ExecutionID})
}

func (s *stage) props(more map[string]any) map[string]any {
	p := map[string]any{"base": s.base}
	for k, v := range more {
		p[k] = v
	}
	return p
}

func (s *stage) putOAuth(ctx context.Context, account, connector string) error {
	access, refresh := s.api.Issue(account)
	return s.put(ctx, map[string]any{"credential_id": account, "connector": connector, "client_id": sampleapi.ClientID, "client_secret": sampleapi.ClientSecret,
		"properties": s.props(nil), "oauth2": map[string]any{"access_token": access, "refresh_token": refresh, "expires_in": 3600}})
}

func (s *stage) put(ctx context.Context, v map[string]any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	in, err := credentials.DecodeInput(raw)
	if err != nil {
		return err
	}
	_, _, err = s.env.worker.store.Put(ctx, in, false)
	return err
}

// steps enqueues n steps and waits for all of them.
func (s *stage) steps(ctx context.Context, credential, method string, n int) error {
	batch := make([]*jobs.Step, n)
	for i := range batch {
		batch[i] = &jobs.Step{CredentialID: credential, Method: method}
	}
	var ids []string
	for _, r := range s.client.EnqueueBatch(ctx, batch) {
		if r.Err != nil {
			return r.Err
		}
		ids = append(ids, r.ExecutionID)
	}
	return s.wait(ctx, ids)
}

func (s *stage) wait(ctx context.Context, ids []string) error {
	var bad error
	err := s.client.Wait(ctx, ids, func(r *jobs.Result) error {
		if r.Status != jobs.Succeeded && bad == nil {
			bad = fmt.Errorf("execution %s: %s: %s", r.ExecutionID, r.Status, r.Error.Message)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("not all executions ended: %w", err)
	}
	if bad != nil {
		return bad
	}
	return s.tell.heard(ctx, ids)
}
