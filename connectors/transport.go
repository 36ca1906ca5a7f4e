package connectors

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/stepworker/stepworker/connectors/coding"
)

// policyError is an address that the network policy refuses.
type policyError struct{ host string }

func (e *policyError) Error() string {
	return fmt.Sprintf("host %q is at an address that the network policy refuses (see --allow-private-network, --allow-network)", e.host)
}

// policy decides on addresses at dial time, after the name was resolved.
type policy struct {
	private  bool
	networks []netip.Prefix

	mu        sync.RWMutex
	forbidden map[netip.AddrPort]bool
	closed    map[uint16]bool // ports that no address of this machine may be asked on
}

func newPolicy(cfg *CallerConfig) (*policy, error) {
	p := &policy{private: cfg.AllowPrivate, forbidden: map[netip.AddrPort]bool{}, closed: map[uint16]bool{}}
	for _, n := range cfg.AllowNetworks {
		prefix, err := netip.ParsePrefix(n)
		if err != nil {
			return nil, fmt.Errorf("network %q is not in CIDR notation", n)
		}
		p.networks = append(p.networks, prefix.Masked())
	}
	p.forbid(cfg.Forbidden)
	return p, nil
}

// forbid refuses these addresses, too, from now on.
func (p *policy) forbid(hostports []string) {
	for _, f := range hostports {
		host, port, err := net.SplitHostPort(f)
		if err != nil {
			continue
		}
		if host == "" { // as net.Listen takes it
			host = "0.0.0.0"
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			continue
		}
		ips, err := net.LookupIP(host)
		if err != nil {
			continue
		}
		for _, ip := range ips {
			if a, ok := netip.AddrFromSlice(ip); ok {
				a = a.Unmap()
				own := ours(a) // what listens on one of our addresses may be reached by another
				p.mu.Lock()
				p.forbidden[netip.AddrPortFrom(a, uint16(n))] = true
				if own {
					p.closed[uint16(n)] = true
				}
				p.mu.Unlock()
			}
		}
	}
}

// reserved are networks that are no public addresses (IANA special-purpose
// registries) and that package netip has no word for.
var reserved = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("240.0.0.0/4"), netip.MustParsePrefix("64:ff9b::/96"),
	netip.MustParsePrefix("64:ff9b:1::/48"), netip.MustParsePrefix("100::/64"), netip.MustParsePrefix("2001::/23"),
	netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("2002::/16"),
}

func (p *policy) allows(ap netip.AddrPort) bool {
	a := ap.Addr().Unmap().WithZone("")
	p.mu.RLock()
	forbidden, closed := p.forbidden[netip.AddrPortFrom(a, ap.Port())], p.closed[ap.Port()]
	p.mu.RUnlock()
	if a.IsUnspecified() || forbidden || closed && ours(a) {
		return false
	}
	for _, n := range p.networks {
		if n.Contains(a) && (!a.IsLinkLocalUnicast() || withinLinkLocal(n)) {
			return true
		}
	}
	switch {
	case a.IsLinkLocalUnicast(), a.IsMulticast():
		return false
	case a.IsLoopback(), a.IsPrivate():
		return p.private
	}
	for _, n := range reserved {
		if n.Contains(a) {
			return false
		}
	}
	return true
}

// ours says that an address is this machine's own, as its interfaces are now.
func ours(a netip.Addr) bool {
	if a.IsLoopback() || a.IsUnspecified() {
		return true
	}
	addrs, err := net.InterfaceAddrs()
	for _, i := range addrs {
		if n, ok := i.(*net.IPNet); ok && n.IP.Equal(a.AsSlice()) {
			return true
		}
	}
	return err != nil // not known: refuse
}

// withinLinkLocal says that a network names link-local addresses, and does
// not only happen to hold them (RFC 3927, RFC 4291 section 2.5.6).
func withinLinkLocal(n netip.Prefix) bool {
	bits := 16
	if n.Addr().Is6() {
		bits = 10
	}
	return n.Addr().IsLinkLocalUnicast() && n.Bits() >= bits
}

func (p *policy) transport() *http.Transport {
	dialer := &net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second, Control: func(network, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil || !p.allows(ap) {
			return &policyError{}
		}
		return nil
	}}
	return &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, addr)
			var refused *policyError
			if errors.As(err, &refused) {
				host, _, _ := net.SplitHostPort(addr)
				return nil, &policyError{host}
			}
			return c, err
		},
		ForceAttemptHTTP2: true, MaxIdleConns: 2000, MaxIdleConnsPerHost: 256, IdleConnTimeout: 90 * time.Second,
		TLSHandshakeTimeout: 15 * time.Second, ExpectContinueTimeout: time.Second,
		DisableCompression: true, // what net/http decodes by itself it cannot tell of, and of several header lines it reads one
	}
}

// fault is a request that got no answer.
type fault struct {
	sent    bool // something may have reached the server
	refused *policyError
	timeout bool
	coded   *codingError // there is an answer, but nobody here reads it
	text    string       // free of secrets
}

func (f *fault) Error() string { return f.text }

