package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stepworker/stepworker/internal/redistest"
)

// process is the program with its streams in our hands.
type process struct {
	t      *testing.T
	stdin  *io.PipeWriter
	cancel context.CancelFunc // what a signal does
	stdout *bufio.Scanner
	stderr strings.Builder
	exit   int
	ended  sync.WaitGroup
}

func start(t *testing.T, server *redistest.Server, args ...string) *process {
	t.Helper()
	t.Setenv("STEPWORKER_REDIS", server.URL)
	in, stdin := io.Pipe()
	stdout, out := io.Pipe()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	p := &process{t: t, stdin: stdin, cancel: cancel, stdout: bufio.NewScanner(stdout)}
	p.ended.Go(func() {
		p.exit = run(ctx, args, in, out, &p.stderr)
		out.Close()
	})
	t.Cleanup(func() {
		cancel()
		stdin.Close()
		stdout.Close()
		p.ended.Wait()
	})
	return p
}

func (p *process) write(format string, args ...any) {
	p.t.Helper()
	if _, err := fmt.Fprintf(p.stdin, format, args...); err != nil {
		p.t.Error(err)
	}
}

func (p *process) line() map[string]any {
	p.t.Helper()
	if !p.stdout.Scan() {
		p.t.Fatalf("no line: %s", p.stderr.String())
	}
	var v map[string]any
	if err := json.Unmarshal(p.stdout.Bytes(), &v); err != nil {
		p.t.Fatal(err)
	}
	return v
}

// end waits for the program's end; no line may be left.
func (p *process) end(exit int, stderr string) {
	p.t.Helper()
	for p.stdout.Scan() {
		p.t.Errorf("one more line: %s", p.stdout.Text())
	}
	p.ended.Wait()
	if p.exit != exit || strings.TrimSpace(p.stderr.String()) != stderr {
		p.t.Errorf("exit %d, stderr %q; want %d, %q", p.exit, p.stderr.String(), exit, stderr)
	}
}

const step = `{"execution_id": "s%d", "credential_id": "c", "method": "m"}` + "\n"

// Redis dies in the middle of an input: each step that was read has its line,
// and the exit says from where to go on.
func TestInput_redisDiesInTheMiddle(t *testing.T) {
	server := redistest.New(t)
	p := start(t, server)
	go func() {
		for i := range batch {
			p.write(step, i)
		}
	}()
	for range batch {
		if v := p.line(); v["status"] != "enqueued" {
			t.Fatal(v)
		}
	}
	server.Kill()
	p.write(step, batch)
	p.write(`{"credential_id": "c", "method": ""}` + "\n")
	p.write(`{"credential_id": "c", "method": "no id of its own"}` + "\n")
	p.stdin.Close()
	var got []any
	for range 3 {
		v := p.line()
		id, _ := v["execution_id"].(string)
		reason, _, _ := strings.Cut(fmt.Sprint(v["error"]), ":")
		got = append(got, []any{v["line"], v["status"], len(id), reason})
	}
	want := []any{[]any{501.0, "unknown", len("s500"), "redis"}, []any{502.0, "invalid", 0, "method is missing"}, []any{503.0, "unknown", 26, "redis"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	p.end(2, "redis cannot be used: 500 steps were enqueued, of 2 it is not known: enqueue them again under the same execution_id; nothing after line 503 was enqueued")
}

// A step that comes through a pipe does not wait for the pipe's end.
func TestInput_whatComesSlowlyIsEnqueuedAtOnce(t *testing.T) {
	p := start(t, redistest.New(t))
	for i := range 3 {
		p.write(`{"credential_id":"c","method":"m","execution_id":"e%d"}`+"\n", i)
		if l := p.line(); l["status"] != "enqueued" || l["execution_id"] != fmt.Sprintf("e%d", i) {
			t.Errorf("got %v", l)
		}
	}
	p.stdin.Close()
	p.end(0, "")
}

func TestWait_interruptedPrintsWhatIsPending(t *testing.T) {
	p := start(t, redistest.New(t), "--wait")
	p.write(step, 1)
	p.stdin.Close()
	if v := p.line(); v["status"] != "enqueued" {
		t.Fatal(v)
	}
	p.cancel()
	if diff := cmp.Diff(map[string]any{"execution_id": "s1", "status": "pending"}, p.line()); diff != "" {
		t.Error(diff)
	}
	p.end(1, "")
}

func TestWait_saysWhatIsUnknown(t *testing.T) {
	server := redistest.New(t)
	p := start(t, server, "--wait")
	p.write(step, 1)
	p.stdin.Close()
	if v := p.line(); v["status"] != "enqueued" {
		t.Fatal(v)
	}
	if err := server.Client(t).FlushAll(context.Background()).Err(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]any{"execution_id": "s1", "status": "unknown"}, p.line()); diff != "" {
		t.Error(diff)
	}
	p.end(1, "")
}

// A terminal or pipe that nothing comes from does not hold the program.
func TestInput_interrupted(t *testing.T) {
	p := start(t, redistest.New(t))
	p.write("x\n")
	if v := p.line(); v["status"] != "invalid" {
		t.Fatal(v)
	}
	p.write(step, 1)
	p.cancel()
	p.end(1, "interrupted: 0 steps were enqueued; nothing after line 1 was enqueued")
}
