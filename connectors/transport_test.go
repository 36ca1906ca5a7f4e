package connectors_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

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
		"loopback":                          {"http://127.0.0.1:1/", false, nil, true},
		"loopback, other":                   {"http://127.9.9.9:1/", false, nil, true},
		"loopback by name":                  {"http://localhost:1/", false, nil, true},
		"loopback, v6":                      {"http://[::1]:1/", false, nil, true},
		"loopback, mapped":                  {"http://[::ffff:127.0.0.1]:1/", false, nil, true},
		"unspecified":                       {"http://0.0.0.0:1/", false, nil, true},
		"unspecified, v6":                   {"http://[::]:1/", true, nil, true},
		"private":                           {"http://10.1.2.3:1/", false, nil, true},
		"private, mapped":                   {"http://[::ffff:192.168.1.1]:1/", false, nil, true},
		"unique local":                      {"http://[fd00::1]:1/", false, nil, true},
		"carrier-grade":                     {"http://100.64.0.1:1/", false, nil, true},
		"nat64 of loopback":                 {"http://[64:ff9b::7f00:1]:1/", false, nil, true},
		"6to4":                              {"http://[2002:7f00:1::1]:1/", false, nil, true},
		"broadcast":                         {"http://255.255.255.255:1/", true, nil, true},
		"multicast":                         {"http://224.0.0.1:1/", true, nil, true},
		"link-local":                        {"http://169.254.169.254/", true, nil, true},
		"link-local, mapped":                {"http://[::ffff:169.254.169.254]/", true, nil, true},
		"link-local, v6":                    {"http://[fe80::1]:1/", true, nil, true},
		"loopback, private on":              {"http://127.0.0.1:1/", true, nil, false},
		"loopback, network named":           {"http://127.0.0.1:1/", false, []string{"127.0.0.1/32"}, false},
		"loopback, other network":           {"http://127.0.0.2:1/", false, []string{"127.0.0.1/32"}, true},
		"unspecified, network named":        {"http://0.0.0.0:1/", true, []string{"0.0.0.0/0"}, true},
		"unspecified, v6, network named":    {"http://[::]:1/", true, []string{"::/0"}, true},
		"link-local in a wide network":      {"http://169.254.77.77:1/", true, []string{"0.0.0.0/0", "169.0.0.0/8", "169.254.0.0/15"}, true},
		"link-local, v6, in a wide network": {"http://[fe80::1]:1/", true, []string{"::/0", "fe80::/9"}, true},
		"link-local, network named":         {"http://169.254.77.77:1/", false, []string{"169.254.77.0/24"}, false},
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

func TestNetworkPolicy_forbiddenByWhateverAddressOfThisMachine(t *testing.T) {
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, 200, `{}`) }))
	}()
	port := l.Addr().(*net.TCPAddr).Port
	hosts := []string{"127.0.0.1", "127.8.9.10", "0.0.0.0", "localhost"}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	own := "127.0.0.1" // an address that others may know this machine by
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLoopback() && n.IP.To4() != nil {
			own = n.IP.String()
			hosts = append(hosts, own)
		}
	}
	for _, forbidden := range []string{"127.0.0.1", "127.0.0.2", "0.0.0.0", "", own} {
		for _, host := range hosts {
			t.Run(forbidden+" by "+host, func(t *testing.T) {
				a := newAPI(t, fmt.Sprintf("connector: acme\nbase_url: http://%s:%d\nmethods: [{method: m, endpoint: /a}]\n", host, port), nil, func(cfg *connectors.CallerConfig) {
					cfg.AllowNetworks, cfg.Forbidden = []string{"0.0.0.0/0", "::/0"}, []string{fmt.Sprintf("%s:%d", forbidden, port)}
				})
				if e := a.fails("m"); e.Kind != "input" {
					t.Errorf("got %+v", e)
				}
			})
		}
	}
	t.Run("other ports stay open", func(t *testing.T) {
		a := newAPI(t, fmt.Sprintf("connector: acme\nbase_url: http://127.0.0.1:%d\nmethods: [{method: m, endpoint: /a}]\n", port), nil, func(cfg *connectors.CallerConfig) {
			cfg.Forbidden = []string{"127.0.0.1:1"}
		})
		a.must("m")
	})
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
  - {method: aside, verb: POST, endpoint: /aside}
  - {method: secure, endpoint: /secure}
  - {method: unchanged, endpoint: /unchanged}
  - {method: shout, endpoint: /shout}
  - {method: seen, endpoint: /away, script: "function after_error() { method_error.isSuccess = true; method_error.content = JSON.stringify([method_error.statusCode, method_error.headers.location]) }"}
