package connectors

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/connectors/httpfield"
	"github.com/stepworker/stepworker/connectors/jsontree"
	"github.com/stepworker/stepworker/connectors/location"
)

// Pages keeps of a paged call what outlives an attempt: the pages that are in,
// and where it goes on. So a call that was put off, or whose worker died, asks
// for no page twice.
type Pages interface {
	// Load returns the bookmark that was kept; nil is a call at its beginning.
	Load(ctx context.Context) (bookmark json.RawMessage, err error)
	// Keep adds a page, the n-th from 1, in the same go as the bookmark behind
	// it and action_data as it is then.
	Keep(ctx context.Context, bookmark json.RawMessage, n int, page, actionData json.RawMessage) error
	// All returns the n pages that were kept, of so many bytes in all, to be put
	// together. A CallError has the call put off.
	All(ctx context.Context, n int, size int64) ([]json.RawMessage, error)
	// Leaving says that the worker drains: after a page that was kept the call
	// ends, and another goes on.
	Leaving() bool
}

// PagesError is this worker's own fault: the pages of a call cannot be read or
// kept. It tells nothing about the call, so the execution is to be put back.
type PagesError struct{ Err error }

func (e *PagesError) Error() string {
	return "the pages of a call cannot be kept: " + e.Err.Error()
}

func (e *PagesError) Unwrap() error { return e.Err }

// pagesFactor times --max-response is how large all pages together may be.
const pagesFactor = 10

const (
	// pagesInHand is up to how many bytes the pages that are kept elsewhere stay
	// in memory too, until they are put together.
	pagesInHand = 1 << 20
)

// MaxPages is how large all pages of a call together may be, in bytes.
func (c *Caller) MaxPages() int64 { return pagesFactor * c.cfg.MaxResponse }

// bookmark is how far a paged call has come.
type bookmark struct {
	Page   int               `json:"page"`             // that comes next, from 1
	Pages  int               `json:"pages"`            // that were answered
	In     int               `json:"in"`               // of those, that make up the answer
	Size   int64             `json:"size"`             // of those, in bytes
	Began  time.Time         `json:"began"`            // the call, in its first attempt
	Next   string            `json:"next,omitempty"`   // URL of the next page
	Tokens map[string]string `json:"tokens,omitempty"` // by name: CYCLR_PAGE_TOKEN_X
	Last   string            `json:"last,omitempty"`   // fingerprint of the last request
	Came   string            `json:"came,omitempty"`   // fingerprint of the last answer
	Done   bool              `json:"done,omitempty"`   // all are in
	Masks  []string          `json:"masks,omitempty"`  // secrets that the pages may hold, also of versions renewed since
	// Of the last page, for the hooks that come after all.
	Status int             `json:"status,omitempty"`
	Reason string          `json:"reason,omitempty"`
	Header http.Header     `json:"header,omitempty"`
	Merge  json.RawMessage `json:"merge,omitempty"`
	// What its content is, see page.
	Binary   bool `json:"binary,omitempty"`
	OfXML    bool `json:"of_xml,omitempty"`
	Unparsed bool `json:"unparsed,omitempty"`
}

// book is a bookmark with the pages before it: contents, as after_action left
// them.
type book struct {
	bookmark
	hand []json.RawMessage
	away bool // all are kept, and none is in hand
}

// paged says that a call may have several requests. A login and a test have one.
func (x *exchange) paged() bool {
	return x.m.Type == definition.TypeAction && !x.call.Urgent && (x.m.Paging.Inbound || x.m.Paging.Outbound)
}

// openBook goes on where an earlier attempt ended.
func (x *exchange) openBook(ctx context.Context) error {
	x.book = book{bookmark: bookmark{Page: 1, Began: time.Now()}}
	if x.call.Pages == nil {
		return nil
	}
	mark, err := x.call.Pages.Load(ctx)
	if err == nil && mark != nil {
		err = json.Unmarshal(mark, &x.book.bookmark)
		x.book.away = true
	}
	if err != nil {
		return pagesError(err)
	}
	if len(x.book.Masks) > 0 {
		x.found, x.masks = append(x.found, x.book.Masks...), nil
	}
	return nil
}

