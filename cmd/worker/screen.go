package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/hooks"
)

const (
	shownBody  = 4 << 10 // of a body, in bytes
	shownValue = 200     // of a changed global, in bytes
)

// screen shows a try to people. It holds everything back until flush, when all
// secrets of it are known, those too that a later hook found in an earlier answer.
type screen struct {
	out        io.Writer
	names      *secretNames
	step       string // the step's script
	scriptFile string
	held       []func(r *credentials.Redactor, w *strings.Builder)
	exchanges  int
}

func (s *screen) hold(f func(r *credentials.Redactor, w *strings.Builder)) {
	s.held = append(s.held, f)
}

func (s *screen) say(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.hold(func(_ *credentials.Redactor, w *strings.Builder) { fmt.Fprintf(w, "%s\n\n", text) })
}

// tell says something at once.
func (s *screen) tell(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }

// flush prints what was held back, masked as a whole once more: nothing that a
// part was put together of shows a secret.
func (s *screen) flush() {
	r := s.names.redactor()
	var w strings.Builder
	for _, f := range s.held {
		f(r, &w)
	}
	s.held = nil
	text := strings.Map(func(c rune) rune {
		if c != '\n' && c != '\t' && unicode.IsControl(c) {
			return '?' // an answer does not move the terminal's cursor
		}
		return c
	}, r.String(w.String()))
	fmt.Fprint(s.out, text)
}

// event shows what an event of scripts changed, said and came to.
func (s *screen) event(e connectors.TracedEvent) {
	s.hold(func(r *credentials.Redactor, w *strings.Builder) {
		levels := make([]string, len(e.Levels))
		for i, l := range e.Levels {
			levels[i] = string(l)
		}
		fmt.Fprintf(w, "%s", e.Name)
		if len(levels) > 0 {
			fmt.Fprintf(w, " (%s)", strings.Join(levels, ", "))
		}
		w.WriteByte('\n')
		for _, c := range e.Changes {
			for _, d := range differences(c.Name, c.Old, c.New) {
				fmt.Fprintf(w, "    %s: %s -> %s\n", d.path, shownSide(r, d.old), shownSide(r, d.new))
			}
		}
		for _, l := range e.Logs {
			fmt.Fprintf(w, "    log: %s\n", strings.ReplaceAll(r.Cut(l, shownBody), "\n", "\n         "))
		}
		s.ended(e, r, w)
		w.WriteByte('\n')
	})
}

func shownSide(r *credentials.Redactor, raw json.RawMessage) string {
	if raw == nil {
		return "nothing"
	}
	return r.Cut(string(raw), shownValue)
}

func (s *screen) ended(e connectors.TracedEvent, r *credentials.Redactor, w *strings.Builder) {
	var exc *hooks.Exception
	var script *hooks.ScriptError
	var limit *hooks.LimitError
	switch {
	case e.Err == nil && e.Result == nil:
		fmt.Fprintln(w, "    returned nothing, which counts as true")
	case e.Err == nil:
		fmt.Fprintf(w, "    returned %s\n", r.Cut(string(e.Result), shownValue))
	case errors.As(e.Err, &exc):
		text := exc.Text
		if text != "" {
			text = ": " + text
		}
		fmt.Fprintf(w, "    threw %s%s\n%s", exc.Kind, r.Cut(text, shownBody), s.place(exc.At))
	case errors.As(e.Err, &script):
		fmt.Fprintf(w, "    failed: %s\n%s", r.Cut(script.Message, shownBody), s.place(script.At))
	case errors.As(e.Err, &limit):
		fmt.Fprintf(w, "    failed: %s\n%s", r.Cut(limit.Message, shownBody), s.place(limit.At))
	default:
		fmt.Fprintf(w, "    failed: %s\n", r.Cut(e.Err.Error(), shownBody))
	}
}

var placePattern = regexp.MustCompile(`^(.*):(\d+):(\d+)$`)

