package connectors_test

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"

	"github.com/stepworker/stepworker/connectors"
)

// rawServer answers each connection's first request with these bytes. Then it
// closes the connection, or resets it, or says nothing more.
func rawServer(t *testing.T, answer, then string) (addr string, asked *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked, over := new(atomic.Int64), make(chan struct{})
	t.Cleanup(func() { close(over); _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				buf, head := make([]byte, 4096), ""
				for !strings.Contains(head, "\r\n\r\n") {
					n, err := conn.Read(buf)
					if err != nil {
						return
					}
					head += string(buf[:n])
				}
				asked.Add(1)
				_, _ = io.WriteString(conn, answer)
				switch then {
				case "hang":
					<-over
				case "reset":
					_ = conn.(*net.TCPConn).SetLinger(0)
				}
			}()
		}
	}()
	return l.Addr().String(), asked
}

func rawAPI(t *testing.T, answer, then, verb, more string) (*api, *atomic.Int64) {
	t.Helper()
	addr, asked := rawServer(t, answer, then)
	return newAPI(t, fmt.Sprintf("connector: acme\nbase_url: http://%s\nmethods: [{method: m, verb: %s, endpoint: /a%s}]\n", addr, verb, more), nil,
		func(c *connectors.CallerConfig) { c.MaxResponse, c.CallTimeout = 1000, 300*time.Millisecond }), asked
}

func TestAnswer_thatDoesNotCome(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
	zipped := string(coded(t, "gzip", []byte(`{"a":"`+strings.Repeat("xyz", 50)+`"}`)))
	cases := map[string]struct {
		answer, then string
		kind, text   string
	}{
		"its length says that it is too large": {ok + "Content-Length: 100000\r\n\r\n", "hang", "limit", "larger than 1000 bytes"},
		"too large, in chunks":                 {ok + "Transfer-Encoding: chunked\r\n\r\n7d0\r\n" + strings.Repeat("x", 2000) + "\r\n", "hang", "limit", "larger than 1000 bytes"},
		"too large, until the connection ends": {ok + "\r\n" + strings.Repeat("x", 2000), "", "limit", "larger than 1000 bytes"},
		"fewer bytes than its length":          {ok + "Content-Length: 50\r\n\r\n{\"a\":", "", "network", "was cut off"},
		"no byte of its length":                {ok + "Content-Length: 50\r\n\r\n", "", "network", "was cut off"},
		"in the middle of a chunk":             {ok + "Transfer-Encoding: chunked\r\n\r\n32\r\n{\"a\":", "", "network", "was cut off"},
		"no last chunk":                        {ok + "Transfer-Encoding: chunked\r\n\r\n7\r\n{\"a\":1}\r\n", "", "network", "was cut off"},
		"a chunk without a size":               {ok + "Transfer-Encoding: chunked\r\n\r\nxyz\r\n", "", "network", "broke"},
		"reset in the middle":                  {ok + "Content-Length: 50\r\n\r\n{\"a\":", "reset", "network", "127.0.0.1"},
		"gzip cut off":                         {ok + "Content-Encoding: gzip\r\n\r\n" + zipped[:20], "", "network", "was cut off"},
		"gzip with a broken checksum":          {ok + "Content-Encoding: gzip\r\n\r\n" + zipped[:len(zipped)-8] + "12345678", "", "network", "checksum"},
		"no gzip at all":                       {ok + "Content-Encoding: br, gzip\r\n\r\n{\"a\":\"not compressed at all\"}", "", "network", "it is no gzip"},
		"not the gzip that was asked for":      {ok + "Content-Encoding: gzip\r\n\r\n{\"a\":\"not compressed at all\"}", "", "network", "it is no gzip"},
		"headers that never come":              {"", "hang", "network", "did not answer in time"},
		"headers that stop":                    {"HTTP/1.1 200 OK\r\nContent-Ty", "hang", "network", "did not answer in time"},
		"a body that stops":                    {ok + "Content-Length: 50\r\n\r\n{\"a\":", "hang", "network", "did not send its whole answer in time"},
		"closed before a word":                 {"", "", "network", "broke"},
		"a coding that nobody knows":           {ok + "Content-Encoding: compress\r\nContent-Length: 3\r\n\r\nabc", "", "http", `content coding "compress"`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			for _, m := range []struct {
				verb, more string
				repeat     bool
			}{{"GET", "", true}, {"POST", "", false}, {"POST", ", retry: always", true}, {"GET", ", retry: never", false}} {
				a, _ := rawAPI(t, c.answer, c.then, m.verb, m.more)
				e := a.fails("m")
				if e.Kind != c.kind || e.Repeat != (m.repeat && c.kind == "network") || e.Defer {
					t.Errorf("%s%s: got %+v", m.verb, m.more, e)
				}
				contains(t, "message", e.Message, c.text)
			}
		})
	}
}

