package jobs

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/oklog/ulid/v2"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"golang.org/x/sync/errgroup"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/internal/killpoint"
)

const (
	notifyEvery   = time.Second
	notifyTimeout = 15 * time.Second // of one post
	notifyWidth   = 16               // credentials at once
	// notifyLease is how long one worker is the only sender, counted anew before
	// each post, which ends well within it.
	notifyLease     = 2 * notifyTimeout
	wantEvery       = time.Minute
	firstNotifyWait = 5 * time.Second
	lastNotifyWait  = time.Hour
)

// Results of an attempt to tell a notice, as the metric has them.
const (
	noticeDelivered = "delivered"
	noticeRetried   = "retried"
	noticeGivenUp   = "given_up"
)

// notifier posts what credentials have to tell, signed by the Standard Webhooks
// specification: those of one credential in order, by one worker at a time. A
// notice is posted until it is answered with 2xx, or too old.
type notifier struct {
	p      *Pool
	me     string
	url    string
	signer *standardwebhooks.Webhook
	http   *http.Client

	wanted time.Time    // when that was last said; of one goroutine
	pause  atomic.Int64 // ms: the receiver asked for quiet until then
}

// CheckNotifyURL says what is wrong with an address for notices.
func CheckNotifyURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return errors.New("an address such as https://ops.example/stepworker is needed") // it may hold a password
	}
	return nil
}

const notifySecretPrefix = "whsec_"

// CheckNotifySecret says what is wrong with a signing secret.
func CheckNotifySecret(s credentials.Secret) error {
	_, err := notifyKey(s)
	return err
}

func notifyKey(s credentials.Secret) ([]byte, error) {
	text, ok := strings.CutPrefix(s.Reveal(), notifySecretPrefix)
	key, err := base64.StdEncoding.DecodeString(text)
	if !ok || err != nil || len(key) < 24 || len(key) > 64 {
		return nil, errors.New("a signing secret is whsec_ and 24 to 64 bytes in base64, such as whsec_$(worker key new)")
	}
	return key, nil
}

