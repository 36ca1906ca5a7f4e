package main

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The parts that plan a deployment run: processes share the work (one that did
// nothing fails the run), and each kind of step comes to its end.
func TestBench_scaleAndCost(t *testing.T) {
	t.Parallel()
	bin := filepath.Join(t.TempDir(), "bench")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for name, tc := range map[string]struct {
		args []string
		want []string
	}{
		"scale": {[]string{"-only", "scale", "-seconds", "1", "-concurrency", "4", "-queues", "2"}, []string{"1 process(es)", "2 process(es)", "4 process(es)"}},
		"cost":  {[]string{"-only", "cost", "-steps", "100"}, []string{"plain", "3 hook events", "3 pages", "parked once", "refresh of its own", "enqueued one by one"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out, errs bytes.Buffer
			cmd := exec.Command(bin, append(tc.args, "-rounds", "1")...)
			cmd.Stdout, cmd.Stderr = &out, &errs
			if err := cmd.Run(); err != nil {
				t.Fatalf("%v\n%s%s", err, &out, &errs)
			}
			for _, line := range tc.want {
				if !strings.Contains(out.String(), line) {
					t.Errorf("no figures for %s:\n%s", line, &out)
				}
			}
		})
	}
}
