package credentials

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"strings"
)

// minRSA is what Go signs with; OAuth 1.0a providers of old ask for no more.
const minRSA = 1024

// ParsePrivateKey reads a private key in PEM: RSA of 1024 bits or more (PKCS #1,
// RFC 8017 appendix A.1.2), EC P-256 (RFC 5915), or either as PKCS #8 (RFC 5958).
// One that came through a form or an environment variable may have \n for its
// line ends. Errors say what to do and quote nothing of the key.
func ParsePrivateKey(s Secret) (crypto.Signer, error) {
	rest := []byte(strings.ReplaceAll(strings.TrimSpace(s.text), `\n`, "\n"))
	block, rest := pem.Decode(rest)
	if block != nil && block.Type == "EC PARAMETERS" { // as openssl ecparam writes them before the key
		block, _ = pem.Decode(rest)
	}
	if block == nil {
		return nil, errors.New("a key in PEM is needed, which begins with -----BEGIN PRIVATE KEY-----")
	}
	var key any
	var err error
	switch {
	case block.Type == "ENCRYPTED PRIVATE KEY", strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED"):
		return nil, errors.New("the key is encrypted with a passphrase: decrypt it first (openssl pkey -in key.pem -out plain.pem)")
	case block.Type == "OPENSSH PRIVATE KEY":
		return nil, errors.New("the key is in OpenSSH's own format: convert it first (ssh-keygen -p -m PEM -f key)")
	case block.Type == "PUBLIC KEY", block.Type == "RSA PUBLIC KEY", block.Type == "CERTIFICATE":
		return nil, errors.New("that is the public half: the private key is needed")
	case block.Type == "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case block.Type == "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	}
	switch key := key.(type) {
	case *rsa.PrivateKey:
		if err == nil && key.N.BitLen() >= minRSA {
			return key, nil
		}
		if err == nil {
			return nil, errors.New("the RSA key is too short: 1024 bits at least are needed, 2048 for RS256")
		}
	case *ecdsa.PrivateKey:
		if err == nil && key.Curve == elliptic.P256() {
			return key, nil
		}
	}
	if err != nil {
		return nil, errors.New("the key cannot be read: an RSA or EC P-256 key is needed, PKCS #1 or PKCS #8, whole and unchanged")
	}
	return nil, errors.New("the key is of another kind: RSA or EC P-256 is needed")
}

// KeyParts are the texts of a PEM key that must not be shown: all of it, and
// each line of it alone, as a script that takes it to pieces may show them.
func KeyParts(s Secret) []string {
	all := []string{s.text}
	for line := range strings.FieldsFuncSeq(strings.ReplaceAll(s.text, `\n`, "\n"), func(r rune) bool { return r == '\n' || r == '\r' }) {
		if line = strings.TrimSpace(line); len(line) >= 16 && !strings.HasPrefix(line, "-----") {
			all = append(all, line)
		}
	}
	return all
}