func pagesError(err error) error {
	var ce *CallError
	if ofContext(err) || errors.As(err, &ce) {
		return err
	}
	return &PagesError{err}
}

func (b *book) add(content json.RawMessage) {
	b.In++
	b.Size += int64(len(content))
	if !b.away {
		b.hand = append(b.hand, content)
	}
}

// answered notes the last page for the hooks that come after all.
func (b *book) answered(x *exchange) {
	b.Pages++
	b.Status, b.Reason, b.Header, b.Merge = x.status, x.reason, x.resHead, x.merge
	b.Binary, b.OfXML = x.binary, x.ofXML
}

// turn puts the page that came to the others and turns to the next.
func (x *exchange) turn(ctx context.Context) error {
	b := &x.book
	if b.Done { // the next request would have been the last once more
		return nil
	}
	b.answered(x)
	if !x.paged() {
		b.add(x.content)
		b.Done, b.Unparsed = true, x.unparsed
		return nil
	}
	if x.m.Paging.Outbound { // each request is a call of its own
		if err := x.paging(ctx); err != nil {
			return err
		}
	}
	if x.unparsed {
		x.content, x.unparsed = x.parseLeft(x.content, x.m.ResponseDT), false
	}
	if same, err := x.sameAgain(); same || err != nil {
		b.Done = true
		return err
	}
	b.add(x.content)
	if most := x.c.MaxPages(); b.Size > most {
		return &CallError{Kind: "limit", Limit: LimitPages, StatusCode: x.status, Message: fmt.Sprintf("the pages together are larger than %d bytes (%d times --max-response)", most, pagesFactor)}
	}
	more, err := x.more()
	if err != nil {
		return err
	}
	if more || b.Page > 1 { // beside others it would be missing in silence
		if err := x.mustParse(x.content); err != nil {
			return err
		}
	}
	b.Last = x.fingerprint
	if b.Done = !more; more {
		b.Page++
	}
	if err := x.keep(ctx); err != nil || !more {
		return err
	}
	if x.call.Pages == nil {
		return nil
	}
	why := ""
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < x.timeout {
		why = "the time of this attempt is nearly over"
	} else if x.call.Pages.Leaving() {
		why = "this worker ends"
	}
	if why == "" {
		return nil
	}
	return &CallError{Kind: "rate", Defer: true, RetryAfter: time.Millisecond,
		Message: fmt.Sprintf("%s; the next goes on with page %d", why, b.Page)}
}

// sameAgain says that the answer is that of the page before once more: the API
// does not look at what should turn the page. What a connector's paging meets
// in a method that does not speak of pages is one thing that has a list, and at
// its end then; else that is an error, since nobody knows what is missing.
func (x *exchange) sameAgain() (bool, error) {
	b := &x.book
	if x.m.Paging.Outbound || leads(x.m) {
		return false, nil
	}
	sum := sha256.Sum256(x.came)
	before := b.Came
	b.Came = base64.RawStdEncoding.EncodeToString(sum[:12])
	if b.Page == 1 || b.Came != before {
		return false, nil
	}
	declared, _ := x.declaredLists()
	switch n := x.items(); {
	case n == 0:
		return false, nil // it has none, and ends the call
	case len(declared) == 0 && !x.m.Paging.Own && location.View(x.came).IsObject():
		return true, nil
	}
	return false, &CallError{Kind: "http", StatusCode: x.status, Message: fmt.Sprintf("page %d is the same as page %d: the API does not look at what should turn the page", b.Page, b.Page-1)}
}

// keep has the page outlive this attempt. One page alone is not kept as it comes:
// few calls of one page are put off after it.
func (x *exchange) keep(ctx context.Context) error {
	if x.book.Done && x.book.In == 1 {
		return nil
	}
	return x.keepLast(ctx, x.content)
}

// keepOnly has the only page of a call outlive an attempt that a script has put
// off after it came.
func (x *exchange) keepOnly(ctx context.Context, err error) error {
	var ce *CallError
	if len(x.book.hand) != 1 || !errors.As(err, &ce) || !ce.Defer {
		return err
	}
	if failed := x.keepLast(ctx, x.book.hand[0]); failed != nil {
		return failed
	}
	return err
}

