package riverjobs

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
)

type hostArgs struct {
	N int `json:"n"`
}

func (hostArgs) Kind() string { return "host_job" }

type hostWorker struct {
	river.WorkerDefaults[hostArgs]
	done chan int
}

func (w *hostWorker) Work(_ context.Context, job *river.Job[hostArgs]) error {
	w.done <- job.Args.N
	return nil
}

func newHost(t *testing.T, b *bundle, change ...func(*river.Config)) (*river.Client[pgx.Tx], *river.Workers, chan int) {
	t.Helper()
	workers := river.NewWorkers()
	done := make(chan int, 100)
	river.AddWorker(workers, &hostWorker{done: done})
	config := &river.Config{
		Logger:  slog.New(slog.DiscardHandler),
		Queues:  map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 2}},
		Schema:  "romancy",
		Workers: workers,
	}
	for _, c := range change {
		c(config)
	}
	client, err := river.NewClient(riverpgxv5.New(b.pool), config)
	if err != nil {
		t.Fatal(err)
	}
	return client, workers, done
}

func startHost(t *testing.T, client *river.Client[pgx.Tx]) {
	t.Helper()
	if err := client.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := client.Stop(ctx); err != nil {
			t.Errorf("stop the host: %v", err)
		}
	})
}

func TestAGuestSweepsInTheHostsClientAndLeavesItAsItWas(t *testing.T) {
	t.Parallel()
	for _, order := range []string{"host first", "guest first"} {
		t.Run(order, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			client, workers, done := newHost(t, b)
			ticked := make(chan struct{}, 100)
			client.PeriodicJobs().Add(river.NewPeriodicJob(river.PeriodicInterval(time.Second), func() (river.JobArgs, *river.InsertOpts) {
				ticked <- struct{}{}
				return nil, nil
			}, nil))
			config := b.config()
			config.Client, config.Workers = client, workers
			jobs, err := New(config)
			if err != nil {
				t.Fatal(err)
			}
			if order == "host first" {
				startHost(t, client)
				startJobs(t, jobs)
			} else {
				startJobs(t, jobs)
				startHost(t, client)
			}
			for _, kind := range kinds {
				await(t, kind.name, b.swept[kind.name])
			}
			work := func(n int) {
				if _, err := client.Insert(t.Context(), hostArgs{N: n}, nil); err != nil {
					t.Fatal(err)
				}
				if got := await(t, "the host's job", done); got != n {
					t.Fatalf("the host's job %d worked, want %d", got, n)
				}
			}
			work(1)
			stopJobs(t, jobs)
			work(2)
			for len(ticked) > 0 {
				<-ticked
			}
			await(t, "the host's own periodic job", ticked)
			if err := client.Queues().Add(Queue, river.QueueConfig{MaxWorkers: 1}); err != nil {
				t.Errorf("our queue is still in the host's client: %v", err)
			}
		})
	}
}

func TestAGuestDeletesItsFinishedJobsAndOnlyThose(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.pool.Exec(t.Context(), `
		insert into romancy.river_job (args, kind, queue, state, max_attempts, finalized_at, scheduled_at)
		select '{}', kind, queue, 'completed', 1, now() - age, now() - age
		from (values ($1::text, 'romancy', interval '2 min', 2500), ($1::text, 'romancy', interval '1 second', 7), ('host_job', 'default', interval '1 hour', 11)) v (kind, queue, age, n),
		     generate_series(1, n)`, KindTimers)
	if err != nil {
		t.Fatal(err)
	}
	client, workers, _ := newHost(t, b)
	config := b.config()
	config.Client, config.Workers = client, workers
	config.Sweeps = []Sweep{b.sweep(KindResume)} // retention is there all the same
	jobs, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	startJobs(t, jobs)
	startHost(t, client)
	eventually(t, "the old ones are gone", func() bool {
		return count(t, b.pool, "kind = $1::text and finalized_at < now() - interval '2 min'", KindTimers) == 0
	})
	if got := count(t, b.pool, "kind = $1::text", KindTimers); got != 7 {
		t.Errorf("%d young jobs are left, want 7", got)
	}
	if got := count(t, b.pool, "kind = 'host_job'"); got != 11 {
		t.Errorf("%d of the host's jobs are left, want 11", got)
	}
}

func TestAGuestAmongProcessesWithoutItsSweepStillGetsItsJobs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var leader *Jobs
	for _, kind := range []string{KindResume, KindOutbox} {
		client, workers, _ := newHost(t, b)
		config := b.config()
		config.Sweeps = []Sweep{b.sweep(kind)}
		config.Client, config.Workers = client, workers
		jobs, err := New(config)
		if err != nil {
			t.Fatal(err)
		}
		startJobs(t, jobs)
		startHost(t, client)
		if leader == nil {
			leader = jobs
			eventually(t, "the first one leads", leader.Leading)
		}
	}
	for range 3 {
		await(t, "a resumption", b.swept[KindResume])
	}
}

