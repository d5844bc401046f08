package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy"
	"github.com/romancy-go/romancy/internal/pgtest"
)

// settings are what the command line says.
type settings struct {
	orders int // how many; 0: all
	notify bool
	keep   bool
	out    io.Writer
}

func (s *settings) complete(notify string, rest []string) error {
	var errs []error
	switch strings.ToLower(notify) {
	case "on", "yes", "true", "1":
		s.notify = true
	case "off", "no", "false", "0":
	default:
		errs = append(errs, fmt.Errorf("-notify=%s: want on or off", notify))
	}
	if s.orders < 0 {
		errs = append(errs, fmt.Errorf("-orders %d: want a positive number, or 0 for all", s.orders))
	}
	if len(rest) > 0 {
		errs = append(errs, fmt.Errorf("unexpected argument %q", rest[0]))
	}
	return errors.Join(errs...)
}

// demo is the parent process's state.
type demo struct {
	settings

	all      []Order
	products []Product
	dir      string // the processes' logs and NATS's files
	server   *pgtest.Server
	dbURL    string
	dropDB   func(context.Context) error
	pool     *pgxpool.Pool
	broker   *broker
	children []*process // all that were started
	faults   faults
	started  time.Time
	took     time.Duration // from the first order to the end of the last run and event
}

// runDemo runs the whole demo and reports whether every check held. It leaves nothing running unless told to.
func runDemo(ctx context.Context, set settings) (passed bool, err error) {
	d := &demo{settings: set}
	if d.all, err = loadOrders(set.orders); err != nil {
		return false, err
	}
	if d.products, err = loadProducts(); err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, d.cleanUp(ctx)) }()
	if err := d.startParts(ctx); err != nil {
		return false, err
	}
	if err := d.runOrders(ctx); err != nil {
		return false, err
	}
	reports, err := d.stopChildren()
	if err != nil {
		return false, err
	}
	return d.judge(ctx, reports)
}

// startParts starts PostgreSQL and NATS, and creates the tables.
func (d *demo) startParts(ctx context.Context) (err error) {
	fmt.Fprintln(d.out, "Starting PostgreSQL (commits wait for the disk) and NATS with JetStream ...")
	options := []pgtest.Option{pgtest.Durable()}
	if d.keep {
		options = append(options, pgtest.Keep())
	}
	if d.server, err = pgtest.Start(ctx, options...); err != nil {
		return err
	}
	if d.dir, err = d.makeDir(); err != nil {
		return err
	}
	if d.dbURL, d.dropDB, err = d.server.CreateEmptyDatabase(ctx); err != nil {
		return err
	}
	if d.pool, err = pgxpool.New(ctx, d.dbURL); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if err := romancy.Migrate(ctx, d.pool); err != nil {
		return err
	}
	if err := createTables(ctx, d.pool, d.all, d.products); err != nil {
		return err
	}
	d.broker, err = startBroker(ctx, filepath.Join(d.dir, "jetstream"))
	return err
}

// makeDir makes a directory among the server's files: what a killed demo leaves there is removed by the next one.
func (d *demo) makeDir() (string, error) {
	if d.server.Dir() == "" { // the server is not ours
		return os.MkdirTemp("", "romancy-orders-")
	}
	dir := filepath.Join(d.server.Dir(), "demo")
	return dir, os.Mkdir(dir, 0o700)
}

// start starts a child.
func (d *demo) start(ctx context.Context, as role, name string) error {
	child, err := spawn(ctx, as, childConfig{
		Name: name, Database: d.dbURL, NATS: d.broker.url, Notify: d.notify, Orders: d.orders,
	}, d.dir)
	if err != nil {
		return err
	}
	d.children = append(d.children, child)
	return nil
}

// reports are what the children said at their end.
type reports struct {
	starter starterReport
	desk    deskReport
	workers map[string]workerReport // those that were not killed
}

// stopChildren stops those that still run, and reads all reports.
func (d *demo) stopChildren() (reports, error) {
	all := reports{workers: map[string]workerReport{}}
	var errs []error
	for _, child := range d.children {
		if err := child.stop(); err != nil {
			errs = append(errs, err)
			continue
		}
		switch {
		case child.killed:
		case child.name == string(roleStarter):
			errs = append(errs, child.decodeReport(&all.starter))
		case child.name == string(roleDesk):
			errs = append(errs, child.decodeReport(&all.desk))
		default:
			var report workerReport
			errs = append(errs, child.decodeReport(&report))
			all.workers[child.name] = report
		}
	}
	return all, errors.Join(errs...)
}

// cleanUp stops and removes what is left: everything, unless the demo was told to keep the database and not interrupted.
func (d *demo) cleanUp(ctx context.Context) error {
	var errs []error
	for _, child := range d.children {
		if child.running() {
			errs = append(errs, child.stop())
		}
	}
	if d.broker != nil {
		d.broker.stop()
	}
	if d.pool != nil {
		d.pool.Close()
	}
	if d.keep && d.pool != nil && !errors.Is(context.Cause(ctx), errInterrupted) {
		d.printKept()
		return errors.Join(errs...)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if d.dropDB != nil {
		errs = append(errs, d.dropDB(ctx)) // the server may not be ours
	}
	if d.dir != "" {
		errs = append(errs, os.RemoveAll(d.dir))
	}
	if d.server != nil {
		errs = append(errs, d.server.Stop(ctx))
	}
	return errors.Join(errs...)
}

func (d *demo) printKept() {
	fmt.Fprintf(d.out, "\nThe database is still running:\n  psql '%s'\nThe processes' logs and NATS's files:\n  %s\n", d.dbURL, d.dir)
	if pid := d.server.PID(); pid != 0 {
		fmt.Fprintf(d.out, "Stop it and remove everything:\n  kill -QUIT %d && rm -rf %s\n", pid, d.server.Dir())
	} else {
		fmt.Fprintf(d.out, "It is on the server that DATABASE_URL names; drop it when you are done.\n")
	}
}
