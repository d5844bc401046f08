package pgtest

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// FaultKind is what happens to a statement.
type FaultKind string

const (
	// FaultCutBefore resets both connections before the server has received anything of the batch, after some time of silence
	// if so wished.
	FaultCutBefore FaultKind = "CutBefore"
	// FaultCutAfterRun has the server execute the statement, and resets both connections before its transaction commits:
	// the server rolls back. COMMIT has committed when it has run, so it is not executed.
	FaultCutAfterRun FaultKind = "CutAfterRun"
	// FaultCutAfterCommit has the server execute the batch, and resets both connections when the server has said that it
	// has: nothing of the answer reaches the client. In a transaction block it is the answer to its COMMIT that is lost. If
	// the transaction fails or is rolled back, another execution is hit.
	FaultCutAfterCommit FaultKind = "CutAfterCommit"
	// FaultRefuse has the server raise Code in place of the statement, which aborts the transaction as any error does. In
	// place of COMMIT it also ends the transaction, as a deferred constraint does.
	FaultRefuse FaultKind = "Refuse"
	// FaultDelay keeps the batch for a time before it is sent on, also when its client has given up meanwhile: it is then
	// executed late, as what waits in a network or a pooler is.
	FaultDelay FaultKind = "Delay"
	// FaultReadOnly makes the session read-only before the statement, as a failover or a setting may. It remains so for a
	// time, or as long as it lives.
	FaultReadOnly FaultKind = "ReadOnly"
)

// FaultKinds returns all kinds of faults.
func FaultKinds() []FaultKind {
	return []FaultKind{FaultCutBefore, FaultCutAfterRun, FaultCutAfterCommit, FaultRefuse, FaultDelay, FaultReadOnly}
}

// Fault describes what happens to which executions of a statement.
type Fault struct {
	// Statement is the name of a statement, as StatementNames has it: what its heading says, or its first word.
	Statement string
	// Application limits the fault to sessions whose application_name ends in it.
	Application string

	Kind FaultKind
	// Code is the SQLSTATE that Refuse raises.
	Code string
	// For is how long Delay keeps the batch, CutBefore waits before it cuts, and how long a session is read-only at least: 0 is
	// as long as it lives.
	For time.Duration

	// Nth is the first execution that is hit, counted from Inject on over all sessions. 0 hits each, until Stop.
	Nth int
	// Times is how many executions from the Nth on are hit: 0 is one.
	Times int
}

var sqlState = regexp.MustCompile(`^[0-9A-Z]{5}$`)

func (f Fault) check() error {
	switch {
	case f.Statement == "":
		return fmt.Errorf("the fault %+v names no statement", f)
	case f.Kind == FaultRefuse && (!sqlState.MatchString(f.Code) || f.Code == "00000"):
		return fmt.Errorf("the fault %+v needs the SQLSTATE of an error as its Code", f)
	case f.Kind == FaultDelay && f.For <= 0:
		return fmt.Errorf("the fault %+v needs a time: set For", f)
	case f.Nth < 0 || f.Times < 0 || f.Nth == 0 && f.Times > 0:
		return fmt.Errorf("the fault %+v counts executions from 1: set Nth", f)
	case !slices.Contains(FaultKinds(), f.Kind):
		return fmt.Errorf("the fault %+v is of an unknown kind", f)
	}
	return nil
}

// Injection is a fault that a proxy inflicts until it is stopped.
type Injection struct {
	fault Fault
	proxy *FaultProxy
	hit   chan struct{} // closed with the first hit

	mu      sync.Mutex
	matched int
	missed  int // were to be hit, and could not be
	hits    int
}

// Hits returns how many executions have been hit. One counts when it is certain: a CutAfterCommit when its transaction has
// committed.
func (i *Injection) Hits() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.hits
}

// Matched returns how many executions of the statement there have been since Inject, hit or not.
func (i *Injection) Matched() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.matched
}

// Hit returns a channel that is closed when the first execution has been hit.
func (i *Injection) Hit() <-chan struct{} { return i.hit }

// Stop ends the fault for executions that have not been sent yet. Calling it again does nothing.
func (i *Injection) Stop() {
	i.proxy.faults.remove(i)
}

// match counts one execution, and reports whether it is to be hit.
func (i *Injection) match(application, statement string) bool {
	if statement != i.fault.Statement || !strings.HasSuffix(application, i.fault.Application) {
		return false
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.matched++
	turn := i.matched - i.missed
	return i.fault.Nth == 0 || turn >= i.fault.Nth && turn < i.fault.Nth+max(1, i.fault.Times)
}

// miss says that an execution could not be hit, so that the next will be.
func (i *Injection) miss() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.missed++
}

func (i *Injection) count() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.hits++; i.hits == 1 {
		close(i.hit)
	}
}

// Execution names what was executed, and by which kind of session.
type Execution struct{ Application, Statement string }

// faultBook is the faults of a proxy, and what has gone through it.
type faultBook struct {
	mu       sync.Mutex
	active   []*Injection
	executed map[Execution]int
}

func (b *faultBook) add(i *Injection) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.active = append(b.active, i)
}

func (b *faultBook) remove(i *Injection) {
	b.mu.Lock()
	defer b.mu.Unlock()
	kept := make([]*Injection, 0, len(b.active)) // match may be reading the old one
	for _, other := range b.active {
		if other != i {
			kept = append(kept, other)
		}
	}
	b.active = kept
}

// match counts the executions of a batch. It returns the first fault that one of them is to be hit with, and which one. The
// others have their turn with a later batch.
func (b *faultBook) match(application string, executions []execution) (hit *Injection, at int) {
	b.mu.Lock()
	for _, e := range executions {
		b.executed[Execution{application, e.statement}]++
	}
	active := b.active
	b.mu.Unlock()
	for n, e := range executions {
		for _, i := range active {
			switch {
			case !i.match(application, e.statement):
			case hit == nil:
				hit, at = i, n
			default:
				i.miss()
			}
		}
	}
	return hit, at
}
