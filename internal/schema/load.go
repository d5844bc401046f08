package schema

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/romancy-go/romancy/internal/sqlfile"
)

//go:embed migrations/*.sql
var files embed.FS

// placeholder stands for the schema's name in a migration's text.
const placeholder = "{{.schema}}"

var (
	fileName   = regexp.MustCompile(`^(\d{3})_([a-z0-9_]+)\.sql$`)
	markerLike = regexp.MustCompile(`(?mi)^--[ \t]*(?:compatible|transaction)\b[^\n]*:.*$`)
	marker     = regexp.MustCompile(`^-- (compatible since|transaction): (\w+)$`)
	repeatable = regexp.MustCompile(`(?i)^(?:create (?:unique )?index concurrently if not exists|drop index concurrently if exists)\s`)
)

// migration brings a schema from the version before to its own.
//
// Its file may say, each on a line of its own:
//
//	-- compatible since: 8    builds that know version 8 or a later one work with the schema after it
//	-- transaction: none      its statements are sent one by one, outside of a transaction
//
// Without the first, only builds that know the migration work with the schema after it. Statements outside of a transaction
// may be executed again after an interruption, so only those that allow it are accepted.
type migration struct {
	version    int32
	name       string // 008_lines
	text       string
	compatible int32 // the oldest version whose builds work with the schema after this migration and those before it
	outside    bool
}

// embedded returns the migrations of this build.
var embedded = sync.OnceValue(func() []migration {
	directory, err := fs.Sub(files, "migrations")
	if err == nil {
		var migrations []migration
		if migrations, err = load(directory); err == nil {
			return migrations
		}
	}
	panic(err) // a mistake in this library, which its first test finds
})

// load reads the migrations of a directory, in the order of their numbers, which have no gaps.
func load(directory fs.FS) ([]migration, error) {
	names, err := fs.Glob(directory, "*.sql") // sorted
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, errors.New("no migrations")
	}
	var migrations []migration
	compatible := int32(0)
	for i, name := range names {
		parts := fileName.FindStringSubmatch(name)
		if parts == nil {
			return nil, fmt.Errorf("migration %q: name it like 001_runs.sql", name)
		}
		if want := fmt.Sprintf("%03d", i+1); parts[1] != want {
			return nil, fmt.Errorf("migration %q: the number %s comes next: numbers have no gaps, and none is given twice", name, want)
		}
		text, err := fs.ReadFile(directory, name)
		if err != nil {
			return nil, err
		}
		m := migration{version: int32(i + 1), name: strings.TrimSuffix(path.Base(name), ".sql"), text: string(text)}
		if err := m.readMarkers(); err != nil {
			return nil, fmt.Errorf("migration %q: %w", name, err)
		}
		// What an earlier migration took from older builds, a later one does not give back.
		compatible = max(compatible, m.compatible)
		m.compatible = compatible
		migrations = append(migrations, m)
	}
	return migrations, nil
}

func (m *migration) readMarkers() error {
	m.compatible = m.version
	for _, line := range markerLike.FindAllString(m.text, -1) {
		line = strings.TrimSpace(line)
		parts := marker.FindStringSubmatch(line)
		switch {
		case parts != nil && parts[1] == "transaction" && parts[2] == "none":
			m.outside = true
		case parts != nil && parts[1] == "compatible since":
			since, err := strconv.ParseInt(parts[2], 10, 32)
			if err != nil || since < 1 || since > int64(m.version) {
				return fmt.Errorf("%q: give a version from 1 to %d", line, m.version)
			}
			m.compatible = int32(since)
		default:
			return fmt.Errorf("%q: write '-- compatible since: <version>' or '-- transaction: none'", line)
		}
	}
	if rest := strings.ReplaceAll(m.text, placeholder, ""); strings.Contains(rest, "{{") {
		return fmt.Errorf("there is a template in it other than %s", placeholder)
	}
	statements := split(m.text)
	if len(statements) == 0 {
		return errors.New("there is no statement in it")
	}
	if m.outside {
		if i := slices.IndexFunc(statements, func(s string) bool { return !repeatable.MatchString(s) }); i >= 0 {
			return fmt.Errorf("statement %q cannot be executed again after an interruption: outside of a transaction use CREATE INDEX CONCURRENTLY IF NOT EXISTS and DROP INDEX CONCURRENTLY IF EXISTS, and a migration of its own for the rest", firstLine(statements[i]))
		}
		for _, statement := range split(strings.ReplaceAll(m.text, placeholder, Default)) {
			if _, err := sqlfile.Pin(statement); err != nil {
				return fmt.Errorf("statement %q: %w", firstLine(statement), err)
			}
		}
	}
	return nil
}

// statements are those of a migration outside of a transaction, for a schema. Nothing sets the search_path for them: behind a
// pooler it would be set for others.
func (m *migration) statements(schema string) []string {
	statements := split(m.sql(schema))
	for i := range statements {
		statements[i] = sqlfile.MustPin(statements[i])
	}
	return statements
}

// sql is the migration's text for a schema.
func (m *migration) sql(schema string) string { return strings.ReplaceAll(m.text, placeholder, schema) }

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}
