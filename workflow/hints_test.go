package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// connectAsStranger returns a connection of a role that may connect to the database and was granted nothing.
func connectAsStranger(t *testing.T, pool *pgxpool.Pool) *pgx.Conn {
	t.Helper()
	ctx := testContext(t)
	config := pool.Config().ConnConfig.Copy()
	role := "stranger_" + config.Database // roles are the cluster's
	if _, err := pool.Exec(ctx, "create role "+pgx.Identifier{role}.Sanitize()+" login password 'secret'"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := pool.Exec(context.WithoutCancel(ctx), "drop role "+pgx.Identifier{role}.Sanitize()); err != nil {
			t.Error(err)
		}
	})
	config.User, config.Password, config.Tracer = role, "secret", nil
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(ctx)) }) // it may be gone with its server
	if _, err := conn.Exec(ctx, "select id from romancy.instances"); err == nil {
		t.Fatal("the stranger may read the runs: this test shows nothing")
	}
	return conn
}

// forgery is a notification.
type forgery struct{ channel, payload string }

// forgeries are lies about a run, on every channel, as builds of several versions would tell them, with what
// garbles them.
func forgeries(id string) (told []forgery) {
	add := func(channel string, payloads ...string) {
		for _, payload := range payloads {
			told = append(told, forgery{"romancy_" + channel, strings.ReplaceAll(payload, "ID", id)})
		}
	}
	add("workflow_cancelled", `{"instance_id":"ID","reason":"x"}`, `{"instance_id":"ID","ended":true}`, `{"instance_id":"ID","reason":"x","ended":true}`,
		`{"instance_id":"ID"}`, ``, `{"instance_id":"ID","reason":"`+strings.Repeat("x", 7900)+`"}`, `{"instance_id":"ID","later":{"than":["this"]}}`)
	add("workflow_ended", `{"instance_id":"ID"}`, ``, `{"instance_id":"ID","status":"completed","output":7}`, `{"instance_id":"nobody"}`)
	add("run_later", ``, `{"worker":1}`, `ID`)
	add("worker_left", ``, `{"worker":1}`, `ID`)
	add("workflow_resumable", `{"instance_id":"ID","workflow_name":"hinted"}`, `{"instance_id":"ID"}`, ``, `{"instance_id":"nobody","workflow_name":"hinted"}`)
	add("timer_expired", `{"instance_id":"ID","timer_id":"timer:1","expires_at":"1970-01-01T00:00:00Z"}`,
		`{"instance_id":"ID","timer_id":"timer:1","expires_at":"9999-12-31T23:59:59Z"}`, `{"instance_id":"ID","expires_at":"tomorrow"}`, ``)
	for _, number := range []string{"1", "0", "-1", fmt.Sprint(math.MaxInt64), fmt.Sprint(math.MinInt64), "1e30", `"17"`, "null"} {
		add("channel_message", `{"channel_name":"letters","message_id":`+number+`,"target_instance_id":"ID"}`,
			`{"channel_name":"news","message_id":`+number+`}`, `{"channel_name":"jobs","message_id":`+number+`}`,
			`{"channel_name":"event:paid","message_id":`+number+`}`, `{"channel":"letters","message_id":`+number+`,"target_instance_id":"ID"}`)
	}
	add("channel_message", ``, `{"channel_name":"letters","target_instance_id":"`+strings.Repeat("x", 7900)+`"}`, `{"channel_name":"`+strings.Repeat("y", 7900)+`"}`)
	for _, one := range told {
		if n := len(one.payload); n > 2 {
			told = append(told, forgery{one.channel, one.payload[:n/2]}, forgery{one.channel, one.payload[:n-1]})
		}
	}
	return told
}

