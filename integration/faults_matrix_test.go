package integration_test

import (
	"flag"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// The fault matrix: every statement x every kind of fault, over a workload of all that the library does.
//
// make test inflicts one kind on all statements of one world (TestFaultsOfEveryStatementTogether), as often as a world
// lasts. make soak has a world for every cell (TestFaultMatrix), in which nothing else is wrong. One cell:
//
//	ROMANCY_SOAK=1 go test ./integration -v -run '^TestFaultMatrix$/^AppendRecord$/^CutAfterCommit$'
//
// A statement without a row fails TestFaultsHaveARowForEveryStatement, and a fault that never hits fails its cell.

// faultsColumn is a kind of fault as the matrix has it.
type faultsColumn struct {
	Name  string
	Fault pgtest.Fault
	// Lasts: each execution is hit for so long, instead of one.
	Lasts time.Duration
	// Together: all statements in one world, because cells would tell little more than those of a similar kind. They are there
	// if the column is asked for by name.
	Together bool
}

const (
	// faultsDelay is longer than any statement of the library may take.
	faultsDelay = 11 * time.Second
	// faultsHeal is when a session of the application's pool becomes writable again. One that the library has made itself
	// stays read-only until it is replaced.
	faultsHeal   = 2 * time.Second
	faultsOutage = 2 * time.Second
)

var faultsColumns = []faultsColumn{
	// These are in make test.
	{Name: "CutBefore", Fault: pgtest.Fault{Kind: pgtest.FaultCutBefore}},
	{Name: "CutAfterCommit", Fault: pgtest.Fault{Kind: pgtest.FaultCutAfterCommit}},
	{Name: "DiskFull", Fault: pgtest.Fault{Kind: pgtest.FaultRefuse, Code: "53100"}, Together: true},
	{Name: "ReadOnly", Fault: pgtest.Fault{Kind: pgtest.FaultReadOnly}},
	// These are in make soak.
	{Name: "CutAfterRun", Fault: pgtest.Fault{Kind: pgtest.FaultCutAfterRun}, Together: true},
	{Name: "Delay", Fault: pgtest.Fault{Kind: pgtest.FaultDelay, For: faultsDelay}},
	{Name: "NoRight", Fault: pgtest.Fault{Kind: pgtest.FaultRefuse, Code: "42501"}, Together: true},
	{Name: "Serialization", Fault: pgtest.Fault{Kind: pgtest.FaultRefuse, Code: "40001"}, Together: true},
	{Name: "Timeout", Fault: pgtest.Fault{Kind: pgtest.FaultRefuse, Code: "57014"}, Together: true},
	{Name: "Internal", Fault: pgtest.Fault{Kind: pgtest.FaultRefuse, Code: "XX000"}, Together: true},
	{Name: "LongDiskFull", Fault: pgtest.Fault{Kind: pgtest.FaultRefuse, Code: "53100"}, Lasts: faultsOutage},
	{Name: "LongNoRight", Fault: pgtest.Fault{Kind: pgtest.FaultRefuse, Code: "42501"}, Lasts: faultsOutage},
	{Name: "LongCut", Fault: pgtest.Fault{Kind: pgtest.FaultCutBefore}, Lasts: faultsOutage},
}

// faultsReduced is how many columns make test has.
const faultsReduced = 4

// ownSessions are the endings of application_name of connections that the library makes beside the pool.
var ownSessions = []string{" engine", " lease", " relay", " relay settle", " migrate", " listen", " notify", " probe"}

// injections are a cell's faults, of which one at least must hit.
func (c faultsColumn) faults(row faultsStatement, nth int) []pgtest.Fault {
	fault := c.Fault
	fault.Statement, fault.Application = row.Name, row.Session
	if c.Lasts == 0 {
		fault.Nth = nth
	}
	if fault.Kind != pgtest.FaultReadOnly {
		return []pgtest.Fault{fault}
	}
	var faults []pgtest.Fault
	for _, session := range append([]string{"shop", "annex", "desk", "guest"}, ownSessions...) {
		if row.Session != "" && row.Session != session {
			continue
		}
		fault.Application, fault.For = session, 0
		if !slices.Contains(ownSessions, session) {
			fault.For = faultsHeal
		}
		faults = append(faults, fault)
	}
	return faults
}

// faultsOften are statements that the workload executes a dozen times at least: not always the first is hit.
var faultsOften = []string{
	"AppendRecord", "AppendHistory", "ClaimReady", "WaitRun", "WaitRuns", "WakeRun", "FinishRun", "StartRun", "Send", "LookForMail", "Guard", "GuardClaim",
	"TakeSlot", "ClaimBatch", "Outlook", "Settle", "begin", "commit", "FindRuns", "AdoptTrace", "LockChannels", "SubscribeRuns",
	"DeliverMessages", "ReleaseStranded", "SweepMailFor", "PendingWorkflowResumable", "PendingOutboxPending", "river.JobGetAvailable",
}

// nth is which execution of a cell is hit, the same in every run.
func (c faultsColumn) nth(row faultsStatement) int {
	if rare := slices.Contains([]string{" lease", " relay", " relay settle", " migrate"}, row.Session); rare || !slices.Contains(faultsOften, row.Name) {
		return 1
	}
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(row.String() + c.Name)) // never fails
	return 1 + int(hash.Sum32()%8)
}

