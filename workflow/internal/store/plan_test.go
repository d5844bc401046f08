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
	// mayScan are the tables it may read without a key: they stay small, or it takes the first few in an index's order.
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
	orders := list(func(n int) string { return []string{"'{}'", fmt.Sprintf(`'{"order": "%d"}'`, n)}[n%2] })
	types := list(func(n int) string { return []string{"'none'", "'paid'"}[n%2] }) // no order is none: nobody waits for all that are paid
	eventIDs := list(func(n int) string { return strconv.Itoa(n + 50000) })
	return map[string]statement{
		"StartRuns":  {arguments: list(func(n int) string { return fmt.Sprintf("'new-%d'", n) }) + ", " + same("'order'") + ", " + same("'{}'") + ", " + same("null::bigint") + ", " + same("null::text") + ", " + same("0::smallint"), bare: true},
		"StartRun":   {arguments: "'new', 'order', '{}', null::bigint, null::text, 0::smallint", bare: true},
		"FindRuns":   {arguments: ids, bare: true},
		"ClaimReady": {arguments: "array['order', 'unknown'], 1, array[50, 100], 120, 1000000", mayScan: "workers"},
		"ClaimReadyFrom": {arguments: "array['order', 'unknown'], 1, array[50, 100], 120, 1000000, " +
			"array['order', 'order', 'order', 'unknown', 'unknown', 'unknown'], array[9, 0, -1, 9, 0, -1]::smallint[], array[null, 0, null, null::bigint, 0, null], " +
			"array[1, 0, -9, 1, 0, -9]::smallint[]", mayScan: "workers"},
		"ClaimWaiting":  {arguments: ids + ", 1", mayScan: "workers"},
		"LoadHistory":   {arguments: ids + ", 0, 1000000, 1000"},
		"LoadAttempts":  {arguments: ids},
		"ReleaseRuns":   {arguments: ids + ", " + same("1::bigint") + ", 1"},
		"LetGo":         {arguments: ids + ", " + same("1::bigint") + ", 1"},
		"FinishRuns":    {arguments: ids + ", " + same("1::bigint") + ", " + same("'completed'") + ", " + same("'{}'") + ", " + same("null::text") + ", 1"},
		"FinishRun":     {arguments: "'run-1', 1, 'completed', '{}', null, 1"},
		"OwnedRuns":     {arguments: "1"},
		"AppendHistory": {arguments: ids + ", " + same("1::bigint") + ", " + same("9") + ", " + same("'activity'") + ", " + same("'charge'") + ", " + same("'{}'") + ", 1"},
		"AppendRecord":  {arguments: "'run-1', 1, 9, 'activity', 'charge', '{}', 1", bare: true},
		"Recall":        {arguments: ids + ", " + same("1::bigint") + ", " + same("1") + ", " + same("2") + ", " + same("1") + ", 1"},
		"InterruptRuns": {arguments: ids + ", " + same("1::bigint") + ", " + same("9") + ", " + same("'{}'") + ", 1"},
		"RetrySteps":    {arguments: ids + ", " + same("1::bigint") + ", " + same("9") + ", " + same("1") + ", " + same("'{}'") + ", " + same("1000::bigint") + ", " + same("false") + ", " + same("true") + ", 1"},
		"FailRuns":      {arguments: ids + ", " + same("1::bigint") + ", " + same("9") + ", " + same("'{}'") + ", 1, " + same("true")},
		"ContinueRuns":  {arguments: ids + ", " + same("1::bigint") + ", " + list(func(n int) string { return fmt.Sprintf("'next-%d'", n) }) + ", " + same("'{}'") + ", 1"},
		"HeldRuns":      {arguments: ids + ", " + same("1::bigint") + ", 1"},
		"LoadCancels":   {arguments: ids},
		"CancelRun":     {arguments: "'run-1', '{}', true"},
		"FindCancel":    {arguments: "'run-1', 1, 1"},
		"ParkedRuns":    {arguments: ids},
		"RouseRuns":     {arguments: ids + ", " + same("1::bigint") + ", 1"},
		"TakeMore":      {arguments: "'run-1', 1, 9, 'approvals', 100, true, 0, 1000000, 1"},
		"WaitRuns": {arguments: waits + ", " + same("8") + ", " + same("'sleep'") + ", " + same("1000::bigint") + ", " + same("null::bigint") + ", " + same("50000::bigint") + ", " +
			same("'receive'") + ", " + same("null::text") + ", " + same("null::bigint") + ", " + even + ", " + same("true") + ", 1"},
		"WaitRun":     {arguments: "'run-1', 1, 9, 'approvals', 8, 'sleep', 1000, null, 'receive', null, null, false, true, 1"}, //nolint:dupword // SQL
		"WakeRun":     {arguments: "'run-1', 1, 9, 'approvals', 1, 'receive', false", mayScan: "workers"},
		"WakeRuns":    {arguments: waits + ", 1, " + same("50000::bigint") + ", " + same("'receive'") + ", " + same("false"), mayScan: "workers"},
		"LookForMail": {arguments: ids + ", " + same("'approvals'") + ", " + same("true") + ", " + same("50000::bigint") + ", " + even},
		"DeliverMessages": {arguments: same("null::text") + ", " + same("0::bigint") + ", " + same("null::integer") + ", " +
			list(func(n int) string { return []string{fmt.Sprintf("'run-%d'", n), "null"}[n%2] }) + ", " + same("'approvals'") + ", " + same("'{}'") + ", " + same("null::text") + ", " +
			list(func(n int) string { return []string{fmt.Sprintf("'key-%d'", n), "null"}[n%3%2] }) + ", " + same("1000::bigint") + ", 1, 100000, false", bare: true},
		"DeliverToMore":   {arguments: "100001, 'run-2', 100", bare: true},
		"DeliverDirect":   {arguments: "'run-9', 1, 9, 'run-1', 'approvals', '{}', null, 1", bare: true},
		"LockSendKey":     {arguments: "'key-1'", bare: true},
		"DiscardSentKeys": {arguments: "100"},
		"SendEvents": {arguments: same("null::text") + ", " + same("0::bigint") + ", " + same("null::integer") + ", " + same("'paid'") + ", " + same("'shop'") + ", " +
			list(func(n int) string { return fmt.Sprintf("'new-%d'", n) }) + ", " + orders + ", " + same("'{}'") + ", " + same("1000::bigint") + ", 1", bare: true},
		"LockEvent":           {arguments: "'shop', '1'", bare: true},
		"WaitEvents":          {arguments: strings.Join([]string{ids, same("1::bigint"), same("9"), types, orders, same("'{1,2}'"), same("8"), same("'wait'"), same("1000::bigint"), same("null::bigint"), same("null::bigint"), same("false"), same("true"), "1"}, ", ")},
		"WakeEvents":          {arguments: strings.Join([]string{ids, same("1::bigint"), same("9"), types, orders, same("'{1,2}'"), "1", same("false")}, ", "), mayScan: "workers"},
		"LookForEvents":       {arguments: strings.Join([]string{types, orders, same("'{1,2}'")}, ", ")},
		"MatchEvents":         {arguments: eventIDs + ", 1"},
		"SweepEventsFor":      {arguments: eventIDs + ", 100", mayScan: "workers"},
		"SweepEvents":         {arguments: "50000, 100, 0, 100, 0", mayScan: "workers"},
		"SweepEventWaits":     {arguments: "'run-2', 100, 0", mayScan: "workers"},
		"LastEvent":           {arguments: "0"},
		"DiscardEvents":       {arguments: "100, 1000000"},
		"LockChannels":        {arguments: same("'approvals'")},
		"SubscribeRuns":       {arguments: ids + ", " + same("1::bigint") + ", " + same("9") + ", " + same("'approvals'") + ", " + same("'competing'") + ", 1"},
		"RegisterWorker":      {arguments: "'me', true, 1000000, 7, array['order']"},
		"FindUnexecuted":      {arguments: "9223372036854775807, '', 20, 60000000, 1000, false", mayScan: "workers"},
		"Heartbeat":           {arguments: "1, 1000000, true", mayScan: "workers"},
		"LeaveWorker":         {arguments: "1", mayScan: "workers"},
		"SayLived":            {arguments: "array[1, 2]", mayScan: "workers"},
		"TakeBackDeaths":      {arguments: ids + ", " + same("1::bigint") + ", " + same("1::bigint") + ", " + same("0::bigint")},
		"TakeOver":            {arguments: "100, true, 5, '{}'", mayScan: "workers instances"},
		"BuryWorkers":         {arguments: "", mayScan: "workers"},
		"SweepMail":           {arguments: "0, 100, 0", mayScan: "workers"},
		"SweepMailFor":        {arguments: ids + ", array['approvals'], array[50000], 1000", mayScan: "workers"},
		"SweepDeadlines":      {arguments: "true, 100, 0, 0, 3000000", mayScan: "workers"},
		"ColdDeadlines":       {arguments: "array['order', 'unknown'], 1000000, 100, 0", mayScan: "workers"},
		"Glance":              {arguments: "array['order', 'unknown']", mayScan: "workers"},
		"NextDeadline":        {arguments: "0"},
		"DiscardOrphanedMail": {arguments: "0, 100, 1000000"},
		"GetRun":              {arguments: "'run-1'", mayScan: "workers"},
		"GetHistory":          {arguments: "'run-1', 1, 1000, 1000000"},
		"GetAttempts":         {arguments: "'run-1', 0, 0, 1000"},
		"GetInterruptions":    {arguments: "'run-1'"},
		"ListRuns":            {arguments: "'run-5', 100, 100, array['waiting']" + strings.Repeat(", null", 5)},
		"CheckPath":           {arguments: "'$.a'"},
		"LimitTime":           {arguments: "'1000'"},
		"StartLater":          {arguments: list(func(n int) string { return fmt.Sprintf("'later-%d'", n) }) + ", " + same("'order'") + ", " + same("'{}'") + ", " + same("1000::bigint") + ", " + same("null::bigint") + ", " + same("null::text") + ", " + same("0::smallint"), bare: true},
		"AdoptTrace":          {arguments: "'run-1', 1, '{}'"},
		"CountReady":          {arguments: "array['order', 'unknown'], 10000", bare: true},
		"LockRun":             {arguments: "'run-1'"},
		"RetryRun":            {arguments: "'run-1', 1, array[2, 3], true"},
		"DeleteEnded":         {arguments: "0, 100, now() - interval '1 day', array['run-5']"},
		"DeleteFormer":        {arguments: "array['run-100000'], 100"},
		"DrainEnded":          {arguments: list(func(n int) string { return fmt.Sprintf("'run-%d'", n+90000) }) + ", 0, 1000, 1000000"},
		"FindErasable":        {arguments: "'run-100000', 500"},
		"EraseRecords":        {arguments: list(func(n int) string { return fmt.Sprintf("'run-%d'", n+90000) }) + ", 1000, 1000000"},
		"EraseMail":           {arguments: ids + ", " + ids + ", 50000, 5000, 1000000"},
		"EraseRuns":           {arguments: list(func(n int) string { return fmt.Sprintf("'run-%d'", n+90000) })},
		"DiscardUnreceived":   {arguments: "'run-20001', '', 0, 1000, 1000000"},
	}
}

