package workflow_test

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// meter is a provider to be read by hand.
type meter struct {
	*metric.MeterProvider

	reader *metric.ManualReader
}

func newMeter() meter {
	reader := metric.NewManualReader()
	return meter{metric.NewMeterProvider(metric.WithReader(reader)), reader}
}

func (m meter) option() workerOption {
	return configured(func(c *workflow.Config) { c.MeterProvider = m })
}

// figure is a value, or how many values there were and their sum.
type figure struct {
	value float64
	count uint64
}

// read returns the figures by name, or by name and attributes where there are any: "name{key=value}".
func (m meter) read(t testing.TB) map[string]figure {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := m.reader.Collect(context.Background(), &all); err != nil {
		t.Fatal(err)
	}
	figures := map[string]figure{}
	for _, scope := range all.ScopeMetrics {
		for _, metrics := range scope.Metrics {
			add := func(attributes attribute.Set, value float64, count uint64) {
				name := metrics.Name
				if attributes.Len() > 0 {
					name += "{" + attributes.Encoded(attribute.DefaultEncoder()) + "}"
				}
				figures[name] = figure{value, count}
			}
			switch data := metrics.Data.(type) {
			case metricdata.Sum[int64]:
				for _, point := range data.DataPoints {
					add(point.Attributes, float64(point.Value), 1)
				}
			case metricdata.Gauge[int64]:
				for _, point := range data.DataPoints {
					add(point.Attributes, float64(point.Value), 1)
				}
			case metricdata.Gauge[float64]:
				for _, point := range data.DataPoints {
					add(point.Attributes, point.Value, 1)
				}
			case metricdata.Histogram[int64]:
				for _, point := range data.DataPoints {
					add(point.Attributes, float64(point.Sum), point.Count)
				}
			case metricdata.Histogram[float64]:
				for _, point := range data.DataPoints {
					add(point.Attributes, point.Sum, point.Count)
				}
			}
		}
	}
	return figures
}

