package bus

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/dial"
	"github.com/romancy-go/romancy/internal/refusal"
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
// after an error that makes it useless. check: it asks before how full the server's queue is.
func (n *Notifier) send(ctx context.Context, conn *pgx.Conn, work *batch, check bool) (*pgx.Conn, error) {
	if conn == nil {
		var err error
		if conn, err = connect(ctx, n.cfg.Pool, " notify"); err != nil {
			return nil, fmt.Errorf("connect: %w", err)
		}
	}
	if check {
		if err := n.checkQueue(ctx, conn); err != nil {
			dial.HangUp(conn)
			return nil, err // and the check is still due
		}
		n.queue.due = time.Now().Add(n.cfg.QueueInterval)
	}
	if work.empty() {
		return conn, nil
	}
	open, err := n.statement(ctx, conn, work)
	full := n.refusedByQueue(ctx, conn, err)
	if full == nil && err != nil && refusal.Of(err) == refusal.Value {
		// A text that the database's encoding cannot hold. It must not hold up the others for ever.
		n.dropUnsendable(ctx, conn, work)
		open, err = n.statement(ctx, conn, work)
		full = n.refusedByQueue(ctx, conn, err)
	}
	if full != nil {
		return conn, full
	}
	if err != nil {
		dial.HangUp(conn)
		return nil, err
	}
	n.settle(work, open)
	return conn, nil
}

// nobody owns what is committed already.
const nobody = uint64(0)

// statement sends the batch and returns those of its transactions that have not ended.
func (n *Notifier) statement(ctx context.Context, conn *pgx.Conn, work *batch) (open map[*openTransaction]bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	messages := slices.Clone(work.ready)
	xids := slices.Repeat([]uint64{nobody}, len(messages))
	var owners []*openTransaction // of the messages after those
	for _, tx := range work.transactions {
		for _, m := range tx.messages.messages() {
			messages = append(messages, m)
			xids = append(xids, tx.xid)
			owners = append(owners, tx)
		}
	}
	channels, payloads := columns(messages)
	rows, err := conn.Query(ctx, queries.Get("Send"), channels, payloads, xids)
	if err != nil {
		return nil, refusal.Public(err)
	}
	open = map[*openTransaction]bool{}
	var place int
	var running bool
	tag, err := pgx.ForEachRow(rows, []any{&place, &running}, func() error {
		open[owners[place-1-len(work.ready)]] = running
		return nil
	})
	if err != nil {
		return nil, refusal.Public(err)
	}
	n.metrics.sentBatch(ctx, int64(len(messages))-tag.RowsAffected())
	return open, nil
}

// dropUnsendable takes out of the batch what the server refuses even to read.
func (n *Notifier) dropUnsendable(ctx context.Context, conn *pgx.Conn, work *batch) {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	sendable := func(messages []Message) []Message {
		var kept []Message
		for _, m := range messages {
			var length int
			err := conn.QueryRow(ctx, queries.Get("CheckText"), m.Channel+m.Payload).Scan(&length)
			if err != nil && refusal.Of(err) == refusal.Value {
				n.log.Error("notification dropped", "channel", m.Channel, "bytes", len(m.Payload), "error", refusal.Public(err))
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
