// Command enqueue puts steps into Redis and reads their results. It needs no
// key and no connectors.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9/logging"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/term"

	"github.com/stepworker/stepworker/internal/cli"
	"github.com/stepworker/stepworker/internal/otlp"
	"github.com/stepworker/stepworker/internal/spans"
	"github.com/stepworker/stepworker/jobs"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go func() { <-ctx.Done(); stop() }() // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	logging.Disable() // go-redis': the program says itself what went wrong
	e := &enqueue{stdin: stdin, stdout: json.NewEncoder(stdout), stderr: stderr}
	e.stdout.SetEscapeHTML(false)
	cmd := e.command()
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	return cli.Exit(stderr, cmd.ExecuteContext(ctx))
}

// batch is how many steps are enqueued together.
const batch = 500

// lastSpans is how long these may take to be exported.
const lastSpans = 2 * time.Second

// idleFlush is how long a step that was read waits for others to come.
const idleFlush = 100 * time.Millisecond

type enqueue struct {
	stdin  io.Reader
	stdout *json.Encoder
	stderr io.Writer

	log        cli.Log
	redis      cli.Redis
	wait       bool
	timeout    time.Duration
	status     string
	cancel     []string
	progress   string
	credential string
	method     string
	parameters []string
	body       string

	client  *jobs.Client
	ids     []string
	invalid bool
	// What became of the input so far, for the sentence that ends an input
	// which cannot be enqueued to its end.
	enqueued, duplicates, unknown int
	lastLine                      int // up to which there is an answer for each step
}

func (e *enqueue) command() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "enqueue [FILE|-] | --status ID | --cancel ID…",
		Short:         "Enqueue steps: one JSON object, a JSON array or NDJSON, from a file or standard input",
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          e.run,
	}
	fs := cmd.Flags()
	e.log.Add(fs)
	e.redis.Add(fs)
	cli.Bool(fs, &e.wait, "wait", "print each result as its execution ends")
	cli.Duration(fs, &e.timeout, "timeout", 0, "end the waiting, not the steps, after this long")
	fs.StringVar(&e.status, "status", "", "print an execution's result, or where it stands and what it waits for")
	fs.StringArrayVar(&e.cancel, "cancel", nil, "end executions with status cancelled, whatever they are doing: --cancel ID ID…, or - for ids on standard input")
	fs.StringVar(&e.progress, "progress", "auto", "auto, always or never: a bar on standard error")
	fs.StringVar(&e.credential, "credential", "", "one step without a file: its credential")
	fs.StringVar(&e.method, "method", "", "its method")
	fs.StringArrayVar(&e.parameters, "parameter", nil, "its parameters: k=text or k:=JSON")
	fs.StringVar(&e.body, "body", "", "its body: JSON, or @FILE")
	return cmd
}

func (e *enqueue) run(cmd *cobra.Command, args []string) error {
	onLine := func(name string) bool { return cmd.Flags().Changed(name) }
	single := onLine("credential") || onLine("method") // also where they are empty: by a variable that is not set
	asked, cancels := onLine("status"), onLine("cancel")
	mistakes := append(cli.Resolve(cmd.Flags()), e.log.Mistakes()...)
	options, err := e.redis.Options(cmd.Flags())
	if err != nil {
		mistakes = append(mistakes, err.Error())
	}
	switch e.progress {
	case "auto", "always", "never":
	default:
		mistakes = append(mistakes, fmt.Sprintf("--progress: auto, always or never is needed, not %q", e.progress))
	}
	if !cancels { // by the environment, where empty means none
		e.cancel = slices.DeleteFunc(e.cancel, func(id string) bool { return id == "" })
		cancels = len(e.cancel) > 0
	}
	single = single || e.credential != "" || e.method != "" || len(e.parameters) > 0 || e.body != ""
	var step *jobs.Step
	switch {
	case asked && e.status == "":
		mistakes = append(mistakes, "--status: an execution id is needed")
	case e.status != "" && (single || len(args) > 0 || e.wait):
		mistakes = append(mistakes, "--status stands alone")
	case cancels && (single || asked || e.status != ""):
		mistakes = append(mistakes, "--cancel takes ids, and no step and no --status beside them")
	case cancels:
		e.cancel, args = append(e.cancel, args...), nil
		if slices.Contains(e.cancel, "") {
			mistakes = append(mistakes, "--cancel: an execution id is needed")
		}
	case len(args) > 1:
		mistakes = append(mistakes, fmt.Sprintf("one file of steps is read, and %d are named", len(args)))
	case single && len(args) > 0:
		mistakes = append(mistakes, "a step comes from a file or from --credential and --method, not from both")
	case single:
		if step, err = e.single(); err != nil {
			mistakes = append(mistakes, err.Error())
		}
	}
	if e.timeout < 0 {
		mistakes = append(mistakes, "--timeout: a positive duration is needed")
	}
	if e.timeout > 0 && !e.wait && !cancels {
		mistakes = append(mistakes, "--timeout has no meaning without --wait or --cancel")
	}
	in, err := cli.OpenInput(args, e.stdin)
	if err != nil {
		mistakes = append(mistakes, err.Error())
	} else {
		defer in.Close()
	}
	traces, wrong := otlp.FromEnvironment()
	if mistakes = append(mistakes, wrong...); len(mistakes) > 0 {
		return cli.Usage("%s", strings.Join(mistakes, "\n"))
	}
	// A flow's script hands its trace on as OpenTelemetry has it of environment
	// variables (TRACEPARENT, TRACESTATE).
	ctx := trace.ContextWithRemoteSpanContext(cmd.Context(), spans.Read(map[string]string{"traceparent": os.Getenv("TRACEPARENT"), "tracestate": os.Getenv("TRACESTATE")}))
	exports, err := traces.Open(ctx, "enqueue", "", e.log.Open(e.stderr))
	if err != nil {
		return cli.Failed("traces: %v", err)
	}
	defer exports.Close(lastSpans)
	rdb, err := cli.Open(ctx, options)
	if err != nil {
		return err
	}
	defer rdb.Close()
	e.client = jobs.NewClient(rdb, jobs.WithTracerProvider(exports.Provider()))
	switch {
	case e.status != "":
		return e.printStatus(ctx)
	case cancels:
		return e.cancelAll(ctx)
	}
	if step != nil {
		err = e.send(ctx, []*jobs.Step{step}, []int{1})
	} else {
		err = e.sendAll(ctx, in)
	}
	if err != nil {
		return err
	}
	if e.wait {
		ctx, stop := e.limit(ctx)
		defer stop()
		return e.await(ctx, func(r *jobs.Result) bool { return r.Status == jobs.Succeeded || r.Status == jobs.Warning })
	}
	if e.invalid {
		return &cli.Error{Code: cli.ExitFailed}
	}
	return nil
}

