package monitoring

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/VictoriaMetrics/metricsql"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

const dashboardFile = "../../deploy/grafana/stepworker.json"

// query is one of a rule or a panel.
type query struct {
	of     string
	expr   string
	legend string
}

// byPrometheus are the labels that it gives to what it scrapes.
var byPrometheus = []string{"job", "instance"}

// check says what a query names that a worker does not tell: metrics, labels,
// and values of labels.
func (q query) check(f families) (wrong []string) {
	parsed, err := metricsql.Parse(q.expr)
	if err != nil {
		return []string{fmt.Sprintf("%s: %v", q.of, err)}
	}
	complain := func(format string, args ...any) { wrong = append(wrong, q.of+": "+fmt.Sprintf(format, args...)) }
	known := slices.Clone(byPrometheus) // labels of all its metrics
	var visit func(metricsql.Expr) []string
	visit = func(e metricsql.Expr) (labels []string) {
		switch e := e.(type) {
		case *metricsql.MetricExpr:
			for _, filters := range e.LabelFilterss {
				labels = append(labels, selector(filters, f, complain)...)
			}
		case *metricsql.RollupExpr:
			return visit(e.Expr)
		case *metricsql.FuncExpr:
			for _, arg := range e.Args {
				labels = append(labels, visit(arg)...)
			}
		case *metricsql.AggrFuncExpr:
			for _, arg := range e.Args {
				labels = append(labels, visit(arg)...)
			}
			for _, l := range e.Modifier.Args {
				if !slices.Contains(labels, l) {
					complain("%s: no metric in it has the label %q", e.AppendString(nil), l)
				}
			}
			if e.Modifier.Op == "by" {
				return e.Modifier.Args
			}
			if e.Modifier.Op == "" {
				return nil
			}
		case *metricsql.BinaryOpExpr:
			left, right := visit(e.Left), visit(e.Right)
			for _, l := range e.GroupModifier.Args {
				if !slices.Contains(left, l) || !slices.Contains(right, l) {
					complain("%s(%s): a side has no such label", e.GroupModifier.Op, l)
				}
			}
			return append(left, right...)
		}
		return labels
	}
	known = append(known, visit(parsed)...)
	for _, m := range regexp.MustCompile(`\{\{\s*([a-z_]+)\s*\}\}`).FindAllStringSubmatch(q.legend, -1) {
		if !slices.Contains(known, m[1]) {
			complain("its legend shows the label %q, which it has not", m[1])
		}
	}
	return wrong
}

// selector is what selects series: it returns the labels of these.
func selector(filters []metricsql.LabelFilter, f families, complain func(string, ...any)) []string {
	name := ""
	for _, l := range filters {
		if l.Label == "__name__" {
			name = l.Value
		}
	}
	labels := slices.Clone(byPrometheus)
	if name == "up" {
		return labels
	}
	family := f[name]
	if family == nil {
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			base, ok := strings.CutSuffix(name, suffix)
			if h := f[base]; ok && h != nil && len(h.GetMetric()) > 0 && h.GetMetric()[0].Histogram != nil {
				family = h
			}
		}
		if strings.HasSuffix(name, "_bucket") {
			labels = append(labels, "le")
		}
	}
	if family == nil {
		complain("no worker tells the metric %q", name)
		return labels
	}
	values := map[string][]string{}
	for _, s := range family.GetMetric() {
		for _, l := range s.GetLabel() {
			values[l.GetName()] = append(values[l.GetName()], l.GetValue())
		}
	}
	for _, l := range filters {
		if l.Label == "__name__" || slices.Contains(byPrometheus, l.Label) {
			continue
		}
		told, ok := values[l.Label]
		if !ok {
			complain("%s has no label %q", name, l.Label)
			continue
		}
		matches := func(v string) bool { return v == l.Value }
		if l.IsRegexp {
			re, err := regexp.Compile("^(?:" + l.Value + ")$")
			if err != nil {
				complain("%s: %v", l.Label, err)
				continue
			}
			matches = re.MatchString
		}
		if !slices.ContainsFunc(told, matches) {
			complain("%s has no series with %s=%q", name, l.Label, l.Value)
		}
	}
	for l := range values {
		labels = append(labels, l)
	}
	return labels
}

// ruleQueries are those of the alert rules.
func ruleQueries(t *testing.T) (all []query) {
	for _, r := range alertRules(t) {
		all = append(all, query{of: r.Alert, expr: r.Expr})
	}
	return all
}

