// Package store holds every statement of the engine, with the types of what goes in and comes out. It decides nothing: each
// method adds one statement to a batch, or runs one, and hands on what the database says.
package store

import (
	"embed"
	"regexp"

	"github.com/romancy-go/romancy/internal/planted"
	"github.com/romancy-go/romancy/internal/sqlfile"
)

//go:embed queries/*.sql
var files embed.FS

// Store builds the engine's statements for one schema.
type Store struct {
	queries sqlfile.Queries
}

// New returns the statements for schema. It returns an error for an invalid schema name.
func New(schema string) (*Store, error) {
	queries, err := sqlfile.Load(files, "queries", schema)
	if err != nil {
		return nil, err
	}
	if written := queries.Get("AppendRecord"); planted.Has(planted.FenceWithoutWorker) {
		for name, query := range queries {
			queries[name] = workerFence.ReplaceAllString(query, "$1 and $2 is not null")
		}
		if queries.Get("AppendRecord") == written {
			panic("store: the planted defect finds no fence to take the worker from")
		}
	}
	return &Store{queries: queries}, nil
}

// workerFence is what of a fence compares the worker, as it is written with every name qualified.
var workerFence = regexp.MustCompile(`(i\.token operator\(pg_catalog\.=\) \S+) and i\.worker operator\(pg_catalog\.=\) (\$\d+::bigint)`)

// Queries returns every statement by name, for tests that look at plans.
func (s *Store) Queries() sqlfile.Queries { return s.queries }

// column returns one field of every row, as a statement's array parameter.
func column[Row, Value any](rows []Row, field func(Row) Value) []Value {
	values := make([]Value, len(rows))
	for i, row := range rows {
		values[i] = field(row)
	}
	return values
}

// text returns a JSON value as a text parameter; nil is NULL.
func text(json []byte) *string {
	if json == nil {
		return nil
	}
	value := string(json)
	return &value
}

// orNull returns nil, which is NULL, for the zero value.
func orNull[T comparable](value T) *T {
	var zero T
	if value == zero {
		return nil
	}
	return &value
}

func bytes(value *string) []byte {
	if value == nil {
		return nil
	}
	return []byte(*value)
}
