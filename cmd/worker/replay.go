package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/hooks"
)

// exchange is one request and its answer, or the fault that came instead.
type exchange struct {
	purpose   string
	method    string
	url       string
	header    http.Header
	body      []byte
	fault     error
	status    string // "200 OK", the server's own words
	resHeader http.Header
	resBody   []byte
}

// wire is what all requests of a try pass by. It tells of each exchange when
// its answer has come.
type wire struct {
	under http.RoundTripper
	max   int64 // of an answer, in bytes: as much as the caller reads, and one more
	seen  func(*exchange)
}

// RoundTrip implements http.RoundTripper.
func (w *wire) RoundTrip(req *http.Request) (*http.Response, error) {
	again := *req
	e := &exchange{method: req.Method, url: req.URL.String(), header: req.Header.Clone()}
	if req.Body != nil {
		var err error
		if e.body, err = io.ReadAll(req.Body); err != nil {
			return nil, err
		}
		_ = req.Body.Close()
		again.Body = io.NopCloser(bytes.NewReader(e.body))
	}
	e.purpose = connectors.PurposeOf(req.Context())
	defer func() { w.seen(e) }()
	res, err := w.under.RoundTrip(&again)
	if err != nil {
		e.fault = err
		return nil, err
	}
	defer res.Body.Close()
	e.status, e.resHeader = strings.TrimSpace(res.Status), res.Header
	if e.resBody, err = io.ReadAll(io.LimitReader(res.Body, w.max)); err != nil {
		e.fault = err
		return nil, err
	}
	res.Body = io.NopCloser(bytes.NewReader(e.resBody))
	return res, nil
}

// replay answers requests from a recording, in its order, without a network.
// The first request that is not the recorded one ends it.
type replay struct {
	exchanges []recordedExchange
	names     *secretNames
	next      int
	failed    error
}

// RoundTrip implements http.RoundTripper.
func (r *replay) RoundTrip(req *http.Request) (*http.Response, error) {
	if r.failed != nil {
		return nil, r.failed
	}
	if r.next == len(r.exchanges) {
		r.failed = fmt.Errorf("the recording has no request %d: %s %s", r.next+1, req.Method, r.names.hide(req.URL.String()))
		return nil, r.failed
	}
	e := &r.exchanges[r.next]
	r.next++
	var body []byte
	if req.Body != nil {
		var err error
		if body, err = io.ReadAll(req.Body); err != nil {
			return nil, err
		}
	}
	differs, err := r.compare(e, req, string(body))
	if err == nil && len(differs) > 0 {
		err = errors.New(strings.Join(differs, "; "))
	}
	if err != nil {
		r.failed = fmt.Errorf("request %d is not the recorded one: %w", e.number, err)
		return nil, r.failed
	}
	res, err := r.answer(e, req)
	var fault *recordedFault
	if err != nil && !errors.As(err, &fault) {
		r.failed = fmt.Errorf("section %d.response: %w", e.number, err)
		return nil, r.failed
	} else if err != nil {
		return nil, fault.err
	}
	return res, nil
}

// rest is an error if requests of the recording were not made.
func (r *replay) rest() error {
	if r.failed != nil || r.next == len(r.exchanges) {
		return r.failed
	}
	first, _, _ := strings.Cut(r.exchanges[r.next].request, "\n")
	if first == "" {
		first = "any request"
	}
	return fmt.Errorf("request %d of the recording was not made: %s", r.exchanges[r.next].number, first)
}

// compare says where a request is not the recorded one. Of the recorded one
// only what stands there counts; secrets are those that placeholders stand for.
func (r *replay) compare(e *recordedExchange, req *http.Request, body string) (differs []string, err error) {
	if e.request == "" {
		return nil, nil
	}
	differ := func(what, got, want string) {
		differs = append(differs, fmt.Sprintf("%s is %s, recorded is %s", what, r.names.hide(short(got)), r.names.hide(short(want))))
	}
	first, rest, _ := strings.Cut(e.request, "\n")
	method, address, _ := strings.Cut(strings.TrimSuffix(strings.TrimSpace(first), " HTTP/1.1"), " ")
	address = strings.TrimSpace(address)
	if address == "" || strings.ContainsAny(anyField.ReplaceAllString(address, ""), " \t") { // placeholders have spaces
		return nil, fmt.Errorf("its first line is %q, and METHOD URL is needed", first)
	}
	if method != req.Method {
		differ("its method", req.Method, method)
	}
	want, err := url.Parse(r.names.fill(address, url.QueryEscape))
	if err != nil {
		return nil, fmt.Errorf("its URL cannot be read: %s", address)
	}
	if want.Host != "" && !strings.EqualFold(want.Scheme+"://"+want.Host, req.URL.Scheme+"://"+req.URL.Host) {
		differ("its host", req.URL.Scheme+"://"+req.URL.Host, want.Scheme+"://"+want.Host)
	}
	if got := req.URL.EscapedPath(); got != want.EscapedPath() && strings.Trim(req.URL.Path, "/") != strings.Trim(want.Path, "/") {
		differ("its path", got, want.EscapedPath())
	}
	differs = append(differs, r.compareForms("its query", req.URL.RawQuery, want.RawQuery)...)
	header, recorded, hasBody, err := parseMessage(rest)
	if err != nil {
		return nil, err
	}
	sent, body := steady(req.Header, body)
	for k, values := range header {
		got, filled := strings.Join(sent.Values(k), ", "), r.names.fill(strings.Join(values, ", "), asItIs)
		if got != filled {
			differ("header "+k, quoted(got), quoted(filled))
		}
	}
	if hasBody {
		differs = append(differs, r.compareBodies(body, recorded, sent)...)
	}
	slices.Sort(differs)
	return differs, nil
}

