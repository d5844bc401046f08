package integration_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/outbox"
	"github.com/romancy-go/romancy/workflow"
)

// crashTables are the application's own tables. Nothing in them is unique that the test counts, so that an effect which
// happened twice can be seen. The triggers watch the library's tables: intrusions holds every write of a run under a token
// that was not the current one any more, and every change of a run that had ended.
const crashTables = `
create schema shop;
create table shop.stock (product text primary key, units bigint not null);
create table shop.ledger (id bigint generated always as identity, order_id text not null, kind text not null, product text not null, units bigint not null, nonce bigint not null, worker text not null);
create table shop.calls (id bigint generated always as identity, key text not null, order_id text not null, step text not null, attempt integer not null, nonce bigint not null, worker text not null);
create table shop.payments (key text primary key, order_id text not null, kind text not null);
create table shop.deliveries (id bigint generated always as identity, event_id text not null, topic text not null, key text not null, worker text not null);
create table shop.trips (run text not null, what text not null);
create table shop.sent (key text primary key);
create table shop.intrusions (what text not null);

create function shop.watch_history() returns trigger language plpgsql as $$
declare
    run record;
begin
    select i.token, i.status into run from romancy.instances i where i.id = new.instance_id;
    if new.token < run.token or run.status in ('completed', 'failed', 'cancelled', 'continued') then
        insert into shop.intrusions values (format('history of %s, position %s: written under token %s while the run is %s under token %s',
            new.instance_id, new.position, new.token, run.status, run.token));
    end if;
    return null;
end $$;
create trigger watch after insert on romancy.history for each row execute function shop.watch_history();

create function shop.watch_instances() returns trigger language plpgsql as $$
begin
    if new.token < old.token or old.status in ('completed', 'failed', 'cancelled', 'continued') then
        insert into shop.intrusions values (format('run %s: changed from %s under token %s to %s under token %s',
            new.id, old.status, old.token, new.status, new.token));
    end if;
    return null;
end $$;
create trigger watch after update on romancy.instances for each row execute function shop.watch_instances();
`

const (
	crashProducts     = 5
	crashInitialStock = 1000
	crashAuditor      = "auditor"
)

// crashOrder is the input of a run. Everything that differs from one order to the next follows from its number.
type crashOrder struct {
	Number int
	Group  int // its orders wait for the same broadcast
}

func (o crashOrder) ID() string      { return fmt.Sprintf("order-%03d", o.Number) }
func (o crashOrder) product() string { return fmt.Sprintf("product-%d", o.Number%crashProducts) }
func (o crashOrder) units() int64    { return int64(1 + o.Number%7) }
func (o crashOrder) news() string    { return fmt.Sprintf("news-%d", o.Group) }

// refused orders fail in the end and are compensated.
func (o crashOrder) refused() bool { return o.Number%4 == 3 }

// failures is how often an activity fails before it succeeds.
func (o crashOrder) failures(step string) int {
	switch step {
	case "reserve":
		return o.Number % 2
	case "charge":
		return o.Number % 3
	case "refund":
		return o.Number / 4 % 2
	default:
		return 0
	}
}

// hopes orders wait for a message that never comes.
func (o crashOrder) hopes() bool { return o.Number%3 == 1 }

// leaves orders unsubscribe; the subscriptions of the others end with them.
func (o crashOrder) leaves() bool { return o.Number%2 == 0 }

// reports says how an order reaches the auditor: true by publishing, false by sending.
func (o crashOrder) publishes() bool { return o.Number%5 < 3 }

type crashReceipt struct {
	Nonce    int64
	Approval string
	Van      string
	News     string
}

type crashMessage struct{ Key string }

// crashShop is the application: the workflows with their activities. In a process that executes no runs only the
// definitions are used.
type crashShop struct {
	worker string
	log    *pgxpool.Pool // for what happens outside the runs' transactions
	outbox func() *outbox.Writer
}

type crashReservation struct {
	Order crashOrder
	Nonce int64
}

// crashFlows are the workflows by their types.
type crashFlows struct {
	order   *workflow.Workflow[crashOrder, crashReceipt]
	auditor *workflow.Workflow[int, []string]
}

func (f crashFlows) definitions() []workflow.Definition {
	return []workflow.Definition{f.order, f.auditor, clockFlow, tripFlow, parcelFlow, deadlyFlow}
}

