package check

import (
	"fmt"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"sigs.k8s.io/yaml"
)

// project is the compose file as compose itself reads it: strictly.
func project(t *testing.T) *types.Project {
	t.Helper()
	options, err := cli.NewProjectOptions([]string{root + "/docker-compose.yml"}, cli.WithProfiles([]string{"*"}), cli.WithoutEnvironmentResolution)
	if err != nil {
		t.Fatal(err)
	}
	p, err := options.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func environment(s types.ServiceConfig) map[string]string {
	env := map[string]string{}
	for name, value := range s.Environment {
		if value != nil {
			env[name] = *value
		}
	}
	return env
}

// passedOn are the variables that a service has from whoever starts compose.
func passedOn(s types.ServiceConfig) (names []string) {
	for name, value := range s.Environment {
		if value == nil {
			names = append(names, name)
		}
	}
	return names
}

func TestCompose_options(t *testing.T) {
	p := project(t)
	for name, program := range map[string]string{"worker": "worker", "dashboard": "worker", "enqueue": "enqueue", "provider": "sampleprovider"} {
		s, ok := p.Services[name]
		if !ok {
			t.Fatalf("there is no service %s", name)
		}
		env, args := environment(s), []string(s.Command)
		if program == "worker" {
			args = append([]string{"run"}, args...) // the image's command
			starts(t, name, env)
			if s.StopGracePeriod == nil {
				t.Errorf("%s: no stop_grace_period", name)
			} else {
				drains(t, name, time.Duration(*s.StopGracePeriod), env)
			}
			if s.HealthCheck == nil || !slices.Equal(s.HealthCheck.Test, []string{"CMD", "/usr/local/bin/worker", "probe"}) {
				t.Errorf("%s: its health check is no probe", name)
			}
		}
		known(t, name, env, program, args)
	}
	known(t, "health check", nil, "worker", []string{"probe"})
}

func TestCompose_isClosed(t *testing.T) {
	p := project(t)
	if p.Services["dashboard"].Name == "" || p.Services["redis"].Name == "" {
		t.Fatal("no dashboard or no redis")
	}
	for name, s := range p.Services {
		if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") || s.Privileged || s.User == "" {
			t.Errorf("%s: not read-only, or with capabilities, new privileges or its image's user", name)
		}
		if (name == "secrets") != (s.User == "0:0") {
			t.Errorf("%s: runs as %s", name, s.User)
		}
		if s.Logging == nil || s.Logging.Options["max-size"] == "" {
			t.Errorf("%s: its log grows without end", name)
		}
		for _, port := range s.Ports {
			if port.HostIP != "127.0.0.1" || name != "dashboard" && name != "grafana" {
				t.Errorf("%s: publishes %s:%s", name, port.HostIP, port.Published)
			}
		}
		for variable, value := range environment(s) {
			if slices.Contains(inClear, variable) || value == "" {
				t.Errorf("%s: %s in the environment", name, variable)
			}
		}
		for _, v := range s.Volumes {
			if _, err := os.Stat(v.Source); v.Type == types.VolumeTypeBind && (err != nil || !v.ReadOnly) {
				t.Errorf("%s: %s is not there, or may be written: %v", name, v.Source, err)
			}
		}
		if _, tag, _ := strings.Cut(s.Image, ":"); tag == "" || tag == "latest" {
			t.Errorf("%s: which image it is may change: %s", name, s.Image)
		}
	}
	for _, name := range []string{"redis", "prometheus"} {
		network := map[string]string{"redis": "redis", "prometheus": "monitoring"}[name]
		if _, ok := p.Services[name].Networks[network]; !ok || len(p.Services[name].Networks) != 1 {
			t.Errorf("%s is in other networks than %s", name, network)
		}
		if !p.Networks[network].Internal {
			t.Errorf("the network %s leads out", network)
		}
	}
}

