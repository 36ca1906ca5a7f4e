package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/deploy"
	"github.com/stepworker/stepworker/internal/cli"
	"github.com/stepworker/stepworker/internal/embedded"
	"github.com/stepworker/stepworker/internal/strictjson"
	"github.com/stepworker/stepworker/jobs"
)

// version is set by the linker in releases; without it Go knows it of a build
// in a clone (the tag, or a pseudo-version).
var version = "dev"

func newRun(log *cli.Log) *cobra.Command {
	c := &config{log: log}
	cmd := &cobra.Command{Use: "run", Short: "Take steps and refreshes from Redis until SIGTERM, then drain", Args: cobra.NoArgs}
	c.addConnectors(cmd.Flags())
	c.add(cmd.Flags())
	c.addRun(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if m := c.resolve(cmd.Flags(), true, true); len(m) > 0 {
			return cli.Usage("%s", strings.Join(m, "\n"))
		}
		w := &Worker{cfg: c, stderr: cmd.ErrOrStderr()}
		defer w.Close()
		if err := w.Open(cmd.Context()); err != nil {
			return err
		}
		return w.Run(cmd.Context())
	}
	return cmd
}

// devEnv is a worker on an embedded Redis with a throw-away key.
type devEnv struct {
	redis   *embedded.Redis
	key     string
	samples string // folder of sample connectors, made for this run
	worker  *Worker
}

// openDev opens a worker that needs nothing installed and keeps nothing.
func openDev(ctx context.Context, c *config, stderr io.Writer, observe func(jobs.Moment)) (*devEnv, error) {
	d := &devEnv{key: credentials.NewKey()}
	var err error
	if d.redis, err = embedded.Start(); err != nil {
		return nil, cli.Failed("embedded redis: %v", err)
	}
	if c.connectors == "" {
		if d.samples, err = os.MkdirTemp("", "stepworker-connectors"); err != nil {
			d.Close()
			return nil, cli.Failed("%v", err)
		}
		sub, err := fs.Sub(deploy.Connectors, "connectors")
		if err == nil {
			err = os.CopyFS(d.samples, sub)
		}
		if err != nil {
			d.Close()
			return nil, cli.Failed("%v", err)
		}
		c.connectors = d.samples
	}
	if c.redisOptions, err = cli.ParseRedis(d.redis.URL()); err == nil {
		c.keys, err = credentials.ParseKeys(d.key)
	}
	if err != nil {
		d.Close()
		return nil, cli.Failed("%v", err)
	}
	c.private = true
	d.worker = &Worker{cfg: c, stderr: stderr, observe: observe}
	if err := d.worker.Open(ctx); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// Close ends worker and Redis, and forgets everything.
func (d *devEnv) Close() {
	if d.worker != nil {
		d.worker.Close()
	}
	if d.redis != nil {
		d.redis.Close()
	}
	if d.samples != "" {
		_ = os.RemoveAll(d.samples)
	}
}

func newDev(log *cli.Log) *cobra.Command {
	c := &config{log: log}
	var file string
	cmd := &cobra.Command{Use: "dev", Short: "Run on an embedded Redis with a throw-away key: nothing to install, nothing kept", Args: cobra.NoArgs}
	c.addConnectors(cmd.Flags())
	c.add(cmd.Flags())
	cmd.Flags().StringVar(&c.http, "http", "127.0.0.1:0", "address of the dashboard and the probes; empty: off")
	cmd.Flags().StringVar(&file, "credentials", "", "file of credentials, as `credential put` reads them")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		mistakes := c.resolve(cmd.Flags(), false, false)
		var input *os.File
		if file != "" {
			var err error
			if input, err = os.Open(file); err != nil {
				mistakes = append(mistakes, fmt.Sprintf("--credentials: %s cannot be read", file))
			} else {
				defer input.Close()
			}
		}
		if len(mistakes) > 0 {
			return cli.Usage("%s", strings.Join(mistakes, "\n"))
		}
		fmt.Fprintln(cmd.ErrOrStderr(), "worker dev: an embedded Redis with a throw-away key. NOTHING IS KEPT when it ends.")
		d, err := openDev(cmd.Context(), c, cmd.ErrOrStderr(), nil)
		if err != nil {
			return err
		}
		defer d.Close()
		if input != nil {
			if err := putAll(cmd.Context(), d.worker.store, jobs.NewClient(d.worker.rdb), input, cmd.ErrOrStderr(), false, d.worker.catalog); err != nil {
				return err
			}
		}
		fmt.Fprintf(cmd.OutOrStdout(), "export STEPWORKER_REDIS=%s\nexport STEPWORKER_KEYS=%s\nexport STEPWORKER_HTTP=%s\n", d.redis.URL(), d.key, d.worker.Addr)
		return d.worker.Run(cmd.Context())
	}
	return cmd
}

