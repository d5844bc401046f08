package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// multiply copies the rows of one run so many times, each with an id of its own.
func (s *site) multiply(ctx context.Context, workflow, status string, count int) error {
	conn, err := pgx.Connect(ctx, s.url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var id string
	err = conn.QueryRow(ctx, "select id from romancy.instances where workflow = $1 and status = $2 limit 1", workflow, status).Scan(&id)
	if err != nil {
		return err
	}
	for _, table := range []struct{ name, key string }{{"instances", "id"}, {"history", "instance_id"}} {
		copied, err := copyColumns(ctx, conn, table.name, table.key)
		if err != nil {
			return err
		}
		// The positions of one run stay together, as they would be.
		_, err = conn.Exec(ctx, fmt.Sprintf(`insert into romancy.%s (%s)
			select %s from generate_series(1, $2::integer) as copy cross join romancy.%[1]s as original
			where original.%[4]s = $1`, table.name, strings.Join(copied.names, ", "), strings.Join(copied.values, ", "), table.key), id, count)
		if err != nil {
			return err
		}
	}
	return nil
}

type columns struct{ names, values []string }

// copyColumns returns the columns of a table and what a copy has in them: whatever columns the table comes to have.
func copyColumns(ctx context.Context, conn *pgx.Conn, table, key string) (columns, error) {
	rows, err := conn.Query(ctx, `select quote_ident(attname) from pg_attribute
		where attrelid = ('romancy.' || $1)::regclass and attnum > 0 and not attisdropped and attidentity = '' and attgenerated = ''
		order by attnum`, table)
	if err != nil {
		return columns{}, err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return columns{}, err
	}
	copied := columns{names: names}
	for _, name := range names {
		value := "original." + name
		switch name {
		case key:
			value += " || '-' || copy"
		case "wake_at": // not all at one time
			value += " + copy * interval '1 second'"
		}
		copied.values = append(copied.values, value)
	}
	return copied, nil
}

// settle does what autovacuum and the checkpointer would otherwise do in the middle of a measurement.
func (s *site) settle(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, s.url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for _, statement := range []string{"vacuum analyze romancy.instances", "vacuum analyze romancy.history", "checkpoint"} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}
