package outbox

import (
	"errors"
	"fmt"
	"hash/fnv"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/pgtest"
)

func TestThreeRelaysPublishEachEventOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	published := newRecorder()
	for range 3 {
		startRelay(t, pool, published)
	}
	var events []Event
	for i := range 20 {
		events = append(events, Event{ID: fmt.Sprintf("e%02d", i), Topic: "t", Headers: map[string]string{"n": fmt.Sprint(i)}})
	}
	add(t, pool, events...)
	published.untilPublished(t, len(events))
	untilEmpty(t, pool)
	equal(t, "published", sorted(published.published()), ids(events))
	for _, call := range published.snapshot() {
		if "e"+fmt.Sprintf("%02s", call.metadata.Get("n")) != call.id {
			t.Errorf("headers of another event: %+v", call)
		}
	}
}

func TestOrderPerKeySurvivesFailuresAndSeveralRelays(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	published := newRecorder()
	published.answer = flaky(3)
	for range 2 {
		startRelay(t, pool, published, func(c *RelayConfig) { c.BatchSize = 7; c.MaxAttempts = 1000 })
	}
	const keys, each = 12, 25
	group, ctx := errgroup.WithContext(within(t))
	for k := range keys {
		group.Go(func() error {
			for _, event := range numbered(fmt.Sprint("key", k), each) {
				if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return Add(ctx, tx, event) }); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	published.untilPublished(t, keys*each)
	untilEmpty(t, pool)
	byKey := map[string][]string{}
	for _, call := range published.snapshot() {
		if call.err == nil {
			byKey[call.key] = append(byKey[call.key], call.id)
		}
	}
	for k := range keys {
		key := fmt.Sprint("key", k)
		equal(t, key, byKey[key], ids(numbered(key, each)))
	}
}

// flaky fails every n-th attempt, about, differently for every event.
func flaky(n uint32) func(*message.Message) error {
	calls := make(chan uint32, 1)
	calls <- 0
	return func(msg *message.Message) error {
		count := <-calls
		calls <- count + 1
		hash := fnv.New32a()
		_, _ = fmt.Fprint(hash, msg.UUID, count)
		if hash.Sum32()%n == 0 {
			return errors.New("the broker is moody")
		}
		return nil
	}
}

func TestNotificationWakesTheRelay(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	listener := startListener(t, pool, false)
	published := newRecorder()
	r := startRelay(t, pool, published, func(c *RelayConfig) {
		c.Listener = listener
		c.PollInterval, c.FallbackInterval = never, never
	})
	eventually(t, "the listener listens", listener.Healthy)
	for i := range 5 {
		// Idle: what it does now it does because of the notification.
		eventually(t, "nobody is about to look", func() bool { return len(r.alarm.woken) == 0 })
		add(t, pool, Event{ID: fmt.Sprint(i), Topic: "t"})
		published.untilPublished(t, i+1)
	}
}

func TestWorksWithoutNotifications(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"no listener", "listener disabled"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			published := newRecorder()
			startRelay(t, pool, published, func(c *RelayConfig) {
				if name != "no listener" {
					c.Listener = startListener(t, pool, true)
				}
				c.FallbackInterval = never
			})
			for i := range 3 {
				add(t, pool, Event{ID: fmt.Sprint(i), Topic: "t"})
				published.untilPublished(t, i+1)
			}
		})
	}
}

func TestListenerThatClosesFirstLeavesARelayThatPolls(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	listener := startListener(t, pool, false)
	published := newRecorder()
	startRelay(t, pool, published, func(c *RelayConfig) { c.Listener = listener; c.FallbackInterval = never })
	eventually(t, "the listener listens", listener.Healthy)
	if err := listener.Close(within(t)); err != nil {
		t.Fatal(err)
	}
	add(t, pool, Event{ID: "late", Topic: "t"})
	published.untilPublished(t, 1)
}

// The end of a backoff needs neither a notification nor a poll.
func TestRetryIsDueWithoutPolling(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	published := newRecorder()
	published.answer = func(*message.Message) error {
		if len(published.snapshot()) < 4 {
			return errors.New("not yet")
		}
		return nil
	}
	add(t, pool, Event{ID: "e", Topic: "t"})
	startRelay(t, pool, published, func(c *RelayConfig) { c.PollInterval, c.FallbackInterval = never, never })
	published.untilPublished(t, 1)
	untilEmpty(t, pool)
}

