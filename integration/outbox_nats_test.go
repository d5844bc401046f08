package integration_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wmnats "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/nats"
	"github.com/jackc/pgx/v5"
	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/outbox"
)

// natsPatience is how long a test waits for what must happen.
const natsPatience = time.Minute

var noLogs = slog.New(slog.DiscardHandler)

// Events written in PostgreSQL transactions arrive in a real JetStream stream: all of them, in order per key, with their
// payload, headers and ID, and none of those rolled back. The server restarts in between.
func TestOutboxToJetStream(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), natsPatience)
	defer cancel()
	pool := pgtest.Pool(t)
	storage := t.TempDir()
	server := startNATS(t, storage, natsserver.RANDOM_PORT)
	url := server.ClientURL()
	address, ok := server.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatalf("NATS listens on %v", server.Addr())
	}

	conn, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"order.>"}, Duplicates: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	// TrackMsgId makes the event's ID the one by which JetStream drops duplicates.
	publisher, err := wmnats.NewPublisherWithNatsConn(conn, wmnats.PublisherPublishConfig{
		Marshaler:         &wmnats.NATSMarshaler{},
		SubjectCalculator: wmnats.DefaultSubjectCalculator,
		JetStream:         wmnats.JetStreamConfig{TrackMsgId: true},
	}, watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}

	listener, err := bus.NewListener(bus.ListenerConfig{Pool: pool, Logger: noLogs})
	if err != nil {
		t.Fatal(err)
	}
	if err := listener.Start(ctx); err != nil {
		t.Fatal(err)
	}
	defer func() { endWithin(t, listener.Close) }()
	for range 2 {
		relay, err := outbox.NewRelay(outbox.RelayConfig{
			Pool: pool, Publisher: publisher, Listener: listener, PublishTimeout: 2 * time.Second, MaxBackoff: 200 * time.Millisecond,
			MaxAttempts: 1000, Logger: noLogs,
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := relay.Start(ctx); err != nil {
			t.Fatal(err)
		}
		defer func() { endWithin(t, relay.Shutdown) }()
	}

	const orders, steps = 20, 10
	topics := []string{"order.placed", "order.changed"}
	for step := range steps {
		if step == steps/2 {
			server.Shutdown()
			server.WaitForShutdown()
		}
		for order := range orders {
			id := func(step int) string { return fmt.Sprintf("order-%d-step-%d", order, step) }
			write := func(id string) error {
				return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
					err := outbox.Add(ctx, tx, outbox.Event{
						ID: id, Topic: topics[step%2], Key: fmt.Sprint("order-", order), Payload: []byte(id),
						Headers: map[string]string{"step": fmt.Sprint(step)},
					})
					if err == nil && id[0] == 'x' {
						return fmt.Errorf("roll back %s", id)
					}
					return err
				})
			}
			if err := write(id(step)); err != nil {
				t.Fatal(err)
			}
			if err := write("x" + id(step)); err == nil {
				t.Fatal("not rolled back")
			}
		}
	}
	startNATS(t, storage, address.Port)

	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		t.Fatal(err)
	}
	defer messages.Stop()
	byKey := map[string][]string{}
	for range orders * steps {
		msg, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			t.Fatalf("after %d keys: %v", len(byKey), err)
		}
		h := msg.Headers()
		id, key := h.Get(outbox.MetadataEventID), h.Get(outbox.MetadataKey)
		if string(msg.Data()) != id || h.Get(nats.MsgIdHdr) != id || h.Get("step") == "" || !slices.Contains(topics, msg.Subject()) {
			t.Errorf("got %q on %s with %v", msg.Data(), msg.Subject(), h)
		}
		byKey[key] = append(byKey[key], id)
	}
	for order := range orders {
		key := fmt.Sprint("order-", order)
		for step, id := range byKey[key] {
			if want := fmt.Sprintf("%s-step-%d", key, step); id != want {
				t.Errorf("%s: got %v", key, byKey[key])
				break
			}
		}
	}
	eventuallyEmpty(ctx, t, func() (int, error) {
		var n int
		err := pool.QueryRow(ctx, "select count(*) from romancy.outbox").Scan(&n)
		return n, err
	})
	if info, err := stream.Info(ctx); err != nil || info.State.Msgs != orders*steps {
		t.Errorf("the stream has %+v, %v, want %d messages", info, err, orders*steps)
	}
}

func startNATS(t *testing.T, storage string, port int) *natsserver.Server {
	t.Helper()
	server, err := natsserver.NewServer(&natsserver.Options{
		Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: storage, NoLog: true, NoSigs: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	server.Start()
	t.Cleanup(func() {
		server.Shutdown()
		server.WaitForShutdown()
	})
	if !server.ReadyForConnections(natsPatience) {
		t.Fatal("NATS does not come up")
	}
	return server
}

func endWithin(t *testing.T, end func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), natsPatience)
	defer cancel()
	if err := end(ctx); err != nil {
		t.Error(err)
	}
}

func eventuallyEmpty(ctx context.Context, t *testing.T, count func() (int, error)) {
	t.Helper()
	for {
		n, err := count()
		if err != nil {
			t.Fatalf("%d left: %v", n, err)
		}
		if n == 0 {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%d left", n)
		case <-time.After(10 * time.Millisecond):
		}
	}
}
