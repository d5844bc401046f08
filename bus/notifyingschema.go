package bus

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/romancy-go/romancy/internal/bounds"
)

const (
	topicPrefix = "watermill_"
	// topicHashLength is in hexadecimal digits.
	topicHashLength = 16
)

// TopicChannel returns the channel that is notified of new messages of a watermill-sql topic, unless told otherwise:
// "watermill_" and the topic, which is also the name of the topic's table by default. Where that exceeds
// [MaxChannelName], its end is replaced by a hash of the topic. Tables of the same topic in several schemas share the
// channel, and wake each other's subscribers in vain; name the channels yourself where that matters.
func TopicChannel(topic string) string {
	channel := topicPrefix + topic
	if len(channel) <= MaxChannelName {
		return channel
	}
	sum := sha256.Sum256([]byte(topic))
	end := "_" + hex.EncodeToString(sum[:])[:topicHashLength]
	cut := MaxChannelName - len(end)
	for cut > 0 && !utf8.RuneStart(channel[cut]) {
		cut--
	}
	return channel[:cut] + end
}

// NotifyingSchema returns adapter, an adapter for PostgreSQL, whose INSERT also notifies the [TopicChannel] of the topic,
// in the same statement: who subscribes is woken if and only if the messages are committed. Everything else is adapter's.
// The payload is empty: look yourself.
//
// A transaction that notifies holds a lock of the whole cluster while it commits, so that such commits cannot share a
// flush: some thousand of them a second on a fast disk, several hundred on one that takes a millisecond, for all
// publishers of the cluster together. Publish many messages in one call or one transaction, which counts as one; or use
// [NotifyingPublisher], which costs nothing of that kind.
func NotifyingSchema(adapter watermillsql.SchemaAdapter) watermillsql.SchemaAdapter {
	return NotifyingSchemaOn(adapter, TopicChannel)
}

// NotifyingSchemaOn is [NotifyingSchema] for channels of your own: channelOf returns the channel of a topic.
// Subscribers need the same, see [WokenConfig]. A name that PostgreSQL would refuse is an error of Publish, before the
// transaction is touched. A nil channelOf means [TopicChannel]; a nil adapter, a nil pointer included, is returned as
// nil, for watermill-sql to complain of.
func NotifyingSchemaOn(adapter watermillsql.SchemaAdapter, channelOf func(topic string) string) watermillsql.SchemaAdapter {
	if bounds.Nothing(adapter) {
		return nil
	}
	if channelOf == nil {
		channelOf = TopicChannel
	}
	return notifyingSchema{SchemaAdapter: adapter, channelOf: channelOf}
}

// unlessQueueFills keeps a transaction that publishes from failing with a NOTIFY queue that is full: subscribers find its
// messages by polling.
const unlessQueueFills = " WHERE pg_catalog.pg_notification_queue_usage() OPERATOR(pg_catalog.<) 0.1"

type notifyingSchema struct {
	watermillsql.SchemaAdapter

	channelOf func(topic string) string
}

var _ watermillsql.RequiresTransaction = notifyingSchema{}

// InsertQuery returns adapter's statement as a part of one that notifies. The channel is a literal, so that the
// statement's parameters, of which only adapter knows the meaning, stay as they are.
func (s notifyingSchema) InsertQuery(params watermillsql.InsertQueryParams) (watermillsql.Query, error) {
	channel := s.channelOf(params.Topic)
	if err := checkChannel(channel); err != nil {
		return watermillsql.Query{}, fmt.Errorf("notify of topic %s: %w", params.Topic, err)
	}
	query, err := s.SchemaAdapter.InsertQuery(params)
	if err != nil {
		return watermillsql.Query{}, err
	}
	insert := strings.TrimRight(query.Query, "; \t\r\n")
	query.Query = "WITH published AS (" + insert + "\n) SELECT pg_catalog.pg_notify(" + quoteLiteral(channel) + ", '')" + unlessQueueFills
	return query, nil
}

// RequiresTransaction passes on what watermill-sql asks of adapters that have an opinion.
func (s notifyingSchema) RequiresTransaction() bool {
	adapter, ok := s.SchemaAdapter.(watermillsql.RequiresTransaction)
	return ok && adapter.RequiresTransaction()
}

// quoteLiteral quotes text for SQL, whatever standard_conforming_strings says.
func quoteLiteral(text string) string {
	quoted := "'" + strings.ReplaceAll(text, "'", "''") + "'"
	if strings.Contains(text, `\`) {
		return " E" + strings.ReplaceAll(quoted, `\`, `\\`)
	}
	return quoted
}

// NotifyingPublisher returns publisher, which must commit by itself (a watermill-sql publisher on a pool, not on a
// transaction), and has notifier announce each Publish that succeeded on the channel that channelOf returns for the
// topic; nil means [TopicChannel]. Notifications are coalesced, so a busy publisher pays nothing for them; one is lost if
// the process ends between commit and notification, and subscribers then find the message at their next poll. For a
// publisher on a transaction of yours, use [NotifyingSchema], or call [Notifier.NotifyTx] with the channel after Publish.
// Closing it closes publisher alone.
func NotifyingPublisher(publisher message.Publisher, notifier *Notifier, channelOf func(topic string) string) (message.Publisher, error) {
	var errs []error
	if bounds.Nothing(publisher) {
		errs = append(errs, errors.New("the publisher of bus.NotifyingPublisher is nil: give the watermill-sql publisher whose messages to announce"))
	}
	if notifier == nil {
		errs = append(errs, errors.New("the notifier of bus.NotifyingPublisher is nil: give a started notifier"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if channelOf == nil {
		channelOf = TopicChannel
	}
	return notifyingPublisher{Publisher: publisher, notifier: notifier, channelOf: channelOf}, nil
}

type notifyingPublisher struct {
	message.Publisher

	notifier  *Notifier
	channelOf func(topic string) string
}

func (p notifyingPublisher) Publish(topic string, messages ...*message.Message) error {
	channel := p.channelOf(topic)
	if err := checkChannel(channel); err != nil {
		return fmt.Errorf("notify of topic %s: %w", topic, err)
	}
	if err := p.Publisher.Publish(topic, messages...); err != nil {
		return err
	}
	p.notifier.Notify(channel, "")
	return nil
}
