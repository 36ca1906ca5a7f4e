package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/hooks"
	"github.com/stepworker/stepworker/internal/cli"
	"github.com/stepworker/stepworker/jobs"
)

// maxRefreshes is how many refreshes the pool makes for one execution.
const maxRefreshes = 2

// try is one method call from the terminal, without a queue.
type try struct {
	cfg        *config
	credential string
	file       string
	refresh    bool
	parameters []string
	body       string
	webhook    string
	cycle      string
	inUse      []string
	scriptFile string
	recordFile string
	replayFile string
	lookup     string // the name of a trigger

	def     *definition.Connector
	method  *definition.Method
	trigger *definition.Trigger // nil without
	choices io.Writer           // where what it offers is written
	input   recordedTry
	script  string // the step's
	account account
	names   *secretNames
	screen  *screen
	wire    []*exchange
	replay  *replay // nil: the real API is called
	want    string
	caller  *connectors.Caller
	engine  *hooks.Engine
	close   []func()
}

func newTry(log *cli.Log) *cobra.Command {
	// What only a pool has is not asked for, but for options to be sound.
	t := &try{cfg: &config{log: log, concurrency: 1, queues: "steps=1", hookHosts: 1, stepScripts: "allow", hold: time.Hour, shutdown: time.Second}}
	cmd := &cobra.Command{Use: "try CONNECTOR METHOD", Short: "Call a method once, without a queue, and show requests, hooks and answers, secrets hidden", Args: cobra.MaximumNArgs(2)}
	fs := cmd.Flags()
	t.cfg.addConnectors(fs)
	t.cfg.addCall(fs)
	t.cfg.redis.Add(fs)
	fs.StringVar(&t.cfg.keysFile, "keys-file", "", "file of sealing keys (or STEPWORKER_KEYS), for --credential")
	cli.Bool(fs, &t.cfg.private, "allow-private-network", "let APIs be on loopback and private addresses")
	fs.StringVar(&t.credential, "credential", "", "id of a credential in Redis; a refresh goes through the store")
	fs.StringVar(&t.file, "credential-file", "", "file of one credential, as credential put reads it; nothing is refreshed without --refresh")
	cli.Bool(fs, &t.refresh, "refresh", "with --credential-file: refresh, and write the new secrets back to the file")
	fs.StringArrayVar(&t.parameters, "parameter", nil, "parameters: k=text or k:=JSON")
	fs.StringVar(&t.body, "body", "", "body: JSON, or @FILE")
	fs.StringVar(&t.webhook, "webhook", "", "for a webhook method, the request that came: JSON as in a step, or @FILE")
	fs.StringVar(&t.cycle, "cycle", "", "the step's place in its flow, for scripts: JSON as in a step, or @FILE")
	fs.StringArrayVar(&t.inUse, "field-in-use", nil, "locations of the response fields that the flow uses")
	fs.StringVar(&t.scriptFile, "script", "", "file of a step's script")
	fs.StringVar(&t.recordFile, "record", "", "write requests, answers and the result to this file, secrets as placeholders")
	fs.StringVar(&t.replayFile, "replay", "", "take the answers from this file, without a network, and compare requests and the result")
	fs.StringVar(&t.lookup, "trigger", "", "in place of METHOD, a trigger: call its method, and print what it offers on stdout, all else on stderr")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		defer func() {
			for i := len(t.close) - 1; i >= 0; i-- {
				t.close[i]()
			}
		}()
		if err := t.open(cmd, args); err != nil {
			return err
		}
		return t.run(cmd.Context())
	}
	return cmd
}

func (t *try) run(ctx context.Context) error {
	first := t.asPut() // as it was before any refresh
	t.screen.say("try %s.%s", t.def.Name, t.method.Name)
	out, err := t.attempts(ctx)
	if err != nil {
		t.show() // what happened until then
		return err
	}
	t.screen.result(out)
	t.show()
	t.shorten(out)
	failed := out.Status == jobs.Failed
	if t.recordFile != "" {
		if err := t.record(first, out); err != nil {
			return cli.Failed("--record: %s cannot be written: %v", t.recordFile, err)
		}
	}
	if t.trigger != nil && !failed {
		if err := t.offer(out.Content); err != nil {
			return err
		}
	}
	if t.replay != nil {
		if err := t.replay.rest(); err != nil {
			return cli.Failed("%s: %v", t.replayFile, err)
		}
		if t.want != "" {
			// What the recording expects has come, be it a failure.
			if err := t.compareResult(out); err != nil {
				return err
			}
			t.screen.tell("Requests and result are the recorded ones.")
			return nil
		}
	}
	if failed {
		return &cli.Error{Code: cli.ExitFailed}
	}
	return nil
}

