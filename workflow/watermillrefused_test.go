package workflow_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// What the database says to a message decides whether it is rejected or comes again, by one table: only a value that can never
// be stored is the message's fault.
func TestHandlersRejectOnlyWhatCanNeverBeStored(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("order", func(_ *workflow.Context, n int) (int, error) { return n, nil })
	w := startWorker(t, pool, []workflow.Definition{flow})
	exec := func(sql string) {
		t.Helper()
		if _, err := pool.Exec(testContext(t), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	rejected := map[string]bool{}
	note := workflow.WithRejected(func(msg *message.Message, _ error) error {
		rejected[msg.UUID] = true
		return nil
	})
	handlers := map[string]struct {
		table  string
		handle message.NoPublishHandlerFunc
	}{
		"start": {"instances", w.StartHandler(flow, note)},
		"send":  {"mailbox", w.SendHandler("letters", note)},
	}
	for _, test := range []struct {
		sqlstate string
		poison   bool
	}{
		{"22P02", true},
		{"22003", true},
		{"54000", true},
		{"42501", false},
		{"42P01", false},
		{"42703", false},
		{"23514", false},
		{"28000", false},
		{"53300", false},
		{"53100", false},
		{"55P03", false},
		{"57014", false},
		{"40001", false},
		{"40P01", false},
		{"25006", false},
		{"57P01", false},
		{"58030", false},
		{"XX000", false},
		{"P0001", false},
	} {
		for name, handler := range handlers {
			uuid := name + test.sqlstate
			deliver := func() error {
				ctx, cancel := context.WithTimeout(testContext(t), 5*time.Second)
				defer cancel()
				msg := message.NewMessage(uuid, []byte("1"))
				msg.SetContext(ctx)
				return handler.handle(msg)
			}
			exec(fmt.Sprintf(`create or replace function refuse() returns trigger language plpgsql as $$ begin
					raise exception 'refused' using errcode = '%s';
				end $$;
				create trigger refuse before insert on romancy.%s for each row execute function refuse()`, test.sqlstate, handler.table))
			err := deliver()
			exec("drop trigger refuse on romancy." + handler.table)
			if rejected[uuid] != test.poison || (err == nil) != test.poison {
				t.Errorf("%s, %s: rejected %v, error %v", name, test.sqlstate, rejected[uuid], err)
			}
			if test.poison {
				continue
			}
			if err := deliver(); err != nil {
				t.Errorf("%s, after %s: %v", name, test.sqlstate, err)
			}
		}
	}
}

// The same with what really happens: a right that is taken away, and somebody's lock.
func TestMessagesComeAgainAfterARevokedRightAndALock(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	role := pool.Config().ConnConfig.Database + "_app"
	exec := func(sql string) {
		t.Helper()
		if _, err := pool.Exec(testContext(t), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	exec(fmt.Sprintf(`create role %[1]s login password 'secret'; grant usage on schema romancy to %[1]s;
		grant select, insert, update, delete on all tables in schema romancy to %[1]s`, role))
	t.Cleanup(func() {
		if _, err := pool.Exec(context.WithoutCancel(t.Context()), "drop owned by "+role+"; drop role "+role); err != nil {
			t.Error(err)
		}
	})
	config := pool.Config().ConnConfig
	restricted := pgtest.Connect(t, fmt.Sprintf("host=%s port=%d dbname=%s user=%s password=secret sslmode=disable",
		config.Host, config.Port, config.Database, role))
	flow := workflow.Define("order", func(_ *workflow.Context, n int) (int, error) { return n, nil })
	w := startWorker(t, restricted, []workflow.Definition{flow})
	reject := workflow.WithRejected(func(msg *message.Message, cause error) error {
		t.Errorf("%s rejected: %v", msg.UUID, cause)
		return nil
	})
	for name, handler := range map[string]struct {
		table  string
		handle message.NoPublishHandlerFunc
	}{
		"start": {"instances", w.StartHandler(flow, reject)},
		"send":  {"mailbox", w.SendHandler("letters", reject)},
	} {
		deliver := func(uuid string) error {
			ctx, cancel := context.WithTimeout(testContext(t), 3*time.Second)
			defer cancel()
			msg := message.NewMessage(uuid, []byte("1"))
			msg.SetContext(ctx)
			return handler.handle(msg)
		}
		exec("revoke insert on romancy." + handler.table + " from " + role)
		if err := deliver(name + "-revoked"); err == nil {
			t.Errorf("%s: acknowledged without the right to insert", name)
		}
		exec("grant insert on romancy." + handler.table + " to " + role)
		if err := deliver(name + "-revoked"); err != nil {
			t.Errorf("%s, with the right again: %v", name, err)
		}

		tx, err := pool.Begin(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
		if _, err := tx.Exec(testContext(t), "lock table romancy."+handler.table+" in share mode"); err != nil {
			t.Fatal(err)
		}
		if err := deliver(name + "-locked"); err == nil {
			t.Errorf("%s: acknowledged while the table is locked", name)
		}
		if err := tx.Rollback(testContext(t)); err != nil {
			t.Fatal(err)
		}
		eventually(t, name+" comes through after the lock", func() bool { return deliver(name+"-locked") == nil })
	}
	if n := count(t, pool, "select count(*) from romancy.instances where id in ('message:order::start-revoked', 'message:order::start-locked')"); n != 2 {
		t.Errorf("%d runs, want 2", n)
	}
}

// While the database refuses, a broker that delivers again at once is held up, more and more; and no longer after a success.
func TestHandlersHoldUpABrokerThatRedeliversAtOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	w := startWorker(t, pool, nil)
	handle := w.SendHandler("letters")
	if _, err := pool.Exec(testContext(t), "alter table romancy.mailbox add constraint somebodys check (false) not valid"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for range 6 {
		if err := handle(message.NewMessage("1", []byte("1"))); err == nil {
			t.Fatal("acknowledged")
		}
	}
	if took := time.Since(began); took < 750*time.Millisecond { // half of 50, 100, ..., 1600 ms is 1.6 s
		t.Errorf("six deliveries took %v", took)
	}
	if _, err := pool.Exec(testContext(t), "alter table romancy.mailbox drop constraint somebodys"); err != nil {
		t.Fatal(err)
	}
	if err := handle(message.NewMessage("1", []byte("1"))); err != nil {
		t.Errorf("after that: %v", err)
	}
}
