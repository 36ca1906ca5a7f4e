package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/programtest"
	"github.com/stepworker/stepworker/jobs"
)

// canary is a secret that is found again in any encoding: its ends are letters
// and digits that no writer escapes, between them stands what every writer does.
type canary struct {
	name, value string
	needles     []string
}

func newCanary(name, middle string) canary {
	head, tail := rand.Text()[:16], rand.Text()[:16]
	return canary{name, head + middle + tail, needles(head, tail)}
}

// needles are what of texts stands in any text that holds them, plain or in base64.
func needles(cores ...string) (all []string) {
	for _, core := range cores {
		all = append(all, core)
		for _, e := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			for shift := range 3 { // its characters at the ends depend on their neighbours
				whole := e.EncodeToString(append(make([]byte, shift), core...))
				all = append(all, whole[(shift*8+5)/6:(shift+len(core))*8/6])
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// privateKey is a canary that is a key.
func privateKey(t *testing.T) canary {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	var cores []string
	for i, line := range strings.Split(text, "\n") { // the first body line is the same in every key
		if i >= 2 && len(line) == 64 {
			cores = append(cores, line[:20], line[44:])
		}
	}
	return canary{"private key", text, needles(cores...)}
}

// holder is one credential, and how its provider behaves.
type holder struct {
	name     string
	canaries []canary
	token    func(w http.ResponseWriter, echo map[string]any)
	login    func(w http.ResponseWriter, echo map[string]any, a *holder)
}

func (a *holder) secret(name string) string {
	i := slices.IndexFunc(a.canaries, func(c canary) bool { return c.name == name })
	return a.canaries[i].value
}

// echo is everything that the provider of an account knows and has heard, in
// every form.
func (a *holder) echo(r *http.Request) map[string]any {
	body, _ := io.ReadAll(r.Body)
	out := map[string]any{"heard": string(body), "url": r.URL.String(), "headers": r.Header}
	for _, c := range a.canaries {
		v := c.value
		if c.name == "given" && r.Header.Get("X-Given") != v { // by a step: nobody else has heard of it
			continue
		}
		once, _ := json.Marshal(map[string]string{"it": v})
		twice, _ := json.Marshal(string(once))
		out[c.name] = []string{v, "a" + v + "z", url.QueryEscape(v), percent.ReplaceAllStringFunc(url.PathEscape(v), strings.ToLower), string(once), string(twice),
			base64.StdEncoding.EncodeToString([]byte(v)), base64.RawURLEncoding.EncodeToString([]byte("u:" + v + ":x")), base64.StdEncoding.EncodeToString([]byte("xy:" + v))}
	}
	return out
}

var percent = regexp.MustCompile("%[0-9A-F]{2}")

// asText is an echo as a text.
func asText(echo map[string]any) string {
	raw, _ := json.Marshal(echo)
	return string(raw)
}

func reply(w http.ResponseWriter, status int, contentType, body string) {
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

func replyJSON(w http.ResponseWriter, status int, v any) {
	raw, _ := json.Marshal(v)
	reply(w, status, "application/json", string(raw))
}

// tokenAnswers are token endpoints that echo.
var tokenAnswers = map[string]func(w http.ResponseWriter, echo map[string]any){
	"json": func(w http.ResponseWriter, echo map[string]any) {
		replyJSON(w, 400, map[string]any{"error": "invalid_grant", "error_description": asText(echo), "error_uri": "https://x/?" + asText(echo), "echo": echo})
	},
	"nested": func(w http.ResponseWriter, echo map[string]any) {
		replyJSON(w, 400, map[string]any{"error": "invalid_client", "error_description": asText(map[string]any{"inner": asText(echo)})})
	},
	"html": func(w http.ResponseWriter, echo map[string]any) {
		reply(w, 400, "text/html", "<html><title>"+html.EscapeString(asText(echo))+"</title><pre>"+asText(echo)+"</pre></html>")
	},
	"code": func(w http.ResponseWriter, echo map[string]any) {
		replyJSON(w, 400, map[string]any{"error": asText(echo)})
	},
	"form": func(w http.ResponseWriter, echo map[string]any) {
		reply(w, 401, "application/x-www-form-urlencoded", url.Values{"error": {"invalid_scope"}, "error_description": {asText(echo)}}.Encode())
	},
	"plain": func(w http.ResponseWriter, echo map[string]any) { reply(w, 500, "text/plain", asText(echo)) },
	"odd": func(w http.ResponseWriter, echo map[string]any) {
		replyJSON(w, 200, map[string]any{"token": "none", "echo": echo})
	},
	"moved": func(w http.ResponseWriter, echo map[string]any) {
		w.Header().Set("Location", "http://elsewhere.invalid/?"+url.QueryEscape(asText(echo)))
		w.WriteHeader(302)
	},
}

// loginAnswers are logins that echo.
var loginAnswers = map[string]func(w http.ResponseWriter, echo map[string]any, a *holder){
	"well": func(w http.ResponseWriter, echo map[string]any, a *holder) {
		w.Header().Add("Set-Cookie", "SID="+a.secret("cookie")+"; Path=/")
		replyJSON(w, 200, map[string]any{"session": a.secret("session"), "echo": echo})
	},
	"refused": func(w http.ResponseWriter, echo map[string]any, _ *holder) {
		replyJSON(w, 401, map[string]any{"message": asText(echo), "echo": echo})
	},
	"page": func(w http.ResponseWriter, echo map[string]any, _ *holder) {
		reply(w, 503, "text/html", "<p>"+html.EscapeString(asText(echo))+"</p>")
	},
	"empty": func(w http.ResponseWriter, echo map[string]any, _ *holder) {
		replyJSON(w, 200, map[string]any{"echo": echo})
	},
}

// leak is a connector whose scripts log, keep and throw all they can read.
const leak = `
connector: NAME
base_url: "{{base}}"
auth: AUTH
post_install: {property_lookup_method: LOGIN}
headers: {Cookie: "SID={{cookie}}", X-Password: "{{password}}"}
parameters:
  - {name: base, target: merge_field, property: account}
  - {name: username, target: merge_field, property: account}
  - {name: password, target: merge_field, property: account, sensitive: true}
  - {name: session, target: http_header, as: X-Session, property: session, sensitive: true}
  - {name: cookie, target: merge_field, property: session, sensitive: true}
  - {name: mode, target: script, optional: true}
  - {name: answer, target: query_string, optional: true}
  - {name: given, target: http_header, as: X-Given, optional: true, sensitive: true}
script_file: leak.js
methods:
  - {method: login, verb: POST, endpoint: /login, body: {user: "{{username}}", password: "{{password}}"}, response: {fields: [{field: session, system: session}, {cookie: SID, system: cookie}]}}
  - {method: call, verb: POST, endpoint: /call, body: {password: "{{password}}", session: "{{session}}"}}
`

const leakScript = `
function everything() {
  var all = [];
  [function () { return method_auth_value; }, function () { return method_request; }, function () { return method_request_headers; },
   function () { return method_request_parameters; }, function () { return method_request_mergefields; }, function () { return session_properties; },
   function () { return method_response; }, function () { return method_response_headers; }, function () { return method_error; },
   function () { return oauth2_request; }, function () { return action_data; }
  ].forEach(function (f) { try { all.push(f()); } catch (e) { all.push(String(e)); } });
  return JSON.stringify(all);
}
function log() {
  var all = everything();
  JSON.parse(all).forEach(function (part) { console.log(part); });
  console.error(btoa(all));
  console.warn(encodeURIComponent(all));
  console.info(JSON.stringify(JSON.stringify(all)));
}
function mode() { return script_parameters.mode; }
function act() {
  var all = everything();
  switch (mode()) {
  case 'text': throw all;
  case 'error': throw new Error(all);
  case 'object': throw {message: all, code: all, inner: [all]};
  case 'base64': throw new Error(btoa(all));
  case 'url': throw new Error(encodeURIComponent(all));
  case 'quoted': throw new Error(JSON.stringify(JSON.stringify(all)));
  case 'type': null[all];
  case 'late': throw new RetryLaterException(3600, all);
  case 'refresh': throw new AuthRefreshException(all);
  case 'session': throw new AuthSessionException(all);
  case 'fetch': http_request({url: 'http://127.0.0.1:1/?' + encodeURIComponent(all), method: 'GET'}); break;
  case 'scheme': http_request({url: 'nothing://' + all, method: 'GET'}); break;
  case 'key': cyclr_sign(all, all, all); break;
  case 'spin': for (;;) {}
  case 'depth': (function f(x) { f(x); })(all); break;
  case 'memory': for (var big = [all]; ;) { big.push(big.join('x')); }
  }
}
function before_action() {
  log();
  action_data.all = everything();
  if (mode() === 'store') { cyclr_storage_set('k', everything().substring(0, 40000)); cyclr_storage_set(String(method_auth_value).substring(0, 128), 'v'); }
  if (mode() === 'before') { throw everything(); }
  return true;
}
function after_action() {
  log();
  if (mode() === 'content') { method_response = {all: everything(), list: [everything()], base64: btoa(everything()), url: encodeURIComponent(everything())}; }
  act();
  return true;
}
function after_error() {
  log();
  if (mode() === 'warning') { method_error.isWarning = true; method_error.error = everything(); return true; }
  act();
  return true;
}
function before_oauth2_refresh() { log(); return true; }
function after_oauth2_refresh() { log(); return true; }
function before_oauth2_token() { log(); return true; }
function after_oauth2_token() { log(); return true; }
`

// sweep is the world with accounts whose every secret is a canary.
type sweep struct {
	*world
	dir      string
	mu       sync.Mutex // of accounts: the provider looks them up while others are put
	accounts map[string]*holder
	notices  programtest.Log
	sinks    map[string]string // what was looked at, by its name
}

func newSweep(t *testing.T) *sweep {
	s := &sweep{world: newWorld(t), dir: t.TempDir(), accounts: map[string]*holder{}, sinks: map[string]string{}}
	provider := httptest.NewServer(http.HandlerFunc(s.provide))
	t.Cleanup(provider.Close)
	s.url = provider.URL
	notified := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(&s.notices, r.Body) }))
	t.Cleanup(notified.Close)
	s.env = []string{"STEPWORKER_NOTIFY_URL=" + notified.URL, "STEPWORKER_NOTIFY_SECRET=whsec_" + credentials.NewKey()}
	files := map[string]string{"leak.js": leakScript}
	for name, c := range map[string][2]string{
		"leak":     {`{type: oauth2, grant: authorization_code, token_url: "{{base}}/token", refresh_on: [401]}`, "login"},
		"password": {`{type: oauth2, grant: password, token_url: "{{base}}/token", auth_style: params, refresh_on: [401]}`, "login"},
		"signer":   {`{type: oauth2, grant: client_credentials, token_url: "{{base}}/token", auth_style: private_key_jwt}`, "login"},
		"door":     {`{type: none, refresh_on: [401]}`, "login"},
		"basic":    {`{type: basic, refresh_on: [401]}`, "login"},
		"key":      {`{type: api_key, in: query, name: key, refresh_on: [401]}`, "login"},
		"one":      {`{type: oauth1, refresh_on: [401]}`, "login"},
	} {
		files[name+".yaml"] = strings.NewReplacer("NAME", name, "AUTH", c[0], "LOGIN", c[1]).Replace(leak)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// add puts an account of a connector.
func (s *sweep) add(name, connector, token, login string) *holder {
	s.t.Helper()
	const awkward = `+/="<&>\%é' `
	a := &holder{name: name, token: tokenAnswers[token], login: loginAnswers[login]}
	new := func(name, middle string) string {
		a.canaries = append(a.canaries, newCanary(name, middle))
		return a.secret(name)
	}
	in := map[string]any{"credential_id": name, "connector": connector}
	in["properties"] = map[string]any{"base": s.url + "/" + name, "username": "user-" + name, "password": new("password", "-_.~")}
	new("given", `+/="<&>\%`)
	new("session", `+/="<&>\%`)
	new("cookie", "+/=<&>%")
	switch connector {
	case "leak":
		in["client_id"], in["client_secret"] = "client-"+name, new("client secret", awkward)
		in["oauth2"] = map[string]any{"access_token": new("access token", `+/="<&>\%`), "refresh_token": new("refresh token", awkward)}
	case "password":
		in["client_id"], in["client_secret"] = "client-"+name, new("client secret", awkward)
		in["basic"] = map[string]any{"username": "u", "password": new("basic password", awkward)}
		in["oauth2"] = map[string]any{"access_token": new("access token", "+/=")}
	case "signer":
		in["client_id"] = "client-" + name
		a.canaries = append(a.canaries, privateKey(s.t))
		in["private_key"] = a.secret("private key")
		in["oauth2"] = map[string]any{"access_token": new("access token", "+/=")}
	case "basic":
		in["basic"] = map[string]any{"username": "u", "password": new("basic password", awkward)}
	case "key":
		in["api_key"] = new("api key", awkward)
	case "one":
		in["oauth1"] = map[string]any{"consumer_key": "ck", "consumer_secret": new("consumer secret", awkward), "token": new("token", awkward), "token_secret": new("token secret", awkward)}
	}
	s.mu.Lock()
	s.accounts[name] = a
	s.mu.Unlock()
	raw, err := json.Marshal(in)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, name+".json"), raw, 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.sinks["credential put "+name] = s.run("credential", "put", filepath.Join(s.dir, name+".json"))
	return a
}

// provide is the provider of all accounts.
func (s *sweep) provide(w http.ResponseWriter, r *http.Request) {
	name, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	s.mu.Lock()
	a := s.accounts[name]
	s.mu.Unlock()
	echo := a.echo(r)
	switch path {
	case "token":
		a.token(w, echo)
	case "login":
		if strings.Contains(a.name, "-login-") && !strings.HasSuffix(a.name, "-well") { // it has given out none
			delete(echo, "session")
			delete(echo, "cookie")
		}
		a.login(w, echo, a)
	default:
		w.Header().Set("X-Echo", url.QueryEscape(asText(echo)))
		status, err := strconv.Atoi(r.URL.Query().Get("answer"))
		switch {
		case err != nil:
			replyJSON(w, 200, echo)
		case status == 502:
			reply(w, 502, "text/html", "<p>"+html.EscapeString(asText(echo))+"</p>")
		default:
			replyJSON(w, status, echo)
		}
	}
}

// run runs a command of the worker and returns all it prints.
func (s *sweep) run(args ...string) string {
	s.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), asWorker+"=1", "STEPWORKER_REDIS="+s.redis.URL, "STEPWORKER_KEYS="+s.key)
	out, _ := cmd.CombinedOutput() // it may fail, and say why
	return string(out)
}

