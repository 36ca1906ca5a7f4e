package jobs_test

import (
	"context"
	"fmt"
	"os"

	"github.com/redis/go-redis/v9"

	"github.com/stepworker/stepworker/jobs"
)

// A flow enqueues steps and waits for their results. It needs no key and no
// connectors: whether the credential exists is the worker's to say.
func ExampleClient() {
	options, err := redis.ParseURL(os.Getenv("REDIS_URL"))
	if err != nil {
		options = &redis.Options{Addr: "127.0.0.1:6379"}
	}
	rdb := redis.NewClient(options)
	defer rdb.Close()
	client := jobs.NewClient(rdb)

	ctx := context.Background()
	receipt, err := client.Enqueue(ctx, &jobs.Step{
		ExecutionID:  "order-4711", // of your own: enqueueing again is harmless
		CredentialID: "cust42-acme",
		Method:       "list_contacts",
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	_ = client.Wait(ctx, []string{receipt.ExecutionID}, func(r *jobs.Result) error {
		fmt.Println(r.ExecutionID, r.Status)
		return nil
	})
}

func ExampleDecodeStep() {
	_, err := jobs.DecodeStep([]byte(`{"credential_id": "cust42-acme", "metod": "list_contacts"}`))
	fmt.Println(err)
	// Output: unknown member "metod"; did you mean "method"?
}