`, func(w http.ResponseWriter, r *http.Request) {
		var n int
		if r.URL.Path == "/away" {
			w.Header().Set("Location", other.URL)
			w.WriteHeader(302)
		} else if r.URL.Path == "/aside" {
			w.Header().Set("Location", "//elsewhere.example/x")
			w.WriteHeader(303)
		} else if r.URL.Path == "/unchanged" {
			w.Header().Set("Location", other.URL)
			w.WriteHeader(304)
		} else if r.URL.Path == "/secure" {
			w.Header().Set("Location", "https://"+r.Host+"/0")
			w.WriteHeader(301)
		} else if r.URL.Path == "/shout" {
			w.Header().Set("Location", "HTTP://LOCALHOST:"+strings.TrimPrefix(r.Host, "localhost:")+"/0")
			w.WriteHeader(302)
		} else if _, err := fmt.Sscanf(r.URL.Path, "/%d", &n); err == nil && n > 0 {
			w.Header().Set("Location", fmt.Sprintf("/%d", n-1))
			w.WriteHeader(307)
		} else {
			writeJSON(w, 200, `{"done":true}`)
		}
	})
	a.Cred.Secrets.HasBasic, a.Cred.Secrets.Username, a.Cred.Secrets.Password = true, "u", credentials.NewSecret("p")
	a.Def.BaseURL = strings.Replace(a.URL, "127.0.0.1", "localhost", 1)
	for _, m := range []string{"short", "five", "shout"} {
		sameJSON(t, m, a.must(m).Content, `{"done":true}`)
	}
	for _, r := range a.requests() {
		if r.Header.Get("Authorization") == "" || r.Header.Get("Referer") != "" {
			t.Errorf("a redirect on the same host was followed with %v", r.Header)
		}
	}
	for m, want := range map[string]struct {
		kind     string
		requests int
	}{"long": {"http", 6}, "post": {"http", 1}, "away": {"input", 1}, "aside": {"input", 1}, "secure": {"http", 1}, "unchanged": {"http", 1}} {
		e := a.fails(m)
		if e.Kind != want.kind || e.StatusCode < 300 || e.StatusCode > 399 {
			t.Errorf("%s: got %+v", m, e)
		}
		if m == "secure" && !strings.Contains(e.Message, "301 Moved Permanently: it leads to https://localhost:") {
			t.Errorf("%s: %s", m, e.Message)
		}
		if away := want.kind == "input"; away != strings.Contains(e.Message, "neither the connector's nor in auth.hosts") {
			t.Errorf("%s: %s", m, e.Message)
		}
		if n := len(a.requests()); n != want.requests {
			t.Errorf("%s: %d requests, want %d", m, n, want.requests)
		}
	}
	a.Def.Auth.Hosts = []string{strings.TrimPrefix(other.URL, "http://")}
	if e := a.fails("away"); e.Kind != "http" { // allowed, but no redirect is followed there
		t.Errorf("a host of auth.hosts: %+v", e)
	}
	a.Def.Auth.Hosts = nil
	sameJSON(t, "after_error", a.must("seen").Content, `[302,"`+other.URL+`"]`)
	if len(stolen) != 0 {
		t.Errorf("the other host was asked, with %v", <-stolen)
	}
}

// A session of several cookies goes to its own host and to no other: not after
// a redirect, whoever asks, nor does Authorization.
func TestCookies_goToTheirOwnHostOnly(t *testing.T) {
	stolen := make(chan string, 100)
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		stolen <- fmt.Sprint(r.URL.Path, " ", r.Header.Get("Cookie"), " ", r.Header.Get("Authorization"))
		writeJSON(w, 200, `{"access_token":"stolen"}`)
	}))
	defer other.Close()
	elsewhere := strings.Replace(other.URL, "127.0.0.1", "localhost", 1)
	var away atomic.Pointer[string] // path that leads to the other host
	a := newAPI(t, strings.ReplaceAll(`
