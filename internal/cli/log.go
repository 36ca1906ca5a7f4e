package cli

import (
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/pflag"
	"golang.org/x/term"
)

// Log are the options of what is logged, and how.
type Log struct{ Format, Level string }

// Add adds the options.
func (l *Log) Add(fs *pflag.FlagSet) {
	fs.StringVar(&l.Format, "log-format", "", "text or json; default: text on a terminal, else json")
	fs.StringVar(&l.Level, "log-level", "info", "debug, info, warn or error")
}

// Mistakes returns what is wrong with the options.
func (l *Log) Mistakes() []string {
	var mistakes []string
	if l.Format != "" && l.Format != "text" && l.Format != "json" {
		mistakes = append(mistakes, fmt.Sprintf("--log-format: text or json is needed, not %q", l.Format))
	}
	if _, err := l.level(); err != nil {
		mistakes = append(mistakes, fmt.Sprintf("--log-level: debug, info, warn or error is needed, not %q", l.Level))
	}
	return mistakes
}

func (l *Log) level() (slog.Level, error) {
	var level slog.Level
	err := level.UnmarshalText([]byte(l.Level))
	return level, err
}

// Open returns a logger on stderr; options with mistakes are those of default.
func (l *Log) Open(stderr io.Writer) *slog.Logger {
	level, _ := l.level()
	o := &slog.HandlerOptions{Level: level}
	text := l.Format == "text"
	if f, ok := stderr.(*os.File); ok && l.Format == "" {
		text = term.IsTerminal(int(f.Fd()))
	}
	if text {
		return slog.New(slog.NewTextHandler(stderr, o))
	}
	return slog.New(slog.NewJSONHandler(stderr, o))
}
