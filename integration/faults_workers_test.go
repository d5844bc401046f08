package integration_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// faultsVictim is an engine with connections of its own, no fault among them, which a scenario does away with.
type faultsVictim struct {
	proxy  *pgtest.Proxy
	pool   *pgxpool.Pool
	engine *workflow.Engine
}

func (w *faultsWorld) startVictim(label string, flow workflow.Definition) (*faultsVictim, error) {
	v := &faultsVictim{proxy: pgtest.NewProxy(w.t, w.url)}
	config, err := pgxpool.ParseConfig(v.proxy.URL())
	if err != nil {
		return nil, err
	}
	if v.pool, err = pgxpool.NewWithConfig(w.ctx, config); err != nil {
		return nil, err
	}
	if v.engine, err = workflow.NewEngine(workflow.Config{
		Pool: v.pool, Workflows: []workflow.Definition{flow}, Label: label, Logger: slog.New(slog.DiscardHandler), FallbackInterval: w.fallback,
	}); err != nil {
		return nil, err
	}
	return v, v.engine.Start(w.ctx)
}

// end ends the victim, in order if its database can be reached.
func (v *faultsVictim) end(limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	_ = v.engine.Shutdown(ctx)
	v.pool.Close()
	v.proxy.Close()
}

// driveRescue has a worker die with a run, which another takes over.
func (w *faultsWorld) driveRescue() error {
	begun := make(chan struct{})
	var once sync.Once
	flow := w.defineStranded(func(ctx context.Context) (string, error) {
		once.Do(func() { close(begun) })
		<-ctx.Done()
		return "", ctx.Err()
	})
	victim, err := w.startVictim("victim", flow)
	if err != nil {
		return err
	}
	ids, startErr := w.strand(flow, victim.engine, begun)
	victim.proxy.Close() // from here on nothing that it does reaches the database
	victim.end(100 * time.Millisecond)
	if startErr != nil {
		return startErr
	}
	if _, err := w.direct.Exec(w.ctx, "update romancy.workers set lease_until = clock_timestamp() - interval '1 minute' where label = 'victim'"); err != nil {
		return err
	}
	for _, id := range ids {
		if err := wantResult(w, w.flows.stranded.Run(w.desk.Engine(), id), "rescued"); err != nil {
			return err
		}
	}
	return nil
}

// strand starts runs until the engine executes one: others may be faster.
func (w *faultsWorld) strand(flow *workflow.Workflow[int, string], engine *workflow.Engine, begun <-chan struct{}) (ids []string, err error) {
	for n := range 20 {
		id := fmt.Sprint("stranded-", n)
		run, err := flow.Start(w.ctx, engine, n, workflow.WithID(id))
		if err != nil {
			return ids, err
		}
		ids = append(ids, id)
		ended := make(chan error, 1)
		ctx, cancel := context.WithCancel(w.ctx)
		go func() {
			_, err := run.Result(ctx)
			ended <- err
		}()
		select {
		case <-begun:
			cancel()
			<-ended
			return ids, nil
		case <-ended:
			cancel()
		}
	}
	return ids, nil
}

// driveLapse has a worker lose its lease while it lives. It says so when it notices, and before it leaves at the latest.
func (w *faultsWorld) driveLapse() (err error) {
	pool, begun := w.pool(0, "guest"), make(chan struct{})
	var once sync.Once
	step := workflow.DefineActivity("lapse", func(ctx context.Context, _ int) (string, error) {
		first := false
		once.Do(func() { first = true; close(begun) })
		if !first {
			return "lived", nil
		}
		<-ctx.Done()
		return "", ctx.Err()
	})
	flow := workflow.Define("lapsed", func(ctx *workflow.Context, n int) (string, error) { return step.Execute(ctx, n) })
	var engine *workflow.Engine
	if err := w.persist("start who lapses", func() (err error) {
		engine, err = workflow.NewEngine(workflow.Config{
			Pool: pool, Workflows: []workflow.Definition{flow}, Label: "lapsed", Lease: 3 * time.Second, Logger: w.logger("lapsed"), FallbackInterval: w.fallback,
		})
		if err != nil {
			return err
		}
		return engine.Start(w.ctx)
	}); err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if ended := engine.Shutdown(ctx); err == nil && ended != nil {
			err = fmt.Errorf("shut down who has lapsed: %w", ended)
		}
	}()
	run, err := startRun(w, flow, engine, 1, workflow.WithID("lapsed"))
	if err != nil {
		return err
	}
	select {
	case <-begun:
	case <-w.ctx.Done():
		return fmt.Errorf("the run that is to lapse does not begin: %w", w.ctx.Err())
	}
	if _, err := w.direct.Exec(w.ctx, "update romancy.workers set lease_until = clock_timestamp() - interval '1 minute' where label = 'lapsed'"); err != nil {
		return err
	}
	return wantResult(w, run, "lived")
}

