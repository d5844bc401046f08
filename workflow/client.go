package workflow

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// StartOption sets how a run is started.
type StartOption func(*startOptions)

type startOptions struct {
	id    string
	given bool
}

// WithID gives the run its id, 1 to 255 bytes, which makes starting it idempotent: a second start of the same workflow with
// the same id and input returns the run that exists. Default: a new UUID (version 7).
func WithID(id string) StartOption {
	return func(o *startOptions) { o.id, o.given = id, true }
}

// Run is a started run, or one that existed.
type Run[Out any] struct {
	engine   *Engine
	id       string
	existing bool
}

// ID returns the run's instance id.
func (r *Run[Out]) ID() string { return r.id }

// Existing reports whether the run had been started before.
func (r *Run[Out]) Existing() bool { return r.existing }

// Start starts a run of the workflow, which e must have been given in its configuration. The run is stored when Start
// returns. It returns ErrIDConflict if the id given belongs to a run of another workflow or with another input,
// ErrNotStarted, ErrClosed, or an error that names what is wrong with the id or the input.
func (w *Workflow[In, Out]) Start(ctx context.Context, e *Engine, in In, options ...StartOption) (*Run[Out], error) {
	ask, given, err := e.newStart(w.name, in, options)
	if err != nil {
		return nil, fmt.Errorf("start workflow %q: %w", w.name, err)
	}
	existing, err := e.start(ctx, ask, given)
	if err != nil {
		return nil, fmt.Errorf("start workflow %q: %w", w.name, err)
	}
	return &Run[Out]{engine: e, id: ask.ID, existing: existing}, nil
}

// StartTx starts a run in the caller's transaction: it exists, and begins, if and when that commits. If another open
// transaction starts a run of the same id, StartTx waits for it, bounded by ctx.
func (w *Workflow[In, Out]) StartTx(ctx context.Context, tx pgx.Tx, e *Engine, in In, options ...StartOption) (*Run[Out], error) {
	ask, _, err := e.newStart(w.name, in, options)
	if err != nil {
		return nil, fmt.Errorf("start workflow %q: %w", w.name, err)
	}
	existing, err := e.startTx(ctx, tx, ask)
	if err != nil {
		return nil, fmt.Errorf("start workflow %q: %w", w.name, err)
	}
	return &Run[Out]{engine: e, id: ask.ID, existing: existing}, nil
}

// Run returns a handle on the run with this id, whether it exists or not: Result tells.
func (w *Workflow[In, Out]) Run(e *Engine, id string) *Run[Out] {
	return &Run[Out]{engine: e, id: id, existing: true}
}

// Result waits until the run has ended and returns its output, or a *RunError if it did not complete. It is woken by
// notification; while none arrive it looks every second. It returns ErrNotFound for a run that does not exist, ctx's error
// when that ends, ErrClosed when the engine is shut down meanwhile. A stuck run gives a *RunError too, although it can be
// resumed.
func (r *Run[Out]) Result(ctx context.Context) (Out, error) {
	var out Out
	if err := r.engine.check(); err != nil {
		return out, fmt.Errorf("result of run %q: %w", r.id, err)
	}
	ended, err := r.engine.watch.wait(ctx, r.id)
	if err != nil {
		return out, fmt.Errorf("result of run %q: %w", r.id, err)
	}
	if status := Status(ended.Status); status != StatusCompleted {
		failed := decodeFailure(ended.Error)
		return out, &RunError{
			ID: r.id, Status: status, Type: failed.Type, Message: failed.Message, Stack: failed.Stack,
			CompensationErrors: failed.CompensationErrors,
		}
	}
	if err := decodeValue(ended.Output, &out); err != nil {
		return out, fmt.Errorf("result of run %q: decode the output into %T: %w", r.id, out, err)
	}
	return out, nil
}

// newStart checks and encodes a start. given: the id is the caller's.
func (e *Engine) newStart(workflow string, in any, options []StartOption) (ask store.Start, given bool, err error) {
	if err := e.check(); err != nil {
		return ask, false, err
	}
	if _, known := e.definitions[workflow]; !known {
		return ask, false, errors.New("it is not registered with this engine: pass it to WithWorkflows, or in Config.Workflows")
	}
	var chosen startOptions
	for _, option := range options {
		option(&chosen)
	}
	if !chosen.given {
		id, err := uuid.NewV7()
		if err != nil {
			return ask, false, fmt.Errorf("make an id: %w", err)
		}
		chosen.id = id.String()
	}
	if err := checkName("id", chosen.id); err != nil {
		return ask, false, err
	}
	input, err := encodeJSON("the input", in)
	return store.Start{ID: chosen.id, Workflow: workflow, Input: input}, chosen.given, err
}