// faultsCell is what is inflicted on one world.
type faultsCell struct {
	row        faultsStatement
	column     faultsColumn
	injections []*pgtest.Injection
}

func (c *faultsCell) hits() (hits int) {
	for _, i := range c.injections {
		hits += i.Hits()
	}
	return hits
}

// inflict begins a cell's faults. A lasting one ends by itself when it has lasted.
func (w *faultsWorld) inflict(row faultsStatement, column faultsColumn, nth int) *faultsCell {
	cell := &faultsCell{row: row, column: column}
	if first, needed := faultsBefore[row.String()]; needed {
		for _, proxy := range w.proxies {
			w.before = append(w.before, proxy.Inject(first))
		}
	}
	for _, fault := range column.faults(row, nth) {
		for _, proxy := range w.proxies {
			i := proxy.Inject(fault)
			cell.injections = append(cell.injections, i)
			if column.Lasts > 0 {
				w.outages.Go(func() {
					select {
					case <-i.Hit():
						time.Sleep(column.Lasts)
					case <-w.ctx.Done():
					}
					i.Stop()
				})
			}
		}
	}
	w.cells = append(w.cells, cell)
	return cell
}

// judge drives the world and returns what is wrong with it afterwards.
func (w *faultsWorld) judge() (wrong []string) {
	w.t.Helper()
	err := w.drive()
	for _, cell := range w.cells {
		for _, i := range cell.injections {
			i.Stop()
		}
	}
	if err != nil { // what was not reached is not there, which says nothing more
		return append([]string{err.Error()}, w.checkSoFar()...)
	}
	return w.check()
}

func (w *faultsWorld) complain(wrong []string) {
	w.t.Helper()
	for _, what := range wrong {
		w.t.Error(what)
	}
}

// Undisturbed worlds do all that they can as the model says, and execute every statement: else the matrix says nothing. Some
// statements are executed only if two things happen in one order, so there is another world as long as one is missing, and
// three at most.
func TestFaultsHaveARowForEveryStatement(t *testing.T) { //nolint:tparallel // one world after the other
	t.Parallel()
	rows := faultsStatements(t)
	times := map[faultsStatement]int{}
	missing := func() (missing []faultsStatement) {
		for _, row := range rows {
			if faultsExceptions[row] == "" && times[row] == 0 {
				missing = append(missing, row)
			}
		}
		return missing
	}
	for n := range 3 {
		t.Run(fmt.Sprint("World", n+1), func(t *testing.T) {
			w := newFaultsWorld(t)
			for _, fault := range faultsBefore {
				for _, proxy := range w.proxies {
					w.before = append(w.before, proxy.Inject(fault))
				}
			}
			w.open()
			w.complain(w.judge())
			executed := w.executed()
			for _, row := range rows {
				times[row] += row.times(executed)
			}
		})
		if len(missing()) == 0 {
			break
		}
		t.Log("not executed so far:", missing())
	}
	for _, row := range rows {
		t.Log(row, times[row])
	}
	for _, row := range missing() {
		t.Errorf("%s is never executed: have the workload do it", row)
	}
	for row, reason := range faultsExceptions {
		if !slices.Contains(rows, row) {
			t.Errorf("%s is an exception (%s), but no statement", row, reason)
		}
	}
}

