package faultproxy_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/internal/faultproxy"
	"github.com/stepworker/stepworker/internal/redistest"
)

var ctx = context.Background()

func newProxy(t *testing.T) (*faultproxy.Proxy, redis.UniversalClient, redis.UniversalClient) {
	t.Helper()
	server := redistest.New(t)
	p := faultproxy.New(t, server.Addr)
	through := redis.NewClient(&redis.Options{Addr: p.Addr, MaxRetries: -1, ReadTimeout: 300 * time.Millisecond, ContextTimeoutEnabled: true})
	t.Cleanup(func() { through.Close() })
	if err := through.Ping(ctx).Err(); err != nil {
		t.Fatal(err)
	}
	return p, through, server.Client(t)
}

func TestProxy_losesTheAnswerOfWhatWasExecuted(t *testing.T) {
	p, through, direct := newProxy(t)
	lost := p.LoseAnswer("marked")
	if err := through.Do(ctx, "INCRBY", "n", "marked").Err(); err == nil {
		t.Fatal("INCRBY takes numbers only")
	}
	select {
	case <-lost:
		t.Fatal("a command that failed was not executed, and its answer goes through")
	default:
	}
	if err := through.Append(ctx, "k", "marked").Err(); err == nil {
		t.Fatal("the answer came")
	}
	<-lost
	if got := direct.Get(ctx, "k").Val(); got != "marked" {
		t.Errorf("redis has %q", got)
	}
	if err := through.Append(ctx, "k", "marked").Err(); err != nil {
		t.Errorf("only the first is lost: %v", err)
	}
}

func TestProxy_cutsFallsSilentAndHeals(t *testing.T) {
	p, through, direct := newProxy(t)
	p.Cut()
	if through.Ping(ctx).Err() == nil {
		t.Error("it answers though it is cut")
	}
	p.Heal()
	if err := through.Ping(ctx).Err(); err != nil {
		t.Error(err)
	}
	p.Silence()
	var timeout interface{ Timeout() bool }
	if err := through.Set(ctx, "k", "v", 0).Err(); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("got %v, want a time-out", err)
	}
	if n := direct.Exists(ctx, "k").Val(); n != 0 {
		t.Error("the command went through")
	}
	p.Heal()
	if err := through.Ping(ctx).Err(); err != nil {
		t.Error(err)
	}
	p.Delay(time.Second)
	if err := through.Ping(ctx).Err(); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("got %v, want a time-out", err)
	}
}