// tell sends notifications, each twice and in any order, and returns how many.
func tell(t *testing.T, stranger *pgx.Conn, told []forgery) int {
	t.Helper()
	told = append(told, told...)
	rand.Shuffle(len(told), func(i, j int) { told[i], told[j] = told[j], told[i] })
	batch := &pgx.Batch{}
	for _, one := range told {
		batch.Queue("begin")
		batch.Queue("select pg_notify($1, $2)", one.channel, one.payload)
		batch.Queue("commit") // one that is like another of the same transaction would not be sent
	}
	if err := stranger.SendBatch(testContext(t), batch).Close(); err != nil {
		t.Fatal(err)
	}
	return len(told)
}

// heardOut waits until workers have heard, and are done with, all that was told before: on each private
// channel and on that for messages something true about a decoy follows it.
func heardOut(t *testing.T, decoy *workflow.Workflow[int, int], client, w *worker) {
	t.Helper()
	ctx := testContext(t)
	cancelled, err := decoy.Start(ctx, w.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	written, err := decoy.Start(ctx, w.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Cancel(ctx, cancelled.ID(), "enough"); err != nil {
		t.Fatal(err)
	}
	if err := client.SendTo(ctx, written.ID(), "decoy", 1); err != nil {
		t.Fatal(err)
	}
	if _, err := decoy.Run(client.Engine, cancelled.ID()).Result(ctx); !errors.Is(err, workflow.ErrCancelled) {
		t.Fatal(err)
	}
	if _, err := decoy.Run(client.Engine, written.ID()).Result(ctx); err != nil {
		t.Fatal(err)
	}
}

// hinted is a run that comes to all that it can wait for, and counts what it does.
type hinted struct {
	flow     *workflow.Workflow[int, int]
	executed tally
	woke     atomic.Int64  // when the step after the sleep began, by the database's clock in microseconds
	begun    chan struct{} // has a token when the step is under way
	proceed  chan struct{} // lets it end
}

func newHinted(pool *pgxpool.Pool) *hinted {
	h := &hinted{begun: make(chan struct{}, 10), proceed: make(chan struct{}, 10)}
	step := workflow.DefineActivity("step", func(ctx context.Context, name string) (int, error) {
		h.executed.add(name)
		var now time.Time
		if err := pool.QueryRow(ctx, "select clock_timestamp()").Scan(&now); err != nil {
			return 0, err
		}
		h.woke.Store(now.UnixMicro())
		h.begun <- struct{}{}
		select {
		case <-h.proceed:
			return 1, nil
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}).WithCompensation(func(context.Context, string, int) error { h.executed.add("undone"); return nil })
	h.flow = workflow.Define("hinted", func(ctx *workflow.Context, _ int) (int, error) {
		for channel, mode := range map[string]workflow.Mode{"jobs": workflow.Competing} {
			if err := workflow.Subscribe(ctx, channel, mode); err != nil {
				return 0, err
			}
		}
		if err := workflow.Subscribe(ctx, "news", workflow.Broadcast); err != nil {
			return 0, err
		}
		sum := 0
		done, err := step.Execute(ctx, "first")
		if err != nil {
			return 0, err
		}
		sum += done
		for _, channel := range []string{"letters", "jobs", "news"} {
			message, err := workflow.Receive[int](ctx, channel, workflow.WithTimeout(time.Hour))
			if err != nil {
				return 0, err
			}
			sum += message.Body
		}
		paid, err := workflow.WaitEvent[int](ctx, "paid", workflow.WithTimeout(time.Hour))
		if err != nil {
			return 0, err
		}
		sum += paid.Data
		if err := workflow.Sleep(ctx, 3*time.Second); err != nil {
			return 0, err
		}
		beside := step.Go(ctx, "beside")
		if message, err := workflow.Receive[int](ctx, "letters", workflow.WithTimeout(time.Hour)); err != nil {
			return 0, err
		} else if sum += message.Body; message.Body != 100_000 {
			return 0, fmt.Errorf("got %d", message.Body)
		}
		done, err = beside.Get(ctx)
		return sum + done, err
	})
	return h
}

// A role that may connect and nothing else lies on every channel about a run, before it is there, while it
// executes and in each of its waits: it goes on as if nothing had been said, is executed once, and those who
// wait for its result have the right one.
func TestForgedNotificationsChangeNothing(t *testing.T) {
	t.Parallel()
	for name, options := range map[string][]workerOption{"in memory": nil, "evicted": {evicting}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lieAboutARun(t, options)
		})
	}
}

func lieAboutARun(t *testing.T, options []workerOption) {
	t.Helper()
	pool := pgtest.Pool(t)
	h := newHinted(pool)
	decoy := workflow.Define("decoy", func(ctx *workflow.Context, _ int) (int, error) {
		message, err := workflow.Receive[int](ctx, "decoy")
		return message.Body, err
	})
	definitions := []workflow.Definition{h.flow, decoy}
	hourly := configured(func(c *workflow.Config) { c.FallbackInterval = time.Hour })
	w := startWorker(t, pool, definitions, append(options, hourly)...)
	client := startWorker(t, pool, definitions, hourly, configured(func(c *workflow.Config) { c.ClientOnly = true }))
	stranger := connectAsStranger(t, pool)
	ctx, id := testContext(t), "order-1"
	lie := func() {
		t.Helper()
		tell(t, stranger, forgeries(id))
		heardOut(t, decoy, client, w)
	}
	waits := func(what string) {
		t.Helper()
		eventually(t, what, func() bool {
			return count(t, pool, `select count(*) from romancy.instances where id = $1 and status = 'waiting'
			                       and coalesce(wake_channels[1], 'sleep') = $2`, id, what) == 1
		})
		lie()
		if n := count(t, pool, `select count(*) from romancy.instances where id = $1 and status = 'waiting' and cancel is null and deaths = 0
			                    and coalesce(wake_channels[1], 'sleep') = $2`, id, what); n != 1 {
			t.Fatalf("the run does not wait for %s any more", what)
		}
	}

	lie() // before
	if _, err := h.flow.Start(ctx, client.Engine, 0, workflow.WithID(id)); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	var result atomic.Int64
	go func() {
		sum, err := h.flow.Run(client.Engine, id).Result(ctx)
		result.Store(int64(sum))
		ended <- err
	}()
	<-h.begun
	lie() // while it executes
	h.proceed <- struct{}{}
	waits("letters")
	must(t, client.SendTo(ctx, id, "letters", 10))
	waits("jobs")
	must(t, client.Publish(ctx, "jobs", 100))
	waits("news")
	must(t, client.Publish(ctx, "news", 1000))
	waits("event:paid")
	must(t, client.SendEvent(ctx, workflow.OutgoingEvent{Type: "paid", Source: "test", ID: "1", Data: 10_000}))
	eventually(t, "it sleeps", func() bool {
		return count(t, pool, "select count(*) from romancy.history where instance_id = $1 and name = 'sleep'", id) == 1
	})
	lie() // while it sleeps, and perhaps afterwards
	<-h.begun
	if n := count(t, pool, `select count(*) from romancy.history where instance_id = $1 and name = 'sleep'
	                        and (payload ->> 'fires_at_us')::bigint <= $2`, id, h.woke.Load()); n != 1 {
		t.Error("it has slept less than it was to")
	}
	lie() // while it waits beside a step
	must(t, client.SendTo(ctx, id, "letters", 100_000))
	select {
	case err := <-ended:
		t.Fatalf("the result is there before the end: %d, %v", result.Load(), err)
	default:
	}
	h.proceed <- struct{}{}
	if err := <-ended; err != nil || result.Load() != 111_112 {
		t.Errorf("the result is %d, %v; want 111112", result.Load(), err)
	}
	lie() // afterwards
	if sum, err := h.flow.Run(client.Engine, id).Result(ctx); err != nil || sum != 111_112 {
		t.Errorf("the result is %d, %v afterwards", sum, err)
	}
	if first, beside, undone := h.executed.of("first"), h.executed.of("beside"), h.executed.of("undone"); first != 1 || beside != 1 || undone != 0 {
		t.Errorf("steps were executed %d and %d times and undone %d times", first, beside, undone)
	}
	if n := count(t, pool, "select count(*) from romancy.interruptions") + count(t, pool, "select count(*) from romancy.mailbox"); n != 0 {
		t.Errorf("%d interruptions and messages are left", n)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A worker that is said to have left is not taken anything from, and what is said of the reason of a true
// cancellation is not read.
func TestWorkerOfWhichALieSaysThatItLeftKeepsItsRuns(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	h := newHinted(pool)
	w := startWorker(t, pool, []workflow.Definition{h.flow})
	other := startWorker(t, pool, []workflow.Definition{h.flow})
	stranger := connectAsStranger(t, pool)
	ctx := testContext(t)
	run, err := h.flow.Start(ctx, w.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	<-h.begun
	workers := count(t, pool, "select count(*) from romancy.workers")
	for range 50 {
		tell(t, stranger, []forgery{{"romancy_worker_left", ""}, {"romancy_worker_left", fmt.Sprint(w.Status().Worker)}})
	}
	if _, err := other.SweepResume(ctx); err != nil {
		t.Fatal(err)
	}
	if n := count(t, pool, "select count(*) from romancy.instances where status = 'running' and worker = $1 and token = 1", w.Status().Worker); n != 1 {
		t.Error("the run has another owner")
	}
	if now := count(t, pool, "select count(*) from romancy.workers"); now != workers {
		t.Errorf("there are %d workers, want %d", now, workers)
	}
	tell(t, stranger, []forgery{{"romancy_workflow_cancelled", `{"instance_id":"` + run.ID() + `","reason":"a lie"}`}})
	must(t, other.Cancel(ctx, run.ID(), "the truth", workflow.Compensate()))
	tell(t, stranger, []forgery{{"romancy_workflow_cancelled", `{"instance_id":"` + run.ID() + `","reason":"another lie"}`}})
	failed := new(workflow.RunError)
	if _, err := run.Result(ctx); !errors.As(err, &failed) || failed.Message != "the truth" {
		t.Errorf("got %v, want the reason that is in the table", err)
	}
}

// Whoever listens learns of a cancelled run that it is, and not why.
func TestNoNotificationTellsWhyARunIsCancelled(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("endless", func(ctx *workflow.Context, _ int) (int, error) { return 0, workflow.Sleep(ctx, time.Hour) })
	w := startWorker(t, pool, []workflow.Definition{flow})
	stranger := connectAsStranger(t, pool)
	ctx := testContext(t)
	for _, channel := range []string{"workflow_resumable", "timer_expired", "channel_message", "outbox_pending", "workflow_ended", "workflow_cancelled", "worker_left", "run_later"} {
		if _, err := stranger.Exec(ctx, "listen romancy_"+channel); err != nil {
			t.Fatal(err)
		}
	}
	for _, options := range [][]workflow.CancelOption{nil, {workflow.Compensate()}} {
		run, err := flow.Start(ctx, w.Engine, 0)
		if err != nil {
			t.Fatal(err)
		}
		must(t, w.Cancel(ctx, run.ID(), "a-diagnosis", options...))
		if _, err := run.Result(ctx); !errors.Is(err, workflow.ErrCancelled) {
			t.Fatal(err)
		}
	}
	if _, err := pool.Exec(ctx, "select pg_notify('romancy_worker_left', 'over')"); err != nil {
		t.Fatal(err)
	}
	cancelled := 0
	for {
		notification, err := stranger.WaitForNotification(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(notification.Payload, "diagnosis") {
			t.Errorf("on %s it says %q", notification.Channel, notification.Payload)
		}
		if notification.Channel == "romancy_workflow_cancelled" {
			cancelled++
		}
		if notification.Payload == "over" && cancelled >= 2 {
			return
		} else if notification.Payload == "over" { // the notifier is slower than we are
			if _, err := pool.Exec(ctx, "select pg_notify('romancy_worker_left', 'over')"); err != nil {
				t.Fatal(err)
			}
		}
	}
}
