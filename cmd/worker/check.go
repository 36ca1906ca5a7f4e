package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/hooks"
	"github.com/stepworker/stepworker/internal/cli"
	"github.com/stepworker/stepworker/jobs"
)

func newCheck(log *cli.Log) *cobra.Command {
	var folder string
	var schema bool
	cmd := &cobra.Command{Use: "check [PATH…]", Short: "Read connector files and scripts (*.js and *.json: of steps), and print every finding"}
	cmd.Flags().StringVar(&folder, "connectors", "", "what to read if no PATH is given; default .")
	cmd.Flags().BoolVar(&schema, "schema", false, "print the JSON Schema of connector files, for editors, and read nothing")
	cmd.RunE = func(cmd *cobra.Command, paths []string) error {
		if err := plain(cmd, log); err != nil {
			return err
		}
		if schema {
			if len(paths) > 0 {
				return cli.Usage("--schema reads no files: leave out %s", paths[0])
			}
			_, err := io.WriteString(cmd.OutOrStdout(), definition.Schema())
			return err
		}
		if len(paths) == 0 {
			paths = []string{"."}
			if folder != "" {
				paths = []string{folder}
			}
		}
		findings, err := checkAll(cmd.Context(), paths)
		if err != nil {
			return cli.Usage("%v", err)
		}
		for _, f := range findings {
			fmt.Fprintln(cmd.OutOrStdout(), f)
			// Programs read the findings on stdout; people see the line as well.
			if raw, err := os.ReadFile(f.File); err == nil {
				fmt.Fprint(cmd.ErrOrStderr(), caret(string(raw), f.Line, f.Column))
			}
		}
		if len(findings) > 0 {
			return &cli.Error{Code: cli.ExitFailed}
		}
		return nil
	}
	return cmd
}

// checkAll reads connector files and folders, and beside them files of steps
// and of steps' scripts.
func checkAll(ctx context.Context, paths []string) ([]definition.Finding, error) {
	var others []string
	var all []definition.Finding
	for _, path := range paths {
		var found []definition.Finding
		var err error
		switch filepath.Ext(path) {
		case ".js":
			found, err = checkScript(path)
		case ".json", ".ndjson":
			found, err = checkSteps(ctx, path)
		default:
			others = append(others, path)
		}
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	if len(others) == 0 {
		return all, nil
	}
	found, err := definition.CheckBeside(others, recordingsIn)
	return append(found, all...), err
}

func checkScript(path string) ([]definition.Finding, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, hooks.MaxSource+1))
	if err != nil {
		return nil, err
	}
	return definition.CheckStep(&hooks.Script{Level: hooks.LevelStep, File: path, Source: string(raw)}), nil
}

// checkSteps checks the scripts of a file of steps. Where a step's script
// stands in JSON is nothing a person could point at: the finding is at the
// step's line, and tells the place in the script as error.at would.
func checkSteps(ctx context.Context, path string) ([]definition.Finding, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []definition.Finding
	err = cli.Values(ctx, f, func(v cli.Value) error {
		err := v.Err
		if err == nil {
			_, err = jobs.DecodeStep(v.Raw)
		}
		if err != nil {
			all = append(all, definition.Finding{File: path, Line: v.Line, Column: 1, Text: err.Error()})
		}
		var step struct {
			Script   string
			Mappings map[string]string
		}
		_ = json.Unmarshal(v.Raw, &step) // if that is an error it is told already
		for _, s := range definition.CheckStep(&hooks.Script{Level: hooks.LevelStep, File: "step", Source: step.Script}) {
			all = append(all, definition.Finding{File: path, Line: v.Line, Column: 1, Text: fmt.Sprintf("step:%d:%d: %s", s.Line, s.Column, s.Text), Hint: s.Hint})
		}
		for _, to := range slices.Sorted(maps.Keys(step.Mappings)) {
			for _, s := range definition.CheckMappingScript(to, step.Mappings[to]) {
				all = append(all, definition.Finding{File: path, Line: v.Line, Column: 1, Text: s.String(), Hint: s.Hint})
			}
		}
		return nil
	})
	return all, err
}

// caret is a line of a text with a caret under one of its characters, for a
// terminal, whose cursor nothing of it moves; "" if there is no such line.
func caret(text string, line, col int) string {
	shown := definition.Excerpt(text, line, col)
	if shown == "" {
		return ""
	}
	return "    " + strings.Map(func(r rune) rune {
		if r != '\t' && r != '\n' && unicode.IsControl(r) {
			return '?'
		}
		return r
	}, strings.Replace(shown, "\n", "\n    ", 1)) + "\n"
}
