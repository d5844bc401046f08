package store_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// statement is a query with arguments that touch something.
type statement struct {
	arguments string
	// bare: also sent outside the committer, where nothing forbids the planner to read a whole table.
	bare bool
	// mayScan are the tables it may read whole, because they stay small.
	mayScan string
}

func statements() map[string]statement {
	list := func(element func(n int) string) string {
		elements := make([]string, 500)
		for i := range elements {
			elements[i] = element(i + 1)
		}
		return "array[" + strings.Join(elements, ", ") + "]"
	}
	same := func(value string) string { return list(func(int) string { return value }) }
	ids := list(func(n int) string { return fmt.Sprintf("'run-%d'", n) })
	even := list(func(n int) string { return strconv.FormatBool(n%2 == 0) })
	waits := strings.Join([]string{ids, same("1::bigint"), same("9"), same("'approvals'"), even}, ", ")
	return map[string]statement{
		"StartRuns":           {arguments: list(func(n int) string { return fmt.Sprintf("'new-%d'", n) }) + ", " + same("'order'") + ", " + same("'{}'") + ", " + same("null::bigint"), bare: true},
		"FindRuns":            {arguments: ids, bare: true},
		"ClaimReady":          {arguments: "array['order', 'unknown'], 1, 100", mayScan: "workers"},
		"ClaimWaiting":        {arguments: ids + ", 1", mayScan: "workers"},
		"LoadHistory":         {arguments: ids},
		"LoadAttempts":        {arguments: ids},
		"ReleaseRuns":         {arguments: ids + ", " + same("1::bigint")},
		"LetGo":               {arguments: ids + ", " + same("1::bigint")},
		"FinishRuns":          {arguments: ids + ", " + same("1::bigint") + ", " + same("'completed'") + ", " + same("'{}'") + ", " + same("null::text")},
		"OwnedRuns":           {arguments: "1"},
		"AppendHistory":       {arguments: ids + ", " + same("1::bigint") + ", " + same("9") + ", " + same("'activity'") + ", " + same("'charge'") + ", " + same("'{}'")},
		"AppendInTransaction": {arguments: "'run-1', 1, 9, 'activity', 'charge', '{}'", bare: true},
		"OwnRecords":          {arguments: ids + ", " + same("1::bigint") + ", " + same("1")},
		"RetrySteps":          {arguments: ids + ", " + same("1::bigint") + ", " + same("9") + ", " + same("1") + ", " + same("'{}'") + ", " + same("1000::bigint")},
		"WaitRuns":            {arguments: waits + ", " + same("8") + ", " + same("'sleep'") + ", " + same("1000::bigint") + ", " + same("null::bigint")},
		"WakeRuns":            {arguments: waits + ", 1"},
		"LookForMail":         {arguments: ids + ", " + same("'approvals'") + ", " + same("true")},
		"DeliverMessages": {arguments: same("null::text") + ", " + same("0::bigint") + ", " + same("null::integer") + ", " +
			list(func(n int) string { return []string{fmt.Sprintf("'run-%d'", n), "null"}[n%2] }) + ", " + same("'approvals'") + ", " + same("'{}'") + ", " + same("null::text"), bare: true},
		"SubscribeRuns":       {arguments: ids + ", " + same("1::bigint") + ", " + same("9") + ", " + same("'approvals'") + ", " + same("'competing'")},
		"RegisterWorker":      {arguments: "'me', true, 1000000"},
		"Heartbeat":           {arguments: "1, 1000000, true", mayScan: "workers"},
		"DeregisterWorker":    {arguments: "1", mayScan: "workers"},
		"TakeOver":            {arguments: "100", mayScan: "workers"},
		"BuryWorkers":         {arguments: "", mayScan: "workers"},
		"SweepMail":           {arguments: "0, 100, 0", mayScan: "workers"},
		"SweepMailFor":        {arguments: ids + ", array['approvals']", mayScan: "workers"},
		"SweepDeadlines":      {arguments: "true, 100, 0", mayScan: "workers"},
		"ColdDeadlines":       {arguments: "array['order', 'unknown'], 1000000, 100", mayScan: "workers"},
		"NextDeadline":        {arguments: ""},
		"DiscardOrphanedMail": {arguments: "0, 100"},
	}
}

