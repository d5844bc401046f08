package integration_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// A check that cannot fail proves nothing: every kind of violation is planted in tables that are in order, and must be
// reported.
func TestCheckerFindsPlantedViolations(t *testing.T) {
	t.Parallel()
	w := newCrashWorld(t, pgtest.URL(t), func(*crashWorld) {})
	w.openFor(crashGroup)
	w.arrive(crashGroup)
	w.settle() // undisturbed, and reports nothing

	// Order 0 completed, reserved at position 3 at the first attempt, charged at 4; order 3 was refused and compensated.
	planted := []struct {
		name, sql string
		want      string // part of a violation; "" if there must be none
	}{
		{"nothing", "select 1", ""},
		{"call repeated", "insert into shop.calls (key, order_id, step, attempt, nonce, worker) select key, order_id, step, attempt, nonce, worker from shop.calls limit 1", ""},
		{"event delivered again", "insert into shop.deliveries (event_id, topic, key, worker) select event_id, topic, key, worker from shop.deliveries limit 1", ""},

		{"run lost", "delete from romancy.instances where id = 'order-000'", "run order-000 is missing"},
		{"run started twice", "insert into romancy.instances (id, workflow, status, token, ready_at) values ('order-x', 'order', 'completed', 1, now())", "run order-x was never started"},
		{"run not ended", "update romancy.instances set status = 'waiting' where id = 'order-000'", "run order-000 is a waiting of workflow order, want a completed"},
		{"refused order completed", "update romancy.instances set status = 'completed' where id = 'order-003'", "run order-003 is a completed"},
		{"end without an output", "update romancy.instances set output = null where id = 'order-000'", "run order-000 is completed, but"},
		{"owner is dead", "update romancy.instances set worker = 1000000 where id = 'order-000'", "run order-000 belongs to worker 1000000, which is dead"},
		{"deadline left", "update romancy.instances set wake_at = now() where id = 'order-000'", "run order-000 still has"},
		{"ended run revived", "update romancy.instances set status = 'running' where id = 'order-000'", "run order-000: changed from completed"},
		{"fence turned back", "update romancy.instances set token = token - 1 where id = 'order-000'", "run order-000: changed from completed"},

		{"step not recorded", "delete from romancy.history where instance_id = 'order-000' and position = 4", "history of order-000: position 5 follows position 3"},
		{"last step not recorded", "delete from romancy.history where instance_id = 'order-000' and name = 'ship'", "history of order-000 is"},
		{"step recorded twice", "insert into romancy.history (instance_id, position, token, kind, name) select instance_id, position + 1, token, kind, name from romancy.history where instance_id = 'order-000' order by position desc limit 1", "history of order-000 is"},
		{"another step recorded", "update romancy.history set name = 'refund' where instance_id = 'order-000' and position = 4", "history of order-000 is"},
		{"compensation missing", "delete from romancy.history where instance_id = 'order-003' and kind = 'compensation' and name = 'reserve'", "history of order-003 is"},
		{"history of nobody", "update romancy.history set instance_id = 'order-x' where instance_id = 'order-000'", "history of order-x, which was never started"},
		{"recorded by an earlier owner", "update romancy.history set token = 0 where instance_id = 'order-000' and position = 4", "history of order-000: position 4 has token 0 after"},
		{"zombie wrote", "insert into romancy.history (instance_id, position, token, kind, name) values ('order-000', 100, 0, 'activity', 'charge')", "history of order-000, position 100: written under token 0"},
		{"written after the end", "update romancy.history set created_at = created_at + interval '1 hour' where instance_id = 'order-000' and position = 4", "run order-000 has history from after its end"},

		{"failure forgotten", "delete from romancy.attempts where instance_id = 'order-001' and position = 3", "step 3 of order-001 failed 0 times, want 1"},
		{"failure invented", "insert into romancy.attempts (instance_id, position, attempt, error) values ('order-000', 3, 1, '{}')", "step 3 of order-000 failed 1 times, want 0"},
		{"failure recorded twice", "insert into romancy.attempts (instance_id, position, attempt, error) values ('order-001', 3, 2, '{}')", "step 3 of order-001 failed 2 times, want 1"},
		{"failures misnumbered", "update romancy.attempts set attempt = 2 where instance_id = 'order-001' and position = 3", "numbered 2 to 2"},
		{"failure of no step", "insert into romancy.attempts (instance_id, position, attempt, error) values ('order-000', 100, 1, '{}')", "failed attempts at position 100 of order-000"},

		{"message lost", `update romancy.history set payload = '{"timeout":true}' where instance_id = 'order-000' and kind = 'receive' and name = 'approvals'`, "message approval-order-000 was received by []"},
		{"message to another", `update romancy.history set payload = '{"id":1000000,"body":{"Key":"approval-order-001"}}' where instance_id = 'order-000' and kind = 'receive' and name = 'approvals'`, `message approval-order-001 was received by ["order-000" "order-001"]`},
		{"message to two competitors", "update romancy.history set payload = (select payload from romancy.history where instance_id = 'order-001' and kind = 'receive' and name = 'vans') where instance_id = 'order-000' and kind = 'receive' and name = 'vans'", "went to order-000 and to order-001"},
		{"broadcast missed one", "delete from romancy.history where instance_id = 'order-000' and kind = 'receive' and name = 'news-0'", "message news-0 was received by"},
		{"message from nowhere", `update romancy.history set payload = '{"id":1000000,"body":{"Key":"spam"}}' where instance_id = 'order-000' and kind = 'receive' and name = 'approvals'`, "message spam, which nobody sent"},
		{"published twice", "update romancy.history set payload = (select payload from romancy.history where instance_id = 'auditor' and position = 2) where instance_id = 'auditor' and position = 3", `went to auditor and to auditor`},

		{"mail left", "insert into romancy.mailbox (channel, mode, receiver, payload) values ('approvals', 'direct', 'order-000', '{}')", "on channel approvals is left for order-000"},
		{"subscription left", "insert into romancy.subscriptions (instance_id, channel, mode) values ('order-000', 'vans', 'competing')", "order-000 is still subscribed to vans"},
		{"dead worker not buried", "insert into romancy.workers (label, lease_until) values ('ghost', now() - interval '1 hour')", "(ghost) is still registered, its lease over"},
		{"event not delivered", "insert into romancy.outbox (event_id, topic, key, slot, payload) values ('e', 't', 'k', 0, '')", "event e is left in the outbox"},

		{"effect twice", "insert into shop.ledger (order_id, kind, product, units, nonce, worker) select order_id, kind, product, units, nonce, worker from shop.ledger where order_id = 'order-000'", "the ledger has 2 entries to reserve order-000, want 1"},
		{"effect lost", "delete from shop.ledger where order_id = 'order-003' and kind = 'restock'", "the ledger has 0 entries to restock order-003, want 1"},
		{"effect that should not be", "insert into shop.ledger (order_id, kind, product, units, nonce, worker) values ('order-000', 'restock', 'product-0', 1, 0, 'w')", "the ledger has an entry for order-000 restock"},
		{"effect of another size", "update shop.ledger set units = units - 1 where order_id = 'order-000'", "the ledger says -2 units"},
		{"recorded value forgotten", "update shop.ledger set nonce = nonce - 1 where order_id = 'order-000'", "the ledger's entry to reserve order-000 has another nonce"},
		{"stock wrong", "update shop.stock set units = units + 1 where product = 'product-0'", "units of product-0 are in stock"},

		{"step not executed", "delete from shop.calls where order_id = 'order-000' and step = 'charge'", "charge of order-000 was called with 0 keys"},
		{"attempt not executed", "delete from shop.calls where order_id = 'order-001' and step = 'charge' and attempt = 1", "charge of order-001 was called with 1 keys, 0 wrong nonces and 1 attempts, want 1, 0 and at least 2"},
		{"idempotency key changed", "update shop.calls set key = 'x' where id = (select max(id) from shop.calls where order_id = 'order-001' and step = 'charge')", "charge of order-001 was called with 2 keys"},
		{"recorded value made anew", "update shop.calls set nonce = nonce - 1 where order_id = 'order-000' and step = 'ship'", "ship of order-000 was called with 1 keys, 1 wrong nonces"},
		{"step that should not be", "update shop.calls set step = 'refund' where order_id = 'order-000' and step = 'ship'", "order-000 refund was called, which should not be"},
		{"paid twice", "insert into shop.payments values ('x', 'order-000', 'charge')", "charge of order-000 took effect 2 times"},
		{"refund that should not be", "insert into shop.payments values ('x', 'order-000', 'refund')", "order-000 refund took effect"},

		{"event lost", "delete from shop.deliveries where event_id = 'reserve-order-000'", "the events of order-000 were published as []"},
		{"event rolled back but published", "insert into shop.deliveries (event_id, topic, key, worker) values ('x', 'order.placed', 'order-000', 'w')", `"order.placed x"`},
		{"events out of order", "update shop.deliveries set id = default where event_id = 'reserve-order-003'", "the events of order-003 were published as"},
		{"events of nobody", "insert into shop.deliveries (event_id, topic, key, worker) values ('x', 'order.placed', 'order-x', 'w')", "events of order-x were published"},
	}
	errUndo := errors.New("undo")
	for _, plant := range planted {
		err := pgx.BeginFunc(w.ctx, w.pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(w.ctx, plant.sql); err != nil {
				return err
			}
			violations, err := w.check(tx)
			if err != nil {
				return err
			}
			report := strings.Join(violations, "\n")
			if plant.want == "" && report != "" || !strings.Contains(report, plant.want) {
				t.Errorf("%s: reported\n%s\nwant %q", plant.name, report, plant.want)
			}
			return errUndo
		})
		if !errors.Is(err, errUndo) {
			t.Errorf("%s: %v", plant.name, err)
		}
	}
}
