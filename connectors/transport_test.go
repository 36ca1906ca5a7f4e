package connectors_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/credentials"
)

func TestNetworkPolicy(t *testing.T) {
	cases := map[string]struct {
		url     string
		private bool
		allow   []string
		refused bool
	}{
		"loopback":                  {"http://127.0.0.1:1/", false, nil, true},
		"loopback, other":           {"http://127.9.9.9:1/", false, nil, true},
		"loopback by name":          {"http://localhost:1/", false, nil, true},
		"loopback, v6":              {"http://[::1]:1/", false, nil, true},
		"loopback, mapped":          {"http://[::ffff:127.0.0.1]:1/", false, nil, true},
		"unspecified":               {"http://0.0.0.0:1/", false, nil, true},
		"unspecified, v6":           {"http://[::]:1/", true, nil, true},
		"private":                   {"http://10.1.2.3:1/", false, nil, true},
		"private, mapped":           {"http://[::ffff:192.168.1.1]:1/", false, nil, true},
		"unique local":              {"http://[fd00::1]:1/", false, nil, true},
		"carrier-grade":             {"http://100.64.0.1:1/", false, nil, true},
		"nat64 of loopback":         {"http://[64:ff9b::7f00:1]:1/", false, nil, true},
		"6to4":                      {"http://[2002:7f00:1::1]:1/", false, nil, true},
		"broadcast":                 {"http://255.255.255.255:1/", true, nil, true},
		"multicast":                 {"http://224.0.0.1:1/", true, nil, true},
		"link-local":                {"http://169.254.169.254/", true, nil, true},
		"link-local, mapped":        {"http://[::ffff:169.254.169.254]/", true, nil, true},
		"link-local, v6":            {"http://[fe80::1]:1/", true, nil, true},
		"loopback, private on":      {"http://127.0.0.1:1/", true, nil, false},
		"loopback, network named":   {"http://127.0.0.1:1/", false, []string{"127.0.0.1/32"}, false},
		"loopback, other network":   {"http://127.0.0.2:1/", false, []string{"127.0.0.1/32"}, true},
		"link-local, network named": {"http://169.254.77.77:1/", false, []string{"169.254.77.0/24"}, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, "connector: acme\nbase_url: '"+c.url+"'\nmethods: [{method: m, endpoint: /a, timeout: 2s, script: \"function after_error() { method_error.isSuccess = true }\"}]\n", nil, func(cfg *connectors.CallerConfig) {
				cfg.AllowPrivate, cfg.AllowNetworks = c.private, c.allow
			})
			_, err := a.call("m")
			if !c.refused {
				if err != nil && strings.Contains(err.Error(), "policy") {
					t.Errorf("refused: %s", describe(err))
				}
				return
			}
			if err == nil {
				t.Fatal("the address was not refused")
			}
			ce, ok := err.(*connectors.CallError)
			if !ok || ce.Kind != "input" || ce.Repeat {
				t.Errorf("got %s", describe(err))
			}
		})
	}
}

func TestNetworkPolicy_forbiddenWhateverIsAllowed(t *testing.T) {
	var host string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, 200, `{}`) }))
	defer srv.Close()
	host = strings.TrimPrefix(srv.URL, "http://")
	a := newAPI(t, "connector: acme\nbase_url: "+srv.URL+"\nmethods: [{method: m, endpoint: /a}]\n", nil, func(cfg *connectors.CallerConfig) {
		cfg.AllowNetworks, cfg.Forbidden = []string{"0.0.0.0/0", "::/0"}, []string{host}
	})
	e := a.fails("m")
	if e.Kind != "input" {
		t.Errorf("got %+v", e)
	}
	contains(t, "message", e.Message, "127.0.0.1")
}

func TestNetworkPolicy_badNetworkIsAnError(t *testing.T) {
	if _, err := connectors.NewCaller(connectors.CallerConfig{AllowNetworks: []string{"10.0.0.0/33"}}); err == nil {
		t.Error("10.0.0.0/33 was taken")
	}
}

func TestRedirects(t *testing.T) {
	stolen := make(chan http.Header, 10)
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		stolen <- r.Header
		writeJSON(w, 200, `{}`)
	}))
	defer other.Close()
	a := newAPI(t, `
connector: acme
base_url: BASE
auth: {type: basic}
methods:
  - {method: short, endpoint: /3}
  - {method: five, endpoint: /5}
  - {method: long, endpoint: /6}
  - {method: post, verb: POST, endpoint: /1}
  - {method: away, endpoint: /away}
  - {method: seen, endpoint: /away, script: "function after_error() { method_error.isSuccess = true; method_error.content = JSON.stringify([method_error.statusCode, method_error.headers.location]) }"}
`, func(w http.ResponseWriter, r *http.Request) {
		var n int
		if r.URL.Path == "/away" {
			w.Header().Set("Location", other.URL)
			w.WriteHeader(302)
		} else if _, err := fmt.Sscanf(r.URL.Path, "/%d", &n); err == nil && n > 0 {
			w.Header().Set("Location", fmt.Sprintf("/%d", n-1))
			w.WriteHeader(307)
		} else {
			writeJSON(w, 200, `{"done":true}`)
		}
	})
	a.Cred.Secrets.HasBasic, a.Cred.Secrets.Username, a.Cred.Secrets.Password = true, "u", credentials.NewSecret("p")
	for _, m := range []string{"short", "five"} {
		sameJSON(t, m, a.must(m).Content, `{"done":true}`)
	}
	for _, r := range a.requests() {
		if r.Header.Get("Authorization") == "" || r.Header.Get("Referer") != "" {
			t.Errorf("a redirect on the same host was followed with %v", r.Header)
		}
	}
	for m, want := range map[string]int{"long": 6, "post": 1, "away": 1} {
		if e := a.fails(m); e.Kind != "http" || e.StatusCode < 300 || e.StatusCode > 399 {
			t.Errorf("%s: got %+v", m, e)
		}
		if n := len(a.requests()); n != want {
			t.Errorf("%s: %d requests, want %d", m, n, want)
		}
	}
	sameJSON(t, "after_error", a.must("seen").Content, `[302,"`+other.URL+`"]`)
	if len(stolen) != 0 {
		t.Errorf("the other host was asked, with %v", <-stolen)
	}
}
