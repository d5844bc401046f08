package riverjobs_test

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"

	"github.com/romancy-go/romancy/riverjobs"
)

func ExampleNew() {
	ctx := context.Background()
	var pool *pgxpool.Pool // the application's

	workers := river.NewWorkers()
	client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{
		Queues:  map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 10}},
		Workers: workers,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	jobs, err := riverjobs.New(riverjobs.Config{
		Client: client, Workers: workers,
		Sweeps: []riverjobs.Sweep{{
			Kind: riverjobs.KindOutbox,
			Run:  func(context.Context) (int, error) { return 0, nil },
		}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := jobs.Start(ctx); err != nil {
		fmt.Println(err)
	}
}
