package integration_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// modelTables are the application's. Nothing in them is unique, so that what happened twice can be seen.
const modelTables = `
create schema model;
create table model.effects (id bigint generated always as identity, program text not null, act text not null, kind text not null, seen text not null);
create table model.heard (key text not null);
`

// modelPatience bounds a check: it only decides how long a failure takes.
const modelPatience = time.Minute

// modelEffect is that an activity of a program has done or undone something.
type modelEffect struct{ Program, Act, Kind, Seen string }

// modelWorld is a database on which generated programs are executed, check after check, by engines of their own.
type modelWorld struct {
	t         *testing.T
	url       string
	pool      *pgxpool.Pool
	client    *modelEngine
	flow      *workflow.Workflow[modelInput, []string]
	collector *workflow.Workflow[modelCollector, int]
	keeper    *workflow.Workflow[string, string]
	hear      *workflow.Activity[string, int]
	checks    int

	ending sync.WaitGroup // engines that were killed

	mu    sync.Mutex
	notes map[modelEffect]int // what happened outside of transactions
}

func newModelWorld(t *testing.T) *modelWorld {
	t.Helper()
	w := &modelWorld{t: t, url: pgtest.URL(t), notes: map[modelEffect]int{}}
	w.pool = pgtest.Connect(t, w.url)
	for _, tables := range []string{crashTables, modelTables} {
		if _, err := w.pool.Exec(t.Context(), tables); err != nil {
			t.Fatal(err)
		}
	}
	w.flow = workflow.Define("program", w.execute)
	w.collector = workflow.Define("collector", w.collect)
	w.keeper = workflow.Define("keeper", keep)
	w.hear = workflow.DefineActivity("hear", func(ctx context.Context, key string) (int, error) {
		_, err := workflow.Tx(ctx).Exec(ctx, "insert into model.heard (key) values ($1::text)", key)
		return 0, err
	}, workflow.WithTransaction(), workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 1000, InitialInterval: 5 * time.Millisecond, MaxInterval: 10 * time.Millisecond}))
	client, err := w.startEngine(t.Context(), modelEngineConfig{Notify: true, ClientOnly: true}, "client")
	if err != nil {
		t.Fatal(err)
	}
	w.client = client
	t.Cleanup(func() {
		w.ending.Wait()
		if err := client.shutdown(modelPatience); err != nil {
			t.Error(err)
		}
	})
	return w
}

// effect is exactly once in the transaction of an activity, and at least once outside.
func (w *modelWorld) effect(ctx context.Context, effect modelEffect, tx bool) error {
	if !tx {
		w.note(effect)
		return nil
	}
	_, err := workflow.Tx(ctx).Exec(ctx, "insert into model.effects (program, act, kind, seen) values ($1::text, $2::text, $3::text, $4::text)",
		effect.Program, effect.Act, effect.Kind, effect.Seen)
	return err
}

func (w *modelWorld) note(effect modelEffect) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.notes[effect]++
}

// noted is what the notes say of a program.
func (w *modelWorld) noted(program string) map[modelEffect]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	found := map[modelEffect]int{}
	for effect, times := range w.notes {
		if effect.Program == program {
			found[effect] = times
		}
	}
	return found
}

type modelEngineConfig struct {
	Notify     bool // notifications arrive, and are sent
	Cache      int  // parked runs kept in memory; 0: all
	Concurrent int  // runs that execute at one time; 0: all
	ClientOnly bool
}

// modelEngine is an engine as a process has it: with connections of its own, which can be broken.
type modelEngine struct {
	label    string
	config   modelEngineConfig
	proxy    *pgtest.FaultProxy
	pool     *pgxpool.Pool
	listener *bus.Listener
	notifier *bus.Notifier
	engine   *workflow.Engine
}

