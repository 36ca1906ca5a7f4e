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

func TestDecodeStep_namesTheMember(t *testing.T) {
	for name, c := range map[string]struct{ members, want string }{
		"null is absent":         {`"timeout":null,"deadline":null,"max_retries":null,"parameters":null,"cycle":null,"mappings":null,"webhook":null`, ""},
		"a duration in digits":   {`"timeout":5`, `timeout: a duration is text such as "5m", not 5`},
		"no duration":            {`"retention":"a day"`, `retention: "a day" is no duration; write it as "90s", "5m" or "24h"`},
		"no timeout":             {`"timeout":"0s"`, `timeout: "0s" is not allowed; leave it out for the default`},
		"no retention":           {`"retention":"0"`, `retention: "0" is not allowed; leave it out for the default`},
		"no time":                {`"deadline":"tomorrow"`, "deadline: an RFC 3339 time is needed, such as 2026-12-01T10:00:00Z"},
		"a time in digits":       {`"process_at":1764583200`, "process_at: an RFC 3339 time is needed, such as 2026-12-01T10:00:00Z"},
		"another case":           {`"Tag":"x"`, `unknown member "Tag"; did you mean "tag"?`},
		"twice":                  {`"tag":"x","tag":"y"`, `member "tag" is given twice`},
		"a parameter twice":      {`"parameters":{"p":1,"p":2}`, `parameters: member "p" is given twice`},
		"unknown below":          {`"cycle":{"cycle":"x"}`, `cycle: unknown member "cycle"; did you mean "cycle_id"?`},
		"the worker's own":       {`"v":1`, `unknown member "v"`},
		"a body may be as it is": {`"body":{"a":1,"a":2}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := jobs.DecodeStep([]byte(`{"credential_id":"c","method":"m",` + c.members + `}`))
			if err == nil {
				err = s.Validate()
			}
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}