// A 401 tells of a dead credential by its status, whatever its body is.
func TestAnswer_aRefusalThatCannotBeDecompressed(t *testing.T) {
	for _, coding := range []string{"gzip", "deflate", "br", "zstd", "br, gzip"} {
		a, _ := rawAPI(t, "HTTP/1.1 401 Unauthorized\r\nContent-Encoding: "+coding+"\r\nContent-Length: 24\r\n\r\n{\"a\": \"not compressed\"}  ", "", "GET", "")
		if e := a.fails("m"); e.Kind != "http" || e.StatusCode != 401 || e.Repeat {
			t.Errorf("%s: got %+v", coding, e)
		}
	}
}

// coded is a body in one content coding.
func coded(t *testing.T, coding string, body []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch coding {
	case "gzip", "x-gzip":
		w = gzip.NewWriter(&out)
	case "deflate":
		w = zlib.NewWriter(&out)
	case "raw deflate":
		w, err = flate.NewWriter(&out, 6)
	case "br":
		w = brotli.NewWriter(&out)
	case "zstd":
		w, err = zstd.NewWriter(&out)
	}
	if err == nil {
		_, err = w.Write(body)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestAnswer_contentCodings(t *testing.T) {
	const script = `
    script: |
      function before_action() { method_request_headers['Accept-Encoding'] = 'gzip, deflate, br, zstd'; }
      function after_action() {
        action_data.other = http_request({url: 'BASE/other', method: 'GET'}).content;
        method_response.other = action_data.other;
        method_response.coding = method_response_headers['Content-Encoding'] || 'none';
        method_response.length = method_response_headers['Content-Length'] || 'none';
      }
`
	cases := map[string][]string{
		"gzip": {"gzip"}, "x-gzip": {"x-gzip"}, "GZIP": {"gzip"}, "deflate": {"deflate"}, "deflate ": {"raw deflate"}, "br": {"br"}, "zstd": {"zstd"},
		"gzip, br": {"gzip", "br"}, "identity": {}, "utf-8": {}, "deflate, gzip, zstd, br": {"deflate", "gzip", "zstd", "br"},
	}
	for header, codings := range cases {
		t.Run(header, func(t *testing.T) {
			a := newAPI(t, oneMethod+script, func(w http.ResponseWriter, _ *http.Request) {
				body := []byte(`{"a":"ä"}`)
				for _, c := range codings {
					body = coded(t, c, body)
				}
				w.Header().Set("Content-Type", "application/json")
				w.Header().Set("Content-Encoding", header)
				w.Header().Set("Content-Length", fmt.Sprint(len(body)))
				_, _ = w.Write(body)
			})
			want := `{"a":"ä","other":"{\"a\":\"ä\"}","coding":"none","length":"none"}`
			if len(codings) == 0 {
				want = `{"a":"ä","other":"{\"a\":\"ä\"}","coding":"` + header + `","length":"10"}`
			}
			sameJSON(t, "content", a.must("get").Content, want)
		})
	}
}

// Two header lines are one list (RFC 9110 section 5.2), also where only gzip was asked for.
func TestAnswer_contentCodingsInTwoLines(t *testing.T) {
	a := newAPI(t, oneMethod, func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Content-Encoding"] = []string{"gzip", "br"}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(coded(t, "br", coded(t, "gzip", []byte(`{"a":"`+r.Header.Get("Accept-Encoding")+`"}`))))
	})
	sameJSON(t, "content", a.must("get").Content, `{"a":"gzip"}`)
}

// What is small on the wire ends at the cap, whichever layer of it grows.
func TestAnswer_thatOnlyGrowsByDecoding(t *testing.T) {
	large := bytes.Repeat([]byte("x"), 64<<20)
	for _, codings := range [][]string{{"gzip"}, {"deflate"}, {"br"}, {"zstd"}, {"gzip", "gzip"}, {"zstd", "br"}} {
		t.Run(strings.Join(codings, ", "), func(t *testing.T) {
			body := large
			for _, c := range codings {
				body = coded(t, c, body)
			}
			a := newAPI(t, oneMethod, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Encoding", strings.Join(codings, ", "))
				_, _ = w.Write(body)
			}, func(c *connectors.CallerConfig) { c.MaxResponse = 1 << 20 })
			if e := a.fails("get"); e.Kind != "limit" || e.Repeat {
				t.Errorf("got %+v", e)
			}
			e := a.fails("get", withScript("function before_action() { http_request({url: '"+a.URL+"/', method: 'GET'}); }"))
			contains(t, "message", e.Message, "larger than 1048576 bytes")
		})
	}
}