// plain resolves the flags of a command that has no more than those of logging.
func plain(cmd *cobra.Command, log *cli.Log) error {
	if m := append(cli.Resolve(cmd.Flags()), log.Mistakes()...); len(m) > 0 {
		return cli.Usage("%s", strings.Join(m, "\n"))
	}
	return nil
}

func newKey(log *cli.Log) *cobra.Command {
	fresh := &cobra.Command{Use: "new", Short: "Print a fresh sealing key", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		if err := plain(cmd, log); err != nil {
			return err
		}
		return say(cmd, credentials.NewKey())
	}}
	return group("key", "Sealing keys", fresh, keyRotate(log), keySeal(log))
}

// say prints what a command is asked for: if it cannot be written, it failed.
func say(cmd *cobra.Command, text string) error {
	if _, err := fmt.Fprintln(cmd.OutOrStdout(), text); err != nil {
		return cli.Failed("it cannot be written: %v", err)
	}
	return nil
}

func newVersion(log *cli.Log) *cobra.Command {
	cc := &credentialCommand{log: log}
	running := false
	cmd := &cobra.Command{Use: "version", Short: "Print version, commit, Go version and format of stored data", Args: cobra.NoArgs}
	cc.redis.Add(cmd.Flags())
	cli.Bool(cmd.Flags(), &running, "running", "print the workers that run on --redis, each with its build, instead")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if running {
			return cc.running(cmd)
		}
		if err := plain(cmd, log); err != nil {
			return err
		}
		return say(cmd, fmt.Sprintf("stepworker %s, %s, format %d", buildName(), runtime.Version(), jobs.Format))
	}
	return cmd
}

// buildName is this build's version and commit.
func buildName() string {
	name, commit := built()
	return name + ", commit " + commit
}

// built is what this program was built from: the version that was linked in, or
// else the one that Go knows of a build in a clone.
func built() (name, commit string) {
	name, commit = version, "unknown"
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return name, commit
	}
	if v := info.Main.Version; name == "dev" && v != "" && v != "(devel)" {
		name = v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			commit = s.Value
		}
	}
	return name, commit
}

// running prints a line of JSON for each worker that runs, also where this build
// may not work on what they store.
func (cc *credentialCommand) running(cmd *cobra.Command) error {
	mistakes := append(cli.Resolve(cmd.Flags()), cc.log.Mistakes()...)
	o, err := cc.redis.Options(cmd.Flags())
	if err != nil {
		mistakes = append(mistakes, err.Error())
	}
	if len(mistakes) > 0 {
		return cli.Usage("%s", strings.Join(mistakes, "\n"))
	}
	if cc.rdb, err = cli.Open(cmd.Context(), o); err != nil {
		return err
	}
	defer cc.rdb.Close()
	workers, err := jobs.NewClient(cc.rdb).Workers(cmd.Context())
	if err != nil {
		return cli.Failed("%v", err)
	}
	for _, w := range workers {
		if err := json.NewEncoder(cmd.OutOrStdout()).Encode(w); err != nil {
			return err
		}
	}
	return nil
}

// credentialCommand is what the credential commands share.
type credentialCommand struct {
	log      *cli.Log
	redis    cli.Redis
	keysFile string
	rdb      redis.UniversalClient
	store    *credentials.Store
}

// open resolves the flags and connects; check adds the mistakes of a command's
// own flags.
func (cc *credentialCommand) open(cmd *cobra.Command, keys bool, check func(wrong func(format string, args ...any))) error {
	mistakes := append(cli.Resolve(cmd.Flags()), cc.log.Mistakes()...)
	if check != nil {
		check(func(format string, args ...any) { mistakes = append(mistakes, fmt.Sprintf(format, args...)) })
	}
	o, err := cc.redis.Options(cmd.Flags())
	if err != nil {
		mistakes = append(mistakes, err.Error())
	}
	var ring *credentials.Keyring
	if keys {
		if ring, err = readKeys(cc.keysFile); err != nil {
			mistakes = append(mistakes, err.Error())
		}
	}
	if len(mistakes) > 0 {
		return cli.Usage("%s", strings.Join(mistakes, "\n"))
	}
	if cc.rdb, err = cli.Open(cmd.Context(), o); err != nil {
		return err
	}
	cc.store = credentials.NewStore(cc.rdb, ring)
	withKeys := cc.store
	if !keys {
		withKeys = nil
	}
	return fits(cmd.Context(), cc.rdb, withKeys)
}

