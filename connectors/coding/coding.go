package coding

import (
	"bufio"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"
)

// maxCodings is how many content codings an answer may have, one in another.
const maxCodings = 4

// ErrTooLarge is an answer of which more came than may.
var ErrTooLarge = errors.New("the answer is larger than may be")

// Error is a body that is not what its content coding says.
type Error struct {
	coding string
	err    error
}

func (e *Error) Error() string {
	return fmt.Sprintf("it is no %s: %s", e.coding, e.err)
}

// Undo takes an answer's content codings off (RFC 9110 section 8.4), those
// too that nobody asked for: the headers are then those of the decoded body.
// Each layer may be max bytes at most, so that no small answer grows without
// end. Codings that nobody here reads stay, with their header.
func Undo(res *http.Response, max int64) {
	codings := Of(res.Header)
	if len(codings) == 0 || len(codings) > maxCodings || res.Request.Method == http.MethodHead || res.Body == http.NoBody {
		return
	}
	for _, c := range codings {
		if decoders[c] == nil {
			return
		}
	}
	for i := len(codings) - 1; i >= 0; i-- {
		res.Body = &body{coding: codings[i], source: &source{r: res.Body, left: max}, under: res.Body}
	}
	res.Header.Del("Content-Encoding")
	res.Header.Del("Content-Length")
	res.ContentLength, res.Uncompressed = -1, true
}

// Of are an answer's content codings in the order in which they were applied.
func Of(h http.Header) (codings []string) {
	for _, c := range strings.Split(strings.Join(h.Values("Content-Encoding"), ","), ",") {
		switch c = strings.ToLower(strings.TrimSpace(c)); c {
		case "", "identity", "none", "utf-8": // the last two are no codings, but are sent
		default:
			codings = append(codings, strings.TrimPrefix(c, "x-"))
		}
	}
	return codings
}

var decoders = map[string]func(*bufio.Reader) (io.Reader, error){
	"gzip": func(r *bufio.Reader) (io.Reader, error) { return gzip.NewReader(r) },
	"br":   func(r *bufio.Reader) (io.Reader, error) { return brotli.NewReader(r), nil },
	"deflate": func(r *bufio.Reader) (io.Reader, error) {
		// zlib (RFC 1950), as it should be, or what that wraps alone (RFC 1951).
		if begin, _ := r.Peek(2); len(begin) == 2 && begin[0]&0x0f == 8 && (int(begin[0])<<8|int(begin[1]))%31 == 0 {
			return zlib.NewReader(r)
		}
		return flate.NewReader(r), nil
	},
	"zstd": func(r *bufio.Reader) (io.Reader, error) {
		// 8 MiB is the largest window that is sent (RFC 9659). Without
		// concurrency a decoder that is left alone leaves nothing behind.
		return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20))
	},
}

// body decodes one layer as it is read. An empty body has no layers.
type body struct {
	coding string
	source *source
	under  io.Closer
	r      io.Reader
	err    error
}

func (b *body) Read(p []byte) (int, error) {
	if b.r == nil && b.err == nil {
		in := bufio.NewReader(b.source)
		if _, b.err = in.Peek(1); b.err == nil {
			b.r, b.err = decoders[b.coding](in)
		}
		b.err = b.told(b.err)
	}
	if b.err != nil {
		return 0, b.err
	}
	var n int
	n, b.err = b.r.Read(p)
	b.err = b.told(b.err)
	return n, b.err
}

// told tells a source that broke from one that is no such coding.
func (b *body) told(err error) error {
	switch {
	case b.source.err != nil:
		return b.source.err
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return err
	}
	return &Error{b.coding, err}
}

func (b *body) Close() error { return b.under.Close() }

// Limit is a reader of which no more than max bytes come, and then ErrTooLarge.
func Limit(r io.Reader, max int64) io.Reader { return &source{r: r, left: max} }

// source is a reader of which no more than left bytes come; it knows why it broke.
type source struct {
	r    io.Reader
	left int64
	err  error // other than its end
}

func (s *source) Read(p []byte) (int, error) {
	if int64(len(p)) > s.left+1 {
		p = p[:s.left+1]
	}
	n, err := s.r.Read(p)
	if s.left -= int64(n); s.left < 0 {
		n, err = 0, ErrTooLarge
	}
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}
