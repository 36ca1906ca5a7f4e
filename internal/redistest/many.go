package redistest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// Options say how several servers are set up. The zero value is without
// password and TLS.
type Options struct {
	Password         string // of Redis
	SentinelPassword string
	TLS              *TLS
}

// TLS is a certificate for 127.0.0.1 that is its own authority.
type TLS struct {
	CertFile, KeyFile string
	pool              *x509.CertPool
}

// NewTLS makes one.
func NewTLS(t testing.TB) *TLS {
	t.Helper()
	check := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "redistest"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, &key.PublicKey, key)
	check(err)
	secret, err := x509.MarshalECPrivateKey(key)
	check(err)
	dir := t.TempDir()
	c := &TLS{CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem"), pool: x509.NewCertPool()}
	public := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	c.pool.AppendCertsFromPEM(public)
	check(os.WriteFile(c.CertFile, public, 0o600))
	check(os.WriteFile(c.KeyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret}), 0o600))
	return c
}

func (o Options) tls() *tls.Config {
	if o.TLS == nil {
		return nil
	}
	return &tls.Config{RootCAs: o.TLS.pool, MinVersion: tls.VersionTLS12}
}

// settings are those that servers and sentinels have in common: name, value, …
func (o Options) settings(port int) []string {
	if o.TLS == nil {
		return []string{"port", strconv.Itoa(port)}
	}
	return []string{"port", "0", "tls-port", strconv.Itoa(port), "tls-cert-file", o.TLS.CertFile, "tls-key-file", o.TLS.KeyFile,
		"tls-ca-cert-file", o.TLS.CertFile, "tls-auth-clients", "no", "tls-replication", "yes"}
}

// server starts a server that may be a replica.
func (o Options) server(t testing.TB, more ...string) *Server {
	t.Helper()
	return launch(t, func(s *Server) {
		s.open = func() *redis.Client {
			return redis.NewClient(&redis.Options{Addr: s.Addr, Password: o.Password, TLSConfig: o.tls(), MaxRetries: -1, Protocol: 2})
		}
		settings := append(o.settings(s.port), "appendonly", "yes", "save", "", "maxmemory-policy", "noeviction", "repl-diskless-sync", "yes",
			"repl-diskless-sync-delay", "0", "repl-ping-replica-period", "1")
		if o.Password != "" {
			settings = append(settings, "requirepass", o.Password, "masterauth", o.Password)
		}
		settings = append(settings, more...)
		s.args = nil
		for i := 0; i < len(settings); i += 2 {
			s.args = append(s.args, "--"+settings[i], settings[i+1])
		}
	})
}

// Do sends one command to the server itself.
func (s *Server) Do(args ...any) (any, error) {
	c := s.open()
	defer c.Close()
	return c.Do(context.Background(), args...).Result()
}

// Info is a field of what the server says of itself; "" if it does not answer.
func (s *Server) Info(field string) string {
	text, _ := s.Do("INFO", "everything")
	for line := range strings.Lines(fmt.Sprint(text)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), field+":"); ok {
			return value
		}
	}
	return ""
}

// Replicas are how many follow the server, and have all that it has.
func (s *Server) Replicas() int {
	text, _ := s.Do("INFO", "replication")
	return strings.Count(fmt.Sprint(text), ",state=online,")
}

func userinfo(password string) string {
	if password == "" {
		return ""
	}
	return ":" + url.QueryEscape(password) + "@"
}

func scheme(o Options, kind string) string {
	if o.TLS != nil {
		return "rediss-" + kind + "://"
	}
	return "redis-" + kind + "://"
}

func addrs(servers []*Server) string {
	all := make([]string, len(servers))
	for i, s := range servers {
		all[i] = s.Addr
	}
	return strings.Join(all, ",")
}

// until polls.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it did not come to: %s", what)
		}
	}
}
