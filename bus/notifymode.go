package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/bounds"
	"github.com/romancy-go/romancy/internal/refusal"
)

// NotifyMode says how a notification leaves that belongs to a caller's transaction.
type NotifyMode int

const (
	// ModeAdaptive, the default, is ModeInTransaction while this process notifies rarely and ModeCoalesced above
	// [NotifierConfig.RateThreshold].
	ModeAdaptive NotifyMode = iota
	// ModeInTransaction calls pg_notify inside the transaction: nothing can be lost, but the commits of all notifying
	// transactions of the cluster wait for each other. While more than [NotifierConfig.QueueLimit] of the server's queue is
	// in use it is ModeCoalesced.
	ModeInTransaction
	// ModeCoalesced remembers the notification and sends it, together with others, once the transaction is seen to have
	// committed; after a rollback it is dropped. It is lost if this process ends in between. A rollback to a savepoint
	// is not seen: what was notified after the savepoint is sent needlessly.
	ModeCoalesced
)

// String returns the mode's name.
func (m NotifyMode) String() string {
	switch m {
	case ModeAdaptive:
		return "adaptive"
	case ModeInTransaction:
		return "in-transaction"
	case ModeCoalesced:
		return "coalesced"
	}
	return fmt.Sprintf("NotifyMode(%d)", int(m))
}

const (
	// maxOpenTransactions bounds what is remembered; beyond it, notifications go into their transactions.
	maxOpenTransactions = 10_000
	// maxOpenShare is how many times MaxPending payloads all open transactions together may have; each of those beyond gets
	// by with one empty payload a channel.
	maxOpenShare = 10
	// A transaction is looked at when it has been open for another eighth of its age, so that the wait for it to end is
	// proportional and a long one costs almost nothing; but at least every checkCeiling while it is younger than a
	// minute, and at least every second after that.
	checkShare   = 8
	checkCeiling = 100 * time.Millisecond
	// maxSpare is how many small ones that have ended are kept to be used again.
	maxSpare = 256
)

// openTransaction is a caller's transaction, and what to send when it has committed.
type openTransaction struct {
	xid      uint64 // an xid8, which never wraps around
	messages *pending
	since    time.Time
	check    time.Time // when to look next
}

// postpone plans the next look at a transaction that is still open.
func (t *openTransaction) postpone(now time.Time, window time.Duration) {
	age := now.Sub(t.since)
	ceiling := checkCeiling
	if age > time.Minute {
		ceiling = time.Second
	}
	t.check = now.Add(max(window, min(age/checkShare, ceiling)))
}

// errNoTx is what is returned for a transaction that is nil.
var errNoTx = errors.New("the transaction is nil: pass the pgx.Tx that is to notify when it commits")

// NotifyTx notifies channel when tx commits, in the way of [NotifierConfig.Mode]. A message that PostgreSQL would refuse
// is a [*MessageError] before tx is touched; any other error comes from tx, which is then aborted.
func (n *Notifier) NotifyTx(ctx context.Context, tx pgx.Tx, channel, payload string) error {
	return n.NotifyTxMany(ctx, tx, []Message{{Channel: channel, Payload: payload}})
}

// NotifyTxMany is NotifyTx for several messages, in one round trip. Without messages it does nothing.
func (n *Notifier) NotifyTxMany(ctx context.Context, tx pgx.Tx, messages []Message) error {
	return n.notifyTx(ctx, tx, messages, func() (xid string, err error) {
		err = tx.QueryRow(ctx, queries.Get("CurrentTransaction")).Scan(&xid)
		return xid, refusal.Public(err)
	})
}

// NotifyTxID is NotifyTxMany for a caller that knows the id of tx, pg_current_xact_id()::text, because a statement of its
// own has returned it: coalesced notifications then take no round trip at all. With a wrong id they are sent when another
// transaction commits, or never.
func (n *Notifier) NotifyTxID(ctx context.Context, tx pgx.Tx, xid string, messages []Message) error {
	return n.notifyTx(ctx, tx, messages, func() (string, error) { return xid, nil })
}

func (n *Notifier) notifyTx(ctx context.Context, tx pgx.Tx, messages []Message, id func() (string, error)) error {
	if n == nil || n.cfg.Disabled || len(messages) == 0 {
		return nil
	}
	if bounds.Nothing(tx) {
		return fmt.Errorf("notify: %w", errNoTx)
	}
	if err := validateMessages(messages); err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	way := n.way()
	if way == afterCommit {
		xid, err := id()
		if err != nil {
			return fmt.Errorf("notify: read the transaction's id: %w", err)
		}
		number, err := strconv.ParseUint(xid, 10, 64)
		if err != nil || number == nobody {
			return fmt.Errorf("notify: a text of %d bytes is given that is no transaction id: give what pg_current_xact_id()::text returns", len(xid))
		}
		remembered, withheld := n.remember(number, messages)
		if remembered {
			return nil
		}
		if withheld {
			way = notAtAll
		}
	}
	if way == notAtAll {
		n.metrics.withhold(ctx, len(messages))
		return nil
	}
	return notifyIn(ctx, tx, messages)
}

