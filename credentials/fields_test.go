package credentials

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPut_fieldsAndAuthentication(t *testing.T) {
	s, server := newStore(t)
	fields := func() map[string]string {
		t.Helper()
		all := map[string]string{}
		for k, v := range get(t, s).Secrets.Fields {
			all[k] = v.Reveal()
		}
		return all
	}
	is := func(want map[string]string, authentication string) {
		t.Helper()
		if d := cmp.Diff(want, fields()); d != "" {
			t.Error(d)
		}
		st, err := s.Status(ctx, "c")
		if err != nil || st.Authentication != authentication || get(t, s).Authentication != authentication {
			t.Errorf("authentication %q and %q, want %q; %v", st.Authentication, get(t, s).Authentication, authentication, err)
		}
	}
	put(t, s, `{"credential_id":"c","connector":"acme","authentication":"Private app","fields":{"user":"ann","secret":"hunter22"}}`, false)
	is(map[string]string{"user": "ann", "secret": "hunter22"}, "Private app")
	put(t, s, `{"credential_id":"c","fields":{"user":null,"secret":"hunter23","tenant":""}}`, true)
	is(map[string]string{"secret": "hunter23", "tenant": ""}, "Private app")
	put(t, s, `{"credential_id":"c","authentication":"Key"}`, true)
	is(map[string]string{"secret": "hunter23", "tenant": ""}, "Key")
	if !slices.Contains(get(t, s).SecretValues(), "hunter23") {
		t.Error("it is not masked")
	}
	// A refresh keeps both, and whoever has no key still sees which it is.
	r := RefreshRequest{ID: "c", Version: get(t, s).Version, Kind: OAuth2}
	if res, err := s.Refresh(ctx, r, renewTo("access-two", "refresh-two")); err != nil || res.Outcome != OutcomeRenewed {
		t.Fatalf("%+v %v", res, err)
	}
	is(map[string]string{"secret": "hunter23", "tenant": ""}, "Key")
	if st, err := NewStore(server.Client(t), nil).Status(ctx, "c"); err != nil || st.Authentication != "Key" {
		t.Errorf("%+v %v", st, err)
	}
	put(t, s, `{"credential_id":"c","authentication":""}`, true)
	is(map[string]string{"secret": "hunter23", "tenant": ""}, "")
	put(t, s, `{"credential_id":"c","connector":"acme","authentication":"Key"}`, false)
	put(t, s, `{"credential_id":"c","connector":"acme"}`, false)
	is(map[string]string{}, "")
}

func TestSealSetting_boundToItsPlace(t *testing.T) {
	first, second := NewKey(), NewKey()
	old, err := ParseKeys(second)
	if err != nil {
		t.Fatal(err)
	}
	both, err := ParseKeys(first + "," + second)
	if err != nil {
		t.Fatal(err)
	}
	sealed := old.SealSetting("acme", "client_secret", NewSecret("hunter22"))
	if v, isFirst, err := both.OpenSetting("acme", "client_secret", sealed); err != nil || isFirst || v.Reveal() != "hunter22" {
		t.Errorf("%v %v", isFirst, err)
	}
	if v, isFirst, err := old.OpenSetting("acme", "client_secret", sealed); err != nil || !isFirst || v.Reveal() != "hunter22" {
		t.Errorf("%v %v", isFirst, err)
	}
	for _, place := range [][2]string{{"acme", "client_id"}, {"acm", "eclient_secret"}, {"other", "client_secret"}} {
		if _, _, err := both.OpenSetting(place[0], place[1], sealed); err == nil {
			t.Errorf("it opens at %v", place)
		}
	}
}
