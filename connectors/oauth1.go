package connectors

import (
	"bytes"
	"context"
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/connectors/mergefields"
	"github.com/stepworker/stepworker/credentials"
)

// oauth1Signer signs finished requests (RFC 5849 section 3).
type oauth1Signer struct {
	skew                      time.Duration // of the provider's clock
	method                    string
	consumer, consumerSecret  string
	token, tokenSecret, realm string
	key                       *rsa.PrivateKey // of RSA-SHA1
}

// signedBy is the context's key of the signer, for the redirects of a request:
// each has a signature of its own.
type signedBy struct{}

// signerOf takes the client's credentials from the account's, else from the
// client id and secret. Without a token a client signs for itself.
func (c *Caller) signerOf(d *definition.Connector, cred *credentials.Credential) (*oauth1Signer, error) {
	s := &oauth1Signer{method: d.Auth.Signature, skew: c.Skew(d.Name)}
	if o := cred.Secrets.OAuth1; o != nil {
		s.consumer, s.consumerSecret = o.ConsumerKey, o.ConsumerSecret.Reveal()
		s.token, s.tokenSecret, s.realm = o.Token.Reveal(), o.TokenSecret.Reveal(), o.Realm
	}
	if s.consumer == "" {
		s.consumer, s.consumerSecret = c.clientOf(d, cred)
	}
	if s.consumer == "" {
		return nil, lacks(d, "oauth1.consumer_key")
	}
	if s.method != "RSA-SHA1" {
		if s.consumerSecret == "" {
			return nil, lacks(d, "oauth1.consumer_secret")
		}
		if s.token != "" && s.tokenSecret == "" {
			return nil, lacks(d, "oauth1.token_secret")
		}
		return s, nil
	}
	secret := c.privateKeyOf(d, cred)
	if secret.Empty() {
		return nil, lacks(d, "private_key")
	}
	key, err := credentials.ParsePrivateKey(secret)
	if err != nil {
		return nil, &CallError{Kind: "input", Message: fmt.Sprintf("private_key: %v", err)}
	}
	var ok bool
	if s.key, ok = key.(*rsa.PrivateKey); !ok {
		return nil, &CallError{Kind: "input", Message: "private_key: RSA-SHA1 needs an RSA key"}
	}
	return s, nil
}

// attach signs a request, and has its redirects signed.
func (s *oauth1Signer) attach(req *http.Request) error {
	*req = *req.WithContext(context.WithValue(req.Context(), signedBy{}, s))
	return s.sign(req, time.Now().Add(s.skew), rand.Text())
}

// sign sets a finished request's Authorization header (RFC 5849 section 3.5.1).
func (s *oauth1Signer) sign(req *http.Request, now time.Time, nonce string) error {
	form, err := formOf(req)
	if err != nil {
		return err
	}
	params := pairs{{"oauth_consumer_key", s.consumer}, {"oauth_nonce", nonce}, {"oauth_signature_method", s.method},
		{"oauth_timestamp", strconv.FormatInt(now.Unix(), 10)}, {"oauth_version", "1.0"}}
	if s.token != "" {
		params = append(params, [2]string{"oauth_token", s.token})
	}
	signature, err := s.signature(signatureBase(req.Method, req.URL, slices.Concat(params, form)))
	if err != nil {
		return err
	}
	params = append(params, [2]string{"oauth_signature", signature})
	var b strings.Builder
	b.WriteString("OAuth ")
	if s.realm != "" { // a quoted string of HTTP's, and no part of what is signed
		b.WriteString(`realm="` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s.realm) + `", `)
	}
	for i, p := range params {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, `%s="%s"`, p[0], mergefields.Escape(p[1]))
	}
	return setHeader(req.Header, "Authorization", b.String())
}

func (s *oauth1Signer) signature(base string) (string, error) {
	if s.method == "RSA-SHA1" {
		digest := sha1.Sum([]byte(base))
		raw, err := rsa.SignPKCS1v15(nil, s.key, crypto.SHA1, digest[:])
		if err != nil {
			return "", &CallError{Kind: "input", Message: "private_key: it cannot sign by RSA-SHA1"}
		}
		return base64.StdEncoding.EncodeToString(raw), nil
	}
	h := map[string]func() hash.Hash{"HMAC-SHA1": sha1.New, "HMAC-SHA256": sha256.New}[s.method]
	mac := hmac.New(h, []byte(mergefields.Escape(s.consumerSecret)+"&"+mergefields.Escape(s.tokenSecret)))
	mac.Write([]byte(base))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil)), nil
}

// signatureBase is what is signed (RFC 5849 section 3.4.1): the method, the URL
// without its query, and all parameters: the given ones and the query's.
func signatureBase(method string, u *url.URL, params pairs) string {
	path := u.EscapedPath()
	if path == "" {
		path = "/"
	}
	all := slices.Concat(params, splitForm(u.RawQuery))
	for i, p := range all {
		all[i] = [2]string{mergefields.Escape(p[0]), mergefields.Escape(p[1])}
	}
	slices.SortFunc(all, func(a, b [2]string) int { return slices.Compare(a[:], b[:]) })
	normal := make([]string, len(all))
	for i, p := range all {
		normal[i] = p[0] + "=" + p[1]
	}
	return strings.ToUpper(method) + "&" + mergefields.Escape(originOf(u)+path) + "&" + mergefields.Escape(strings.Join(normal, "&"))
}

// formOf are the parameters of a request's body, if it is a form: no other body
// takes part (RFC 5849 section 3.4.1.3.1).
func formOf(req *http.Request) (pairs, error) {
	media, _, _ := mime.ParseMediaType(req.Header.Get("Content-Type"))
	if media != "application/x-www-form-urlencoded" || req.Body == nil || req.Body == http.NoBody {
		return nil, nil
	}
	raw, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, errors.New("the request's body cannot be read to be signed")
	}
	req.Body = io.NopCloser(bytes.NewReader(raw))
	return splitForm(string(raw)), nil
}

// splitForm reads a query or a form in its order, as HTML writes it: + is a
// space. What is percent-encoded wrongly stands as it is.
func splitForm(s string) (all pairs) {
	plain := func(s string) string {
		if decoded, err := url.QueryUnescape(s); err == nil {
			return decoded
		}
		return s
	}
	for p := range strings.SplitSeq(s, "&") {
		if p != "" {
			k, v, _ := strings.Cut(p, "=")
			all = append(all, [2]string{plain(k), plain(v)})
		}
	}
	return all
}
