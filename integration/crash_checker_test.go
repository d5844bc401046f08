package integration_test

import (
	"context"
	"fmt"
	"slices"
)

// expectOrders is what the library's tables should say after these orders. Every order is told of one approval, one van and
// the news of its group.
func expectOrders(orders []crashOrder) expectation {
	var want expectation
	var ids []string
	groups := map[string][]string{}
	audit := expectedRun{ID: crashAuditor, Workflow: "audit", Status: "completed", Steps: []string{"subscribe audit"}}
	for _, o := range orders {
		ids = append(ids, o.ID())
		groups[o.news()] = append(groups[o.news()], o.ID())
		audit.Steps = append(audit.Steps, "receive audit")
		want.Runs = append(want.Runs, expectOrder(o))
	}
	want.Runs = append(want.Runs, audit)
	for _, o := range orders {
		want.Mail = append(want.Mail,
			expectedMail{Key: o.approval(), All: []string{o.ID()}},
			expectedMail{Key: o.van(), OneFrom: ids},
			expectedMail{Key: o.ID(), All: []string{crashAuditor}})
	}
	for news, members := range groups {
		want.Mail = append(want.Mail, expectedMail{Key: news, All: members})
	}
	return want
}

func (o crashOrder) approval() string { return "approval-" + o.ID() }
func (o crashOrder) van() string      { return "van-" + o.ID() }

func expectOrder(o crashOrder) expectedRun {
	run := expectedRun{ID: o.ID(), Workflow: "order", Status: "completed", Failures: map[int]int{}}
	add := func(steps ...string) { run.Steps = append(run.Steps, steps...) }
	failing := func(step string, times int) {
		add(step)
		run.Failures[len(run.Steps)] = times
	}
	add("subscribe "+o.news(), "side_effect nonce")
	failing("activity reserve", o.failures("reserve"))
	failing("activity charge", o.failures("charge"))
	add("timer sleep")
	if o.hopes() {
		add("timer receive:voucher", "receive voucher")
	}
	add("receive approvals", "subscribe vans", "receive vans")
	if o.leaves() {
		add("unsubscribe vans")
	}
	if o.publishes() {
		add("publish audit")
	} else {
		add("send audit")
	}
	add("timer receive:"+o.news(), "receive "+o.news(), "activity ship")
	if o.refused() {
		run.Status = "failed"
		add("failing ")
		failing("compensation charge", o.failures("refund"))
		failing("compensation reserve", 0)
	}
	return run
}

// shopChecker compares the application's own tables with what orders should have left there.
type shopChecker struct {
	*checker
	orders []crashOrder
	// away: the database was away now and then, so an attempt may have failed before it could be noted.
	away bool
}

// check returns every violation in all tables, one sentence each.
func (w *crashWorld) check(db querier) ([]string, error) {
	want := expectOrders(w.orders)
	want.Runs = append(want.Runs, w.others...)
	want.Mail = append(want.Mail, w.mail...)
	want.MoreFailures = w.unreliable
	violations, err := checkRuns(w.ctx, db, want)
	if err != nil {
		return nil, err
	}
	c := &shopChecker{checker: &checker{ctx: w.ctx, db: db, violations: violations}, orders: w.orders, away: w.unreliable}
	for _, check := range []func() error{c.ledger, c.stock, c.calls, c.payments, c.deliveries, c.intrusions} {
		if err := check(); err != nil {
			return nil, err
		}
	}
	return c.violations, nil
}

// ledger: the effect of every transactional step is there exactly once, with the value that history has.
func (c *shopChecker) ledger() error {
	type row struct {
		Order, Kind, Product string
		Units                int64
		Nonces, Entries      int
	}
	found := map[string]row{}
	err := each(c.checker, `select l.order_id, l.kind, min(l.product), sum(l.units)::bigint,
			count(*) filter (where h.payload::text = l.nonce::text)::int, count(*)::int
		from shop.ledger l left join romancy.history h on h.instance_id = l.order_id and h.kind = 'side_effect' and h.name = 'nonce'
		group by 1, 2`, func(r row) { found[r.Order+" "+r.Kind] = r })
	if err != nil {
		return err
	}
	for _, o := range c.orders {
		wanted := map[string]int64{"reserve": -o.units()}
		if o.refused() {
			wanted["restock"] = o.units()
		}
		for kind, units := range wanted {
			r := found[o.ID()+" "+kind]
			delete(found, o.ID()+" "+kind)
			switch {
			case r.Entries != 1:
				c.reportf("the ledger has %d entries to %s %s, want 1", r.Entries, kind, o.ID())
			case r.Product != o.product() || r.Units != units:
				c.reportf("the ledger says %d units of %s to %s %s, want %d of %s", r.Units, r.Product, kind, o.ID(), units, o.product())
			case r.Nonces != 1:
				c.reportf("the ledger's entry to %s %s has another nonce than history", kind, o.ID())
			}
		}
	}
	for entry := range found {
		c.reportf("the ledger has an entry for %s, which should not be", entry)
	}
	return nil
}

