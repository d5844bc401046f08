package integration_test

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// querier is a pool, a connection or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// expectedRun is how a run should have ended.
type expectedRun struct {
	ID       string
	Workflow string
	Status   string
	Steps    []string    // "kind name", by position from 1; one that begins with "?" may be missing
	Failures map[int]int // how often the step at a position failed before it was recorded
	Beside   int         // how many of the first steps execute beside the rest, and may be recorded after what follows
}

// expectedMail is a message and who should have received it.
type expectedMail struct {
	Key     string   // in the message's body
	All     []string // each of them, exactly once
	OneFrom []string // exactly one of them, exactly once
}

// expectation is what the library's tables should say when everything has ended.
type expectation struct {
	Runs []expectedRun
	Mail []expectedMail
	// MoreFailures: steps may have failed more often than expected, because the database was away.
	MoreFailures bool
}

// checker collects violations.
type checker struct {
	ctx        context.Context
	db         querier
	violations []string
}

// checkRuns compares the library's tables with what is expected and returns every difference, one sentence each. It is
// meant for a database on which everything has ended and every worker has been shut down or killed.
func checkRuns(ctx context.Context, db querier, want expectation) ([]string, error) {
	c := &checker{ctx: ctx, db: db}
	checks := []func(expectation) error{c.instances, c.history, c.attempts, c.mail, c.leftovers}
	for _, check := range checks {
		if err := check(want); err != nil {
			return nil, err
		}
	}
	return c.violations, nil
}

func (c *checker) reportf(format string, args ...any) {
	c.violations = append(c.violations, fmt.Sprintf(format, args...))
}

// each calls do for every row that sql yields.
func each[T any](c *checker, sql string, do func(T)) error { return eachWith(c, sql, do) }

func eachWith[T any](c *checker, sql string, do func(T), args ...any) error {
	rows, err := c.db.Query(c.ctx, sql, args...)
	if err != nil {
		return err
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[T])
	if err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	for _, row := range all {
		do(row)
	}
	return nil
}

// instances: every run ended as expected, is owned and awaited by nobody, and there is no other.
func (c *checker) instances(want expectation) error {
	type row struct {
		ID, Workflow, Status          string
		Worker, Deadline              *string
		Channels                      []string
		Ended, HasOutput, HasError    bool
		OwnerLives, StoredAfterItsEnd bool
	}
	found := map[string]row{}
	err := each(c, `select i.id, i.workflow, i.status, i.worker::text, i.wake_at::text, i.wake_channels,
			i.ended_at is not null, i.output is not null, i.error is not null,
			exists (select 1 from romancy.workers w where w.id = i.worker and w.lease_until > clock_timestamp()),
			exists (select 1 from romancy.history h where h.instance_id = i.id and h.created_at > i.ended_at)
		from romancy.instances i order by i.id`, func(r row) { found[r.ID] = r })
	if err != nil {
		return err
	}
	for _, run := range want.Runs {
		r, ok := found[run.ID]
		delete(found, run.ID)
		switch {
		case !ok:
			c.reportf("run %s is missing", run.ID)
			continue
		case r.Workflow != run.Workflow || r.Status != run.Status:
			c.reportf("run %s is a %s of workflow %s, want a %s of workflow %s", run.ID, r.Status, r.Workflow, run.Status, run.Workflow)
		case !r.Ended || r.HasOutput == r.HasError || r.HasOutput != (run.Status == "completed" || run.Status == "continued"):
			c.reportf("run %s is %s, but ended_at %v, output %v, error %v", run.ID, r.Status, r.Ended, r.HasOutput, r.HasError)
		}
		if r.Worker != nil && !r.OwnerLives {
			c.reportf("run %s belongs to worker %s, which is dead", run.ID, *r.Worker)
		}
		if r.Worker != nil || r.Deadline != nil || r.Channels != nil {
			c.reportf("run %s still has a worker, a deadline or channels to wait on", run.ID)
		}
		if r.StoredAfterItsEnd {
			c.reportf("run %s has history from after its end", run.ID)
		}
	}
	for id := range found {
		c.reportf("run %s was never started", id)
	}
	return nil
}

