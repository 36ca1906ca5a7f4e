package cli

import (
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/pflag"
)

func TestParseRedis_kinds(t *testing.T) {
	parse := func(text string) *RedisOptions {
		t.Helper()
		o, err := ParseRedis(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		return o
	}
	o := parse("redis-sentinel://watch:s%40me%2F@h1:26001,h2,[::1]:26003/3?master=steps&username=app&password=p%26w&dial_timeout=2s")
	f := o.sentinel
	if strings.Join(f.SentinelAddrs, " ") != "h1:26001 h2:26379 [::1]:26003" || f.MasterName != "steps" || f.DB != 3 || f.DialTimeout.String() != "2s" ||
		f.SentinelUsername != "watch" || f.SentinelPassword != "s@me/" || f.Username != "app" || f.Password != "p&w" || f.TLSConfig != nil {
		t.Errorf("got %+v", f)
	}
	if f.Protocol != 2 || f.PoolSize != 64 || f.ClientName != "stepworker" {
		t.Errorf("protocol %d, pool %d, name %s", f.Protocol, f.PoolSize, f.ClientName)
	}
	if text := o.String(); text != `redis master "steps" of the sentinels at h1:26001, h2:26379, [::1]:26003` {
		t.Error(text)
	}
	if f := parse("rediss-sentinel://h1/?master_name=steps&skip_verify=true").sentinel; f.TLSConfig == nil || f.TLSConfig.ServerName != "" || !f.TLSConfig.InsecureSkipVerify || f.MasterName != "steps" {
		t.Errorf("got %+v", f)
	}
	o = parse("redis-cluster://app:p%40w@h1:7001,h2,[fe80::1]/0?read_timeout=2s")
	c := o.cluster
	if strings.Join(c.Addrs, " ") != "h1:7001 h2:6379 [fe80::1]:6379" || c.Username != "app" || c.Password != "p@w" || c.TLSConfig != nil || c.ReadTimeout.String() != "2s" {
		t.Errorf("got %+v", c)
	}
	if c.Protocol != 2 || c.PoolSize != 64 || c.ClientName != "stepworker" {
		t.Errorf("protocol %d, pool %d, name %s", c.Protocol, c.PoolSize, c.ClientName)
	}
	for text, skip := range map[string]bool{"rediss-cluster://h1,h2": false, "rediss-cluster://h1,h2?skip_verify=true": true} {
		if c := parse(text).cluster; c.TLSConfig == nil || c.TLSConfig.ServerName != "" || c.TLSConfig.InsecureSkipVerify != skip {
			t.Errorf("%s: got %+v", text, c.TLSConfig)
		}
	}
	for text, want := range map[string]string{
		"redis://h:1/2": "redis at h:1", "rediss://u:p@h": "redis at h:6379", "redis-socket:///run/redis.sock?db=1": "redis at /run/redis.sock",
	} {
		o := parse(text)
		if s := o.single; o.String() != want || s.Protocol != 2 || s.PoolSize != 64 || s.ClientName != "stepworker" {
			t.Errorf("%s: got %s, %+v", text, o, s)
		}
	}
	for text, kind := range map[string]bool{"redis-cluster://h": true, "redis-sentinel://h?master=m": false} {
		client := parse(text).client()
		if _, cluster := client.(*redis.ClusterClient); cluster != kind {
			t.Errorf("%s: got %T", text, client)
		}
		_ = client.Close()
	}
}

func TestParseRedis_mistakes(t *testing.T) {
	for text, want := range map[string]string{
		"h:1":                      "a URL that begins with redis://",
		"http://h":                 "a URL that begins with redis://",
		"redis://h:x":              "the URL cannot be read",
		"redis://h1:1,h2:2/0":      "redis:// names one server; several are redis-sentinel:// or redis-cluster://",
		"redis://h/0?maser=x":      "an option that is not known: maser",
		"redis-sentinel://h1,h2/0": "?master=NAME is missing",
		"redis-sentinel://h1/0?master=m&master_name=n":  "the same option",
		"redis-sentinel:///0?master=m":                  "host 1 of the URL is empty",
		"redis-sentinel://h1,,h2/0?master=m":            "host 2 of the URL is empty",
		"redis-sentinel://h1:26379:1/0?master=m":        "host 1 of the URL is no HOST:PORT",
		"redis-sentinel://h1/x?master=m":                "the URL cannot be read",
		"redis-sentinel://h1/0?master=m&replica_only=1": "replicas lag behind",
		"redis-sentinel://h1/0?master=m&addr=h2:1":      "the addresses stand in the URL itself",
		"redis-sentinel://h1/0?master=m&pool=1":         "an option that is not known: pool",
		"redis-sentinel://h1/0?master=%zz":              "the options behind the ?",
		"redis-cluster://":                              "host 1 of the URL is empty",
		"redis-cluster://h1:0":                          "host 1 of the URL is no HOST:PORT",
		"redis-cluster://h1:70000":                      "host 1 of the URL is no HOST:PORT",
		"redis-cluster://h1/1":                          "no other database than 0",
		"redis-cluster://h1?db=2":                       "no other database than 0",
		"redis-cluster://h1?route_randomly=true":        "replicas lag behind",
		"redis-cluster://h1?skip_verify=perhaps":        "skip_verify is true or false",
		"redis-cluster://:hush:secret:1,h2":             "is no HOST:PORT",
		"redis-cluster://:hu/sh@h1:1,h2":                "is no HOST:PORT",
		"redis-cluster://:hush%zz@h1,h2":                "the URL cannot be read",
	} {
		o, err := ParseRedis(text)
		if err == nil {
			t.Errorf("%s: got %s", text, o)
			continue
		}
		if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hush") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestRedisOptions_noPasswordOnTheCommandLine(t *testing.T) {
	for text, refused := range map[string]bool{
		"redis://:p@h":                                 true,
		"redis-sentinel://:p@h1,h2/0?master=m":         true,
		"redis-sentinel://h1,h2/0?master=m&password=p": true,
		"redis-cluster://u:p@h1:1,h2:2":                true,
		"redis-cluster://:p/q@h1:1,h2:2":               true,
		"redis-cluster://:p?q@h1:1,h2:2":               true,
		"redis-cluster://u@h1:1,h2:2":                  false,
		"redis-sentinel://h1,h2/0?master=m":            false,
	} {
		t.Run(text, func(t *testing.T) {
			fs := pflag.NewFlagSet("x", pflag.ContinueOnError)
			var r Redis
			r.Add(fs)
			if err := fs.Parse([]string{"--redis", text}); err != nil {
				t.Fatal(err)
			}
			if mistakes := Resolve(fs); len(mistakes) > 0 {
				t.Fatal(mistakes)
			}
			_, err := r.Options(fs)
			if got := err != nil && strings.Contains(err.Error(), "a URL with a password does not belong on a command line"); got != refused {
				t.Errorf("got %v", err)
			}
		})
		t.Run("environment "+text, func(t *testing.T) {
			t.Setenv("STEPWORKER_REDIS", text)
			fs := pflag.NewFlagSet("x", pflag.ContinueOnError)
			var r Redis
			r.Add(fs)
			if mistakes := Resolve(fs); len(mistakes) > 0 {
				t.Fatal(mistakes)
			}
			if _, err := r.Options(fs); err != nil && strings.Contains(err.Error(), "command line") {
				t.Errorf("got %v", err)
			}
		})
	}
}