// get is a page of a worker.
func (s *sweep) get(addr, path string) string {
	s.t.Helper()
	res, err := http.Get("http://" + addr + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(body)
}

// look reports every canary that stands in a sink.
func (s *sweep) look() {
	s.t.Helper()
	found := map[string]bool{}
	for name, sink := range s.sinks {
		for _, a := range s.accounts {
			for _, c := range a.canaries {
				for _, needle := range c.needles {
					at := strings.Index(sink, needle)
					if what := name + ": " + a.name + ", " + c.name; at >= 0 && !found[what] {
						found[what] = true
						s.t.Errorf("%s, as %q: …%q…", what, needle, sink[max(0, at-150):min(len(sink), at+150)])
					}
				}
			}
		}
	}
}

var readyAt = regexp.MustCompile(`http"?[=:]"?(127\.0\.0\.1:\d+)`)

// No secret stands anywhere but where it is sealed: each is a canary, the
// provider echoes all of them, the scripts log, store and throw them.
func TestSecrets_standInNoSink(t *testing.T) {
	if testing.Short() {
		t.Skip("worker processes")
	}
	t.Parallel()
	ctx := context.Background()
	s := newSweep(t)
	bin := filepath.Join(t.TempDir(), "enqueue")
	if out, err := exec.Command("go", "build", "-o", bin, "../enqueue").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	enqueue := func(args ...string) string {
		cmd := exec.Command(bin, args...)
		cmd.Env = append(os.Environ(), "STEPWORKER_REDIS="+s.redis.URL)
		out, _ := cmd.CombinedOutput()
		return string(out)
	}
	workers := map[string]*process{}
	for _, format := range []string{"json", "text"} {
		workers[format] = s.startWith([]string{"STEPWORKER_PANIC_AT=refresh-answered#3"}, "--connectors", s.dir, "--log-level", "debug", "--log-format", format,
			"--script-timeout", "20s", "--script-memory", "128MiB")
	}

	// Every way to fail of an account in use: each script throws, each answer echoes.
	var ended, waits []string
	step := func(credential, mode, answer string) string {
		j := jobs.Step{CredentialID: credential, Method: "call", MaxRetries: new(int), Parameters: map[string]json.RawMessage{"mode": json.RawMessage(strconv.Quote(mode))}}
		given, _ := json.Marshal(s.accounts[credential].secret("given"))
		j.Parameters["given"] = given
		if answer != "" {
			j.Parameters["answer"] = json.RawMessage(strconv.Quote(answer))
		}
		return s.enqueue(1, j)[0]
	}
	kinds := []string{"leak", "password", "signer", "door", "basic", "key", "one"}
	for _, connector := range kinds {
		s.add(connector+"-used", connector, "json", "well")
		for _, mode := range []string{"none", "text", "error", "object", "base64", "url", "quoted", "type", "fetch", "scheme", "key", "depth", "content", "store", "before"} {
			ended = append(ended, step(connector+"-used", mode, ""))
		}
		for _, answer := range []string{"400", "404", "502"} {
			ended = append(ended, step(connector+"-used", "none", answer))
		}
		ended = append(ended, step(connector+"-used", "warning", "400"), step(connector+"-used", "quoted", "400"))
		waits = append(waits, step(connector+"-used", "late", ""), step(connector+"-used", "late", "403"))
	}
	ended = append(ended, step("leak-used", "memory", ""))
	// Every way to fail of a token endpoint and of a login.
	for token := range tokenAnswers {
		for _, connector := range []string{"leak", "password", "signer"} {
			name := connector + "-token-" + token
			s.add(name, connector, token, "well")
			waits = append(waits, step(name, "refresh", "403"))
		}
	}
	for login := range loginAnswers {
		for _, connector := range []string{"leak", "door", "basic", "key", "one"} {
			name := connector + "-login-" + login
			s.add(name, connector, "json", login)
			if login == "well" {
				ended = append(ended, step(name, "session", "403")) // renewed, and refused again
			} else {
				waits = append(waits, step(name, "none", ""))
			}
		}
	}
	s.results(ended)
	for _, id := range waits {
		s.until("it waits: "+id, func() bool {
			st, err := s.client.Status(ctx, id)
			return err == nil && slices.Contains([]string{"parked", "held", "deferred"}, st.Status)
		})
	}
	s.until("every token endpoint and login was judged", func() bool {
		for name := range s.accounts {
			if st := s.status(name); (strings.Contains(name, "-token-") || strings.Contains(name, "-login-")) && st.LastRefresh == nil {
				return false
			}
		}
		return true
	})

	// A hook host that is killed while a script spins; a worker that is told to
	// show all its stacks in the midst of it.
	spin := step("leak-used", "spin", "")
	var host *process
	s.until("the script spins", func() bool {
		for _, p := range workers {
			if strings.Contains(p.Log.String(), spin) {
				host = p
			}
		}
		return host != nil
	})
	children, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", host.Cmd.Process.Pid))
	if err != nil || len(children) == 0 {
		t.Fatalf("no children of the worker are found: %v", err)
	}
	for _, f := range children {
		pids, _ := os.ReadFile(f)
		for _, pid := range strings.Fields(string(pids)) {
			n, _ := strconv.Atoi(pid)
			_ = syscall.Kill(n, syscall.SIGKILL)
		}
	}
	ended = append(ended, spin)
	s.results([]string{spin})

	// What people look at.
	for _, id := range append(slices.Clone(ended), waits...) {
		s.sinks["enqueue --status "+id] = enqueue("--status", id)
	}
	s.sinks["enqueue --wait"] = enqueue("--wait", "--credential", "leak-used", "--method", "call", "--parameter", "mode=error", "--progress", "always")
	s.sinks["credential list"] = s.run("credential", "list") + s.run("credential", "list", "--count")
	for name := range s.accounts {
		s.sinks["credential get "+name] = s.run("credential", "get", name)
	}
	s.sinks["credential refresh"] = s.run("credential", "refresh", "leak-token-json", "leak-token-nested", "--timeout", "20s")
	s.sinks["key rotate"] = s.run("key", "rotate", "--dry-run")
	recording := filepath.Join(t.TempDir(), "recording.txtar")
	for _, connector := range kinds {
		for _, mode := range []string{"none", "error", "refresh"} {
			for source, from := range map[string][]string{"store": {"--credential", connector + "-used"}, "file": {"--credential-file", filepath.Join(s.dir, connector+"-used.json"), "--record", recording}} {
				name := "try " + connector + " " + mode + " " + source
				s.sinks[name] = s.run(append([]string{"try", connector, "call", "--connectors", s.dir, "--allow-private-network", "--parameter", "mode=" + mode, "--log-level", "debug"}, from...)...)
				if raw, err := os.ReadFile(recording); err == nil {
					s.sinks[name+" recording"] = string(raw)
				}
				_ = os.Remove(recording)
			}
		}
	}
	for name, p := range workers {
		addr := readyAt.FindStringSubmatch(p.Log.String())[1]
		for _, path := range []string{"/metrics", "/healthz", "/readyz", "/monitoring/api/queues", "/monitoring/api/servers", "/monitoring/api/redis_info"} {
			s.sinks[name+" "+path] = s.get(addr, path)
		}
		for _, queue := range []string{"steps", "steps.2", "steps.3", jobs.QueueRefresh} {
			for _, state := range []string{"active", "pending", "scheduled", "retry", "archived", "completed"} {
				path := "/monitoring/api/queues/" + queue + "/" + state + "_tasks?size=1000"
				s.sinks[name+" "+path] = s.get(addr, path)
			}
		}
		for _, id := range append(slices.Clone(ended), waits...) {
			s.sinks[name+" task "+id] = s.get(addr, "/monitoring/api/queues/steps/tasks/"+id)
		}
	}
	if page := s.sinks["json /monitoring/api/queues/steps/retry_tasks?size=1000"]; !strings.Contains(page, waits[0]) || !strings.Contains(page, "[redacted]") {
		t.Errorf("the dashboard shows no waiting executions, or nothing that had to be masked: %.500s", page)
	}
	s.sinks["redis"] = s.everyValue()
	s.sinks["redis files"] = string(s.redis.Dump())
	_ = workers["json"].Cmd.Process.Signal(syscall.SIGQUIT)
	<-workers["json"].Done
	workers["text"].drain(s.world)
	<-workers["text"].Done
	for name, p := range workers {
		log := p.Log.String()
		s.sinks["log "+name] = log
		if !strings.Contains(log, "made this worker panic") || !strings.Contains(log, "[redacted]") {
			t.Errorf("worker %s did not panic, or masked nothing", name)
		}
	}
	if !strings.Contains(s.sinks["log json"], "goroutine ") {
		t.Error("no stacks are shown")
	}
	s.sinks["notices"] = s.notices.String()
	if s.sinks["notices"] == "" {
		t.Error("nobody was told")
	}
	s.look()
}

// everyValue is all that Redis holds, key by key, as its type is read.
func (w *world) everyValue() string {
	w.t.Helper()
	ctx := context.Background()
	var all bytes.Buffer
	it := w.rdb.Scan(ctx, 0, "*", 1000).Iterator()
	for it.Next(ctx) {
		key := it.Val()
		kind := w.rdb.Type(ctx, key).Val()
		var value any
		switch kind {
		case "string":
			value = w.rdb.Get(ctx, key).Val()
		case "hash":
			value = w.rdb.HGetAll(ctx, key).Val()
		case "list":
			value = w.rdb.LRange(ctx, key, 0, -1).Val()
		case "set":
			value = w.rdb.SMembers(ctx, key).Val()
		case "zset":
			value = w.rdb.ZRangeWithScores(ctx, key, 0, -1).Val()
		case "stream":
			value = w.rdb.XRange(ctx, key, "-", "+").Val()
		case "none": // gone meanwhile
		default:
			w.t.Fatalf("%s is a %s", key, kind)
		}
		fmt.Fprintf(&all, "%s %v\n%s\n", key, value, w.rdb.Dump(ctx, key).Val())
	}
	if err := it.Err(); err != nil {
		w.t.Fatal(err)
	}
	return all.String()
}