func (x *exchange) keepLast(ctx context.Context, page json.RawMessage) error {
	b := &x.book
	if x.call.Pages == nil {
		return nil
	}
	for _, secret := range x.c.Secrets(x.d, x.cred) {
		if !slices.Contains(b.Masks, secret) {
			b.Masks = append(b.Masks, secret)
		}
	}
	mark, err := jsontree.Marshal(&b.bookmark)
	if err != nil {
		return &PagesError{err}
	}
	if err := x.call.Pages.Keep(ctx, mark, b.In, page, x.actionData); err != nil {
		return pagesError(err)
	}
	if b.Size > pagesInHand {
		b.hand, b.away = nil, true
	}
	return nil
}

// asked says that the request is the same as that for the last page: nothing in
// it turns the page, so there is no further one.
func (x *exchange) asked(req *http.Request) (again bool, err error) {
	if !x.paged() || x.m.Paging.Outbound {
		return false, nil
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s %s\n%s\n", req.Method, req.URL, x.headers)
	if req.GetBody != nil {
		body, err := req.GetBody()
		if err != nil {
			return false, err
		}
		if _, err := io.Copy(h, body); err != nil {
			return false, err
		}
	}
	x.fingerprint = base64.RawStdEncoding.EncodeToString(h.Sum(nil)[:12])
	b := &x.book
	if b.Page == 1 || x.fingerprint != b.Last {
		return false, nil
	}
	if b.Next != "" || len(b.Tokens) > 0 {
		return false, &CallError{Kind: "http", StatusCode: b.Status, Message: fmt.Sprintf("after page %d the API names that page as the next once more", b.Page-1)}
	}
	b.Done = true
	return true, nil
}

// allPages puts the pages together and runs what comes after them.
func (x *exchange) allPages(ctx context.Context) error {
	b := &x.book
	if x.params == nil { // all were in before this attempt
		if err := x.ready(ctx); err != nil {
			return err
		}
		x.binary, x.ofXML, x.unparsed = b.Binary, b.OfXML, b.Unparsed
	}
	x.status, x.reason, x.resHead, x.merge = b.Status, b.Reason, b.Header, b.Merge
	in := b.hand
	if b.away {
		var err error
		if in, err = x.call.Pages.All(ctx, b.In, b.Size); err != nil {
			return pagesError(err)
		}
	}
	content, err := x.together(in)
	if err != nil {
		return err
	}
	if x.content = content; b.In > 1 {
		x.binary, b.hand = false, nil
	}
	if !x.m.Paging.Outbound || !x.paged() {
		if err := x.paging(ctx); err != nil {
			return err
		}
	}
	if x.unparsed {
		x.content = x.parseLeft(x.content, x.m.ResponseDT)
	}
	return nil
}

// more finds out whether there is another page, and what leads to it.
func (x *exchange) more() (bool, error) {
	p, b := &x.m.Paging, &x.book
	if p.Outbound {
		return b.Page < x.slices, nil
	}
	leads := leads(x.m)
	if err := x.pointers(); err != nil {
		return false, err
	}
	if leads && b.Next == "" && len(b.Tokens) == 0 || p.MaxPages > 0 && b.Page >= p.MaxPages {
		return false, nil
	}
	if p.More != "" {
		if v, _ := x.inAnswer(p.MoreSteps); !truthy(v) {
			return false, nil
		}
	}
	if p.LastPage != "" {
		v, _ := x.inAnswer(p.LastPageSteps)
		if text, _ := jsontree.Text(v); !beyond(text, b.Page) {
			return false, nil
		}
	}
	if !leads {
		n := x.items()
		if n == 0 || p.More == "" && p.LastPage == "" && p.End != definition.EndEmpty && p.PageSize > 0 && n < p.PageSize {
			return false, nil
		}
	}
	if b.Page >= definition.MostPages {
		return false, &CallError{Kind: "limit", Limit: LimitPages, StatusCode: x.status, Message: fmt.Sprintf("the API has more than %d pages; paging.max_pages says how many are wanted", definition.MostPages)}
	}
	return true, nil
}

// leads says that answers of the method name what leads to the next page.
func leads(m *definition.Method) bool {
	return slices.ContainsFunc(m.Parameters, func(q definition.Parameter) bool { return q.Pointer() != "" })
}

// pointers reads what leads to the next page out of the answer: a URL, tokens.
func (x *exchange) pointers() (err error) {
	b := &x.book
	b.Next, b.Tokens = "", nil
	for i := range x.m.Parameters {
		q := &x.m.Parameters[i]
		name := q.Pointer()
		if name == "" {
			continue
		}
		var v any
		switch {
		case strings.EqualFold(q.Header, "Link") && name == definition.PageNextURL:
			v = httpfield.NextLink(x.resHead.Values("Link"))
		case q.Header != "":
			v = strings.TrimSpace(x.resHead.Get(q.Header))
		default:
			steps, err := location.Parse(q.Wire())
			if err != nil {
				return &CallError{Kind: "input", Message: fmt.Sprintf("parameter %q: %v", q.Name, err)}
			}
			v, _ = x.inAnswer(steps)
		}
		text, _ := jsontree.Text(v)
		if !truthy(v) {
			continue
		}
		if name != definition.PageNextURL {
			if b.Tokens == nil {
				b.Tokens = map[string]string{}
			}
			b.Tokens[name] = text
			continue
		}
		if b.Next, err = x.nextURL(text); err != nil {
			return err
		}
	}
	return nil
}

// nextURL is the next page's URL, seen from that of this page (RFC 3986
// section 5). Where an API behind a proxy names its own host with http, https
// stays https.
func (x *exchange) nextURL(text string) (string, error) {
	base, err := url.Parse(x.sentURL)
	if err != nil {
		return "", err
	}
	u, err := base.Parse(strings.TrimSpace(text))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return "", &CallError{Kind: "http", StatusCode: x.status, Message: "what should be the next page's URL is none", Detail: x.detail(text)}
	}
	if base.Scheme == "https" && u.Scheme == "http" && strings.EqualFold(u.Hostname(), base.Hostname()) && (u.Port() == "" || u.Port() == base.Port()) {
		u.Scheme = "https"
	}
	u.Fragment, u.RawFragment = "", ""
	return u.String(), nil
}

