package main

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
)

func TestProbe(t *testing.T) {
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch n := asked.Add(1); {
		case r.URL.Path != "/readyz":
			w.WriteHeader(http.StatusNotFound)
		case n < 3:
			http.Error(w, "redis does not answer", http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(server.Close)
	addr := strings.TrimPrefix(server.URL, "http://")
	_, port, _ := net.SplitHostPort(addr)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	for _, c := range []struct {
		name string
		args []string
		code int
		text string
	}{
		{"not ready", []string{"--http", addr}, 1, "not ready: redis does not answer (503 Service Unavailable)\n"},
		{"it waits", []string{"--http", addr, "--wait", "1m"}, 0, "ready\n"},
		{"no host", []string{"--http", ":" + port}, 0, "ready\n"},
		{"any address", []string{"--http", "0.0.0.0:" + port}, 0, "ready\n"},
		{"nobody", []string{"--http", closed.Addr().String()}, 1, "no worker answers at " + closed.Addr().String() + "\n"},
		{"off", []string{"--http", ""}, 2, "--http: the address of a running worker is needed, with its port\n"},
		{"some port", []string{"--http", "127.0.0.1:0"}, 2, "--http: the address of a running worker is needed, with its port\n"},
		{"no address", []string{"--http", "8080", "--wait", "-1s"}, 2, "--http: an address such as 127.0.0.1:8080 is needed, not \"8080\"\n--wait: a positive duration is needed\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			code := run(context.Background(), append([]string{"probe"}, c.args...), strings.NewReader(""), &out, &out)
			if code != c.code || out.String() != c.text {
				t.Errorf("got %d, %q, want %d, %q", code, out.String(), c.code, c.text)
			}
		})
	}
}

func TestProbe_ofARealWorker(t *testing.T) {
	if testing.Short() {
		t.Skip("worker processes")
	}
	t.Parallel()
	w := newWorld(t)
	p := w.start("")
	found := regexp.MustCompile(`127\.0\.0\.1:[1-9][0-9]*`).FindString(p.Log.String()[strings.Index(p.Log.String(), "ready"):])
	var out bytes.Buffer
	if code := run(context.Background(), []string{"probe", "--http", found, "--wait", "1m"}, strings.NewReader(""), &out, &out); code != 0 {
		t.Errorf("got %d, %s", code, out.String())
	}
}
