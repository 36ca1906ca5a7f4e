package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/programtest"
	"github.com/stepworker/stepworker/internal/redistest"
)

// A terminal or pipe that nothing comes from does not hold the program.
func TestCredentialPut_interruptedEnds(t *testing.T) {
	t.Setenv("STEPWORKER_REDIS", redistest.New(t).URL)
	t.Setenv("STEPWORKER_KEYS", credentials.NewKey())
	in, stdin := io.Pipe()
	defer stdin.Close()
	stdout, out := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var stderr strings.Builder
	exit := make(chan int)
	go func() { exit <- run(ctx, []string{"credential", "put"}, in, out, &stderr) }()
	fmt.Fprintln(stdin, `{"credential_id":"c","connector":"weather"}`)
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || !strings.Contains(line, "stored") {
		t.Fatal(line, err)
	}
	cancel()
	if code := <-exit; code != 1 || !strings.HasPrefix(stderr.String(), "interrupted: ") {
		t.Errorf("exit %d, stderr %q", code, stderr.String())
	}
}

// dev runs `worker dev` until ready, and returns what it has said by then.
func dev(t *testing.T, args ...string) (stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var out, log programtest.Log
	exit := make(chan int, 1)
	go func() { exit <- run(ctx, append([]string{"dev"}, args...), strings.NewReader(""), &out, &log) }()
	for deadline := time.Now().Add(time.Minute); !strings.Contains(log.String(), `"ready"`); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it is not ready: %s", log.String())
		}
	}
	cancel()
	if code := <-exit; code != 0 {
		t.Errorf("exit %d: %s", code, log.String())
	}
	return out.String(), log.String()
}

func TestDev_emptyAddressTurnsHTTPOff(t *testing.T) {
	stdout, stderr := dev(t, "--http", "")
	if !strings.HasSuffix(stdout, "export STEPWORKER_HTTP=\n") || !strings.Contains(stderr, `"http":"off"`) {
		t.Errorf("%s\n%s", stdout, stderr)
	}
}

func TestDev_saysAtAnyLevelWhyThereIsNoDashboard(t *testing.T) {
	_, stderr := dev(t, "--http", "0.0.0.0:0", "--log-level", "error")
	if !strings.Contains(stderr, "the dashboard is not served: without a password") {
		t.Error(stderr)
	}
}
