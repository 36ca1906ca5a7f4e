package otlp

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestFromEnvironment(t *testing.T) {
	const secret = "hunter22"
	on := map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
	for name, c := range map[string]struct {
		set     map[string]string
		enabled bool
		grpc    bool
		wrong   []string // variables
	}{
		"nothing":                  {nil, false, false, nil},
		"an endpoint":              {on, true, false, nil},
		"one of traces":            {map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://collector/v1/traces"}, true, false, nil},
		"an empty endpoint":        {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, false, false, nil},
		"the default endpoint":     {map[string]string{"OTEL_TRACES_EXPORTER": "otlp"}, true, false, nil},
		"none":                     {map[string]string{"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_PROTOCOL": "smoke"}, false, false, nil},
		"disabled":                 {map[string]string{"OTEL_SDK_DISABLED": "TRUE", "OTEL_TRACES_SAMPLER": "smoke"}, false, false, nil},
		"not disabled":             {map[string]string{"OTEL_SDK_DISABLED": "false"}, true, false, nil},
		"perhaps disabled":         {map[string]string{"OTEL_SDK_DISABLED": "perhaps"}, true, false, []string{"OTEL_SDK_DISABLED"}},
		"another exporter":         {map[string]string{"OTEL_TRACES_EXPORTER": "zipkin"}, true, false, []string{"OTEL_TRACES_EXPORTER"}},
		"another one, no endpoint": {map[string]string{"OTEL_TRACES_EXPORTER": "zipkin", "OTEL_EXPORTER_OTLP_ENDPOINT": ""}, true, false, []string{"OTEL_TRACES_EXPORTER"}},
		"grpc":                     {map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, true, true, nil},
		"the traces' own protocol": {map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}, true, false, nil},
		"another protocol":         {map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, true, false, []string{"OTEL_EXPORTER_OTLP_PROTOCOL"}},
		"no URL":                   {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, true, false, []string{"OTEL_EXPORTER_OTLP_ENDPOINT"}},
		"a password in it":         {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://me:" + secret + "@collector"}, true, false, []string{"OTEL_EXPORTER_OTLP_ENDPOINT"}},
		"a query in it":            {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector?key=" + secret}, true, false, []string{"OTEL_EXPORTER_OTLP_ENDPOINT"}},
		"headers":                  {map[string]string{"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20" + secret + ", x-scope=1"}, true, false, nil},
		"no headers":               {map[string]string{"OTEL_EXPORTER_OTLP_HEADERS": "authorization: " + secret}, true, false, []string{"OTEL_EXPORTER_OTLP_HEADERS"}},
		"an odd header":            {map[string]string{"OTEL_EXPORTER_OTLP_TRACES_HEADERS": "a=b,x=%" + secret}, true, false, []string{"OTEL_EXPORTER_OTLP_TRACES_HEADERS"}},
		"a sampler":                {map[string]string{"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}, true, false, nil},
		"a sampler from afar":      {map[string]string{"OTEL_TRACES_SAMPLER": "jaeger_remote"}, true, false, []string{"OTEL_TRACES_SAMPLER"}},
		"too large a ratio":        {map[string]string{"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "25"}, true, false, []string{"OTEL_TRACES_SAMPLER_ARG"}},
		"no ratio":                 {map[string]string{"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "NaN"}, true, false, []string{"OTEL_TRACES_SAMPLER_ARG"}},
		"other propagators":        {map[string]string{"OTEL_PROPAGATORS": "b3,tracecontext"}, true, false, []string{"OTEL_PROPAGATORS"}},
		"the usual propagators":    {map[string]string{"OTEL_PROPAGATORS": "tracecontext,baggage"}, true, false, nil},
		"numbers": {map[string]string{"OTEL_BSP_MAX_QUEUE_SIZE": "0", "OTEL_BSP_SCHEDULE_DELAY": "5s", "OTEL_EXPORTER_OTLP_TIMEOUT": "-1", "OTEL_SPAN_LINK_COUNT_LIMIT": "many"}, true, false,
			[]string{"OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_SCHEDULE_DELAY", "OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_SPAN_LINK_COUNT_LIMIT"}},
		"compression":         {map[string]string{"OTEL_EXPORTER_OTLP_COMPRESSION": "zip"}, true, false, []string{"OTEL_EXPORTER_OTLP_COMPRESSION"}},
		"resource attributes": {map[string]string{"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=prod,team"}, true, false, []string{"OTEL_RESOURCE_ATTRIBUTES"}},
		"certificates":        {map[string]string{"OTEL_EXPORTER_OTLP_CERTIFICATE": "/nowhere.pem", "OTEL_EXPORTER_OTLP_CLIENT_KEY": "/nowhere.key"}, true, false, []string{"OTEL_EXPORTER_OTLP_CERTIFICATE", "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"}},
	} {
		t.Run(name, func(t *testing.T) {
			all := map[string]string{}
			if c.set != nil && c.set["OTEL_TRACES_EXPORTER"] != "otlp" {
				maps.Copy(all, on)
			}
			maps.Copy(all, c.set)
			for k, v := range all {
				t.Setenv(k, v)
			}
			config, mistakes := FromEnvironment()
			var wrong []string
			for _, m := range mistakes {
				name, _, _ := strings.Cut(m, ":")
				wrong = append(wrong, name)
				if strings.Contains(m, secret) {
					t.Errorf("it shows a secret: %s", m)
				}
			}
			slices.Sort(wrong)
			slices.Sort(c.wrong)
			if !slices.Equal(wrong, c.wrong) {
				t.Errorf("mistakes %q, want of %q", mistakes, c.wrong)
			}
			if len(wrong) == 0 && (config.enabled != c.enabled || config.grpc != c.grpc) {
				t.Errorf("got %+v", config)
			}
		})
	}
}
