package connectors

import (
	"crypto/ecdsa"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/connectors/jsontree"
	"github.com/stepworker/stepworker/connectors/mergefields"
	"github.com/stepworker/stepworker/credentials"
)

// The words of RFC 7523 section 2.
const (
	wireGrantJWT     = "urn:ietf:params:oauth:grant-type:jwt-bearer"
	wireAssertionJWT = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
)

// How long an assertion is good: Salesforce takes three minutes at most, Google
// and DocuSign an hour. It is issued a little in the past, as clocks differ.
const (
	assertionLife = 2 * time.Minute
	assertionAge  = 10 * time.Second
)

var errNoClientID = errors.New("there is no client_id: put one with the credential, or in the partner settings")

// assertions are the parameters by which a token request proves with the
// private key who it comes from: the grant's own assertion (RFC 7523 section
// 2.1), the client's (section 2.2), both or neither. Each is made for one
// request, with a jti of its own. The error tells what is wrong with connector
// or credential.
func (c *Caller) assertions(d *definition.Connector, cred *credentials.Credential, endpoint string, now time.Time) (url.Values, error) {
	form := url.Values{}
	bearer, client := d.Auth.Grant == definition.JWTBearer, d.Auth.AuthStyle == definition.PrivateKeyJWT
	if !bearer && !client {
		return form, nil
	}
	look := func(name string) (any, bool, bool) { return c.ownField(d, cred, name) }
	text := func(key, template string) (string, error) {
		v, ok, err := mergefields.Text(template, look)
		if err != nil {
			return "", fmt.Errorf("auth.%s: %w", key, err)
		}
		if !ok || v == "" {
			return "", fmt.Errorf("auth.%s: a merge field of %q has no value", key, template)
		}
		return v, nil
	}
	id, _ := c.clientOf(d, cred)
	audience, keyID := endpoint, ""
	var err error
	if d.Auth.Audience != "" {
		if audience, err = text("audience", d.Auth.Audience); err != nil {
			return nil, err
		}
	}
	if d.Auth.KeyID != "" {
		if keyID, err = text("key_id", d.Auth.KeyID); err != nil {
			return nil, err
		}
	}
	sign := func(claims jwt.MapClaims) (string, error) {
		claims["aud"], claims["jti"] = audience, rand.Text()
		claims["iat"], claims["exp"] = now.Add(-assertionAge).Unix(), now.Add(assertionLife).Unix()
		return c.signJWT(d, cred, claims, keyID)
	}
	if bearer {
		claims := jwt.MapClaims{}
		if len(d.Auth.Scopes) > 0 {
			claims["scope"] = strings.Join(d.Auth.Scopes, " ")
		}
		if d.Auth.Claims != nil {
			tree, _, err := mergefields.Tree(d.Auth.Claims, look)
			if err != nil {
				return nil, fmt.Errorf("auth.claims: %w", err)
			}
			maps.Copy(claims, tree.(*jsontree.Object).Values)
		}
		switch {
		case d.Auth.Issuer != "":
			if claims["iss"], err = text("issuer", d.Auth.Issuer); err != nil {
				return nil, err
			}
		case id == "":
			return nil, errNoClientID
		default:
			claims["iss"] = id
		}
		if d.Auth.Subject != "" {
			if claims["sub"], err = text("subject", d.Auth.Subject); err != nil {
				return nil, err
			}
		} else if user, _, _ := look("username"); user != nil { // a Google service account may speak for itself
			if name, ok := jsontree.Text(user); ok && name != "" {
				claims["sub"] = name
			}
		}
		signed, err := sign(claims)
		if err != nil {
			return nil, err
		}
		form.Set("grant_type", wireGrantJWT)
		form.Set("assertion", signed)
	}
	if client {
		if id == "" {
			return nil, errNoClientID
		}
		signed, err := sign(jwt.MapClaims{"iss": id, "sub": id})
		if err != nil {
			return nil, err
		}
		form.Set("client_assertion_type", wireAssertionJWT)
		form.Set("client_assertion", signed)
	}
	return form, nil
}

// signJWT signs by RS256 or ES256 (RFC 7518 section 3.1), whichever the key is for.
func (c *Caller) signJWT(d *definition.Connector, cred *credentials.Credential, claims jwt.MapClaims, keyID string) (string, error) {
	secret := c.privateKeyOf(d, cred)
	if secret.Empty() {
		return "", errors.New("there is no private_key: put one with the credential, or in the partner settings")
	}
	key, err := credentials.ParsePrivateKey(secret)
	if err != nil {
		return "", fmt.Errorf("private_key: %w", err)
	}
	var method jwt.SigningMethod = jwt.SigningMethodRS256
	if _, ok := key.(*ecdsa.PrivateKey); ok {
		method = jwt.SigningMethodES256
	}
	token := jwt.NewWithClaims(method, claims)
	if keyID != "" {
		token.Header["kid"] = keyID
	}
	signed, err := token.SignedString(key)
	if err != nil {
		return "", fmt.Errorf("private_key: it cannot sign by %s", method.Alg())
	}
	return signed, nil
}

// privateKeyOf is the private key: the credential's, else the partner's.
func (c *Caller) privateKeyOf(d *definition.Connector, cred *credentials.Credential) credentials.Secret {
	if key := cred.Secrets.PrivateKey; !key.Empty() {
		return key
	}
	return c.cfg.Partner[d.Name].PrivateKey
}