func TestAnswer_odd(t *testing.T) {
	const ok, kind = "HTTP/1.1 200 OK\r\n", "Content-Type: application/json\r\n"
	deep := strings.Repeat("[", 400) + strings.Repeat("]", 400)
	cases := map[string]struct {
		verb, answer string
		content      string // "": none
		failure      string // of the execution
	}{
		"204":                           {"GET", "HTTP/1.1 204 No Content\r\n\r\n", "", ""},
		"204 that is said to be gzip":   {"GET", "HTTP/1.1 204 No Content\r\nContent-Encoding: gzip\r\n\r\n", "", ""},
		"205":                           {"GET", "HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n", "", ""},
		"304":                           {"GET", "HTTP/1.1 304 Not Modified\r\n\r\n", "", "the API answered 304"},
		"HEAD with a length":            {"HEAD", ok + kind + "Content-Length: 99999999\r\n\r\n", "", ""},
		"HEAD of what is compressed":    {"HEAD", ok + kind + "Content-Encoding: br\r\nContent-Length: 5\r\n\r\n", "", ""},
		"empty, said to be JSON":        {"GET", ok + kind + "Content-Length: 0\r\n\r\n", "", ""},
		"empty, said to be br":          {"GET", ok + kind + "Content-Encoding: br\r\n\r\n", "", ""},
		"empty, of a coding nobody has": {"GET", ok + kind + "Content-Encoding: compress\r\nContent-Length: 0\r\n\r\n", "", ""},
		"a byte-order mark":             {"GET", ok + kind + "\r\n\xef\xbb\xbf{\"a\":1}", `{"a":1}`, ""},
		"a NUL byte in text":            {"GET", ok + "Content-Type: text/plain\r\n\r\na\x00b", "", "no JSON object or list"},
		"a NUL byte in JSON":            {"GET", ok + kind + "\r\n{\"a\":\"\x00\"}", "", "no JSON object or list"},
		"bytes that are no UTF-8":       {"GET", ok + kind + "\r\n{\"a\":\"\xff\"}", "{\"a\":\"\ufffd\"}", ""},
		"informational answers before":  {"GET", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + ok + kind + "\r\n{\"a\":1}", `{"a":1}`, ""},
		"garbage after JSON":            {"GET", ok + kind + "\r\n{\"a\":1} x", "", "no JSON object or list"},
		"two members of one name":       {"GET", ok + kind + "\r\n{\"a\":1,\"a\":2}", `{"a":1,"a":2}`, ""},
		"deep":                          {"GET", ok + kind + "\r\n" + deep, deep, ""},
		"large numbers":                 {"GET", ok + kind + "\r\n{\"a\":12345678901234567890123,\"b\":1e999,\"c\":0.10}", `{"a":12345678901234567890123,"b":1e999,"c":0.10}`, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a, _ := rawAPI(t, c.answer, "", c.verb, "")
			if c.failure != "" {
				e := a.fails("m")
				contains(t, "message", e.Message, c.failure)
				return
			}
			if got := a.must("m"); string(got.Content) != c.content { // byte for byte: digits are kept
				t.Errorf("content %q, want %q", got.Content, c.content)
			}
		})
	}
}

// Text is written as encoding/json writes it.
func TestAnswer_textBecomesJSON(t *testing.T) {
	var body strings.Builder
	for i := range 2000 {
		body.WriteRune(rune(i))
	}
	for range 5000 {
		body.WriteRune(rune(rand.IntN(0x11000)))
	}
	want := body.String() + "\u2028\u2029 <&> \\ \" \x7f"
	a := newAPI(t, "connector: acme\nbase_url: BASE\nmethods: [{method: get, endpoint: /a, response: {data_type: plain_text}}]\n", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, want)
	})
	got := a.must("get").Content
	var plain bytes.Buffer
	enc := json.NewEncoder(&plain)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(want); err != nil {
		t.Fatal(err)
	}
	if string(got) != strings.TrimSpace(plain.String()) {
		t.Errorf("got %.200q", got)
	}
}