// history: every step is recorded once, at its position, by owners that succeed each other.
func (c *checker) history(want expectation) error {
	type row struct {
		ID         string
		Position   int
		Token      int64
		Step       string
		FinalToken int64
	}
	steps := map[string][]string{}
	last := map[string]row{}
	optional := map[string]map[int]string{}
	beside := map[string]int{}
	for _, run := range want.Runs {
		optional[run.ID], beside[run.ID] = map[int]string{}, run.Beside
		for i, step := range run.Steps {
			if strings.HasPrefix(step, "?") {
				optional[run.ID][i+1] = step
			}
		}
	}
	err := each(c, `select h.instance_id, h.position, h.token, h.kind || ' ' || h.name, coalesce(i.token, -1)
		from romancy.history h left join romancy.instances i on i.id = h.instance_id
		where h.position > 0 -- before that are notes of steps that have begun
		order by h.instance_id, h.position`, func(r row) {
		before := last[r.ID]
		for missing := before.Position + 1; missing < r.Position && optional[r.ID][missing] != ""; missing++ {
			before.Position = missing
			steps[r.ID] = append(steps[r.ID], optional[r.ID][missing])
		}
		if r.Position != before.Position+1 {
			c.reportf("history of %s: position %d follows position %d", r.ID, r.Position, before.Position)
		}
		token := r.Token
		if r.Position <= beside[r.ID] {
			r.Token = before.Token
		}
		if token < before.Token && r.Position > beside[r.ID] || token > r.FinalToken {
			c.reportf("history of %s: position %d has token %d after %d, and the run has %d", r.ID, r.Position, token, before.Token, r.FinalToken)
		}
		last[r.ID] = r
		if step := optional[r.ID][r.Position]; step == "?"+r.Step {
			r.Step = step
		}
		steps[r.ID] = append(steps[r.ID], r.Step)
	})
	if err != nil {
		return err
	}
	for _, run := range want.Runs {
		if !slices.Equal(steps[run.ID], run.Steps) {
			c.reportf("history of %s is\n\t%s, want\n\t%s", run.ID, strings.Join(steps[run.ID], ", "), strings.Join(run.Steps, ", "))
		}
		delete(steps, run.ID)
	}
	for id := range steps {
		c.reportf("history of %s, which was never started", id)
	}
	return nil
}

// attempts: every failed attempt is recorded once, and none that was not.
func (c *checker) attempts(want expectation) error {
	type row struct {
		ID              string
		Position        int
		Failures, First int
		Last            int
	}
	type place struct {
		id       string
		position int
	}
	found := map[place]row{}
	err := each(c, `select instance_id, position, count(*)::int, min(attempt), max(attempt)
		from romancy.attempts group by 1, 2`, func(r row) { found[place{r.ID, r.Position}] = r })
	if err != nil {
		return err
	}
	for _, run := range want.Runs {
		for position := range run.Steps {
			position++
			wanted := run.Failures[position]
			r := found[place{run.ID, position}]
			delete(found, place{run.ID, position})
			if r.Failures != wanted && (!want.MoreFailures || r.Failures < wanted) {
				c.reportf("step %d of %s failed %d times, want %d", position, run.ID, r.Failures, wanted)
			}
			if r.Failures > 0 && (r.First != 1 || r.Last != r.Failures) {
				c.reportf("step %d of %s has %d failed attempts, numbered %d to %d", position, run.ID, r.Failures, r.First, r.Last)
			}
		}
	}
	for at := range found {
		c.reportf("failed attempts at position %d of %s, where there is no step", at.position, at.id)
	}
	return nil
}

// mail: every message was received by whom it was for, once, and no row of a mailbox twice.
func (c *checker) mail(want expectation) error {
	type row struct {
		Receiver string
		Key      string
		Message  int64
	}
	receivers := map[string][]string{}
	rowOf := map[int64]string{}
	err := each(c, `select h.instance_id, coalesce(h.payload #>> '{body,Key}', '?'), (h.payload ->> 'id')::bigint
		from romancy.history h where h.kind = 'receive' and h.payload -> 'timeout' is null
		order by h.instance_id, h.position`, func(r row) {
		receivers[r.Key] = append(receivers[r.Key], r.Receiver)
		if other, twice := rowOf[r.Message]; twice {
			c.reportf("message %d went to %s and to %s", r.Message, other, r.Receiver)
		}
		rowOf[r.Message] = r.Receiver
	})
	if err != nil {
		return err
	}
	for _, mail := range want.Mail {
		got := slices.Sorted(slices.Values(receivers[mail.Key]))
		delete(receivers, mail.Key)
		switch {
		case len(mail.OneFrom) > 0:
			if len(got) != 1 || !slices.Contains(mail.OneFrom, got[0]) {
				c.reportf("message %s was received by %q, want exactly one of %d competitors", mail.Key, got, len(mail.OneFrom))
			}
		case !slices.Equal(got, slices.Sorted(slices.Values(mail.All))):
			c.reportf("message %s was received by %q, want %q", mail.Key, got, mail.All)
		}
	}
	for key, got := range receivers {
		c.reportf("message %s, which nobody sent, was received by %q", key, got)
	}
	return nil
}

// leftovers: nothing is left of what lives only as long as a run, a worker or an undelivered event.
func (c *checker) leftovers(expectation) error {
	type row struct{ What string }
	return each(c, `
		select format('message %s on channel %s is left for %s', id, channel, coalesce(receiver, 'anybody')) from romancy.mailbox
		union all
		select format('%s is still subscribed to %s', instance_id, channel) from romancy.subscriptions
		union all
		select format('worker %s (%s) is still registered, its lease %s', id, label,
			case when lease_until > clock_timestamp() then 'valid' else 'over' end) from romancy.workers
		union all
		select format('event %s is left in the outbox after %s attempts%s: %s', event_id, attempts,
			case when dead_at is not null then ', a dead letter' end, last_error) from romancy.outbox`,
		func(r row) { c.reportf("%s", r.What) })
}
