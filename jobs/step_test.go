package jobs_test

import (
	"strings"
	"testing"

	"github.com/stepworker/stepworker/jobs"
)

// A reply that asynq would refuse, or that would come to a worker of ours, is
// refused before the step is accepted.
func TestValidate_replyTo(t *testing.T) {
	for name, c := range map[string]struct {
		queue   string
		reply   jobs.ReplyTo
		refused string
	}{
		"a queue of the flow's":       {"", jobs.ReplyTo{Queue: "flows", Type: "step:finished"}, ""},
		"no queue":                    {"", jobs.ReplyTo{Type: "step:finished"}, "both queue and type"},
		"a blank queue":               {"", jobs.ReplyTo{Queue: " \t", Type: "step:finished"}, "both queue and type"},
		"a blank type":                {"", jobs.ReplyTo{Queue: "flows", Type: " "}, "both queue and type"},
		"the default queue":           {"", jobs.ReplyTo{Queue: "steps", Type: "step:finished"}, "Stepworker's own"},
		"the default one, not its":    {"slow", jobs.ReplyTo{Queue: "steps", Type: "step:finished"}, "Stepworker's own"},
		"its own queue":               {"slow", jobs.ReplyTo{Queue: "slow", Type: "step:finished"}, "Stepworker's own"},
		"the queue of refreshes":      {"", jobs.ReplyTo{Queue: "refresh", Type: "step:finished"}, "Stepworker's own"},
		"a type of ours":              {"", jobs.ReplyTo{Queue: "flows", Type: "step:run"}, "Stepworker's own"},
		"a queue's name with a brace": {"", jobs.ReplyTo{Queue: "{flows}", Type: "step:finished"}, "braces"},
	} {
		t.Run(name, func(t *testing.T) {
			err := (&jobs.Step{CredentialID: "c", Method: "m", Queue: c.queue, ReplyTo: &c.reply}).Validate()
			switch {
			case c.refused == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.refused != "" && (err == nil || !strings.Contains(err.Error(), c.refused)):
				t.Errorf("got %v, want %q", err, c.refused)
			}
		})
	}
}
