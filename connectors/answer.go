package connectors

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"unsafe"

	"github.com/stepworker/stepworker/connectors/coding"
)

// codingError is an answer in a content coding that nobody here reads.
type codingError struct{ coding string }

func (e *codingError) Error() string {
	return fmt.Sprintf("the answer has content coding %q, and only gzip, deflate, br and zstd can be decoded: a header Accept-Encoding of the connector's may ask for one of these", e.coding)
}

// readAnswer reads an answer's body, at most max bytes of it. coding.ErrTooLarge
// says that there is more; of one that says so itself nothing is read. A success
// in a content coding that nobody here reads is a *codingError, beside it; a 401
// that is not what its coding says has no body, for its status says enough. Any
// other error is the network's.
func readAnswer(res *http.Response, max int64) ([]byte, error) {
	if res.Body == http.NoBody || res.Request.Method == http.MethodHead { // Content-Length is that of what a GET would bring
		return nil, nil
	}
	if res.ContentLength > max {
		return nil, coding.ErrTooLarge
	}
	raw, err := readSized(coding.Limit(res.Body, max), res.ContentLength)
	var decoding *coding.Error
	switch {
	case errors.As(err, &decoding) && res.StatusCode == http.StatusUnauthorized:
		return nil, nil
	case err != nil:
		return nil, err
	}
	if codings := coding.Of(res.Header); len(codings) > 0 && len(raw) > 0 && res.StatusCode >= 200 && res.StatusCode <= 299 {
		return raw, &codingError{strings.Join(codings, ", ")}
	}
	return raw, nil
}

// readSized reads all. What the size says, -1 if it is not known, is asked for
// in one piece; else pieces are collected and joined, so that no more than
// twice of it is held.
func readSized(r io.Reader, size int64) ([]byte, error) {
	var pieces [][]byte
	next := 8 << 10
	if size >= 0 {
		next = int(size) + 1 // so that the end is seen
	}
	for {
		piece, n := make([]byte, next), 0
		var err error
		for n < len(piece) && err == nil {
			var k int
			k, err = r.Read(piece[n:])
			n += k
		}
		pieces = append(pieces, piece[:n:n])
		switch {
		case err == nil:
			next = max(64<<10, min(2*next, 1<<20))
		case err != io.EOF: //nolint:errorlint // no other end is a good one
			return nil, err
		case len(pieces) == 1:
			return pieces[0], nil
		default:
			return bytes.Join(pieces, nil), nil
		}
	}
}

// readFault is why an answer that began did not come to its end.
func readFault(host string, err error) *fault {
	f := describeFault(host, true, err)
	var bad *coding.Error
	switch {
	case f.timeout:
		f.text = fmt.Sprintf("host %q did not send its whole answer in time", host)
	case errors.Is(err, io.ErrUnexpectedEOF):
		f.text = fmt.Sprintf("the answer of host %q was cut off", host)
	case errors.As(err, &bad):
		f.text = fmt.Sprintf("the answer of host %q cannot be decompressed: %s", host, bad)
	}
	return f
}

// asText is bytes as text, asBytes text as bytes, without a copy: neither may
// change as long as the other is used.
func asText(raw []byte) string { return unsafe.String(unsafe.SliceData(raw), len(raw)) }
func asBytes(s string) []byte  { return unsafe.Slice(unsafe.StringData(s), len(s)) }
