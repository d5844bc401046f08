package integration_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/romancy-go/romancy/workflow"
)

func newFaultsMessage(ctx context.Context) *message.Message {
	return message.NewMessageWithContext(ctx, watermill.NewUUID(), []byte("{}"))
}

// check returns what must not be: what activities did in memory, and what the tables say.
func (w *faultsWorld) check() []string {
	var wrong []string
	wrongf := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	w.checkBodies(wrongf)
	w.checkAttempts(wrongf)
	w.checkMessages(wrongf)
	w.checkTables(wrongf)
	slices.Sort(wrong)
	return wrong
}

// checkSoFar returns what must not be at any time.
func (w *faultsWorld) checkSoFar() []string {
	var wrong []string
	wrongf := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	w.checkBodies(wrongf)
	w.checkStuck(wrongf)
	slices.Sort(wrong)
	return wrong
}

// checkStuck: nothing that may pass makes a run stuck.
func (w *faultsWorld) checkStuck(wrongf func(string, ...any)) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	type row struct{ ID, Error string }
	err := each(&checker{ctx: ctx, db: w.direct}, "select id, coalesce(error::text, '') from romancy.instances where status = 'stuck'", func(r row) {
		wrongf("%s is stuck: %s", r.ID, r.Error)
	})
	if err != nil {
		wrongf("check the tables: %v", err)
	}
}

// checkBodies: no body of a living worker is executed again, unless its transaction was lost, and no attempt is missing.
func (w *faultsWorld) checkBodies(wrongf func(string, ...any)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for e, times := range w.begun {
		run, _, _ := strings.Cut(e.Key, "/")
		allowed := 1
		if e.Tx {
			allowed += w.interruptions(run, wrongf)
		}
		if times > allowed {
			wrongf("attempt %d of %s (%s) was executed %d times and returned %d times, want %d at most", e.Attempt, e.Name, e.Key, times, w.returned[e], allowed)
		}
	}
}

// interruptions returns how many executions of a run's steps the engine has counted as interrupted.
func (w *faultsWorld) interruptions(run string, wrongf func(string, ...any)) (number int) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := w.direct.QueryRow(ctx, "select count(*) from romancy.interruptions where instance_id = $1", run).Scan(&number); err != nil {
		wrongf("count the interruptions of %s: %v", run, err)
	}
	return number
}

// faultsAttempts is how often each step of an order is attempted by the model.
func faultsAttempts(o faultsOrder) map[string]int {
	attempts := map[string]int{"reserve": 1, "charge": 1, "pack": 1, "label": 1, "ship": 1}
	if o.fails(2) {
		attempts["reserve"]++
		attempts["pack"]++
	}
	if o.fails(3) {
		attempts["charge"]++
	}
	if o.refused() {
		for _, undone := range []string{"reserve", "charge", "pack"} {
			attempts["undo "+undone] = 2
		}
	}
	return attempts
}

// checkAttempts: what failed by itself is attempted again, and nothing else is a failure. What the database refuses to a
// transaction may be one of the body's.
func (w *faultsWorld) checkAttempts(wrongf func(string, ...any)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	type step struct{ run, name string }
	made, transactions := map[step]int{}, map[string]bool{}
	for e := range w.returned {
		run, _, _ := strings.Cut(e.Key, "/")
		made[step{run, e.Name}]++ // distinct attempts
		transactions[e.Name] = transactions[e.Name] || e.Tx
	}
	for n := range faultsOrders {
		o := faultsOrder(n)
		for name, want := range faultsAttempts(o) {
			got := made[step{o.id(), name}]
			if got < want || got > want && !transactions[name] {
				wrongf("%s of %s was attempted %d times, want %d", name, o.id(), got, want)
			}
		}
	}
}

