package integration_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/romancy-go/romancy/workflow"
)

// until waits until the database answers the question with true.
func (w *modelWorld) until(ctx context.Context, what, question string, args ...any) error {
	for {
		var holds bool
		if err := w.pool.QueryRow(ctx, question, args...).Scan(&holds); err != nil {
			return fmt.Errorf("waiting until %s: %w", what, err)
		}
		if holds {
			return nil
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("waited in vain until %s: %w", what, ctx.Err())
		}
	}
}

// line is the SQL of a run and those it continued as.
const line = `with recursive line (id, status, round) as (
	select i.id, i.status, 0 from romancy.instances i where i.id = $1::text
	union all
	select i.id, i.status, l.round + 1 from line l join romancy.instances i on i.continued_from = l.id)`

// checkDone compares what a program did with its histories, and both with what is wanted of each activity. Wants is nil for a
// run that was cancelled: nobody knows how far it came.
func (w *modelWorld) checkDone(ctx context.Context, p modelProgram, status workflow.Status, wants map[string]*modelWant) error {
	type row struct {
		ID, Status string
		Round      int
		Position   int
		Kind, Name string
		OK         bool
	}
	histories := map[int][]modelRecord{}
	last, rounds := "", 0
	done := map[string]int{}
	undone := map[string]int{}
	var errs []error
	c := &checker{ctx: ctx, db: w.pool}
	err := eachWith(c, line+`
		select l.id, l.status, l.round, h.position, h.kind, h.name, h.payload ->> 'error' is null
		from line l join romancy.history h on h.instance_id = l.id
		order by l.round, h.position`, func(r row) {
		histories[r.Round] = append(histories[r.Round], modelRecord{r.Position, r.Kind, r.Name, r.OK})
		switch {
		case r.Kind == "activity" && r.OK:
			done[r.Name]++
		case r.Kind == "compensation" && r.OK:
			undone[r.Name]++
		case r.Kind == "compensation":
			errs = append(errs, fmt.Errorf("undoing %s failed", r.Name))
		}
	}, p.ID)
	if err != nil {
		return err
	}
	if err := w.pool.QueryRow(ctx, line+" select l.status, l.round from line l order by l.round desc limit 1", p.ID).Scan(&last, &rounds); err != nil {
		return err
	}
	if last != string(status) || wants != nil && rounds+1 != len(p.Rounds) {
		errs = append(errs, fmt.Errorf("the last of %d runs is %s", rounds+1, last))
	}
	for round := range rounds {
		errs = append(errs, checkUndone(p, histories[round], false)) // a run that continues undoes nothing
	}
	compensates := status == workflow.StatusFailed || status == workflow.StatusCancelled && p.Compensate
	errs = append(errs, checkUndone(p, histories[rounds], compensates), w.checkEffects(ctx, p, done, undone, wants))
	return errors.Join(errs...)
}

// checkEffects: what is recorded was done, exactly once if in a transaction.
func (w *modelWorld) checkEffects(ctx context.Context, p modelProgram, done, undone map[string]int, wants map[string]*modelWant) error {
	effects := map[modelEffect]int{}
	if err := eachWith(&checker{ctx: ctx, db: w.pool}, "select program, act, kind, seen from model.effects where program = $1::text", func(e modelEffect) {
		effects[e]++
	}, p.ID); err != nil {
		return err
	}
	notes := w.noted(p.ID)
	var errs []error
	acts := map[string]modelAct{}
	for round := range p.Rounds {
		for name, op := range p.acts(round) {
			acts[name] = op.Act
		}
	}
	for name, act := range acts {
		want := wants[name]
		for kind, recorded := range map[string]int{"do": done[name], "undo": undone[name]} {
			happened, noted, hashes := 0, 0, []string{}
			for effect, times := range effects {
				if effect.Act == name && effect.Kind == kind {
					happened += times
					hashes = append(hashes, effect.Seen)
				}
			}
			for effect, times := range notes {
				if effect.Act == name && effect.Kind == kind {
					noted += times
					hashes = append(hashes, effect.Seen)
				}
			}
			switch {
			case recorded > 1:
				errs = append(errs, fmt.Errorf("%s of %s is recorded %d times", kind, name, recorded))
			case act.Tx && (happened != recorded || noted > 0), !act.Tx && (noted < recorded || happened > 0):
				errs = append(errs, fmt.Errorf("%s of %s (%+v) happened %d times in transactions and %d outside, it is recorded %d times", kind, name, act, happened, noted, recorded))
			case want != nil && slices.ContainsFunc(hashes, func(hash string) bool { return hash != want.seen }):
				errs = append(errs, fmt.Errorf("%s of %s was given %q, want %q", kind, name, hashes, want.seen))
			case want != nil && kind == "do" && !want.maybe && (recorded == 1) != (act.Dooms == 0):
				errs = append(errs, fmt.Errorf("%s of %s is recorded %d times as successful", kind, name, recorded))
			}
		}
	}
	return errors.Join(errs...)
}