// offer prints what the trigger offers, a line of JSON for each.
func (t *try) offer(content json.RawMessage) error {
	all, err := t.trigger.Choices(content)
	if err != nil {
		return cli.Failed("trigger %q: %v", t.trigger.Name, err)
	}
	r := t.names.redactor()
	for _, c := range all {
		if _, err := fmt.Fprintf(t.choices, "%s\n", r.JSON(compact(c))); err != nil {
			return cli.Failed("it cannot be written: %v", err)
		}
	}
	return nil
}

// shorten takes the connectors folder from the places in a result, so that a
// recording is the same wherever the folder is.
func (t *try) shorten(out *outcome) {
	if out.Error != nil {
		short := strings.NewReplacer(filepath.Clean(t.cfg.connectors)+string(filepath.Separator), "")
		out.Error.At, out.Error.Message = short.Replace(out.Error.At), short.Replace(out.Error.Message)
	}
}

// show prints what happened since the last time, now that all secrets of it
// are known.
func (t *try) show() {
	t.names.add(t.caller.NamedSecrets(t.def, t.account.cred)...)
	for _, e := range t.wire {
		if e.purpose == "token request" || t.def.LoginMethod != "" && e.purpose == "method "+t.def.LoginMethod {
			t.names.addLikely(e.likelySecrets()...) // also those that nothing finds
		}
	}
	t.screen.flush()
}

// attempts calls the method, and again after each refresh that it asked for.
func (t *try) attempts(ctx context.Context) (*outcome, error) {
	out := &outcome{Status: jobs.Failed}
	fail := func(kind, at, format string, args ...any) (*outcome, error) {
		out.Error = &jobs.ResultError{Kind: kind, Message: fmt.Sprintf(format, args...), At: at}
		return out, nil
	}
	if s := t.account.cred.Meta.State; s == credentials.Revoked || s == credentials.Misconfigured {
		return fail(jobs.KindRevoked, "", "the credential is %s (%s), so the pool would hold the execution: put it again, or `worker credential refresh %s`", s, t.account.cred.Meta.LastError, t.account.cred.ID)
	}
	if kind, why := t.account.due(t.caller, t.def); kind != "" && t.account.fixed != "" {
		t.screen.say("%s: the pool would renew it before the call; here it is used as it is, for %s", why, t.account.fixed)
	} else if kind != "" {
		t.screen.say("%s: the pool would renew it before the call", why)
		if err := t.renew(ctx, kind, nil); err != nil {
			return fail(jobs.KindAuth, "", "the credential could not be renewed: %v", err)
		}
		out.Refreshes++
	}
	call := &connectors.Call{Definition: t.def, Method: t.method, Parameters: t.input.Parameters, Body: t.input.Body, Script: t.script,
		FieldsInUse: t.input.InUse, Webhook: (*connectors.Webhook)(t.input.Webhook), Context: "CONNECTOR_TESTING"}
	if c := t.input.Cycle; c != nil {
		call.Cycle = connectors.Cycle(*c)
	}
	var in fetched
	call.Pages = &in
	defer func() {
		if out.Status == jobs.Failed {
			out.Pages = in.kept
		}
	}()
	for {
		if ctx.Err() != nil { // during a refresh, which goes to its end
			return nil, cli.Failed("interrupted after a refresh: its outcome is kept")
		}
		call.Credential = t.account.cred
		ans, err := t.caller.Call(ctx, call)
		var auth *connectors.AuthError
		var ce *connectors.CallError
		switch {
		case err == nil:
			if out.Status = jobs.Succeeded; ans.Warning != "" {
				out.Status, out.Error = jobs.Warning, &jobs.ResultError{Kind: jobs.KindHTTP, Message: ans.Warning}
			}
			if ans.Ran {
				out.Attempts++
			}
			out.StatusCode, out.Exit, out.Content, out.ContentEncoding, out.Fields = ans.StatusCode, ans.Exit, ans.Content, ans.ContentEncoding, ans.Fields
			if ans.Pages > 1 {
				out.Pages = ans.Pages
			}
			out.Webhook = jobs.NewWebhookResult(ans.Webhook)
			return out, nil
		case ctx.Err() != nil:
			return nil, cli.Failed("interrupted: whether the API has done what it was asked is not known")
		case errors.As(err, &ce):
			if ce.Ran {
				out.Attempts++
			}
			out.StatusCode = ce.StatusCode
			out.Error = &jobs.ResultError{Kind: ce.Kind, Message: ce.Message, Detail: ce.Detail, At: ce.At}
			if (ce.Kind == jobs.KindScript || ce.Kind == jobs.KindLimit) && ce.At != "" {
				out.Error.Detail = "" // the author's line, which the place shows as well, and the next edit changes
			}
			switch {
			case ce.Defer && ce.RetryAfter > 0:
				t.screen.say("The pool would put the execution off for %s.", ce.RetryAfter)
			case ce.Defer:
				t.screen.say("The pool would put the execution off for 60s, and longer if that happens again.")
			case ce.Repeat:
				t.screen.say("The pool would try again, with growing delays.")
			}
			return out, nil
		case !errors.As(err, &auth):
			return nil, cli.Failed("%v", err)
		}
		if auth.Ran {
			out.Attempts++
		}
		if out.StatusCode, call.ActionData = auth.Status, auth.ActionData; auth.Restart {
			in = fetched{}
		}
		t.screen.refused(auth)
		switch {
		case auth.NoRenewal:
			return fail(jobs.KindAuth, auth.At, "%s", t.nothingToRenew(ctx, auth))
		case out.Refreshes == maxRefreshes:
			return fail(jobs.KindAuth, auth.At, "refused again after %d refreshes (%s), so the pool gives up", maxRefreshes, auth.Text)
		case t.account.fixed != "":
			t.input.NoRefresh = t.account.fixed
			t.screen.say("The pool would %s", t.wouldRenew(auth))
			return fail(jobs.KindAuth, auth.At, "%s; %s", auth.Text, t.account.fixed)
		}
		t.screen.say("The pool would park the execution; now as it would then: %s", t.wouldRenew(auth))
		if err := t.renew(ctx, auth.Kind, auth.Session); err != nil {
			return fail(jobs.KindAuth, auth.At, "%s; the refresh failed: %v", auth.Text, err)
		}
		out.Refreshes++
	}
}

