package integration_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// faultsStatement is a row of the matrix.
type faultsStatement struct {
	Name string
	// Session limits the row to sessions whose application_name ends in it, where two statements have one name.
	Session string
}

// String is the name of the row in a subtest's name.
func (s faultsStatement) String() string {
	name := s.Name
	if s.Session != "" {
		name += "@" + strings.TrimSpace(s.Session)
	}
	return strings.ReplaceAll(name, " ", "_")
}

// faultsSessions are rows that no .sql file names: what sessions say, and River's statements that we cause.
var faultsSessions = []faultsStatement{
	{Name: "begin", Session: "shop"}, // of transactional activities and callers
	{Name: "commit", Session: "shop"},
	{Name: "begin", Session: "desk"},
	{Name: "commit", Session: "desk"},
	{Name: "begin", Session: " engine"}, // of what the committer does in a transaction block
	{Name: "commit", Session: " engine"},
	{Name: "begin", Session: " lease"}, // behind a pooler
	{Name: "commit", Session: " lease"},
	{Name: "begin", Session: " relay"},
	{Name: "commit", Session: " relay"},
	{Name: "begin", Session: " relay settle"},
	{Name: "commit", Session: " relay settle"},
	{Name: "begin", Session: " migrate"},
	{Name: "commit", Session: " migrate"},
	{Name: "rollback", Session: "desk"},
	{Name: "listen", Session: " listen"},
	{Name: "set", Session: " listen"},
	{Name: "DatabaseClock"},
	{Name: "river.JobInsertFastMany"},
	{Name: "river.JobGetAvailable"},
	{Name: "river.JobSetStateIfRunningMany"},
	{Name: "river.JobSchedule"},
	{Name: "river.LeaderAttemptElect"},
	{Name: "river.LeaderAttemptReelect"},
	{Name: "river.PGNotifyMany"},
	{Name: "river.QueueCreateOrSetUpdatedAt"},
}

// faultsShared says which sessions execute a name that two .sql files have, by file.
var faultsShared = map[string]string{
	"outbox/queries/guard.sql Guard":                "desk",
	"workflow/internal/store/queries/run.sql Guard": " engine",
	"bus/queries/notify.sql Publish":                "desk",
}

// faultsBefore says for rows that are executed only after something else has failed what must be inflicted first.
var faultsBefore = map[string]pgtest.Fault{
	"Recall":    {Statement: "AppendRecord", Application: " engine", Kind: pgtest.FaultCutAfterCommit, Nth: 3, Times: 3},
	"CheckText": {Statement: "Send", Kind: pgtest.FaultRefuse, Code: "22P05", Nth: 5, Times: 3},
	// After one that has cost much.
	"ClaimReadyFrom":      {Statement: "ClaimReady", Kind: pgtest.FaultCutBefore, For: 150 * time.Millisecond, Nth: 2, Times: 4},
	"SweepEvents":         {Statement: "SweepEventWaits", Kind: pgtest.FaultDelay, For: 100 * time.Millisecond, Nth: 1, Times: 1000},
	"CountEvents":         {Statement: "Settle", Kind: pgtest.FaultCutAfterCommit, Nth: 2, Times: 3},
	"begin@relay_settle":  {Statement: "Settle", Kind: pgtest.FaultCutAfterCommit, Nth: 2, Times: 3},
	"commit@relay_settle": {Statement: "Settle", Kind: pgtest.FaultCutAfterCommit, Nth: 2, Times: 3},
	"InterruptRuns":       {Statement: "AppendRecord", Application: "shop", Kind: pgtest.FaultRefuse, Code: "53100", Nth: 2, Times: 3},
	"ParkedRuns":          {Statement: "WakeRun", Kind: pgtest.FaultRefuse, Code: "53100", Nth: 3, Times: 3},
	"RouseRuns":           {Statement: "WakeRun", Kind: pgtest.FaultCutAfterCommit, Nth: 1, Times: 2},
	// What follows a commit whose answer is lost, or one that is refused.
	"rollback@desk": {Statement: "AddEvents", Kind: pgtest.FaultRefuse, Code: "40001", Nth: 1},
}

// faultsSeldom are executed if two things happen in one order, which not every world brings about.
var faultsSeldom = []string{"ReleaseRuns", "DeleteFormer", "MatchEvents", "OpenWriters"}

// faultsExceptions have no row, each for a reason.
var faultsExceptions = map[faultsStatement]string{}

var faultsHeading = regexp.MustCompile(`(?m)^-- name: (\w+)\s*$`)

// faultsStatements are all rows: what the .sql files of the library name, and faultsSessions.
func faultsStatements(t *testing.T) []faultsStatement {
	t.Helper()
	var rows []faultsStatement
	root := os.DirFS("..")
	names := map[string]string{}
	err := fs.WalkDir(root, ".", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (slices.Contains([]string{"migrations", "examples", "integration", "testdata"}, entry.Name()) || strings.HasPrefix(entry.Name(), ".") && path != "."):
			return fs.SkipDir
		case filepath.Ext(path) != ".sql":
			return nil
		}
		text, err := fs.ReadFile(root, path)
		for _, found := range faultsHeading.FindAllSubmatch(text, -1) {
			name := string(found[1])
			row := faultsStatement{name, faultsShared[path+" "+name]}
			if other, twice := names[row.String()]; twice {
				t.Errorf("%s is in %s and in %s: say in faultsShared which sessions execute which", name, other, path)
			}
			names[row.String()] = path
			rows = append(rows, row)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) < 90 {
		t.Fatalf("only %d statements were found: this test does not see them", len(rows))
	}
	rows = append(rows, faultsSessions...)
	slices.SortFunc(rows, func(a, b faultsStatement) int { return strings.Compare(a.String(), b.String()) })
	return rows
}

// times is how often a row's statement was executed.
func (s faultsStatement) times(executed map[pgtest.Execution]int) (times int) {
	for execution, n := range executed {
		if execution.Statement == s.Name && strings.HasSuffix(execution.Application, s.Session) {
			times += n
		}
	}
	return times
}
