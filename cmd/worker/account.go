package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/stepworker/stepworker/connectors"
	"github.com/stepworker/stepworker/connectors/definition"
	"github.com/stepworker/stepworker/connectors/jsontree"
	"github.com/stepworker/stepworker/credentials"
	"github.com/stepworker/stepworker/jobs"
)

// account is whose credential a try uses, and where a renewal of it goes.
type account struct {
	cred   *credentials.Credential
	store  *credentials.Store // of Redis; nil: it is not from there
	client *jobs.Client
	file   string // of the credential, to be written back; "" without
	fixed  string // why it may not be renewed; "" it may
}

// readCredential reads a file that holds one credential, as `put` reads it.
func readCredential(file string) (*credentials.Credential, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read", file)
	}
	c, err := decodeCredential(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

func decodeCredential(raw []byte) (*credentials.Credential, error) {
	in, err := credentials.DecodeInput(raw)
	if err != nil {
		return nil, err
	}
	return in.Credential()
}

// due is the kind of renewal that the pool would make before any call.
func (a *account) due(c *connectors.Caller, d *definition.Connector) (kind credentials.Kind, why string) {
	now, m := time.Now(), &a.cred.Meta
	oauth2, session := c.CanRefresh(d, a.cred)
	switch {
	case m.Refused:
		return m.RefusedKind, "the credential is known refused"
	case oauth2 && m.Token.Over(now):
		return credentials.OAuth2, "the token has expired"
	case session && m.Session.Over(now):
		return credentials.Session, "the session has expired"
	}
	return "", ""
}

// renew renews the credential as the pool does: by the store's lease where it
// is from there, so that nobody else asks with the same refresh token.
func (a *account) renew(ctx context.Context, c *connectors.Caller, d *definition.Connector, kind credentials.Kind, ask credentials.RefreshFunc) error {
	if err := a.once(ctx, c, d, kind, ask); err != nil {
		return err
	}
	if kind != credentials.OAuth2 && kind != credentials.Opening || a.cred.Secrets.Opened || d.LoginMethod == "" && d.TestMethod == "" {
		return nil
	}
	opens := credentials.OAuth2
	if d.LoginMethod != "" {
		opens = credentials.Session
	}
	return a.once(ctx, c, d, opens, func(ctx context.Context, cred *credentials.Credential) (*credentials.Renewal, error) {
		return c.Open(ctx, d, cred)
	})
}

func (a *account) once(ctx context.Context, c *connectors.Caller, d *definition.Connector, kind credentials.Kind, ask credentials.RefreshFunc) error {
	if a.store != nil {
		return a.throughStore(ctx, c, d, kind, ask)
	}
	r, err := ask(ctx, a.cred)
	if err != nil {
		return err
	}
	if r.Tested {
		return nil
	}
	a.cred = a.cred.Renewed(r)
	if a.file != "" {
		if err := writeBack(a.file, r, &a.cred.Secrets); err != nil {
			return fmt.Errorf("the new secrets could not be written to %s: %w", a.file, err)
		}
	}
	if r.Problem != nil {
		return r.Problem
	}
	return nil
}

func (a *account) throughStore(ctx context.Context, c *connectors.Caller, d *definition.Connector, kind credentials.Kind, ask credentials.RefreshFunc) error {
	if kind == credentials.Opening || kind == credentials.Testing {
		kind = credentials.Session
	}
	res, err := a.store.Refresh(ctx, c.RefreshRequest(d, a.cred, kind), ask)
	if err != nil {
		return err
	}
	switch {
	case res.Err != nil:
		return res.Err
	case res.Outcome == credentials.OutcomeBusy:
		return errors.New("a worker refreshes this credential just now: try again in a moment")
	case res.Outcome == credentials.OutcomeLater:
		return fmt.Errorf("its last refresh failed, and is tried again from %s on", res.RetryAt.UTC().Format(time.RFC3339))
	case res.Outcome != credentials.OutcomeRenewed && res.Outcome != credentials.OutcomeNewer:
		return fmt.Errorf("the credential is %s", res.Outcome)
	}
	_ = a.client.RequestResume(ctx, a.cred.ID) // a hint: the pool sweeps as well
	fresh, err := a.store.Get(ctx, a.cred.ID)
	if err == nil {
		a.cred = fresh
	}
	return err
}

// writeBack lays new secrets over a credential's file. All other members stay,
// in their order.
func writeBack(file string, r *credentials.Renewal, s *credentials.Secrets) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	whole, err := members(raw)
	if err != nil {
		return err
	}
	if r.Token != nil {
		token, err := members(whole.raw("oauth2"))
		if err != nil {
			return err
		}
		token.set("access_token", s.OAuth2.AccessToken.Reveal())
		if t := s.OAuth2.RefreshToken.Reveal(); t != "" {
			token.set("refresh_token", t)
		}
		token.drop("expires_in") // it would count from whenever the file is read
		token.drop("expiry")
		if e := s.OAuth2.Expiry; !e.IsZero() {
			token.set("expiry", e.UTC().Format(time.RFC3339))
		}
		whole.set("oauth2", token)
	}
	if len(r.Session) > 0 {
		properties, err := members(whole.raw("properties"))
		if err != nil {
			return err
		}
		for k, v := range r.Session {
			properties.set(k, v)
		}
		whole.set("properties", properties)
	}
	var pretty bytes.Buffer
	if err := json.Indent(&pretty, compact(whole), "", "  "); err != nil {
		return err
	}
	pretty.WriteByte('\n')
	return writeAtomically(file, pretty.Bytes())
}

// object is a JSON object with its members in order.
type object struct{ jsontree.Object }

func members(raw json.RawMessage) (*object, error) {
	o := &object{}
	if len(raw) == 0 || string(raw) == "null" {
		return o, nil
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, err
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, err
		}
		o.Set(fmt.Sprint(name), value)
	}
	return o, nil
}

func (o *object) raw(name string) json.RawMessage {
	raw, _ := o.Values[name].(json.RawMessage)
	return raw
}

func (o *object) set(name string, v any) { o.Set(name, v) }

func (o *object) drop(name string) {
	if _, there := o.Values[name]; there {
		delete(o.Values, name)
		for i, k := range o.Keys {
			if k == name {
				o.Keys = append(o.Keys[:i:i], o.Keys[i+1:]...)
				return
			}
		}
	}
}

// writeAtomically puts a file in the place of another, for its owner alone. A
// link stays one.
func writeAtomically(file string, data []byte) error {
	if real, err := filepath.EvalSymlinks(file); err == nil {
		file = real
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".stepworker-*") // with mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // once it is renamed there is none
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}
