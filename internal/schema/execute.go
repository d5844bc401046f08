package schema

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/romancy-go/romancy/internal/migrator"
	"github.com/romancy-go/romancy/internal/refusal"
)

// script sends statements in one message, which PostgreSQL carries out in order until one fails.
func script(ctx context.Context, conn *pgx.Conn, sql string) error {
	_, err := conn.PgConn().Exec(ctx, sql).ReadAll()
	var refused *pgconn.PgError
	if !errors.As(err, &refused) {
		return err
	}
	err = refusal.Public(err) // a migration that fails because of a row quotes it
	text := err.Error()
	if refused.Position > 0 {
		text = fmt.Sprintf("line %d: %s", lineAt(sql, int(refused.Position)), text)
	}
	return &scriptError{text: text, cause: err}
}

// scriptError adds the place to what the database says.
type scriptError struct {
	text  string
	cause error
}

func (e *scriptError) Error() string { return e.text }
func (e *scriptError) Unwrap() error { return e.cause }

// lineAt returns the line of a position, which PostgreSQL counts in characters from 1.
func lineAt(sql string, position int) int {
	line := 1
	for ; position > 1 && sql != ""; position-- {
		r, size := utf8.DecodeRuneInString(sql)
		if r == '\n' {
			line++
		}
		sql = sql[size:]
	}
	return line
}

var indexMade = regexp.MustCompile(`(?i)^create (?:unique )?index concurrently if not exists\s+(\w+)`)

// oneByOne sends each statement by itself on free, while tx holds the lock. An index that an interrupted attempt has left behind
// is there by name, but not valid: it is dropped first. An attempt whose client is gone may still be at work on it; then the
// drop waits for that.
func oneByOne(ctx context.Context, tx pgx.Tx, free *migrator.Free, schema string, statements []string) error {
	for _, statement := range statements {
		index := ""
		if parts := indexMade.FindStringSubmatch(statement); parts != nil {
			index = strings.ToLower(parts[1])
			if valid, err := indexValid(ctx, tx, schema, index); err != nil {
				return err
			} else if valid != nil && !*valid {
				if err := free.Exec(ctx, fmt.Sprintf("drop index concurrently if exists %s.%s", schema, index)); err != nil {
					return fmt.Errorf("drop index %s, which an interrupted attempt has left: %w", index, err)
				}
			}
		}
		if err := free.Exec(ctx, statement); err != nil {
			if remedy := refusal.Remedy(err); remedy != "" {
				err = fmt.Errorf("%w: %s", err, remedy)
			}
			return fmt.Errorf("%s: %w", firstLine(statement), err)
		}
		if index == "" {
			continue
		}
		if valid, err := indexValid(ctx, tx, schema, index); err != nil {
			return err
		} else if valid == nil || !*valid {
			return fmt.Errorf("index %s.%s is not valid after %q: migrate again", schema, index, firstLine(statement))
		}
	}
	return nil
}

// indexValid returns nil if there is no such index.
func indexValid(ctx context.Context, tx pgx.Tx, schema, index string) (valid *bool, err error) {
	err = tx.QueryRow(ctx, `select bool_and(i.indisvalid) from pg_index i join pg_class c on c.oid = i.indexrelid
		join pg_namespace n on n.oid = c.relnamespace where n.nspname = $1::text and c.relname = $2::text`, schema, index).Scan(&valid)
	if err != nil {
		return nil, fmt.Errorf("ask for index %s: %w", index, err)
	}
	return valid, nil
}
