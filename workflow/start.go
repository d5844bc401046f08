package workflow

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/bounds"
	"github.com/romancy-go/romancy/internal/clamp"
	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// StartOption sets how a run is started.
type StartOption func(*startOptions)

type startOptions struct {
	id       string
	given    bool
	later    bool
	delay    time.Duration
	at       time.Time
	priority int16
	mistake  error
}

// WithID gives the run its id, 1 to 255 bytes, which makes starting it idempotent: a second start of the same workflow with
// the same id and input returns the run that exists. Default: a new UUID (version 7).
func WithID(id string) StartOption {
	return func(o *startOptions) { o.id, o.given = id, true }
}

// WithDelay has the run begin after d, by the database's clock. It exists at once: its status is waiting until then, and
// messages can be sent to it. Give this or WithStartAt.
func WithDelay(d time.Duration) StartOption {
	return func(o *startOptions) {
		if d < 0 {
			o.mistake = errors.Join(o.mistake, fmt.Errorf("WithDelay(%s): use a positive duration, or 0 for now", d))
		}
		o.once("WithDelay")
		o.delay = d
	}
}

// WithStartAt has the run begin at t, by the database's clock, see WithDelay. A t in the past is now. One beyond the
// years 1 to 9999 (9999-12-31T23:59:59Z is the last instant) is a mistake.
func WithStartAt(t time.Time) StartOption {
	return func(o *startOptions) {
		o.mistake = errors.Join(o.mistake, bounds.CheckInstant("WithStartAt", t))
		o.once("WithStartAt")
		o.at = t
	}
}

// The priorities of runs.
const (
	LowestPriority  = -9
	HighestPriority = 9
)

// WithPriority has the run go before others of its workflow that are ready as well and have a lower priority, whenever it is
// claimed; among equals who has been ready longest goes first. n is LowestPriority to HighestPriority. Default 0. Runs of
// other workflows are not concerned: workflows share the room among them, see Config.MaxConcurrentRuns. Nor is a run held up
// that executes already.
func WithPriority(n int) StartOption {
	return func(o *startOptions) {
		if n < LowestPriority || n > HighestPriority {
			o.mistake = errors.Join(o.mistake, fmt.Errorf("WithPriority(%d): use %d to %d", n, LowestPriority, HighestPriority))
			return
		}
		o.priority = int16(n)
	}
}

// once notes that the run begins later.
func (o *startOptions) once(option string) {
	if o.later {
		o.mistake = errors.Join(o.mistake, fmt.Errorf("%s: the beginning is set twice: give WithDelay or WithStartAt, once", option))
	}
	o.later = true
}

var errNotRegistered = errors.New("it is not registered with this engine: pass it to WithWorkflows, or in Config.Workflows")

// newStart is a start that was checked and encoded.
type newStart struct {
	store.Later

	given bool // the id is the caller's
	later bool
}

// Start starts a run of the workflow, which e must have been given in its configuration. The run is stored when Start
// returns. It returns ErrIDConflict if the id given belongs to a run of another workflow or with another input (compared by what it means:
// 1 is 1.0, and a member that is null is as one that is not there), ErrOutcomeUnknown if the connection was lost or ctx ended
// on the way (start it again with the same id), ErrNotStarted, ErrClosed, or an error that names what is wrong with the id or the input.
func (w *Workflow[In, Out]) Start(ctx context.Context, e *Engine, in In, options ...StartOption) (*Run[Out], error) {
	ask, err := e.newStart(w.name, in, options)
	if err != nil {
		return nil, fmt.Errorf("start workflow %q: %w", w.name, err)
	}
	existing, err := e.start(ctx, ask)
	if err != nil {
		return nil, fmt.Errorf("start workflow %q: %w", w.name, err)
	}
	return &Run[Out]{engine: e, id: ask.ID, existing: existing}, nil
}

// StartTx starts a run in the caller's transaction: it exists, and begins, if and when that commits. If another open
// transaction starts a run of the same id, StartTx waits for it, bounded by ctx.
func (w *Workflow[In, Out]) StartTx(ctx context.Context, tx pgx.Tx, e *Engine, in In, options ...StartOption) (*Run[Out], error) {
	ask, err := e.newStart(w.name, in, options)
	if err != nil {
		return nil, fmt.Errorf("start workflow %q: %w", w.name, err)
	}
	existing, err := e.startTx(ctx, tx, ask)
	if err != nil {
		return nil, fmt.Errorf("start workflow %q: %w", w.name, err)
	}
	return &Run[Out]{engine: e, id: ask.ID, existing: existing}, nil
}