func (e *enqueue) single() (*jobs.Step, error) {
	s := &jobs.Step{CredentialID: e.credential, Method: e.method}
	var err error
	if s.Parameters, err = cli.Parameters(e.parameters); err != nil {
		return nil, err
	}
	if s.Body, err = cli.JSON("body", e.body); err != nil {
		return nil, err
	}
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("--credential and --method make no step: %w", err)
	}
	return s, nil
}

// line answers one step. Status is enqueued, duplicate, invalid, or unknown:
// Redis did not answer, so that it may or may not have been accepted; it is
// safe to enqueue it again under the execution id.
type line struct {
	Line        int    `json:"line"`
	ExecutionID string `json:"execution_id,omitempty"`
	Status      string `json:"status"`
	Error       string `json:"error,omitempty"`
}

func (e *enqueue) sendAll(ctx context.Context, in io.Reader) error {
	var (
		mu     sync.Mutex // of all that follows, and of what send touches
		steps  []*jobs.Step
		lines  []int
		last   time.Time // when the last step came
		failed error     // in the background
	)
	flush := func() error {
		err := e.send(ctx, steps, lines)
		steps, lines = steps[:0], lines[:0]
		return err
	}
	// What comes slowly, through a pipe, does not wait for the batch to be full.
	done := make(chan struct{})
	var idle sync.WaitGroup
	idle.Go(func() {
		tick := time.NewTicker(idleFlush)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case now := <-tick.C:
				mu.Lock()
				if failed == nil && len(steps) > 0 && now.Sub(last) >= idleFlush {
					failed = flush()
				}
				mu.Unlock()
			}
		}
	})
	err := cli.Values(ctx, in, func(v cli.Value) error {
		mu.Lock()
		defer mu.Unlock()
		if failed != nil {
			return failed
		}
		last = time.Now()
		err := v.Err
		var s *jobs.Step
		if err == nil {
			s, err = jobs.DecodeStep(v.Raw)
		}
		if err != nil {
			if err := flush(); err != nil { // lines come out in order
				return err
			}
			e.invalid, e.lastLine = true, v.Line
			return e.stdout.Encode(line{Line: v.Line, Status: "invalid", Error: err.Error()})
		}
		steps, lines = append(steps, s), append(lines, v.Line)
		if len(steps) == batch {
			return flush()
		}
		return nil
	})
	close(done)
	idle.Wait()
	if err == nil {
		err = failed
	}
	var unread *cli.ReadError
	if err != nil && !errors.As(err, &unread) {
		return err
	}
	if unread == nil || ctx.Err() == nil { // what was read of a broken input counts
		if err := flush(); err != nil {
			return err
		}
	}
	if unread != nil {
		return e.stopped(ctx, unread.Error())
	}
	return nil
}

