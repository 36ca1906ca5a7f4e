package check

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const root = "../.."

// programs is the folder of the real programs, built once.
var programs string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "deploycheck")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		build := exec.Command("go", "build", "-o", dir+"/", "./cmd/worker", "./cmd/enqueue", "./internal/sampleprovider")
		build.Dir, build.Stderr = root, os.Stderr
		if err := build.Run(); err != nil {
			panic(err)
		}
		programs = dir
		return m.Run()
	}())
}

var (
	aFlag     = regexp.MustCompile(`--([a-z][a-z-]+)`)
	aVariable = regexp.MustCompile(`STEPWORKER_[A-Z_]+`)
)

// options are the flags of a program or command, and the variables that it
// reads, as its help tells.
func options(t *testing.T, program string, command ...string) (flags, variables []string) {
	t.Helper()
	help, err := exec.Command(filepath.Join(programs, program), append(command, "--help")...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", program, command, err, help)
	}
	variables = aVariable.FindAllString(string(help), -1)
	for _, m := range aFlag.FindAllStringSubmatch(string(help), -1) {
		flags = append(flags, m[1])
		variables = append(variables, "STEPWORKER_"+strings.ToUpper(strings.ReplaceAll(m[1], "-", "_")))
	}
	if len(flags) < 3 {
		t.Fatalf("%s %v tells of no options:\n%s", program, command, help)
	}
	return flags, variables
}

// known asserts that a program has each of the variables and arguments.
func known(t *testing.T, where string, env map[string]string, program string, args []string) {
	t.Helper()
	var command []string
	if program == "worker" && len(args) > 0 {
		command, args = args[:1], args[1:]
	}
	flags, variables := options(t, program, command...)
	for name := range env {
		// OpenTelemetry's are not in the help; a wrong value is a mistake at the start.
		if !slices.Contains(variables, name) && !strings.HasPrefix(name, "OTEL_") {
			t.Errorf("%s: %s %v knows no %s", where, program, command, name)
		}
	}
	for _, a := range args {
		name, isFlag := strings.CutPrefix(a, "--")
		name, _, _ = strings.Cut(name, "=")
		if isFlag && !slices.Contains(flags, name) {
			t.Errorf("%s: %s %v knows no --%s", where, program, command, name)
		}
	}
}

// inClear are variables that would hold a secret itself.
var inClear = []string{"STEPWORKER_KEYS", "STEPWORKER_REDIS", "STEPWORKER_DASHBOARD_PASSWORD", "STEPWORKER_NOTIFY_SECRET"}

// starts asserts that `worker run` takes an environment: with files of ours in
// the place of those it names it finds nothing wrong but a Redis that is not there.
func starts(t *testing.T, where string, env map[string]string) {
	t.Helper()
	dir := t.TempDir()
	key, err := exec.Command(filepath.Join(programs, "worker"), "key", "new").Output()
	if err != nil {
		t.Fatal(err)
	}
	contents := map[string]string{
		"STEPWORKER_REDIS_FILE": "redis://:password@127.0.0.1:1/0", "STEPWORKER_KEYS_FILE": string(key), "STEPWORKER_DASHBOARD_PASSWORD_FILE": "password",
		"STEPWORKER_PARTNER_SETTINGS": "{}", "STEPWORKER_NOTIFY_SECRET_FILE": "whsec_" + string(key),
	}
	connectors, err := filepath.Abs(root + "/deploy/connectors")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(programs, "worker"), "run", "--log-level", "error")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	for name, value := range env {
		switch text, isFile := contents[name]; {
		case slices.Contains(inClear, name):
			t.Errorf("%s: %s is a secret in clear", where, name)
		case isFile:
			value = filepath.Join(dir, name)
			if err := os.WriteFile(value, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		case name == "STEPWORKER_CONNECTORS":
			value = connectors
		case name == "STEPWORKER_HTTP":
			host, port, _ := strings.Cut(value, ":")
			if _, err := strconv.Atoi(port); err != nil {
				t.Errorf("%s: %s=%q has no port", where, name, value)
			}
			value = host + ":0"
		}
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	_ = cmd.Run()
	if got := strings.TrimSpace(stderr.String()); cmd.ProcessState.ExitCode() != 2 || !strings.HasPrefix(got, "redis at 127.0.0.1:1 does not answer") || strings.Contains(got, "\n") {
		t.Errorf("%s: a worker with this environment ends with %d:\n%s", where, cmd.ProcessState.ExitCode(), got)
	}
}

// drains asserts that what stops workers waits longer than they may take: for
// steps, and for a token request that must not be lost.
func drains(t *testing.T, where string, grace time.Duration, env map[string]string) {
	t.Helper()
	source, err := os.ReadFile(root + "/jobs/pool.go")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`const refreshShutdown = (\d+) \* time\.Second`).FindSubmatch(source)
	if found == nil {
		t.Fatal("jobs/pool.go has no refreshShutdown")
	}
	seconds, _ := strconv.Atoi(string(found[1]))
	longest := time.Duration(seconds) * time.Second
	steps, err := time.ParseDuration(env["STEPWORKER_SHUTDOWN_TIMEOUT"])
	if err != nil {
		t.Errorf("%s: STEPWORKER_SHUTDOWN_TIMEOUT: %v", where, err)
	}
	if longest = max(longest, steps) + 10*time.Second; grace < longest {
		t.Errorf("%s: %s to drain, less than %s", where, grace, longest)
	}
}
