package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"net/url"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/pflag"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/cli"
	"github.com/stepworker/stepworker/internal/otlp"
	"github.com/stepworker/stepworker/jobs"
)

// config is everything a worker process can be told.
type config struct {
	redis        cli.Redis
	connectors   string
	keysFile     string
	partnerFile  string
	concurrency  int
	queues       string
	http         string
	passwordFile string
	hold         time.Duration
	private      bool
	networks     string
	hookHosts    int
	stepScripts  string
	timeout      time.Duration
	memory       int64
	maxResponse  int64
	callTimeout  time.Duration
	shutdown     time.Duration
	notifyURL    string
	notifyFile   string
	log          *cli.Log

	// read by resolve
	redisOptions *cli.RedisOptions
	keys         *credentials.Keyring
	partner      map[string]definition.PartnerSettings
	partnerAged  []string // sealed settings whose key cannot go yet, in words
	queueWeights map[string]int
	allowed      []string
	password     string
	notifySecret credentials.Secret
	traces       *otlp.Config
}

var byteUnits = []struct {
	suffix string
	n      int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"B", 1}}

// byteSize adds a flag for a number of bytes: 512MiB, 10MB, 4096.
func byteSize(fs *pflag.FlagSet, p *int64, name string, def int64, usage string) {
	*p = def
	cli.Var(fs, p, name, "size", parseSize, formatSize, usage)
}

func parseSize(s string) (int64, error) {
	n, unit := s, int64(1)
	for _, u := range byteUnits {
		if v, ok := strings.CutSuffix(s, u.suffix); ok {
			n, unit = v, u.n
			break
		}
	}
	v, err := strconv.ParseInt(strings.TrimSpace(n), 10, 64)
	if err != nil || v <= 0 || v > 1<<40/unit {
		return 0, errors.New("a size such as 512MiB is needed")
	}
	return v * unit, nil
}

func formatSize(n int64) string {
	for i := 2; i >= 0; i-- {
		if u := byteUnits[i]; n >= u.n && n%u.n == 0 {
			return fmt.Sprintf("%d%s", n/u.n, u.suffix)
		}
	}
	return strconv.FormatInt(n, 10)
}

// addConnectors adds the option that demo alone lacks.
func (c *config) addConnectors(fs *pflag.FlagSet) {
	fs.StringVar(&c.connectors, "connectors", "", "folder of connector files, read recursively at start")
}

// add adds the options that run, dev and demo share.
func (c *config) add(fs *pflag.FlagSet) {
	c.addCall(fs)
	cli.Int(fs, &c.concurrency, "concurrency", 50, "steps at once in this process")
	fs.StringVar(&c.queues, "queues", "steps=1", "queues of steps: name=weight,…")
	fs.StringVar(&c.passwordFile, "dashboard-password-file", "", "file that holds the dashboard's password (or STEPWORKER_DASHBOARD_PASSWORD)")
	cli.Duration(fs, &c.hold, "hold", 72*time.Hour, "how long an execution may wait for its credential")
	cli.Int(fs, &c.hookHosts, "hook-hosts", runtime.NumCPU(), "hook hosts kept ready")
	fs.StringVar(&c.stepScripts, "step-scripts", "allow", "allow or deny scripts that steps bring")
	cli.Duration(fs, &c.shutdown, "shutdown-timeout", 25*time.Second, "how long running steps may take to end")
}

// addCall adds the options that calls are made by, wherever they are made.
func (c *config) addCall(fs *pflag.FlagSet) {
	fs.StringVar(&c.partnerFile, "partner-settings", "", "JSON file of client ids, secrets and properties by connector")
	fs.StringVar(&c.networks, "allow-network", "", "networks (CIDR,…) that APIs may be in, beside public ones")
	cli.Duration(fs, &c.timeout, "script-timeout", 60*time.Second, "time limit of one event's scripts")
	byteSize(fs, &c.memory, "script-memory", 512<<20, "memory limit of one hook host")
	byteSize(fs, &c.maxResponse, "max-response", 10<<20, "largest answer of an API")
	cli.Duration(fs, &c.callTimeout, "call-timeout", 60*time.Second, "time limit of one API call; a method's timeout overrides it")
}

// addRun adds the options that only run has.
func (c *config) addRun(fs *pflag.FlagSet) {
	c.redis.Add(fs)
	fs.StringVar(&c.keysFile, "keys-file", "", "file of sealing keys (or STEPWORKER_KEYS)")
	fs.StringVar(&c.http, "http", "127.0.0.1:8080", "address of /monitoring, /healthz, /readyz, /metrics and /schema/connector.json; empty: off")
	cli.Bool(fs, &c.private, "allow-private-network", "let APIs be on loopback and private addresses")
	fs.StringVar(&c.notifyURL, "notify-url", "", "address that is told, signed, of credentials that fail, are revoked, recover")
	fs.StringVar(&c.notifyFile, "notify-secret-file", "", "file that holds the secret which signs them (or STEPWORKER_NOTIFY_SECRET)")
}