func (s *crashShop) flows() crashFlows {
	retry := workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 50, InitialInterval: 20 * time.Millisecond, MaxInterval: 100 * time.Millisecond})
	reserve := workflow.DefineActivity("reserve", s.reserve, workflow.WithTransaction(), retry).WithCompensation(s.restock)
	charge := workflow.DefineActivity("charge", func(ctx context.Context, r crashReservation) (string, error) {
		return s.call(ctx, r, "charge")
	}, retry).WithCompensation(func(ctx context.Context, r crashReservation, _ string) error {
		_, err := s.call(ctx, r, "refund")
		return err
	})
	ship := workflow.DefineActivity("ship", func(ctx context.Context, r crashReservation) (string, error) {
		if _, err := s.call(ctx, r, "ship"); err != nil {
			return "", err
		}
		if r.Order.refused() {
			return "", workflow.Terminal(workflow.NewError("refused", "the carrier refused "+r.Order.ID()))
		}
		return "shipped", nil
	}, retry)

	order := workflow.Define("order", func(ctx *workflow.Context, o crashOrder) (crashReceipt, error) {
		var receipt crashReceipt
		if err := workflow.Subscribe(ctx, o.news(), workflow.Broadcast); err != nil {
			return receipt, err
		}
		var err error
		if receipt.Nonce, err = workflow.SideEffect(ctx, "nonce", func() (int64, error) { return rand.Int64(), nil }); err != nil {
			return receipt, err
		}
		reservation := crashReservation{Order: o, Nonce: receipt.Nonce}
		if _, err := reserve.Execute(ctx, reservation); err != nil {
			return receipt, err
		}
		if _, err := charge.Execute(ctx, reservation); err != nil {
			return receipt, err
		}
		if err := workflow.Sleep(ctx, time.Duration(o.Number%8)*20*time.Millisecond); err != nil {
			return receipt, err
		}
		if o.hopes() {
			_, err := workflow.Receive[crashMessage](ctx, "voucher", workflow.WithTimeout(50*time.Millisecond))
			if !errors.Is(err, workflow.ErrTimeout) {
				return receipt, fmt.Errorf("a message that nobody sent: %w", err)
			}
		}
		approval, err := workflow.Receive[crashMessage](ctx, "approvals")
		if err != nil {
			return receipt, err
		}
		receipt.Approval = approval.Body.Key
		if receipt.Van, err = takeVan(ctx, o); err != nil {
			return receipt, err
		}
		if err := report(ctx, o); err != nil {
			return receipt, err
		}
		news, err := workflow.Receive[crashMessage](ctx, o.news(), workflow.WithTimeout(time.Hour))
		if err != nil {
			return receipt, err
		}
		receipt.News = news.Body.Key
		_, err = ship.Execute(ctx, reservation)
		return receipt, err
	})
	return crashFlows{order: order, auditor: workflow.Define("audit", audit)}
}

// takeVan competes with the other orders for the vans.
func takeVan(ctx *workflow.Context, o crashOrder) (string, error) {
	if err := workflow.Subscribe(ctx, "vans", workflow.Competing); err != nil {
		return "", err
	}
	van, err := workflow.Receive[crashMessage](ctx, "vans")
	if err != nil {
		return "", err
	}
	if o.leaves() {
		err = workflow.Unsubscribe(ctx, "vans")
	}
	return van.Body.Key, err
}

// report tells the auditor of an order.
func report(ctx *workflow.Context, o crashOrder) error {
	if o.publishes() {
		return workflow.Publish(ctx, "audit", crashMessage{Key: o.ID()})
	}
	return workflow.SendTo(ctx, crashAuditor, "audit", crashMessage{Key: o.ID()})
}

// audit is one run for as long as the test lasts: it hears from every order once.
func audit(ctx *workflow.Context, orders int) ([]string, error) {
	if err := workflow.Subscribe(ctx, "audit", workflow.Competing); err != nil {
		return nil, err
	}
	var heard []string
	for range orders {
		message, err := workflow.Receive[crashMessage](ctx, "audit")
		if err != nil {
			return nil, err
		}
		heard = append(heard, message.Body.Key)
	}
	return heard, nil
}

// reserve is transactional: what it writes is there exactly once, however often it is attempted.
func (s *crashShop) reserve(ctx context.Context, r crashReservation) (int64, error) {
	err := s.move(ctx, r, "reserve", "order.placed", -r.Order.units())
	if info := workflow.ActivityInfo(ctx); err == nil && info.Attempt <= r.Order.failures("reserve") {
		err = fmt.Errorf("attempt %d fails after it has written", info.Attempt)
	}
	return r.Order.units(), err
}

func (s *crashShop) restock(ctx context.Context, r crashReservation, units int64) error {
	return s.move(ctx, r, "restock", "order.refused", units)
}

func (s *crashShop) move(ctx context.Context, r crashReservation, kind, topic string, units int64) error {
	tx := workflow.Tx(ctx)
	batch := &pgx.Batch{}
	batch.Queue(`insert into shop.ledger (order_id, kind, product, units, nonce, worker)
		values ($1::text, $2::text, $3::text, $4::bigint, $5::bigint, $6::text)`,
		r.Order.ID(), kind, r.Order.product(), units, r.Nonce, s.worker)
	batch.Queue("update shop.stock set units = units + $2::bigint where product = $1::text", r.Order.product(), units)
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return err
	}
	return s.outbox().Add(ctx, tx, outbox.Event{ID: kind + "-" + r.Order.ID(), Topic: topic, Key: r.Order.ID(), Payload: []byte(r.Order.ID())})
}

// call is a non-transactional activity: another system, which is told at least once and recognises what it has been told.
func (s *crashShop) call(ctx context.Context, r crashReservation, step string) (string, error) {
	info := workflow.ActivityInfo(ctx)
	if _, err := s.log.Exec(ctx, `insert into shop.calls (key, order_id, step, attempt, nonce, worker)
		values ($1::text, $2::text, $3::text, $4::integer, $5::bigint, $6::text)`,
		info.IdempotencyKey, r.Order.ID(), step, info.Attempt, r.Nonce, s.worker); err != nil {
		return "", err
	}
	if info.Attempt > r.Order.failures(step) {
		if _, err := s.log.Exec(ctx, "insert into shop.payments (key, order_id, kind) values ($1::text, $2::text, $3::text) on conflict do nothing",
			info.IdempotencyKey, r.Order.ID(), step); err != nil {
			return "", err
		}
	}
	select {
	case <-time.After(time.Duration(5+rand.IntN(120)) * time.Millisecond): // its answer takes time, and may find nobody
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if info.Attempt <= r.Order.failures(step) {
		return "", fmt.Errorf("attempt %d of %s fails", info.Attempt, step)
	}
	return info.IdempotencyKey, nil
}
