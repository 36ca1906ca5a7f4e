package hooks

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Frames between a worker and a hook host: a length, a type, a body. Bodies
// are made of length-prefixed byte strings, so that JSON passes untouched.
const (
	frameEvent    = 'E' // worker → host: run an event
	frameOutcome  = 'O' // host → worker: it ended
	frameRequest  = 'H' // host → worker: http_request
	frameStorage  = 'S' // host → worker: a storage function
	frameResponse = 'h' // worker → host: the answer of either
	frameFault    = 'f' // worker → host: its fault, as text
	frameLate     = 't' // worker → host: the event's time is up, there is no answer
	frameHello    = 'Y' // host → worker: ready, or done compiling
	frameCompile  = 'C' // host → worker: compiling a source it did not know, with its hash
)

// maxFrame is the largest frame, in bytes: what an event may leave, its result,
// and what it says.
const maxFrame = 2*maxOutput + 4<<20

type frameWriter struct{ b []byte }

func (w *frameWriter) bytes(p []byte) {
	w.b = binary.AppendUvarint(w.b, uint64(len(p)))
	w.b = append(w.b, p...)
}

func (w *frameWriter) text(s string) {
	w.b = binary.AppendUvarint(w.b, uint64(len(s)))
	w.b = append(w.b, s...)
}

func (w *frameWriter) num(n int) { w.b = binary.AppendUvarint(w.b, uint64(n)) }

func (w *frameWriter) flag(b bool) {
	if b {
		w.num(1)
	} else {
		w.num(0)
	}
}

// optional writes nil apart from empty.
func (w *frameWriter) optional(p []byte) {
	w.flag(p != nil)
	if p != nil {
		w.bytes(p)
	}
}

var errFrame = errors.New("a frame cannot be read")

type frameReader struct {
	b   []byte
	bad bool
}

func (r *frameReader) num() int {
	n, size := binary.Uvarint(r.b)
	if size <= 0 || n > maxFrame {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[size:]
	return int(n)
}

func (r *frameReader) bytes() []byte {
	n := r.num()
	if n > len(r.b) {
		r.bad, r.b = true, nil
		return nil
	}
	p := r.b[:n:n]
	r.b = r.b[n:]
	return p
}

func (r *frameReader) text() string { return string(r.bytes()) }
func (r *frameReader) flag() bool   { return r.num() == 1 }

func (r *frameReader) optional() []byte {
	if !r.flag() {
		return nil
	}
	return r.bytes()
}

// writeFrame writes a frame in one go, but for one that a copy would cost more
// than a second write.
func writeFrame(w io.Writer, kind byte, body []byte) error {
	frame := make([]byte, 5, 5+min(len(body), copied))
	binary.BigEndian.PutUint32(frame, uint32(len(body)))
	frame[4] = kind
	if len(body) <= copied {
		frame = append(frame, body...)
		body = nil
	}
	_, err := w.Write(frame)
	if err == nil && body != nil {
		_, err = w.Write(body)
	}
	return err
}

const copied = 64 << 10

func readFrame(r *bufio.Reader) (kind byte, body []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[:4])
	if n > maxFrame {
		return 0, nil, fmt.Errorf("%w: %d bytes", errFrame, n)
	}
	body = make([]byte, n)
	_, err = io.ReadFull(r, body)
	return head[4], body, err
}