// place shows a script's place, and its author's line.
func (s *screen) place(at string) string {
	m := placePattern.FindStringSubmatch(at)
	if m == nil {
		return ""
	}
	line, _ := strconv.Atoi(m[2])
	col, _ := strconv.Atoi(m[3])
	source := s.step
	if m[1] != "step" {
		raw, err := os.ReadFile(m[1])
		if err != nil {
			return "    at " + at + "\n"
		}
		source = string(raw)
	} else if s.scriptFile != "" {
		at += " (" + s.scriptFile + ")"
	}
	return "    at " + at + "\n" + caret(source, line, col)
}

// exchange shows a request and its answer.
func (s *screen) exchange(e *exchange) {
	s.exchanges++
	number := s.exchanges
	s.hold(func(r *credentials.Redactor, w *strings.Builder) {
		fmt.Fprintf(w, "request %d (%s)\n    %s %s\n", number, e.purpose, e.method, r.String(e.url))
		s.message(r, w, e.header, e.body)
		if e.fault != nil {
			fmt.Fprintf(w, "no answer: %s\n\n", r.String(faultText(e.fault)))
			return
		}
		fmt.Fprintf(w, "answer %d\n    %s\n", number, r.String(e.status))
		s.message(r, w, e.resHeader, e.resBody)
		w.WriteByte('\n')
	})
}

// hidden are headers that hold nothing but secrets.
var hidden = []string{"Authorization", "Proxy-Authorization", "Cookie", "Set-Cookie"}

func (s *screen) message(r *credentials.Redactor, w *strings.Builder, h http.Header, body []byte) {
	for _, k := range slices.Sorted(maps.Keys(h)) {
		for _, v := range h[k] {
			if slices.Contains(hidden, k) {
				v = redacted
			}
			fmt.Fprintf(w, "    %s: %s\n", k, r.Cut(v, shownBody))
		}
	}
	if len(body) == 0 {
		return
	}
	fmt.Fprintf(w, "\n%s\n", indent(r.Cut(shownText(body, h.Get("Content-Type")), shownBody)))
}

func indent(text string) string {
	return "    " + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n    ")
}

// refused shows that the credential is dead.
func (s *screen) refused(e *connectors.AuthError) {
	s.hold(func(r *credentials.Redactor, w *strings.Builder) {
		fmt.Fprintf(w, "refused: %s\n", r.Cut(e.Text, shownBody))
	})
}

// result shows what the execution's result would be.
func (s *screen) result(o *outcome) {
	s.hold(func(r *credentials.Redactor, w *strings.Builder) {
		fmt.Fprintf(w, "result: %s (%s, %s)\n", o.Status, counted(o.Attempts, "attempt"), counted(o.Refreshes, "refresh"))
		if o.StatusCode != 0 {
			fmt.Fprintf(w, "    status_code: %d\n", o.StatusCode)
		}
		if o.Exit != nil {
			fmt.Fprintf(w, "    exit: %t\n", *o.Exit)
		}
		if o.Error != nil {
			fmt.Fprintf(w, "    error: %s: %s\n%s", o.Error.Kind, o.Error.Message, s.place(o.Error.At))
			if o.Error.Detail != "" {
				fmt.Fprintf(w, "    detail: %s\n", r.Cut(o.Error.Detail, shownBody))
			}
		}
		var webhook json.RawMessage
		if o.Webhook != nil {
			webhook, _ = json.Marshal(o.Webhook) // it was made of JSON
		}
		for _, part := range []struct {
			name string
			raw  json.RawMessage
		}{{"content", o.Content}, {"fields", o.Fields}, {"webhook", webhook}} {
			if part.raw == nil {
				continue
			}
			name := part.name
			if name == "content" && o.ContentEncoding != "" {
				name += " (" + o.ContentEncoding + ")"
			}
			fmt.Fprintf(w, "    %s:\n%s\n", name, indent(r.Cut(pretty(part.raw), shownBody)))
		}
	})
}

func counted(n int, what string) string {
	switch {
	case n == 1:
		return "1 " + what
	case strings.HasSuffix(what, "sh"):
		return fmt.Sprintf("%d %ses", n, what)
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// pretty indents JSON; what is none stays as it is.
func pretty(raw json.RawMessage) string {
	var b bytes.Buffer
	if json.Indent(&b, raw, "", "  ") != nil {
		return string(raw)
	}
	return b.String()
}

func joined(lines []string) string { return strings.Join(lines, "\n") }
