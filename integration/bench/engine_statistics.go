package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// checkStatistics returns an error unless the server counts statements.
func (e *engineBench) checkStatistics(ctx context.Context) error {
	if _, err := e.desk.Exec(ctx, "create extension if not exists pg_stat_statements"); err != nil {
		return fmt.Errorf("statements cannot be counted: install PostgreSQL's contrib modules (Debian: apt-get install postgresql-contrib): %w", err)
	}
	if _, err := e.desk.Exec(ctx, "select count(*) from pg_stat_statements"); err != nil {
		return fmt.Errorf("statements cannot be counted: preload pg_stat_statements: %w", err)
	}
	return nil
}

// calls are the statements executed in a database, by who sends them.
type calls struct {
	ours  float64 // or DBOS's
	river float64
}

// riverStatement recognises what River sends: by its tables, by its headings, which also say how many rows a query returns,
// and by transactions, of which the engine opens none.
const riverStatement = `(s.query ~* '\yriver' or s.query ~ '^-- name: \w+ :' or s.query ~* '^(begin|commit|rollback)')`

func (e *engineBench) calls(ctx context.Context, s *site) (counted calls, err error) {
	err = e.desk.QueryRow(ctx, `
		select coalesce(sum(s.calls) filter (where not `+riverStatement+`), 0),
		       coalesce(sum(s.calls) filter (where `+riverStatement+`), 0)
		from pg_stat_statements s join pg_database d on d.oid = s.dbid
		where d.datname = $1`, databaseOf(s)).Scan(&counted.ours, &counted.river)
	return counted, err
}

func databaseOf(s *site) string {
	config, err := pgx.ParseConfig(s.url)
	if err != nil {
		return "" // never: it has been connected to
	}
	return config.Database
}

// writeStatements writes the statements of a site that took longest, since they were last forgotten, beside the CPU profile
// that was asked for. Without one it does nothing.
func (e *engineBench) writeStatements(ctx context.Context, s *site, kind string) error {
	if e.profile == "" {
		return nil
	}
	rows, err := e.desk.Query(ctx, `
		select s.calls, s.total_exec_time, s.mean_exec_time, s.rows, s.wal_bytes::float8, s.query
		from pg_stat_statements s join pg_database d on d.oid = s.dbid
		where d.datname = $1
		order by s.total_exec_time desc limit 25`, databaseOf(s))
	if err != nil {
		return err
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%10s %12s %10s %10s %12s  statement\n", "calls", "total ms", "mean ms", "rows", "WAL bytes")
	var count, found int64
	var total, mean, wal float64
	var query string
	if _, err := pgx.ForEachRow(rows, []any{&count, &total, &mean, &found, &wal, &query}, func() error {
		heading, _, _ := strings.Cut(query, "\n")
		_, err := fmt.Fprintf(&text, "%10d %12.1f %10.3f %10d %12.0f  %.100s\n", count, total, mean, found, wal, heading)
		return err
	}); err != nil {
		return err
	}
	return os.WriteFile(e.profile+"."+kind+".statements", []byte(text.String()), 0o600)
}

// resetStatements forgets what a site has executed so far.
func (e *engineBench) resetStatements(ctx context.Context, s *site) error {
	_, err := e.desk.Exec(ctx, "select pg_stat_statements_reset(0, (select oid from pg_database where datname = $1), 0)", databaseOf(s))
	return err
}

// median returns the middle of some values.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// ratios divides round by round.
func ratios(of, to []float64) []float64 {
	var all []float64
	for i := range min(len(of), len(to)) {
		all = append(all, of[i]/to[i])
	}
	return all
}

var errNoSamples = errors.New("nothing was measured")

// on reads one value from the database of a site.
func (e *engineBench) on(ctx context.Context, s *site, query string, into any, args ...any) error {
	conn, err := pgx.Connect(ctx, s.url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	return conn.QueryRow(ctx, query, args...).Scan(into)
}
