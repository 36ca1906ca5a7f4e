package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/stepworker/stepworker/jobs"
)

// Answers of 10 MiB, the default of --max-response.
const largeYAML = `connector: bench
base_url: "{{base}}"
auth: {type: api_key, name: Authorization, prefix: "Bearer "}
parameters: [{name: base, target: merge_field, property: account}]
methods:
  - {method: small, endpoint: /small}
  - {method: plain, endpoint: /json}
  - {method: fields, endpoint: /json, response: {fields: [{field: "[items].id", system: Id}, {field: "[items].name", system: Name}]}}
  - {method: gzip, endpoint: /gzip}
  - {method: text, endpoint: /text, response: {data_type: plain_text}}
  - {method: binary, endpoint: /binary, response: {data_type: unknown}}
  - {method: many, endpoint: /mebibyte}
  - method: looks
    endpoint: /json
    script: |
      function after_action() { action_data.n = method_response.items.length; return true; }
  - method: edits
    endpoint: /json
    script: |
      function after_action() { method_response.items[0].seen = true; return true; }
`

const largeSize = 10 << 20

var largeCases = []struct {
	name, method string
	times        int
	size         int // of each answer
}{
	{"net/http and json.Unmarshal", "yardstick", 1, largeSize},
	{"JSON", "plain", 1, largeSize},
	{"JSON, compressed", "gzip", 1, largeSize},
	{"JSON, two response fields", "fields", 1, largeSize},
	{"JSON, a script that looks", "looks", 1, largeSize},
	{"JSON, a script that edits", "edits", 1, largeSize},
	{"text", "text", 1, largeSize},
	{"binary", "binary", 1, largeSize},
	{"20 at once, 1 MiB JSON each", "many", 20, 1 << 20},
	{"20 at once, json.Unmarshal", "yardstick many", 20, 1 << 20},
}

// measureLarge tells the memory of large answers: how much the process's
// resident set, and its largest hook host's, grew at most while they were
// called, kept and the result stored, as a multiple of the answers' size.
func measureLarge(rounds int) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	base, stop, err := startAPI(self, "large api")
	if err != nil {
		return err
	}
	defer stop()
	fmt.Printf("%-32s %14s %14s %10s\n", "large answers", "worker's peak", "host's peak", "seconds")
	for _, c := range largeCases {
		var worker, host, took []float64
		for range rounds {
			w, h, t, err := largeRun(self, base, c.method, c.times)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			all := float64(c.times * c.size)
			worker, host, took = append(worker, w/all), append(host, h/all), append(took, t)
		}
		fmt.Printf("%-32s %12.1f x %12.1f x %10.2f\n", c.name, median(worker), median(host), median(took))
	}
	fmt.Printf("(medians of %d rounds: growth of the resident set as a multiple of the answers' size)\n\n", rounds)
	return nil
}

func largeRun(self, api, method string, times int) (worker, host, seconds float64, err error) {
	sock, stop, err := startRedis()
	if err != nil {
		return 0, 0, 0, err
	}
	defer stop()
	cmd := exec.Command(self, "-role", "large "+method, "-redis", sock, "-api", api, "-steps", strconv.Itoa(times))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return 0, 0, 0, err
	}
	_, err = fmt.Sscan(string(out), &worker, &host, &seconds)
	return worker, host, seconds, err
}

