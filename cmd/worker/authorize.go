package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/hooks"
	"github.com/stepworker/stepworker/internal/cli"
	"github.com/stepworker/stepworker/jobs"
)

// authorization is one run of `worker credential authorize`.
type authorization struct {
	cfg        *config
	redirect   string
	file       string
	account    string
	chosen     string // the named authentication
	external   string
	properties []string
	timeout    time.Duration

	address *url.URL
	input   *credentials.Input
	def     *definition.Connector
	cred    *credentials.Credential // stored or not, with the input laid over it
	log     *slog.Logger
	rdb     redis.UniversalClient
	store   *credentials.Store
	engine  *hooks.Engine
	caller  *connectors.Caller
	back    *callback
}

func credentialAuthorize(log *cli.Log) *cobra.Command {
	a := &authorization{cfg: &config{log: log}}
	cmd := &cobra.Command{Use: "authorize CONNECTOR ID", Short: "Obtain an account's first token in the browser", Args: cobra.ExactArgs(2)}
	fs := cmd.Flags()
	// Of the pool's options those that a call needs; the others keep their defaults.
	all := pflag.NewFlagSet("", pflag.ContinueOnError)
	a.cfg.addConnectors(all)
	a.cfg.add(all)
	a.cfg.addRun(all)
	a.cfg.http = ""
	for _, name := range []string{"redis", "redis-file", "keys-file", "connectors", "partner-settings", "allow-private-network", "allow-network",
		"call-timeout", "script-timeout", "script-memory", "max-response"} {
		fs.AddFlag(all.Lookup(name))
	}
	fs.StringVar(&a.redirect, "redirect-url", "http://127.0.0.1:0/callback", "where the provider sends the browser back to, an address of this machine; port 0 picks a free one")
	fs.StringVar(&a.file, "credential-file", "", "file (or -) of a credential without a token, as `put` reads it: the base of a new one")
	fs.StringVar(&a.account, "account-id", "", "the credential's account_id")
	fs.StringVar(&a.external, "external-account-id", "", "the credential's external_account_id")
	fs.StringVar(&a.chosen, "authentication", "", "which of the connector's named authentications (default: the stored credential's, else the default one)")
	fs.StringArrayVar(&a.properties, "property", nil, "an account property: name=value")
	cli.Duration(fs, &a.timeout, "timeout", 5*time.Minute, "how long to wait for the person")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		defer a.Close()
		if err := a.resolve(cmd, args[0], args[1]); err != nil {
			return err
		}
		if err := a.open(cmd.Context(), cmd.ErrOrStderr()); err != nil {
			return err
		}
		return a.run(cmd)
	}
	return cmd
}

// resolve reads what needs neither Redis nor network.
func (a *authorization) resolve(cmd *cobra.Command, connector, id string) error {
	mistakes := a.cfg.resolve(cmd.Flags(), true, true)
	wrong := func(format string, args ...any) { mistakes = append(mistakes, fmt.Sprintf(format, args...)) }
	var err error
	if a.address, err = parseRedirect(a.redirect); err != nil {
		wrong("--redirect-url: %v", err)
	}
	if a.timeout <= 0 {
		wrong("--timeout: a positive duration is needed")
	}
	if a.input, err = a.readInput(cmd.InOrStdin(), connector, id); err != nil {
		wrong("%v", err)
	}
	if len(mistakes) > 0 {
		return cli.Usage("%s", strings.Join(mistakes, "\n"))
	}
	catalog := loadConnectors(a.cfg.connectors, wrong)
	if len(mistakes) > 0 {
		return cli.Usage("%s", strings.Join(mistakes, "\n"))
	}
	def, ok := catalog.Get(connector)
	switch {
	case !ok && catalog.Nearest(connector) != "":
		return cli.Usage("unknown connector %q; did you mean %q?", connector, catalog.Nearest(connector))
	case !ok:
		return cli.Usage("unknown connector %q", connector)
	}
	a.def = def
	if a.input.Authentication == nil && len(def.Authentications) > 0 {
		return nil // a stored credential may name one
	}
	laid, err := a.input.Over(&credentials.Credential{})
	if err != nil {
		return cli.Usage("%v", err)
	}
	return a.choose(laid)
}