// fill makes 100,000 runs, never analyzed: 80,000 ended, the rest live, with history and mail.
func fill(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	ctx := t.Context()
	for _, table := range []string{"instances", "history", "attempts", "mailbox", "subscriptions", "workers"} {
		if _, err := pool.Exec(ctx, "alter table romancy."+table+" set (autovacuum_enabled = off)"); err != nil {
			t.Fatal(err)
		}
	}
	for _, statement := range []string{
		`insert into romancy.instances (id, workflow, status, worker, token, ready_at, wake_at, wake_channels, input)
		 select 'run-' || n, case when n % 3 = 0 then 'unknown' else 'order' end,
		        case when n > 20000 then 'completed' when n % 3 = 0 then 'ready' when n % 3 = 1 then 'running' else 'waiting' end,
		        1, 1, now(), case when n <= 20000 and n % 3 = 2 then now() - interval '1 minute' end,
		        case when n % 2 = 0 then array['approvals'] end, '{"n": 1}'
		 from generate_series(1, 100000) n`,
		`insert into romancy.history (instance_id, position, token, kind, name, payload)
		 select 'run-' || n, p, 1, 'activity', 'charge', '{}' from generate_series(1, 100000) n, generate_series(1, 3) p`,
		`insert into romancy.attempts (instance_id, position, attempt, error) select 'run-' || n, 1, 1, '{}' from generate_series(1, 20000) n`,
		`insert into romancy.mailbox (channel, mode, receiver, payload)
		 select 'approvals', case when n % 2 = 0 then 'direct' else 'competing' end, case when n % 2 = 0 then 'run-' || n end, '{}'
		 from generate_series(1, 100000) n`,
		`insert into romancy.subscriptions (instance_id, channel, mode)
		 select 'run-' || n, 'channel-' || n % 100, 'broadcast' from generate_series(1, 20000) n`,
		`insert into romancy.workers (label, lease_until) select 'worker', now() from generate_series(1, 3)`,
	} {
		if _, err := pool.Exec(ctx, statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

var seqScan = regexp.MustCompile(`Seq Scan on (\w+)`)

func TestNoStatementReadsAWholeTable(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	fill(t, pool)
	s, err := store.New("romancy")
	if err != nil {
		t.Fatal(err)
	}
	cases := statements()
	for name, query := range s.Queries() {
		if name == "Guard" {
			continue
		}
		known, ok := cases[name]
		if !ok {
			t.Errorf("query %s has no arguments here: add them, so that its plan is checked", name)
			continue
		}
		for _, mode := range []string{"force_custom_plan", "force_generic_plan"} {
			checkPlan(t, pool, s, name+" guarded "+mode, query, mode, known, true)
			if known.bare {
				checkPlan(t, pool, s, name+" bare "+mode, query, mode, known, false)
			}
		}
	}
}

// checkPlan executes the statement too, and rolls back: a plan that looks right must also be quick.
func checkPlan(t *testing.T, pool *pgxpool.Pool, s *store.Store, what, query, mode string, known statement, guarded bool) {
	t.Helper()
	ctx := t.Context()
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if guarded {
			batch := &pgx.Batch{}
			s.Guard(batch, time.Second)
			if err := tx.SendBatch(ctx, batch).Close(); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, "set local plan_cache_mode = "+mode); err != nil {
			return err
		}
		// Prepared statements outlive the transaction, so each has a name of its own.
		prepared := "checked_" + regexp.MustCompile(`\W`).ReplaceAllString(what, "_")
		if _, err := tx.Exec(ctx, "prepare "+prepared+" as "+query, pgx.QueryExecModeSimpleProtocol); err != nil {
			return fmt.Errorf("prepare: %w", err)
		}
		plan, err := explain(ctx, tx, prepared, known.arguments)
		if err != nil {
			return err
		}
		for _, scan := range seqScan.FindAllStringSubmatch(plan, -1) {
			if !strings.Contains(known.mayScan, scan[1]) {
				t.Errorf("%s reads the whole of %s:\n%s", what, scan[1], plan)
				break
			}
		}
		return errRollback
	})
	if err != nil && !errors.Is(err, errRollback) {
		t.Errorf("%s: %v", what, err)
	}
}

var errRollback = errors.New("roll back")

func explain(ctx context.Context, tx pgx.Tx, prepared, arguments string) (string, error) {
	execute := "explain (analyze, costs off, timing off, summary off) execute " + prepared
	if arguments != "" {
		execute += "(" + arguments + ")"
	}
	rows, err := tx.Query(ctx, execute, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return "", err
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return "", fmt.Errorf("explain: %w", err)
	}
	return strings.Join(lines, "\n"), nil
}