// send enqueues a batch and prints a line for each of its steps, whatever
// became of the others.
func (e *enqueue) send(ctx context.Context, steps []*jobs.Step, lines []int) error {
	if len(steps) == 0 {
		return nil
	}
	var stopped error
	for i, r := range e.client.EnqueueBatch(ctx, steps) {
		var invalid *jobs.InvalidError
		out := line{Line: lines[i], ExecutionID: r.ExecutionID, Status: r.Status}
		switch {
		case errors.As(r.Err, &invalid):
			e.invalid = true
			out.ExecutionID, out.Status, out.Error = "", "invalid", invalid.Reason
		case r.Err != nil:
			e.unknown++
			out.Status, out.Error = "unknown", r.Err.Error()
			stopped = r.Err
		case r.Status == jobs.Duplicate:
			e.duplicates++
			e.ids = append(e.ids, r.ExecutionID)
		default:
			e.enqueued++
			e.ids = append(e.ids, r.ExecutionID)
		}
		if err := e.stdout.Encode(out); err != nil {
			return err
		}
		e.lastLine = lines[i]
	}
	if stopped != nil {
		return e.stopped(ctx, "redis cannot be used")
	}
	return nil
}

// stopped says how far an input was enqueued that cannot be to its end.
func (e *enqueue) stopped(ctx context.Context, why string) error {
	code := cli.ExitUsage
	if ctx.Err() != nil {
		why, code = "interrupted", cli.ExitFailed
	}
	text := fmt.Sprintf("%s: %d steps were enqueued", why, e.enqueued)
	if e.duplicates > 0 {
		text += fmt.Sprintf(", %d were duplicates", e.duplicates)
	}
	if e.unknown > 0 {
		text += fmt.Sprintf(", of %d it is not known: enqueue them again under the same execution_id", e.unknown)
	}
	if e.lastLine > 0 {
		text += fmt.Sprintf("; nothing after line %d was enqueued", e.lastLine)
	}
	return &cli.Error{Code: code, Text: text}
}

// limit ends with --timeout, if there is one.
func (e *enqueue) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	if e.timeout > 0 {
		return context.WithTimeout(ctx, e.timeout)
	}
	return context.WithCancel(ctx)
}

// await prints a result for each execution as it ends; well says which are as
// they should be.
func (e *enqueue) await(ctx context.Context, well func(*jobs.Result) bool) error {
	bar := e.bar()
	failed := e.invalid
	pending := map[string]bool{}
	order := []string{}
	for _, id := range e.ids {
		if !pending[id] {
			pending[id] = true
			order = append(order, id)
		}
	}
	err := e.client.Wait(ctx, order, func(r *jobs.Result) error {
		delete(pending, r.ExecutionID)
		failed = failed || !well(r)
		_ = bar.Add(1) // a bar that cannot be drawn harms nobody
		return e.stdout.Encode(r)
	})
	_ = bar.Finish()
	var unknown *jobs.UnknownError
	code := 0
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		err, code = e.rest(order, pending, "pending"), cli.ExitTimeout
	case errors.Is(err, context.Canceled):
		err, code = e.rest(order, pending, "pending"), cli.ExitFailed
	case errors.As(err, &unknown):
		err, code = e.rest(order, pending, "unknown"), cli.ExitFailed
	case err != nil:
		err = cli.Usage("%v", err)
	case failed:
		code = cli.ExitFailed
	}
	if err == nil && code != 0 {
		err = &cli.Error{Code: code}
	}
	return err
}

// rest prints a line for each execution that has no result.
func (e *enqueue) rest(order []string, left map[string]bool, status string) error {
	for _, id := range order {
		if !left[id] {
			continue
		}
		err := e.stdout.Encode(struct {
			ExecutionID string `json:"execution_id"`
			Status      string `json:"status"`
		}{id, status})
		if err != nil {
			return err
		}
	}
	return nil
}

func (e *enqueue) bar() *progressbar.ProgressBar {
	show := e.progress == "always"
	if f, ok := e.stderr.(*os.File); ok && e.progress == "auto" {
		show = term.IsTerminal(int(f.Fd()))
	}
	return progressbar.NewOptions(len(e.ids), progressbar.OptionSetWriter(e.stderr), progressbar.OptionSetVisibility(show),
		progressbar.OptionShowCount(), progressbar.OptionSetDescription("executions"), progressbar.OptionClearOnFinish())
}

func (e *enqueue) printStatus(ctx context.Context) error {
	r, err := e.client.Result(ctx, e.status)
	if err == nil {
		if err := e.stdout.Encode(r); err != nil {
			return err
		}
		if r.Status == jobs.Failed || r.Status == jobs.Cancelled {
			return &cli.Error{Code: cli.ExitFailed}
		}
		return nil
	}
	if !errors.Is(err, jobs.ErrNotFinished) {
		return cli.Failed("%s: %v", e.status, err)
	}
	s, err := e.client.Status(ctx, e.status)
	if err != nil {
		return cli.Failed("%s: %v", e.status, err)
	}
	return e.stdout.Encode(s)
}
