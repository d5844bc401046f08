package workflow

import (
	"context"
	"math"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/pace"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

const (
	// fewWaiting is how many runs here may wait for a type of event without the database being asked which of them an event is for.
	fewWaiting = 8
	// eventMargin is how long ago an event was sent before which none comes to light any more, unless its transaction was open
	// for longer. It must be more than hotGrace: what is left to a worker is above the mark.
	eventMargin = hotGrace + time.Second
	// eventRuns is how many runs one statement of a sweep makes ready.
	eventRuns = 1000
)

func (e *Engine) asWakeEvent(r *run, on listening) store.WakeEvent {
	return store.WakeEvent{
		Fence: r.fence(), EventWait: *on.event, Position: r.waiting.position, Nudged: r.waiting.nudged,
	}
}

// sentEvents is told by the committer which events it has sent: runs in this process need not wait for the echo.
func (e *Engine) sentEvents(events []store.SentEvent) {
	for _, event := range events {
		e.config.Notifier.Notify(e.config.Channels.ChannelMessage, eventAnnouncement(event))
		if event.ID != 0 { // else it is as new as any: marks stay behind those
			e.events.note(event.ID)
		}
		if e.executes() {
			e.heardEvent(event)
		}
	}
}

// heardEvent has the runs woken that wait for an event: those parked in memory here at once if they are few,
// the others by a sweep. ID 0: it was sent, perhaps, and whoever has sent it does not know its number.
func (e *Engine) heardEvent(event store.SentEvent) {
	if event.ID == 0 {
		e.heardSomeEvent(eventChannel(event.Type))
		return
	}
	id := strconv.FormatInt(event.ID, 10)
	channel := eventChannel(event.Type)
	e.mu.Lock()
	waiting := e.cache.receiving[channel]
	few := len(waiting) <= fewWaiting
	if few {
		e.hintAllLocked(channel)
	}
	e.mu.Unlock()
	if !few {
		e.matching.add(id)
		e.matchingOn.add(channel)
	}
	e.coldEvents.add(id)
}

// heardSomeEvent has all looked at who wait for a type of event.
func (e *Engine) heardSomeEvent(channel string) {
	e.mu.Lock()
	for r := range e.cache.receiving[channel] {
		e.looking.add(r, channel)
	}
	e.mu.Unlock()
	e.coldEvents.tooMany()
}

// hintAllLocked has all polled for who wait for a type of event here.
func (e *Engine) hintAllLocked(channel string) {
	for r := range e.cache.receiving[channel] {
		on, _ := r.on(channel)
		e.hintLocked(r, on)
	}
}

// hintUnparkedLocked has those polled for that wait for it beside steps: MatchEvents knows the others only.
func (e *Engine) hintUnparkedLocked(channel string) {
	for r := range e.cache.receiving[channel] {
		if on, _ := r.on(channel); r.phase != parked {
			e.hintLocked(r, on)
		}
	}
}

// eventIDs returns the ids of events that were counted.
func eventIDs(counts map[string]int) (ids []int64) {
	for name := range counts {
		if id, err := strconv.ParseInt(name, 10, 64); err == nil { // as FormatInt has written it
			ids = append(ids, id)
		}
	}
	return ids
}

// matchLoop polls which of the many runs parked here events are for, and wakes them.
func (e *Engine) matchLoop(ctx context.Context) {
	rounds := spacing{gap: 2 * time.Millisecond, share: 1, credit: 200 * time.Millisecond}
	again := retrying{}
	for ; again.wait(ctx, e.matching.some, nil); rounds.rest(ctx) {
		rounds.begin(time.Now())
		counts, more := e.matching.take()
		if types, moreTypes := e.matchingOn.take(); more || moreTypes {
			e.looking.everybody()
		} else {
			e.mu.Lock()
			for channel := range types {
				e.hintUnparkedLocked(channel)
			}
			e.mu.Unlock()
		}
		ids, worker, found := eventIDs(counts), e.lease.ID(), new([]string)
		if len(ids) == 0 || worker == 0 { // without a lease nothing is parked here
			continue
		}
		err := e.doHinted(ctx, func(b *pgx.Batch) { e.store.MatchEvents(b, ids, worker, found) })
		noteOutcome(ctx, e.reports.waits, err)
		if again.after(err != nil); err != nil {
			e.matching.putBack(counts, false)
			continue
		}
		e.mu.Lock()
		for _, id := range *found {
			if r := e.cache.runs[id]; r != nil && r.phase == parked && len(r.listening) > 0 && r.listening[0].event != nil {
				e.wakeLocked(r, r.listening[0])
			}
		}
		e.mu.Unlock()
	}
}

// eventSweepLoop polls, a little later, for those who wait for an event and are not in memory here.
func (e *Engine) eventSweepLoop(ctx context.Context) {
	rounds := sweepSpacing
	again := retrying{}
	for again.wait(ctx, e.coldEvents.some, nil) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(mailSweepDelay):
		}
		rounds.begin(time.Now())
		counts, more := e.coldEvents.take()
		held, err := e.sweepEventsFor(ctx, eventIDs(counts), more)
		noteOutcome(ctx, e.reports.events, err)
		if err != nil || held {
			e.coldEvents.putBack(counts, more && err != nil)
		}
		again.after(err != nil || held)
		rounds.rest(ctx)
	}
}