// inAnswer is a value of the page: as hooks left it, else as it came. Of a list
// it is the last.
func (x *exchange) inAnswer(steps []location.Step) (v any, found bool) {
	for _, content := range []json.RawMessage{x.content, x.came} {
		if v, found = x.dig(location.View(content), steps, nil); found {
			break
		}
	}
	if list, ok := v.([]any); ok {
		v = nil
		for _, item := range slices.Backward(list) {
			if item != nil {
				return item, true
			}
		}
	}
	return v, found
}

// beyond says that a number is larger than a page's.
func beyond(text string, page int) bool {
	n, err := strconv.ParseFloat(text, 64)
	return err == nil && n > float64(page)
}

// truthy says that a value leads on: null, false, 0 and "" do not.
func truthy(v any) bool {
	text, ok := jsontree.Text(v)
	return ok && text != "" && text != "false" && text != "0"
}

// items counts what is on the page, as the API sent it. A method whose response
// fields go through no list answers one thing, whatever lists that has.
func (x *exchange) items() int {
	declared, single := x.declaredLists()
	if single {
		return 0
	}
	for _, content := range []json.RawMessage{x.came, x.content} {
		for _, at := range declared {
			if list, ok := listAt(location.View(content), at, x.lone()); ok {
				return list.n
			}
		}
	}
	for _, content := range []json.RawMessage{x.came, x.content} {
		if at := onlyList(content); at != nil {
			if list, _ := listAt(location.View(content), at, false); list.n > 0 {
				return list.n
			}
		}
	}
	return 0
}

