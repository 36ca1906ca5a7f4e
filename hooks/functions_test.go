package hooks

import (
	"strings"
	"testing"
)

// What is best told as a table of one-liners; the conformance files have the rest.
func TestFunctions_results(t *testing.T) {
	for name, c := range map[string]struct{ js, want string }{
		"csv no header":       {`JSON.stringify(cyclr_csv_parse('1,2,3\na,b,c', ',', false))`, `[{"Field1":"1","Field2":"2","Field3":"3"},{"Field1":"a","Field2":"b","Field3":"c"}]`},
		"csv header":          {`JSON.stringify(cyclr_csv_parse('id;name\r\n1;"a ""b""; c"\r\n2\r\n', ';', true))`, `[{"id":"1","name":"a \"b\"; c"},{"id":"2"}]`},
		"csv long row":        {`JSON.stringify(cyclr_csv_parse('a,a,\n1,2,3,4', ',', true))`, `[{"a":"1","Field2":"2","Field3":"3","Field4":"4"}]`},
		"csv quote inside":    {`JSON.stringify(cyclr_csv_parse('a"b,c', ',', false))`, `[{"Field1":"a\"b","Field2":"c"}]`},
		"csv line in a field": {`JSON.stringify(cyclr_csv_parse('"a\nb",c', ',', false))`, `[{"Field1":"a\nb","Field2":"c"}]`},
		"csv tab, proto":      {`JSON.stringify(cyclr_csv_parse('__proto__\tb\n1\t2', '\t', true))`, `[{"__proto__":"1","b":"2"}]`},
		"csv nothing":         {`JSON.stringify(cyclr_csv_parse('', ',', true)) + JSON.stringify(cyclr_csv_parse(null))`, `[][]`},
		"csv mac, mark":       {`JSON.stringify(cyclr_csv_parse('\ufeffa\r1\r', ',', true))`, `[{"a":"1"}]`},
		"xml out":             {`cyclr_xml_serialize({root: {'@id': 7, a: 'x < y & "z"', b: [1, true, null], c: {}, d: '', '#text': 't>'}})`, `<root id="7"><a>x &lt; y &amp; "z"</a><b>1</b><b>true</b><b /><c /><d></d>t&gt;</root>`},
		"xml attribute":       {`cyclr_xml_serialize({a: {'@t': 'say "hi"\n', '@n': null}})`, `<a t="say &quot;hi&quot;&#xA;" />`},
		"xml soap":            {`cyclr_xml_serialize({'soap:Envelope': {'@xmlns:soap': 'http://s', 'soap:Body': {x: new Date(0)}}})`, `<soap:Envelope xmlns:soap="http://s"><soap:Body><x>1970-01-01T00:00:00.000Z</x></soap:Body></soap:Envelope>`},
		"xml in":              {`JSON.stringify(cyclr_xml_deserialize('<?xml version="1.0" encoding="iso-8859-1"?><!-- c --><r a="1"><x>1</x><x><y/></x><e/><f></f><g><![CDATA[<&]]></g></r>'))`, `{"r":{"@a":"1","x":["1",{"y":null}],"e":null,"f":"","g":"<&"}}`},
		"xml mixed":           {`JSON.stringify(cyclr_xml_deserialize('<p>one <b>two</b> three</p>'))`, `{"p":{"b":"two","#text":["one "," three"]}}`},
		"xml entity":          {`cyclr_xml_deserialize('<a>&lt;&#65;&amp;</a>').a`, `<A&`},
		"xml proto":           {`JSON.stringify(cyclr_xml_deserialize('<__proto__><a/></__proto__>')) + ({}).a`, `{"__proto__":{"a":null}}undefined`},
		"xml and back":        {`var x = '<r a="1"><x>1</x><x>2</x><e /></r>'; '' + (cyclr_xml_serialize(cyclr_xml_deserialize(x)) === x)`, "true"},
		"sign":                {`cyclr_sign('HMAC-SHA256', 'Jefe', 'what do ya want for nothing?')`, "W9zBRr9gdU5qBCQmCJV1x1oAPwidJzmDnexYuWTsOEM="},
		"sign sha1":           {`cyclr_sign('hmac-sha1', 'key', 'The quick brown fox jumps over the lazy dog')`, "3nybhbi3iqa8ino29wqQcBydtNk="},
		"sign sha512":         {`cyclr_sign('HMAC-SHA512', 'Jefe', 'what do ya want for nothing?').length + ''`, "88"},
		"locale":              {`(1234567.891).toLocaleString() + ' ' + (1234567.891).toLocaleString('en-US') + ' ' + (1234.5).toLocaleString('de-DE', {minimumFractionDigits: 2})`, "1,234,567.891 1,234,567.891 1.234,50"},
		"locale rounds":       {`(2.5).toLocaleString('en', {maximumFractionDigits: 0}) + ' ' + (-0.125).toLocaleString('en', {maximumFractionDigits: 2}) + ' ' + (0.256).toLocaleString('en', {style: 'percent'})`, "3 -0.13 26%"},
		"locale odd":          {`NaN.toLocaleString() + (1e21).toLocaleString('en', {useGrouping: false})`, "NaN1000000000000000000000"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := newRuntime(t).js(t, c.js); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestFunctions_complaints(t *testing.T) {
	for name, c := range map[string]struct{ js, want string }{
		"algorithm":          {`cyclr_sign('HMAC-MD5', 'k', 't')`, `cyclr_sign: unknown algorithm "HMAC-MD5": there are HMAC-SHA1, HMAC-SHA256, HMAC-SHA512, RSA-SHA1`},
		"confused":           {`cyclr_sign('sk-Live/1', 'HMAC-SHA1', 't')`, `cyclr_sign: unknown algorithm "sk-Live/1": there are`},
		"long algorithm":     {`cyclr_sign('k'.repeat(64), 'HMAC-SHA1', 't')`, `cyclr_sign: unknown algorithm "[64 characters]": there are`},
		"long character set": {`atob('AAAA', 'k'.repeat(41))`, `unknown character set "[41 characters]"`},
		"long delimiter":     {`cyclr_csv_parse(';', 'k'.repeat(64), true)`, `not "[64 characters]"`},
		"long module":        {`require('k'.repeat(61))`, `no module "[61 characters]"`},
		"no key":             {`cyclr_sign('RSA-SHA256', 'k', 't')`, `cyclr_sign: an RSA key is needed in PEM`},
		"public key":         {`cyclr_sign('RSA-SHA256', '-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----', 't')`, `"PUBLIC KEY" holds no private key`},
		"delimiter":          {`cyclr_csv_parse('a', '||', true)`, `the delimiter must be one character, not "||"`},
		"xml not closed":     {`cyclr_xml_deserialize('<a><b></b>')`, `<a> is not closed`},
		"xml wrong end":      {`cyclr_xml_deserialize('<a>\n<b></c></a>')`, `line 2: </c> closes what is not open`},
		"xml syntax":         {`cyclr_xml_deserialize('<a x=1/>')`, `line 1:`},
		"xml empty":          {`cyclr_xml_deserialize('')`, `no root element`},
		"xml two":            {`cyclr_xml_deserialize('<a/><b/>')`, `a second root element`},
		"xml bomb":           {`cyclr_xml_deserialize('<!DOCTYPE l [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><l>&b;</l>')`, `invalid character entity &b;`},
		"xml deep":           {`cyclr_xml_deserialize(new Array(1000).join('<a>'))`, `nested deeper than 500`},
		"xml out roots":      {`cyclr_xml_serialize({a: 1, b: 2})`, `one root element is needed, this one has 2 members`},
		"xml out list":       {`cyclr_xml_serialize([1])`, `an object is needed`},
		"xml out name":       {`cyclr_xml_serialize({'a b': 1})`, `"a b" is no name of an element`},
		"xml out character":  {`cyclr_xml_serialize({a: '\u0001'})`, `U+0001 cannot stand in XML`},
		"xml out undefined":  {`cyclr_xml_serialize(undefined)`, `an object is needed`},
		"random":             {`crypto.getRandomValues(7)`, `needs a typed array`},
		"locale":             {`(1).toLocaleString('en', {style: 'currency'})`, `style "currency" is not supported`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := newRuntime(t).vm.RunString(c.js)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}
