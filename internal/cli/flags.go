package cli

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// EnvName is the environment's name of a flag.
func EnvName(flag string) string {
	return "STEPWORKER_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// value is a flag that keeps what was wrong with its text: pflag would stop at
// the first mistake, and all are told together. A value that cannot be read
// leaves the default, so that nobody complains of it a second time.
type value[T any] struct {
	p      *T
	kind   string
	parse  func(string) (T, error)
	format func(T) string
	given  string
	err    error
}

func (v *value[T]) Set(s string) error {
	got, err := v.parse(s)
	if v.given, v.err = s, err; err == nil {
		*v.p = got
	}
	return nil
}

func (v *value[T]) String() string {
	if v.p == nil { // pflag asks a zero value for its default
		return ""
	}
	return v.format(*v.p)
}

func (v *value[T]) Type() string { return v.kind }

func (v *value[T]) mistake() string {
	if v.err == nil {
		return ""
	}
	return fmt.Sprintf("%q is not valid: %s", v.given, v.err)
}

// Var adds a flag of any type; *p is its default.
func Var[T any](fs *pflag.FlagSet, p *T, name, kind string, parse func(string) (T, error), format func(T) string, usage string) {
	fs.Var(&value[T]{p: p, kind: kind, parse: parse, format: format}, name, usage)
}

// Duration adds a flag for a duration; 0 is shown as no default.
func Duration(fs *pflag.FlagSet, p *time.Duration, name string, def time.Duration, usage string) {
	*p = def
	parse := func(s string) (time.Duration, error) {
		d, err := time.ParseDuration(s)
		if err != nil {
			err = errors.New("a duration such as 90s, 5m or 24h is needed")
		}
		return d, err
	}
	Var(fs, p, name, "duration", parse, func(d time.Duration) string {
		if d == 0 {
			return ""
		}
		return d.String()
	}, usage)
}

// Int adds a flag for a whole number.
func Int(fs *pflag.FlagSet, p *int, name string, def int, usage string) {
	*p = def
	parse := func(s string) (int, error) {
		n, err := strconv.Atoi(s)
		if err != nil {
			err = errors.New("a whole number is needed")
		}
		return n, err
	}
	Var(fs, p, name, "int", parse, strconv.Itoa, usage)
}

// Bool adds a strict boolean flag: true, false, 1, 0.
func Bool(fs *pflag.FlagSet, p *bool, name, usage string) {
	parse := func(s string) (bool, error) {
		switch s {
		case "true", "1":
			return true, nil
		case "false", "0", "":
			return false, nil
		}
		return false, errors.New("true, false, 1 or 0 is needed")
	}
	Var(fs, p, name, "bool", parse, strconv.FormatBool, usage)
	fs.Lookup(name).NoOptDefVal = "true"
}

const fromEnv = "stepworker_environment" // marks flags that the environment has set

// Resolve gives flags that the command line did not set their environment's
// value, and returns every value, of either, that cannot be read.
func Resolve(fs *pflag.FlagSet) []string {
	var mistakes []string
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" {
			return
		}
		name := "--" + f.Name
		if !f.Changed {
			v, ok := os.LookupEnv(EnvName(f.Name))
			if !ok {
				return
			}
			name = EnvName(f.Name)
			if err := fs.Set(f.Name, v); err != nil {
				mistakes = append(mistakes, fmt.Sprintf("%s: %v", name, err))
				return
			}
			_ = fs.SetAnnotation(f.Name, fromEnv, nil)
		}
		if m, ok := f.Value.(interface{ mistake() string }); ok {
			if text := m.mistake(); text != "" {
				mistakes = append(mistakes, name+": "+text)
			}
		}
	})
	return mistakes
}

// OnCommandLine says that a flag was given there, and not by the environment.
func OnCommandLine(fs *pflag.FlagSet, name string) bool {
	f := fs.Lookup(name)
	if f == nil || !f.Changed {
		return false
	}
	_, env := f.Annotations[fromEnv]
	return !env
}