// fill makes 100,000 runs, never analyzed: 80,000 ended, of which 5,000 have continued one as the other, the rest live, with history
// and mail. A hundred live runs have lines of their own.
func fill(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	ctx := t.Context()
	for _, statement := range []string{
		`insert into romancy.instances (id, workflow, status, worker, token, ready_at, ended_at, output, continued_from, line, wake_at, wake_channels, input)
		 select 'run-' || n, case when n % 3 = 0 then 'unknown' else 'order' end,
		        case when n > 95000 then 'continued' when n > 20000 then 'completed' when n % 3 = 0 then 'ready' when n % 3 = 1 then 'running' else 'waiting' end,
		        1, 1, now(), case when n > 20000 then now() - (n - 20000) * interval '1 second' end,
		        case when n > 95000 then json_build_object('continued_as', 'run-' || n + 1) end, case when n > 95000 then 'run-' || n - 1 end,
		        case when n > 95001 then 'run-95001' when n <= 100 then 'run-' || n + 99000 end,
		        case when n <= 20000 and n % 3 = 2 then now() - interval '1 minute' end,
		        case when n % 2 = 0 then array['approvals'] end, '{"n": 1}'
		 from generate_series(1, 100000) n`,
		`insert into romancy.history (instance_id, position, token, kind, name, payload)
		 select 'run-' || n, p, 1, 'activity', 'charge', '{}' from generate_series(1, 100000) n, generate_series(1, 3) p`,
		`insert into romancy.attempts (instance_id, position, attempt, error) select 'run-' || n, 1, 1, '{}' from generate_series(1, 20000) n`,
		`insert into romancy.mailbox (channel, mode, receiver, payload)
		 select 'approvals', case when n % 2 = 0 then 'direct' else 'competing' end, case when n % 2 = 0 then 'run-' || n end, '{}'
		 from generate_series(1, 100000) n`,
		`insert into romancy.mailbox (channel, mode, receiver, payload) values ('channel-1', 'broadcast', 'run-2', '{}')`,
		`insert into romancy.subscriptions (instance_id, channel, mode)
		 select 'run-' || n, 'channel-' || n % 100, 'broadcast' from generate_series(1, 20000) n`,
		`insert into romancy.sent_keys (key, expires_at) select 'key-' || n, now() + (n - 50000) * interval '1 second' from generate_series(1, 100000) n`,
		// Half of the runs that wait ask for their order, the others for their order in a region where all are.
		`insert into romancy.events (type, source, event_id, match, data, expires_at)
		 select 'paid', 'shop', n::text, jsonb_build_object('', 'paid', 'order', n::text, 'region', 'eu'), '{}', now() + (n - 10) * interval '1 hour' from generate_series(1, 100000) n`,
		`insert into romancy.event_waits (instance_id, type, names, attributes, seen)
		 select 'run-' || n, 'paid', case when n % 2 = 0 then array['order'] else array['order', 'region'] end,
		        jsonb_build_object('order', n::text) || case when n % 2 = 0 then '{}' else '{"region": "eu"}'::jsonb end, '{1,2}'
		 from generate_series(1, 100000) n`,
		`update romancy.instances set died_with = '{1}' where status = 'running'`,
		`insert into romancy.interruptions (instance_id, position, number, token, worker, error) select 'run-' || n, 0, k, 1, 7, '{}' from generate_series(1, 20000) n, generate_series(1, 3) k`,
		`insert into romancy.workers (label, lease_until) select 'worker', now() from generate_series(1, 3)`,
	} {
		if _, err := pool.Exec(ctx, statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

var (
	scanned  = regexp.MustCompile(`(?:Seq Scan on|Index(?: Only)? Scan(?: Backward)? using (\w+) on) (\w+)`)
	sorted   = regexp.MustCompile(`Bitmap Heap Scan on (\w+) .*\(actual rows=(\d+)`)
	filtered = regexp.MustCompile(`Rows Removed by (?:Filter|Index Recheck|Join Filter): (\d+)`)
)

// Plans are kept for as long as a connection lives, and the worst moment to make one is when its tables are empty: any way
// through an empty table is as good as any other. So every statement is planned then, and executed when 100,000 runs have
// come, whose tables nobody has analyzed. It must still find each row by its key.
func TestNoStatementReadsMoreThanItNeeds(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, func(config *pgxpool.Config) { config.MaxConns = 4 })
	s := newStore(t)
	ctx := t.Context()
	for _, table := range []string{"instances", "history", "attempts", "mailbox", "subscriptions", "sent_keys", "events", "event_waits", "workers", "interruptions"} {
		if _, err := pool.Exec(ctx, "alter table romancy."+table+" set (autovacuum_enabled = off)"); err != nil {
			t.Fatal(err)
		}
		if _, err := pool.Exec(ctx, "vacuum romancy."+table); err != nil {
			t.Fatal(err)
		}
	}
	connection, err := pool.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Release()
	sessions := []session{{name: "guarded", conn: connection.Conn(), guarded: true}}
	bare, err := pool.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer bare.Release()
	sessions = append(sessions, session{name: "bare", conn: bare.Conn()})
	for _, session := range sessions {
		session.prepare(t, s)
		session.explainAll(t, s, false)
	}
	fill(t, pool)
	for _, session := range sessions {
		session.explainAll(t, s, true)
	}
}

// session is a connection with every statement prepared: as the committer has it, or, for those that are sent in a caller's
// transaction too, without its settings.
type session struct {
	name    string
	conn    *pgx.Conn
	guarded bool
}

func (c session) prepare(t *testing.T, s *store.Store) {
	t.Helper()
	cases := statements()
	for name, query := range s.Queries() {
		if _, known := cases[name]; !known && !strings.HasPrefix(name, "Guard") {
			t.Errorf("query %s has no arguments here: add them, so that its plan is checked", name)
		}
		if _, err := c.conn.Exec(t.Context(), "prepare "+name+" as "+query, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
}

// explainAll executes every statement, and rolls it back.
func (c session) explainAll(t *testing.T, s *store.Store, check bool) {
	t.Helper()
	for name, known := range statements() {
		if !c.guarded && !known.bare {
			continue
		}
		plan, err := c.explain(t.Context(), s, name, known)
		if err != nil {
			t.Errorf("%s %s: %v", c.name, name, err)
			continue
		}
		// The bare ones are planned anew for each execution, as PostgreSQL does at first; it is the planner's to be right.
		if problem := excess(plan, known); check && problem != "" {
			t.Errorf("%s %s %s:\n%s", c.name, name, problem, plan)
		}
	}
}

func (c session) explain(ctx context.Context, s *store.Store, name string, known statement) (plan string, err error) {
	err = pgx.BeginFunc(ctx, c.conn, func(tx pgx.Tx) error {
		if c.guarded {
			batch := &pgx.Batch{}
			s.Guard(batch, time.Second)
			if err := tx.SendBatch(ctx, batch).Close(); err != nil {
				return err
			}
		}
		if plan, err = explain(ctx, tx, name, known.arguments); err != nil {
			return err
		}
		return errRollback
	})
	if errors.Is(err, errRollback) {
		err = nil
	}
	return plan, err
}

// excess says what a plan reads that it should not, or nothing.
func excess(plan string, known statement) string {
	node, table := "", ""
	keyed := true
	unkeyed := func() string {
		if keyed || strings.Contains(known.mayScan, table) {
			return ""
		}
		return "reads all that is in " + node
	}
	for line := range strings.Lines(plan) {
		if strings.Contains(line, "->  ") || strings.Contains(line, "CTE ") { // two spaces: ->> is an operator
			if problem := unkeyed(); problem != "" {
				return problem
			}
			keyed, node, table = true, "", ""
		}
		if match := sorted.FindStringSubmatch(line); match != nil { // not in the order of its index: what follows needs all of it
			if rows, err := strconv.Atoi(match[2]); err != nil || rows > 1000 {
				return fmt.Sprintf("reads %s rows of %s before the first", match[2], match[1])
			}
		}
		if match := scanned.FindStringSubmatch(line); match != nil {
			node, table, keyed = strings.TrimSpace(match[0]), match[2], false
		}
		if strings.Contains(line, "Index Cond") || strings.Contains(line, "never executed") {
			keyed = true
		}
		if match := filtered.FindStringSubmatch(line); match != nil && (node != "" && !strings.Contains(known.mayScan, table) || strings.Contains(line, "Join Filter")) {
			if removed, err := strconv.Atoi(match[1]); err != nil || removed > 100 {
				return fmt.Sprintf("throws away %s rows of %s", match[1], node)
			}
		}
	}
	return unkeyed()
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
