package schema_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/migrator"
	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/internal/schema"
)

// run carries out scripts as psql does: what is between their transactions, one statement at a time.
func run(t *testing.T, pool *pgxpool.Pool, planned []migrator.Planned) {
	t.Helper()
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	for _, p := range planned {
		for _, statement := range schema.Split(p.SQL) {
			if _, err := conn.Exec(t.Context(), statement); err != nil {
				t.Fatalf("%s: %s: %v", p.Name, statement, err)
			}
		}
	}
}

func TestScriptsDoWhatMigrateDoes(t *testing.T) {
	t.Parallel()
	migrated := emptyPool(t)
	if err := schema.Migrate(t.Context(), migrated, schema.Default); err != nil {
		t.Fatal(err)
	}
	for name, from := range map[string]int{"nothing": 0, "tern's": 5} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := emptyPool(t)
			if from > 0 {
				ternDatabase(t, pool, from)
			}
			exec(t, pool, publish)
			planned, err := schema.Scripts(schema.Default, int32(from), schema.Options{})
			if err != nil {
				t.Fatal(err)
			}
			run(t, pool, planned)
			if err := schema.Check(t.Context(), pool, schema.Default); err != nil {
				t.Error(err)
			}
			if got, want := relations(t, pool, schema.Default), relations(t, migrated, schema.Default); !slices.Equal(got, want) {
				t.Errorf("the scripts made %v, want %v", got, want)
			}
			if found, planned, err := schema.Plan(t.Context(), pool, schema.Default, schema.Options{}); err != nil || found != schema.Version() || len(planned) > 0 {
				t.Errorf("afterwards there is %v to do (%v)", planned, err)
			}
		})
	}
}

func TestScriptRefusesAnotherVersion(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	planned, err := schema.Scripts(schema.Default, 2, schema.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = pool.Exec(t.Context(), planned[len(planned)-1].SQL)
	wantError(t, err, "which is at another")
	for _, from := range []int32{-1, schema.Version() + 1} {
		_, err := schema.Scripts(schema.Default, from, schema.Options{})
		wantError(t, err, "there is no migration from version")
	}
}

func TestScriptsOutsideOfATransaction(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	_, newer := indexes(t)
	_, planned, err := newer.Plan(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	if last := planned[len(planned)-1]; last.Version != 3 || last.Compatible != 3 {
		t.Errorf("the last step is %+v", last)
	}
	run(t, pool, planned)
	wantIndexes(t, pool)
	wantVersion(t, pool, 3, 3)
}

func TestPlanChangesNothing(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	alterDatabase(t, pool, "default_transaction_read_only = on")
	found, planned, err := schema.Plan(t.Context(), pool, schema.Default, schema.Options{})
	if err != nil || found != 0 {
		t.Fatalf("found version %d (%v)", found, err)
	}
	var names []string
	for _, p := range planned {
		names = append(names, p.Name)
	}
	if text := strings.Join(names, " "); len(names) != int(schema.Version())+1 || !strings.HasPrefix(text, "schema_version 001_runs 002_outbox") {
		t.Errorf("planned are %s", text)
	}
	if ask[bool](t, pool, "select to_regnamespace('romancy') is not null") {
		t.Error("there is a schema")
	}
}