// Traces are exported where whoever starts compose says so: by workers and
// enqueue, which reach a collector, and by nobody else.
func TestCompose_traces(t *testing.T) {
	docs, err := os.ReadFile(root + "/docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	p := project(t)
	for name, s := range p.Services {
		names := passedOn(s)
		for _, variable := range names {
			if short := strings.TrimPrefix(variable, "OTEL_EXPORTER_OTLP"); !strings.Contains(string(docs), variable) && !strings.Contains(string(docs), "`…"+short+"`") {
				t.Errorf("%s: docs/operations.md does not tell of %s", name, variable)
			}
		}
		_, out := s.Networks["default"]
		if want := name == "worker" || name == "dashboard" || name == "enqueue"; want != slices.Contains(names, "OTEL_EXPORTER_OTLP_ENDPOINT") || want && !out {
			t.Errorf("%s: traces are exported where they should not be, or not where they should", name)
		}
	}
}

// What the profile monitoring adds fits together: Prometheus finds all workers
// under the name that rules and dashboard know, Grafana finds Prometheus and the
// dashboard.
func TestCompose_monitoring(t *testing.T) {
	p := project(t)
	prometheus, grafana := p.Services["prometheus"], p.Services["grafana"]
	for _, s := range []types.ServiceConfig{prometheus, grafana} {
		if !slices.Equal(s.Profiles, []string{"monitoring"}) || s.HealthCheck == nil {
			t.Errorf("%q is not in the profile monitoring, or nobody sees when it is ready", s.Name)
		}
	}
	config, ok := strings.CutPrefix(prometheus.Command[0], "--config.file="+mount(t, prometheus, "/deploy/prometheus"))
	if !ok {
		t.Fatalf("prometheus reads %s", prometheus.Command[0])
	}
	var scrapes struct {
		RuleFiles     []string `json:"rule_files"`
		ScrapeConfigs []struct {
			Job string `json:"job_name"`
			DNS []struct {
				Names []string `json:"names"`
				Type  string   `json:"type"`
				Port  int      `json:"port"`
			} `json:"dns_sd_configs"`
		} `json:"scrape_configs"`
	}
	read(t, "deploy/prometheus"+config, &scrapes)
	if len(scrapes.RuleFiles) != 1 || len(scrapes.ScrapeConfigs) != 1 || scrapes.ScrapeConfigs[0].Job != "stepworker" {
		t.Fatalf("%+v", scrapes)
	}
	if _, err := os.Stat(root + "/deploy/prometheus/" + scrapes.RuleFiles[0]); err != nil {
		t.Error(err)
	}
	dns := scrapes.ScrapeConfigs[0].DNS[0]
	for name, s := range p.Services {
		if environment(s)["STEPWORKER_HTTP"] == "" {
			continue
		}
		if !slices.Contains(dns.Names, name) || dns.Type != "A" || environment(s)["STEPWORKER_HTTP"] != fmt.Sprint("0.0.0.0:", dns.Port) {
			t.Errorf("%s at %s is not scraped: %+v", name, environment(s)["STEPWORKER_HTTP"], dns)
		}
		if _, ok := s.Networks["monitoring"]; !ok {
			t.Errorf("prometheus does not reach %s", name)
		}
	}

	if _, ok := grafana.Networks["monitoring"]; !ok {
		t.Error("grafana does not reach prometheus")
	}
	provisioning := mount(t, grafana, "/deploy/grafana/provisioning")
	if provisioning != "/etc/grafana/provisioning" {
		t.Errorf("grafana does not look at %s", provisioning)
	}
	var sources struct {
		Datasources []struct {
			Type string `json:"type"`
			URL  string `json:"url"`
		} `json:"datasources"`
	}
	read(t, "deploy/grafana/provisioning/datasources/prometheus.yml", &sources)
	if s := sources.Datasources[0]; s.Type != "prometheus" || s.URL != "http://prometheus:9090" {
		t.Errorf("grafana asks %+v", s)
	}
	var dashboards struct {
		Providers []struct {
			Options struct {
				Path string `json:"path"`
			} `json:"options"`
		} `json:"providers"`
	}
	read(t, "deploy/grafana/provisioning/dashboards/stepworker.yml", &dashboards)
	file := mount(t, grafana, "/deploy/grafana/stepworker.json")
	env := environment(grafana)
	if path.Dir(file) != dashboards.Providers[0].Options.Path || env["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] != file {
		t.Errorf("the dashboard is at %s, grafana looks in %s and at %s", file, dashboards.Providers[0].Options.Path, env["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
	}
	if env["GF_AUTH_ANONYMOUS_ORG_ROLE"] != "Viewer" || env["GF_AUTH_BASIC_ENABLED"] != "false" || env["GF_AUTH_DISABLE_LOGIN_FORM"] != "true" {
		t.Error("grafana has users, and a password that everybody knows")
	}
}

// mount is where a service sees a file or folder of the clone.
func mount(t *testing.T, s types.ServiceConfig, source string) string {
	t.Helper()
	for _, v := range s.Volumes {
		if strings.HasSuffix(v.Source, source) {
			return v.Target
		}
	}
	t.Fatalf("%s does not see %s", s.Name, source)
	return ""
}

func read(t *testing.T, file string, into any) {
	t.Helper()
	raw, err := os.ReadFile(root + "/" + file)
	if err == nil {
		err = yaml.Unmarshal(raw, into)
	}
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// Workers may reach one private address: the sample provider's. Nobody gets it
// by chance.
func TestCompose_sampleProvider(t *testing.T) {
	p := project(t)
	provider := p.Services["provider"]
	addr, err := netip.ParseAddr(provider.Networks["sample"].Ipv4Address)
	if err != nil {
		t.Fatal(err)
	}
	if got := environment(p.Services["worker"])["STEPWORKER_ALLOW_NETWORK"]; got != addr.String()+"/32" {
		t.Errorf("workers may reach %s, the provider is at %s", got, addr)
	}
	if base := environment(provider)["STEPWORKER_BASE"]; !strings.HasPrefix(base, "http://"+addr.String()+":") {
		t.Errorf("the provider's address is %s, its credentials say %s", addr, base)
	}
	pool := p.Networks["sample"].Ipam.Config[0]
	if subnet, by := netip.MustParsePrefix(pool.Subnet), netip.MustParsePrefix(pool.IPRange); !subnet.Contains(addr) || by.Contains(addr) {
		t.Errorf("%s must be in %s and not in %s", addr, subnet, by)
	}
	if !p.Networks["sample"].Internal {
		t.Error("the sample network leads out")
	}
}
