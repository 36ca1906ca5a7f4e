package credentials

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func TestParsePrivateKey_forms(t *testing.T) {
	key := must(rsa.GenerateKey(rand.Reader, 2048))
	ec := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	pkcs1 := pemOf("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))
	sec1 := pemOf("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(ec)))
	for name, c := range map[string]struct {
		text string
		want crypto.Signer
	}{
		"RSA, PKCS #1":            {pkcs1, key},
		"RSA, PKCS #8":            {pemOf("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(key))), key},
		"RSA, \\n for line ends":  {strings.ReplaceAll(pkcs1, "\n", `\n`), key},
		"RSA, CRLF":               {" " + strings.ReplaceAll(pkcs1, "\n", "\r\n"), key},
		"EC, SEC 1":               {sec1, ec},
		"EC, as openssl ecparam":  {pemOf("EC PARAMETERS", []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}) + sec1, ec},
		"EC, PKCS #8":             {pemOf("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(ec))), ec},
		"text before the PEM key": {"Bag Attributes\n    friendlyName: acme\n" + pkcs1, key},
	} {
		got, err := ParsePrivateKey(NewSecret(c.text))
		if err != nil || !c.want.(interface{ Equal(crypto.PrivateKey) bool }).Equal(got) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A key that cannot be used is refused when it is put, by a sentence that
// quotes nothing of it.
func TestDecodeInput_privateKey(t *testing.T) {
	key := must(rsa.GenerateKey(rand.Reader, 2048))
	der := x509.MarshalPKCS1PrivateKey(key)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	encrypted := string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: der, Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00"}}))
	for name, c := range map[string]struct{ key, want string }{
		"no PEM":           {"hunter2 hunter2 hunter2", "private_key: a key in PEM is needed, which begins with -----BEGIN PRIVATE KEY-----"},
		"encrypted":        {encrypted, "private_key: the key is encrypted with a passphrase: decrypt it first (openssl pkey -in key.pem -out plain.pem)"},
		"encrypted PKCS 8": {pemOf("ENCRYPTED PRIVATE KEY", der), "private_key: the key is encrypted with a passphrase: decrypt it first (openssl pkey -in key.pem -out plain.pem)"},
		"OpenSSH":          {pemOf("OPENSSH PRIVATE KEY", der), "private_key: the key is in OpenSSH's own format: convert it first (ssh-keygen -p -m PEM -f key)"},
		"public":           {pemOf("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(&key.PublicKey))), "private_key: that is the public half: the private key is needed"},
		"cut short":        {pemOf("RSA PRIVATE KEY", der[:len(der)-40]), "private_key: the key cannot be read: an RSA or EC P-256 key is needed, PKCS #1 or PKCS #8, whole and unchanged"},
		"another curve": {pemOf("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))))),
			"private_key: the key is of another kind: RSA or EC P-256 is needed"},
		"Ed25519": {pemOf("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(ed))), "private_key: the key is of another kind: RSA or EC P-256 is needed"},
	} {
		_, err := DecodeInput(must(json.Marshal(map[string]any{"credential_id": "c", "connector": "acme", "private_key": c.key})))
		if err == nil || err.Error() != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPut_keysAndOAuth1AreSealedMergedAndMasked(t *testing.T) {
	s, server := newStore(t)
	key := pemOf("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(must(rsa.GenerateKey(rand.Reader, 2048))))
	input := string(must(json.Marshal(map[string]any{"credential_id": "c", "connector": "acme", "private_key": key,
		"oauth1": map[string]string{"consumer_key": "ck", "consumer_secret": "consumer-secret", "token": "token-text", "token_secret": "token-secret", "realm": "r"}})))
	put(t, s, input, false)
	put(t, s, `{"credential_id":"c","oauth1":{"token":"token-two"}}`, true)
	c := get(t, s)
	want := OAuth1{"ck", NewSecret("consumer-secret"), NewSecret("token-two"), NewSecret("token-secret"), "r"}
	if d := cmp.Diff(want, *c.Secrets.OAuth1, cmp.AllowUnexported(Secret{})); d != "" || c.Secrets.PrivateKey.Reveal() != key {
		t.Errorf("stored %s", d)
	}
	lines := strings.Split(key, "\n")
	dump := string(server.Dump())
	shown := fmt.Sprintf("%v %+v %#v", c.Secrets.OAuth1, *c.Secrets.OAuth1, c.Secrets.PrivateKey) + string(must(json.Marshal(c))) + dump
	masked := NewRedactor(c.SecretValues(), 6).String(strings.Join([]string{key, lines[3], string(must(json.Marshal(key))), "consumer-secret token-two token-secret"}, "\n"))
	for _, secret := range []string{"consumer-secret", "token-two", "token-secret", lines[1], lines[3]} {
		if strings.Contains(shown, secret) || strings.Contains(masked, secret) {
			t.Errorf("%q is shown", secret)
		}
	}
}
