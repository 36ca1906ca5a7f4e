package check

import (
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	keda "github.com/kedacore/keda/v2/apis/keda/v1alpha1"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

const manifests = root + "/deploy/kubernetes/"

// cluster is what an overlay makes, decoded strictly by the published types.
type cluster struct {
	name         string
	deployments  []*apps.Deployment
	statefulSets []*apps.StatefulSet
	services     []*core.Service
	accounts     []*core.ServiceAccount
	configMaps   []*core.ConfigMap
	budgets      []*policy.PodDisruptionBudget
	policies     []*networking.NetworkPolicy
	scaled       []*keda.ScaledObject
	monitors     []*monitoring.PodMonitor
}

// build builds an overlay as `kubectl apply -k` does. A kind that is not here,
// such as a Secret, is refused.
func build(t *testing.T, overlay string) *cluster {
	t.Helper()
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), manifests+overlay)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{name: overlay}
	for _, r := range resources.Resources() {
		var err error
		switch kind := r.GetApiVersion() + " " + r.GetKind(); kind {
		case "apps/v1 Deployment":
			c.deployments, err = decode(c.deployments, r.MustYaml())
		case "apps/v1 StatefulSet":
			c.statefulSets, err = decode(c.statefulSets, r.MustYaml())
		case "v1 Service":
			c.services, err = decode(c.services, r.MustYaml())
		case "v1 ServiceAccount":
			c.accounts, err = decode(c.accounts, r.MustYaml())
		case "v1 ConfigMap":
			c.configMaps, err = decode(c.configMaps, r.MustYaml())
		case "policy/v1 PodDisruptionBudget":
			c.budgets, err = decode(c.budgets, r.MustYaml())
		case "networking.k8s.io/v1 NetworkPolicy":
			c.policies, err = decode(c.policies, r.MustYaml())
		case "keda.sh/v1alpha1 ScaledObject":
			c.scaled, err = decode(c.scaled, r.MustYaml())
		case "monitoring.coreos.com/v1 PodMonitor":
			c.monitors, err = decode(c.monitors, r.MustYaml())
		default:
			t.Errorf("%s: %s %s does not belong here", overlay, kind, r.GetName())
		}
		if err != nil {
			t.Errorf("%s: %s %s: %v", overlay, r.GetKind(), r.GetName(), err)
		}
	}
	if len(c.deployments) != 1 || c.deployments[0].Name != "stepworker" {
		t.Fatalf("%s: one Deployment, stepworker, is needed", overlay)
	}
	return c
}

func decode[T any](all []*T, raw string) ([]*T, error) {
	v := new(T)
	return append(all, v), yaml.UnmarshalStrict([]byte(raw), v)
}

func overlays(t *testing.T) []string {
	t.Helper()
	found, _ := filepath.Glob(manifests + "overlays/*/kustomization.yaml")
	if len(found) < 2 {
		t.Fatal("no overlays")
	}
	all := []string{"base"}
	for _, f := range found {
		all = append(all, "overlays/"+filepath.Base(filepath.Dir(f)))
	}
	return all
}

func each(t *testing.T, f func(*testing.T, *cluster)) {
	for _, overlay := range overlays(t) {
		t.Run(overlay, func(t *testing.T) { f(t, build(t, overlay)) })
	}
}

// pod is a workload's pods.
type pod struct {
	name     string
	selector *meta.LabelSelector
	core.PodTemplateSpec
}

func (c *cluster) pods() (all []pod) {
	for _, d := range c.deployments {
		all = append(all, pod{d.Name, d.Spec.Selector, d.Spec.Template})
	}
	for _, s := range c.statefulSets {
		all = append(all, pod{s.Name, s.Spec.Selector, s.Spec.Template})
	}
	return all
}

// selected is the one workload whose pods a selector selects.
func (c *cluster) selected(t *testing.T, who string, s *meta.LabelSelector) *pod {
	t.Helper()
	selector, err := meta.LabelSelectorAsSelector(s)
	if err != nil {
		t.Fatal(err)
	}
	var found []pod
	for _, p := range c.pods() {
		if selector.Matches(labels.Set(p.Labels)) {
			found = append(found, p)
		}
	}
	if len(found) != 1 {
		t.Errorf("%s selects %d workloads (%s)", who, len(found), selector)
		return nil
	}
	return &found[0]
}

// has says that a pod's container has a port, by name or number.
func (p *pod) has(port intstr.IntOrString) bool {
	for _, c := range p.Spec.Containers {
		for _, q := range c.Ports {
			if port.Type == intstr.String && q.Name == port.StrVal || port.Type == intstr.Int && q.ContainerPort == port.IntVal {
				return true
			}
		}
	}
	return false
}