func (e *Engine) start(ctx context.Context, ask store.Start, given bool) (existing bool, err error) {
	lane := e.committer
	if given {
		lane = e.side // another transaction may hold the id
	}
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		started, err := e.startOnce(ctx, lane, ask)
		switch {
		case err == nil && started.Created:
			return false, nil
		case err == nil:
			return true, sameStart(ask, started.Run)
		case !errors.Is(err, commit.ErrLocked):
			return false, outward(err)
		}
		select {
		case <-ctx.Done():
			return false, fmt.Errorf("id %q is being started by a transaction that has not ended: %w", ask.ID, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// startOnce creates a run that executes here from the start, if there is room, without anybody claiming it.
func (e *Engine) startOnce(ctx context.Context, lane *commit.Committer, ask store.Start) (commit.Started, error) {
	e.mu.Lock()
	if e.executes() && !e.draining.Load() && e.cache.executing+e.cache.starting < e.config.MaxConcurrentRuns {
		ask.Worker = e.lease.ID()
	}
	if ask.Worker != 0 {
		e.cache.starting++
	}
	e.mu.Unlock()
	return commit.Await(ctx, func(then func(commit.Started, error)) {
		lane.Start(ask, func(started commit.Started, err error) {
			e.started(ask, started, err)
			then(started, err)
		})
	})
}

// started begins to execute a run that was created as ours.
func (e *Engine) started(ask store.Start, started commit.Started, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if ask.Worker != 0 {
		e.cache.starting--
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
		e.release(store.Fence{ID: ask.ID, Token: 1})
	default:
		e.launchLocked(e.definitions[ask.Workflow], store.Claimed{ID: ask.ID, Workflow: ask.Workflow, Token: 1, Input: ask.Input}, &store.Past{})
	}
}

func (e *Engine) startTx(ctx context.Context, tx pgx.Tx, ask store.Start) (existing bool, err error) {
	if tx == nil {
		return false, errors.New("the transaction is nil: pass the pgx.Tx to start in")
	}
	created, err := e.store.StartRunTx(ctx, tx, ask)
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
		return true, sameStart(ask, found[0])
	}
	payload := bus.Encode(bus.WorkflowResumable{InstanceID: ask.ID, WorkflowName: ask.Workflow})
	return false, e.config.Notifier.NotifyTx(ctx, tx, e.config.Channels.WorkflowResumable, payload)
}

// sameStart returns ErrIDConflict unless found is what ask would have created.
func sameStart(ask store.Start, found store.Run) error {
	if found.Workflow != ask.Workflow {
		return fmt.Errorf("id %q: %w: of workflow %q", ask.ID, ErrIDConflict, found.Workflow)
	}
	if !sameJSON(ask.Input, found.Input) {
		return fmt.Errorf("id %q: %w: with another input", ask.ID, ErrIDConflict)
	}
	return nil
}

func sameJSON(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	var values [2]any
	for i, text := range [][]byte{a, b} {
		decoder := json.NewDecoder(bytes.NewReader(text))
		decoder.UseNumber()
		if decoder.Decode(&values[i]) != nil {
			return false
		}
	}
	return reflect.DeepEqual(values[0], values[1])
}

// Publish sends value, encoded as JSON, to the subscribers of channel. See the function Publish for who receives it.
func (e *Engine) Publish(ctx context.Context, channel string, value any, options ...SendOption) error {
	return e.send(ctx, "", channel, value, options)
}

// SendTo sends value, encoded as JSON, to one run, which need not be waiting for it yet. It returns ErrUndeliverable if the
// run does not exist or has ended, and ErrOutcomeUnknown if the connection was lost on the way.
func (e *Engine) SendTo(ctx context.Context, instanceID, channel string, value any, options ...SendOption) error {
	if err := checkName("instance id", instanceID); err != nil {
		return err
	}
	return e.send(ctx, instanceID, channel, value, options)
}

func (e *Engine) send(ctx context.Context, target, channel string, value any, options []SendOption) error {
	if err := e.check(); err != nil {
		return err
	}
	ask, err := newDelivery(target, channel, value, options)
	if err != nil {
		return err
	}
	delivered, err := commit.Await(ctx, func(then func(commit.Delivered, error)) { e.committer.Deliver(nil, ask, then) })
	switch {
	case err != nil:
		return fmt.Errorf("send to channel %q: %w", channel, outward(err))
	case target != "" && delivered.Receivers == 0:
		return fmt.Errorf("send to run %q: %w", target, ErrUndeliverable)
	}
	return nil
}

// PublishTx is Publish in the caller's transaction: the message is there, and wakes its receivers, if and when that commits.
func (e *Engine) PublishTx(ctx context.Context, tx pgx.Tx, channel string, value any, options ...SendOption) error {
	return e.sendTx(ctx, tx, "", channel, value, options)
}

// SendToTx is SendTo in the caller's transaction: the message is there, and wakes its receiver, if and when that commits.
func (e *Engine) SendToTx(ctx context.Context, tx pgx.Tx, instanceID, channel string, value any, options ...SendOption) error {
	if err := checkName("instance id", instanceID); err != nil {
		return err
	}
	return e.sendTx(ctx, tx, instanceID, channel, value, options)
}

func (e *Engine) sendTx(ctx context.Context, tx pgx.Tx, target, channel string, value any, options []SendOption) error {
	if err := e.check(); err != nil {
		return err
	}
	if tx == nil {
		return errors.New("the transaction is nil: pass the pgx.Tx to send in")
	}
	ask, err := newDelivery(target, channel, value, options)
	if err != nil {
		return err
	}
	receivers := 0
	var notifications []bus.Message
	err = e.store.DeliverMessagesTx(ctx, tx, []store.Deliver{ask},
		func(_, found int) { receivers = found },
		func(sent store.Sent) {
			notifications = append(notifications, bus.Message{Channel: e.config.Channels.ChannelMessage, Payload: announcement(sent)})
		})
	switch {
	case err != nil:
		return fmt.Errorf("send to channel %q: %w", channel, err)
	case target != "" && receivers == 0:
		return fmt.Errorf("send to run %q: %w", target, ErrUndeliverable)
	}
	return e.config.Notifier.NotifyTxMany(ctx, tx, notifications)
}

// announcement is the channel_message payload for a message. Only a direct send names its receiver.
func announcement(sent store.Sent) string {
	message := bus.ChannelMessage{ChannelName: sent.Channel, MessageID: sent.ID}
	if sent.Direct {
		message.TargetInstanceID = sent.Receiver
	}
	return bus.Encode(message)
}

// outward translates the committer's errors into this package's.
func outward(err error) error {
	switch {
	case errors.Is(err, commit.ErrClosed):
		return ErrClosed
	case errors.Is(err, commit.ErrOutcomeUnknown):
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	default:
		return err
	}
}
