package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stepworker/stepworker/internal/cli"
)

// probeTimeout is of one question; a worker answers from memory.
const probeTimeout = 5 * time.Second

// newProbe asks the worker of this machine, or of this container, whether it is
// ready: for health checks where there is neither a shell nor curl.
func newProbe(log *cli.Log) *cobra.Command {
	var addr string
	var wait time.Duration
	cmd := &cobra.Command{Use: "probe", Short: "Ask a running worker whether it is ready: status 0 if it is, 1 with the reason if not", Args: cobra.NoArgs}
	cmd.Flags().StringVar(&addr, "http", "127.0.0.1:8080", "the worker's --http")
	cli.Duration(cmd.Flags(), &wait, "wait", 0, "ask again for this long until it is")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		mistakes := append(cli.Resolve(cmd.Flags()), log.Mistakes()...)
		if err := checkAddress(addr); err != nil {
			mistakes = append(mistakes, fmt.Sprintf("--http: %v", err))
		} else if _, port, _ := net.SplitHostPort(addr); port == "" || port == "0" {
			mistakes = append(mistakes, "--http: the address of a running worker is needed, with its port")
		}
		if wait < 0 {
			mistakes = append(mistakes, "--wait: a positive duration is needed")
		}
		if len(mistakes) > 0 {
			return cli.Usage("%s", strings.Join(mistakes, "\n"))
		}
		client := &http.Client{Timeout: probeTimeout, Transport: &http.Transport{DisableKeepAlives: true}} // and no proxy
		for begun := time.Now(); ; {
			reason := probe(cmd.Context(), client, addr)
			if reason == "" {
				return say(cmd, "ready")
			}
			if time.Since(begun) >= wait || cmd.Context().Err() != nil {
				return cli.Failed("%s", reason)
			}
			select {
			case <-cmd.Context().Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
	return cmd
}

// probe is empty if the worker is ready, else it says in a line why not. An
// address without a host, or with 0.0.0.0, is this machine.
func probe(ctx context.Context, client *http.Client, addr string) string {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/readyz", nil)
	if err != nil {
		return err.Error()
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Sprintf("no worker answers at %s", addr)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if resp.StatusCode == http.StatusOK {
		return ""
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return fmt.Sprintf("not ready: %s (%s)", line, resp.Status)
}