// notifyIn calls pg_notify within tx.
func notifyIn(ctx context.Context, tx pgx.Tx, messages []Message) error {
	channels, payloads := columns(messages)
	if _, err := tx.Exec(ctx, queries.Get("NotifyInTransaction"), channels, payloads); err != nil {
		return fmt.Errorf("notify: %w", refusal.Public(err))
	}
	return nil
}

func columns(messages []Message) (channels, payloads []string) {
	channels, payloads = make([]string, len(messages)), make([]string, len(messages))
	for i, m := range messages {
		channels[i], payloads[i] = m.Channel, m.Payload
	}
	return channels, payloads
}

// way is how a transaction notifies.
type way int

const (
	inTransaction way = iota
	afterCommit
	notAtAll // those who poll find what it would have announced
)

// way decides how the transaction at hand notifies. A notifier that cannot send now leaves it to the transaction, but not
// while the server's queue is filling: at its end the transaction could not commit.
func (n *Notifier) way() way {
	n.mu.Lock()
	defer n.mu.Unlock()
	busy := n.rate.hit(time.Now()) > float64(n.cfg.RateThreshold)
	able := n.started && !n.closed && len(n.open) < maxOpenTransactions
	switch {
	case n.queue.filling && able:
		return afterCommit
	case n.queue.filling:
		return notAtAll
	case able && !n.failing && (n.cfg.Mode == ModeCoalesced || n.cfg.Mode == ModeAdaptive && busy):
		return afterCommit
	}
	return inTransaction
}

// remember keeps messages until the transaction has ended, and reports whether the notifier still takes them. If not,
// withheld says that they must not be sent in the transaction either.
func (n *Notifier) remember(xid uint64, messages []Message) (remembered, withheld bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return false, n.queue.filling
	}
	tx := n.open[xid]
	if tx == nil {
		now := time.Now()
		tx = n.newOpenTransaction()
		tx.xid, tx.since, tx.check = xid, now, now.Add(n.cfg.Window)
		n.open[xid] = tx
	}
	had := tx.messages.weight()
	if n.openSize+n.lookedAt >= maxOpenShare*n.cfg.MaxPending {
		tx.messages.limit = 0
	}
	n.metrics.collapse(tx.messages.add(messages...))
	n.openSize += tx.messages.weight() - had
	n.signal()
	return true, false
}

// rate estimates how many events there were in the last second from this second's count and the one before.
type rate struct {
	second         int64
	count, earlier int
}

// hit counts one event and returns the rate with it.
func (r *rate) hit(now time.Time) float64 {
	second := now.Unix()
	switch second - r.second {
	case 0:
	case 1:
		r.earlier, r.count = r.count, 0
	default:
		r.earlier, r.count = 0, 0
	}
	r.second = second
	r.count++
	gone := float64(now.Nanosecond()) / float64(time.Second)
	return float64(r.count) + float64(r.earlier)*(1-gone)
}

// settle ends what the batch began: those of its transactions that are still open are kept.
func (n *Notifier) settle(batch *batch, open map[*openTransaction]bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lookedAt = 0
	now := time.Now()
	for _, tx := range batch.transactions {
		if open[tx] {
			tx.postpone(now, n.cfg.Window)
			n.keepOpen(tx)
		} else if len(n.spare) < maxSpare && tx.messages.size() <= fewTexts {
			tx.messages.reset(n.cfg.MaxPending)
			n.spare = append(n.spare, tx)
		}
	}
}

// newOpenTransaction returns one without messages. The caller holds mu.
func (n *Notifier) newOpenTransaction() *openTransaction {
	last := len(n.spare) - 1
	if last < 0 {
		return &openTransaction{messages: newPending(n.cfg.MaxPending)}
	}
	tx := n.spare[last]
	n.spare = n.spare[:last]
	return tx
}

// keepOpen puts a transaction back; more of it may have been remembered meanwhile. The caller holds mu.
func (n *Notifier) keepOpen(tx *openTransaction) {
	if newer := n.open[tx.xid]; newer != nil {
		n.openSize -= newer.messages.weight()
		tx.messages.add(newer.messages.messages()...)
	}
	n.open[tx.xid] = tx
	n.openSize += tx.messages.weight()
}