// newStart checks and encodes a start.
func (e *Engine) newStart(workflow string, in any, options []StartOption) (newStart, error) {
	var ask newStart
	if err := e.check(); err != nil {
		return ask, err
	}
	if _, known := e.definitions[workflow]; !known {
		return ask, errNotRegistered
	}
	var chosen startOptions
	for _, option := range options {
		if option != nil {
			option(&chosen)
		}
	}
	if !chosen.given {
		id, err := uuid.NewV7()
		if err != nil {
			return ask, fmt.Errorf("make an id: %w", err)
		}
		chosen.id = id.String()
	}
	if err := errors.Join(checkName("id", chosen.id), chosen.mistake); err != nil {
		return ask, err
	}
	input, err := encodeValue("the input of workflow", workflow, in)
	if err != nil {
		return ask, err
	}
	ask.Start = store.Start{ID: chosen.id, Workflow: workflow, Input: input, Priority: chosen.priority}
	e.priorities.note(chosen.priority)
	ask.given, ask.later = chosen.given, chosen.later
	switch {
	case !chosen.at.IsZero():
		at := chosen.at.UnixMicro() // in bounds: the option has seen to it
		ask.AtMicros = &at
	case chosen.later:
		delay := chosen.delay.Microseconds()
		ask.DelayMicros = &delay
	}
	return ask, nil
}

// start creates the run, unless its id is taken.
func (e *Engine) start(ctx context.Context, ask newStart) (existing bool, err error) {
	span := e.beginStart(ctx, &ask)
	existing, err = e.awaitStart(ctx, ask, e.queueStart(ctx, ask))
	finishStart(span, existing, err)
	return existing, err
}

// awaitStart waits for the outcome of a start that is queued, and queues it again for as long as another transaction holds
// its id.
func (e *Engine) awaitStart(ctx context.Context, ask newStart, outcome <-chan startOutcome) (existing bool, err error) {
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		started := awaitOutcome(ctx, outcome)
		switch {
		case started.err == nil && started.Created:
			return false, nil
		case started.err == nil:
			return true, sameStart(ask.Start, started.Run)
		case !errors.Is(started.err, commit.ErrLocked):
			return false, e.explained(ctx, outward(started.err))
		}
		select {
		case <-ctx.Done():
			return false, fmt.Errorf("id %q is being started by a transaction that has not ended: %w", ask.ID, ctx.Err())
		case <-time.After(wait):
		}
		outcome = e.queueStartBy(ctx, ask, (*commit.Committer).StartApart) // others do not wait for what holds it
	}
}

// awaitOutcome waits for outcome, or for the end of ctx, which says less than an outcome that is there as well.
func awaitOutcome(ctx context.Context, outcome <-chan startOutcome) startOutcome {
	select {
	case started := <-outcome:
		return started
	case <-ctx.Done():
	}
	select {
	case started := <-outcome:
		return started
	default:
		return startOutcome{err: fmt.Errorf("%w: %w", commit.ErrOutcomeUnknown, ctx.Err())}
	}
}

// startWay hands a start to the committer.
type startWay func(*commit.Committer, store.Start, func(commit.Started, error))

type startOutcome struct {
	commit.Started

	err error
}

// queueStart hands a start to the committer, without waiting for it, unless too much is queued.
func (e *Engine) queueStart(ctx context.Context, ask newStart) <-chan startOutcome {
	return e.queueStartBy(ctx, ask, (*commit.Committer).Start)
}

// queueStartBy does it by one of the ways to hand a start to the committer.
func (e *Engine) queueStartBy(ctx context.Context, ask newStart, by startWay) <-chan startOutcome {
	outcome := make(chan startOutcome, 1)
	if err := e.intake.enter(ctx); err != nil {
		outcome <- startOutcome{err: err}
		return outcome
	}
	then := func(started commit.Started, err error) {
		e.intake.leave()
		outcome <- startOutcome{started, err}
	}
	lane := e.committer
	if ask.given {
		lane = e.side // another transaction may hold the id
	}
	if ask.later {
		e.queueLater(lane, ask.Later, then)
	} else {
		e.queueNow(lane, ask.Start, by, then)
	}
	return outcome
}

// queueNow creates a run that executes here from the start, without anybody claiming it, if there is room and nobody who waits
// for it has to come first.
func (e *Engine) queueNow(lane *commit.Committer, ask store.Start, by startWay, then func(commit.Started, error)) {
	e.mu.Lock()
	if worker := e.lease.ID(); worker != 0 && !e.draining.Load() && e.cache.slots.Take(ask.Workflow) {
		ask.Worker = worker
	}
	e.mu.Unlock()
	by(lane, ask, func(started commit.Started, err error) {
		e.started(ask, started, err)
		then(started, err)
	})
}

