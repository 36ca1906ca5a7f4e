package main

import (
	"errors"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/redistest"
	"github.com/stepworker/stepworker/internal/sampleapi"
)

// The files in testdata/script are the programs' behaviour, as a user sees it.
// Each runs on a Redis of its own; $API is the sample provider, which has
// issued $DEAD_TOKEN, dead by now, and $REFRESH_TOKEN.
func TestScript(t *testing.T) {
	bin := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The test binary is the worker; enqueue is built.
	if err := os.WriteFile(filepath.Join(bin, "worker"), []byte("#!/bin/sh\n"+asWorker+"=1 exec '"+exe+"' \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("go", "build", "-o", filepath.Join(bin, "enqueue"), "../enqueue").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	samples, err := filepath.Abs(filepath.Join("..", "..", "deploy", "connectors"))
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			server := redistest.New(env.T().(testing.TB))
			provider := sampleapi.New()
			api := httptest.NewServer(provider)
			env.Defer(api.Close)
			env.Setenv("PATH", bin+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Setenv("STEPWORKER_REDIS", server.URL)
			env.Setenv("STEPWORKER_KEYS", credentials.NewKey())
			env.Setenv("API", api.URL)
			dead, refresh := provider.Issue("1")
			provider.KillToken("1")
			env.Setenv("DEAD_TOKEN", dead)
			env.Setenv("REFRESH_TOKEN", refresh)
			env.Setenv("SAMPLES", samples)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// exits CODE PROGRAM ARGS…
			"exits": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) < 2 {
					ts.Fatalf("usage: exits CODE PROGRAM ARGS…")
				}
				want, err := strconv.Atoi(args[0])
				ts.Check(err)
				err = ts.Exec(args[1], args[2:]...)
				got := 0
				var exit *exec.ExitError
				if errors.As(err, &exit) {
					got = exit.ExitCode()
				} else {
					ts.Check(err)
				}
				if got != want {
					ts.Fatalf("exit status %d, want %d", got, want)
				}
			},
		},
	})
}
