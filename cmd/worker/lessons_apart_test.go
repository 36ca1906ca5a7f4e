package main

import (
	"bytes"
	"fmt"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/stepworker/stepworker/jobs"
)

// A hundred credentials expire at once and the token endpoint of one hangs, as
// do forty of another connector: the other 99 go on meanwhile.
func TestLessons_oneTokenEndpointHangs(t *testing.T) {
	if testing.Short() {
		t.Skip("worker processes")
	}
	t.Parallel()
	const each = 5
	w := newWorld(t)
	g := newGates(w)
	answer := make(chan struct{})
	hangs := func(_ int, rw http.ResponseWriter, r *http.Request, next http.Handler) {
		_ = r.ParseForm()
		select {
		case <-answer:
		case <-r.Context().Done():
		}
		next.ServeHTTP(rw, r)
	}
	type account struct {
		*gate
		id, connector, method string
		ids                   []string
	}
	var hanging, others []*account
	for i := range 140 {
		a := &account{id: fmt.Sprintf("a%d", i), connector: "crm", method: "list_contacts"}
		if i >= 100 {
			a.connector, a.method = "orders", "list_orders"
		}
		switch {
		case i == 0, i >= 100:
			a.gate = g.add(a.id, &gate{token: hangs})
			hanging = append(hanging, a)
		default:
			a.gate = g.add(a.id, &gate{})
			others = append(others, a)
		}
		g.expired(w, a.id, a.connector)
	}
	for _, all := range [][]*account{hanging, others} {
		for _, a := range all {
			a.ids = w.enqueue(each, jobs.Step{CredentialID: a.id, Method: a.method, MaxRetries: new(int)})
		}
	}
	w.start("")
	w.start("")
	w.until("one of them hangs", func() bool { return hanging[0].requests() == 1 })
	for _, a := range others {
		w.succeed(a.ids)
		w.requests(a.id, a.gate, 1)
	}
	for _, a := range hanging {
		if s := w.status(a.id); s.Version != 1 || a.called() != 0 {
			t.Errorf("%s: version %d, %d calls: its token endpoint has not answered", a.id, s.Version, a.called())
		}
	}
	close(answer)
	for _, a := range hanging {
		w.succeed(a.ids)
		w.requests(a.id, a.gate, 1)
	}
	w.always(0)
}

// One record of a thousand is forbidden, and the script takes any 403 for a
// dead token: that costs two refreshes, and nobody else anything.
func TestLessons_missingScopeOfOneRecord(t *testing.T) {
	if testing.Short() {
		t.Skip("worker processes")
	}
	t.Parallel()
	const forbidden = "forbidden"
	w := newWorld(t)
	g := newGates(w)
	at := g.add("c", &gate{call: func(rw http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Idempotency-Key") != forbidden {
			return false
		}
		rw.WriteHeader(http.StatusForbidden)
		return true
	}})
	g.live(w, "c", "crm")
	step := jobs.Step{CredentialID: "c", Method: "list_contacts", MaxRetries: new(int)}
	ids := w.enqueue(499, step)
	step.ExecutionID = forbidden
	one := w.enqueue(1, step)
	step.ExecutionID = ""
	ids = append(ids, w.enqueue(500, step)...)
	w.start("")
	w.start("")
	w.succeed(ids)
	results := w.results(one)
	w.failed(jobs.KindAuth, results)
	if n := at.calledFor(forbidden); n > 3 {
		t.Errorf("the forbidden record was asked for %d times, want three at most: the first, and one after each refresh", n)
	}
	if n := at.requests(); n < 1 || n > 2 {
		t.Errorf("%d token requests, want two at most", n)
	}
	w.always(1)
}

// Tokens that live shorter than the margin and any habit of refreshing early
// would like: used for as long as they live, and not renewed at every call.
func TestLessons_shortLives(t *testing.T) {
	if testing.Short() {
		t.Skip("worker processes")
	}
	t.Parallel()
	w := newWorld(t)
	g := newGates(w)
	lives := []int{5, 60, 300}
	gated := map[int]*gate{}
	for _, life := range lives {
		id := strconv.Itoa(life)
		gated[life] = g.add(id, &gate{token: func(_ int, rw http.ResponseWriter, r *http.Request, next http.Handler) {
			rec := spend(r, next)
			short := bytes.ReplaceAll(rec.Body.Bytes(), []byte(`"expires_in":3600`), []byte(`"expires_in":`+id))
			rec.Body = bytes.NewBuffer(short)
			give(rw, rec)
		}})
		g.dead(w, id, "crm")
	}
	w.start("", "--concurrency", "10")
	w.start("", "--concurrency", "10")
	var ids []string
	w.elapse(8*time.Second, func() {
		for _, life := range lives {
			ids = append(ids, w.enqueue(1, jobs.Step{CredentialID: strconv.Itoa(life), Method: "list_contacts", MaxRetries: new(int)})...)
		}
	})
	w.succeed(ids)
	for _, life := range lives[1:] {
		w.requests(fmt.Sprintf("a token that lives %d s", life), gated[life], 1)
	}
	if n := gated[5].requests(); n < 2 {
		t.Errorf("%d token requests in 8 s, of a token that lives 5 s", n)
	}
	for _, gap := range gated[5].gaps() {
		if gap < 3*time.Second {
			t.Errorf("a token that lives 5 s was renewed %s after the one before", gap)
		}
	}
	w.always(0)
}
