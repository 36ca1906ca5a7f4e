package jobs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Results are stored as JSON; those above compressAbove as a zstd frame
// (RFC 8878) of that JSON. A frame's first byte is 0x28, which no JSON begins
// with, so a reader sees what it has. Builds without this file
// read JSON alone.

const (
	// compressAbove is the largest result that is stored as it is, in bytes.
	compressAbove = 256 << 10
	// maxResult is the most that a stored result may be once decompressed: as
	// much as Redis takes in one value, so that nobody who can write there gains
	// by compression.
	maxResult = 512 << 20
)

var zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}

// packResult writes a result as it is stored. Of a large one, content and
// fields go to the compressor as they are, with no copy of them made.
func packResult(res *Result) ([]byte, error) {
	if len(res.Content)+len(res.Fields) <= compressAbove {
		raw, err := encode(res)
		if err != nil || len(raw) <= compressAbove {
			return raw, err
		}
		return compress(int64(len(raw)), raw)
	}
	head := *res
	head.Content, head.Fields = nil, nil
	raw, err := encode(&head)
	if err != nil {
		return nil, err
	}
	parts := [][]byte{raw[:len(raw)-1]}
	for _, m := range []struct {
		name  string
		value json.RawMessage
	}{{`,"content":`, res.Content}, {`,"fields":`, res.Fields}} {
		if len(m.value) == 0 {
			continue
		}
		if !json.Valid(m.value) {
			return nil, fmt.Errorf("%s is no JSON", m.name[2:len(m.name)-2])
		}
		parts = append(parts, []byte(m.name), m.value)
	}
	parts = append(parts, []byte("}"))
	size := int64(0)
	for _, p := range parts {
		size += int64(len(p))
	}
	if size > maxResult {
		return nil, fmt.Errorf("it is larger than %d bytes", maxResult)
	}
	return compress(size, parts...)
}

// compressors are kept: each has tables of some megabytes. Of many records it
// makes a thirteenth at 450 MB/s, where gzip's fastest makes an eighth at 165.
var compressors = sync.Pool{New: func() any {
	w, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(256<<10))
	if err != nil {
		panic(err) // one of these options is none
	}
	return w
}}

func compress(size int64, parts ...[]byte) ([]byte, error) {
	w := compressors.Get().(*zstd.Encoder)
	defer compressors.Put(w)
	var out bytes.Buffer
	out.Grow(int(size / 8))
	w.ResetContentSize(&out, size)
	for _, p := range parts {
		if _, err := w.Write(p); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	w.Reset(nil) // it lets go of out
	return out.Bytes(), nil
}

// unpackResult is a stored result's JSON.
func unpackResult(raw []byte) ([]byte, error) {
	if !bytes.HasPrefix(raw, zstdMagic) {
		if len(raw) > 0 && raw[0] != '{' {
			return nil, errors.New("its form is of a newer version")
		}
		return raw, nil
	}
	return decompress(raw)
}

func decompress(raw []byte) ([]byte, error) {
	r, err := zstd.NewReader(bytes.NewReader(raw), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(maxResult))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var out bytes.Buffer
	var head zstd.Header
	if head.Decode(raw) == nil && head.HasFCS {
		out.Grow(int(min(head.FrameContentSize, maxResult)) + bytes.MinRead)
	}
	_, err = io.Copy(&out, io.LimitReader(r, maxResult+1))
	if err == nil && out.Len() > maxResult {
		err = fmt.Errorf("it is larger than %d bytes", maxResult)
	}
	return out.Bytes(), err
}
