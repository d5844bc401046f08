package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy"
)

// engineBench is what the parts of the engine's benchmark share.
type engineBench struct {
	*bench
	desk   *pgxpool.Pool // on a database of its own, where the server's statistics are read
	bare   float64       // runs a second as plain inserts
	rounds int           // how often each measurement is repeated, the systems taking turns
}

// enginePart is a workload.
type enginePart struct {
	name string
	run  func(e *engineBench, ctx context.Context) error
}

var engineParts = []enginePart{
	{"w1", (*engineBench).throughput},
	{"w2", (*engineBench).wakeUp},
	{"w3", (*engineBench).timers},
	{"w4", (*engineBench).idle},
	{"w5", (*engineBench).recovery},
	{"w6", (*engineBench).full}, // and w7, on the same database
}

// runEngine measures the workflow engine beside DBOS, on one server. A part that fails does not keep the others from being
// measured.
func runEngine(ctx context.Context, b *bench) (err error) {
	chosen := engineParts
	if len(b.parts) > 0 {
		chosen = nil
		for _, name := range b.parts {
			i := slices.IndexFunc(engineParts, func(part enginePart) bool { return part.name == name })
			if i < 0 {
				return fmt.Errorf("-parts: there is no part %q, only: %s", name, strings.Join(enginePartNames(), ", "))
			}
			chosen = append(chosen, engineParts[i])
		}
	}
	desk, drop, err := b.server.CreateDatabase(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, drop(context.WithoutCancel(ctx))) }()
	e := &engineBench{bench: b, rounds: 5}
	if b.quick {
		e.rounds = 3
	}
	if e.desk, err = pgxpool.New(ctx, desk); err != nil {
		return err
	}
	defer e.desk.Close()
	if err := e.checkStatistics(ctx); err != nil {
		return err
	}
	var errs []error
	for _, part := range chosen {
		b.progressf("engine %s", part.name)
		if err := part.run(e, ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", part.name, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

func enginePartNames() []string {
	var all []string
	for _, part := range engineParts {
		all = append(all, part.name)
	}
	return all
}

// site is a system at work: a database of its own, and processes on it.
type site struct {
	system string
	label  string // for people
	url    string
	drop   func(context.Context) error
	worker *process // executes
	sender *process // signals from outside; nil unless asked for
}

// open makes a database and starts a worker process on it.
func (e *engineBench) open(ctx context.Context, system string) (*site, error) {
	create := e.server.CreateDatabase
	if system == systemDBOS { // which makes its own tables
		create = e.server.CreateEmptyDatabase
	}
	url, drop, err := create(ctx)
	if err != nil {
		return nil, err
	}
	s := &site{system: system, label: system, url: url, drop: drop}
	if system == systemRomancy {
		err = migrate(ctx, url) // River's tables, too
	}
	if err == nil {
		err = s.startWorker(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, s.close(ctx))
	}
	return s, nil
}

func migrate(ctx context.Context, url string) error {
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return err
	}
	defer pool.Close()
	return romancy.Migrate(ctx, pool)
}

// openBoth opens a site of each system, ours first.
func (e *engineBench) openBoth(ctx context.Context) ([]*site, error) {
	var sites []*site
	for _, system := range []string{systemRomancy, systemDBOS} {
		s, err := e.open(ctx, system)
		if err != nil {
			return nil, errors.Join(err, closeAll(ctx, sites))
		}
		sites = append(sites, s)
	}
	return sites, nil
}

func (s *site) startWorker(ctx context.Context) (err error) {
	s.worker, err = spawn(ctx, assignment{System: s.system, URL: s.url})
	return err
}

func (s *site) startSender(ctx context.Context) (err error) {
	if s.sender == nil {
		s.sender, err = spawn(ctx, assignment{System: s.system, URL: s.url, Outside: true})
	}
	return err
}

func (s *site) stopSender(ctx context.Context) error {
	sender := s.sender
	s.sender = nil
	return sender.stop(ctx)
}

// close kills the processes and drops the database: nothing in it is needed any more.
func (s *site) close(ctx context.Context) error {
	s.worker.kill()
	s.sender.kill()
	return s.drop(context.WithoutCancel(ctx))
}

func closeAll(ctx context.Context, sites []*site) error {
	var errs []error
	for _, s := range sites {
		errs = append(errs, s.close(ctx))
	}
	return errors.Join(errs...)
}

// takeTurns calls measure for every site in every round. Who begins changes from round to round.
func takeTurns(rounds int, sites []*site, measure func(round int, s *site) error) error {
	for round := range rounds {
		for _, s := range turn(round, sites) {
			if err := measure(round, s); err != nil {
				return err
			}
		}
	}
	return nil
}

// turn returns the order of the sites in a round.
func turn(round int, sites []*site) []*site {
	order := slices.Clone(sites)
	if round%2 == 1 {
		slices.Reverse(order)
	}
	return order
}

// bareRuns executes runs as plain inserts on one connection, seven commits each: start, five steps, end. It is what an
// engine with one durable write a step could do at the most, one run at a time.
func (e *engineBench) bareRuns(ctx context.Context, span time.Duration) (perSecond float64, err error) {
	conn, err := e.desk.Acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Release()
	if _, err := conn.Exec(ctx, "create table if not exists bare (id bigint generated always as identity primary key, payload json)"); err != nil {
		return 0, err
	}
	runs, begun := 0, time.Now()
	for time.Since(begun) < span {
		for range stepsPerRun + 2 {
			if _, err := conn.Exec(ctx, "insert into bare (payload) values ($1)", `{"output":1}`); err != nil {
				return 0, err
			}
		}
		runs++
	}
	return float64(runs) / time.Since(begun).Seconds(), nil
}

// progress tells whoever waits what is going on.
func (b *bench) progressf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}
