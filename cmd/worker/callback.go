package main

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
)

// callback is where a provider sends a person's browser back to (RFC 6749
// section 4.1.2): one answer with our state is taken, no other.
type callback struct {
	URL     string // as it is registered with the provider
	Addr    string // that it listens on
	Answers chan *answer

	path     string
	state    string
	listener net.Listener
	server   *http.Server
	log      *slog.Logger
	taken    atomic.Bool
}

// answer is what the browser brought. The person looks at an empty page until
// Reply.
type answer struct {
	Code    string
	Refusal string // the provider's, in its own words; "" beside a code
	page    chan page
}

// Reply shows the person how it went.
func (a *answer) Reply(status int, title, text string) { a.page <- page{status, title, text} }

type page struct {
	status      int
	Title, Text string
}

// pageTemplate escapes: a provider's words are anybody's.
var pageTemplate = template.Must(template.New("").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Stepworker</title>
<h1>{{.Title}}</h1><p>{{.Text}}</p></html>
`))

// parseRedirect reads a redirect URL. One that is not on this machine nobody
// here could listen on.
func parseRedirect(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" {
		return nil, errors.New("a URL such as http://127.0.0.1:8400/callback is needed")
	}
	ip := net.ParseIP(u.Hostname())
	if u.Scheme != "http" || u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("%s is no http address of this machine (127.0.0.1, [::1], localhost), so nobody here can listen on it", u.Redacted())
	}
	return u, nil
}

// listen opens the address of a redirect URL; port 0 picks a free one.
func listen(redirect *url.URL, log *slog.Logger) (*callback, error) {
	u := *redirect
	port := u.Port()
	if port == "" {
		port = "80"
	}
	l, err := net.Listen("tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return nil, fmt.Errorf("%s cannot be listened on: it is in use, or no address of this machine", u.Host)
	}
	if port == "0" {
		_, port, _ = net.SplitHostPort(l.Addr().String())
		u.Host = net.JoinHostPort(u.Hostname(), port)
	}
	b := &callback{URL: u.String(), Addr: l.Addr().String(), Answers: make(chan *answer, 1), path: u.Path, listener: l, log: log}
	if b.path == "" {
		b.path = "/"
	}
	b.server = &http.Server{Handler: b, ReadHeaderTimeout: 10 * time.Second}
	return b, nil
}

// Serve begins to take answers with this state.
func (b *callback) Serve(state string) {
	b.state = state
	go func() { _ = b.server.Serve(b.listener) }() // until Close
}

// Close ends it once the last page is sent.
func (b *callback) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if b.server.Shutdown(ctx) != nil {
		_ = b.server.Close()
	}
	_ = b.listener.Close() // where it was never served
}

// ServeHTTP answers the browser.
func (b *callback) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	a := &answer{Code: query.Get("code"), page: make(chan page, 1)}
	if code := query.Get("error"); code != "" {
		a.Refusal = printable(code)
		if text := printable(query.Get("error_description")); text != "" {
			a.Refusal += ": " + text
		}
	}
	switch {
	case r.URL.Path != b.path || r.Method != http.MethodGet:
		show(w, page{http.StatusNotFound, "Nothing is here", "Stepworker waits for a provider's answer at another address."})
		return
	case subtle.ConstantTimeCompare([]byte(query.Get("state")), []byte(b.state)) != 1:
		b.log.Warn("an answer with another state was refused; the waiting goes on")
		show(w, page{http.StatusForbidden, "This is another answer", "It does not belong to the authorization that is under way, and was not taken."})
		return
	case a.Code == "" && a.Refusal == "":
		show(w, page{http.StatusBadRequest, "This is no answer", "It holds neither a code nor an error."})
		return
	case !b.taken.CompareAndSwap(false, true):
		show(w, page{http.StatusConflict, "It was answered already", "You can close this window."})
		return
	}
	b.Answers <- a
	select {
	case p := <-a.page:
		show(w, p)
	case <-r.Context().Done():
	}
}

func show(w http.ResponseWriter, p page) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer") // the address holds the code
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'")
	w.WriteHeader(p.status)
	_ = pageTemplate.Execute(w, p)
}

// printable keeps what a terminal may show of a stranger's words.
func printable(s string) string {
	kept := []rune(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, s))
	return string(kept[:min(len(kept), 300)])
}
