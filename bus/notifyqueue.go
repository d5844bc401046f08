package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/outage"
	"github.com/romancy-go/romancy/internal/refusal"
)

const (
	// defaultQueueLimit is written in SQL too, where nothing else knows how full the queue is.
	defaultQueueLimit = 0.1
	// queueFull is what the commit of a transaction that notifies is refused with when the queue is full.
	queueFull = "54000"

	queueRemedy = "a session that listens, and is in a transaction or reads nothing, keeps the server from emptying it: " +
		"end that session (docs/operations.md names the statement)"
)

// NotifierStatus is a snapshot of a [Notifier].
type NotifierStatus struct {
	Pending          int       // notifications of committed transactions that are not sent yet
	OpenTransactions int       // callers' transactions whose commit is waited for
	QueueUsage       float64   // of the server's NOTIFY queue, from 0 to 1, when it was checked
	QueueChecked     time.Time // zero: not yet, or the role may not ask
	QueueFilling     bool      // QueueUsage is above QueueLimit: NotifyTx does not notify inside transactions
}

// Status returns a snapshot. A nil notifier has the zero one.
func (n *Notifier) Status() NotifierStatus {
	if n == nil {
		return NotifierStatus{}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return NotifierStatus{
		Pending: n.ready.size(), OpenTransactions: len(n.open),
		QueueUsage: n.queue.usage, QueueChecked: n.queue.checked, QueueFilling: n.queue.filling,
	}
}

// serverQueue is what a notifier knows of the server's NOTIFY queue. All databases of the cluster share it, and once it is
// full every commit fails that notifies. due is the goroutine's, usage and what follows are guarded by the notifier's mu.
type serverQueue struct {
	fills, hidden *outage.Reporter
	due           time.Time // when to check next

	usage   float64
	checked time.Time
	filling bool
}

func newServerQueue(logger *slog.Logger) serverQueue {
	return serverQueue{
		fills: outage.New(logger, "the server's NOTIFY queue is filling: nothing is notified inside transactions until it is emptied",
			"the server's NOTIFY queue is emptied again"),
		hidden: outage.New(logger, "cannot find out how full the server's NOTIFY queue is",
			"how full the server's NOTIFY queue is can be found out again"),
	}
}

// checkQueue asks how full the server's queue is. It returns an error if the connection is of no use any more.
func (n *Notifier) checkQueue(ctx context.Context, conn *pgx.Conn) error {
	limited, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	var usage float64
	err := conn.QueryRow(limited, queries.Get("QueueUsage")).Scan(&usage)
	switch {
	case err != nil && (conn.IsClosed() || !refusal.Said(err)):
		return fmt.Errorf("check the NOTIFY queue: %w", err)
	case err != nil:
		n.queue.hidden.Failed(ctx, err)
		return nil
	}
	n.queue.hidden.Succeeded(ctx)
	n.noteUsage(ctx, usage)
	return nil
}

func (n *Notifier) noteUsage(ctx context.Context, usage float64) {
	n.mu.Lock()
	n.queue.usage, n.queue.checked, n.queue.filling = usage, time.Now(), usage > n.cfg.QueueLimit
	filling := n.queue.filling
	n.mu.Unlock()
	if filling {
		n.queue.fills.Failed(ctx, fmt.Errorf("%.1f %% of it is in use, more than %.1f %%", 100*usage, 100*n.cfg.QueueLimit), "remedy", queueRemedy)
		return
	}
	n.queue.fills.Succeeded(ctx)
}

// errQueueFull is why a statement of the notifier was refused, whose connection is as good as before.
var errQueueFull = errors.New("the server's NOTIFY queue is full")

// refusedByQueue notes that err says so, if it does, and then returns it as an errQueueFull; else nil.
func (n *Notifier) refusedByQueue(ctx context.Context, conn *pgx.Conn, err error) error {
	if refusal.Code(err) != queueFull || conn.IsClosed() {
		return nil
	}
	n.noteUsage(ctx, 1)
	n.queue.due = time.Now()
	return fmt.Errorf("%w: %w", errQueueFull, err)
}