func newCredential(log *cli.Log) *cobra.Command {
	return group("credential", "Credentials: put, authorize, get, list, delete, refresh, unpause",
		credentialPut(log), credentialAuthorize(log), credentialGet(log), credentialList(log), credentialDelete(log), credentialRefresh(log), credentialUnpause(log))
}

func credentialPut(log *cli.Log) *cobra.Command {
	cc := &credentialCommand{log: log}
	var merge bool
	var folder string
	cmd := &cobra.Command{Use: "put [FILE|-]", Short: "Store credentials: one JSON object, an array or NDJSON", Args: cobra.MaximumNArgs(1)}
	cc.redis.Add(cmd.Flags())
	cmd.Flags().StringVar(&cc.keysFile, "keys-file", "", "file of sealing keys (or STEPWORKER_KEYS)")
	cli.Bool(cmd.Flags(), &merge, "merge", "lay the given members over the stored ones")
	cmd.Flags().StringVar(&folder, "connectors", "", "folder of connector files: a credential that names none of them, or none of its authentications, is refused")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var in io.ReadCloser
		var catalog *definition.Catalog
		err := cc.open(cmd, true, func(wrong func(string, ...any)) {
			if folder != "" {
				catalog = loadConnectors(folder, wrong)
			}
			var err error
			if in, err = cli.OpenInput(args, cmd.InOrStdin()); err != nil {
				wrong("%v", err)
			}
		})
		if in != nil {
			defer in.Close()
		}
		if err != nil {
			return err
		}
		defer cc.rdb.Close()
		return putAll(cmd.Context(), cc.store, jobs.NewClient(cc.rdb), in, cmd.OutOrStdout(), merge, catalog)
	}
	return cmd
}

// loadConnectors reads a folder of connector files; what keeps it from being
// used is wrong.
func loadConnectors(folder string, wrong func(format string, args ...any)) *definition.Catalog {
	catalog, findings, err := definition.Load(folder)
	if err != nil {
		wrong("--connectors: %v", err)
	}
	for _, f := range findings {
		if !f.Hint {
			wrong("%s", f)
		}
	}
	return catalog
}

// storedLine tells of a credential that was put.
type storedLine struct {
	CredentialID string `json:"credential_id"`
	Status       string `json:"status"`
	Version      int64  `json:"version"`
	Released     int64  `json:"released"` // executions asked to resume
}

// putAll stores what it reads. With a catalog it refuses what is not in there.
func putAll(ctx context.Context, store *credentials.Store, client *jobs.Client, in io.Reader, out io.Writer, merge bool, catalog *definition.Catalog) error {
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	invalid := false
	err := cli.Values(ctx, in, func(v cli.Value) error {
		refuse := func(err error) error {
			invalid = true
			return enc.Encode(struct {
				Line   int    `json:"line"`
				Status string `json:"status"`
				Error  string `json:"error"`
			}{v.Line, "invalid", err.Error()})
		}
		var syntax *cli.SyntaxError
		if errors.As(v.Err, &syntax) { // its text might hold a secret
			return refuse(fmt.Errorf("malformed JSON at line %d, column %d", syntax.Line, syntax.Column))
		} else if v.Err != nil {
			return refuse(v.Err)
		}
		input, err := credentials.DecodeInput(v.Raw)
		if err != nil {
			return refuse(err)
		}
		if catalog != nil {
			input.Check = func(c *credentials.Credential) error {
				if lacks := catalog.Lacks(c); lacks != "" {
					return errors.New(lacks)
				}
				return nil
			}
		}
		version, waiting, err := store.Put(ctx, input, merge)
		if ctx.Err() != nil {
			return ctx.Err()
		} else if err != nil {
			return refuse(err)
		}
		if waiting > 0 {
			_ = client.RequestResume(ctx, input.CredentialID) // a hint: the pool sweeps as well
		}
		return enc.Encode(storedLine{input.CredentialID, "stored", version, waiting})
	})
	if ctx.Err() != nil {
		return cli.Failed("interrupted: what has no line here may not be stored")
	} else if err != nil {
		return cli.Failed("%v", err)
	}
	if invalid {
		return &cli.Error{Code: cli.ExitFailed}
	}
	return nil
}

