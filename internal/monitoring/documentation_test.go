package monitoring

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
	"go.yaml.in/yaml/v4"
)

const (
	operationsPage = "../../docs/operations.md"
	rulesFile      = "../../deploy/prometheus/stepworker.rules.yml"
	rulesTests     = "../../deploy/prometheus/stepworker.rules.test.yml"
)

// ours are the metrics of ours, each as name{labels}.
func ours(f families) (all []string) {
	for name, family := range f {
		if !strings.HasPrefix(name, "stepworker_") {
			continue
		}
		if labels := labelsOf(family); len(labels) > 0 {
			name += "{" + strings.Join(labels, ",") + "}"
		}
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

func labelsOf(family *dto.MetricFamily) (names []string) {
	for _, s := range family.GetMetric() {
		for _, l := range s.GetLabel() {
			if !slices.Contains(names, l.GetName()) {
				names = append(names, l.GetName())
			}
		}
	}
	slices.Sort(names)
	return names
}

// documentation compares the page's table with what a worker tells.
func documentation(t *testing.T, f families) {
	page, err := os.ReadFile(operationsPage)
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(stepworker_[a-z_]+)(?:\\{([a-z_,]+)\\})?` \\|").FindAllStringSubmatch(string(page), -1) {
		name := m[1]
		if m[2] != "" {
			labels := strings.Split(m[2], ",")
			slices.Sort(labels)
			name += "{" + strings.Join(labels, ",") + "}"
		}
		documented = append(documented, name)
	}
	slices.Sort(documented)
	if diff := cmp.Diff(ours(f), documented); diff != "" {
		t.Errorf("docs/operations.md lists other metrics than /metrics has (-/metrics +page):\n%s", diff)
	}
}

type alertRule struct {
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

func alertRules(t *testing.T) (all []alertRule) {
	t.Helper()
	raw, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Rules []alertRule `yaml:"rules"`
		} `yaml:"groups"`
	}
	if err := yaml.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) == 0 {
		t.Fatal("no rules")
	}
	return all
}

// Each rule has its entry in the runbook, each entry its rule, and each rule a
// unit test in which it fires.
func TestRunbook_anEntryForEachRule(t *testing.T) {
	page, err := os.ReadFile(operationsPage)
	if err != nil {
		t.Fatal(err)
	}
	tests, err := os.ReadFile(rulesTests)
	if err != nil {
		t.Fatal(err)
	}
	_, runbook, found := strings.Cut(string(page), "\n## Runbook\n")
	if !found {
		t.Fatal("there is no section Runbook")
	}
	runbook, _, _ = strings.Cut(runbook, "\n## ")
	entries := map[string]string{}
	for _, part := range strings.Split(runbook, "\n### ")[1:] {
		name, text, _ := strings.Cut(part, "\n")
		entries[name] = text
	}
	for _, r := range alertRules(t) {
		text, ok := entries[r.Alert]
		if !ok {
			t.Errorf("rule %s has no entry in the runbook", r.Alert)
			continue
		}
		delete(entries, r.Alert)
		for _, part := range []string{"**Means**", "**Look**", "**Ends**"} {
			if !strings.Contains(text, part) {
				t.Errorf("the entry of %s has no %s", r.Alert, part)
			}
		}
		if want := "https://github.com/stepworker/stepworker/blob/main/docs/operations.md#" + strings.ToLower(r.Alert); r.Annotations["runbook_url"] != want {
			t.Errorf("%s: runbook_url is %q, want %q", r.Alert, r.Annotations["runbook_url"], want)
		}
		if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s has no summary, or no description", r.Alert)
		}
		if s := r.Labels["severity"]; s != "warning" && s != "critical" {
			t.Errorf("%s: severity is %q", r.Alert, s)
		}
		if !strings.Contains(string(tests), `alertname="`+r.Alert+`"`) {
			t.Errorf("no unit test has %s fire", r.Alert)
		}
	}
	for name := range entries {
		t.Errorf("the runbook has an entry %s, but there is no such rule", name)
	}
}