// openFiles is how many a worker may need at once: each step a hook host's three
// pipes, a connection to its API, and one to Redis; and what there is when it is idle.
func openFiles(concurrency, hookHosts int) uint64 {
	return 64 + uint64(5*concurrency+3*hookHosts)
}

// mayOpen is how many the system lets this process have open. Without them
// steps fail that are right.
func mayOpen() uint64 {
	var limit syscall.Rlimit // Go has raised the soft limit to the hard one
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return math.MaxUint64
	}
	return limit.Cur
}

// resolve reads what flags and environment name, and returns every mistake.
func (c *config) resolve(fs *pflag.FlagSet, needKeys, needConnectors bool) []string {
	mistakes := append(cli.Resolve(fs), c.log.Mistakes()...)
	wrong := func(format string, args ...any) { mistakes = append(mistakes, fmt.Sprintf(format, args...)) }
	var err error
	if fs.Lookup("redis") != nil {
		if c.redisOptions, err = c.redis.Options(fs); err != nil {
			wrong("%v", err)
		}
	}
	if needKeys {
		if c.keys, err = readKeys(c.keysFile); err != nil {
			wrong("%v", err)
		}
	}
	if needConnectors && c.connectors == "" {
		wrong("--connectors: a folder of connector files is needed")
	} else if c.connectors != "" {
		if info, err := os.Stat(c.connectors); err != nil || !info.IsDir() {
			wrong("--connectors: %s is no folder that can be read", c.connectors)
		}
	}
	if c.partnerFile != "" {
		for _, text := range c.readPartner(needKeys) {
			wrong("--partner-settings: %s", text)
		}
	}
	if c.concurrency < 1 || c.concurrency > 10_000 {
		wrong("--concurrency: 1 to 10000 is needed, not %d", c.concurrency)
	} else if files := openFiles(c.concurrency, c.hookHosts); fs.Lookup("concurrency") != nil && mayOpen() < files {
		wrong("--concurrency: %d takes up to %d open files, and the system lets this process have %d (ulimit -n)", c.concurrency, files, mayOpen())
	}
	if c.hookHosts < 1 || c.hookHosts > 1000 {
		wrong("--hook-hosts: 1 to 1000 is needed, not %d", c.hookHosts)
	}
	if c.stepScripts != "allow" && c.stepScripts != "deny" {
		wrong("--step-scripts: allow or deny is needed, not %q", c.stepScripts)
	}
	for name, d := range map[string]time.Duration{"hold": c.hold, "script-timeout": c.timeout, "call-timeout": c.callTimeout, "shutdown-timeout": c.shutdown} {
		if d <= 0 {
			wrong("--%s: a positive duration is needed", name)
		}
	}
	if c.memory < 64<<20 {
		wrong("--script-memory: at least 64MiB is needed")
	}
	if c.queueWeights, err = parseQueues(c.queues); err != nil {
		wrong("--queues: %v", err)
	}
	for _, n := range strings.Split(c.networks, ",") {
		if n = strings.TrimSpace(n); n == "" {
			continue
		}
		if _, err := netip.ParsePrefix(n); err != nil {
			wrong("--allow-network: %q is not in CIDR notation", n)
		}
		c.allowed = append(c.allowed, n)
	}
	c.password = os.Getenv("STEPWORKER_DASHBOARD_PASSWORD")
	if c.passwordFile != "" {
		raw, err := os.ReadFile(c.passwordFile)
		if c.password = strings.TrimRight(string(raw), "\r\n"); err != nil || c.password == "" {
			wrong("--dashboard-password-file: %s cannot be read, or is empty", c.passwordFile)
		}
	}
	if err := checkAddress(c.http); err != nil {
		wrong("--http: %v", err)
	}
	mistakes = append(mistakes, c.resolveNotify(fs)...)
	if fs.Lookup("concurrency") != nil { // of a pool
		var wrongs []string
		c.traces, wrongs = otlp.FromEnvironment()
		mistakes = append(mistakes, wrongs...)
	}
	return mistakes
}

