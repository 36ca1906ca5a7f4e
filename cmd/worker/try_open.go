package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/hooks"
	"github.com/stepworker/stepworker/internal/cli"
	"github.com/stepworker/stepworker/internal/embedded"
	"github.com/stepworker/stepworker/internal/strictjson"
	"github.com/stepworker/stepworker/jobs"
)

// open reads what the command line names, and tells every mistake of it at once.
func (t *try) open(cmd *cobra.Command, args []string) error {
	fs := cmd.Flags()
	fromRedis := fs.Changed("credential") || os.Getenv(cli.EnvName("credential")) != ""
	mistakes := t.cfg.resolve(fs, fromRedis, true)
	wrong := func(format string, args ...any) { mistakes = append(mistakes, fmt.Sprintf(format, args...)) }
	t.names = newSecretNames()
	recorded := &recording{}
	var err error
	if t.replayFile != "" {
		if recorded, err = readRecording(t.replayFile); err != nil { // what else is wrong may be for want of it
			return &cli.Error{Code: cli.ExitUsage, Text: joined(append(mistakes, "--replay: "+err.Error()))}
		}
	}
	switch {
	case t.recordFile != "" && t.replayFile != "":
		wrong("--record and --replay: give one of them")
	case t.replayFile != "" && fromRedis:
		wrong("--replay touches no credential in Redis: leave --credential out")
	case fromRedis && t.file != "":
		wrong("--credential and --credential-file: give one of them")
	case t.refresh && t.file == "":
		wrong("--refresh has no meaning without --credential-file")
	case t.refresh && t.replayFile != "":
		wrong("--refresh writes to the credential's file, and --replay brings no new secrets for it")
	}
	if recorded.try != "" {
		if err := strictjson.Decode([]byte(t.names.fill(recorded.try, jsonEscape)), &t.input, strictjson.Options{What: "a try"}); err != nil {
			wrong("--replay: %s: section try: %v", t.replayFile, err)
		}
	}
	switch {
	case t.lookup != "" && len(args) == 2:
		wrong("--trigger says which method is called: leave METHOD out")
	case len(args) == 2:
		t.input.Connector, t.input.Method = args[0], args[1]
	case t.lookup != "" && len(args) == 1:
		t.input.Connector = args[0]
	case t.lookup != "" && t.input.Connector == "":
		wrong("CONNECTOR is needed")
	case t.lookup == "" && (len(args) == 1 || t.input.Connector == "" || t.input.Method == ""):
		wrong("CONNECTOR and METHOD are needed")
	}
	if p, err := cli.Parameters(t.parameters); err != nil {
		wrong("%v", err)
	} else if p != nil {
		t.input.Parameters = p
	}
	if b, err := cli.JSON("body", t.body); err != nil {
		wrong("%v", err)
	} else if b != nil {
		t.input.Body = b
	}
	if raw, err := cli.JSON("webhook", t.webhook); err != nil {
		wrong("%v", err)
	} else if raw != nil {
		if err := strictjson.Decode(raw, &t.input.Webhook, strictjson.Options{What: "a webhook"}); err != nil {
			wrong("--webhook: %v", err)
		}
	}
	if raw, err := cli.JSON("cycle", t.cycle); err != nil {
		wrong("%v", err)
	} else if raw != nil {
		t.input.Cycle = nil // not laid over the recording's
		if err := strictjson.Decode(raw, &t.input.Cycle, strictjson.Options{What: "a cycle"}); err != nil {
			wrong("--cycle: %v", err)
		}
	}
	if len(t.inUse) > 0 {
		t.input.InUse = t.inUse
	}
	if w := t.input.Webhook; w != nil {
		if err := w.Validate(); err != nil {
			wrong("%v", err)
		}
	}
	t.script, t.want = recorded.script, recorded.want
	if t.scriptFile != "" {
		raw, err := os.ReadFile(t.scriptFile)
		if t.script = string(raw); err != nil {
			wrong("--script: %s cannot be read", t.scriptFile)
		}
	}
	if t.file != "" {
		if t.account.cred, err = readCredential(t.file); err != nil {
			wrong("--credential-file: %v", err)
		}
		t.account.file = t.file
		if !t.refresh {
			t.account.file = ""
		}
	} else if recorded.credential != "" {
		if t.account.cred, err = decodeCredential([]byte(t.names.fill(recorded.credential, jsonEscape))); err != nil {
			wrong("--replay: %s: section credential: %v", t.replayFile, err)
		}
	}
	if recorded.partner != "" && len(mistakes) == 0 {
		one := fmt.Sprintf("{%s: %s}", compact(t.input.Connector), t.names.fill(recorded.partner, jsonEscape))
		p := definition.ParsePartnerSettings([]byte(one), nil)
		for _, text := range p.Mistakes {
			wrong("--replay: %s: section partner: %s", t.replayFile, text)
		}
		t.cfg.partner = p.Settings
	}
	if t.recordFile != "" && len(mistakes) == 0 {
		// What cannot be kept is not worth a call.
		_, before := os.Stat(t.recordFile)
		if f, err := os.OpenFile(t.recordFile, os.O_CREATE|os.O_WRONLY, 0o600); err != nil {
			wrong("--record: %s cannot be written", t.recordFile)
		} else if _ = f.Close(); before != nil {
			_ = os.Remove(t.recordFile)
		}
	}
	if len(mistakes) > 0 {
		return &cli.Error{Code: cli.ExitUsage, Text: joined(mistakes)}
	}
	if err := t.definition(cmd); err != nil {
		return err
	}
	return t.connect(cmd, fromRedis, recorded)
}

