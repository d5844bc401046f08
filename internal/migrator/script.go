package migrator

import (
	"fmt"
	"strings"
)

// Planned is a migration that has not been applied, as a script to be applied by hand.
type Planned struct {
	Name       string
	Version    int32
	Compatible int32 // the oldest version whose builds work with the tables after it; 0: it does not concern builds
	SQL        string
}

// Script puts parts into one transaction, which waits for the lock and has names mean what we mean. Empty parts are left out.
// Limits on statements and locks are up to whoever carries it out.
func Script(schema string, parts ...string) string {
	var text strings.Builder
	fmt.Fprintf(&text, "begin isolation level read committed;\nset local search_path = pg_catalog, pg_temp;\nselect pg_advisory_xact_lock(%d);\n", LockKey(schema))
	for _, part := range parts {
		part = strings.TrimSpace(part)
		if part != "" && !strings.HasSuffix(part, ";") { // it may end with a comment, too
			part += "\n;"
		}
		if part != "" {
			text.WriteString(part + "\n")
		}
	}
	text.WriteString("commit;\n")
	return text.String()
}