// readPartner reads the partner settings, sealed ones too: of a command that
// needs no keys for itself with those that are there.
func (c *config) readPartner(haveKeys bool) (mistakes []string) {
	raw, err := os.ReadFile(c.partnerFile)
	if err != nil {
		return []string{c.partnerFile + " cannot be read"}
	}
	keys := c.keys
	if !haveKeys {
		if keys, err = givenKeys(c.keysFile); err != nil {
			return []string{err.Error()}
		}
	}
	p := definition.ParsePartnerSettings(raw, keys)
	for _, text := range p.Mistakes {
		mistakes = append(mistakes, c.partnerFile+": "+text)
	}
	for _, place := range p.Aged {
		c.partnerAged = append(c.partnerAged, fmt.Sprintf("%s is not sealed with the first key: seal it again (`worker key seal %s`) before the key goes that opens it", strings.Replace(place, " ", ".", 1), place))
	}
	c.partner = p.Settings
	return mistakes
}

// resolveNotify reads who is told of credentials, and what signs it.
func (c *config) resolveNotify(fs *pflag.FlagSet) []string {
	if c.notifyURL == "" {
		if c.notifyFile != "" {
			return []string{"--notify-secret-file has no meaning without --notify-url"}
		}
		return nil
	}
	var mistakes []string
	wrong := func(format string, args ...any) { mistakes = append(mistakes, fmt.Sprintf(format, args...)) }
	if err := jobs.CheckNotifyURL(c.notifyURL); err != nil {
		wrong("--notify-url: %v", err)
	} else if u, err := url.Parse(c.notifyURL); err == nil && cli.OnCommandLine(fs, "notify-url") {
		if _, has := u.User.Password(); has {
			wrong("--notify-url: a URL with a password does not belong on a command line; use STEPWORKER_NOTIFY_URL")
		}
	}
	text := os.Getenv("STEPWORKER_NOTIFY_SECRET")
	if c.notifyFile != "" {
		raw, err := os.ReadFile(c.notifyFile)
		if err != nil {
			wrong("--notify-secret-file: %s cannot be read", c.notifyFile)
			return mistakes
		}
		text = string(raw)
	}
	c.notifySecret = credentials.NewSecret(strings.TrimSpace(text))
	if err := jobs.CheckNotifySecret(c.notifySecret); err != nil {
		wrong("STEPWORKER_NOTIFY_SECRET or --notify-secret-file: %v", err)
	}
	return mistakes
}

// checkAddress says whether an address to listen on, or none, is well formed.
func checkAddress(addr string) error {
	if addr == "" {
		return nil
	}
	_, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("an address such as 127.0.0.1:8080 is needed, not %q", addr)
	}
	return nil
}

func parseQueues(s string) (map[string]int, error) {
	out := map[string]int{}
	for _, part := range strings.Split(s, ",") {
		name, weight, ok := strings.Cut(strings.TrimSpace(part), "=")
		n, err := strconv.Atoi(weight)
		switch {
		case !ok || name == "" || err != nil || n < 1:
			return nil, fmt.Errorf("name=weight,… is needed, not %q", s)
		case name == jobs.QueueRefresh:
			return nil, fmt.Errorf("%q is reserved", name)
		case jobs.IsOverflow(name):
			return nil, fmt.Errorf("%q is reserved: names that end in .2 and .3 are of overflow", name)
		case strings.ContainsAny(name, "{} "):
			return nil, fmt.Errorf("%q: a queue's name holds no braces and no blanks", name)
		}
		out[name] = n
	}
	return out, nil
}

func readKeys(file string) (*credentials.Keyring, error) {
	k, err := givenKeys(file)
	if err == nil && k == nil {
		err = errors.New("STEPWORKER_KEYS or --keys-file: sealing keys are needed; `worker key new` makes one")
	}
	return k, err
}

// givenKeys are the keys, nil if none are given.
func givenKeys(file string) (*credentials.Keyring, error) {
	text := os.Getenv("STEPWORKER_KEYS")
	if file != "" {
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("--keys-file: %s cannot be read", file)
		}
		text = string(raw)
	}
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	k, err := credentials.ParseKeys(text)
	if err != nil {
		return nil, fmt.Errorf("STEPWORKER_KEYS or --keys-file: %w", err)
	}
	return k, nil
}

// callerConfig is what a caller needs of the options. Every server of Redis is
// out of its reach (without a client those that the URL names), and so are the
// addresses that this process itself listens on.
func (c *config) callerConfig(ctx context.Context, rdb redis.UniversalClient, own ...string) connectors.CallerConfig {
	own = append(own, c.redisOptions.Nodes(ctx, rdb)...)
	return connectors.CallerConfig{Partner: c.partner, AllowPrivate: c.private, AllowNetworks: c.allowed, Forbidden: own,
		MaxResponse: c.maxResponse, CallTimeout: c.callTimeout}
}
