// Command sampleprovider is the provider of package sampleapi in a process of
// its own, for trying out a deployment: at start it puts a credential for each
// sample connector, and from then on its tokens and sessions die every now and
// then without notice. Its log shows each request, so that one sees a call that
// is refused, one token request, and the call again.
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
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/cli"
	"github.com/stepworker/stepworker/internal/sampleapi"
	"github.com/stepworker/stepworker/jobs"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go func() { <-ctx.Done(); stop() }()
	cmd := command(os.Stderr)
	os.Exit(cli.Exit(os.Stderr, cmd.ExecuteContext(ctx)))
}

type provider struct {
	log    cli.Log
	redis  cli.Redis
	keys   string
	listen string
	base   string
	life   time.Duration
	api    *sampleapi.Provider
}

func command(stderr io.Writer) *cobra.Command {
	p := &provider{api: sampleapi.New()}
	cmd := &cobra.Command{Use: "sampleprovider", Short: "The sample provider, with a credential for each sample connector", Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true}
	fs := cmd.Flags()
	p.log.Add(fs)
	p.redis.Add(fs)
	fs.StringVar(&p.keys, "keys-file", "", "file of sealing keys (or STEPWORKER_KEYS)")
	fs.StringVar(&p.listen, "listen", "127.0.0.1:8090", "address to listen on")
	fs.StringVar(&p.base, "base", "http://127.0.0.1:8090", "URL at which workers find it")
	cli.Duration(fs, &p.life, "life", time.Minute, "after how long tokens and sessions die")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return p.run(cmd, stderr) }
	return cmd
}

func (p *provider) run(cmd *cobra.Command, stderr io.Writer) error {
	mistakes := append(cli.Resolve(cmd.Flags()), p.log.Mistakes()...)
	options, err := p.redis.Options(cmd.Flags())
	if err != nil {
		mistakes = append(mistakes, err.Error())
	}
	keys, err := p.readKeys()
	if err != nil {
		mistakes = append(mistakes, err.Error())
	}
	if u, err := url.Parse(p.base); err != nil || u.Host == "" {
		mistakes = append(mistakes, "--base: a URL is needed")
	}
	if p.life <= 0 {
		mistakes = append(mistakes, "--life: a positive duration is needed")
	}
	if len(mistakes) > 0 {
		return cli.Usage("%s", strings.Join(mistakes, "\n"))
	}
	ctx, log := cmd.Context(), p.log.Open(stderr)
	rdb, err := cli.Open(ctx, options)
	if err != nil {
		return err
	}
	defer rdb.Close()
	server := &http.Server{Addr: p.listen, Handler: told(p.api, log), ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.ListenAndServe() }()
	defer server.Close()
	store, client := credentials.NewStore(rdb, keys), jobs.NewClient(rdb)
	var accounts []string
	for _, c := range p.samples() {
		raw, err := json.Marshal(c)
		if err != nil {
			return err
		}
		in, err := credentials.DecodeInput(raw)
		if err != nil {
			return err
		}
		if _, _, err := store.Put(ctx, in, false); err != nil {
			return cli.Failed("%s: %v", in.CredentialID, err)
		}
		_ = client.RequestResume(ctx, in.CredentialID) // a hint: the pool sweeps as well
		if c["oauth2"] != nil {
			accounts = append(accounts, in.CredentialID)
		}
		log.Info("credential put", "credential_id", in.CredentialID)
	}
	tick := time.NewTicker(p.life)
	defer tick.Stop()
	for {
		// The first ones die at once: the first step of each is refused.
		for _, a := range accounts {
			p.api.KillToken(a)
		}
		p.api.KillSessions()
		log.Info("tokens and sessions died")
		select {
		case <-ctx.Done():
			return nil
		case err := <-served:
			return cli.Failed("--listen: %v", err)
		case <-tick.C:
		}
	}
}

func (p *provider) readKeys() (*credentials.Keyring, error) {
	text := os.Getenv("STEPWORKER_KEYS")
	if p.keys != "" {
		raw, err := os.ReadFile(p.keys)
		if err != nil {
			return nil, fmt.Errorf("--keys-file: %s cannot be read", p.keys)
		}
		text = string(raw)
	}
	if text == "" {
		return nil, errors.New("STEPWORKER_KEYS or --keys-file: sealing keys are needed")
	}
	return credentials.ParseKeys(text)
}

// samples are a credential for each sample connector that knows this provider.
func (p *provider) samples() (all []map[string]any) {
	for _, connector := range []string{"crm", "orders"} {
		id := connector + "-1"
		access, refresh := p.api.Issue(id)
		all = append(all, map[string]any{"credential_id": id, "connector": connector, "properties": map[string]any{"base": p.base},
			"client_id": sampleapi.ClientID, "client_secret": sampleapi.ClientSecret,
			"oauth2": map[string]any{"access_token": access, "refresh_token": refresh, "expires_in": 3600}})
	}
	for _, connector := range []string{"ledger", "helpdesk"} {
		all = append(all, map[string]any{"credential_id": connector + "-1", "connector": connector,
			"properties": map[string]any{"base": p.base, "username": sampleapi.Username, "password": sampleapi.Password}})
	}
	return append(all, map[string]any{"credential_id": "weather-1", "connector": "weather", "api_key": "sample-api-key", "properties": map[string]any{"base": p.base}})
}

// told logs each request and its answer.
func told(next http.Handler, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := &status{ResponseWriter: w, code: http.StatusOK}
		next.ServeHTTP(s, r)
		log.Info("asked", "method", r.Method, "path", r.URL.Path, "status", s.code)
	})
}

type status struct {
	http.ResponseWriter
	code int
}

func (s *status) WriteHeader(code int) {
	s.code = code
	s.ResponseWriter.WriteHeader(code)
}
