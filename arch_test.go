package stepworker_test

import (
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/stepworker/stepworker/"

// What each package may import of ours, and why no more.
var importRules = map[string]struct {
	may []string
	why string
}{
	"hooks":       {nil, "hooks knows JavaScript and nothing else: what runs strangers' code must not reach secrets or Redis"},
	"credentials": {[]string{"internal/killpoint", "internal/strictjson"}, "credentials knows what is stored and how it is renewed, not who asks"},
	"connectors": {[]string{"connectors/coding", "connectors/dates", "connectors/definition", "connectors/httpfield", "connectors/inline", "connectors/jsontree", "connectors/location", "connectors/mergefields",
		"hooks", "credentials", "internal/spans", "internal/strictjson"}, "connectors decides how a method is called, never when: it must not know of jobs"},
	"connectors/definition": {[]string{"connectors/dates", "connectors/inline", "connectors/jsontree", "connectors/location", "connectors/mergefields",
		"hooks", "credentials", "internal/strictjson"}, "definition knows what a connector file says, not how a call goes: it must not know of connectors"},
	"connectors/inline":      {[]string{"connectors/mergefields", "hooks"}, "inline turns a value into JavaScript, and runs none"},
	"connectors/mergefields": {[]string{"connectors/dates", "connectors/jsontree"}, "mergefields knows templates, not where values come from"},
	"connectors/location":    {[]string{"connectors/jsontree"}, "location knows where in a value something stands, not what it is for"},
	"connectors/jsontree":    {[]string{"connectors/dates"}, "jsontree knows values alone"},
	"connectors/dates":       {nil, "dates knows dates alone"},
	"connectors/coding":      {nil, "coding undoes content codings, of whoever's answer"},
	"connectors/httpfield":   {nil, "httpfield reads header fields, of whoever's answer"},
	"jobs":                   {[]string{"connectors", "connectors/definition", "credentials", "internal/killpoint", "internal/spans", "internal/strictjson"}, "jobs decides when; scripts are connectors' business"},
	"cmd/enqueue":            {[]string{"jobs", "internal/cli", "internal/otlp", "internal/spans"}, "enqueue needs no key and no connectors"},
	"internal/cli":           {nil, "the command line's helpers serve both programs"},
	"internal/spans":         {nil, "spans knows OpenTelemetry's API and its context, not what is traced"},
	"internal/embedded":      {nil, "the embedded Redis is a leaf"},
	"internal/redismetrics":  {nil, "it measures a client of Redis, whoever uses it for what"},
}

func TestImportRules(t *testing.T) {
	for pkg, rule := range importRules {
		out, err := exec.Command("go", "list", "-f", `{{join .Imports "\n"}}`, "./"+pkg).Output()
		if err != nil {
			t.Fatalf("%s: %v", pkg, err)
		}
		for _, imp := range strings.Fields(string(out)) {
			ours, ok := strings.CutPrefix(imp, module)
			if !ok {
				continue
			}
			allowed := false
			for _, m := range rule.may {
				allowed = allowed || m == ours
			}
			if !allowed {
				t.Errorf("%s imports %s: %s", pkg, ours, rule.why)
			}
		}
	}
}