// choose takes the authentication that a credential has, which must be one that
// a person is sent to a browser for.
func (a *authorization) choose(cred *credentials.Credential) error {
	def, ok := a.def.For(cred)
	switch {
	case !ok:
		return cli.Usage("%s", a.def.LacksAuthentication(cred))
	case def.Auth.Type != "oauth2":
		return cli.Usage("connector %q has auth type %s: nobody is sent to a browser for it; use `credential put`%s", def.Name, def.Auth.Type, a.ways())
	case def.Auth.Grant != "authorization_code":
		return cli.Usage("connector %q has the grant %s: nobody is sent to a browser for it; put a credential with \"oauth2\": {}%s", def.Name, def.Auth.Grant, a.ways())
	case def.Auth.AuthorizeURL == "":
		return cli.Usage("connector %q has no auth.authorize_url", def.Name)
	}
	a.def = def
	return nil
}

// ways are the alternatives that a person is sent to a browser for, as what
// else may be done.
func (a *authorization) ways() (text string) {
	for _, one := range a.def.Authentications {
		if one.Auth.Grant == "authorization_code" && one.Auth.AuthorizeURL != "" {
			text += fmt.Sprintf(", or --authentication %q", one.Name)
		}
	}
	return text
}

// readInput is the credential as the command line and the file give it.
func (a *authorization) readInput(stdin io.Reader, connector, id string) (*credentials.Input, error) {
	raw, err := json.Marshal(map[string]string{"credential_id": id, "connector": connector})
	if err != nil {
		return nil, err
	}
	in, err := credentials.DecodeInput(raw) // checks both names
	if err != nil {
		return nil, err
	}
	if a.file != "" {
		f, err := cli.OpenInput([]string{a.file}, stdin)
		if err != nil {
			return nil, fmt.Errorf("--credential-file: %w", err)
		}
		defer f.Close()
		if raw, err = io.ReadAll(io.LimitReader(f, 1<<20)); err != nil {
			return nil, fmt.Errorf("--credential-file: %s cannot be read", a.file)
		}
		if in, err = credentials.DecodeInput(raw); err != nil {
			return nil, fmt.Errorf("--credential-file: %w", err)
		}
		switch {
		case in.CredentialID != id:
			return nil, fmt.Errorf("--credential-file: it is credential %q, not %q", in.CredentialID, id)
		case in.Connector != "" && in.Connector != connector:
			return nil, fmt.Errorf("--credential-file: it is of connector %q, not %q", in.Connector, connector)
		case in.OAuth2 != nil && in.OAuth2.AccessToken+in.OAuth2.RefreshToken != "":
			return nil, errors.New("--credential-file: it holds a token already; use `credential put`")
		}
		in.Connector, in.OAuth2 = connector, nil
	}
	if a.account != "" {
		in.AccountID = &a.account
	}
	if a.chosen != "" {
		in.Authentication = &a.chosen
	}
	if a.external != "" {
		in.ExternalAccountID = &a.external
	}
	for _, p := range a.properties {
		name, value, ok := strings.Cut(p, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("--property %q: name=value is needed", name)
		}
		if in.Properties == nil {
			in.Properties = map[string]json.RawMessage{}
		}
		if in.Properties[name], err = json.Marshal(value); err != nil {
			return nil, err
		}
	}
	return in, nil
}

// open connects, and begins to listen.
func (a *authorization) open(ctx context.Context, stderr io.Writer) error {
	c := a.cfg
	a.log = c.log.Open(stderr)
	var err error
	if a.rdb, err = cli.Open(ctx, c.redisOptions); err != nil {
		return err
	}
	a.store = credentials.NewStore(a.rdb, c.keys)
	if err := fits(ctx, a.rdb, a.store); err != nil {
		return err
	}
	stored, err := a.store.Get(ctx, a.input.CredentialID)
	if errors.Is(err, credentials.ErrNotFound) {
		stored, err = &credentials.Credential{}, nil
	}
	if err != nil {
		return cli.Failed("%v", err)
	}
	if a.cred, err = a.input.Over(stored); err != nil {
		return cli.Usage("%v", err)
	}
	if err := a.choose(a.cred); err != nil {
		return err
	}
	if a.back, err = listen(a.address, a.log); err != nil {
		return cli.Usage("--redirect-url: %v", err)
	}
	if a.engine, err = hooks.New(hooks.Config{Hosts: 1, Reserved: 1, Timeout: c.timeout, Memory: c.memory, Logger: a.log}); err != nil {
		return cli.Failed("%v", err)
	}
	cc := c.callerConfig(ctx, a.rdb, a.back.Addr)
	cc.Engine, cc.AuthStyles, cc.Data, cc.Logger = a.engine, a.store, a.store, a.log
	if a.caller, err = connectors.NewCaller(cc); err != nil {
		return cli.Usage("%v", err)
	}
	return nil
}

