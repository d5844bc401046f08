package workflow_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// lineCount counts the lines of a log.
type lineCount struct {
	mu    sync.Mutex
	lines []string
}

func (l *lineCount) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(bytes.TrimSpace(line)))
	return len(line), nil
}

// mostHeap calls do and returns by how much the heap in use grew at most meanwhile, garbage included.
func mostHeap(do func()) (grown int64) {
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var most atomic.Uint64
	over := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(20 * time.Millisecond):
				runtime.ReadMemStats(&now)
				most.Store(max(most.Load(), now.HeapInuse))
			}
		}
	})
	do()
	close(over)
	watching.Wait()
	return int64(most.Load()) - int64(before.HeapInuse)
}

// storm has one session send forged notifications about runs, all different, until they are so many.
func storm(ctx context.Context, stranger *pgx.Conn, runs []string, notifications int) error {
	const perTransaction = 1000
	for sent := 0; sent < notifications; sent += perTransaction {
		var channels, payloads []string
		for n := sent; n < sent+perTransaction; n++ {
			id := runs[n/9%len(runs)]
			one := []forgery{
				{"workflow_cancelled", fmt.Sprintf(`{"instance_id":%q,"reason":"%d","ended":true}`, id, n)},
				{"workflow_ended", fmt.Sprintf(`{"instance_id":%q,"n":%d}`, id, n)},
				{"worker_left", fmt.Sprint(n)},
				{"run_later", fmt.Sprint(n)},
				{"workflow_resumable", fmt.Sprintf(`{"instance_id":"%s-%d","workflow_name":"listens"}`, id, n)},
				{"channel_message", fmt.Sprintf(`{"channel_name":"letters","message_id":%d,"target_instance_id":%q}`, n, id)},
				{"channel_message", fmt.Sprintf(`{"channel_name":"news","message_id":%d}`, n)},
				{"channel_message", fmt.Sprintf(`{"channel_name":"event:paid","message_id":%d}`, n)},
				{"channel_message", fmt.Sprintf(`{"channel_name":"letters","message_id":%d,"target_instance_id":"nobody-%d"}`, n, n)},
				{"channel_message", fmt.Sprintf(`garbage %d`, n)},
			}[n%9]
			channels, payloads = append(channels, "romancy_"+one.channel), append(payloads, one.payload)
		}
		channels, payloads = append(channels, "romancy_channel_message", "romancy_workflow_cancelled"), append(payloads, "", "")
		if _, err := stranger.Exec(ctx, "select pg_notify(c, p) from unnest($1::text[], $2::text[]) as u(c, p)", channels, payloads); err != nil {
			return err
		}
	}
	return nil
}

// A storm of forged notifications about all of many parked runs costs statements, memory and lines within
// bounds and no lease, and ordinary runs go on meanwhile.
func TestStormOfHintsIsBounded(t *testing.T) { //nolint:paralleltest // the heap is everybody's
	notifications := pgtest.Soak(1_000_000, 20_000)
	const parked = 2000
	pool, log := pgtest.Pool(t), new(lineCount)
	listens := workflow.Define("listens", func(ctx *workflow.Context, n int) (int, error) {
		if err := workflow.Subscribe(ctx, "news", workflow.Broadcast); err != nil {
			return 0, err
		}
		if n%2 == 0 {
			_, err := workflow.WaitEvent[int](ctx, "paid")
			return 1, err
		}
		err := workflow.Select(ctx, workflow.OnMessage("letters", func(workflow.Message[int]) error { return nil }),
			workflow.OnMessage("news", func(workflow.Message[int]) error { return nil }))
		return 1, err
	})
	w := startWorker(t, pool, []workflow.Definition{listens, steps}, func(c *workflow.Config, l *bus.ListenerConfig, _ *bus.NotifierConfig) {
		c.Lease = 10 * time.Second
		c.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelWarn}))
		l.Logger = c.Logger
	})
	stranger := connectAsStranger(t, pool)
	ctx, cancel := context.WithTimeout(t.Context(), 10*patience)
	defer cancel()
	asks := make([]workflow.StartRequest[int], parked)
	for n := range asks {
		asks[n].Input = n
	}
	started, err := listens.StartMany(ctx, w.Engine, asks)
	if err != nil {
		t.Fatal(err)
	}
	runs := make([]string, len(started))
	for n, run := range started {
		runs[n] = run.ID()
	}
	eventually(t, "all are parked", func() bool { return w.Status().Parked == parked })
	before, marks := w.Status(), w.listener.Status().Received
	began := time.Now()

	ordinary, failed := 0, make(chan error, 1)
	var slowest time.Duration
	grown := mostHeap(func() {
		go func() { failed <- storm(ctx, stranger, runs, notifications) }()
		for over := false; !over; ordinary++ {
			asked := time.Now()
			run, err := steps.Start(ctx, w.Engine, 1)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := run.Result(ctx); err != nil {
				t.Fatal(err)
			}
			slowest = max(slowest, time.Since(asked))
			select {
			case err := <-failed:
				if over = true; err != nil {
					t.Fatal(err)
				}
			default:
			}
		}
		eventually(t, "all is heard", func() bool { return w.listener.Status().Received-marks >= int64(notifications) })
		must(t, w.SendTo(ctx, runs[1], "letters", 1))
		if _, err := started[1].Result(ctx); err != nil {
			t.Error(err)
		}
	})
	took, after := time.Since(began), w.Status()
	log.mu.Lock()
	lines := len(log.lines)
	for _, line := range log.lines {
		t.Log(line)
	}
	log.mu.Unlock()
	commits := after.Commits - before.Commits
	t.Logf("%d notifications in %s: %d commits of %d operations, %d ordinary runs, the slowest in %s, heap +%d MiB, %d lines",
		notifications, took, commits, after.Operations-before.Operations, ordinary, slowest, grown>>20, lines)
	if after.Worker != before.Worker {
		t.Error("the lease was lost")
	}
	if after.Parked != parked-1 {
		t.Errorf("%d runs are parked, want %d", after.Parked, parked-1)
	}
	if n := count(t, pool, "select count(*) from romancy.instances where workflow = 'listens' and (status <> 'waiting' or cancel is not null or token > 1)"); n != 1 {
		t.Errorf("%d runs are not as they were, want the one that was written to", n)
	}
	// Ordinary runs are a few commits each. The loops' rounds are counted by time, whatever was sent.
	if limit := int64(10*ordinary) + 1000 + 1000*int64(took/time.Second+1); commits > limit {
		t.Errorf("%d commits, want at most %d", commits, limit)
	}
	if limit := int64(64 << 20); grown > limit {
		t.Errorf("the heap grew by %d MiB, want at most %d", grown>>20, limit>>20)
	}
	if lines > 20 {
		t.Errorf("%d lines were logged, want 20 at most", lines)
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		t.Error("it took too long")
	}
}