// One run of everything that is measured: each figure is what was done.
func TestEngineIsMeasured(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	attempts := tally{}
	flaky := workflow.DefineActivity("flaky", func(_ context.Context, n int) (int, error) {
		if attempts.add("flaky") == 1 {
			return 0, errors.New("not yet")
		}
		return n, nil
	}, workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 2, InitialInterval: time.Second}))
	flow := workflow.Define("measured", func(ctx *workflow.Context, n int) (int, error) {
		if _, err := flaky.Execute(ctx, n); err != nil {
			return 0, err
		}
		if err := workflow.Sleep(ctx, time.Second); err != nil { // long enough to be parked, however slow the commit
			return 0, err
		}
		_, err := workflow.Receive[int](ctx, "go")
		return n, err
	})
	failing := workflow.Define("failing", func(*workflow.Context, int) (int, error) { return 0, errors.New("no") })
	m := newMeter()
	w := startWorker(t, pool, []workflow.Definition{flow, failing}, m.option())
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 1)
	if err != nil {
		t.Fatal(err)
	}
	failed, err := failing.Start(ctx, w.Engine, 1, workflow.WithID("named"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := failed.Result(ctx); err == nil {
		t.Fatal("it did not fail")
	}
	eventually(t, "the run waits for the message", func() bool {
		return count(t, pool, "select count(*) from romancy.instances where 'go' = any (wake_channels)") == 1 && w.Status().Parked == 1
	})
	if got := m.read(t)["romancy.workflow.runs{state=parked}"].value; got != 1 {
		t.Errorf("%v runs are parked, want 1", got)
	}
	if err := w.SendTo(ctx, run.ID(), "go", 0); err != nil {
		t.Fatal(err)
	}
	if _, err := run.Result(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the runs have left", func() bool { return w.Status().Executing == 0 })
	got := m.read(t)
	for name, want := range map[string]float64{
		"romancy.workflow.runs.ended{status=completed,workflow=measured}": 1,
		"romancy.workflow.runs.ended{status=failed,workflow=failing}":     1,
		"romancy.workflow.runs{state=executing}":                          0,
		"romancy.workflow.runs{state=parked}":                             0,
		"romancy.workflow.resumed":                                        float64(w.Status().Resumed),
		"romancy.workflow.replayed":                                       0,
		"romancy.workflow.evicted":                                        0,
		"romancy.workflow.ready.depth{workflow=measured}":                 0,
		"romancy.workflow.ready.age{workflow=failing}":                    0,
	} {
		if figure, shown := got[name]; !shown || figure.value != want {
			t.Errorf("%s is %v (shown: %v), want %v", name, figure.value, shown, want)
		}
	}
	activity := "romancy.workflow.activity.duration{activity=flaky,kind=activity,outcome="
	for name, want := range map[string]uint64{
		activity + "completed,workflow=measured}": 1,
		activity + "failed,workflow=measured}":    1,
		"romancy.workflow.wake.latency":           1,
		"romancy.workflow.timer.lateness":         2, // of the sleep and of the second attempt
	} {
		if got[name].count != want || got[name].value < 0 || got[name].value > patience.Seconds() {
			t.Errorf("%s has %d values, %v s in all, want %d", name, got[name].count, got[name].value, want)
		}
	}
	w.shutdown(t)
	got, status := m.read(t), w.Status()
	if _, observed := got["romancy.workflow.replayed"]; observed {
		t.Error("an engine that is shut down is still observed")
	}
	batches := got["romancy.workflow.commit.batch{committer=runs}"]
	if batches.count != uint64(status.Commits) || batches.value != float64(status.Operations) {
		t.Errorf("%d batches of %v operations, want %d of %d", batches.count, batches.value, status.Commits, status.Operations)
	}
	if waits := got["romancy.workflow.commit.wait{committer=runs}"]; waits.count != batches.count {
		t.Errorf("%d batches have waited, want %d", waits.count, batches.count)
	}
	if starts := got["romancy.workflow.commit.duration{committer=starts}"]; starts.count != 1 {
		t.Errorf("%d starts with an id were written, want 1", starts.count)
	}
}

// Runs that nobody has room for are ready, and show for how long.
func TestReadyRunsOfABusyClusterAreMeasured(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	release := make(chan struct{})
	busy := workflow.DefineActivity("busy", func(ctx context.Context, n int) (int, error) {
		select {
		case <-release:
		case <-ctx.Done():
		}
		return n, nil
	})
	flow := workflow.Define("busy", func(ctx *workflow.Context, n int) (int, error) { return busy.Execute(ctx, n) })
	m := newMeter()
	w := startWorker(t, pool, []workflow.Definition{flow}, m.option(), configured(func(c *workflow.Config) { c.MaxConcurrentRuns = 1 }))
	ctx := testContext(t)
	runs, err := flow.StartMany(ctx, w.Engine, make([]workflow.StartRequest[int], 4))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "one run executes", func() bool { return w.Status().Executing == 1 })
	got := m.read(t)
	depth, age := got["romancy.workflow.ready.depth{workflow=busy}"].value, got["romancy.workflow.ready.age{workflow=busy}"].value
	if depth != 3 || age <= 0 {
		t.Errorf("%v runs are ready, the oldest for %v s, want 3", depth, age)
	}
	close(release)
	for _, run := range runs {
		if _, err := run.Result(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

// Evictions, the replays that follow, and the deadlines of evicted runs all count.
func TestEvictionsAreMeasured(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("evicted", func(ctx *workflow.Context, n int) (int, error) {
		return n, workflow.Sleep(ctx, time.Second)
	})
	m := newMeter()
	w := startWorker(t, pool, []workflow.Definition{flow}, m.option(), evicting)
	ctx := testContext(t)
	const sleepers = 20
	runs, err := flow.StartMany(ctx, w.Engine, make([]workflow.StartRequest[int], sleepers))
	if err != nil {
		t.Fatal(err)
	}
	for _, run := range runs {
		if _, err := run.Result(ctx); err != nil {
			t.Fatal(err)
		}
	}
	got := m.read(t)
	if evicted := got["romancy.workflow.evicted"].value; evicted == 0 || evicted != float64(w.Status().Evicted) {
		t.Errorf("%v evictions, want %d, more than none", evicted, w.Status().Evicted)
	}
	if replayed := got["romancy.workflow.replayed"].value; replayed == 0 || replayed != float64(w.Status().Replayed) {
		t.Errorf("%v replays, want %d, more than none", replayed, w.Status().Replayed)
	}
	if late := got["romancy.workflow.timer.lateness"]; late.count != sleepers {
		t.Errorf("%d deadlines were served, want %d", late.count, sleepers)
	}
}

func TestLostLeasesAreMeasured(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	m := newMeter()
	w := startWorker(t, pool, []workflow.Definition{steps}, m.option(), configured(func(c *workflow.Config) { c.Lease = time.Second }))
	ctx := testContext(t)
	before := w.Status().Worker
	if _, err := pool.Exec(ctx, "update romancy.workers set lease_until = clock_timestamp() - interval '1 second'"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the worker has another id", func() bool { id := w.Status().Worker; return id != 0 && id != before })
	if lost := m.read(t)["romancy.workflow.lease.losses"].value; lost < 1 {
		t.Errorf("%v leases were lost, want one", lost)
	}
}

// The table of docs/operations.md names every metric of the engine, and no other.
func TestMetricsAreDocumented(t *testing.T) {
	t.Parallel()
	names := func(pattern string, files ...string) map[string]bool {
		found := map[string]bool{}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, match := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(text), -1) {
				found[match[1]] = true
			}
		}
		return found
	}
	made := names(`"(romancy\.workflow\.[a-z._]+)"`, "metrics.go", "observedmetrics.go")
	documented := names("(?m)^\\| `(romancy\\.workflow\\.[a-z._]+)` ", filepath.Join("..", "docs", "operations.md"))
	if len(made) < 10 {
		t.Errorf("only %d metrics found: is this the right place?", len(made))
	}
	if !maps.Equal(made, documented) {
		t.Errorf("metrics made:\n%v\ndocumented:\n%v", slices.Sorted(maps.Keys(made)), slices.Sorted(maps.Keys(documented)))
	}
}
