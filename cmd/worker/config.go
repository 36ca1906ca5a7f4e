package main

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/cli"
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
	private      cli.Bool
	networks     string
	hookHosts    int
	stepScripts  string
	timeout      time.Duration
	memory       byteSize
	maxResponse  byteSize
	callTimeout  time.Duration
	shutdown     time.Duration
	log          logConfig

	// read by resolve
	redisOptions *redis.Options
	keys         *credentials.Keyring
	partner      map[string]connectors.PartnerSettings
	queueWeights map[string]int
	allowed      []string
	password     string
}

// byteSize is a number of bytes: 512MiB, 10MB, 4096.
type byteSize int64

var byteUnits = []struct {
	suffix string
	n      int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"B", 1}}

func (b *byteSize) Set(s string) error {
	n, unit := s, int64(1)
	for _, u := range byteUnits {
		if v, ok := strings.CutSuffix(s, u.suffix); ok {
			n, unit = v, u.n
			break
		}
	}
	v, err := strconv.ParseInt(strings.TrimSpace(n), 10, 64)
	if err != nil || v <= 0 || v > 1<<40/unit {
		return fmt.Errorf("a size such as 512MiB is needed")
	}
	*b = byteSize(v * unit)
	return nil
}

func (b *byteSize) String() string {
	for i := 2; i >= 0; i-- {
		if u := byteUnits[i]; int64(*b) >= u.n && int64(*b)%u.n == 0 {
			return fmt.Sprintf("%d%s", int64(*b)/u.n, u.suffix)
		}
	}
	return strconv.FormatInt(int64(*b), 10)
}
func (b *byteSize) Type() string { return "size" }

type logConfig struct{ format, level string }

func (l *logConfig) add(fs *pflag.FlagSet) {
	fs.StringVar(&l.format, "log-format", "", "text or json; default: text on a terminal, else json")
	fs.StringVar(&l.level, "log-level", "info", "debug, info, warn or error")
}

// open returns a logger on stderr. The ready line is printed at any level.
func (l *logConfig) open(stderr io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.level)); err != nil {
		return nil, fmt.Errorf("--log-level: debug, info, warn or error is needed, not %q", l.level)
	}
	format := l.format
	if format == "" {
		format = "json"
		if f, ok := stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			format = "text"
		}
	}
	o := &slog.HandlerOptions{Level: level}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(stderr, o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(stderr, o)), nil
	}
	return nil, fmt.Errorf("--log-format: text or json is needed, not %q", l.format)
}

// add adds the options that run and dev share.
func (c *config) add(fs *pflag.FlagSet) {
	c.memory, c.maxResponse = 512<<20, 10<<20
	fs.StringVar(&c.connectors, "connectors", "", "folder of connector files, read recursively at start")
	fs.StringVar(&c.partnerFile, "partner-settings", "", "JSON file of client ids, secrets and properties by connector")
	fs.IntVar(&c.concurrency, "concurrency", 50, "steps at once in this process")
	fs.StringVar(&c.queues, "queues", "steps=1", "queues of steps: name=weight,…")
	fs.StringVar(&c.passwordFile, "dashboard-password-file", "", "file that holds the dashboard's password (or STEPWORKER_DASHBOARD_PASSWORD)")
	fs.DurationVar(&c.hold, "hold", 72*time.Hour, "how long an execution may wait for its credential")
	fs.StringVar(&c.networks, "allow-network", "", "networks (CIDR,…) that APIs may be in, beside public ones")
	fs.IntVar(&c.hookHosts, "hook-hosts", runtime.NumCPU(), "hook hosts kept ready")
	fs.StringVar(&c.stepScripts, "step-scripts", "allow", "allow or deny scripts that steps bring")
	fs.DurationVar(&c.timeout, "script-timeout", 60*time.Second, "time limit of one event's scripts")
	fs.Var(&c.memory, "script-memory", "memory limit of one hook host")
	fs.Var(&c.maxResponse, "max-response", "largest answer of an API")
	fs.DurationVar(&c.callTimeout, "call-timeout", 60*time.Second, "time limit of one API call; a method's timeout overrides it")
	fs.DurationVar(&c.shutdown, "shutdown-timeout", 25*time.Second, "how long running steps may take to end")
	cli.Later(fs, "notify-url")
	c.log.add(fs)
}

// addRun adds the options that only run has.
func (c *config) addRun(fs *pflag.FlagSet) {
	c.redis.Add(fs)
	fs.StringVar(&c.keysFile, "keys-file", "", "file of sealing keys (or STEPWORKER_KEYS)")
	fs.StringVar(&c.http, "http", "127.0.0.1:8080", "address of /monitoring, /healthz, /readyz and /metrics; empty: off")
	cli.BoolVar(fs, &c.private, "allow-private-network", "let APIs be on loopback and private addresses")
}

// resolve reads what flags and environment name, and returns every mistake.
func (c *config) resolve(fs *pflag.FlagSet, needKeys, needConnectors bool) []string {
	mistakes := cli.FromEnv(fs)
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
		raw, err := os.ReadFile(c.partnerFile)
		if err != nil {
			wrong("--partner-settings: %s cannot be read", c.partnerFile)
		} else if c.partner, err = connectors.ParsePartnerSettings(raw); err != nil {
			wrong("--partner-settings: %s: %v", c.partnerFile, err)
		}
	}
	if c.concurrency < 1 || c.concurrency > 10_000 {
		wrong("--concurrency: 1 to 10000 is needed, not %d", c.concurrency)
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
	if _, err := c.log.open(io.Discard); err != nil {
		wrong("%v", err)
	}
	return mistakes
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
		case strings.ContainsAny(name, "{} "):
			return nil, fmt.Errorf("%q: a queue's name holds no braces and no blanks", name)
		}
		out[name] = n
	}
	return out, nil
}

func readKeys(file string) (*credentials.Keyring, error) {
	text := os.Getenv("STEPWORKER_KEYS")
	if file != "" {
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("--keys-file: %s cannot be read", file)
		}
		text = string(raw)
	}
	if strings.TrimSpace(text) == "" {
		return nil, fmt.Errorf("STEPWORKER_KEYS or --keys-file: sealing keys are needed; `worker key new` makes one")
	}
	k, err := credentials.ParseKeys(text)
	if err != nil {
		return nil, fmt.Errorf("STEPWORKER_KEYS or --keys-file: %w", err)
	}
	return k, nil
}
