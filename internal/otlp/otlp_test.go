package otlp

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/stepworker/stepworker/credentials"
)

// A collector that is down for a day is one line a minute, and a header that
// it echoes is masked.
func TestErrorLog_fewLinesNoSecrets(t *testing.T) {
	var out bytes.Buffer
	l := &errorLog{log: slog.New(slog.NewTextHandler(&out, nil)), mask: credentials.NewRedactor([]string{"hunter22"}, 6)}
	for range 100 {
		l.Handle(errors.New("401: no key hunter22 " + strings.Repeat("x", 10_000)))
	}
	if n := strings.Count(out.String(), "\n"); n != 1 || out.Len() > 1000 {
		t.Errorf("%d lines, %d bytes", n, out.Len())
	}
	l.last(errors.New("the end"))
	if !strings.Contains(out.String(), "more=99") || strings.Contains(out.String(), "hunter22") || !strings.Contains(out.String(), "401") {
		t.Errorf("%s", out.String())
	}
}