func (w *modelWorld) startEngine(ctx context.Context, config modelEngineConfig, label string) (*modelEngine, error) {
	e := &modelEngine{label: label, config: config, proxy: pgtest.NewFaultProxy(w.t, w.url)}
	poolConfig, err := pgxpool.ParseConfig(e.proxy.URL())
	if err != nil {
		return nil, err
	}
	poolConfig.MaxConns = 6
	if e.pool, err = pgxpool.NewWithConfig(ctx, poolConfig); err != nil {
		return nil, err
	}
	quiet := slog.New(slog.DiscardHandler)
	if e.listener, err = bus.NewListener(bus.ListenerConfig{Pool: e.pool, Disabled: !config.Notify, Logger: quiet}); err != nil {
		return nil, err
	}
	if e.notifier, err = bus.NewNotifier(bus.NotifierConfig{Pool: e.pool, Disabled: !config.Notify, Logger: quiet}); err != nil {
		return nil, err
	}
	if e.engine, err = workflow.NewEngine(workflow.Config{
		Pool: e.pool, Workflows: []workflow.Definition{w.flow, w.collector, w.keeper}, ClientOnly: config.ClientOnly, Label: label,
		Listener: e.listener, Notifier: e.notifier, Logger: quiet,
		Lease: time.Second, FallbackInterval: time.Second, CacheSize: config.Cache, MaxConcurrentRuns: config.Concurrent,
	}); err != nil {
		return nil, err
	}
	if err := errors.Join(e.listener.Start(ctx), e.notifier.Start(ctx)); err != nil {
		return nil, err
	}
	return e, e.engine.Start(ctx)
}

// shutdown ends the engine, in order if its database can be reached.
func (e *modelEngine) shutdown(limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	err := errors.Join(e.engine.Shutdown(ctx), e.listener.Close(context.Background()), e.notifier.Close(context.Background()))
	e.pool.Close()
	e.proxy.Close()
	if err != nil {
		return fmt.Errorf("shut %s down: %w", e.label, err)
	}
	return nil
}

// modelFault is what happens to one of the engines.
type modelFault struct {
	Kind  string
	Pause time.Duration // before it
	Slot  int
	Then  modelEngineConfig // of the engine that takes the place of one that ends
	// Inject is what a statement suffers.
	Inject pgtest.Fault
}

const (
	faultKill    = "kill"         // gone, its lease to run out by itself
	faultBury    = "kill and say" // gone, and its lease with it
	faultExpire  = "expire"       // its lease is over, and it does not know
	faultSever   = "sever"        // all its connections break
	faultFreeze  = "freeze"       // for longer than its lease
	faultRestart = "restart"      // in order
	faultInject  = "inject"       // a statement is refused, cut or late
)

// modelFleet is the engines of one check.
type modelFleet struct {
	w       *modelWorld
	ctx     context.Context //nolint:containedctx // the check's
	name    string
	engines []*modelEngine
	started int
}

func (f *modelFleet) start(config modelEngineConfig) (*modelEngine, error) {
	f.started++
	return f.w.startEngine(f.ctx, config, fmt.Sprintf("%s-engine-%d", f.name, f.started))
}

func (f *modelFleet) suffer(fault modelFault) error {
	select {
	case <-time.After(fault.Pause):
	case <-f.ctx.Done():
		return f.ctx.Err()
	}
	victim := f.engines[fault.Slot]
	switch fault.Kind {
	case faultExpire:
		return f.expire(victim)
	case faultSever:
		victim.proxy.Cut()
		return nil
	case faultInject:
		victim.proxy.Inject(fault.Inject)
		return nil
	case faultFreeze:
		victim.proxy.Stall()
		defer victim.proxy.Resume()
		if err := f.expire(victim); err != nil {
			return err
		}
		// Its runs are others' before it goes on.
		select {
		case <-time.After(600 * time.Millisecond):
		case <-f.ctx.Done():
		}
		return nil
	case faultRestart:
		if err := victim.shutdown(modelPatience); err != nil {
			return err
		}
	default:
		victim.proxy.Close() // from here on nothing that it does reaches the database
		f.w.ending.Go(func() { _ = victim.shutdown(100 * time.Millisecond) })
		if fault.Kind == faultBury {
			if err := f.expire(victim); err != nil {
				return err
			}
		}
	}
	next, err := f.start(fault.Then)
	if err == nil {
		f.engines[fault.Slot] = next
	}
	return err
}

func (f *modelFleet) expire(victim *modelEngine) error {
	_, err := f.w.pool.Exec(f.ctx, "update romancy.workers set lease_until = clock_timestamp() where label = $1::text", victim.label)
	return err
}

// disband ends the engines that live.
func (f *modelFleet) disband() error {
	var errs []error
	for _, e := range f.engines {
		errs = append(errs, e.shutdown(modelPatience))
	}
	return errors.Join(errs...)
}
