package main

import (
	"encoding/json"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/stepworker/stepworker/connectors/definition"
)

// recordingsIn are the recordings of a folder. What is none is not looked at:
// other text archives may lie there, and of a bad one `try --replay` tells.
func recordingsIn(folder string) (all []definition.Recording) {
	files, _ := filepath.Glob(filepath.Join(folder, "*.txtar"))
	for _, file := range files {
		r, err := readRecording(file)
		if err != nil {
			continue
		}
		var try recordedTry
		if json.Unmarshal([]byte(r.try), &try) != nil || try.Connector == "" {
			continue
		}
		all = append(all, definition.Recording{File: file, Connector: try.Connector, Answers: r.answers()})
	}
	return all
}

// answers are a recording's answers that may be what a method expects: those
// with a success status, of each request the last, since an earlier one made
// it be sent again. None of a recording that is to fail.
func (r *recording) answers() (all []definition.RecordedAnswer) {
	var want outcome
	if r.want != "" && json.Unmarshal([]byte(r.want), &want) != nil || want.Status == "failed" {
		return nil
	}
	last := map[string]int{}
	for _, e := range r.exchanges {
		first, _, _ := strings.Cut(e.request, "\n")
		verb, address, _ := strings.Cut(strings.TrimSuffix(strings.TrimSpace(first), " HTTP/1.1"), " ")
		u, err := url.Parse(anyField.ReplaceAllString(strings.TrimSpace(address), "x"))
		if err != nil || address == "" {
			continue
		}
		status, rest, _ := strings.Cut(e.response, "\n")
		code, _, _ := strings.Cut(strings.TrimSpace(strings.TrimPrefix(status, "HTTP/1.1")), " ")
		n, err := strconv.Atoi(code)
		header, body, _, err2 := parseMessage(rest)
		if err != nil || err2 != nil || n < 200 || n > 299 {
			continue
		}
		a := definition.RecordedAnswer{Number: e.number, Verb: verb, Path: u.Path, Header: header, Body: body}
		key := verb + " " + u.Path + "?" + u.RawQuery
		if i, again := last[key]; again {
			all[i] = a
			continue
		}
		last[key] = len(all)
		all = append(all, a)
	}
	return all
}
