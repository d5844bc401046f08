package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	wmnats "github.com/ThreeDotsLabs/watermill-nats/v2/pkg/nats"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/romancy-go/romancy/internal/pgtest"
)

//go:embed tables.sql
var tables string

// database is a throwaway PostgreSQL with the application's tables, and the application's pool on it.
type database struct {
	server *pgtest.Server
	drop   func(context.Context) error
	pool   *pgxpool.Pool
}

// startDatabase returns what it has started with an error, too: stop it in any case.
func startDatabase(ctx context.Context) (*database, error) {
	db := &database{}
	var err error
	if db.server, err = pgtest.Start(ctx); err != nil {
		return db, err
	}
	var url string
	if url, db.drop, err = db.server.CreateEmptyDatabase(ctx); err != nil {
		return db, err
	}
	if db.pool, err = pgxpool.New(ctx, url); err != nil {
		return db, err
	}
	if _, err = db.pool.Exec(ctx, tables); err != nil {
		return db, fmt.Errorf("create the application's tables: %w", err)
	}
	return db, nil
}

func (db *database) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
	defer cancel()
	var errs []error
	if db.pool != nil {
		db.pool.Close()
	}
	if db.drop != nil {
		errs = append(errs, db.drop(ctx)) // the server may not be ours
	}
	if db.server != nil {
		errs = append(errs, db.server.Stop(ctx))
	}
	return errors.Join(errs...)
}

// broker is a NATS server with JetStream in this process: the broker that the application has.
type broker struct {
	server *server.Server
	dir    string
	logger watermill.LoggerAdapter
}

// topicPrefix begins the topics of all events, which one stream keeps.
const topicPrefix = "boxoffice."

func startBroker(ctx context.Context, logger watermill.LoggerAdapter) (*broker, error) {
	dir, err := os.MkdirTemp("", "romancy-watermill-")
	if err != nil {
		return nil, err
	}
	b := &broker{dir: dir, logger: logger}
	b.server, err = server.NewServer(&server.Options{
		ServerName: "box-office", DontListen: true, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("NATS server: %w", err), b.stop())
	}
	b.server.Start()
	if !b.server.ReadyForConnections(stopLimit) {
		return nil, errors.Join(fmt.Errorf("NATS server: not ready after %s", stopLimit), b.stop())
	}
	if err := b.createStream(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("NATS stream: %w", err), b.stop())
	}
	return b, nil
}

func (b *broker) createStream(ctx context.Context) error {
	conn, err := nats.Connect("", b.options()...)
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	_, err = stream.CreateStream(ctx, jetstream.StreamConfig{
		Name: "BOXOFFICE", Subjects: []string{topicPrefix + ">"}, Storage: jetstream.MemoryStorage,
	})
	return err
}

func (b *broker) options() []nats.Option { return []nats.Option{nats.InProcessServer(b.server)} }

// publisher returns one that returns from Publish when JetStream has the message.
func (b *broker) publisher() (message.Publisher, error) {
	return wmnats.NewPublisher(wmnats.PublisherConfig{NatsOptions: b.options()}, b.logger)
}

// subscriber returns one for a group of consumers, each of which gets another share of the messages.
func (b *broker) subscriber(group string) (message.Subscriber, error) {
	return wmnats.NewSubscriber(wmnats.SubscriberConfig{
		NatsOptions:      b.options(),
		QueueGroupPrefix: group,
		NakDelay:         wmnats.NewStaticDelay(200 * time.Millisecond),
		JetStream: wmnats.JetStreamConfig{
			DurablePrefix:    group,
			SubscribeOptions: []nats.SubOpt{nats.ManualAck(), nats.AckExplicit(), nats.DeliverAll()},
		},
	}, b.logger)
}

func (b *broker) stop() error {
	if b.server != nil {
		b.server.Shutdown()
		b.server.WaitForShutdown()
	}
	return os.RemoveAll(b.dir)
}
