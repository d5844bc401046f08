package romancy

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/migrator"
	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/internal/rivertables"
	"github.com/romancy-go/romancy/internal/schema"
)

// MigrationState is what has been applied to a schema. The zero value is a database in which there is nothing yet.
type MigrationState struct {
	Version int32 // of the library's own tables: select version from romancy.schema_version
	River   int32 // of River's tables: select max(version) from romancy.river_migration where line = 'main'
}

// MigrationStep is one migration that is to be applied.
type MigrationStep struct {
	Name    string // such as 008_lines; those of River's tables begin with river_
	Version int32  // of the tables after it: MigrationState's Version, or River
	// CompatibleSince says which older builds work with the tables after it: those that know this version or a later one. It is 0
	// for a step that does not concern them.
	CompatibleSince int32
	SQL             string // a script for psql, with its own transactions, that also records the version
}

// MigrationPlan says what Migrate has to do.
type MigrationPlan struct {
	Schema string
	Found  MigrationState
	Steps  []MigrationStep // none: there is nothing to do
}

// SQL returns all steps as one script for psql. Use ON_ERROR_STOP: a step that has failed lets those after it fail, too. It is
// empty if there is nothing to do.
func (p *MigrationPlan) SQL() string {
	var text strings.Builder
	for _, step := range p.Steps {
		fmt.Fprintf(&text, "-- %s\n%s\n", step.Name, step.SQL)
	}
	return text.String()
}

// PlanMigration is the dry run of Migrate: it returns what Migrate would do now. It changes nothing, takes no lock, and a role
// that may only read is enough for it, so it does not ask who owns the schema. It returns an error for one that is not empty before
// the first migration (see WithNonEmptySchema), and a *SchemaVersionError for a newer schema that this build cannot work with.
func PlanMigration(ctx context.Context, pool *pgxpool.Pool, opts ...MigrateOption) (*MigrationPlan, error) {
	if err := checkPool("PlanMigration", pool); err != nil {
		return nil, err
	}
	m := newMigration(opts)
	version, own, err := schema.Plan(ctx, pool, m.schema, m.options())
	if err != nil {
		return nil, refusal.Public(err)
	}
	river, err := rivertables.Found(ctx, pool, m.schema)
	if err != nil {
		return nil, refusal.Public(err)
	}
	return m.plan(MigrationState{Version: version, River: river}, own)
}

// MigrationSQL returns the script that brings the schema from a state to that of this build, for a database that only its
// administrator may change. It connects to nothing. MigrationPlan.SQL says how to use the script. It returns an error if from is
// newer than this build.
func MigrationSQL(from MigrationState, opts ...MigrateOption) (string, error) {
	m := newMigration(opts)
	own, err := schema.Scripts(m.schema, from.Version, m.options())
	if err != nil {
		return "", err
	}
	plan, err := m.plan(from, own)
	if err != nil {
		return "", err
	}
	return plan.SQL(), nil
}

func (m migration) plan(found MigrationState, own []migrator.Planned) (*MigrationPlan, error) {
	river, err := rivertables.Plan(m.schema, found.River)
	if err != nil {
		return nil, err
	}
	plan := &MigrationPlan{Schema: m.schema, Found: found}
	for _, planned := range append(own, river...) {
		plan.Steps = append(plan.Steps, MigrationStep{
			Name: planned.Name, Version: planned.Version, CompatibleSince: planned.Compatible, SQL: planned.SQL,
		})
	}
	return plan, nil
}