func (r *replay) compareBodies(got, recorded string, sent http.Header) (differs []string) {
	asJSON := r.names.fill(recorded, jsonEscape)
	if json.Valid([]byte(got)) && json.Valid([]byte(asJSON)) {
		for _, d := range differences("", json.RawMessage(asJSON), json.RawMessage(got)) {
			differs = append(differs, fmt.Sprintf("in its body %s", r.names.hide(d.of("recorded is"))))
		}
		return differs
	}
	if strings.HasPrefix(sent.Get("Content-Type"), formType) {
		return r.compareForms("its body", got, r.names.fill(recorded, url.QueryEscape))
	}
	want := r.names.fill(recorded, asItIs)
	if a, err := hooks.XMLToJSON(got); err == nil { // white space, quotes and the like mean nothing
		if b, err := hooks.XMLToJSON(want); err == nil {
			for _, d := range differences("", b, a) {
				differs = append(differs, fmt.Sprintf("in its body %s", r.names.hide(d.of("recorded is"))))
			}
			return differs
		}
	}
	if got != want && plainLines(sent, got) != plainLines(sent, want) {
		return []string{fmt.Sprintf("its body is %s, recorded is %s", r.names.hide(quoted(got)), r.names.hide(quoted(want)))}
	}
	return nil
}

// compareForms compares forms and queries, names in any order.
func (r *replay) compareForms(what, got, want string) (differs []string) {
	a, errA := url.ParseQuery(got)
	b, errB := url.ParseQuery(want)
	if errA != nil || errB != nil {
		if got != want {
			differs = append(differs, fmt.Sprintf("%s is %s, recorded is %s", what, r.names.hide(quoted(got)), r.names.hide(quoted(want))))
		}
		return differs
	}
	for _, d := range differences("", compact(b), compact(a)) {
		differs = append(differs, fmt.Sprintf("in %s %s", what, r.names.hide(d.of("recorded is"))))
	}
	return differs
}

// of tells a difference in words.
func (d difference) of(old string) string {
	side := func(raw json.RawMessage) string {
		if raw == nil {
			return "missing"
		}
		return short(string(raw))
	}
	path := d.path
	if path == "" {
		path = "the whole"
	}
	return fmt.Sprintf("%s is %s, %s %s", path, side(d.new), old, side(d.old))
}

func short(s string) string {
	if r := []rune(s); len(r) > 300 {
		return string(r[:300]) + "…"
	}
	return s
}

func quoted(s string) string {
	if s == "" {
		return "empty"
	}
	return strconv.Quote(short(s))
}

// answer is the recorded response.
func (r *replay) answer(e *recordedExchange, req *http.Request) (*http.Response, error) {
	first, rest, _ := strings.Cut(e.response, "\n")
	if text, ok := strings.CutPrefix(first, "no answer: "); ok {
		return nil, &recordedFault{faultOf(r.names.fill(text, asItIs))}
	}
	status := strings.TrimSpace(strings.TrimPrefix(first, "HTTP/1.1"))
	code, _, _ := strings.Cut(status, " ")
	n, err := strconv.Atoi(code)
	if err != nil || n < 100 || n > 599 {
		return nil, fmt.Errorf("its first line is %q, and a status such as 200 OK, or no answer: REASON, is needed", first)
	}
	header, body, _, err := parseMessage(rest)
	if err != nil {
		return nil, err
	}
	for _, values := range header {
		for i, v := range values {
			values[i] = r.names.fill(v, asItIs)
		}
	}
	escape := asItIs
	if strings.HasPrefix(strings.TrimSpace(body), "{") || strings.HasPrefix(strings.TrimSpace(body), "[") {
		escape = jsonEscape
	}
	body = r.names.fill(body, escape)
	if req.Method == http.MethodHead {
		body = ""
	}
	return &http.Response{Status: status, StatusCode: n, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: header,
		Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)), Request: req}, nil
}

// recordedFault is a fault that belongs to the recording, not one of it.
type recordedFault struct{ err error }

func (f *recordedFault) Error() string { return f.err.Error() }

// faultText is how a fault stands in a recording; faultOf is a fault that a
// caller takes for the same.
func faultText(err error) string {
	var dns *net.DNSError
	var op *net.OpError
	var ne net.Error
	switch {
	case errors.As(err, &dns):
		return "the name cannot be resolved"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &ne) && ne.Timeout():
		return "timeout"
	case errors.As(err, &op) && op.Op == "dial":
		return "not reached: " + connectors.FaultCause(err)
	}
	return connectors.FaultCause(err)
}

func faultOf(text string) error {
	switch reason, unreached := strings.CutPrefix(text, "not reached: "); {
	case text == "the name cannot be resolved":
		return &net.DNSError{Err: text}
	case text == "timeout":
		return os.ErrDeadlineExceeded
	case unreached:
		return &net.OpError{Op: "dial", Err: errors.New(reason)}
	}
	return errors.New(text)
}