func TestTwoInstallationsInOneRiverDoNotTakeEachOthersJobs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	swept := map[string]chan struct{}{"romancy": make(chan struct{}, 1000), "other": make(chan struct{}, 1000)}
	for name, channel := range swept {
		client, workers, _ := newHost(t, b)
		config := b.config()
		config.Schema, config.Client, config.Workers = name, client, workers
		config.Sweeps = []Sweep{{Kind: KindResume, Run: func(context.Context) (int, error) {
			channel <- struct{}{}
			return 0, nil
		}}}
		jobs, err := New(config)
		if err != nil {
			t.Fatal(err)
		}
		startJobs(t, jobs)
		startHost(t, client)
	}
	// Only one of the two clients leads, and it ticks for its own installation.
	eventually(t, "the leader's installation sweeps", func() bool { return len(swept["romancy"])+len(swept["other"]) >= 3 })
	if len(swept["romancy"]) > 0 && len(swept["other"]) > 0 {
		t.Errorf("a job reached both installations: %d and %d sweeps", len(swept["romancy"]), len(swept["other"]))
	}
}

func TestGuestMistakesAreErrors(t *testing.T) {
	t.Parallel()
	b := setup(t)
	guest := func(client *river.Client[pgx.Tx], workers *river.Workers) (*Jobs, error) {
		config := b.config()
		config.Client, config.Workers = client, workers
		return New(config)
	}
	wantError := func(t *testing.T, err error, want string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one that says %q", err, want)
		}
	}
	t.Run("the client is already started", func(t *testing.T) {
		t.Parallel()
		client, workers, _ := newHost(t, b)
		startHost(t, client)
		_, err := guest(client, workers)
		wantError(t, err, "already started")
	})
	t.Run("the workers are another client's", func(t *testing.T) {
		t.Parallel()
		client, _, _ := newHost(t, b)
		_, err := guest(client, river.NewWorkers())
		wantError(t, err, "not the bundle that Client was made with")
	})
	t.Run("the workers have ours already", func(t *testing.T) {
		t.Parallel()
		client, workers, _ := newHost(t, b)
		if _, err := guest(client, workers); err != nil {
			t.Fatal(err)
		}
		_, err := guest(client, workers)
		wantError(t, err, "already registered")
	})
	t.Run("the client can only insert", func(t *testing.T) {
		t.Parallel()
		client, workers, _ := newHost(t, b, func(c *river.Config) { c.Queues = nil })
		jobs, err := guest(client, workers)
		if err != nil {
			t.Fatal(err)
		}
		wantError(t, jobs.Start(t.Context()), "a client that only inserts cannot sweep")
	})
	t.Run("the client never leads", func(t *testing.T) {
		t.Parallel()
		client, workers, _ := newHost(t, b, func(c *river.Config) { c.LeaderElectionDisabled = true })
		jobs, err := guest(client, workers)
		if err != nil {
			t.Fatal(err)
		}
		startJobs(t, jobs)
		wantError(t, errors.New(b.log.String()), "takes no part in leader election")
	})
}

func TestAPollOnlyHostSweepsToo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	client, workers, _ := newHost(t, b, func(c *river.Config) { c.PollOnly = true })
	config := b.config()
	config.Client, config.Workers = client, workers
	start(t, config)
	startHost(t, client)
	await(t, "a sweep", b.swept[KindResume])
}

func TestAHostThatClearsItsPeriodicJobsIsWarnedAbout(t *testing.T) {
	t.Parallel()
	b := setup(t)
	client, workers, _ := newHost(t, b)
	config := b.config()
	config.Client, config.Workers = client, workers
	jobs := start(t, config)
	client.PeriodicJobs().Clear()
	startHost(t, client)
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() { jobs.watch(ctx, 50*time.Millisecond) })
	eventually(t, "there is a warning", func() bool {
		return strings.Contains(b.log.String(), "no River leader enqueues our sweeps")
	})
	cancel()
	watching.Wait()
}

func TestAQueueThatAForgerHasPausedIsWarnedAbout(t *testing.T) {
	t.Parallel()
	b := setup(t)
	client, workers, _ := newHost(t, b)
	config := b.config()
	config.Client, config.Workers = client, workers
	jobs := start(t, config)
	startHost(t, client)
	await(t, "a sweep", b.swept[KindResume])
	stranger(t, b.pool)("romancy.river_control", `{"action":"pause","queue":"*"}`)
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() { jobs.watch(ctx, 2*time.Second) })
	eventually(t, "there is a warning", func() bool { return strings.Contains(b.log.String(), nobodyWorks) })
	cancel()
	watching.Wait()
}