// fetched are the pages of a call, from one attempt to the next.
type fetched struct {
	bookmark json.RawMessage
	pages    []json.RawMessage
	kept     int // how many
}

// Load implements connectors.Pages.
func (f *fetched) Load(context.Context) (json.RawMessage, error) { return f.bookmark, nil }

// All implements connectors.Pages.
func (f *fetched) All(context.Context, int, int64) ([]json.RawMessage, error) { return f.pages, nil }

// Keep implements connectors.Pages.
func (f *fetched) Keep(_ context.Context, bookmark json.RawMessage, n int, page, _ json.RawMessage) error {
	f.bookmark, f.pages, f.kept = bookmark, append(f.pages, page), n
	return nil
}

// Leaving implements connectors.Pages.
func (f *fetched) Leaving() bool { return false }

// wouldRenew is what the pool does about a dead credential.
func (t *try) wouldRenew(e *connectors.AuthError) string {
	switch {
	case e.Kind == credentials.OAuth2:
		return "ask the token endpoint for a new token, once for all that wait, and call again."
	case len(e.Session) > 0:
		return "store the session that the script found, and call again."
	}
	return fmt.Sprintf("call login method %q, once for all that wait, and call again.", t.def.LoginMethod)
}

// maxRenewal is the time that a token request or login has, as in the pool.
const maxRenewal = 40 * time.Second

// renew renews the credential, with a session that was found or by asking. An
// interrupt does not end it: its request may have spent the refresh token, and
// the new one is to be kept.
func (t *try) renew(ctx context.Context, kind credentials.Kind, found map[string]string) error {
	t.show()
	defer context.AfterFunc(ctx, func() {
		t.screen.tell("interrupted: the refresh goes to its end, so that no new token is lost; interrupt again to end it at once")
	})()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), maxRenewal)
	defer cancel()
	err := t.account.renew(ctx, t.caller, t.def, kind, func(ctx context.Context, c *credentials.Credential) (*credentials.Renewal, error) {
		switch {
		case len(found) > 0:
			return &credentials.Renewal{Session: found, Opened: true}, nil
		case kind == credentials.Opening:
			return t.caller.Open(ctx, t.def, c)
		case kind == credentials.Testing:
			return &credentials.Renewal{Opened: true, Tested: true}, t.caller.Test(ctx, t.def, c)
		}
		return t.caller.Refresh(ctx, t.def, c, kind)
	})
	var verdict *credentials.RefreshError
	if errors.As(err, &verdict) {
		switch verdict.Verdict {
		case credentials.VerdictRevoked:
			t.screen.say("The pool would hold all executions of the credential until a person puts it again: it is revoked.")
		case credentials.VerdictMisconfigured:
			t.screen.say("The pool would hold all executions of the credential until the connector or its settings are mended: it is misconfigured.")
		default:
			t.screen.say("The pool would ask again, with growing delays, while executions stay parked.")
		}
	} else if err == nil {
		t.screen.say("renewed (%s)", kind)
	}
	return err
}

