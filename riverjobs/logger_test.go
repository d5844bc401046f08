package riverjobs

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// River's own client is told by anybody what to log: whoever may connect to the database can notify on its channels.
// What was said stands in no line, and there are not more lines than for other garbage.
func TestWhatIsForgedOnRiversChannelsIsNotLogged(t *testing.T) {
	t.Parallel()
	b := setup(t)
	config := b.config()
	config.Logger = slog.New(slog.NewTextHandler(&b.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	jobs := start(t, config)
	for _, kind := range kinds {
		await(t, kind.name, b.swept[kind.name])
	}
	const each = 2000
	for _, topic := range []string{"river_insert", "river_control", "river_leadership"} {
		for _, payload := range []string{
			`hunter2 `,
			`{"queue": "hunter2", "action": "hunter2", "job_id": 4111111, "leader_id": "hunter2", "n": "`,
			`{"queue": "romancy", "action": "cancel", "job_id": 4111111, "n": "`,
			`{"queue": 4111111, "job_id": "hunter2", "action": 4111111, "n": "`,
			`{"queue": "*", "action": "pause", "metadata": {"card": "hunter2"}, "n": "`,
		} {
			if _, err := b.pool.Exec(t.Context(), `select count(pg_notify('romancy.' || $1::text, $2::text || n || case when $2 like '{%' then '"}' else '' end))
				from generate_series(1, $3::integer) n`, topic, payload, each/5); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 2 { // one may have been under way
		await(t, kinds[0].name, b.swept[kinds[0].name])
	}
	stopJobs(t, jobs)
	warned := 0
	for line := range strings.Lines(b.log.String()) {
		for _, secret := range []string{"hunter2", "4111111"} {
			if strings.Contains(line, secret) {
				t.Fatalf("%s is logged: %s", secret, line)
			}
		}
		if strings.Contains(line, "otification") && !strings.Contains(line, "level=DEBUG") {
			warned++
			t.Log(line)
		}
	}
	if warned > 0 {
		t.Errorf("%d lines, although River is told nothing of it", warned)
	}
}

// Whatever River says of a notification is left out, and what it says of anything else stays.
func TestRiversLinesLoseWhatNotificationsSaidAndNothingElse(t *testing.T) {
	t.Parallel()
	misfit := json.Unmarshal([]byte(`{"job_id": 4111111}`), new(struct {
		JobID int8 `json:"job_id"`
	}))
	for _, test := range []struct {
		message string
		attrs   []any
		kept    []string
	}{
		{"notifier.Notifier: Dropping notification due to full buffer", []any{"payload", "hunter2"}, nil},
		{"producer: Failed to unmarshal insert notification payload", []any{slog.String("err", misfit.Error())}, nil},
		{"leadership.Elector: Unable to unmarshal leadership notification", []any{"client_id", "me", "err", misfit}, []string{"client_id=me", "int8"}},
		{"leadership.Elector: Received unexpected notification", []any{"client_id", "me", "topic", "insert", "payload", "hunter2"}, []string{"client_id=me", "topic=insert"}},
		{"leadership.Elector: Received notification from notifier", []any{"action", "hunter2", "client_id", "me"}, []string{"client_id=me"}},
		{"producer: Job cancel notification dropped due to full buffer", []any{slog.Int64("job_id", 4111111)}, nil},
		{"producer: Paused", []any{"queue", "romancy", "queue_in_message", "hunter2"}, []string{"queue=romancy"}},
		{"notifier.Notifier: Error from notification wait", []any{"err", fmt.Errorf("conn closed")}, []string{"conn closed"}},
		{"producer: Error fetching queue settings", []any{slog.String("err", "timeout")}, []string{"err=timeout"}},
	} {
		var log lockedBuffer
		logger := slog.New(quiet{handler: slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})})
		logger.Log(context.Background(), slog.LevelWarn, test.message, test.attrs...)
		for _, secret := range []string{"hunter2", "4111111"} {
			if strings.Contains(log.String(), secret) {
				t.Errorf("%s is logged: %s", secret, log.String())
			}
		}
		for _, kept := range append(test.kept, test.message) {
			if !strings.Contains(log.String(), kept) {
				t.Errorf("%s is not logged: %s", kept, log.String())
			}
		}
	}
}
