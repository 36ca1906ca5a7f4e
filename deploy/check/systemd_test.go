package check

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

const unitFile = root + "/deploy/systemd/stepworker@.service"

// unit are the settings of the unit in the order they come.
func unit(t *testing.T) (settings map[string][]string) {
	t.Helper()
	raw, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	settings = map[string][]string{}
	for line := range strings.Lines(string(raw)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(name, "#") {
			settings[name] = append(settings[name], value)
		}
	}
	return settings
}

func TestSystemd_options(t *testing.T) {
	settings := unit(t)
	env := map[string]string{}
	for _, e := range settings["Environment"] {
		name, value, _ := strings.Cut(e, "=")
		env[name] = strings.ReplaceAll(value, "%i", "8080")
	}
	for name, value := range env {
		if credential, ok := strings.CutPrefix(value, "%d/"); ok && !strings.Contains("\n"+strings.Join(settings["LoadCredential"], "\n"), "\n"+credential+":") {
			t.Errorf("%s names the credential %s, which is not loaded", name, credential)
		}
	}
	args := strings.Fields(settings["ExecStart"][0])
	if args[0] != "/usr/local/bin/worker" {
		t.Errorf("it runs %s", args[0])
	}
	known(t, "ExecStart", env, "worker", args[1:])
	if settings["Type"][0] != "notify" {
		t.Error("a rolling restart waits until the worker says that it is ready")
	}
	starts(t, "systemd", env)
	stop, err := strconv.Atoi(settings["TimeoutStopSec"][0])
	if err != nil {
		t.Fatal(err)
	}
	drains(t, "systemd", time.Duration(stop)*time.Second, env)
	// Hook hosts are children: a signal to all of them would end what drains.
	if settings["KillMode"][0] != "mixed" || settings["OOMPolicy"][0] != "continue" {
		t.Error("what befalls one hook host must not befall the worker, nor the other way round")
	}
}

// systemd itself reads the unit, and has nothing to say against it.
func TestSystemd_verify(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		if _, err := exec.LookPath("apt-get"); os.Getenv("CI") != "" || err == nil && os.Getuid() == 0 {
			t.Fatal("systemd-analyze is missing: apt-get install systemd, as `make test` does")
		}
		t.Skip("systemd-analyze is missing, and cannot be installed here: apt-get install systemd, as root")
	}
	raw, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	instance := filepath.Join(t.TempDir(), "stepworker@8080.service")
	if err := os.WriteFile(instance, []byte(strings.ReplaceAll(string(raw), "/usr/local/bin/worker", filepath.Join(programs, "worker"))), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(analyze, "verify", "--man=no", instance).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out) // an unknown setting is no error, but said
	}
	// Exposure goes from 0 to 100; below 20 is "OK".
	if out, err := exec.Command(analyze, "security", "--offline=yes", "--threshold=20", "--no-pager", instance).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
