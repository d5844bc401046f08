package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/romancy-go/romancy/internal/dial"
)

// sendTimeout bounds one statement: a server that takes longer is given up for a new connection.
const sendTimeout = 10 * time.Second

// batch is what one statement sends and asks.
type batch struct {
	ready        []Message
	transactions []*openTransaction
}

func (b *batch) empty() bool { return len(b.ready)+len(b.transactions) == 0 }

// send sends the batch over conn, or over a new connection if conn is nil, and returns the connection to use next: nil
// after an error.
func (n *Notifier) send(ctx context.Context, conn *pgx.Conn, work *batch) (*pgx.Conn, error) {
	if conn == nil {
		var err error
		if conn, err = connect(ctx, n.cfg.Pool, " notify"); err != nil {
			return nil, fmt.Errorf("connect: %w", err)
		}
	}
	ended, err := n.statement(ctx, conn, work)
	var refusal *pgconn.PgError
	if errors.As(err, &refusal) && strings.HasPrefix(refusal.Code, "22") {
		// A text that the database's encoding cannot hold. It must not hold up the others for ever.
		n.dropUnsendable(ctx, conn, work)
		ended, err = n.statement(ctx, conn, work)
	}
	if err != nil {
		dial.HangUp(conn)
		return nil, err
	}
	n.metrics.sentBatch(ctx, ended[0])
	n.settle(work, ended)
	return conn, nil
}

// statement sends the batch and returns the status of its transactions by their place, beginning with 1; at place 0 is how
// many notifications were sent.
func (n *Notifier) statement(ctx context.Context, conn *pgx.Conn, work *batch) (map[int]string, error) {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	messages := slices.Clone(work.ready)
	owners := slices.Repeat([]int32{0}, len(messages)) // nobody's
	xids := make([]string, len(work.transactions))
	for i, tx := range work.transactions {
		xids[i] = tx.xid
		for _, m := range tx.messages.messages() {
			messages = append(messages, m)
			owners = append(owners, int32(i+1))
		}
	}
	channels, payloads := columns(messages)
	rows, err := conn.Query(ctx, queries.Get("Send"), xids, channels, payloads, owners)
	if err != nil {
		return nil, err
	}
	ended := map[int]string{}
	var place int
	var status string
	_, err = pgx.ForEachRow(rows, []any{&place, &status}, func() error {
		ended[place] = status
		return nil
	})
	return ended, err
}

// dropUnsendable takes out of the batch what the server refuses even to read.
func (n *Notifier) dropUnsendable(ctx context.Context, conn *pgx.Conn, work *batch) {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	sendable := func(messages []Message) []Message {
		var kept []Message
		for _, m := range messages {
			var length int
			var refusal *pgconn.PgError
			err := conn.QueryRow(ctx, queries.Get("CheckText"), m.Channel+m.Payload).Scan(&length)
			if errors.As(err, &refusal) && strings.HasPrefix(refusal.Code, "22") {
				n.log.Error("notification dropped", "channel", m.Channel, "payload", beginning(m.Payload), "error", err)
				continue
			}
			kept = append(kept, m)
		}
		return kept
	}
	work.ready = sendable(work.ready)
	for _, tx := range work.transactions {
		kept := newPending(n.cfg.MaxPending)
		kept.add(sendable(tx.messages.messages())...)
		tx.messages = kept
	}
}
