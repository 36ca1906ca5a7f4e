package main

import (
	"bytes"
	"context"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stepworker/stepworker/connectors"
)

// demoSamples are the connectors of the sample provider, which the demo calls.
var demoSamples = []string{"crm", "helpdesk", "ledger", "orders", "weather"}

func samples() string { return filepath.Join("..", "..", "deploy", "connectors") }

// Every recording beside the samples replays, and every real API has one.
func TestSamples_replay(t *testing.T) {
	catalog, findings, err := connectors.Load(samples())
	if err != nil || len(findings) > 0 {
		t.Fatal(err, findings)
	}
	recordings, err := filepath.Glob(filepath.Join(samples(), "*.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	recorded := map[string]bool{}
	for _, file := range recordings {
		t.Run(filepath.Base(file), func(t *testing.T) {
			r, err := readRecording(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range catalog.Names() {
				recorded[name] = recorded[name] || strings.Contains(r.try, `"connector": "`+name+`"`)
			}
			var out, told bytes.Buffer
			if code := run(context.Background(), []string{"try", "--connectors", samples(), "--replay", file}, strings.NewReader(""), &out, &told); code != 0 {
				t.Errorf("exit status %d\n%s%s", code, out.String(), told.String())
			}
		})
	}
	for _, name := range catalog.Names() {
		if !recorded[name] && !slices.Contains(demoSamples, name) {
			t.Errorf("connector %s has no recording", name)
		}
	}
}

// The samples of real APIs show together all that a connector can be.
func TestSamples_coverTheFormat(t *testing.T) {
	catalog, _, err := connectors.Load(samples())
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]bool{}
	for _, name := range catalog.Names() {
		if slices.Contains(demoSamples, name) {
			continue
		}
		d, _ := catalog.Get(name)
		auths := []connectors.Auth{d.Auth}
		for _, a := range d.Authentications {
			auths = append(auths, a.Auth)
		}
		for _, a := range auths {
			shown["auth "+a.Type], shown["grant "+a.Grant] = true, true
			shown["key in "+a.In] = true
		}
		if d.Script != nil {
			for _, name := range []string{"AuthRefreshException", "AuthSessionException"} {
				shown[name] = shown[name] || strings.Contains(d.Script.Source, "new "+name)
			}
		}
		for _, name := range d.MethodNames {
			m := d.Methods[name]
			shown["outbound"] = shown["outbound"] || m.Paging.Outbound
			shown["data type "+string(m.DataType)] = true
			if !m.Paging.Inbound {
				continue
			}
			texts := []any{m.Body}
			for _, q := range m.Parameters {
				texts = append(texts, q.Value)
				if q.Header == "Link" {
					shown["paging by Link header"] = true
				}
			}
			for what, variable := range map[string]string{"number": "CYCLR_PAGE_NUMBER", "offset": "CYCLR_PAGE_OFFSET", "next URL": "CYCLR_PAGE_NEXT_URL", "token": "CYCLR_PAGE_TOKEN"} {
				for _, v := range texts {
					if raw, err := json.Marshal(v); err == nil && bytes.Contains(raw, []byte(variable)) {
						shown["paging by "+what] = true
					}
				}
			}
		}
	}
	for _, what := range []string{"auth none", "auth api_key", "key in query", "auth basic", "auth oauth1", "auth oauth2", "auth auth_fields",
		"grant authorization_code", "grant client_credentials", "grant jwt_bearer", "AuthRefreshException", "AuthSessionException",
		"paging by number", "paging by offset", "paging by next URL", "paging by token", "paging by Link header", "outbound",
		"data type json", "data type xml", "data type simple_file", "data type multipart_related"} {
		if !shown[what] {
			t.Errorf("no sample shows %s", what)
		}
	}
}