// nothingToRenew says what comes of an exception where neither a token nor a
// session can be renewed: the test method tells whether the key is dead.
func (t *try) nothingToRenew(ctx context.Context, e *connectors.AuthError) string {
	text := fmt.Sprintf("%s, and %s", e.Text, e.CannotRenew())
	if t.def.TestMethod == "" {
		return text
	}
	t.screen.say("The pool would call test method %q once:", t.def.TestMethod)
	if err := t.caller.Test(ctx, t.def, t.account.cred); err != nil {
		return fmt.Sprintf("%s; %v", text, err)
	}
	return fmt.Sprintf("method %q was refused (%s) while the test method answers: check the account's permissions", t.method.Name, e.Text)
}

// record writes the recording.
func (t *try) record(first json.RawMessage, out *outcome) error {
	for _, e := range t.wire {
		t.names.addLikely(e.likelySecrets()...)
	}
	for _, name := range t.names.short {
		t.screen.tell("%s has fewer than %d characters, so it is not hidden in the recording", name, minSecret)
	}
	hide := t.names.hide
	section := func(v any) string { return hide(pretty(compact(v))) }
	want := *out
	if out.Error != nil { // its place is another one after the next line that is written above it
		e := *out.Error
		e.At = ""
		want.Error = &e
	}
	r := &recording{try: section(t.input), credential: section(first), script: hide(t.script), want: section(want)}
	if p := partnerJSON(t.cfg.partner[t.def.Name]); p != nil {
		r.partner = section(p)
	}
	for i, e := range t.wire {
		r.exchanges = append(r.exchanges, e.record(i+1, t.names))
	}
	return r.write(t.recordFile)
}

// besideMask is a mask with what base64 leaves at its ends, which depends on
// the secret: a replay's is another.
var besideMask = regexp.MustCompile(`[A-Za-z0-9+/_=-]*\[redacted\][A-Za-z0-9+/_=-]*`)

// placeInText is where a script failed around a refresh, as the message of the
// execution says it: another line after the next that is written above it.
var placeInText = regexp.MustCompile(` \([^\s()]+:\d+:\d+\)`)

// longAgo is the expiry in a recording of what had expired.
const longAgo = "2000-01-01T00:00:00Z"

// asPut is the credential as a recording has it. Times are left out, as a
// replay is made at another one: all that counts is whether the pool would
// renew it before the call.
func (t *try) asPut() json.RawMessage {
	in := asPut(t.account.cred)
	properties, _ := in["properties"].(map[string]any)
	delete(properties, "session_expires")
	if kind, _ := t.account.due(t.caller, t.def); kind == credentials.Session && t.account.fixed == "" {
		if properties == nil {
			properties = map[string]any{}
			in["properties"] = properties
		}
		properties["session_expires"] = longAgo
	} else if token, ok := in["oauth2"].(map[string]string); ok && kind == credentials.OAuth2 && t.account.fixed == "" {
		token["expiry"] = longAgo
	}
	return compact(in)
}

// compareResult compares with what the recording says the result is. Both
// sides are masked alike: which secrets a result shows depends on their length.
// Of an error only what the recording says of it is compared.
func (t *try) compareResult(out *outcome) error {
	want := t.names.fill(t.want, jsonEscape)
	if !json.Valid([]byte(want)) {
		return cli.Failed("%s: section want is no JSON", t.replayFile)
	}
	r := t.names.redactor()
	var text []string
	masked := func(raw json.RawMessage) json.RawMessage {
		return json.RawMessage(besideMask.ReplaceAllString(string(r.JSON(raw)), redacted))
	}
	for _, d := range differences("", masked(json.RawMessage(want)), masked(compact(out))) {
		switch {
		case strings.HasPrefix(d.path, "error.") && d.old == nil:
			continue
		case d.path == "error.message" && bytes.Equal(placeInText.ReplaceAll(d.old, nil), placeInText.ReplaceAll(d.new, nil)):
			continue
		}
		text = append(text, fmt.Sprintf("%s: the result is not the recorded one: %s", t.replayFile, d.of("recorded is")))
	}
	if len(text) > 0 {
		return cli.Failed("%s", joined(text))
	}
	return nil
}