// runLarge is one contender, in a process of its own.
func runLarge(method, sock, api string, times int) error {
	var call func() error
	if path, ok := map[string]string{"yardstick": "/json", "yardstick many": "/mebibyte"}[method]; ok {
		if err := fetchAll(api+"/small", 1); err != nil {
			return err
		}
		call = func() error { return fetchAll(api+path, times) }
	} else {
		done := make(chan string, times)
		h, err := openHouse(client(sock, 2), largeYAML, max(times, 2), func(m jobs.Moment) {
			if m.What == "succeeded" || m.What == "failed" {
				done <- m.Text
			}
		})
		if err != nil {
			return err
		}
		defer h.engine.Close()
		if err := h.put(fmt.Sprintf(`{"credential_id":"c","connector":"bench","api_key":"key-0123456789-0123456789","properties":{"base":%q}}`, api)); err != nil {
			return err
		}
		if err := h.pool.Start(); err != nil {
			return err
		}
		defer h.pool.Shutdown()
		jc := jobs.NewClient(client(sock, 2))
		run := func(method string, n int) error {
			batch := make([]*jobs.Step, n)
			for i := range batch {
				batch[i] = &jobs.Step{CredentialID: "c", Method: method}
			}
			for _, r := range jc.EnqueueBatch(context.Background(), batch) {
				if r.Err != nil {
					return r.Err
				}
			}
			for range n {
				if text := <-done; text != "" {
					return errors.New(text)
				}
			}
			return nil
		}
		if err := run("small", times); err != nil {
			return err
		}
		call = func() error { return run(method, times) }
	}
	debug.FreeOSMemory()
	m, err := watchMemory()
	if err != nil {
		return err
	}
	begun := time.Now()
	if err := call(); err != nil {
		return err
	}
	took := time.Since(begun)
	own, children := m.stop()
	fmt.Println(own, children, took.Seconds())
	return nil
}

func fetchAll(url string, times int) error {
	errs := make(chan error, times)
	for range times {
		go func() {
			res, err := http.Get(url)
			if err != nil {
				errs <- err
				return
			}
			defer res.Body.Close()
			raw, err := io.ReadAll(res.Body)
			if err != nil {
				errs <- err
				return
			}
			var v any
			errs <- json.Unmarshal(raw, &v)
		}()
	}
	for range times {
		if err := <-errs; err != nil {
			return err
		}
	}
	return nil
}

// memoryWatch looks at the peaks of this process and its hook hosts.
type memoryWatch struct {
	before int64
	hosts  map[string]int64 // resident set when first seen, by process
	peak   int64            // the largest growth of one of them
	end    chan struct{}
	done   chan struct{}
}

func watchMemory() (*memoryWatch, error) {
	// The peak starts anew (proc(5), clear_refs).
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		return nil, err
	}
	m := &memoryWatch{before: memoryOf("self", "VmRSS"), hosts: map[string]int64{}, end: make(chan struct{}), done: make(chan struct{})}
	m.look()
	go func() {
		defer close(m.done)
		for {
			select {
			case <-m.end:
				return
			case <-time.After(2 * time.Millisecond):
				m.look()
			}
		}
	}()
	return m, nil
}

func (m *memoryWatch) look() {
	files, _ := filepath.Glob("/proc/self/task/*/children")
	for _, f := range files {
		raw, _ := os.ReadFile(f)
		for _, pid := range strings.Fields(string(raw)) {
			rss := memoryOf(pid, "VmRSS")
			if _, seen := m.hosts[pid]; !seen {
				m.hosts[pid] = rss
			}
			m.peak = max(m.peak, rss-m.hosts[pid])
		}
	}
}

func (m *memoryWatch) stop() (own, host int64) {
	close(m.end)
	<-m.done
	m.look()
	return memoryOf("self", "VmHWM") - m.before, m.peak
}

// memoryOf is a line of a process's status, in bytes (proc(5)).
func memoryOf(pid, line string) int64 {
	raw, _ := os.ReadFile("/proc/" + pid + "/status")
	_, rest, _ := strings.Cut(string(raw), line+":")
	var kib int64
	_, _ = fmt.Sscan(rest, &kib)
	return kib << 10
}

// serveLarge is the API. Binary is what becomes 10 MiB of base64.
func serveLarge() error {
	noise := make([]byte, largeSize)
	for i := range noise {
		noise[i] = byte(rand.IntN(256))
	}
	bodies := map[string][]byte{
		"/small": answer(1 << 10), "/json": answer(largeSize - 128), "/mebibyte": answer(1<<20 - 128), "/binary": noise,
		"/text": []byte(strings.Repeat("A line of text, as exports have them; \"quoted\".\n", largeSize/50)),
	}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, _ = z.Write(bodies["/json"])
	if err := z.Close(); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("http://%s\n", l.Addr())
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := bodies[r.URL.Path]
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/text":
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		case "/binary":
			w.Header().Set("Content-Type", "application/pdf")
		case "/gzip":
			w.Header().Set("Content-Encoding", "gzip")
			body = zipped.Bytes()
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body)
	}))
}