// checkHeard: every report was heard once, and what belongs to the check's runs is gone with them.
func (w *modelWorld) checkHeard(ctx context.Context, check modelCheck, heard int) error {
	var errs []error
	c := &checker{ctx: ctx, db: w.pool}
	total := 0
	type row struct {
		Key   string
		Times int
	}
	if err := eachWith(c, "select key, count(*)::int from model.heard where key like $1::text || '-program-%' group by 1", func(r row) {
		total += r.Times
		if r.Times != 1 {
			errs = append(errs, fmt.Errorf("report %s was heard %d times", r.Key, r.Times))
		}
	}, check.name); err != nil {
		return err
	}
	if total != heard {
		errs = append(errs, fmt.Errorf("the collectors counted %d reports, their table has %d", heard, total))
	}
	type left struct{ What string }
	err := eachWith(c, `
		select format('run %s is %s', id, status) from romancy.instances where ended_at is null
		union all select format('%s is still subscribed to %s', instance_id, channel) from romancy.subscriptions
		union all select what from shop.intrusions`, func(l left) { errs = append(errs, errors.New(l.What)) })
	return errors.Join(append(errs, err)...)
}

// clear leaves nothing of a check that failed to the next.
func (w *modelWorld) clear() {
	w.show(`truncate romancy.instances, romancy.history, romancy.attempts, romancy.mailbox, romancy.subscriptions, romancy.workers, shop.intrusions`)
}

// history shows what is recorded of a program.
func (w *modelWorld) history(id string) string {
	return w.show(line+`
		select format('%s (%s) %s: %s %s %s, token %s', l.id, l.status, h.position, h.kind, h.name, left(h.payload::text, 200), h.token)
		from line l join romancy.history h on h.instance_id = l.id order by l.round, h.position`, id)
}

// leftOver shows what has not ended.
func (w *modelWorld) leftOver(name string) string {
	return w.show(`
		select format('run %s: %s, worker %s, token %s, wake_at %s, on %s, cancel %s', id, status, worker, token, wake_at, wake_channels, cancel)
			from romancy.instances where ended_at is null
		union all select format('worker %s %s: listening %s, lease until %s', id, label, listening, lease_until) from romancy.workers
		union all select format('message %s %s %s for %s: %s', id, mode, channel, receiver, payload) from romancy.mailbox
		union all select format('backend %s %s: %s, %s, blocked by %s', pid, application_name, state, left(query, 60), pg_blocking_pids(pid))
			from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() and state <> 'idle'
		union all select format('now %s, left over of %s', clock_timestamp(), $1::text)`, name)
}

func (w *modelWorld) show(query string, args ...any) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	type row struct{ Line string }
	var lines []string
	if err := eachWith(&checker{ctx: ctx, db: w.pool}, query, func(r row) { lines = append(lines, r.Line) }, args...); err != nil {
		return err.Error()
	}
	return strings.Join(lines, "\n")
}
