package workflow_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// passed is how many runs have come and gone under an old snapshot: enough for a look at all of them to be dear on any machine.
const passed = 100_000

// withOldSnapshot makes the database one in which nothing that is deleted can be removed, and many runs were ready.
func withOldSnapshot(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	ctx := testContext(t)
	conn, err := pgx.ConnectConfig(ctx, pool.Config().ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(ctx) }) // ends the transaction, whatever comes back
	if _, err := conn.Exec(ctx, "begin isolation level repeatable read; select count(*) from romancy.instances"); err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{
		`insert into romancy.instances (id, workflow, status, token, ready_at)
		 select 'run-' || n, 'steps', 'ready', 0, clock_timestamp() from generate_series(1, $1::integer) n`,
		`delete from romancy.instances where $1::integer > 0`,
	} {
		if _, err := pool.Exec(ctx, statement, passed); err != nil {
			t.Fatal(err)
		}
	}
}

// startElsewhere starts a run that somebody has to claim, and returns when it has ended.
func startElsewhere(ctx context.Context, t *testing.T, client *worker) {
	t.Helper()
	run, err := steps.Start(ctx, client.Engine, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := run.Result(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestFewClaimsReadWhatAnOldSnapshotKeeps(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	withOldSnapshot(t, pool)
	definitions := []workflow.Definition{steps}
	own := pgtest.Connect(t, pool.Config().ConnString(), func(c *pgxpool.Config) { c.ConnConfig.RuntimeParams["application_name"] = "own" })
	executor := startWorker(t, own, definitions)
	client := startWorker(t, pool, definitions, configured(func(c *workflow.Config) { c.ClientOnly = true }))
	ctx := testContext(t)
	const runs = 200
	for range runs {
		startElsewhere(ctx, t, client)
	}
	executor.shutdown(t)
	own.Close() // sessions report what they counted when they end
	eventually(t, "the executor's sessions have ended", func() bool {
		return count(t, pool, "select count(*) from pg_stat_activity where application_name like 'own%' and datname = current_database()") == 0
	})
	read := count(t, pool, "select idx_tup_read from pg_stat_user_indexes where schemaname = 'romancy' and indexrelname = 'instances_ready'")
	t.Logf("%d claims read %d index entries: %.1f times all that have passed", runs, read, float64(read)/passed)
	if read < passed {
		t.Error("that is not even once: this test shows nothing")
	}
	if read > runs/4*passed {
		t.Errorf("that is %d times all that have passed, want less than for every fourth claim", read/passed)
	}
}

// A run is ready since it was written, but can be seen when its transaction has committed, which may be long after the low-water
// mark has risen.
func TestRunOfATransactionThatCommitsLateIsClaimed(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	withOldSnapshot(t, pool)
	definitions := []workflow.Definition{steps}
	never := configured(func(c *workflow.Config) { c.FallbackInterval = time.Hour })
	startWorker(t, pool, definitions, never)
	client := startWorker(t, pool, definitions, never, configured(func(c *workflow.Config) { c.ClientOnly = true }))
	ctx := testContext(t)
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(ctx) }()
	late, err := steps.StartTx(ctx, tx, client.Engine, 1)
	if err != nil {
		t.Fatal(err)
	}
	for begun := time.Now(); time.Since(begun) < 3*time.Second/2; { // more than the margin of the mark
		startElsewhere(ctx, t, client)
	}
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := late.Result(ctx); err != nil {
		t.Error(err)
	}
}

var competitor = workflow.Define("competitor", func(ctx *workflow.Context, wanted int) (int, error) {
	if err := workflow.Subscribe(ctx, "jobs", workflow.Competing); err != nil {
		return 0, err
	}
	sum := 0
	for range wanted {
		message, err := workflow.Receive[int](ctx, "jobs")
		if err != nil {
			return 0, err
		}
		sum += message.Body
	}
	return sum, nil
})

// A message has its number since it was written, but can be seen when its transaction has committed, which may be long after
// later ones were taken.
func TestMessageOfATransactionThatCommitsLateIsTaken(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	w := startWorker(t, pool, []workflow.Definition{competitor}, configured(func(c *workflow.Config) { c.FallbackInterval = time.Hour }))
	ctx := testContext(t)
	run, err := competitor.Start(ctx, w.Engine, 3)
	if err != nil {
		t.Fatal(err)
	}
	subscribed := func() bool {
		return count(t, pool, "select count(*) from romancy.instances where status = 'waiting'") == 1
	}
	eventually(t, "it waits", subscribed)
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(ctx) }()
	if err := w.PublishTx(ctx, tx, "jobs", 1); err != nil {
		t.Fatal(err)
	}
	// Beyond the margin of the mark.
	if _, err := pool.Exec(ctx, "select nextval('romancy.mailbox_id_seq') from generate_series(1, 2000)"); err != nil {
		t.Fatal(err)
	}
	for _, value := range []int{10, 100} {
		if err := w.Publish(ctx, "jobs", value); err != nil {
			t.Fatal(err)
		}
		if value == 10 {
			eventually(t, "it has taken the first and waits", func() bool {
				return count(t, pool, "select count(*) from romancy.mailbox") == 0 && subscribed()
			})
			if err := tx.Commit(ctx); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it has taken the late one and waits", func() bool {
				return count(t, pool, "select count(*) from romancy.history where kind = 'receive'") == 2 && subscribed()
			})
		}
	}
	if sum, err := run.Result(ctx); err != nil || sum != 111 {
		t.Errorf("got %d, %v", sum, err)
	}
}
