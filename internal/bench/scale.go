package main

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// measureScale has one, two and four processes work on one queue, with an API
// that takes its time, and compares how many steps a second they make to one
// process, and to what there would be if nothing but the API took time.
func measureScale(seconds, rounds, concurrency, queues, payload int, latency time.Duration) error {
	fmt.Printf("scale: an API that takes %s, %d steps at once in each process, %d queue(s)\n", latency, concurrency, queues)
	for i := range rounds {
		one := 0.0
		for _, processes := range []int{1, 2, 4} {
			rate, err := scaleRun(fmt.Sprintf("round %d  %d process(es)", i+1, processes), processes, seconds, concurrency, queues, payload, latency, one)
			if err != nil {
				return err
			}
			if processes == 1 {
				one = rate
			}
		}
	}
	return nil
}

func scaleRun(name string, processes, seconds, concurrency, queues, payload int, latency time.Duration, one float64) (float64, error) {
	f, err := newFleet(latency, payload)
	if err != nil {
		return 0, err
	}
	defer f.close()
	ideal := float64(processes*concurrency) / latency.Seconds()
	steps := int(ideal * float64(seconds+5)) // more than there is time for
	accounts := steps/50 + 1
	for i := range accounts {
		if err := f.put(fmt.Sprint("c", i), true); err != nil {
			return 0, err
		}
	}
	names := slices.Sorted(maps.Keys(queueNames(queues)))
	if err := f.enqueue("plain", steps, accounts, names); err != nil {
		return 0, err
	}
	for range processes {
		if err := f.startWorker(concurrency, queues); err != nil {
			return 0, err
		}
	}
	time.Sleep(time.Second + 2*latency) // all slots are taken
	a := f.read()
	time.Sleep(time.Duration(seconds) * time.Second)
	b := f.read()
	if b.ended >= int64(steps) {
		return 0, fmt.Errorf("%s: there were too few steps", name)
	}
	least := int64(steps)
	for _, m := range f.workers {
		least = min(least, m.ended.Load())
	}
	if least == 0 {
		return 0, fmt.Errorf("%s: one of them has done nothing", name)
	}
	n, took := float64(b.ended-a.ended), b.at.Sub(a.at).Seconds()
	rate := n / took
	if one == 0 {
		one = rate
	}
	fmt.Printf("%s  %5.0f steps/s  %4.2f of one  %4.2f of ideal (%.0f)  the least busy did %.0f %% of its share;  per step: workers %4.0f µs CPU, Redis %3.0f µs, %4.1f commands, %5.0f bytes in, %5.0f out\n",
		name, rate, rate/one, rate/ideal, ideal, 100*float64(least*int64(processes))/float64(f.ended()),
		(b.worker-a.worker)/n*1e6, (b.redis-a.redis)/n*1e6, float64(b.commands-a.commands)/n, float64(b.in-a.in)/n, float64(b.out-a.out)/n)
	return rate, nil
}
