package bus

import (
	"embed"

	"github.com/romancy-go/romancy/internal/schema"
	"github.com/romancy-go/romancy/internal/sqlfile"
)

//go:embed queries/*.sql
var queryFiles embed.FS

// queries are the statements that know no schema.
var queries = mustLoad()

func mustLoad() sqlfile.Queries {
	loaded, err := sqlfile.Load(queryFiles, "queries", schema.Default)
	if err != nil {
		panic(err) // the files are embedded: a mistake shows in the first test
	}
	return loaded
}