// definition finds connector and method.
func (t *try) definition(cmd *cobra.Command) error {
	catalog, findings, err := definition.Load(t.cfg.connectors)
	if err != nil {
		return cli.Usage("--connectors: %v", err)
	}
	stop := false
	for _, f := range findings {
		if !f.Hint {
			stop = true
			fmt.Fprintln(cmd.ErrOrStderr(), f)
		}
	}
	if stop {
		return &cli.Error{Code: cli.ExitUsage}
	}
	meant := func(near string) string {
		if near == "" {
			return ""
		}
		return fmt.Sprintf("; did you mean %q?", near)
	}
	var ok bool
	if t.def, ok = catalog.Get(t.input.Connector); !ok {
		return cli.Usage("unknown connector %q%s", t.input.Connector, meant(catalog.Nearest(t.input.Connector)))
	}
	if t.lookup != "" {
		if t.trigger, ok = t.def.Trigger(t.lookup); !ok {
			return cli.Usage("--trigger: unknown trigger %q of connector %q%s", t.lookup, t.def.Name, meant(t.def.NearestTrigger(t.lookup)))
		}
		t.input.Method = t.trigger.Method
	}
	if t.method, ok = t.def.Method(t.input.Method); !ok {
		return cli.Usage("unknown method %q of connector %q%s", t.input.Method, t.def.Name, meant(t.def.NearestMethod(t.input.Method)))
	}
	return nil
}

// connect makes what the call needs: the credential, hook hosts, the caller.
func (t *try) connect(cmd *cobra.Command, fromRedis bool, recorded *recording) error {
	c := t.cfg
	var rdb redis.UniversalClient
	if fromRedis {
		var err error
		if rdb, err = cli.Open(cmd.Context(), c.redisOptions); err != nil {
			return err
		}
		t.close = append(t.close, func() { _ = rdb.Close() })
	}
	cc := c.callerConfig(cmd.Context(), rdb)
	switch {
	case fromRedis:
		var err error
		shared := &credentialCommand{rdb: rdb, store: credentials.NewStore(rdb, c.keys)}
		if err := fits(cmd.Context(), rdb, shared.store); err != nil {
			return err
		}
		t.account.store, t.account.client, cc.AuthStyles = shared.store, jobs.NewClient(rdb), shared.store
		cc.Data = shared.store
		if t.account.cred, err = shared.store.Get(cmd.Context(), t.credential); errors.Is(err, credentials.ErrNotFound) {
			return shared.explain(cmd.Context(), t.credential, err)
		} else if err != nil {
			return cli.Failed("credential %q: %v", t.credential, err)
		}
	case t.account.cred == nil:
		t.account.cred = &credentials.Credential{ID: "none", Connector: t.def.Name, Version: 1, Meta: credentials.Meta{State: credentials.Active}}
		t.account.fixed = "there is no credential: give --credential or --credential-file"
	case t.file != "" && !t.refresh:
		t.account.fixed = "nothing of a --credential-file is refreshed without --refresh"
	}
	if cc.Data == nil {
		var err error
		if cc.Data, err = t.ownStorage(cmd.Context()); err != nil {
			return cli.Failed("embedded redis: %v", err)
		}
	}
	if t.replayFile != "" {
		t.account.fixed = t.input.NoRefresh // else it may be: what comes of it is kept nowhere
		t.replay = &replay{exchanges: recorded.exchanges, names: t.names}
	}
	if got := t.account.cred.Connector; got != t.def.Name {
		return cli.Usage("the credential is one of connector %q, not of %q", got, t.def.Name)
	}
	own, ok := t.def.For(t.account.cred)
	if !ok {
		return cli.Usage("%s", t.def.LacksAuthentication(t.account.cred))
	}
	t.def = own
	var err error
	if t.engine, err = hooks.New(hooks.Config{Hosts: 1, Timeout: c.timeout, Memory: c.memory}); err != nil {
		return cli.Failed("%v", err)
	}
	t.close = append(t.close, func() { _ = t.engine.Close() })
	t.choices = cmd.OutOrStdout()
	shown := cmd.OutOrStdout()
	if t.trigger != nil { // what it offers is the output
		shown = cmd.ErrOrStderr()
	}
	t.screen = &screen{out: shown, names: t.names, step: t.script, scriptFile: t.scriptFile}
	cc.Engine = t.engine
	cc.Trace = &connectors.Trace{Event: t.screen.event, Secret: func(n connectors.NamedSecret) { t.names.add(n) }}
	cc.Transport = func(guarded http.RoundTripper) http.RoundTripper {
		w := &wire{under: guarded, max: c.maxResponse + 1, seen: func(e *exchange) { t.wire = append(t.wire, e); t.screen.exchange(e) }}
		if t.replay != nil {
			w.under = t.replay
		}
		return w
	}
	if t.caller, err = connectors.NewCaller(cc); err != nil {
		return cli.Usage("%v", err)
	}
	t.close = append(t.close, t.caller.Close)
	t.names.add(t.caller.NamedSecrets(t.def, t.account.cred)...)
	return nil
}

// ownStorage is what scripts store where there is no Redis: it begins empty,
// and is forgotten.
func (t *try) ownStorage(ctx context.Context) (connectors.ScriptData, error) {
	r, err := embedded.Start()
	if err != nil {
		return nil, err
	}
	t.close = append(t.close, r.Close)
	options, err := redis.ParseURL(r.URL())
	if err != nil {
		return nil, err
	}
	rdb := redis.NewClient(options)
	t.close = append(t.close, func() { _ = rdb.Close() })
	keys, err := credentials.ParseKeys(credentials.NewKey())
	if err != nil {
		return nil, err
	}
	store := credentials.NewStore(rdb, keys)
	_, _, err = store.Put(ctx, &credentials.Input{CredentialID: t.account.cred.ID, Connector: t.account.cred.Connector}, false)
	return store, err
}