func TestKubernetes_selectorsAndPorts(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		for _, p := range c.pods() {
			if got := c.selected(t, p.name, p.selector); got != nil && got.name != p.name {
				t.Errorf("%s selects the pods of %s", p.name, got.name)
			}
		}
		for _, s := range c.services {
			p := c.selected(t, "Service "+s.Name, &meta.LabelSelector{MatchLabels: s.Spec.Selector})
			for _, port := range s.Spec.Ports {
				if p != nil && (p.name != s.Name || !p.has(port.TargetPort)) {
					t.Errorf("Service %s: %s has no port %s", s.Name, p.name, port.TargetPort.String())
				}
			}
		}
		for _, b := range c.budgets {
			c.selected(t, "PodDisruptionBudget "+b.Name, b.Spec.Selector)
		}
		for _, m := range c.monitors {
			p := c.selected(t, "PodMonitor "+m.Name, &m.Spec.Selector)
			if p != nil && p.Labels[m.Spec.JobLabel] != "stepworker" {
				t.Errorf("PodMonitor %s: its job is not stepworker, which rules and dashboard ask for", m.Name)
			}
			for _, e := range m.Spec.PodMetricsEndpoints {
				if p != nil && (e.Port == nil || !p.has(intstr.FromString(*e.Port)) || e.Path != "/metrics") {
					t.Errorf("PodMonitor %s: no such endpoint", m.Name)
				}
			}
		}
		for _, s := range c.scaled {
			d := c.deployments[0]
			if s.Spec.ScaleTargetRef.Name != d.Name || s.Spec.ScaleTargetRef.Kind != "Deployment" || d.Spec.Replicas != nil {
				t.Errorf("ScaledObject %s: its target is no Deployment without replicas of its own", s.Name)
			}
			if *s.Spec.MinReplicaCount < 2 {
				t.Errorf("ScaledObject %s: fewer than two", s.Name)
			}
			for _, trigger := range s.Spec.Triggers {
				if trigger.Type != "prometheus" || !strings.Contains(trigger.Metadata["query"], "stepworker_queue_latency_seconds{") || trigger.MetricType != "Value" {
					t.Errorf("ScaledObject %s: it scales on something else than queue latency", s.Name)
				}
			}
		}
	})
}

func TestKubernetes_networkPolicies(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		restricted := map[string]bool{}
		for _, n := range c.policies {
			who := "NetworkPolicy " + n.Name
			p := c.selected(t, who, &n.Spec.PodSelector)
			if p == nil {
				continue
			}
			for _, kind := range n.Spec.PolicyTypes {
				restricted[p.name+" "+string(kind)] = true
			}
			for _, in := range n.Spec.Ingress {
				for _, port := range in.Ports {
					if !p.has(*port.Port) {
						t.Errorf("%s: %s has no port %s", who, p.name, port.Port)
					}
				}
				for _, from := range in.From {
					if from.NamespaceSelector == nil {
						c.selected(t, who+" from", from.PodSelector)
					}
				}
			}
			for _, out := range n.Spec.Egress {
				for _, to := range out.To {
					switch {
					case to.IPBlock != nil:
					case to.NamespaceSelector != nil:
						// Of others; a label of ours among them would match nothing.
						known := []string{"map[k8s-app:kube-dns]", "map[app.kubernetes.io/name:opentelemetry-collector]"}
						if peer := fmt.Sprint(to.PodSelector.MatchLabels); !slices.Contains(known, peer) {
							t.Errorf("%s: to %s, want one of %v", who, peer, known)
						}
					default:
						peer := c.selected(t, who+" to", to.PodSelector)
						for _, port := range out.Ports {
							if peer != nil && !peer.has(*port.Port) {
								t.Errorf("%s: %s has no port %s", who, peer.name, port.Port)
							}
						}
					}
				}
			}
		}
		for _, p := range c.pods() {
			if !restricted[p.name+" Ingress"] || !restricted[p.name+" Egress"] {
				t.Errorf("%s: who may reach it, and whom it may, is not said", p.name)
			}
		}
	})
}

// The rules for the Prometheus operator are those of deploy/prometheus, all of them.
func TestKubernetes_rules(t *testing.T) {
	raw, err := exec.Command("sh", manifests+"components/prometheus/rules.sh").Output()
	if err != nil {
		t.Fatal(err)
	}
	got := &monitoring.PrometheusRule{}
	if err := yaml.UnmarshalStrict(raw, got); err != nil {
		t.Fatal(err)
	}
	var want monitoring.PrometheusRuleSpec
	read(t, "deploy/prometheus/stepworker.rules.yml", &want)
	if len(want.Groups) == 0 || !reflect.DeepEqual(got.Spec, want) {
		t.Errorf("they differ:\n%+v\n%+v", got.Spec, want)
	}
}

