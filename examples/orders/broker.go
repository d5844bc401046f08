package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wmnats "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/nats"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// JetStream keeps the orders that customers send in one stream, and the shop's events in another.
const (
	streamIncoming  = "INCOMING"
	subjectIncoming = "incoming.orders"
	streamEvents    = "EVENTS"
	subjectEvents   = "order.*"
)

const brokerTimeout = 10 * time.Second

// broker is a NATS server with JetStream, in this process.
type broker struct {
	server *server.Server
	url    string
}

func startBroker(ctx context.Context, dir string) (*broker, error) {
	token := rand.Text() // else any local user could read along
	srv, err := server.NewServer(&server.Options{
		ServerName: "orders-demo", Host: "127.0.0.1", Port: server.RANDOM_PORT, Authorization: token,
		JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true,
	})
	if err != nil {
		return nil, fmt.Errorf("NATS server: %w", err)
	}
	srv.Start()
	b := &broker{server: srv}
	if !srv.ReadyForConnections(brokerTimeout) {
		b.stop()
		return nil, fmt.Errorf("NATS server: not ready after %s", brokerTimeout)
	}
	address, err := url.Parse(srv.ClientURL())
	if err != nil {
		b.stop()
		return nil, fmt.Errorf("NATS server: %w", err)
	}
	address.User = url.User(token)
	b.url = address.String()
	if err := b.createStreams(ctx); err != nil {
		b.stop()
		return nil, err
	}
	return b, nil
}

func (b *broker) stop() {
	b.server.Shutdown()
	b.server.WaitForShutdown()
}

func (b *broker) createStreams(ctx context.Context) error {
	conn, stream, err := connectJetStream(b.url, "orders demo: setup")
	if err != nil {
		return err
	}
	defer conn.Close()
	for name, subject := range map[string]string{streamIncoming: subjectIncoming, streamEvents: subjectEvents} {
		if _, err := stream.CreateStream(ctx, jetstream.StreamConfig{Name: name, Subjects: []string{subject}}); err != nil {
			return fmt.Errorf("create stream %s: %w", name, err)
		}
	}
	return nil
}

func connectJetStream(address, name string) (*nats.Conn, jetstream.JetStream, error) {
	conn, err := nats.Connect(address, nats.Name(name))
	if err != nil {
		return nil, nil, fmt.Errorf("connect to NATS: %w", err)
	}
	stream, err := jetstream.New(conn)
	if err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("connect to JetStream: %w", err)
	}
	return conn, stream, nil
}

// newPublisher returns a Watermill publisher that returns from Publish when JetStream has stored the message. In production
// one would set TrackMsgId, with which JetStream drops an event that comes again within two minutes; here it should be seen.
func newPublisher(child *childProcess) (*wmnats.Publisher, error) {
	publisher, err := wmnats.NewPublisher(wmnats.PublisherConfig{
		URL: child.NATS, NatsOptions: []nats.Option{nats.Name(child.Name)},
	}, watermill.NewSlogLogger(child.logger))
	if err != nil {
		return nil, fmt.Errorf("NATS publisher: %w", err)
	}
	return publisher, nil
}

// newSubscriber returns a Watermill subscriber whose messages are handled by several goroutines at once, each message until
// one of them has acknowledged it.
func newSubscriber(child *childProcess, group string, concurrency int) (*wmnats.Subscriber, error) {
	subscriber, err := wmnats.NewSubscriber(wmnats.SubscriberConfig{
		URL: child.NATS, NatsOptions: []nats.Option{nats.Name(child.Name)},
		QueueGroupPrefix: group, SubscribersCount: concurrency,
		NakDelay: wmnats.NewStaticDelay(200 * time.Millisecond),
		JetStream: wmnats.JetStreamConfig{
			DurablePrefix: group,
			// By default nats.go acknowledges for us when the handler returns, even what it has not understood.
			SubscribeOptions: []nats.SubOpt{nats.ManualAck(), nats.AckExplicit(), nats.DeliverAll()},
		},
	}, watermill.NewSlogLogger(child.logger))
	if err != nil {
		return nil, fmt.Errorf("NATS subscriber: %w", err)
	}
	return subscriber, nil
}

// closeAll closes what a role has opened, and logs what goes wrong.
func closeAll(logger *slog.Logger, closers ...interface{ Close() error }) {
	var errs []error
	for _, closer := range closers {
		errs = append(errs, closer.Close())
	}
	if err := errors.Join(errs...); err != nil {
		logger.Warn("closing", "error", err)
	}
}
