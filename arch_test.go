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
	"hooks":             {nil, "hooks knows JavaScript and nothing else: what runs strangers' code must not reach secrets or Redis"},
	"credentials":       {[]string{"internal/killpoint", "internal/strictjson"}, "credentials knows what is stored and how it is renewed, not who asks"},
	"connectors":        {[]string{"hooks", "credentials", "internal/strictjson"}, "connectors decides how a method is called, never when: it must not know of jobs"},
	"jobs":              {[]string{"connectors", "credentials", "internal/killpoint", "internal/strictjson"}, "jobs decides when; scripts are connectors' business"},
	"cmd/enqueue":       {[]string{"jobs", "internal/cli"}, "enqueue needs no key and no connectors"},
	"internal/cli":      {nil, "the command line's helpers serve both programs"},
	"internal/embedded": {nil, "the embedded Redis is a leaf"},
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
