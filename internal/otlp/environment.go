package otlp

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// FromEnvironment reads the OTEL_* variables, and returns every mistake in them.
// Traces are exported where an endpoint is named or OTEL_TRACES_EXPORTER is otlp.
// No text holds a value that may be secret.
func FromEnvironment() (*Config, []string) {
	e := &environment{}
	disabled := e.flag("OTEL_SDK_DISABLED")
	exporter := e.oneOf("OTEL_TRACES_EXPORTER", "otlp", "none")
	general, own := e.endpoint("OTEL_EXPORTER_OTLP_ENDPOINT"), e.endpoint("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
	c := &Config{}
	if disabled || exporter == "none" || exporter == "" && !general && !own {
		if e.wrong("OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
			return c, e.mistakes
		}
		return c, nil // the other variables are not ours to judge
	}
	c.enabled = true
	e.propagators()
	for _, which := range []string{"", "TRACES_"} {
		p := "OTEL_EXPORTER_OTLP_" + which
		if protocol := e.oneOf(p+"PROTOCOL", "http/protobuf", "grpc"); protocol != "" {
			c.grpc = protocol == "grpc"
		}
		e.headers(p + "HEADERS")
		e.oneOf(p+"COMPRESSION", "gzip", "none")
		e.number(p+"TIMEOUT", 1)
		e.flag(p + "INSECURE")
		e.certificates(p)
	}
	e.sampler()
	e.pairs("OTEL_RESOURCE_ATTRIBUTES")
	for _, name := range []string{"SCHEDULE_DELAY", "EXPORT_TIMEOUT", "MAX_QUEUE_SIZE", "MAX_EXPORT_BATCH_SIZE"} {
		e.number("OTEL_BSP_"+name, 1)
	}
	for _, name := range []string{"ATTRIBUTE_VALUE_LENGTH", "ATTRIBUTE_COUNT", "SPAN_ATTRIBUTE_VALUE_LENGTH", "SPAN_ATTRIBUTE_COUNT", "SPAN_EVENT_COUNT", "SPAN_LINK_COUNT",
		"EVENT_ATTRIBUTE_COUNT", "LINK_ATTRIBUTE_COUNT"} {
		e.number("OTEL_"+name+"_LIMIT", 0)
	}
	c.secrets = e.secrets
	return c, e.mistakes
}

// environment reads variables; set and empty means not set, as the
// specification has it.
type environment struct {
	mistakes []string
	secrets  []string
}

func get(name string) string { return strings.TrimSpace(os.Getenv(name)) }

func (e *environment) mistake(name, format string, args ...any) {
	e.mistakes = append(e.mistakes, name+": "+fmt.Sprintf(format, args...))
}

// wrong says that there are mistakes in some variables.
func (e *environment) wrong(names ...string) bool {
	return slices.ContainsFunc(e.mistakes, func(m string) bool {
		name, _, _ := strings.Cut(m, ":")
		return slices.Contains(names, name)
	})
}

func (e *environment) flag(name string) bool {
	switch v := get(name); strings.ToLower(v) {
	case "true":
		return true
	case "", "false":
	default:
		e.mistake(name, "true or false is needed, not %q", v)
	}
	return false
}

func (e *environment) oneOf(name string, known ...string) string {
	v := get(name)
	if v != "" && !slices.Contains(known, v) {
		e.mistake(name, "%s is needed, not %q", strings.Join(known, " or "), v)
	}
	return v
}

func (e *environment) number(name string, least int) {
	if v := get(name); v != "" {
		if n, err := strconv.Atoi(v); err != nil || n < least {
			e.mistake(name, "a whole number of at least %d is needed, not %q", least, v)
		}
	}
}

// endpoint says that one is named. A URL may hold a password, so none is shown.
func (e *environment) endpoint(name string) bool {
	v := get(name)
	if v == "" {
		return false
	}
	u, err := url.Parse(v)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		e.mistake(name, "a URL such as http://collector:4318 is needed")
	case u.User != nil:
		e.mistake(name, "a URL with a user name or password is not supported; use OTEL_EXPORTER_OTLP_HEADERS")
	case u.RawQuery != "" || u.Fragment != "":
		e.mistake(name, "a URL without a query or fragment is needed")
	default:
		e.secrets = append(e.secrets, strings.Trim(u.Path, "/")) // it may hold a key
	}
	return true
}

// token is a header's name (RFC 9110 section 5.6.2).
var token = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")

// headers are secret.
func (e *environment) headers(name string) {
	for i, pair := range list(name) {
		key, value, ok := strings.Cut(pair, "=")
		plain, err := url.PathUnescape(strings.TrimSpace(value))
		if key = strings.TrimSpace(key); !ok || !token.MatchString(key) || err != nil {
			e.mistake(name, "name=value,… is needed, values percent-encoded; number %d is not", i+1)
			continue
		}
		e.secrets = append(e.secrets, plain)
		if _, credential, scheme := strings.Cut(plain, " "); scheme { // Authorization: Bearer …
			e.secrets = append(e.secrets, credential)
		}
	}
}

// pairs are shown in traces anyway.
func (e *environment) pairs(name string) {
	for _, pair := range list(name) {
		key, value, ok := strings.Cut(pair, "=")
		if _, err := url.PathUnescape(value); !ok || strings.TrimSpace(key) == "" || err != nil {
			e.mistake(name, "key=value,… is needed, values percent-encoded, not %q", pair)
		}
	}
}

func list(name string) (items []string) {
	for _, item := range strings.Split(get(name), ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}

func (e *environment) propagators() {
	for _, p := range list("OTEL_PROPAGATORS") {
		if p != "tracecontext" && p != "baggage" {
			e.mistake("OTEL_PROPAGATORS", "trace context travels by tracecontext alone; %q is not supported", p)
		}
	}
}

func (e *environment) sampler() {
	const name, arg = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"
	v := e.oneOf(name, "always_on", "always_off", "traceidratio", "parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio")
	given := get(arg)
	if !strings.HasSuffix(v, "traceidratio") || given == "" {
		return
	}
	if ratio, err := strconv.ParseFloat(given, 64); err != nil || !(ratio >= 0 && ratio <= 1) {
		e.mistake(arg, "a number from 0 to 1 is needed, not %q", given)
	}
}

// certificates reads what the exporter will read.
func (e *environment) certificates(p string) {
	if file := get(p + "CERTIFICATE"); file != "" {
		raw, err := os.ReadFile(file)
		if err != nil || !x509.NewCertPool().AppendCertsFromPEM(raw) {
			e.mistake(p+"CERTIFICATE", "%s cannot be read, or holds no certificate", file)
		}
	}
	cert, key := get(p+"CLIENT_CERTIFICATE"), get(p+"CLIENT_KEY")
	switch {
	case cert == "" && key == "":
	case cert == "" || key == "":
		e.mistake(p+"CLIENT_CERTIFICATE", "it and %sCLIENT_KEY need each other", p)
	default:
		if _, err := tls.LoadX509KeyPair(cert, key); err != nil {
			e.mistake(p+"CLIENT_CERTIFICATE", "%s and %s cannot be read, or are no pair", cert, key)
		}
	}
}