func (c *shopChecker) stock() error {
	wanted := map[string]int64{}
	for i := range crashProducts {
		wanted[crashOrder{Number: i}.product()] = crashInitialStock
	}
	for _, o := range c.orders {
		if !o.refused() {
			wanted[o.product()] -= o.units()
		}
	}
	type row struct {
		Product string
		Units   int64
	}
	return each(c.checker, "select product, units from shop.stock", func(r row) {
		if r.Units != wanted[r.Product] {
			c.reportf("%d units of %s are in stock, want %d", r.Units, r.Product, wanted[r.Product])
		}
	})
}

// calls: every non-transactional step was executed, each of its attempts too, and with the value that history has.
func (c *shopChecker) calls() error {
	type row struct {
		Order, Step            string
		Keys, Nonces, Attempts int
	}
	found := map[string]row{}
	err := each(c.checker, `select c.order_id, c.step, count(distinct c.key)::int,
			count(*) filter (where h.payload::text is distinct from c.nonce::text)::int, count(distinct c.attempt)::int
		from shop.calls c left join romancy.history h on h.instance_id = c.order_id and h.kind = 'side_effect' and h.name = 'nonce'
		group by 1, 2`, func(r row) { found[r.Order+" "+r.Step] = r })
	if err != nil {
		return err
	}
	for _, o := range c.orders {
		for _, step := range o.calls() {
			r := found[o.ID()+" "+step]
			delete(found, o.ID()+" "+step)
			attempts := 1 + o.failures(step)
			if c.away {
				attempts = 1
			}
			if r.Keys != 1 || r.Nonces != 0 || r.Attempts < attempts {
				c.reportf("%s of %s was called with %d keys, %d wrong nonces and %d attempts, want 1, 0 and at least %d",
					step, o.ID(), r.Keys, r.Nonces, r.Attempts, attempts)
			}
		}
	}
	for call := range found {
		c.reportf("%s was called, which should not be", call)
	}
	return nil
}

// calls are the non-transactional steps of the order.
func (o crashOrder) calls() []string {
	if o.refused() {
		return []string{"charge", "ship", "refund"}
	}
	return []string{"charge", "ship"}
}

// payments: with the idempotency key, at least once is exactly once.
func (c *shopChecker) payments() error {
	type row struct {
		Order, Kind string
		Times       int
	}
	found := map[string]int{}
	err := each(c.checker, "select order_id, kind, count(*)::int from shop.payments group by 1, 2", func(r row) { found[r.Order+" "+r.Kind] = r.Times })
	if err != nil {
		return err
	}
	for _, o := range c.orders {
		for _, kind := range o.calls() {
			if times := found[o.ID()+" "+kind]; times != 1 {
				c.reportf("%s of %s took effect %d times, want 1", kind, o.ID(), times)
			}
			delete(found, o.ID()+" "+kind)
		}
	}
	for payment := range found {
		c.reportf("%s took effect, which should not be", payment)
	}
	return nil
}

// deliveries: every event was published at least once, none that was rolled back, the events of an order in order.
func (c *shopChecker) deliveries() error {
	type row struct{ Event, Topic, Key string }
	published := map[string][]string{}
	err := each(c.checker, "select event_id, topic, key from shop.deliveries group by 1, 2, 3 order by min(id)", func(r row) {
		published[r.Key] = append(published[r.Key], r.Topic+" "+r.Event)
	})
	if err != nil {
		return err
	}
	for _, o := range c.orders {
		wanted := []string{"order.placed reserve-" + o.ID()}
		if o.refused() {
			wanted = append(wanted, "order.refused restock-"+o.ID())
		}
		if got := published[o.ID()]; !slices.Equal(got, wanted) {
			c.reportf("the events of %s were published as %q, want %q", o.ID(), got, wanted)
		}
		delete(published, o.ID())
	}
	for key, events := range published {
		c.reportf("events of %s were published: %q", key, events)
	}
	return nil
}

// intrusions: nobody has written what was not theirs any more.
func (c *shopChecker) intrusions() error {
	type row struct{ What string }
	return each(c.checker, "select what from shop.intrusions", func(r row) { c.reportf("%s", r.What) })
}

// summary says how much was done more than once, where that is allowed.
func summary(ctx context.Context, db querier) (string, error) {
	type row struct{ Calls, Attempts, Deliveries, Events, Owners int }
	c := &checker{ctx: ctx, db: db}
	text := ""
	err := each(c, `select (select count(*) from shop.calls)::int, (select count(distinct (key, attempt)) from shop.calls)::int,
			(select count(*) from shop.deliveries)::int, (select count(distinct event_id) from shop.deliveries)::int,
			(select sum(token) from romancy.instances)::int`, func(r row) {
		text = fmt.Sprintf("%d calls for %d attempts, %d deliveries of %d events, %d changes of owner", r.Calls, r.Attempts, r.Deliveries, r.Events, r.Owners)
	})
	return text, err
}