// Traces go where the network policy lets them.
func TestKubernetes_traces(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		for _, e := range c.deployments[0].Spec.Template.Spec.Containers[0].Env {
			if e.Name != "OTEL_EXPORTER_OTLP_ENDPOINT" {
				continue
			}
			endpoint, err := url.Parse(e.Value)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(c.policies, func(n *networking.NetworkPolicy) bool {
				return slices.ContainsFunc(n.Spec.Egress, func(out networking.NetworkPolicyEgressRule) bool {
					in := out.To[0].NamespaceSelector
					return in != nil && strings.Contains(endpoint.Hostname(), "."+in.MatchLabels["kubernetes.io/metadata.name"]+".") && out.Ports[0].Port.String() == endpoint.Port()
				})
			}) {
				t.Errorf("no network policy lets traces to %s", e.Value)
			}
		}
	})
}

// What the pod security standard "restricted" asks for, and what a drain needs.
func TestKubernetes_pods(t *testing.T) {
	each(t, func(t *testing.T, c *cluster) {
		for _, p := range c.pods() {
			s := p.Spec.SecurityContext
			if s == nil || s.RunAsNonRoot == nil || !*s.RunAsNonRoot || s.SeccompProfile == nil || s.SeccompProfile.Type != core.SeccompProfileTypeRuntimeDefault {
				t.Errorf("%s: its pods are not restricted", p.name)
			}
			if p.Spec.AutomountServiceAccountToken == nil || *p.Spec.AutomountServiceAccountToken || p.Spec.EnableServiceLinks == nil || *p.Spec.EnableServiceLinks {
				t.Errorf("%s: a token, or variables of services, that nobody needs", p.name)
			}
			for _, k := range p.Spec.Containers {
				x := k.SecurityContext
				if x == nil || x.AllowPrivilegeEscalation == nil || *x.AllowPrivilegeEscalation || x.ReadOnlyRootFilesystem == nil || !*x.ReadOnlyRootFilesystem ||
					x.Capabilities == nil || !slices.Equal(x.Capabilities.Drop, []core.Capability{"ALL"}) {
					t.Errorf("%s: container %s is not restricted", p.name, k.Name)
				}
				if k.Resources.Limits.Memory().IsZero() || k.Resources.Requests.Cpu().IsZero() || k.ReadinessProbe == nil || k.LivenessProbe == nil {
					t.Errorf("%s: container %s has no resources or no probes", p.name, k.Name)
				}
				for _, m := range k.VolumeMounts {
					if !slices.ContainsFunc(p.Spec.Volumes, func(v core.Volume) bool { return v.Name == m.Name }) && m.Name != "data" {
						t.Errorf("%s: there is no volume %s", p.name, m.Name)
					}
				}
				for _, probe := range []*core.Probe{k.ReadinessProbe, k.LivenessProbe, k.StartupProbe} {
					if probe != nil && probe.HTTPGet != nil && !(&p).has(probe.HTTPGet.Port) || probe != nil && probe.TCPSocket != nil && !(&p).has(probe.TCPSocket.Port) {
						t.Errorf("%s: a probe of a port that there is not", p.name)
					}
				}
			}
		}
		d := c.deployments[0]
		pods, k := d.Spec.Template.Spec, d.Spec.Template.Spec.Containers[0]
		if !slices.ContainsFunc(c.accounts, func(a *core.ServiceAccount) bool { return a.Name == pods.ServiceAccountName }) {
			t.Errorf("there is no ServiceAccount %s", pods.ServiceAccountName)
		}
		if k.ReadinessProbe.HTTPGet.Path != "/readyz" || k.LivenessProbe.HTTPGet.Path != "/healthz" {
			t.Error("the worker is not asked at /readyz and /healthz")
		}
		env := map[string]string{}
		for _, e := range k.Env {
			env[e.Name] = e.Value
			if e.ValueFrom != nil {
				env[e.Name] = "https://user:password@ops.example/notices"
			}
			if dir := "/run/stepworker/"; strings.HasPrefix(e.Value, dir) && !slices.Contains(secretFiles(pods, "stepworker"), strings.TrimPrefix(e.Value, dir)) {
				t.Errorf("%s: %s is not in its volume", e.Name, e.Value)
			}
		}
		known(t, c.name, env, "worker", k.Args)
		starts(t, c.name, env)
		drains(t, c.name, time.Duration(*pods.TerminationGracePeriodSeconds)*time.Second, env)
		if r := d.Spec.Strategy.RollingUpdate; r == nil || r.MaxUnavailable.IntValue() != 0 || r.MaxSurge.IntValue() == 0 {
			t.Error("an update takes workers away before their successors are ready")
		}
		if len(pods.TopologySpreadConstraints) == 0 {
			t.Error("all workers may be on one node")
		}
		for _, constraint := range pods.TopologySpreadConstraints {
			c.selected(t, "topology spread", constraint.LabelSelector)
		}
	})
}

