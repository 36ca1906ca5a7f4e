// Package programtest builds this module's programs and runs them as processes
// of their own, for tests.
package programtest

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// folder holds what Main has built.
var folder string

// Main is the TestMain of a package whose tests run programs: it builds them,
// by their names below cmd, and runs the tests, up to parallel at once: more
// than there are cores, where they mostly wait. A short run builds nothing.
func Main(m *testing.M, parallel int, programs ...string) {
	flag.Parse()
	os.Exit(func() int {
		if err := flag.Set("test.parallel", fmt.Sprint(parallel)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if testing.Short() {
			return m.Run()
		}
		var err error
		if folder, err = os.MkdirTemp("", "programs"); err == nil {
			defer os.RemoveAll(folder)
			err = Build(folder, programs...)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// Build builds programs into a folder.
func Build(into string, programs ...string) error {
	var names []string
	for _, p := range programs {
		names = append(names, "github.com/stepworker/stepworker/cmd/"+p)
	}
	if out, err := exec.Command("go", append([]string{"build", "-o", into + string(filepath.Separator)}, names...)...).CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", strings.Join(programs, " and "), err, out)
	}
	return nil
}

// Path is where a program is that Main has built.
func Path(program string) string {
	if err := sources(); err != nil {
		panic(err)
	}
	return filepath.Join(folder, program)
}

// sources looks at what programs are built of, within a test: so the cache of
// test results knows of it.
var sources = sync.OnceValue(func() error {
	root := "."
	for {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			break
		}
		root = filepath.Join(root, "..")
	}
	return filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".go" {
			_, err = os.Stat(path)
		}
		return err
	})
})

// Process is a program that runs.
type Process struct {
	Cmd  *exec.Cmd
	Log  *Log          // its standard error
	Done chan struct{} // closed once it has ended
}

// Start starts a command. It is killed when the test ends; if that has failed,
// it tells the end of the log.
func Start(t testing.TB, cmd *exec.Cmd) *Process {
	t.Helper()
	p := &Process{Cmd: cmd, Log: &Log{}, Done: make(chan struct{})}
	cmd.Stderr = p.Log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = cmd.Wait(); close(p.Done) }()
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			text := p.Log.String()
			t.Logf("the log of %s ends:\n%s", filepath.Base(cmd.Path), text[max(0, len(text)-6000):])
		}
	})
	return p
}

// Kill is kill -9. It returns once the process has ended.
func (p *Process) Kill() {
	_ = p.Cmd.Process.Kill()
	<-p.Done
}

// Addr is where a worker serves HTTP, as its log says; "" before it does.
func (p *Process) Addr() string {
	for _, quote := range []string{`msg=ready http=`, `"http":"`} {
		if _, rest, found := strings.Cut(p.Log.String(), quote); found {
			addr, _, ended := strings.Cut(strings.ReplaceAll(rest, "\n", `"`), `"`)
			if ended {
				return addr
			}
		}
	}
	return ""
}

// Ready waits until a worker says that it is.
func (p *Process) Ready(t testing.TB) {
	t.Helper()
	Until(t, "the worker is ready", func() bool {
		ended := false
		select {
		case <-p.Done:
			ended = true
		default:
		}
		text := p.Log.String()
		said := strings.Contains(text, `"msg":"ready"`) || strings.Contains(text, "msg=ready")
		if ended && !said { // one that has been killed meanwhile was ready
			t.Fatal("the worker has ended")
		}
		return said
	})
}

// Log is what a process writes, to be read at any time.
type Log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Lines are those of a JSON log with a message.
func (l *Log) Lines(msg string) (all []map[string]any) {
	for line := range strings.Lines(l.String()) {
		var m map[string]any
		if json.Unmarshal([]byte(line), &m) == nil && m["msg"] == msg {
			all = append(all, m)
		}
	}
	return all
}

// Until polls until something is so, for three minutes.
func Until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it did not come to: %s", what)
		}
	}
}