// transport is net/http's, which sends a request again on its own where a
// connection that it had kept ended under it: any GET, and whatever carries an
// Idempotency-Key. Requests marked with sendOnce it sends once. Answers come
// without their content codings, of which no layer may be larger than max.
type transport struct {
	*http.Transport
	max int64
}

type sendOnce struct{}

// RoundTrip implements http.RoundTripper.
func (t transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if h := req.Header; h.Get("Accept-Encoding") == "" && h.Get("Range") == "" && req.Method != http.MethodHead {
		asking := *req // a RoundTripper may not change a request
		asking.Header = h.Clone()
		asking.Header.Set("Accept-Encoding", "gzip")
		req = &asking
	}
	res, err := t.roundTrip(req)
	if err == nil {
		coding.Undo(res, t.max)
	}
	return res, err
}

func (t transport) roundTrip(req *http.Request) (*http.Response, error) {
	if req.Context().Value(sendOnce{}) == nil {
		return t.Transport.RoundTrip(req)
	}
	once := *req
	switch req.Method {
	case http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete:
		// Sent again only for these headers, which net/http looks up by their
		// canonical names; on the wire case means nothing (RFC 9110 section 5.1).
		once.Header = req.Header.Clone()
		for _, name := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
			if v, ok := once.Header[name]; ok {
				delete(once.Header, name)
				once.Header[strings.ToLower(name)] = v
			}
		}
	default:
		// A body that cannot be had again. An empty one leaves no trace.
		if once.GetBody = nil; once.Body == nil {
			once.Body = io.NopCloser(strings.NewReader(""))
		}
	}
	return t.Transport.RoundTrip(&once)
}

// send makes one request through the guarded transport. Redirects are
// followed for GET and HEAD, on the same host, five at most. again says that
// the request may reach the server twice.
func (c *Caller) send(req *http.Request, again bool, what told) (*http.Response, *fault) {
	req, span := c.startRequest(req, what)
	var sent atomic.Bool
	trace := &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }}
	ctx := httptrace.WithClientTrace(req.Context(), trace)
	if !again {
		ctx = context.WithValue(ctx, sendOnce{}, true)
	}
	req = req.WithContext(ctx)
	res, err := c.client.Do(req)
	var f *fault
	if err != nil {
		res, f = nil, describeFault(req.URL.Host, sent.Load(), err)
	}
	endRequest(span, what, res, f)
	return res, f
}

// answered tells of a request that has ended.
func (c *Caller) answered(connector string, status int, begun time.Time) {
	if c.cfg.OnAnswer != nil {
		c.cfg.OnAnswer(connector, status, time.Since(begun))
	}
}

// describeFault converts a URL error: its own text holds the whole URL.
func describeFault(host string, sent bool, err error) *fault {
	f := &fault{sent: sent}
	var dns *net.DNSError
	var op *net.OpError
	var ne net.Error
	switch {
	case errors.As(err, &f.refused):
		f.text = f.refused.Error()
	case errors.As(err, &dns):
		f.text = fmt.Sprintf("host %q cannot be resolved", host)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &ne) && ne.Timeout():
		f.timeout, f.text = true, fmt.Sprintf("host %q did not answer in time", host)
	case errors.As(err, &op) && op.Op == "dial":
		f.text = fmt.Sprintf("host %q cannot be reached: %s", host, FaultCause(err))
	default:
		f.text = fmt.Sprintf("the connection to host %q broke: %s", host, FaultCause(err))
	}
	return f
}

// FaultCause is why a connection failed, without the address that Go tells
// beside it.
func FaultCause(err error) string {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	text := err.Error()
	if i := strings.LastIndex(text, ": "); i >= 0 {
		text = text[i+2:]
	}
	return text
}

func checkRedirect(req *http.Request, via []*http.Request) error {
	first := via[0]
	if first.Method != http.MethodGet && first.Method != http.MethodHead || len(via) > 5 ||
		originOf(req.URL) != originOf(first.URL) {
		return http.ErrUseLastResponse
	}
	// net/http takes a host in other letters for another host.
	maps.Copy(req.Header, first.Header)
	req.Header.Del("Referer")
	if signer, ok := req.Context().Value(signedBy{}).(*oauth1Signer); ok { // a signature is of one URL
		return signer.sign(req, time.Now().Add(signer.skew), rand.Text())
	}
	return nil
}

// RetryAfter is how long an answer asks to wait; 0: it does not say.
func RetryAfter(h http.Header) time.Duration { return retryAfter(h) }

// retryAfter reads Retry-After: seconds or a date (RFC 9110 section 10.2.3).
func retryAfter(h http.Header) time.Duration {
	v := strings.TrimSpace(h.Get("Retry-After"))
	if s, err := strconv.ParseFloat(v, 64); err == nil && s > 0 && s < 1e8 {
		return time.Duration(s * float64(time.Second))
	}
	if at, err := http.ParseTime(v); err == nil {
		now := time.Now()
		if date, err := http.ParseTime(h.Get("Date")); err == nil {
			now = date // the server's own clock
		}
		return max(at.Sub(now), time.Second)
	}
	return 0
}
