package connectors

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stepworker/stepworker/connectors/mergefields"
)

// The examples that RFC 5849 and Twitter's documentation print.
func TestOAuth1_documentedVectors(t *testing.T) {
	parse := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	t.Run("RFC 5849 section 3.4.1.1", func(t *testing.T) {
		params := pairs{{"oauth_consumer_key", "9djdj82h48djs9d2"}, {"oauth_token", "kkk9d7dh3k39sjv7"}, {"oauth_signature_method", "HMAC-SHA1"},
			{"oauth_timestamp", "137131201"}, {"oauth_nonce", "7d8f3e4a"}}
		got := signatureBase("post", parse("http://EXAMPLE.COM:80/request?b5=%3D%253D&a3=a&c%40=&a2=r%20b"), append(params, splitForm("c2&a3=2+q")...))
		want := "POST&http%3A%2F%2Fexample.com%2Frequest&a2%3Dr%2520b%26a3%3D2%2520q%26a3%3Da%26b5%3D%253D%25253D%26c%2540%3D%26c2%3D%26" +
			"oauth_consumer_key%3D9djdj82h48djs9d2%26oauth_nonce%3D7d8f3e4a%26oauth_signature_method%3DHMAC-SHA1%26oauth_timestamp%3D137131201%26oauth_token%3Dkkk9d7dh3k39sjv7"
		if got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	})
	t.Run("RFC 5849 section 1.2", func(t *testing.T) {
		s := &oauth1Signer{method: "HMAC-SHA1", consumerSecret: "kd94hf93k423kf44", tokenSecret: "pfkkdhi9sl3r4s00"}
		params := pairs{{"oauth_consumer_key", "dpf43f3p2l4k3l03"}, {"oauth_token", "nnch734d00sl2jdk"}, {"oauth_signature_method", "HMAC-SHA1"},
			{"oauth_timestamp", "137131202"}, {"oauth_nonce", "chapoH"}}
		got, err := s.signature(signatureBase("GET", parse("http://photos.example.net/photos?file=vacation.jpg&size=original"), params))
		if err != nil || mergefields.Escape(got) != "MdpQcU8iPSUjWoN%2FUDMsK2sui9I%3D" {
			t.Errorf("%s, %v", got, err)
		}
	})
	t.Run("Twitter, creating a signature", func(t *testing.T) {
		s := &oauth1Signer{method: "HMAC-SHA1", consumer: "xvz1evFS4wEEPTGEFPHBog", consumerSecret: "kAcSOqF21Fu85e7zjz7ZN2U4ZRhfV3WpwPAoE3Z7kBw",
			token: "370773112-GmHxMAgYyLbNEtIKZeRNFsMKPR9EyMZeS9weJAEb", tokenSecret: "LswwdoUaIvS8ltyTt5jkRh4J50vUPVVHtR2YPi5kE", realm: `a "b"`}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://api.twitter.com/1.1/statuses/update.json?include_entities=true",
			strings.NewReader("status=Hello%20Ladies%20%2b%20Gentlemen%2c%20a%20signed%20OAuth%20request%21"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
		if err := s.sign(req, time.Unix(1318622958, 0), "kYjzVBB8Y0ZFabxSWbWovY3uYSQ2pTgmZeNu2VS4cg"); err != nil {
			t.Fatal(err)
		}
		want := `OAuth realm="a \"b\"", oauth_consumer_key="xvz1evFS4wEEPTGEFPHBog", oauth_nonce="kYjzVBB8Y0ZFabxSWbWovY3uYSQ2pTgmZeNu2VS4cg", oauth_signature_method="HMAC-SHA1", ` +
			`oauth_timestamp="1318622958", oauth_version="1.0", oauth_token="370773112-GmHxMAgYyLbNEtIKZeRNFsMKPR9EyMZeS9weJAEb", oauth_signature="hCtSmYh%2BiHYCEqBWrE7C7hYmtUk%3D"`
		if got := req.Header.Get("Authorization"); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	})
}
