// Command worker runs steps.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/redis/go-redis/v9/logging"
	"github.com/spf13/cobra"

	"github.com/stepworker/stepworker/hooks"
	"github.com/stepworker/stepworker/internal/cli"
	"github.com/stepworker/stepworker/internal/strictjson"
)

func main() {
	hooks.HostMain()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go func() { <-ctx.Done(); stop() }() // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	logging.Disable() // until a worker lends go-redis its own log
	log := &cli.Log{}
	root := group("worker", "Stepworker: API steps whose dead credentials are a non-event",
		newRun(log), newDev(log), newDemo(log), newCheck(log), newCredential(log), newKey(log), newTry(log), newProbe(log), newVersion(log))
	log.Add(root.PersistentFlags())
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SilenceUsage, root.SilenceErrors = true, true
	root.CompletionOptions.DisableDefaultCmd = true
	return cli.Exit(stderr, root.ExecuteContext(ctx))
}

// group is a command of commands.
func group(name, short string, children ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: name, Short: short, Args: cobra.ArbitraryArgs}
	cmd.AddCommand(children...)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 && !cmd.HasParent() {
			return cmd.Help()
		}
		var names []string
		for _, c := range children {
			if !c.Hidden {
				names = append(names, c.Name())
			}
		}
		has := fmt.Sprintf("%s has the commands %s", cmd.CommandPath(), strings.Join(names, ", "))
		if len(args) == 0 {
			return cli.Usage("a command is missing: %s", has)
		}
		if near := strictjson.Nearest(args[0], names); near != "" {
			return cli.Usage("unknown command %q of %s; did you mean %q?", args[0], cmd.CommandPath(), near)
		}
		return cli.Usage("unknown command %q: %s", args[0], has)
	}
	return cmd
}
