package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stepworker/stepworker/connectors/definition"
)

// demoSamples are the connectors of the sample provider, which the demo calls.
var demoSamples = []string{"crm", "helpdesk", "ledger", "orders", "weather"}

func samples() string { return filepath.Join("..", "..", "deploy", "connectors") }

// Every real API has recordings with a result, of which one shows a credential
// that dies and, if its methods page, one goes over several pages.
// TestTry_recordings replays them.
func TestSamples_haveRecordings(t *testing.T) {
	catalog, findings, err := definition.Load(samples())
	if err != nil || len(findings) > 0 {
		t.Fatal(err, findings)
	}
	files, err := filepath.Glob(filepath.Join(samples(), "*.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	type shown struct{ any, dead, pages bool }
	recorded := map[string]*shown{}
	for _, file := range files {
		r, err := readRecording(file)
		if err != nil {
			t.Fatal(err)
		}
		var try recordedTry
		if err := json.Unmarshal([]byte(r.try), &try); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		var want outcome
		if err := json.Unmarshal([]byte(r.want), &want); err != nil {
			t.Errorf("%s has no result to compare with: %v", filepath.Base(file), err)
			continue
		}
		s := recorded[try.Connector]
		if s == nil {
			s = &shown{}
			recorded[try.Connector] = s
		}
		s.any = true
		s.dead = s.dead || want.Refreshes > 0 || want.Error != nil && want.Error.Kind == "auth"
		s.pages = s.pages || want.Pages > 1
	}
	for _, name := range catalog.Names() {
		if slices.Contains(demoSamples, name) {
			continue
		}
		s := recorded[name]
		if s == nil {
			t.Errorf("%s has no recording", name)
			continue
		}
		if !s.dead {
			t.Errorf("no recording of %s shows a credential that dies", name)
		}
		d, _ := catalog.Get(name)
		if !s.pages && slices.ContainsFunc(d.MethodNames, func(m string) bool { return d.Methods[m].Paging.Inbound }) {
			t.Errorf("no recording of %s goes over several pages", name)
		}
	}
}

// Lists that are longer than an API takes at once go out in several requests.
// Written out, such recordings would be long: these are made here.
func TestSamples_cutLongLists(t *testing.T) {
	for name, c := range map[string]struct {
		method, list, item, credential, url, answer string
		most                                        int
	}{
		"salesforce": {"create_records", "records", `{"attributes": {"type": "Account"}, "Name": "Test %d"}`,
			`{"connector": "salesforce", "credential_id": "1", "properties": {"domain": "acme"}, "oauth2": {"access_token": "{{secret.token}}"}}`,
			"https://acme.my.salesforce.com/services/data/v62.0/composite/sobjects", `[{"id": "001D000000K0fXOIAZ", "success": true, "errors": []}]`, 200},
		"hubspot": {"create_contacts", "inputs", `{"properties": {"email": "c%d@example.com"}}`,
			`{"connector": "hubspot", "credential_id": "1", "authentication": "private_app", "api_key": "{{secret.key}}"}`,
			"https://api.hubapi.com/crm/v3/objects/contacts/batch/create", `{"status": "COMPLETE", "results": [{"id": "512", "properties": {"email": "c@example.com"}}]}`, 100},
	} {
		t.Run(name, func(t *testing.T) {
			var items []string
			for i := range c.most + 1 {
				items = append(items, fmt.Sprintf(c.item, i))
			}
			body := func(items []string) string { return fmt.Sprintf(`{%q: [%s]}`, c.list, strings.Join(items, ", ")) }
			text := fmt.Sprintf("-- try --\n{\"connector\": %q, \"method\": %q, \"body\": %s}\n-- credential --\n%s\n", name, c.method, body(items), c.credential)
			for i, part := range [][]string{items[:c.most], items[c.most:]} {
				sent := body(part)
				if name == "salesforce" {
					sent = strings.Replace(sent, "{", `{"allOrNone": false, `, 1)
				}
				text += fmt.Sprintf("-- %d.request --\nPOST %s\n\n%s\n-- %d.response --\n200 OK\nContent-Type: application/json\n\n%s\n", i+1, c.url, sent, i+1, c.answer)
			}
			file := filepath.Join(t.TempDir(), "long.txtar")
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if code, stdout, stderr := replayed(t, samples(), file); code != 0 {
				t.Errorf("exit %d\n%s\n%s", code, stdout, stderr)
			}
		})
	}
}

// The samples of real APIs show together all that a connector can be.
func TestSamples_coverTheFormat(t *testing.T) {
	catalog, _, err := definition.Load(samples())
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]bool{}
	for _, name := range catalog.Names() {
		if slices.Contains(demoSamples, name) {
			continue
		}
		d, _ := catalog.Get(name)
		auths := []definition.Auth{d.Auth}
		shown["alternatives"] = shown["alternatives"] || len(d.Authentications) > 1
		shown["lookups"] = shown["lookups"] || len(d.Triggers) > 0
		for _, a := range d.Authentications {
			auths = append(auths, a.Auth)
		}
		for _, a := range auths {
			shown["auth "+a.Type], shown["grant "+a.Grant] = true, true
			shown["key in "+a.In] = shown["key in "+a.In] || a.Type == "api_key"
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
	wanted := []string{"key in header", "key in query", "alternatives", "lookups",
		"grant authorization_code", "grant client_credentials", "grant jwt_bearer", "AuthRefreshException", "AuthSessionException",
		"paging by number", "paging by offset", "paging by next URL", "paging by token", "paging by Link header", "outbound",
		"data type json", "data type xml", "data type simple_file", "data type multipart_related"}
	var format struct {
		Definitions struct {
			Auth struct {
				Properties struct {
					Type struct{ Enum []string }
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(definition.Schema()), &format); err != nil {
		t.Fatal(err)
	}
	types := format.Definitions.Auth.Properties.Type.Enum
	if len(types) < 6 {
		t.Fatalf("the schema knows only the auth types %q", types)
	}
	for _, authType := range types {
		wanted = append(wanted, "auth "+authType)
	}
	var missing []string
	for _, what := range wanted {
		if !shown[what] {
			missing = append(missing, what)
		}
	}
	if len(missing) > 0 {
		t.Errorf("no sample shows: %s", strings.Join(missing, ", "))
	}
}