// started begins to execute a run that was created as ours.
func (e *Engine) started(ask store.Start, started commit.Started, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if ask.Worker != 0 && (err != nil || !started.Created) {
		e.giveSlotLocked(ask.Workflow)
	}
	if err != nil {
		return
	}
	if !started.Created {
		if found := started.Run; found.Worker == ask.Worker && found.Status == string(StatusRunning) && e.cache.runs[ask.ID] == nil {
			e.orphans.give() // created by an attempt of ours whose answer was lost, or just being handed over
		}
		return
	}
	e.tellResumable(ask.ID, ask.Workflow)
	switch {
	case ask.Worker == 0:
		e.claims.give()
	case e.draining.Load() || e.lease.ID() != ask.Worker:
		e.giveSlotLocked(ask.Workflow)
		e.release(store.Fence{ID: ask.ID, Token: 1, Worker: ask.Worker}, ask.Workflow)
	default:
		e.launchLocked(e.definitions[ask.Workflow], store.Claimed{ID: ask.ID, Workflow: ask.Workflow, Token: 1, Worker: ask.Worker, Input: ask.Input, Trace: ask.Trace}, &store.Past{})
	}
}

// queueLater creates a run that begins later. This worker arms its beginning if that is soon; else, or if this worker dies,
// whoever looks shortly before does.
func (e *Engine) queueLater(lane *commit.Committer, ask store.Later, then func(commit.Started, error)) {
	var created *store.StartedLater
	var found []store.Run
	lane.DoSized(ask.Size(), true, func(b *pgx.Batch) {
		created, found = nil, nil
		e.store.StartLater(b, []store.Later{ask}, func(_ string, when store.StartedLater) { created = &when })
		e.store.QueueFindRuns(b, []string{ask.ID}, &found)
	}, func(_ struct{}, err error) {
		started := commit.Started{Created: created != nil}
		switch {
		case err != nil:
		case created != nil:
			e.armBeginning(ask.Start, *created)
		case len(found) == 1:
			started.Run = found[0]
			e.armFound(found[0])
		default:
			err = fmt.Errorf("id %q was taken by a run that is gone: %w", ask.ID, ErrIDConflict)
		}
		then(started, err)
	})
}

// armFound has a run that begins later claimed in time: an attempt of ours whose answer was lost may have created it.
func (e *Engine) armFound(run store.Run) {
	if run.Status == string(StatusWaiting) && run.Token == 1 && run.Worker == 0 && e.executes() {
		e.cold.add(run.ID)
	}
}

// armBeginning has the run claimed when it is to begin, and tells the others.
func (e *Engine) armBeginning(run store.Start, when store.StartedLater) {
	e.armCold(run.ID, 1, clamp.Micros(when.RemainingMicros))
	e.tellTimer(run.ID, 0, when.AtMicros)
	if !e.executes() {
		e.config.Notifier.Notify(e.laterOn, "") // no payload: many are one
	}
}

func (e *Engine) startTx(ctx context.Context, tx pgx.Tx, ask newStart) (existing bool, err error) {
	if bounds.Nothing(tx) {
		return false, errors.New("the transaction is nil: pass the pgx.Tx to start in")
	}
	span := e.beginStart(ctx, &ask)
	defer func() { finishStart(span, existing, err) }()
	tell := []bus.Message{{Channel: e.config.Channels.WorkflowResumable, Payload: bus.Encode(bus.WorkflowResumable{InstanceID: ask.ID, WorkflowName: ask.Workflow})}}
	var created bool
	if ask.later {
		var when store.StartedLater
		created, when, err = e.store.StartLaterTx(ctx, tx, ask.Later)
		tell = []bus.Message{{Channel: e.config.Channels.TimerExpired, Payload: timerAnnouncement(ask.ID, 0, when.AtMicros)}, {Channel: e.laterOn}}
	} else {
		created, err = e.store.StartRunTx(ctx, tx, ask.Start)
	}
	if err != nil {
		return false, err
	}
	if !created {
		found, err := e.store.FindRuns(ctx, tx, []string{ask.ID})
		if err != nil {
			return false, err
		}
		if len(found) == 0 {
			return false, fmt.Errorf("id %q was taken, but its run is not visible to this transaction: %w", ask.ID, ErrIDConflict)
		}
		return true, sameStart(ask.Start, found[0])
	}
	return false, e.config.Notifier.NotifyTxMany(ctx, tx, tell)
}

// sameStart returns ErrIDConflict unless found is what ask would have created.
func sameStart(ask store.Start, found store.Run) error {
	if found.Workflow != ask.Workflow {
		return fmt.Errorf("id %q: %w: of workflow %q", ask.ID, ErrIDConflict, found.Workflow)
	}
	if found.Erased {
		return fmt.Errorf("id %q: %w: %w, so whether the input is the same is unknown", ask.ID, ErrIDConflict, ErrErased)
	}
	if !sameJSON(ask.Input, found.Input) {
		return fmt.Errorf("id %q: %w: with another input", ask.ID, ErrIDConflict)
	}
	return nil
}
