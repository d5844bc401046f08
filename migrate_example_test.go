package romancy_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy"
)

// A deploy step that shows what it is about to do, and does it.
func ExamplePlanMigration() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	plan, err := romancy.PlanMigration(ctx, pool)
	if err != nil {
		log.Panic(err)
	}
	for _, step := range plan.Steps {
		fmt.Printf("-- %s\n%s\n", step.Name, step.SQL)
	}
	if err := romancy.Migrate(ctx, pool); err != nil {
		log.Panic(err)
	}
}

// A file for the database's administrator, who carries it out with psql -v ON_ERROR_STOP=1.
func ExampleMigrationSQL() {
	sql, err := romancy.MigrationSQL(romancy.MigrationState{}, romancy.WithSchema("orders"))
	if err != nil {
		log.Fatal(err)
	}
	first, _, _ := strings.Cut(sql, "\nset")
	fmt.Println(first)
	fmt.Println(strings.Contains(sql, "create table orders.instances"))
	// Output:
	// -- schema_version
	// begin isolation level read committed;
	// true
}