// secretKeys are the keys of a Secret that pods refer to, and secretFiles the
// files that they become.
func secretKeys(p core.PodSpec, name string) (keys []string) {
	for _, k := range p.Containers {
		for _, e := range k.Env {
			if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil && e.ValueFrom.SecretKeyRef.Name == name {
				keys = append(keys, e.ValueFrom.SecretKeyRef.Key)
			}
		}
	}
	for _, item := range secretItems(p, name) {
		keys = append(keys, item.Key)
	}
	return keys
}

func secretFiles(p core.PodSpec, name string) (files []string) {
	for _, item := range secretItems(p, name) {
		files = append(files, item.Path)
	}
	return files
}

func secretItems(p core.PodSpec, name string) (items []core.KeyToPath) {
	for _, v := range p.Volumes {
		if v.Secret != nil && v.Secret.SecretName == name {
			items = append(items, v.Secret.Items...)
		}
		if v.Projected != nil {
			for _, s := range v.Projected.Sources {
				if s.Secret != nil && s.Secret.Name == name {
					items = append(items, s.Secret.Items...)
				}
			}
		}
	}
	return items
}

// Secrets and ConfigMaps that pods refer to are there: the Secret as secret.sh
// makes it, or as docs/operations.md lists its keys.
func TestKubernetes_references(t *testing.T) {
	docs, err := os.ReadFile(root + "/docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	each(t, func(t *testing.T, c *cluster) {
		for _, p := range c.pods() {
			keys := secretKeys(p.Spec, "stepworker")
			if len(keys) == 0 {
				t.Errorf("%s has no secrets", p.name)
			}
			for _, key := range keys {
				if _, made := secret(t).StringData[key]; c.name == "overlays/sample-redis" && !made {
					t.Errorf("%s: secret.sh makes no %s", p.name, key)
				}
				if c.name != "overlays/sample-redis" && !strings.Contains(string(docs), "`"+key+"`") {
					t.Errorf("%s: docs/operations.md does not tell of the Secret's key %s", p.name, key)
				}
			}
			for _, v := range p.Spec.Volumes {
				if v.ConfigMap != nil && !slices.ContainsFunc(c.configMaps, func(m *core.ConfigMap) bool { return m.Name == v.ConfigMap.Name }) {
					t.Errorf("%s: there is no ConfigMap %s", p.name, v.ConfigMap.Name)
				}
			}
		}
		for _, m := range c.configMaps {
			if m.Namespace != "stepworker" {
				t.Errorf("ConfigMap %s is in namespace %q", m.Name, m.Namespace)
			}
		}
	})
}

// secret is what secret.sh prints.
func secret(t *testing.T) *core.Secret {
	t.Helper()
	raw, err := exec.Command("sh", manifests+"overlays/sample-redis/secret.sh").Output()
	if err != nil {
		t.Fatal(err)
	}
	s := &core.Secret{}
	if err := yaml.UnmarshalStrict(raw, s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestKubernetes_sampleSecret(t *testing.T) {
	one, other := secret(t), secret(t)
	for key, value := range one.StringData {
		if value == other.StringData[key] || len(value) < 20 {
			t.Errorf("%s is the same each time, or short", key)
		}
	}
	password, ok := strings.CutPrefix(one.StringData["redis.conf"], "requirepass ")
	if !ok || one.StringData["redis-url"] != "redis://:"+password+"@stepworker-redis:6379/0" {
		t.Error("workers and Redis have two passwords")
	}
	keys := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(keys, []byte(one.StringData["keys"]), 0o600); err != nil {
		t.Fatal(err)
	}
	// A key that is none would be told beside the Redis that is not there.
	cmd := exec.Command(filepath.Join(programs, "worker"), "key", "rotate", "--keys-file", keys, "--redis", "redis://127.0.0.1:1/0")
	if out, _ := cmd.CombinedOutput(); !strings.HasPrefix(string(out), "redis at 127.0.0.1:1 does not answer") {
		t.Errorf("its key: %s", out)
	}
}

// The connectors of overlays are read as workers read them.
func TestKubernetes_connectors(t *testing.T) {
	if out, err := exec.Command(filepath.Join(programs, "worker"), "check", manifests+"overlays/production/connectors").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
