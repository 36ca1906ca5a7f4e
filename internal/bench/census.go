package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
)

// measureCensus measures what the numbers of a whole Redis cost: a census of
// all credentials, of which some have waiting executions, and a scrape that
// reads what it left, beside one that asks for the status of each that waits.
func measureCensus(all, waiting int) error {
	sock, stop, err := startRedis()
	if err != nil {
		return err
	}
	defer stop()
	ctx := context.Background()
	rdb := client(sock, 2)
	defer rdb.Close()
	reg := prometheus.NewRegistry()
	h, err := openHouseFor(rdb, connectorYAML+connectorMethods, house{concurrency: 1, numbers: reg})
	if err != nil {
		return err
	}
	defer h.engine.Close()
	// A put is some milliseconds of sealing and scripts; copies of one will do.
	if err := h.put(`{"credential_id":"c0","connector":"bench","api_key":"k-0123456789"}`); err != nil {
		return err
	}
	one, err := rdb.HGetAll(ctx, "stepworker:cred:{c0}").Result()
	if err != nil {
		return err
	}
	for i := 1; i < all; i += 1000 {
		pipe := rdb.Pipeline()
		for j := i; j < min(i+1000, all); j++ {
			id := "c" + strconv.Itoa(j)
			pipe.HSet(ctx, "stepworker:cred:{"+id+"}", one)
			pipe.SAdd(ctx, "stepworker:credentials", id)
			if j <= waiting {
				pipe.ZAdd(ctx, "stepworker:cred:{"+id+"}:waiting", redis.Z{Score: float64(time.Now().UnixMilli()), Member: "steps:" + id})
				pipe.SAdd(ctx, "stepworker:waiting", id)
			}
		}
		if _, err := pipe.Exec(ctx); err != nil {
			return err
		}
	}
	fmt.Printf("%d credentials, %d of them with waiting executions\n", all, waiting)
	report := func(what string, do func() error) error {
		cpu, begun, own := redisCPU(ctx, rdb), time.Now(), spent()
		if err := do(); err != nil {
			return err
		}
		fmt.Printf("%-32s %9.1f ms, of the worker's CPU %8.1f ms, of Redis' %8.1f ms\n", what, time.Since(begun).Seconds()*1e3, (spent()-own)*1e3, (redisCPU(ctx, rdb)-cpu)*1e3)
		return nil
	}
	if err := report("a census", func() error {
		rows, err := h.store.Census(ctx)
		if err == nil {
			var n, w int64
			for _, r := range rows {
				n, w = n+r.Credentials, w+r.Waiting
			}
			if n != int64(all) || w != int64(waiting) {
				return fmt.Errorf("the census counts %d credentials and %d waiting", n, w)
			}
		}
		return err
	}); err != nil {
		return err
	}
	if err := h.pool.Start(); err != nil {
		return err
	}
	defer h.pool.Shutdown()
	for rdb.Exists(ctx, "stepworker:census").Val() == 0 {
		time.Sleep(50 * time.Millisecond)
	}
	for range 3 {
		if err := report("a scrape", func() error { _, err := reg.Gather(); return err }); err != nil {
			return err
		}
	}
	return report("a status of each that waits", func() error {
		ids, err := h.store.WaitingCredentials(ctx)
		for _, id := range ids {
			if _, err := h.store.Status(ctx, id); err != nil {
				return err
			}
		}
		return err
	})
}

// redisCPU is how many seconds Redis has computed.
func redisCPU(ctx context.Context, rdb redis.UniversalClient) (seconds float64) {
	info, err := rdb.Info(ctx, "cpu").Result()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	for _, line := range strings.Split(info, "\r\n") {
		for _, name := range []string{"used_cpu_sys:", "used_cpu_user:"} {
			if text, ok := strings.CutPrefix(line, name); ok {
				s, _ := strconv.ParseFloat(text, 64)
				seconds += s
			}
		}
	}
	return seconds
}