func credentialGet(log *cli.Log) *cobra.Command {
	cc := &credentialCommand{log: log}
	cmd := &cobra.Command{Use: "get ID", Short: "Print a credential's state, never a secret", Args: cobra.ExactArgs(1)}
	cc.redis.Add(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := cc.open(cmd, false, nil); err != nil {
			return err
		}
		defer cc.rdb.Close()
		return cc.print(cmd, args[0])
	}
	return cmd
}

func (cc *credentialCommand) print(cmd *cobra.Command, id string) error {
	s, err := cc.store.Status(cmd.Context(), id)
	if err != nil {
		return cc.explain(cmd.Context(), id, err)
	}
	return json.NewEncoder(cmd.OutOrStdout()).Encode(s)
}

func (cc *credentialCommand) explain(ctx context.Context, id string, err error) error {
	if !errors.Is(err, credentials.ErrNotFound) {
		return cli.Failed("redis: %v", err)
	}
	known, _ := cc.store.IDs(ctx, 1000) // without, there is no hint
	if near := strictjson.Nearest(id, known); near != "" {
		return cli.Failed("unknown credential %q; did you mean %q?", id, near)
	}
	return cli.Failed("unknown credential %q", id)
}

func credentialList(log *cli.Log) *cobra.Command {
	cc := &credentialCommand{log: log}
	var f credentials.Filter
	var state string
	var count bool
	cmd := &cobra.Command{Use: "list", Short: "Print the states of credentials as NDJSON", Args: cobra.NoArgs}
	cc.redis.Add(cmd.Flags())
	cmd.Flags().StringVar(&state, "state", "", "only active, refreshing, revoked or misconfigured ones")
	cmd.Flags().StringVar(&f.Connector, "connector", "", "only those of a connector")
	cmd.Flags().StringVar(&f.Account, "account", "", "only those of an account")
	cli.Bool(cmd.Flags(), &count, "count", "print numbers by connector, state and verdict")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		err := cc.open(cmd, false, func(wrong func(string, ...any)) { checkState(state, wrong) })
		if err != nil {
			return err
		}
		f.State = credentials.State(state)
		defer cc.rdb.Close()
		enc := json.NewEncoder(cmd.OutOrStdout())
		type group struct {
			Connector string              `json:"connector"`
			State     credentials.State   `json:"state"`
			Verdict   credentials.Verdict `json:"verdict,omitempty"`
		}
		counts := map[group]int{}
		err = cc.store.List(cmd.Context(), f, func(s *credentials.Status) error {
			if !count {
				return enc.Encode(s)
			}
			g := group{Connector: s.Connector, State: s.State}
			if s.LastRefresh != nil {
				g.Verdict = s.LastRefresh.Verdict
			}
			if s.State == credentials.Misconfigured { // perhaps by what another credential of its client was told
				g.Verdict = credentials.VerdictMisconfigured
			}
			counts[g]++
			return nil
		})
		if err != nil {
			return cli.Failed("redis: %v", err)
		}
		groups := make([]group, 0, len(counts))
		for g := range counts {
			groups = append(groups, g)
		}
		slices.SortFunc(groups, func(a, b group) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
		for _, g := range groups {
			if err := enc.Encode(struct {
				group
				Count int `json:"count"`
			}{g, counts[g]}); err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}

func checkState(state string, wrong func(format string, args ...any)) {
	states := []string{"active", "refreshing", "revoked", "misconfigured"}
	if state != "" && !slices.Contains(states, state) {
		wrong("--state: %s is needed, not %q", strings.Join(states, ", "), state)
	}
}

func credentialDelete(log *cli.Log) *cobra.Command {
	cc := &credentialCommand{log: log}
	cmd := &cobra.Command{Use: "delete ID", Short: "Delete a credential; its waiting executions fail", Args: cobra.ExactArgs(1)}
	cc.redis.Add(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := cc.open(cmd, false, nil); err != nil {
			return err
		}
		defer cc.rdb.Close()
		if err := cc.store.Delete(cmd.Context(), args[0]); err != nil {
			return cc.explain(cmd.Context(), args[0], err)
		}
		_ = jobs.NewClient(cc.rdb).RequestResume(cmd.Context(), args[0]) // a hint: the pool sweeps as well
		return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]string{"credential_id": args[0], "status": "deleted"})
	}
	return cmd
}