// One kind of fault hits every statement once, all in one world. What is wrong then is found by its cell of TestFaultMatrix.
func TestFaultsOfEveryStatementTogether(t *testing.T) {
	t.Parallel()
	for _, column := range faultsColumns[:pgtest.Soak(len(faultsColumns), faultsReduced)] {
		if column.Lasts > 0 || column.Fault.Kind == pgtest.FaultDelay {
			continue // all at once they are an outage; see TestFaultMatrix
		}
		t.Run(column.Name, func(t *testing.T) {
			t.Parallel()
			w := newFaultsWorld(t)
			for _, row := range faultsStatements(t) {
				if faultsExceptions[row] == "" {
					w.inflict(row, column, 1)
				}
			}
			w.open()
			w.complain(w.judge())
			var missed []string
			for _, cell := range w.cells {
				if cell.hits() == 0 {
					missed = append(missed, cell.row.String())
				}
			}
			t.Logf("%s: %d of %d statements were hit; not %s", column.Name, len(w.cells)-len(missed), len(w.cells), strings.Join(missed, ", "))
			if len(missed) > len(w.cells)/8 { // some are executed once in a world, and not each way ends in a commit
				t.Errorf("only %d of %d statements were hit", len(w.cells)-len(missed), len(w.cells))
			}
		})
	}
}

// Every cell in a world of its own, some at a time whatever -parallel says: they mostly wait.
func TestFaultMatrix(t *testing.T) {
	t.Parallel()
	rows := faultsStatements(t)
	if pgtest.Soak(1, 0) == 0 {
		return // TestFaultsOfEveryStatementTogether is the part of make test
	}
	var busy sync.WaitGroup
	next := make(chan faultsStatement)
	for range faultsWorlds {
		busy.Go(func() {
			for row := range next {
				t.Run(row.String(), func(t *testing.T) {
					for _, column := range faultsColumns {
						if !column.Together || column.named() {
							t.Run(column.Name, func(t *testing.T) { faultsCellOf(t, row, column) })
						}
					}
				})
			}
		})
	}
	for _, row := range rows {
		if faultsExceptions[row] == "" {
			next <- row
		}
	}
	close(next)
	busy.Wait()
}

// named reports whether -run names the column.
func (c faultsColumn) named() bool {
	run := flag.Lookup("test.run")
	return run != nil && strings.Contains(run.Value.String(), c.Name)
}

// faultsWorlds is how many worlds there are at a time: more would wait for each other.
const faultsWorlds = 6

func faultsCellOf(t *testing.T, row faultsStatement, column faultsColumn) {
	t.Helper()
	w := newFaultsWorld(t)
	w.complain(w.sufferCell(row, column))
	for _, first := range w.before { // what it has brought about has been suffered: no shutdown is to meet more of it
		first.Stop()
	}
}

// faultsWakes are statements that wake runs, or find what there is to wake them for. With them no sweep comes to the rescue: a
// reason to wake must not be forgotten.
var faultsWakes = []string{
	"WakeRun", "WakeRuns", "WakeEvents", "WaitRun", "WaitRuns", "WaitEvents", "LookForMail", "LookForEvents", "TakeMore", "ParkedRuns", "RouseRuns",
}

// sufferCell opens the world, inflicts one cell on it, and returns what is wrong then.
func (w *faultsWorld) sufferCell(row faultsStatement, column faultsColumn) []string {
	w.t.Helper()
	wake := slices.Contains(faultsWakes, row.Name)
	var cell *faultsCell
	if wake {
		w.fallback = time.Hour
		w.open()
		w.settle()
		cell = w.inflict(row, column, column.nth(row))
	} else {
		cell = w.inflict(row, column, column.nth(row))
		w.open()
	}
	wrong := w.judge()
	if cell.hits() == 0 && !column.impossible(row) {
		wrong = append(wrong, row.String()+" was never hit")
	}
	return wrong
}

// impossible reports whether a fault of this kind cannot hit a statement.
func (c faultsColumn) impossible(row faultsStatement) bool {
	// What is rolled back is never committed.
	return row.Name == "rollback" && c.Fault.Kind == pgtest.FaultCutAfterCommit
}

// report is what a failed test says besides.
func (w *faultsWorld) report() string {
	var lines []string
	for _, cell := range w.cells {
		for _, i := range cell.injections {
			if i.Matched() > 0 {
				lines = append(lines, fmt.Sprintf("\t%s hit %d of %d", cell.row, i.Hits(), i.Matched()))
			}
		}
	}
	for _, i := range w.before {
		lines = append(lines, fmt.Sprintf("\tbefore that %d of %d", i.Hits(), i.Matched()))
	}
	return strings.Join(lines, "\n") + "\nrefused:\n" + w.refused() + "\nlogged:\n" + w.log.String()
}
