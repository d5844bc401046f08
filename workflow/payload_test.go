package workflow_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// largest is a string that has MaxPayload bytes as JSON.
var largest = strings.Repeat("x", workflow.MaxPayload-2)

var storing = workflow.Define("storing", func(_ *workflow.Context, text string) (int, error) { return len(text), nil })

// What is too large is refused before anything of it is written, with an error that says how large it is and what may be.
func TestWhatIsTooLargeIsRefused(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	pool := pgtest.Pool(t)
	client := startWorker(t, pool, []workflow.Definition{storing}, configured(func(c *workflow.Config) { c.ClientOnly = true }))
	run, err := storing.Start(ctx, client.Engine, "")
	if err != nil {
		t.Fatal(err)
	}
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	tooLarge := largest + "x"
	metadata := workflow.WithMetadata(map[string]string{"long": tooLarge})
	for name, do := range map[string]func() error{
		"start":    func() error { _, err := storing.Start(ctx, client.Engine, tooLarge); return err },
		"start tx": func() error { _, err := storing.StartTx(ctx, tx, client.Engine, tooLarge); return err },
		"delayed": func() error {
			_, err := storing.Start(ctx, client.Engine, tooLarge, workflow.WithDelay(time.Hour))
			return err
		},
		"send":     func() error { return client.SendTo(ctx, run.ID(), "letters", tooLarge) },
		"send tx":  func() error { return client.SendToTx(ctx, tx, run.ID(), "letters", tooLarge) },
		"publish":  func() error { return client.Publish(ctx, "letters", tooLarge) },
		"metadata": func() error { return client.Publish(ctx, "letters", 1, metadata) },
		"event": func() error {
			return client.SendEvent(ctx, workflow.OutgoingEvent{Type: "paid", Source: "shop", Data: tooLarge})
		},
		"event tx": func() error {
			return client.SendEventTx(ctx, tx, workflow.OutgoingEvent{Type: "paid", Source: "shop", Data: tooLarge})
		},
		"start two": func() error {
			_, err := storing.StartMany(ctx, client.Engine, []workflow.StartRequest[string]{{}, {Input: tooLarge}})
			return err
		},
	} {
		err := do()
		if !errors.Is(err, workflow.ErrTooLarge) || !strings.Contains(err.Error(), fmt.Sprint(workflow.MaxPayload)) || len(err.Error()) > 1000 {
			t.Errorf("%s: %.1000v", name, err)
		}
	}
	if err := tx.Commit(ctx); err != nil {
		t.Errorf("the caller's transaction is spoilt: %v", err)
	}
	for table, want := range map[string]int{"instances": 1, "mailbox": 0, "events": 0} {
		if got := count(t, pool, "select count(*) from romancy."+table); got != want {
			t.Errorf("%d rows in %s, want %d", got, table, want)
		}
	}
	// A message that is too large is as bad as one that is no JSON.
	var rejected error
	handle := client.SendHandler("letters", workflow.WithRejected(func(_ *message.Message, cause error) error { rejected = cause; return nil }))
	if err := handle(message.NewMessage("one", []byte(`"`+tooLarge+`"`))); err != nil || !errors.Is(rejected, workflow.ErrTooLarge) {
		t.Errorf("the handler returned %v and rejected the message for %v", err, rejected)
	}
}

// What is just not too large passes everywhere.
func TestTheLargestPayloadPassesEverywhere(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	copying := workflow.DefineActivity("copying", func(_ context.Context, text string) (string, error) { return text, nil })
	inTransaction := workflow.DefineActivity("in_transaction", func(_ context.Context, text string) (string, error) { return text, nil }, workflow.WithTransaction())
	flow := workflow.Define("carrying", func(ctx *workflow.Context, text string) (string, error) {
		carried, err := copying.Execute(ctx, text)
		if err != nil {
			return "", err
		}
		if carried, err = copying.Go(ctx, carried).Get(ctx); err != nil {
			return "", err
		}
		if carried, err = inTransaction.Execute(ctx, carried); err != nil {
			return "", err
		}
		if carried, err = workflow.SideEffect(ctx, "made", func() (string, error) { return carried, nil }); err != nil {
			return "", err
		}
		if err := workflow.SendEvent(ctx, workflow.OutgoingEvent{Type: "carried", ID: "1", Data: carried}); err != nil {
			return "", err
		}
		event, err := workflow.WaitEvent[string](ctx, "carried")
		if err != nil {
			return "", err
		}
		if err := workflow.SendTo(ctx, ctx.InstanceID(), "own", event.Data); err != nil {
			return "", err
		}
		letter, err := workflow.Receive[string](ctx, "own")
		return letter.Body, err
	})
	w := startWorker(t, pgtest.Pool(t), []workflow.Definition{flow})
	run, err := flow.Start(ctx, w.Engine, largest)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := run.Result(ctx); err != nil || got != largest {
		t.Errorf("%d bytes came through, %v", len(got), err)
	}
}

