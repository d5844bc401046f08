package outbox

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
)

var parameter = regexp.MustCompile(`\$(\d+)::(?:pg_catalog\.)?(\w+(?:\[\])?)`)

// fill writes n events of 5,000 keys.
func fill(t *testing.T, pool *pgxpool.Pool, n int) {
	t.Helper()
	if _, err := pool.Exec(within(t), `
		insert into romancy.outbox (event_id, topic, key, slot, payload)
		select 'event' || g, 'numbers', 'key' || g % 5000, g % 5000 % 64, '\x00'
		from generate_series(1, $1::integer) g`, n); err != nil {
		t.Fatal(err)
	}
}

// explain returns the generic plan of a query as the relay sends it, which is the one that a prepared statement keeps.
func explain(ctx context.Context, t *testing.T, tx pgx.Tx, guard, text string) string {
	t.Helper()
	types := map[int]string{}
	for _, match := range parameter.FindAllStringSubmatch(text, -1) {
		n, _ := strconv.Atoi(match[1])
		types[n] = match[2]
	}
	exec := func(sql string, args ...any) {
		if _, err := tx.Exec(ctx, sql, args...); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	exec("set local plan_cache_mode = force_generic_plan")
	if strings.Contains(guard, "$2") {
		exec(guard, "30s", "30s")
	} else {
		exec(guard)
	}
	statement := "explain " + text
	if len(types) > 0 {
		list, nulls := make([]string, len(types)), make([]string, len(types))
		for i := range list {
			list[i], nulls[i] = types[i+1], "null"
		}
		exec(fmt.Sprintf("prepare plan (%s) as %s", strings.Join(list, ", "), text))
		statement = fmt.Sprintf("explain execute plan (%s)", strings.Join(nulls, ", "))
	}
	rows, err := tx.Query(ctx, statement, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	if len(types) > 0 {
		exec("deallocate plan")
	}
	return strings.Join(lines, "\n")
}

// Every statement of the relay reads the outbox through an index, whatever the server believes about its size: with
// 100,000 events and no statistics, and when the plan was made while it was empty and vacuumed.
func TestNoStatementScansTheOutbox(t *testing.T) {
	t.Parallel()
	queries, err := loadQueries("romancy")
	if err != nil {
		t.Fatal(err)
	}
	// What each of them must be read by, where it matters which index it is.
	uses := map[string][]string{
		"TakeSlot":             {"outbox_ready", "outbox_retry"},
		"ClaimBatch":           {"outbox_ready", "outbox_retry", "outbox_blocked", "outbox_pkey"},
		"Outlook":              {"outbox_ready", "outbox_retry"},
		"Settle":               {"outbox_pkey", "outbox_blocked"},
		"ReleaseStranded":      {"outbox_blocked", "outbox_pkey"},
		"CountRunnable":        {"outbox_ready", "outbox_retry"},
		"MoveLow":              {"outbox_ready"},
		"Stats":                {"outbox_age", "outbox_dead\\w*"},
		"DeadLetters":          {"outbox_dead"},
		"RequeueDeadLetters":   {"outbox_dead\\w*"}, // only dead letters, at any rate
		"DiscardDeadLetters":   {"outbox_dead\\w*"},
		"DeleteOldDeadLetters": {"outbox_dead", "outbox_pkey"},
	}
	for name, prepare := range map[string]func(t *testing.T, pool *pgxpool.Pool){
		"100,000 events, never analyzed": func(t *testing.T, pool *pgxpool.Pool) { fill(t, pool, 100_000) },
		"empty and vacuumed": func(t *testing.T, pool *pgxpool.Pool) {
			if _, err := pool.Exec(within(t), "vacuum analyze romancy.outbox"); err != nil {
				t.Fatal(err)
			}
		},
		"new": func(*testing.T, *pgxpool.Pool) {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			ctx := within(t)
			if _, err := pool.Exec(ctx, "alter table romancy.outbox set (autovacuum_enabled = off)"); err != nil {
				t.Fatal(err)
			}
			prepare(t, pool)
			tx, err := pool.Begin(ctx)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback(ctx) }()
			for _, query := range slices.Sorted(maps.Keys(queries)) {
				if strings.HasPrefix(query, "Guard") || query == "KeepSession" || strings.HasPrefix(query, "Add") {
					continue
				}
				plan := explain(ctx, t, tx, queries.Get("Guard"), queries.Get(query))
				// 1e10 is the price of what GuardClaim forbids: with it in the plan the other prices no longer count.
				for _, bad := range []string{"Seq Scan on outbox", "Hash", "Merge Join", "cost=1000000"} {
					if strings.Contains(plan, bad) {
						t.Errorf("%s: %q in\n%s", query, bad, plan)
					}
				}
				for _, index := range uses[query] {
					if !regexp.MustCompile(index + `\b`).MatchString(plan) {
						t.Errorf("%s: does not use %s:\n%s", query, index, plan)
					}
				}
			}
		})
	}
}

// The same, as seen by the server's counters, through the ordinary statement cache: prepared while the outbox was empty,
// then used on a backlog.
func TestRelayNeverScansTheOutbox(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := within(t)
	if _, err := pool.Exec(ctx, "alter table romancy.outbox set (autovacuum_enabled = off)"); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, "vacuum romancy.outbox"); err != nil {
		t.Fatal(err)
	}
	own := pgtest.Connect(t, pool.Config().ConnString(), func(c *pgxpool.Config) {
		c.MaxConns = 2
		c.ConnConfig.RuntimeParams["application_name"] = "own"
	})
	published := newRecorder()
	r := testRelay(t, own, published, func(c *RelayConfig) { c.Consumers = 2 })
	if err := r.Start(ctx); err != nil {
		t.Fatal(err)
	}
	for range 20 { // a generic plan is considered from the sixth execution
		if _, err := r.Sweep(ctx); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it has looked", func() bool { return len(r.alarm.woken) == 0 })
	}
	fill(t, pool, 5_000)
	published.untilPublished(t, 5_000)
	shutdown(t, r)
	own.Close() // sessions report what they counted when they end
	eventually(t, "the relay's sessions have ended", func() bool {
		return query[int](t, pool, "select count(*) from pg_stat_activity where application_name = 'own' and datname = current_database()") == 0
	})
	scans := "select seq_scan from pg_stat_user_tables where schemaname = 'romancy' and relname = 'outbox'"
	if n := query[int](t, pool, scans); n != 0 {
		t.Errorf("%d sequential scans of the outbox", n)
	}
}

// The catch-up of bus pages through this view by (at, item).
func TestPendingViewIsReadInOrderByAnIndex(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	fill(t, pool, 100_000)
	ctx := within(t)
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(ctx) }()
	plan := explain(ctx, t, tx, "select 1", `
		select at, item, version, payload from romancy.pending_outbox_pending
		where (at, item) > ($1::timestamptz, $2::text) order by at, item limit $3::bigint`)
	if !strings.Contains(plan, "outbox_age") || strings.Contains(plan, "Sort") || strings.Contains(plan, "Seq Scan") {
		t.Error(plan)
	}
}

func TestSlotsAreThoseOfTheSchema(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	if n := query[int](t, pool, "select count(*) from romancy.outbox_slots where slot between 0 and $1::integer - 1", slots); n != slots {
		t.Errorf("%d of %d slots exist", n, slots)
	}
	// Rows written by one build are relayed by another: this never changes.
	for key, want := range map[string]int32{"": 5, "a": 44, "order-10248": 27, "ünïcode": 43} {
		if got := slotOf(key); got != want {
			t.Errorf("slot of %q is %d, was %d", key, got, want)
		}
	}
}
