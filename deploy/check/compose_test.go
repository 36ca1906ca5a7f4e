package check

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
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
		} else {
			env[name] = ""
		}
	}
	return env
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
			if port.HostIP != "127.0.0.1" || name != "dashboard" {
				t.Errorf("%s: publishes %s:%s", name, port.HostIP, port.Published)
			}
		}
		for variable, value := range environment(s) {
			if slices.Contains(inClear, variable) || value == "" {
				t.Errorf("%s: %s in the environment", name, variable)
			}
		}
		if _, ok := s.Networks["redis"]; name == "redis" && (!ok || len(s.Networks) != 1) {
			t.Errorf("redis is in other networks than its own")
		}
	}
	if !p.Networks["redis"].Internal {
		t.Error("Redis' network leads out")
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