// declaredLists are where the lists of a page stand: what paging.list says, else
// the lists that response fields go through. single says that there are fields,
// and none of them goes through one.
func (x *exchange) declaredLists() (all [][]location.Step, single bool) {
	if len(x.m.Paging.ListSteps) > 0 {
		return [][]location.Step{x.m.Paging.ListSteps}, false
	}
	for _, f := range x.m.Fields {
		steps, err := location.Parse(f.Field)
		if err != nil || f.Field == "" {
			continue
		}
		single = true
		i := slices.IndexFunc(steps, func(s location.Step) bool { return s.List })
		if i < 0 {
			continue
		}
		at := steps[:i+1]
		if !slices.ContainsFunc(all, func(other []location.Step) bool { return slices.Equal(other, at) }) {
			all = append(all, at)
		}
	}
	return all, single && len(all) == 0
}

// lists are the locations of the lists that pages are put together by: the
// declared ones, else the answer itself, else its only member that is a list.
func (x *exchange) lists(pages []json.RawMessage) [][]location.Step {
	all, _ := x.declaredLists()
	for _, at := range all {
		for _, p := range pages {
			if _, ok := listAt(location.View(p), at, x.lone()); ok {
				return all
			}
		}
	}
	for _, p := range pages {
		if at := onlyList(p); at != nil {
			return [][]location.Step{at}
		}
	}
	return nil
}

// onlyList is the answer itself, if it is a list, else its only member that is
// one; nil where that is not certain.
func onlyList(content json.RawMessage) (at []location.Step) {
	v := location.View(content)
	if v.IsArray() {
		return []location.Step{{List: true}}
	}
	n := 0
	if v.IsObject() {
		v.ForEach(func(k, member gjson.Result) bool {
			if member.IsArray() {
				at, n = []location.Step{{Name: k.Str, List: true}}, n+1
			}
			return true
		})
	}
	if n != 1 {
		return nil
	}
	return at
}

// lone says that a list of one may stand there without being one: XML knows no
// lists.
func (x *exchange) lone() bool { return x.ofXML || x.m.ResponseDT == definition.XML }

// together merges the pages: lists are joined, other members are those of the
// last page.
func (x *exchange) together(in []json.RawMessage) (json.RawMessage, error) {
	switch len(in) {
	case 0:
		return nil, nil
	case 1:
		return in[0], nil
	}
	lists := x.lists(in)
	if len(lists) == 0 {
		return in[len(in)-1], nil
	}
	whole := in[len(in)-1]
	for _, p := range slices.Backward(in) { // the last may be nothing but an empty answer
		if _, ok := listAt(location.View(p), lists[0], x.lone()); ok {
			whole = p
			break
		}
	}
	var err error
	for _, at := range lists {
		if whole, err = x.join(in, at, whole); err != nil {
			return nil, err
		}
	}
	return whole, nil
}

// join puts the lists that stand at a location of the pages into whole, as one.
func (x *exchange) join(in []json.RawMessage, at []location.Step, whole json.RawMessage) (json.RawMessage, error) {
	var before, after json.RawMessage // in whole, of what stands there
	if v, ok := valueAt(location.View(whole), at); ok {
		before, after = whole[:v.Index], whole[v.Index+len(v.Raw):]
	}
	size := len(before) + len(after) + 2
	for _, p := range in {
		size += len(p) + 1
	}
	joined := append(append(make(json.RawMessage, 0, size), before...), '[')
	found, some := false, false
	for _, p := range in {
		list, ok := listAt(location.View(p), at, x.lone())
		if found = found || ok; !ok || list.n == 0 {
			continue
		}
		if some {
			joined = append(joined, ',')
		}
		joined, some = append(joined, list.inner...), true
	}
	joined = append(joined, ']')
	switch {
	case !found:
		return whole, nil
	case before == nil:
		return insertAt(whole, at, joined)
	}
	return append(joined, after...), nil
}