func TestEveryQueryExecModeAndSessionSetting(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*pgxpool.Config){
		"cache_statement": func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement },
		"cache_describe":  func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe },
		"describe_exec":   func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeDescribeExec },
		"exec":            func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec },
		"simple_protocol": func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol },
		"session": func(c *pgxpool.Config) {
			c.ConnConfig.RuntimeParams["timezone"] = "Asia/Kathmandu"
			c.ConnConfig.RuntimeParams["default_transaction_isolation"] = "serializable"
			c.ConnConfig.RuntimeParams["search_path"] = "pg_catalog"
			c.ConnConfig.RuntimeParams["datestyle"] = "german"
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t, change)
			published := newRecorder()
			published.answer = func(msg *message.Message) error {
				if strings.HasPrefix(msg.UUID, "fails") {
					return errors.New("no")
				}
				return nil
			}
			r := startRelay(t, pool, published, func(c *RelayConfig) { c.MaxAttempts = 2; c.DeadLetterRetention = never })
			add(t, pool,
				Event{ID: "a", Topic: "t", Payload: []byte{0, 1, 0xff, '\\', '\''}, Headers: map[string]string{"h": `"quoted" \ ü`}},
				Event{ID: "fails", Topic: "t", Key: "k"}, Event{ID: "b", Topic: "t", Key: "k"})
			published.untilPublished(t, 2)
			untilEmpty(t, pool)
			for _, call := range published.snapshot() {
				if call.id == "a" && (call.payload != "\x00\x01\xff\\'" || call.metadata.Get("h") != `"quoted" \ ü`) {
					t.Errorf("got %+v", call)
				}
			}
			ctx := within(t)
			// Each statement has its own snapshot, whatever the sessions default to.
			var isolation string
			if err := r.onPool(ctx, claimTimeout, r.guarded(func(b *pgx.Batch) {
				b.Queue("select current_setting('transaction_isolation')").QueryRow(func(row pgx.Row) error { return row.Scan(&isolation) })
			})); err != nil || isolation != "read committed" {
				t.Errorf("isolation %q, %v", isolation, err)
			}
			if stats, err := r.Stats(ctx); err != nil || stats.DeadLetters != 1 {
				t.Errorf("stats: %+v, %v", stats, err)
			}
			letters, err := r.DeadLetters(ctx, 1, nil)
			if err != nil || len(letters) != 1 || time.Since(letters[0].DiedAt).Abs() > time.Minute {
				t.Fatalf("dead letters: %+v, %v", letters, err)
			}
			if more, err := r.DeadLetters(ctx, 1, &letters[0]); err != nil || len(more) != 0 {
				t.Errorf("next page: %+v, %v", more, err)
			}
			if n, err := r.Retain(ctx); n != 0 || err != nil {
				t.Errorf("retained %d, %v: the letter is young", n, err)
			}
			if n, err := r.Sweep(ctx); n != 0 || err != nil {
				t.Errorf("sweep: %d, %v", n, err)
			}
			if n, err := r.DiscardDeadLetters(ctx, "fails"); n != 1 || err != nil {
				t.Errorf("discarded %d, %v", n, err)
			}
		})
	}
}

func TestRelaysOfTwoSchemasDoNotMeet(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	if err := migrate(t, pool, "other"); err != nil {
		t.Fatal(err)
	}
	here, there := newRecorder(), newRecorder()
	startRelay(t, pool, here)
	startRelay(t, pool, there, func(c *RelayConfig) { c.Schema = "other" })
	w, err := NewWriter(WriterConfig{Schema: "other"})
	if err != nil {
		t.Fatal(err)
	}
	if err := pgx.BeginFunc(within(t), pool, func(tx pgx.Tx) error { return w.Add(within(t), tx, Event{ID: "there", Topic: "t"}) }); err != nil {
		t.Fatal(err)
	}
	add(t, pool, Event{ID: "here", Topic: "t"})
	here.untilPublished(t, 1)
	there.untilPublished(t, 1)
	equal(t, "here", here.published(), []string{"here"})
	equal(t, "there", there.published(), []string{"there"})
}

func TestRelayConfigReportsAllMistakes(t *testing.T) {
	t.Parallel()
	_, err := NewRelay(RelayConfig{
		Schema: "x y", BatchSize: -1, Consumers: 65, Lanes: -1, PublishTimeout: -1, Lease: time.Nanosecond, MaxAttempts: -1,
		InitialBackoff: time.Nanosecond, PollInterval: -1, FallbackInterval: -1, DeadLetterRetention: -1,
	})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, field := range []string{
		"Pool", "Publisher", "x y", "BatchSize", "Consumers", "Lanes", "PublishTimeout", "MaxAttempts",
		"InitialBackoff", "PollInterval", "FallbackInterval", "DeadLetterRetention",
	} {
		if !strings.Contains(err.Error(), field) {
			t.Errorf("%s is missing in: %v", field, err)
		}
	}
	_, err = NewRelay(RelayConfig{
		PublishTimeout: 10 * time.Second, Lease: 15 * time.Second, InitialBackoff: time.Minute, MaxBackoff: time.Second,
		Channels: bus.Channels{OutboxPending: "only this"},
	})
	for _, says := range []string{"Lease is 15s", "MaxBackoff is 1s", "hannel"} {
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q is missing in: %v", says, err)
		}
	}
}