// checkMessages: nothing is received twice, nothing is lost.
func (w *faultsWorld) checkMessages(wrongf func(string, ...any)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	want := map[string]int{}
	for n := range faultsOrders {
		o := faultsOrder(n)
		for _, key := range []string{"approved", "remark 1", "remark 2", "extra"} {
			want[o.id()+" <- "+key] = 1
		}
		want[faultsAuditor+" <- "+o.id()] = 1
	}
	for n := range 3 {
		want[fmt.Sprintf("buyer-%d <- paid %d", n, n)], want[fmt.Sprintf("buyer-%d <- thanks %d", n, n)] = 1, 1
	}
	for n := range faultsReaders {
		want[fmt.Sprintf("reader-%d <- story %d", n, n%4)] = 1
	}
	for n := range 2 {
		if !w.sweeps() {
			break // none has moved
		}
		want[fmt.Sprintf("moved-%d <- address", n)] = 1
	}
	for n := range faultsLetters {
		want[fmt.Sprintf("%s <- letter %d", faultsPal, n)] = 1
	}
	vans := map[string]int{}
	for what, times := range w.noted {
		if _, van, ok := strings.Cut(what, " <- van "); ok {
			vans[van] += times
		} else if want[what] != times {
			wrongf("%s: received %d times, want %d", what, times, want[what])
		}
		delete(want, what)
	}
	for what := range want {
		wrongf("%s: never received", what)
	}
	for n := range faultsOrders {
		if id := faultsOrder(n).id(); vans[id] != 1 {
			wrongf("van %s was taken %d times, want once", id, vans[id])
		}
	}
	events := []string{"slow"}
	for n := range faultsBulk {
		events = append(events, fmt.Sprint("bulk-", n+1))
	}
	for _, event := range append(events, "event-0-0", "event-0-1", "event-0-2", "event-1-0", "event-1-1", "event-1-2", "poison-requeued") {
		if times := w.published[event]; times != 1 {
			wrongf("%s was published %d times, want once", event, times)
		}
	}
}

// checkTables: what transactions did is there once, all runs have ended, and no worker lost its lease.
func (w *faultsWorld) checkTables(wrongf func(string, ...any)) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	type row struct {
		What  string
		Times int
	}
	report := func(query string, found func(r row)) {
		if err := each(&checker{ctx: ctx, db: w.direct}, query, found); err != nil {
			wrongf("check the tables: %v", err)
		}
	}
	effects := map[string]int{}
	report("select what, count(*)::int from shop.effects group by 1", func(r row) { effects[r.What] = r.Times })
	for what, want := range map[string]int{"reserve": 6, "undo reserve": 2, "label": 6, "book": 5, "undo book": 3} {
		if effects[what] != want {
			wrongf("%s took effect %d times in all, want %d", what, effects[what], want)
		}
	}
	report("select what || ' of ' || key, count(*)::int from shop.effects group by what, key having count(*) > 1", func(r row) {
		wrongf("%s took effect %d times", r.What, r.Times)
	})
	report("select id || ' of workflow ' || workflow || ' is ' || status || coalesce(': ' || error::text, ''), 1 from romancy.instances where status in ('ready', 'running', 'waiting', 'stuck')", func(r row) {
		wrongf("%s", r.What)
	})
	report("select 'a message on channel ' || channel || ' for ' || coalesce(receiver, 'anybody'), count(*)::int from romancy.mailbox where channel not in ('vans', 'audit', 'lost') and coalesce(receiver, '') not like '"+faultsGhosts+"%' group by 1", func(r row) {
		wrongf("%s is left %d times", r.What, r.Times)
	})
	report("select 'the news for ' || receiver, count(*)::int from romancy.mailbox where receiver like '"+faultsGhosts+"%' group by 1 having count(*) > 1", func(r row) {
		wrongf("%s is there %d times", r.What, r.Times)
	})
	w.checkLeases(ctx, wrongf)
}

// checkLeases: each worker has the lease that it began with.
func (w *faultsWorld) checkLeases(ctx context.Context, wrongf func(string, ...any)) {
	for who, id := range w.workers {
		var holds bool
		err := w.direct.QueryRow(ctx, "select exists (select from romancy.workers where id = $1::bigint and lease_until > clock_timestamp())", id).Scan(&holds)
		if err != nil || !holds {
			wrongf("%s lost the lease that it began with (%v)", who, err)
		}
	}
}

// rowOf returns what the database knows of a run.
func (w *faultsWorld) rowOf(id string) string {
	var row string
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := w.direct.QueryRow(ctx, `select json_build_object('status', i.status, 'worker', i.worker, 'token', i.token, 'wake_at', i.wake_at, 'now', now(),
			'channels', i.wake_channels, 'history', (select json_agg(json_build_array(h.position, h.kind, h.name, h.token) order by h.position)
			from romancy.history h where h.instance_id = i.id), 'waits', (select json_agg(e.*) from romancy.event_waits e where e.instance_id = i.id))::text
		from romancy.instances i where i.id = $1::text`, id).Scan(&row); err != nil {
		return err.Error()
	}
	return row
}

// persistUnlessEnded is persist, but a run's failure is its result.
func (w *faultsWorld) persistUnlessEnded(what string, call func() error) error {
	var ended *workflow.RunError
	err := w.persist(what, func() error {
		err := call()
		if errors.As(err, &ended) {
			return nil
		}
		return err
	})
	if ended != nil {
		return ended
	}
	return err
}
