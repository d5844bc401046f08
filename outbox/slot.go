package outbox

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/refusal"
)

// maxBatchBytes bounds the payloads of a batch in memory. A larger event travels alone.
const maxBatchBytes = 8 << 20

// maxErrorLength is how much of an error's text is kept with an event, in bytes.
const maxErrorLength = 1000

// taken is an event in this relay's hands.
type taken struct {
	id         int64
	eventID    string
	topic, key string
	payload    []byte
	headers    map[string]string
	attempts   int // this one included

	// Guarded by the batch's mutex.
	fate fate
	err  error
}

type fate int

const (
	untried fate = iota
	delivered
	failed
	dead
)

// batch is what a consumer holds of one slot, under a lease.
type batch struct {
	slot   int32
	token  int64
	owner  string
	events []*taken // in order
	lanes  []*lane

	mu        sync.Mutex
	leaseEnds time.Time // by this process's clock, early rather than late
	stopped   bool      // begin nothing more
}

// scanBatch reads the rows of ClaimBatch: none without a slot, one without an event if all were blocked.
func scanBatch(rows pgx.Rows) (*batch, error) {
	var b *batch
	for rows.Next() {
		var slot int32
		var token int64
		var id *int64
		var attempts *int
		var eventID, topic, key, headers *string
		var payload []byte
		if err := rows.Scan(&slot, &token, &id, &eventID, &topic, &key, &payload, &headers, &attempts); err != nil {
			return nil, err
		}
		if b == nil {
			b = &batch{slot: slot, token: token}
		}
		if id == nil {
			continue
		}
		event := &taken{id: *id, eventID: *eventID, topic: *topic, key: *key, payload: payload, attempts: *attempts}
		if headers != nil {
			// Headers that another hand wrote badly must not stop the slot: the event fails alone.
			if err := json.Unmarshal([]byte(*headers), &event.headers); err != nil {
				event.err = fmt.Errorf("its headers are not a JSON object of strings: %w", refusal.Decoding(err))
			}
		}
		b.events = append(b.events, event)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	if b != nil {
		slices.SortFunc(b.events, func(x, y *taken) int { return cmp.Compare(x.id, y.id) })
	}
	return b, nil
}

type verdict int

const (
	batchUndecided        verdict = iota
	batchWorked                   // something was delivered
	batchFailedAltogether         // several keys failed and nothing was delivered
)

func (b *batch) verdict() verdict {
	b.mu.Lock()
	defer b.mu.Unlock()
	failing := 0
	for _, l := range b.lanes {
		broken := false
		for _, event := range l.events {
			switch event.fate {
			case delivered:
				return batchWorked
			case failed, dead:
				broken = true
			case untried:
			}
		}
		if broken {
			failing++
		}
	}
	if failing > 1 {
		return batchFailedAltogether
	}
	return batchUndecided
}

// settlement returns the arguments of Settle, which releases about as many held events as fit in a batch, and logs and counts what they say.
func (r *Relay) settlement(b *batch) []any {
	b.mu.Lock()
	defer b.mu.Unlock()
	// Not nil: that would be NULL.
	deliveredIDs, failedIDs, deadIDs, heldIDs, returnedIDs := []int64{}, []int64{}, []int64{}, []int64{}, []int64{}
	waits, failedErrors, deadErrors, clearKeys := []int64{}, []string{}, []string{}, []string{}
	var failure *taken
	for _, l := range b.lanes {
		blocked, complete := false, true
		for _, event := range l.events {
			switch event.fate {
			case delivered:
				deliveredIDs = append(deliveredIDs, event.id)
			case failed:
				blocked = true
				failedIDs = append(failedIDs, event.id)
				waits = append(waits, backoff(event.attempts, r.config.InitialBackoff, r.config.MaxBackoff).Milliseconds())
				failedErrors = append(failedErrors, errorText(event.err))
				failure = event
			case dead:
				deadIDs = append(deadIDs, event.id)
				deadErrors = append(deadErrors, errorText(event.err))
				r.config.Logger.Error("outbox event given up: it is a dead letter now", slog.String("event_id", event.eventID),
					slog.String("topic", event.topic), slog.String("key", event.key), slog.Int("attempts", event.attempts), r.told(event.err))
			case untried:
				complete = false
				if blocked {
					heldIDs = append(heldIDs, event.id)
				} else {
					returnedIDs = append(returnedIDs, event.id)
				}
			}
		}
		if complete && !blocked {
			clearKeys = append(clearKeys, l.events[0].key)
		}
	}
	if failure != nil {
		// One line a batch: when the broker is away, every event fails.
		r.config.Logger.Warn("outbox events could not be published and will be tried again", slog.Int("failed", len(failedIDs)),
			slog.Int("published", len(deliveredIDs)), slog.String("event_id", failure.eventID), slog.String("topic", failure.topic),
			slog.Int("attempts", failure.attempts), r.told(failure.err))
	}
	r.low.note(deliveredIDs)
	r.published.Add(int64(len(deliveredIDs)))
	r.failed.Add(int64(len(failedIDs) + len(deadIDs)))
	return []any{
		b.slot, b.owner, b.token, deliveredIDs, failedIDs, waits, failedErrors, deadIDs, deadErrors, heldIDs, returnedIDs,
		clearKeys, max(r.config.BatchSize/max(len(clearKeys), 1), 1),
	}
}

// told is how the log shows an error of the publisher's.
func (r *Relay) told(err error) slog.Attr {
	if !r.config.HideErrorTexts {
		return slog.String("error", errorText(err))
	}
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(err) {
		err = inner // wrapping is no type of an error
	}
	return slog.String("error", fmt.Sprintf("%T", err))
}

// errorText is what PostgreSQL can store of err.
func errorText(err error) string {
	text := strings.ReplaceAll(strings.ToValidUTF8(err.Error(), "\uFFFD"), "\x00", "\uFFFD")
	if len(text) > maxErrorLength {
		text = strings.ToValidUTF8(text[:maxErrorLength], "")
	}
	return text
}
