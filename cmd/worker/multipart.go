package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"mime/multipart"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/stepworker/stepworker/connectors"
)

// steadyBoundary stands in recordings for a boundary that the worker made by
// chance.
const steadyBoundary = connectors.BoundaryPrefix + "boundary"

// steady is a request as it can be compared: a boundary of chance is always the
// same one.
func steady(h http.Header, body string) (http.Header, string) {
	_, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	boundary := params["boundary"]
	if err != nil || !strings.HasPrefix(boundary, connectors.BoundaryPrefix) {
		return h, body
	}
	h = h.Clone()
	h.Set("Content-Type", strings.ReplaceAll(h.Get("Content-Type"), boundary, steadyBoundary))
	return h, strings.ReplaceAll(body, boundary, steadyBoundary)
}

// plainLines writes the lines of a multipart body of texts as people write
// them; other bodies stay as they are.
func plainLines(h http.Header, body string) string {
	if !strings.HasPrefix(h.Get("Content-Type"), "multipart/") || !utf8.ValidString(body) {
		return body
	}
	if plain := strings.ReplaceAll(body, "\r\n", "\n"); !strings.Contains(plain, "\r") {
		return strings.TrimSuffix(plain, "\n")
	}
	return body
}

// shownText is a body for people: the parts of one that has several each by
// itself, and those that are no text by their size.
func shownText(body []byte, contentType string) string {
	if text, err := shownParts(body, contentType); err == nil {
		return text
	}
	return shownWhole(body, contentType)
}

func shownWhole(body []byte, contentType string) string {
	text, binary := connectors.DecodeText(body, contentType)
	if binary {
		return fmt.Sprintf("[%d bytes that are no text]", len(body))
	}
	return text
}

func shownParts(body []byte, contentType string) (string, error) {
	media, params, err := mime.ParseMediaType(contentType)
	if err != nil || !strings.HasPrefix(media, "multipart/") {
		return "", errors.New("not of parts")
	}
	var b strings.Builder
	reader := multipart.NewReader(bytes.NewReader(body), params["boundary"])
	for {
		p, err := reader.NextRawPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", err
		}
		content, err := io.ReadAll(p)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "--%s\n", params["boundary"])
		for _, k := range slices.Sorted(maps.Keys(p.Header)) {
			fmt.Fprintf(&b, "%s: %s\n", k, strings.Join(p.Header[k], ", "))
		}
		fmt.Fprintf(&b, "\n%s\n", shownWhole(content, p.Header.Get("Content-Type")))
	}
	if b.Len() == 0 {
		return "", errors.New("no parts")
	}
	fmt.Fprintf(&b, "--%s--", params["boundary"])
	return b.String(), nil
}
