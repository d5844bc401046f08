package bus

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/dial"
	"github.com/romancy-go/romancy/internal/refusal"
)

const (
	// probeTimeout is how long a probe may be on its way once it was sent, and how long the server may take to send it.
	probeTimeout = 2 * time.Second
	// probePatience is how long a probe waits for one of the pool's connections, which user code may have emptied.
	probePatience = 250 * time.Millisecond
	// probeDialTimeout bounds a connection that is made for a probe.
	probeDialTimeout = 10 * time.Second
	// echoPatience is how long a probe may be on its way before silence is worth a ping: an echo that comes along with the
	// answer to a statement proves nothing, so that both would have to be asked again.
	echoPatience = 250 * time.Millisecond
	// lastLook is the time for a last look once a probe is overdue: if this process was stopped for a while, the probe may
	// be there and not read yet.
	lastLook = 200 * time.Millisecond
	// crowdPatience is how long a probe may be on its way while other notifications arrive: it comes after all that was sent
	// before it, and a storm takes a while to be read.
	crowdPatience = 10 * time.Second
	// crowdShare is how many intervals other notifications may take the place of probes. They prove that the connection
	// hears, but not that it hears what is notified where this process writes: it may be to the server that was the primary
	// until a moment ago, where others still notify.
	crowdShare = 4

	deafRemedy = "a pooler such as PgBouncer in transaction mode swallows notifications: reach PostgreSQL around it " +
		"(romancy.WithListenURL, or ListenURL or Connect of bus.ListenerConfig); the URL must name the same database as the pool"
)

// ErrDeaf is why a connection was given up on which LISTEN succeeds, but nothing arrives.
var ErrDeaf = fmt.Errorf("LISTEN succeeded, but what another connection notified did not arrive within %s", probeTimeout)

// probe is a nonce that another connection notifies. It has to be another one: through a pooler that swallows
// notifications, every test on the listening connection alone passes.
type probe struct {
	begun    time.Time
	channel  string // on which the listening connection, and no other, expects it
	nonce    string
	left     atomic.Pointer[time.Time] // when the statement that notifies was sent, the last one if it took two
	answered atomic.Pointer[time.Time] // when the server said that it is committed; nil before
	failed   atomic.Pointer[error]     // why it could not be sent; nil before, and if it could
	look     time.Time                 // when to see how it fares
	overdue  bool
}

// send begins a probe. It is sent while this goroutine waits.
func (s *session) send(ctx context.Context) {
	now := time.Now()
	p := &probe{begun: now, channel: s.private, nonce: rand.Text(), look: now.Add(probeTimeout)}
	s.probe = p
	s.senders.Go(func() {
		err := s.l.sendProbe(ctx, p)
		if err == nil {
			now := time.Now()
			p.answered.Store(&now)
			return
		}
		p.failed.Store(&err)
		s.l.mu.Lock()
		defer s.l.mu.Unlock()
		s.l.poke()
	})
}

// listensForEcho reports whether the probe is known to be sent: its arrival, or not, tells as much as a ping.
func (s *session) listensForEcho() bool { return s.probe != nil && s.probe.answered.Load() != nil }

// echo notes that the probe has arrived.
func (s *session) echo(ctx context.Context, nonce string, idle bool) {
	p := s.probe
	if p == nil || p.nonce != nonce {
		return // of an earlier one, sent twice
	}
	s.probe = nil
	if !idle {
		s.proof = time.Time{} // so that another is due at once
		return
	}
	s.echoed = s.proof
	roundTrip := s.proof.Sub(*p.left.Load())
	s.l.unprobed.Succeeded(ctx)
	s.l.probed(s.proof, roundTrip)
	s.l.metrics.probed(ctx, roundTrip)
}

// judge looks how the probe fares, and returns an error if the connection is of no use.
func (s *session) judge(ctx context.Context) error {
	p := s.probe
	if p == nil {
		return nil
	}
	if failed := p.failed.Load(); failed != nil {
		return s.notSent(ctx, *failed)
	}
	now := time.Now()
	if now.Before(p.look) {
		return nil
	}
	answered := p.answered.Load()
	switch {
	case answered == nil:
		p.look = now.Add(probeTimeout / 4)
		return nil
	case now.Before(answered.Add(probeTimeout)):
		p.look = answered.Add(probeTimeout)
		return nil
	case s.proof.After(*answered) && now.Before(answered.Add(crowdPatience)):
		p.look = now.Add(probeTimeout / 4)
		return nil
	case !p.overdue:
		p.overdue = true
		p.look = now.Add(lastLook)
		return nil
	}
	if err := s.ping(ctx); err != nil {
		return err // lost rather than deaf
	}
	return ErrDeaf
}

// notSent ends a probe that could not be sent. That says nothing about a connection which is known to hear; without that
// knowledge there is no point in having it.
func (s *session) notSent(ctx context.Context, err error) error {
	if !s.up {
		return fmt.Errorf("cannot find out whether notifications arrive: %w", err)
	}
	s.probe = nil
	s.proof = time.Now() // the next is due after an interval
	s.echoed = s.proof
	s.l.unprobed.Failed(ctx, err, "probe_interval", seconds(s.l.cfg.ProbeInterval))
	return nil
}

// sendProbe notifies by one of the pool's connections, or, if it has none to give or cannot, by one made for it.
func (l *Listener) sendProbe(ctx context.Context, p *probe) error {
	var errs []error
	if l.cfg.Pool != nil {
		err := l.sendByPool(ctx, p)
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("notify by the pool: %w", err))
	}
	if err := l.sendBeside(ctx, p); err != nil {
		errs = append(errs, fmt.Errorf("notify by a connection of its own: %w", err))
		return errors.Join(errs...)
	}
	return nil
}

func (l *Listener) sendByPool(ctx context.Context, p *probe) error {
	patience, cancel := context.WithTimeout(ctx, probePatience)
	defer cancel()
	conn, err := l.cfg.Pool.Acquire(patience)
	if err != nil {
		return refusal.Public(err)
	}
	defer conn.Release()
	return p.notify(ctx, conn.Conn())
}

func (l *Listener) sendBeside(ctx context.Context, p *probe) error {
	limit, cancel := context.WithTimeout(ctx, probeDialTimeout)
	defer cancel()
	var conn *pgx.Conn
	var err error
	if l.cfg.Pool != nil {
		conn, err = connect(limit, l.cfg.Pool, " probe")
	} else {
		conn, err = l.dial(limit, " probe")
	}
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer dial.HangUp(conn)
	return p.notify(ctx, conn)
}

// notify sends the nonce unprepared: a pooler may not know our prepared statements.
func (p *probe) notify(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	now := time.Now()
	p.left.Store(&now)
	_, err := conn.Exec(ctx, queries.Get("Probe"), pgx.QueryExecModeExec, p.channel, p.nonce)
	return refusal.Public(err)
}