// slice cuts out of a body the part of its list that an outbound request sends.
func (x *exchange) slice(body json.RawMessage) (json.RawMessage, error) {
	p := &x.m.Paging
	x.slices = 1
	if !p.Outbound || x.call.Urgent {
		return body, nil
	}
	list, ok := listAt(location.View(body), p.OutboundSteps, false)
	if at := onlyList(body); !ok && at != nil {
		if other, _ := listAt(location.View(body), at, false); other.n > p.OutboundPageSize {
			return nil, &CallError{Kind: "input", Message: fmt.Sprintf("the body has no list at paging.outbound_location, %q; that of %d items which it has is more than a request may carry, %d",
				p.OutboundLocation, other.n, p.OutboundPageSize)}
		}
	}
	if !ok || list.n <= p.OutboundPageSize {
		return body, nil
	}
	x.slices = (list.n + p.OutboundPageSize - 1) / p.OutboundPageSize
	first := (x.book.Page - 1) * p.OutboundPageSize
	var part strings.Builder
	i := 0
	list.value.ForEach(func(_, item gjson.Result) bool {
		if i >= first && i < first+p.OutboundPageSize {
			if part.Len() > 0 {
				part.WriteByte(',')
			}
			part.WriteString(item.Raw)
		}
		i++
		return i < first+p.OutboundPageSize
	})
	return replaceAt(body, p.OutboundSteps, json.RawMessage("["+part.String()+"]"))
}

// rawList is a list within JSON text.
type rawList struct {
	value gjson.Result
	inner string // its items' text, without the brackets
	n     int
}

// listAt finds a list. Where lone is set something that is no list is a list of
// one.
func listAt(v gjson.Result, at []location.Step, lone bool) (rawList, bool) {
	v, ok := valueAt(v, at)
	switch {
	case !ok:
		return rawList{}, false
	case v.IsArray():
		l := rawList{value: v, inner: strings.TrimSpace(v.Raw)}
		l.inner = l.inner[1 : len(l.inner)-1]
		v.ForEach(func(_, _ gjson.Result) bool { l.n++; return true })
		return l, true
	case lone && v.Type != gjson.Null:
		return rawList{value: v, inner: v.Raw, n: 1}, true
	}
	return rawList{}, false
}

// valueAt follows members alone: the last step's list itself is what it finds.
func valueAt(v gjson.Result, at []location.Step) (gjson.Result, bool) {
	for _, s := range at {
		if s.Name == "" && s.List {
			continue
		}
		var ok bool
		if v, ok = location.MemberOf(v, s.Name); !ok {
			return v, false
		}
	}
	return v, v.Exists()
}

// replaceAt puts a value in place of the one at a location, or adds it.
func replaceAt(raw json.RawMessage, at []location.Step, value json.RawMessage) (json.RawMessage, error) {
	if v, ok := valueAt(location.View(raw), at); ok {
		return slices.Concat(raw[:v.Index], value, raw[v.Index+len(v.Raw):]), nil
	}
	return insertAt(raw, at, value)
}

// insertAt puts a value at a location where there is none.
func insertAt(raw json.RawMessage, at []location.Step, value json.RawMessage) (json.RawMessage, error) {
	tree, err := jsontree.Decode(raw)
	if err != nil {
		return nil, err
	}
	m, ok := tree.(*jsontree.Object)
	for i, s := range at {
		if !ok {
			return raw, nil // there is no place for it
		}
		if i == len(at)-1 {
			m.Set(s.Name, value)
			break
		}
		below, there := m.Values[s.Name]
		if !there || below == nil {
			below = &jsontree.Object{}
			m.Set(s.Name, below)
		}
		m, ok = below.(*jsontree.Object)
	}
	return jsontree.Marshal(tree)
}

// pageField is a page variable's value; nil where there is none yet.
func (x *exchange) pageField(name string) (v any, known, foreign bool) {
	p, b := &x.m.Paging, &x.book
	number := func(n int) (any, bool, bool) { return json.Number(fmt.Sprint(n)), true, false }
	page := max(b.Page, 1)
	switch {
	case name == definition.PageNumber:
		return number(page)
	case name == definition.PageOffset:
		return number((page - 1) * p.PageSize)
	case name == definition.PageSize && p.PageSize > 0:
		return number(p.PageSize)
	case name == definition.PageSize:
		return nil, true, false
	case definition.IsToken(name):
		if t, ok := b.Tokens[name]; ok {
			return t, true, true
		}
		return nil, true, false
	}
	return nil, false, false
}