type panel struct {
	Title   string
	Type    string
	Panels  []panel
	Targets []struct {
		Expr         string
		LegendFormat string
		Datasource   struct{ UID string }
	}
}

// dashboardQueries are those of the dashboard, its variables filled in as
// Grafana does.
func dashboardQueries(t *testing.T) (all []query) {
	t.Helper()
	raw, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels     []panel
		Templating struct {
			List []struct {
				Name, Type string
				Query      any
			}
		}
	}
	if err := json.Unmarshal(raw, &board); err != nil {
		t.Fatal(err)
	}
	fill := strings.NewReplacer("$__rate_interval", "1m", "$__range", "1h", "$connector", ".*", "$instance", ".*")
	var walk func([]panel)
	walk = func(panels []panel) {
		for _, p := range panels {
			walk(p.Panels)
			if p.Type == "row" {
				continue
			}
			if len(p.Targets) == 0 {
				t.Errorf("panel %q asks nothing", p.Title)
			}
			for _, q := range p.Targets {
				if q.Datasource.UID != "${datasource}" {
					t.Errorf("panel %q asks the data source %q, not the dashboard's", p.Title, q.Datasource.UID)
				}
				all = append(all, query{of: "panel " + p.Title, expr: fill.Replace(q.Expr), legend: q.LegendFormat})
			}
		}
	}
	walk(board.Panels)
	source := false
	values := regexp.MustCompile(`^label_values\((.+), ([a-z_]+)\)$`)
	for _, v := range board.Templating.List {
		if v.Type == "datasource" {
			source = v.Name == "datasource" && v.Query == "prometheus"
			continue
		}
		text, _ := v.Query.(string)
		m := values.FindStringSubmatch(text)
		if m == nil {
			t.Errorf("variable %s asks %q", v.Name, text)
			continue
		}
		all = append(all, query{of: "variable " + v.Name, expr: "count by (" + m[2] + ") (" + m[1] + ")"})
	}
	if !source {
		t.Error("the dashboard has no variable datasource of Prometheus")
	}
	return all
}

// The check of queries finds what there is not.
func TestQueries_whatIsWrong(t *testing.T) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	f, err := parser.TextToMetricFamilies(strings.NewReader(`# TYPE a_total counter
a_total{connector="acme",kind="x"} 1
# TYPE h histogram
h_bucket{le="+Inf",event="e"} 1
h_sum{event="e"} 1
h_count{event="e"} 1
# TYPE g gauge
g 1
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ expr, legend, wrong string }{
		{`sum by (connector) (rate(a_total{kind=~"x|y"}[5m])) > 2`, "{{connector}}", ""},
		{`histogram_quantile(0.9, sum by (le, event, instance) (rate(h_bucket[5m])))`, "{{event}}", ""},
		{`rate(h_sum[5m]) / rate(h_count[5m])`, "", ""},
		{`up{job="stepworker"} == 0`, "{{instance}}", ""},
		{`rate(b_total[5m])`, "", `no worker tells the metric "b_total"`},
		{`rate(a_total_count[5m])`, "", `no worker tells the metric "a_total_count"`},
		{`rate(h[5m]) + rate(a_total_sum[5m])`, "", `no worker tells the metric "a_total_sum"`},
		{`a_total{status="x"}`, "", `a_total has no label "status"`},
		{`a_total{kind="z"}`, "", `a_total has no series with kind="z"`},
		{`a_total{kind=~"y|z"}`, "", `a_total has no series with kind="y|z"`},
		{`sum by (event) (a_total)`, "", `no metric in it has the label "event"`},
		{`sum by (le) (a_total)`, "", `no metric in it has the label "le"`},
		{`a_total and on (connector) g`, "", `on(connector): a side has no such label`},
		{`sum by (kind) (a_total)`, "{{connector}}", `its legend shows the label "connector", which it has not`},
		{`sum by (`, "", `unparsed`},
	} {
		got := query{of: "it", expr: c.expr, legend: c.legend}.check(f)
		switch {
		case c.wrong == "" && len(got) > 0, c.wrong != "" && len(got) == 0:
			t.Errorf("%s: %q, want %q", c.expr, got, c.wrong)
		case c.wrong != "" && c.wrong != "unparsed" && !strings.Contains(strings.Join(got, "\n"), c.wrong):
			t.Errorf("%s: %q, want %q", c.expr, got, c.wrong)
		}
	}
}