// An activity whose result is too large has failed, for good, and the workflow is told so in every execution. So has a run.
func TestAResultThatIsTooLargeIsAFailure(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	pool := pgtest.Pool(t)
	var executions, told atomic.Int32
	body := func(context.Context, int) (string, error) { executions.Add(1); return largest + "x", nil }
	retried := workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 5, InitialInterval: time.Millisecond})
	plain := workflow.DefineActivity("plain", body, retried)
	inTransaction := workflow.DefineActivity("in_transaction", body, retried, workflow.WithTransaction())
	flow := workflow.Define("hoarding", func(ctx *workflow.Context, _ int) (string, error) {
		results := []error{}
		_, err := plain.Execute(ctx, 0)
		results = append(results, err)
		_, err = inTransaction.Execute(ctx, 0)
		results = append(results, err)
		_, err = plain.Go(ctx, 0).Get(ctx)
		results = append(results, err)
		for _, err := range results {
			var failed *workflow.ActivityError
			if errors.Is(err, workflow.ErrTooLarge) && errors.As(err, &failed) && failed.Type == "too_large" && failed.Attempts == 1 {
				told.Add(1)
			} else {
				t.Errorf("the workflow is told %.300v", err)
			}
		}
		if _, err := workflow.Receive[int](ctx, "go"); err != nil {
			return "", err
		}
		if err := workflow.ContinueAsNew(ctx, largest+"x"); !errors.Is(err, workflow.ErrTooLarge) {
			t.Errorf("continuing as new with too much: %.300v", err)
		}
		return largest + "x", nil
	})
	one := startWorker(t, pool, []workflow.Definition{flow})
	run, err := flow.Start(ctx, one.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is parked", func() bool {
		return count(t, pool, "select count(*) from romancy.instances where status = 'waiting'") == 1
	})
	one.shutdown(t)
	two := startWorker(t, pool, []workflow.Definition{flow})
	if err := two.SendTo(ctx, run.ID(), "go", 1); err != nil {
		t.Fatal(err)
	}
	var ended *workflow.RunError
	_, err = flow.Run(two.Engine, run.ID()).Result(ctx)
	if !errors.Is(err, workflow.ErrTooLarge) || !errors.As(err, &ended) || ended.Status != workflow.StatusFailed {
		t.Errorf("the run ended with %.300v", err)
	}
	if executions.Load() != 3 || told.Load() != 6 {
		t.Errorf("%d executions, told %d times; want 3 and, with the replay, 6", executions.Load(), told.Load())
	}
}