func credentialRefresh(log *cli.Log) *cobra.Command {
	cc := &credentialCommand{log: log}
	var f credentials.Filter
	var state string
	var timeout time.Duration
	cmd := &cobra.Command{Use: "refresh ID…", Short: "Ask the pool for a refresh now, also of a revoked credential"}
	cc.redis.Add(cmd.Flags())
	cmd.Flags().StringVar(&f.Connector, "connector", "", "all credentials of a connector")
	cmd.Flags().StringVar(&state, "state", "", "with --connector: only those of a state")
	cli.Duration(cmd.Flags(), &timeout, "timeout", 60*time.Second, "how long to wait for the answers")
	cmd.RunE = func(cmd *cobra.Command, ids []string) error {
		err := cc.open(cmd, false, func(wrong func(string, ...any)) {
			checkState(state, wrong)
			switch {
			case f.Connector != "":
			case len(ids) == 0:
				wrong("an ID, or --connector, is needed")
			case state != "":
				wrong("--state has no meaning without --connector")
			}
			if timeout <= 0 {
				wrong("--timeout: a positive duration is needed")
			}
		})
		if err != nil {
			return err
		}
		defer cc.rdb.Close()
		ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
		defer cancel()
		f.State = credentials.State(state)
		if f.Connector != "" {
			err := cc.store.List(ctx, f, func(s *credentials.Status) error { ids = append(ids, s.CredentialID); return nil })
			if err != nil {
				return cli.Failed("redis: %v", err)
			}
		}
		return cc.refresh(ctx, cmd, ids)
	}
	return cmd
}

// refresh asks for all, then waits for each: a newer version, or a refresh
// that ended after we asked.
func (cc *credentialCommand) refresh(ctx context.Context, cmd *cobra.Command, ids []string) error {
	client := jobs.NewClient(cc.rdb)
	before := map[string]*credentials.Status{}
	failed := false
	for _, id := range ids {
		s, err := cc.store.Status(ctx, id)
		if err == nil {
			before[id] = s
			err = client.RequestRefresh(ctx, id)
		}
		if err != nil {
			failed = true
			fmt.Fprintln(cmd.ErrOrStderr(), cc.explain(ctx, id, err))
		}
	}
	ended := func(old, now *credentials.Status) bool {
		if now.State == credentials.Refreshing {
			return false
		}
		if now.Version > old.Version {
			return true
		}
		lr := now.LastRefresh
		if lr == nil || lr.Verdict == credentials.Transient || lr.Verdict == credentials.Unknown { // it is tried again
			return false
		}
		return old.LastRefresh == nil || !now.LastRefresh.At.Equal(old.LastRefresh.At) // by another worker's clock, perhaps
	}
	for _, id := range ids {
		old := before[id]
		if old == nil {
			continue
		}
		for {
			now, err := cc.store.Status(ctx, id)
			if err == nil && ended(old, now) {
				failed = failed || now.Version == old.Version || now.State != credentials.Active
				break
			}
			if errors.Is(err, credentials.ErrNotFound) || ctx.Err() != nil {
				failed = true
				break
			}
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
		s, err := cc.store.Status(cmd.Context(), id)
		if err != nil {
			fmt.Fprintln(cmd.ErrOrStderr(), cc.explain(cmd.Context(), id, err))
			continue
		}
		if err := json.NewEncoder(cmd.OutOrStdout()).Encode(s); err != nil {
			return err
		}
	}
	if failed {
		return &cli.Error{Code: cli.ExitFailed}
	}
	return nil
}

func credentialUnpause(log *cli.Log) *cobra.Command {
	cc := &credentialCommand{log: log}
	cmd := &cobra.Command{Use: "unpause ID…", Short: "Let calls go on before the time that a 429 named is over: one as a trial, then the others", Args: cobra.MinimumNArgs(1)}
	cc.redis.Add(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, ids []string) error {
		if err := cc.open(cmd, false, nil); err != nil {
			return err
		}
		defer cc.rdb.Close()
		client := jobs.NewClient(cc.rdb)
		failed := false
		for _, id := range ids {
			err := client.Unpause(cmd.Context(), id)
			if err != nil {
				err = cc.explain(cmd.Context(), id, err)
			} else {
				err = cc.print(cmd, id)
			}
			if err != nil {
				failed = true
				fmt.Fprintln(cmd.ErrOrStderr(), err)
			}
		}
		if failed {
			return &cli.Error{Code: cli.ExitFailed}
		}
		return nil
	}
	return cmd
}
