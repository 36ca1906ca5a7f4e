package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/cli"
)

func keyRotate(log *cli.Log) *cobra.Command {
	cc := &credentialCommand{log: log}
	var dry bool
	cmd := &cobra.Command{Use: "rotate", Short: "Seal everything again with the first key, and say when the others may go", Args: cobra.NoArgs}
	cc.redis.Add(cmd.Flags())
	cmd.Flags().StringVar(&cc.keysFile, "keys-file", "", "file of sealing keys (or STEPWORKER_KEYS)")
	cli.Bool(cmd.Flags(), &dry, "dry-run", "only say which key the records are sealed with")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var keys *credentials.Keyring
		err := cc.open(cmd, false, func(wrong func(string, ...any)) {
			var err error
			if keys, err = readKeys(cc.keysFile); err != nil {
				wrong("%v", err)
			}
		})
		if err != nil {
			return err
		}
		defer cc.rdb.Close()
		bar := spinner(cmd.ErrOrStderr())
		r, err := credentials.NewStore(cc.rdb, keys).Rotate(cmd.Context(), credentials.RotateOptions{
			DryRun: dry, Looked: func(n int) { _ = bar.Add(n) }, // one that cannot be drawn harms nobody
		})
		_ = bar.Finish()
		var wrong *credentials.KeyError
		switch {
		case errors.As(err, &wrong), tooNew(err):
			return cli.Usage("%v", err)
		case cmd.Context().Err() != nil:
			return cli.Failed("interrupted: what was sealed again stays so; run it again")
		case err != nil:
			return cli.Failed("redis: %v; what was sealed again stays so: run it again", err)
		}
		text, done := rotated(r, keys.Fingerprints(), dry)
		if err := say(cmd, text); err != nil {
			return err
		}
		if !done {
			return &cli.Error{Code: cli.ExitFailed}
		}
		return nil
	}
	return cmd
}

// spinner counts records on a terminal; how many there are is not known before.
func spinner(stderr io.Writer) *progressbar.ProgressBar {
	f, ok := stderr.(*os.File)
	return progressbar.NewOptions(-1, progressbar.OptionSetWriter(stderr), progressbar.OptionSetVisibility(ok && term.IsTerminal(int(f.Fd()))),
		progressbar.OptionShowCount(), progressbar.OptionSetDescription("records"), progressbar.OptionClearOnFinish())
}

// rotated tells what a rotation found: a line for each kind of record, and what
// may be done now. done says that the first key alone is enough.
func rotated(r *credentials.Rotation, keys []string, dry bool) (text string, done bool) {
	first, others := keys[0], keys[1:]
	var lines []string
	unopened, newer := 0, 0
	for _, k := range r.Kinds {
		by := make([]string, 0, len(k.By))
		for f := range k.By {
			by = append(by, f)
		}
		slices.SortFunc(by, func(a, b string) int { return slices.Index(keys, a) - slices.Index(keys, b) })
		for i, f := range by {
			by[i] = fmt.Sprintf("%d with %s", k.By[f], f)
		}
		if k.Unopened > 0 {
			by = append(by, fmt.Sprintf("%d that no key opens", k.Unopened))
		}
		if k.Newer > 0 {
			by = append(by, fmt.Sprintf("%d by a newer build", k.Newer))
		}
		line := fmt.Sprintf("%s: %d sealed, %s", k.Kind, k.Records, strings.Join(by, ", "))
		if k.Resealed > 0 {
			line += fmt.Sprintf("; %d sealed again", k.Resealed)
		}
		lines = append(lines, line)
		unopened += k.Unopened
		newer += k.Newer
	}
	for _, u := range r.Unopened {
		why := fmt.Sprintf("it was sealed with %s, which is none of the keys", u.Fingerprint)
		if u.Newer {
			lines = append(lines, fmt.Sprintf("%q (%s) was sealed by a newer build: rotate with that", u.Key, u.Kind))
			continue
		}
		if slices.Contains(keys, u.Fingerprint) {
			why = "its key is there, but it was moved, set back or damaged"
		} else if u.Fingerprint == "" {
			why = "it is no sealed record"
		}
		lines = append(lines, fmt.Sprintf("no key opens %q (%s): %s", u.Key, u.Kind, why))
	}
	if len(r.Unopened) == credentials.UnopenedMax {
		lines = append(lines, "and perhaps more that no key opens")
	}
	inUse := r.InUse(first)
	var free []string
	for _, f := range others {
		if !slices.Contains(inUse, f) {
			free = append(free, f)
		}
	}
	done = len(inUse) == 0 && unopened+newer == 0 && !r.Unsteady
	switch {
	case dry && slices.ContainsFunc(inUse, r.Sealed):
		lines = append(lines, fmt.Sprintf("not every record opens with the first key (%s): %s still needed; `worker key rotate` seals them again", first, list(inUse, "is", "are")))
	case len(r.Sealing) > 0:
		lines = append(lines, fmt.Sprintf("workers still seal with %s: restart them with %s as their first key, then rotate again; no key may go before", strings.Join(r.Sealing, ", "), first))
	case r.Unsteady || len(inUse) > 0:
		lines = append(lines, "records sealed with another key than the first went on to appear: see which program has another key first, then rotate again; no key may go before")
	case newer > 0:
		lines = append(lines, "every record that this build can read opens with the first key ("+first+"); no key may go before the newer build has said so of all")
	case unopened > 0:
		lines = append(lines, "every other record opens with the first key ("+first+"); put the credentials again that no key opens, or bring the key that sealed them")
	case len(free) == 0:
		lines = append(lines, "every record opens with the first key ("+first+"), and there is no other")
	default:
		lines = append(lines, fmt.Sprintf("every record opens with the first key (%s): %s", first, list(free, "may go", "may go")))
	}
	return strings.Join(lines, "\n"), done
}

// list is "key a is", "keys a, b are".
func list(keys []string, one, many string) string {
	if len(keys) == 1 {
		return "key " + keys[0] + " " + one
	}
	return "keys " + strings.Join(keys, ", ") + " " + many
}