// An error of any size is recorded: what is too long of it is clipped, and says so.
func TestALongErrorIsClipped(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	long := strings.Repeat("ä", 1<<20)
	activity := workflow.DefineActivity("verbose", func(context.Context, int) (int, error) {
		return 0, workflow.NewError("verbose", long).WithDetails(map[string]string{"log": long})
	})
	var told workflow.ActivityError
	flow := workflow.Define("listening", func(ctx *workflow.Context, _ int) (int, error) {
		_, err := activity.Execute(ctx, 0)
		if failed := new(workflow.ActivityError); errors.As(err, &failed) {
			told = *failed
		}
		return 0, err
	})
	w := startWorker(t, pgtest.Pool(t), []workflow.Definition{flow})
	run, err := flow.Start(ctx, w.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = run.Result(ctx)
	if len(told.Details) > 0 || !strings.HasSuffix(told.Message, "is the most)") || !strings.Contains(told.Message, "its details are left out") {
		t.Errorf("the workflow is told ...%.300s, with %d bytes of details", told.Message[max(len(told.Message)-300, 0):], len(told.Details))
	}
	var ended *workflow.RunError
	if !errors.As(err, &ended) || ended.Type != "verbose" || len(ended.Details) > 0 {
		t.Fatalf("the run ended with %.300v", err)
	}
	for _, message := range []string{told.Message, ended.Message} {
		if len(message) > 20<<10 || !strings.Contains(message, "ä... (") || !strings.Contains(message, "bytes more)") || strings.ContainsRune(message, '\uFFFD') {
			t.Errorf("clipped to %d bytes: ...%s", len(message), message[max(len(message)-300, 0):])
		}
	}
}

// ReceiveMany takes no more than what fits into a record, however many messages are there.
func TestReceiveManyTakesWhatFitsIntoARecord(t *testing.T) {
	t.Parallel()
	for _, mode := range []workflow.Mode{workflow.Direct, workflow.Competing} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			ctx := testContext(t)
			pool := pgtest.Pool(t)
			half := strings.Repeat("x", workflow.MaxPayload/2-1000)
			flow := workflow.Define("collecting", func(ctx *workflow.Context, _ int) ([]int, error) {
				var batches []int
				err := workflow.Subscribe(ctx, "loads", mode)
				for total := 0; total < 7 && err == nil; {
					var batch []workflow.Message[string]
					batch, err = workflow.ReceiveMany[string](ctx, "loads", 100)
					batches = append(batches, len(batch))
					for _, one := range batch {
						if want := fmt.Sprint(total, half); one.Body != want {
							return nil, fmt.Errorf("message %d begins %.10q", total, one.Body)
						}
						total++
					}
				}
				return batches, err
			})
			client := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.ClientOnly = true }))
			run, err := flow.Start(ctx, client.Engine, 0)
			if err != nil {
				t.Fatal(err)
			}
			for n := range 7 {
				send := func() error { return client.SendTo(ctx, run.ID(), "loads", fmt.Sprint(n, half)) }
				if mode == workflow.Competing {
					send = func() error { return client.Publish(ctx, "loads", fmt.Sprint(n, half)) }
				}
				if err := send(); err != nil {
					t.Fatal(err)
				}
			}
			w := startWorker(t, pool, []workflow.Definition{flow})
			batches, err := flow.Run(w.Engine, run.ID()).Result(ctx)
			// The first of a batch, and no more than the most besides.
			if fmt.Sprint(batches) != "[3 3 1]" || err != nil {
				t.Errorf("received in batches of %v, %v", batches, err)
			}
		})
	}
}

// A history that is too long for one answer is loaded in parts.
func TestALongHistoryIsReplayedInParts(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience) // megabytes are encoded and decoded, beside other tests
	defer cancel()
	pool := pgtest.Pool(t)
	const steps, size = 40, 200_000 // eight megabytes
	var executions atomic.Int32
	noise := workflow.DefineActivity("noise", func(_ context.Context, n int) ([]byte, error) {
		executions.Add(1)
		bytes := make([]byte, size) // which do not get smaller when the database compresses them
		source := rand.New(rand.NewPCG(uint64(n), 0))
		for i := range bytes {
			bytes[i] = byte(source.Uint32())
		}
		return bytes, nil
	})
	flow := workflow.Define("noisy", func(ctx *workflow.Context, seed int) (string, error) {
		sum := 0
		for n := range steps {
			bytes, err := noise.Execute(ctx, seed+n)
			if err != nil {
				return "", err
			}
			for _, one := range bytes {
				sum += int(one)
			}
		}
		_, err := workflow.Receive[int](ctx, "go")
		return fmt.Sprint(sum), err
	})
	const runs = 3
	var started []*workflow.Run[string]
	one := startWorker(t, pool, []workflow.Definition{flow})
	for n := range runs {
		run, err := flow.Start(ctx, one.Engine, n*1000)
		if err != nil {
			t.Fatal(err)
		}
		started = append(started, run)
	}
	eventually(t, "they are parked", func() bool {
		return count(t, pool, "select count(*) from romancy.instances where status = 'waiting'") == runs
	})
	one.shutdown(t)
	two := startWorker(t, pool, []workflow.Definition{flow})
	for n, run := range started {
		if err := two.SendTo(ctx, run.ID(), "go", 1); err != nil {
			t.Fatal(err)
		}
		want := 0
		for i := range steps {
			source := rand.New(rand.NewPCG(uint64(n*1000+i), 0))
			for range size {
				want += int(byte(source.Uint32()))
			}
		}
		if got, err := flow.Run(two.Engine, run.ID()).Result(ctx); err != nil || got != fmt.Sprint(want) {
			t.Errorf("run %d returned %s, %v; want %d", n, got, err, want)
		}
	}
	if executions.Load() != runs*steps {
		t.Errorf("%d executions, want %d", executions.Load(), runs*steps)
	}
}

