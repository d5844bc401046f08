package outbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// What the database quotes when it refuses an event, or what the relay does with it, is in no error and no line.
func TestNothingTheDatabaseQuotesOfEventsIsShown(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	quoting := func(operation string, row string) {
		mustExec(t, pool, fmt.Sprintf(`create function quote_%[1]s() returns trigger language plpgsql as $$ begin
			if convert_from(%[2]s.payload, 'UTF8') like '%%card-4111%%' then
				raise exception using errcode = '22P02', message = 'card ' || convert_from(%[2]s.payload, 'UTF8'), detail = 'hunter2', hint = 'hunter2'; end if;
			return %[2]s; end $$;
			create trigger quote_%[1]s before %[1]s on romancy.outbox for each row execute function quote_%[1]s()`, operation, row))
	}
	add(t, pool, Event{ID: "1", Key: "a", Topic: "t", Payload: []byte(`"card-4111"`)})
	quoting("delete", "old")
	quoting("insert", "new")
	writer, err := NewWriter(WriterConfig{})
	if err != nil {
		t.Fatal(err)
	}
	for name, adding := range map[string]func(tx pgx.Tx, events ...Event) error{
		"Add":    func(tx pgx.Tx, events ...Event) error { return Add(within(t), tx, events...) },
		"Writer": func(tx pgx.Tx, events ...Event) error { return writer.Add(within(t), tx, events...) },
	} {
		err := pgx.BeginFunc(within(t), pool, func(tx pgx.Tx) error {
			return adding(tx, Event{ID: "2", Key: "a", Topic: "t", Payload: []byte(`"card-4111"`)})
		})
		if found := (*pgconn.PgError)(nil); !errors.As(err, &found) || found.Code != "22P02" {
			t.Errorf("%s: %v", name, err)
		}
		text, _ := json.Marshal(err) //nolint:errchkjson // what has no JSON is not printed as such
		if shown := fmt.Sprintf("%v %+v %#v %s", err, err, err, text); strings.Contains(shown, "card-4111") || strings.Contains(shown, "hunter2") {
			t.Errorf("%s shows %s", name, shown)
		}
	}
	log := &lines{}
	r := startRelay(t, pool, newRecorder(), func(c *RelayConfig) { c.Logger = log.debug() })
	eventually(t, "the settlement is refused", func() bool { return strings.Contains(log.String(), "22P02") })
	mustExec(t, pool, "drop trigger quote_delete on romancy.outbox")
	shutdown(t, r)
	if text := log.String(); strings.Contains(text, "card-4111") || strings.Contains(text, "hunter2") {
		t.Errorf("the log has\n%s", text)
	}
}

// What the publisher says is the application's: the log has as much of it as dead letters, or its types only.
func TestTheTextsOfThePublishersErrorsAreClippedOrHidden(t *testing.T) {
	t.Parallel()
	for name, hidden := range map[string]bool{"clipped": false, "hidden": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			log := &lines{}
			broker := newRecorder()
			broker.answer = func(*message.Message) error {
				return fmt.Errorf("publish: %w", errors.New("card-4111 "+strings.Repeat("x", 2*maxErrorLength)+" hunter2"))
			}
			add(t, pool, Event{ID: "1", Key: "a", Topic: "t"})
			r := startRelay(t, pool, broker, func(c *RelayConfig) {
				c.Logger, c.HideErrorTexts, c.MaxAttempts, c.InitialBackoff, c.MaxBackoff = log.debug(), hidden, 2, time.Millisecond, time.Millisecond
			})
			eventually(t, "the event is given up", func() bool { return strings.Contains(log.String(), "it is a dead letter now") })
			shutdown(t, r)
			text := log.String()
			if strings.Contains(text, "hunter2") || strings.Contains(text, "card-4111") == hidden || hidden && !strings.Contains(text, "errors.errorString") {
				t.Errorf("the log has\n%s", text)
			}
			if n := query[int](t, pool, "select count(*)::int from romancy.outbox where dead_at is not null and last_error like '%card-4111%'"); n != 1 {
				t.Errorf("%d dead letters say why", n)
			}
		})
	}
}
