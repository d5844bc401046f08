package workflow

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
)

// errDraining: the worker is shutting down, nothing new begins.
var errDraining = errors.New("the worker is shutting down")

// activityLimit identifies an activity that has a limit, in all copies of it.
type activityLimit struct{ n int }

// admission bounds the activities whose bodies execute at one time. An activity passes several gates, always in the order
// activity, workflow, pool, worker, and gives all back when its body has returned: who waits at one of them waits for
// bodies that have passed it, never for somebody who waits further back, so nobody waits for ever. Each gate lets the
// longest waiting one through first.
type admission struct {
	worker       *gate
	transactions *gate
	workflows    map[string]*gate
	executing    atomic.Int64
	closed       chan struct{} // nothing is admitted any more

	mu         sync.Mutex
	activities map[*activityLimit]*gate
	waiting    map[*ticket]bool
}

// gate lets so many through at one time.
type gate struct {
	limit string // what set it, for people
	slots chan struct{}
}

func newGate(limit string, n int) *gate { return &gate{limit: limit, slots: make(chan struct{}, n)} }

// ticket is an activity that waits.
type ticket struct{ run, activity, limit string }

func newAdmission(config Config) *admission {
	a := &admission{
		worker: newGate("Config.MaxConcurrentActivities", config.MaxConcurrentActivities), transactions: transactionsOf(config.Pool),
		workflows: map[string]*gate{}, closed: make(chan struct{}),
		activities: map[*activityLimit]*gate{}, waiting: map[*ticket]bool{},
	}
	for _, definition := range config.Workflows {
		if limit := definition.settings().maxActivities; limit > 0 {
			a.workflows[definition.Name()] = newGate("WithMaxConcurrentActivities of workflow "+definition.Name(), limit)
		}
	}
	return a
}

// close sends those who wait away, for good.
func (a *admission) close() { close(a.closed) }

// admit waits until an activity may execute. leave must be called when it has. It returns ctx's error when that ends first,
// errDraining after close.
func (a *admission) admit(ctx context.Context, run, workflow string, s step) (leave func(), err error) {
	var passed []*gate
	back := func() {
		for _, g := range passed {
			<-g.slots
		}
	}
	for _, g := range a.gates(workflow, s.options) {
		if err := a.pass(ctx, g, ticket{run: run, activity: s.name, limit: g.limit}); err != nil {
			back()
			return nil, err
		}
		passed = append(passed, g)
	}
	a.executing.Add(1)
	return func() {
		a.executing.Add(-1)
		back()
	}, nil
}

func (a *admission) gates(workflow string, options activityOptions) (gates []*gate) {
	if options.limit != nil {
		a.mu.Lock()
		if a.activities[options.limit] == nil {
			a.activities[options.limit] = newGate("WithMaxConcurrent", options.limit.n)
		}
		gates = append(gates, a.activities[options.limit])
		a.mu.Unlock()
	}
	if g := a.workflows[workflow]; g != nil {
		gates = append(gates, g)
	}
	if options.transaction {
		gates = append(gates, a.transactions)
	}
	return append(gates, a.worker)
}

func (a *admission) pass(ctx context.Context, g *gate, waits ticket) error {
	select {
	case g.slots <- struct{}{}:
		return nil
	default:
	}
	a.mu.Lock()
	a.waiting[&waits] = true
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.waiting, &waits)
	}()
	select {
	case g.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-a.closed:
		return errDraining
	}
}

// heldUp returns how many activities wait, and those of the run given.
func (a *admission) heldUp(run string) (waiting int, ofRun []HeldUp) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for t := range a.waiting {
		if t.run == run {
			ofRun = append(ofRun, HeldUp{Activity: t.activity, Limit: t.limit})
		}
	}
	return len(a.waiting), ofRun
}

// HeldUp is an activity that waits because as many as may are executing.
type HeldUp struct {
	Activity string
	Limit    string // what bounds them
}