// sweepEventsFor makes those ready that wait for these events, or, if there are more than can be named, for any. held: the rows of some
// are held at the moment.
func (e *Engine) sweepEventsFor(ctx context.Context, ids []int64, more bool) (held bool, err error) {
	if err := e.letting.wait(ctx); err != nil {
		return false, err
	}
	if more {
		if _, err := e.sweepEvents(ctx); err != nil {
			return false, err
		}
	}
	for again := len(ids) > 0; again; {
		woken, first, full, skipped := new([]store.Named), new(int64), new(bool), new(bool)
		if err := e.doHinted(ctx, func(b *pgx.Batch) { e.store.SweepEventsFor(b, ids, eventRuns, woken, first, full, skipped) }); err != nil {
			return held, err
		}
		if *first != 0 {
			e.events.note(*first) // it is there, and may have come to light late
		}
		e.madeReady(*woken)
		again, held = *full, *skipped
	}
	return held, nil
}

// eventMarks say where sweeps of the events begin. An event stays when those who waited for it have had it, so the mark
// rises with what was looked at. What comes to light below it is found by a full look, at those who wait.
type eventMarks struct {
	pace pace.Pace

	mu    sync.Mutex
	low   int64 // the sweep begins after it
	noted int64 // what a look that is under way may have passed before it came to light
}

// note takes note of an event that was sent, as the database has said, which may come to light late.
func (m *eventMarks) note(id int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.low, m.noted = min(m.low, id-1), min(m.noted, id-1)
}

// begin returns after which event a look begins.
func (m *eventMarks) begin() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.noted = math.MaxInt64
	return m.low
}

// rise moves the mark to where a look has come.
func (m *eventMarks) rise(to int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.low = min(max(m.low, to), m.noted)
}

// sweepEvents makes parked runs ready that wait for an event which is there: a full look goes through those who wait, the
// others through the events that have come since.
func (e *Engine) sweepEvents(ctx context.Context) (int, error) {
	began := time.Now()
	if !e.events.pace.Begin(began) {
		return e.sweepEventsSince(ctx)
	}
	total, err := e.sweepEventWaits(ctx)
	e.events.pace.Took(time.Now(), time.Since(began))
	return total, err
}

func (e *Engine) sweepEventsSince(ctx context.Context) (total int, err error) {
	page := &store.EventPage{Last: e.events.begin(), Full: true}
	mark := page.Last
	for page.Full {
		next, woken := &store.EventPage{Last: page.Last}, new([]store.Named)
		if err := e.do(ctx, true, func(b *pgx.Batch) {
			e.store.SweepEvents(b, next, e.config.MaxMessagesPerBatch, eventRuns, hotGrace, eventMargin, woken)
		}); err != nil {
			return total, err
		}
		total += len(*woken)
		e.madeReady(*woken)
		if next.Again {
			continue // the same page: those made ready wait no more
		}
		mark = max(mark, next.Mark)
		page = next
	}
	e.events.rise(mark)
	return total, nil
}

func (e *Engine) sweepEventWaits(ctx context.Context) (total int, err error) {
	e.events.begin()
	until := new(int64)
	if err := e.do(ctx, true, func(b *pgx.Batch) { e.store.LastEvent(b, eventMargin, until) }); err != nil {
		return 0, err
	}
	page := &store.WaitPage{Full: true}
	for page.Full {
		next, woken := &store.WaitPage{Last: page.Last}, new([]store.Named)
		if err := e.do(ctx, true, func(b *pgx.Batch) {
			e.store.SweepEventWaits(b, next, e.config.MaxMessagesPerBatch, hotGrace, woken)
		}); err != nil {
			return total, err
		}
		total += len(*woken)
		e.madeReady(*woken)
		page = next
	}
	e.events.rise(*until)
	return total, nil
}