func newNotifier(p *Pool) (*notifier, error) {
	if err := CheckNotifyURL(p.cfg.NotifyURL); err != nil {
		return nil, fmt.Errorf("NotifyURL: %w", err)
	}
	key, err := notifyKey(p.cfg.NotifySecret)
	if err != nil {
		return nil, fmt.Errorf("NotifySecret: %w", err)
	}
	signer, err := standardwebhooks.NewWebhookRaw(key)
	if err != nil {
		return nil, err
	}
	n := &notifier{p: p, me: ulid.Make().String(), url: p.cfg.NotifyURL, signer: signer}
	// The address is the operator's own: no policy of APIs stands before it. A
	// redirect is an answer like any other that is not 2xx.
	n.http = &http.Client{Timeout: notifyTimeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	if t, ok := http.DefaultTransport.(*http.Transport); ok {
		n.http.Transport = t.Clone()
	}
	return n, nil
}

// want keeps Redis told that notices are wanted.
func (n *notifier) want(ctx context.Context) {
	if time.Since(n.wanted) < wantEvery {
		return
	}
	if err := n.p.cfg.Store.WantNotices(ctx); err == nil {
		n.wanted = time.Now()
	}
}

// run tells what is due, if this worker is the one that does.
func (n *notifier) run(ctx context.Context) {
	n.want(ctx)
	for n.mayPost(ctx) {
		due, err := n.p.cfg.Store.DueNotices(ctx, 2*notifyWidth)
		if err != nil || len(due) == 0 {
			return
		}
		var g errgroup.Group
		g.SetLimit(notifyWidth)
		var told atomic.Int64
		for _, d := range due {
			g.Go(func() error {
				told.Add(n.of(ctx, d))
				return nil
			})
		}
		_ = g.Wait()
		if told.Load() == 0 {
			return // those that are left rest
		}
	}
}

// of tells a credential's notices, oldest first, until one is not taken; done
// is how many attempts there were.
func (n *notifier) of(ctx context.Context, d credentials.Noticing) (done int64) {
	for {
		notice, err := n.p.cfg.Store.NextNotice(ctx, d.CredentialID)
		if err != nil {
			return done
		}
		if notice == nil {
			_ = n.p.cfg.Store.RestNotices(ctx, d) // else it is looked at again
			return done
		}
		if !n.mayPost(ctx) {
			return done
		}
		done++
		if !n.tell(ctx, notice) {
			return done
		}
	}
}

// mayPost says that this worker is the sender for as long as one post takes,
// and that there is time for one.
func (n *notifier) mayPost(ctx context.Context) bool {
	if end, ok := ctx.Deadline(); ok && time.Until(end) < notifyTimeout || time.Now().UnixMilli() < n.pause.Load() {
		return false
	}
	select {
	case <-n.p.stop:
		return false
	default:
	}
	is, err := n.p.cfg.Store.SendNotices(ctx, n.me, notifyLease)
	return err == nil && is
}

// tell posts a notice once, and notes what came of it; true if it is done with.
func (n *notifier) tell(ctx context.Context, notice *credentials.Notice) bool {
	killpoint.KillPoint("notice-before-post")
	log := n.p.log.With("type", noticeType(notice), "credential_id", notice.CredentialID, "webhook_id", noticeID(notice), "attempts", notice.Attempts+1)
	status, wait, err := n.post(ctx, notice)
	killpoint.KillPoint("notice-posted")
	if ctx.Err() != nil {
		return false // cut off: not the receiver's fault
	}
	switch delay := max(notifyDelay(notice.Attempts), wait); {
	case err == nil && status/100 == 2:
		n.p.metrics.notices.WithLabelValues(noticeType(notice), noticeDelivered).Inc()
		log.Info("notice delivered")
		return n.done(ctx, notice, log)
	case status == http.StatusGone, time.Now().Add(delay).After(notice.At.Add(credentials.NoticeLife)):
		n.p.metrics.notices.WithLabelValues(noticeType(notice), noticeGivenUp).Inc()
		log.Error("notice given up", "status", status, "error", errText(err))
		return n.done(ctx, notice, log)
	default:
		n.p.metrics.notices.WithLabelValues(noticeType(notice), noticeRetried).Inc()
		log.Warn("notice not delivered, is tried again", "status", status, "error", errText(err), "next_try", time.Now().Add(delay).UTC())
		if wait > 0 {
			n.pause.Store(time.Now().Add(wait).UnixMilli())
		}
		if err := n.p.cfg.Store.NoticeFailed(ctx, notice, delay); err != nil {
			log.Warn("redis cannot be written: the notice is tried again sooner")
		}
		return false
	}
}

func (n *notifier) done(ctx context.Context, notice *credentials.Notice, log *slog.Logger) bool {
	if err := n.p.cfg.Store.NoticeDone(ctx, notice); err != nil {
		log.Warn("redis cannot be written: the notice will be posted once more, with the same webhook-id")
		return false
	}
	return true
}

// post sends a notice; wait is what a 429 or 503 asks for.
func (n *notifier) post(ctx context.Context, notice *credentials.Notice) (status int, wait time.Duration, err error) {
	body, err := json.Marshal(eventOf(notice))
	if err != nil {
		return 0, 0, err
	}
	now, id := time.Now(), noticeID(notice)
	signature, err := n.signer.Sign(id, now, body)
	if err != nil {
		return 0, 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, n.url, bytes.NewReader(body))
	if err != nil {
		return 0, 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "stepworker")
	req.Header.Set(standardwebhooks.HeaderWebhookID, id)
	req.Header.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(now.Unix(), 10))
	req.Header.Set(standardwebhooks.HeaderWebhookSignature, signature)
	res, err := n.http.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10)) // so that the connection can be used again
	if res.StatusCode == http.StatusTooManyRequests || res.StatusCode == http.StatusServiceUnavailable {
		wait = connectors.RetryAfter(res.Header)
	}
	return res.StatusCode, wait, nil
}

// leave lets another worker go on at once.
func (n *notifier) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, _ = n.p.cfg.Store.SendNotices(ctx, n.me, 0)
	n.http.CloseIdleConnections()
}

// event is what is posted. Its members are promises to receivers.
type event struct {
	Type      string    `json:"type"`
	Timestamp time.Time `json:"timestamp"`
	Data      eventData `json:"data"`
}

type eventData struct {
	CredentialID      string              `json:"credential_id"`
	Connector         string              `json:"connector"`
	AccountID         string              `json:"account_id"`
	ExternalAccountID string              `json:"external_account_id"`
	State             credentials.State   `json:"state"`
	Since             *time.Time          `json:"since"`
	Version           int64               `json:"version"`
	Verdict           credentials.Verdict `json:"verdict,omitempty"`
	Status            int                 `json:"status,omitempty"`
	Error             string              `json:"error,omitempty"`
	NextTry           *time.Time          `json:"next_try,omitempty"`
	Waiting           int64               `json:"waiting"`
}

func eventOf(n *credentials.Notice) event {
	return event{noticeType(n), n.At.UTC(), eventData{n.CredentialID, n.Connector, n.AccountID, n.ExternalAccountID,
		n.State, utc(n.Since), n.Version, n.Verdict, n.Status, n.Error, utc(n.NextTry), n.Waiting}}
}

func noticeType(n *credentials.Notice) string { return "credential." + n.What }

func noticeID(n *credentials.Notice) string { return "msg_" + n.ID }

// notifyDelay is how long to wait after the n-th failed attempt in a row.
func notifyDelay(n int) time.Duration {
	d := min(firstNotifyWait<<min(n, 20), lastNotifyWait)
	return d/2 + rand.N(d/2+1)
}

// errText is a fault without the address, which may hold a password.
func errText(err error) string {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	if err == nil {
		return ""
	}
	return clip(err.Error(), 200)
}

func utc(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}
