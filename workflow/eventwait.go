package workflow

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/journal"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// storedEvent is the payload of a wait for an event in history.
type storedEvent struct {
	ID            int64             `json:"id"`
	Type          string            `json:"type"`
	Source        string            `json:"source"`
	EventID       string            `json:"event_id"`
	Attributes    map[string]string `json:"attributes"`
	Data          json.RawMessage   `json:"data"`
	SentAt        time.Time         `json:"sent_at"`
	ExpiresMicros int64             `json:"expires_us"`
	TakenMicros   int64             `json:"taken_us"`
	Timeout       bool              `json:"timeout"`
}

// seenEvent is an event that a run has had. What a run has had is known from its own history alone.
type seenEvent struct {
	id            int64
	expiresMicros int64
}

// seenMargin is by how much the database's clock may be set back without an event coming to life again for a run that has had it.
const seenMargin = time.Hour

func (r *run) waitEvent(eventType string, attributes []byte, timeout *time.Duration) (storedEvent, error) {
	on := listening{channel: eventChannel(eventType), event: &store.EventWait{Type: eventType, Attributes: attributes}}
	for _, seen := range r.events[eventType] {
		on.event.Seen = append(on.event.Seen, seen.id)
	}
	end := r.within(timeout, journal.WaitEvent)
	payload, err := r.choose(journal.WaitEvent, eventType, "wait_event:"+eventType, end, []listening{on}, nil)
	if err != nil {
		return storedEvent{}, err
	}
	var event storedEvent
	if err := json.Unmarshal(payload, &event); err != nil {
		r.stuck(fmt.Errorf("history is damaged: position %d: %w", r.journal.Issued(), refusal.Decoding(err)))
	}
	if event.Timeout {
		return storedEvent{}, ErrTimeout
	}
	r.hadEvent(event)
	return event, nil
}

// hadEvent remembers the event for as long as it is kept. Those that had expired when it was taken are forgotten.
func (r *run) hadEvent(event storedEvent) {
	kept := r.events[event.Type][:0]
	for _, seen := range r.events[event.Type] {
		if seen.expiresMicros > event.TakenMicros-seenMargin.Microseconds() {
			kept = append(kept, seen)
		}
	}
	if r.events == nil {
		r.events = map[string][]seenEvent{}
	}
	r.events[event.Type] = append(kept, seenEvent{id: event.ID, expiresMicros: event.ExpiresMicros})
}

func (r *run) sendEvent(ask store.SendEvent) error {
	position, _, recorded, err := r.issue(journal.SendEvent, ask.Type)
	if err != nil || recorded {
		return err
	}
	ask.Fence, ask.Position = r.fence(), position
	r.untilFree(func() (held bool, err error) {
		return commit.Await(context.Background(), func(then func(bool, error)) {
			r.engine.committer.SendEvent(r.stream, ask, then)
		})
	})
	return nil
}