// driveFence, not part of drive, has a run become another worker's under the token that it had, as after commits that were lost in a failover.
// What the first worker did meanwhile must not be recorded.
func (w *faultsWorld) driveFence() error {
	begun, finish := make(chan struct{}), make(chan struct{})
	var once sync.Once
	flow := w.defineStranded(func(context.Context) (string, error) {
		first := false
		once.Do(func() { first = true; close(begun) })
		if !first { // it may be the rescuer, too
			return "rescued", nil
		}
		<-finish
		return "recorded by the first", nil
	})
	first, err := w.startVictim("first", flow)
	if err != nil {
		return err
	}
	defer first.end(5 * time.Second)
	defer sync.OnceFunc(func() { close(finish) })()
	if _, err := flow.Start(w.ctx, first.engine, 2, workflow.WithID("fenced")); err != nil {
		return err
	}
	select {
	case <-begun:
	case <-w.ctx.Done():
		return fmt.Errorf("the first worker does not begin: %w", w.ctx.Err())
	}
	if _, err := w.direct.Exec(w.ctx, `with another as (
			insert into romancy.workers (label, lease_until) values ('another', clock_timestamp() + interval '1 hour') returning id
		) update romancy.instances set worker = another.id from another where instances.id = 'fenced'`); err != nil {
		return err
	}
	return w.releaseFenced(finish)
}

// releaseFenced has the first worker try to record, and then the other one die.
func (w *faultsWorld) releaseFenced(finish chan struct{}) error {
	finish <- struct{}{}
	time.Sleep(500 * time.Millisecond) // long enough for a record that should not be
	if _, err := w.direct.Exec(w.ctx, "update romancy.workers set lease_until = clock_timestamp() - interval '1 minute' where label = 'another'"); err != nil {
		return err
	}
	rescuer, err := w.startVictim("rescuer", w.flows.stranded)
	if err != nil {
		return err
	}
	defer rescuer.end(5 * time.Second)
	return wantResult(w, w.flows.stranded.Run(w.desk.Engine(), "fenced"), "rescued")
}

// driveMove has a worker shut down in order while a run of its own executes and another waits: both end elsewhere.
func (w *faultsWorld) driveMove() error {
	pool := w.pool(0, "guest")
	var engine *workflow.Engine
	if err := w.persist("start the guest", func() (err error) {
		engine, err = workflow.NewEngine(workflow.Config{
			Pool: pool, Workflows: []workflow.Definition{w.flows.moved}, Label: "guest", Logger: slog.New(slog.DiscardHandler), FallbackInterval: w.fallback,
		})
		if err != nil {
			return err
		}
		return engine.Start(w.ctx)
	}); err != nil {
		return err
	}
	var runs []*workflow.Run[string]
	for n := range 2 {
		run, err := startRun(w, w.flows.moved, engine, n, workflow.WithID(fmt.Sprint("moved-", n)))
		if err != nil {
			return err
		}
		runs = append(runs, run)
	}
	if err := w.send("moved-0", "address", "address"); err != nil {
		return err
	}
	if err := w.awaitNotes("moved-0", 1); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := engine.Shutdown(ctx); err != nil {
		return fmt.Errorf("shut the guest down: %w", err)
	}
	if err := w.send("moved-1", "address", "address"); err != nil {
		return err
	}
	for _, run := range runs {
		if err := wantResult(w, w.flows.moved.Run(w.desk.Engine(), run.ID()), "moved"); err != nil {
			return err
		}
	}
	return nil
}
