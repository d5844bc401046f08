package workflow

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/workflow/internal/journal"
)

// Case is one of the things that a [Select] waits for, made by [OnResult], [OnMessage] or [OnTimer].
type Case struct {
	err     error
	flight  *flight
	channel string
	timer   bool
	delay   time.Duration
	chosen  func(ctx *Context, message storedMessage) error
}

// OnResult is chosen when the future has ended; then is given what its Get returns.
func OnResult[Out any](future *Future[Out], then func(out Out, err error) error) Case {
	begun, err := future.begun()
	if err != nil {
		return Case{err: fmt.Errorf("OnResult: %w", err)}
	}
	return Case{flight: begun, chosen: func(ctx *Context, _ storedMessage) error { return then(future.Get(ctx)) }}
}

// OnMessage is chosen by the next message of channel, as by [Receive].
func OnMessage[T any](channel string, then func(message Message[T]) error) Case {
	return Case{err: checkChannel(channel), channel: channel, chosen: func(_ *Context, stored storedMessage) error {
		message, err := newMessage[T](stored)
		if err != nil {
			return err
		}
		return then(message)
	}}
}

// OnTimer is chosen when d has passed since Select was called, by the database's clock; at once, unless another
// case can be chosen, if d is zero or less. It is durable.
func OnTimer(d time.Duration, then func() error) Case {
	return Case{timer: true, delay: d, chosen: func(*Context, storedMessage) error { return then() }}
}

// Select waits until one of the cases can be chosen, calls its function and returns what that returns. The choice is recorded,
// so every execution of the run makes the same. The others are given up: the contexts of futures that were not chosen end, and
// their Get returns ErrNotChosen even if they ended all the same (with a compensation they are undone like any other step);
// messages stay for whoever receives them; timers are forgotten.
//
// Futures come before messages, and these before timers, when several can be chosen; of their kind the first given, and of
// messages the first given channel. It returns an error without waiting if there is no case, or one that cannot be waited for.
func Select(ctx *Context, cases ...Case) error {
	errs := []error{}
	if len(cases) == 0 {
		errs = append(errs, errors.New("no case: give at least one"))
	}
	for i, c := range cases {
		switch {
		case c.err != nil && errors.Is(c.err, ErrCancelled):
			return c.err
		case c.err != nil:
			errs = append(errs, fmt.Errorf("case %d: %w", i, c.err))
		case c.chosen == nil:
			errs = append(errs, fmt.Errorf("case %d is empty: use OnResult, OnMessage or OnTimer", i))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("select: %w", err)
	}
	then, err := ctx.current().choice(cases)
	if err != nil {
		return err
	}
	return then(ctx)
}

// choiceRecord is what is recorded of a Select that chose a future; a message, or that the time is over, are recorded as by Receive.
type choiceRecord struct {
	Future int32 `json:"future"` // its position
}

// choice returns what is to be called for the case that is chosen: code of the workflow's, which may issue commands.
func (r *run) choice(cases []Case) (then func(ctx *Context) error, err error) {
	before, err := r.enter(commandSelect)
	if err != nil {
		return nil, err
	}
	defer r.complete(before, &err)
	var channels []listening
	var end *until
	seen := map[string]bool{}
	for _, c := range cases {
		switch {
		case c.channel != "" && !seen[c.channel]:
			seen[c.channel] = true
			channels = append(channels, r.listenTo(c.channel))
		case c.timer && (end == nil || c.delay < end.delay):
			end = &until{relative: true, delay: c.delay} // a later one can never be chosen
		}
	}
	payload, err := r.choose(journal.Select, "", "select", end, channels, func() []byte { return r.firstLanded(cases) })
	if err != nil {
		return nil, err
	}
	message := r.decodeMessage(payload)
	var landed choiceRecord
	if err := json.Unmarshal(payload, &landed); err != nil {
		r.stuck(fmt.Errorf("history is damaged: position %d: %w", r.journal.Issued(), refusal.Decoding(err)))
	}
	chosen := slices.IndexFunc(cases, func(c Case) bool {
		switch {
		case landed.Future > 0:
			return c.flight != nil && c.flight.position == landed.Future
		case message.Timeout:
			return c.timer && c.delay == end.delay
		default:
			return c.channel == message.Channel && c.channel != ""
		}
	})
	if chosen < 0 {
		r.stuck(divergence{fmt.Errorf("replay diverged at position %d: the Select has no case for the choice recorded (%s); deploy the code that wrote this history",
			r.journal.Issued(), landed.said(message))})
	}
	for i, c := range cases {
		if i != chosen && c.flight != nil && c.flight != cases[chosen].flight {
			c.flight.rejected.Store(true)
			r.drop(c.flight)
		}
	}
	return func(ctx *Context) error { return cases[chosen].chosen(ctx, message) }, nil
}

// said tells what was chosen, without what has come.
func (c choiceRecord) said(message storedMessage) string {
	switch {
	case c.Future > 0:
		return fmt.Sprintf("the step at position %d", c.Future)
	case message.Timeout:
		return "the deadline"
	default:
		return fmt.Sprintf("a message on channel %q", message.Channel)
	}
}

// firstLanded returns the record that chooses the first future that has ended; nil if none has.
func (r *run) firstLanded(cases []Case) []byte {
	for _, c := range cases {
		if c.flight == nil || !c.flight.dropped && !r.air.recorded(c.flight) {
			continue
		}
		text, err := json.Marshal(choiceRecord{Future: c.flight.position})
		if err != nil {
			panic(err) // a number always encodes
		}
		return text
	}
	return nil
}