connector: acme
base_url: BASE
auth: {type: oauth2, token_url: BASE/token}
post_install: {property_lookup_method: login}
parameters:
  - {name: sid, target: merge_field, property: session, sensitive: true}
  - {name: csrf, target: merge_field, property: session, sensitive: true}
  - {name: cookie, target: http_header, as: Cookie, value: "SID={{sid}}; XSRF={{csrf}}"}
methods:
  - {method: login, endpoint: /login, response: {fields: [{cookie: SID, system: sid}, {cookie: XSRF, system: csrf}]}}
  - {method: get, endpoint: /hop}
  - {method: post, verb: POST, endpoint: /things}
  - {method: asks, endpoint: /things, script: "function after_action() { method_response.it = http_request({url: 'OTHER/asked'}).statusCode }"}
`, "OTHER", elsewhere), func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("Set-Cookie", "SID=s%2F1; Path=/; HttpOnly")
		w.Header().Add("Set-Cookie", "OTHER=x; Path=/")
		w.Header().Add("Set-Cookie", "XSRF=c==; Path=/")
		switch to := away.Load(); {
		case to != nil && *to == r.URL.Path:
			w.Header().Set("Location", elsewhere+r.URL.Path)
			w.WriteHeader(http.StatusTemporaryRedirect)
		case r.URL.Path == "/hop":
			http.Redirect(w, r, "/things", http.StatusFound)
		default:
			writeJSON(w, 200, `{"access_token":"new-access-token"}`)
		}
	})
	a.Cred.Secrets.ClientID, a.Cred.Secrets.ClientSecret = "the-client", credentials.NewSecret("the-secret")
	withToken(a.Cred, "the-access-token", "the-refresh-token")
	got, re := refresh(t, a, credentials.Session)
	if re != nil {
		t.Fatal(re)
	}
	if d := cmp.Diff(map[string]string{"sid": "s%2F1", "csrf": "c=="}, got.Session); d != "" {
		t.Fatal(d)
	}
	a.only() // without a cookie jar the login's own are not sent
	a.Cred.Secrets.Session = got.Session
	for _, m := range []string{"get", "post", "asks"} {
		a.must(m)
		for _, r := range a.requests() {
			if c := r.Header["Cookie"]; len(c) != 1 || c[0] != "SID=s%2F1; XSRF=c==" || r.Header.Get("Authorization") != "Bearer the-access-token" {
				t.Errorf("%s: %s was sent %q, %q", m, r.URI, c, r.Header.Get("Authorization"))
			}
		}
	}
	if got := <-stolen; got != "/asked  " {
		t.Errorf("http_request to another host was sent with %q", got)
	}
	for path, m := range map[string]string{"/hop": "get", "/things": "post"} {
		away.Store(&path)
		if e := a.fails(m); e.Kind != "input" {
			t.Errorf("%s: got %+v", m, e)
		}
	}
	things := "/things"
	away.Store(&things)
	if e := a.fails("get"); e.Kind != "input" { // the second hop leads away
		t.Errorf("got %+v", e)
	}
	login, token := "/login", "/token"
	away.Store(&login)
	if _, re := refresh(t, a, credentials.Session); re == nil || re.Verdict != credentials.Transient {
		t.Errorf("a login that leads away: got %+v", re)
	}
	away.Store(&token)
	if _, re := refresh(t, a, credentials.OAuth2); re == nil || re.Verdict != credentials.Transient {
		t.Errorf("a token endpoint that leads away: got %+v", re)
	}
	if len(stolen) != 0 {
		t.Errorf("the other host was asked: %q", <-stolen)
	}
}

// fickle is a server on one kept connection after another: it answers the
// first request of each, and closes it when it has read the second.
type fickle struct {
	net.Listener
	seen chan string // whole requests, as they came
}

func newFickle(t *testing.T) *fickle {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	f := &fickle{l, make(chan string, 100)}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go f.serve(conn)
		}
	}()
	return f
}

func (f *fickle) serve(conn net.Conn) {
	defer conn.Close()
	var raw bytes.Buffer
	in := bufio.NewReader(io.TeeReader(conn, &raw))
	for n := range 2 {
		raw.Reset()
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		f.seen <- raw.String()
		if n == 0 {
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	}
}

func TestTransport_repeatsOnlyWhatMayBeRepeated(t *testing.T) {
	cases := map[string]struct {
		verb, more string
		sent       int // of the second call
		length     string
	}{
		"GET":                                    {"GET", "", 2, ""},
		"GET, never":                             {"GET", ", retry: never", 1, ""},
		"HEAD, never":                            {"HEAD", ", retry: never", 1, ""},
		"OPTIONS, never":                         {"OPTIONS", ", retry: never", 1, ""},
		"GET with a body, never":                 {"GET", ", retry: never, body: {a: 1}", 1, "7"},
		"POST":                                   {"POST", ", body: {a: 1}", 1, "7"},
		"POST with an idempotency key":           {"POST", ", body: {a: 1}, idempotency_header: Idempotency-Key", 1, "7"},
		"POST with an idempotency key, no body":  {"POST", ", idempotency_header: idempotency-key", 1, "0"},
		"PATCH with another idempotency key":     {"PATCH", ", body: {a: 1}, idempotency_header: X-Idempotency-Key", 1, "7"},
		"PUT with an idempotency key, never":     {"PUT", ", body: {a: 1}, idempotency_header: Idempotency-Key, retry: never", 1, "7"},
		"DELETE with an idempotency key, never":  {"DELETE", ", idempotency_header: Idempotency-Key, retry: never", 1, ""},
		"POST with an idempotency key, always":   {"POST", ", body: {a: 1}, idempotency_header: Idempotency-Key, retry: always", 2, "7"},
		"DELETE with an idempotency key, always": {"DELETE", ", idempotency_header: Idempotency-Key, retry: always", 2, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			f := newFickle(t)
			a := newAPI(t, fmt.Sprintf("connector: acme\nbase_url: http://%s\nmethods: [{method: m, verb: %s, endpoint: /a%s}]\n", f.Addr(), c.verb, c.more), nil)
			a.must("m")
			<-f.seen
			if _, err := a.call("m"); (err != nil) != (c.sent == 1) {
				t.Errorf("the second call ended with %s", describe(err))
			}
			if n := len(f.seen); n != c.sent {
				t.Errorf("the server saw the second call %d times, want %d", n, c.sent)
			}
			raw := <-f.seen
			r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw)))
			if err != nil {
				t.Fatal(err)
			}
			head, body, _ := strings.Cut(raw, "\r\n\r\n")
			if strings.Contains(head, "Transfer-Encoding") || r.Header.Get("Content-Length") != c.length || (body != "") != (c.length != "" && c.length != "0") {
				t.Errorf("sent %q", raw)
			}
			if strings.Contains(strings.ToLower(c.more), "idempotency-key") && r.Header.Get("Idempotency-Key")+r.Header.Get("X-Idempotency-Key") != "e1" {
				t.Errorf("sent %q", raw)
			}
		})
	}
}

func TestTransport_aRedirectIsFollowedThoughNothingIsRepeated(t *testing.T) {
	a := newAPI(t, "connector: acme\nbase_url: BASE\nmethods: [{method: m, endpoint: /a, retry: never}]\n", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/a" {
			http.Redirect(w, r, "/b", http.StatusTemporaryRedirect)
			return
		}
		writeJSON(w, 200, `{"done":true}`)
	})
	sameJSON(t, "content", a.must("m").Content, `{"done":true}`)
}
