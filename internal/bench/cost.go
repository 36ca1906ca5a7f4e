package main

import (
	"context"
	"fmt"
	"time"

	"github.com/hibiken/asynq"
	"golang.org/x/sync/errgroup"

	"github.com/stepworker/stepworker/jobs"
)

// measureCost tells what one step costs, by kind: what docs/capacity.md plans
// with. Each kind has a Redis and a worker process of its own; first all steps
// are enqueued, then the worker is let at them.
func measureCost(steps, rounds, concurrency, payload int) error {
	fmt.Printf("cost of a step: bodies and answers of %d bytes, an API that takes %s, %d steps at once, %d of each kind\n", payload, costLatency, concurrency, steps)
	const heads = "%-20s %8s %8s %8s %8s %8s %8s %8s %8s %8s %8s\n"
	fmt.Printf(heads, "", "worker", "hosts", "Redis", "commands", "to Redis", "from it", "waiting", "kept", "file", "enqueue")
	fmt.Printf(heads, "", "µs CPU", "µs CPU", "µs CPU", "", "bytes", "bytes", "bytes", "bytes", "bytes", "µs Redis")
	for range rounds {
		for _, k := range []costKind{
			{name: "plain", method: "plain", each: 50},
			{name: "3 hook events", method: "hooks", each: 50},
			{name: "3 pages", method: "pages", each: 50},
			{name: "parked once", method: "plain", each: 100, dead: true},
			{name: "refresh of its own", method: "plain", each: 1, dead: true},
		} {
			if err := k.run(steps, concurrency, payload); err != nil {
				return fmt.Errorf("%s: %w", k.name, err)
			}
		}
		if err := measureEnqueue(steps, payload); err != nil {
			return err
		}
	}
	return nil
}

// measureEnqueue tells what a plain step costs Redis that is enqueued alone, as
// flows do that have one at a time; those above are enqueued together.
func measureEnqueue(steps, payload int) error {
	f, err := newFleet(costLatency, payload)
	if err != nil {
		return err
	}
	defer f.close()
	const credentials, enqueuers = 50, 8
	for i := range credentials {
		if err := f.put(fmt.Sprint("c", i), true); err != nil {
			return err
		}
	}
	all, err := f.steps("plain", steps, credentials, []string{jobs.QueueSteps})
	if err != nil {
		return err
	}
	client := jobs.NewClient(f.rdb)
	before := f.read()
	var flows errgroup.Group
	flows.SetLimit(enqueuers)
	for _, step := range all {
		flows.Go(func() error {
			_, err := client.Enqueue(context.Background(), step)
			return err
		})
	}
	if err := flows.Wait(); err != nil {
		return err
	}
	fmt.Printf("enqueued one by one, %d at once: %.0f µs of Redis\n", enqueuers, (f.read().redis-before.redis)/float64(steps)*1e6)
	return nil
}

const costLatency = 20 * time.Millisecond

type costKind struct {
	name, method string
	each         int // steps of a credential
	dead         bool
}

func (k costKind) run(steps, concurrency, payload int) error {
	ctx := context.Background()
	f, err := newFleet(costLatency, payload)
	if err != nil {
		return err
	}
	defer f.close()
	inspector := asynq.NewInspectorFromRedisClient(f.rdb)
	if err := f.rdb.SAdd(ctx, "asynq:queues", jobs.QueueSteps).Err(); err != nil {
		return err
	}
	if err := inspector.PauseQueue(jobs.QueueSteps); err != nil {
		return err
	}
	n := max(1, steps/k.each)
	for i := range n {
		if err := f.put(fmt.Sprint("c", i), !k.dead); err != nil {
			return err
		}
	}
	if err := f.startWorker(concurrency, 1); err != nil {
		return err
	}
	time.Sleep(1500 * time.Millisecond) // it has started, and has seen the pause
	if k.dead && k.each > 1 {
		f.held.Add(1) // nobody is answered before all have parked
	}
	before := f.read()
	if err := f.enqueue(k.method, steps, n, []string{jobs.QueueSteps}); err != nil {
		return err
	}
	enqueued := f.read()
	if err := inspector.UnpauseQueue(jobs.QueueSteps); err != nil {
		return err
	}
	waiting := enqueued
	if k.dead && k.each > 1 {
		if err := until(func() (bool, error) { return f.parked() >= int64(steps), nil }); err != nil {
			return err
		}
		waiting = f.read()
		f.held.Done()
	}
	if err := until(func() (bool, error) { return f.ended() == int64(steps), nil }); err != nil {
		return err
	}
	time.Sleep(200 * time.Millisecond) // asynq notes the last ones' end
	end := f.read()
	per := float64(steps)
	fmt.Printf("%-20s %8.0f %8.0f %8.0f %8.1f %8.0f %8.0f %8.0f %8.0f %8.0f %8.0f   %d connections, %d open files\n", k.name,
		(end.worker-enqueued.worker)/per*1e6, (end.hosts-enqueued.hosts)/per*1e6, (end.redis-enqueued.redis)/per*1e6,
		float64(end.commands-enqueued.commands)/per, float64(end.in-enqueued.in)/per, float64(end.out-enqueued.out)/per,
		float64(waiting.memory-before.memory)/per, float64(end.memory-before.memory)/per, float64(end.file-before.file)/per, (enqueued.redis-before.redis)/per*1e6,
		end.connections, end.openFiles)
	return nil
}
