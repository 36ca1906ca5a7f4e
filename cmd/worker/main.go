// Command worker runs steps.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/stepworker/stepworker/hooks"
	"github.com/stepworker/stepworker/internal/cli"
)

func main() {
	hooks.HostMain()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go func() { <-ctx.Done(); stop() }() // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:           "worker",
		Short:         "Stepworker: API steps whose dead credentials are a non-event",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(newRun(), newDev(), newDemo(), newCheck(), newCredential(), newKey(), newVersion())
	return cli.Exit(stderr, root.ExecuteContext(ctx))
}