// A value that could be recorded and not be read back would leave its run stuck for good, and a message all that receive it.
func TestValuesNestedTooDeepAreRefused(t *testing.T) {
	t.Parallel()
	nested := func(depth int) json.RawMessage {
		return json.RawMessage(strings.Repeat(`["]\\",`, depth-1) + "[" + strings.Repeat("]", depth))
	}
	read := workflow.Define("read", func(ctx *workflow.Context, how string) (int, error) {
		if how == "many" {
			messages, err := workflow.ReceiveMany[json.RawMessage](ctx, "letters", 2)
			return len(messages), errors.Join(err, workflow.Sleep(ctx, time.Millisecond))
		}
		if how == "choice" {
			got := 0
			err := workflow.Select(ctx, workflow.OnMessage("letters", func(workflow.Message[json.RawMessage]) error { got++; return nil }))
			return got, errors.Join(err, workflow.Sleep(ctx, time.Millisecond))
		}
		_, err := workflow.Receive[json.RawMessage](ctx, "letters")
		return 1, errors.Join(err, workflow.Sleep(ctx, time.Millisecond))
	})
	deep := workflow.DefineActivity("deep", func(_ context.Context, depth int) (json.RawMessage, error) { return nested(depth), nil })
	fails := workflow.DefineActivity("fails", func(_ context.Context, depth int) (int, error) {
		return 0, workflow.Terminal(workflow.NewError("deep", "with details").WithDetails(nested(depth)))
	})
	steps := workflow.Define("steps", func(ctx *workflow.Context, depth int) (int, error) {
		_, err := deep.Execute(ctx, depth)
		_, failed := fails.Execute(ctx, depth)
		if typed := (*workflow.Error)(nil); !errors.As(failed, &typed) || typed.Type != "deep" {
			return 0, failed
		}
		if err := workflow.Sleep(ctx, time.Millisecond); err != nil {
			return 0, err
		}
		if errors.Is(err, workflow.ErrTooLarge) {
			return -1, nil
		}
		return depth, err
	})
	w := startWorker(t, pgtest.Pool(t), []workflow.Definition{read, steps}, configured(func(c *workflow.Config) { c.CacheSize = 1 }))
	ctx := testContext(t)
	var runs []*workflow.Run[int]
	for _, how := range []string{"one", "many", "choice"} {
		run, err := read.Start(ctx, w.Engine, how, workflow.WithID(how))
		if err != nil {
			t.Fatal(err)
		}
		runs = append(runs, run)
		for _, depth := range []int{10_000, 9_991, 9_990} {
			if err := w.SendTo(ctx, how, "letters", nested(depth)); errors.Is(err, workflow.ErrTooLarge) != (depth > 9_990) {
				t.Errorf("a message of %d levels: %v", depth, err)
			}
		}
	}
	for _, run := range runs {
		if got, err := run.Result(ctx); err != nil || got != 1 {
			t.Errorf("%s: %d, %v", run.ID(), got, err)
		}
	}
	for depth, want := range map[int]int{9_990: 9_990, 9_991: -1, 10_000: -1} {
		run, err := steps.Start(ctx, w.Engine, depth)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := run.Result(ctx); err != nil || got != want {
			t.Errorf("steps with %d levels: %d, %v", depth, got, err)
		}
	}
}