// run sends the person away, waits, and stores what the code is exchanged for.
func (a *authorization) run(cmd *cobra.Command) error {
	ctx := cmd.Context()
	auth, err := a.caller.Authorize(ctx, a.def, a.cred, a.back.URL)
	var verdict *credentials.RefreshError
	if errors.As(err, &verdict) && verdict.Verdict == credentials.VerdictMisconfigured {
		return cli.Usage("%v", err)
	} else if err != nil {
		return cli.Failed("%v", err)
	}
	a.back.Serve(auth.State)
	fmt.Fprintf(cmd.ErrOrStderr(), "The provider sends the browser back to %s, which has to be registered there.\nopen this: %s\n", a.back.URL, auth.URL)
	openBrowser(cmd.InOrStdin(), auth.URL)
	timeout := time.NewTimer(a.timeout)
	defer timeout.Stop()
	var got *answer
	select {
	case got = <-a.back.Answers:
	case <-timeout.C:
		return cli.Failed("nobody came back from the provider within %s", a.timeout)
	case <-ctx.Done():
		return cli.Failed("interrupted: nothing was stored")
	}
	if got.Refusal != "" {
		got.Reply(http.StatusOK, "The account is not connected", "The provider refused: "+got.Refusal)
		return cli.Failed("the provider refused: %s", got.Refusal)
	}
	// From here on an interrupt would lose a token.
	err = a.finish(context.WithoutCancel(ctx), cmd, auth, got.Code)
	if err != nil {
		got.Reply(http.StatusOK, "It did not go well", "The terminal says why.")
		return err
	}
	got.Reply(http.StatusOK, "The account is connected", "You can close this window.")
	return nil
}

func (a *authorization) finish(ctx context.Context, cmd *cobra.Command, auth *connectors.Authorization, code string) error {
	exchange, cancel := context.WithTimeout(ctx, a.cfg.callTimeout)
	defer cancel()
	renewal, err := a.caller.ExchangeCode(exchange, a.def, a.cred, auth, code)
	if err != nil {
		return cli.Failed("%v", err)
	}
	a.input.OAuth2, a.input.Unopened = renewal.Input(), !renewal.Opened
	id := a.input.CredentialID
	version, waiting, err := a.store.Put(ctx, a.input, true)
	if err != nil {
		return cli.Failed("the token was obtained and could not be stored, so authorize again: %v", err)
	}
	client := jobs.NewClient(a.rdb)
	if renewal.Problem != nil {
		_ = a.store.Note(ctx, id, version, credentials.OAuth2, renewal.Problem) // it is told below too
	}
	if waiting > 0 {
		_ = client.RequestResume(ctx, id) // a hint: the pool sweeps as well
	}
	if !renewal.Opened {
		_ = client.RequestRefresh(ctx, id) // else the first step asks for it
		fmt.Fprintf(cmd.ErrOrStderr(), "The pool calls %s before anybody uses the credential; `worker credential get %s` tells how it went.\n", a.opens(), id)
	}
	if err := json.NewEncoder(cmd.OutOrStdout()).Encode(storedLine{id, "stored", version, waiting}); err != nil {
		return cli.Failed("it is stored, but that cannot be written: %v", err)
	}
	if renewal.Problem != nil {
		return cli.Failed("the token is stored, but %v", renewal.Problem)
	}
	return nil
}

// opens names the methods that a first token is opened with.
func (a *authorization) opens() string {
	var all []string
	if m := a.def.LoginMethod; m != "" {
		all = append(all, fmt.Sprintf("the login method %q", m))
	}
	if m := a.def.TestMethod; m != "" {
		all = append(all, fmt.Sprintf("the test method %q", m))
	}
	return strings.Join(all, " and ")
}

// Close closes what open opened.
func (a *authorization) Close() {
	if a.back != nil {
		a.back.Close()
	}
	if a.caller != nil {
		a.caller.Close()
	}
	if a.engine != nil {
		_ = a.engine.Close()
	}
	if a.rdb != nil {
		_ = a.rdb.Close()
	}
}

// openBrowser opens a URL where somebody sits in front of this. It is printed
// too, so nothing depends on it.
func openBrowser(stdin io.Reader, url string) {
	f, ok := stdin.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return
	}
	program := "xdg-open"
	if runtime.GOOS == "darwin" {
		program = "open"
	}
	if cmd := exec.Command(program, url); cmd.Start() == nil {
		go func() { _ = cmd.Wait() }() // it may stay as long as the browser does
	}
}
