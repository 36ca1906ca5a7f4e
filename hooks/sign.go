package hooks

import (
	"crypto"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"hash"
	"maps"
	"slices"
	"strings"

	"github.com/dop251/goja"
)

var hmacHashes = map[string]func() hash.Hash{"HMAC-SHA1": sha1.New, "HMAC-SHA256": sha256.New, "HMAC-SHA512": sha512.New}

// rsaHashes sign as RFC 8017 section 8.2 says (PKCS #1 v1.5).
var rsaHashes = map[string]crypto.Hash{
	"RSA-SHA1": crypto.SHA1, "RSA-SHA224": crypto.SHA224, "RSA-SHA256": crypto.SHA256, "RSA-SHA384": crypto.SHA384, "RSA-SHA512": crypto.SHA512,
}

// cyclrSign is cyclr_sign(algorithm, key, text): a signature in base64.
func (r *run) cyclrSign(c goja.FunctionCall) goja.Value {
	signature, err := sign(text(c.Argument(0)), text(c.Argument(1)), text(c.Argument(2)))
	if err != nil {
		r.throw("cyclr_sign: " + err.Error())
	}
	return r.vm.ToValue(base64.StdEncoding.EncodeToString(signature))
}

func sign(name, key, message string) ([]byte, error) {
	algorithm := strings.ToUpper(name)
	if h, ok := hmacHashes[algorithm]; ok {
		mac := hmac.New(h, []byte(key))
		mac.Write([]byte(message))
		return mac.Sum(nil), nil
	}
	h, ok := rsaHashes[algorithm]
	if !ok {
		known := slices.Concat(slices.Sorted(maps.Keys(hmacHashes)), slices.Sorted(maps.Keys(rsaHashes)))
		return nil, fmt.Errorf("unknown algorithm %q: there are %s", short(name, 40), strings.Join(known, ", "))
	}
	private, err := rsaKey(key)
	if err != nil {
		return nil, err
	}
	digest := h.New()
	digest.Write([]byte(message))
	signature, err := rsa.SignPKCS1v15(nil, private, h, digest.Sum(nil))
	if err != nil {
		return nil, errors.New("the key cannot sign: " + strings.TrimPrefix(err.Error(), "crypto/rsa: "))
	}
	return signature, nil
}

// rsaKey reads a private key in PEM, PKCS #1 or PKCS #8. One that came through
// a form or an environment variable may have \n for its line ends.
func rsaKey(text string) (*rsa.PrivateKey, error) {
	block, _ := pem.Decode([]byte(strings.ReplaceAll(strings.TrimSpace(text), `\n`, "\n")))
	if block == nil {
		return nil, errors.New("an RSA key is needed in PEM: -----BEGIN PRIVATE KEY-----")
	}
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the PEM block %q holds no private key, PKCS #1 or PKCS #8, that can be read", short(block.Type, 40))
	}
	key, ok := any.(*rsa.PrivateKey)
	if !ok {
		return nil, errors.New("the key is no RSA key")
	}
	return key, nil
}
