package bus

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/romancy-go/romancy/internal/dial"
)

const (
	// pingTimeout is how long the server may take to answer when it is asked whether it is there: pgx alone would notice
	// a connection that died without a word after 151 s.
	pingTimeout = 2 * time.Second
	// lullBefore is how long nothing must have come for a notification to be taken for one by itself.
	lullBefore = 500 * time.Microsecond
	// receiveBurst is after how many notifications without a lull the listener rests if receivers are overloaded.
	receiveBurst = 200
	// partTimeout bounds the goodbye to a server that may be gone.
	partTimeout = time.Second
)

// run is the listener's goroutine: it connects, receives until the connection ends, and begins again.
func (l *Listener) run(ctx context.Context) {
	defer close(l.done)
	defer l.setState(StateClosed)
	defer l.metrics.observe(l)()
	if l.cfg.Disabled {
		<-ctx.Done()
		return
	}
	for ctx.Err() == nil {
		l.setState(StateConnecting)
		l.retry.attempt()
		l.forgetHints()
		err := l.attempt(ctx, func() {
			l.retry.healthy()
			l.deaf.heard = true
			l.unconnected.Succeeded(ctx)
			l.unhearing.Succeeded(ctx)
		})
		if ctx.Err() != nil {
			return
		}
		l.report(ctx, err, l.disconnected(err))
		if errors.Is(err, ErrDeaf) {
			l.setState(StateDeaf)
			pause(ctx, l.deaf.next())
			continue
		}
		l.rest(ctx)
	}
}

// attempt connects and receives until the connection or ctx ends. Once notifications arrive it calls healthy.
func (l *Listener) attempt(ctx context.Context, healthy func()) error {
	conn, err := l.dial(ctx, " listen")
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	s := &session{l: l, conn: conn, private: "romancy_probe_" + rand.Text(), healthy: healthy, heard: time.Now()}
	err = s.serve(ctx)
	if ctx.Err() != nil || errors.Is(err, ErrDeaf) {
		s.unlisten()
	}
	dial.HangUp(conn)
	return err
}

// rest waits before the next attempt, less long if there is a hint that it may succeed.
func (l *Listener) rest(ctx context.Context) {
	wait := l.retry.next()
	if wait <= 0 {
		return
	}
	l.setState(StateBackoff)
	over := time.Now().Add(wait)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-l.hints:
		if at := l.retry.hinted(); at.Before(over) {
			over = at
		}
		pause(ctx, time.Until(over))
	}
}

// forgetHints drops a hint that is older than the attempt which begins now.
func (l *Listener) forgetHints() {
	select {
	case <-l.hints:
	default:
	}
}

// report logs why there is no connection, unless it was said a moment ago. lost: there was one that worked. That it works again is
// said by established.
func (l *Listener) report(ctx context.Context, err error, lost bool) {
	delay := seconds(l.cfg.ReconnectDelay)
	switch {
	case errors.Is(err, ErrDeaf):
		l.unconnected.Succeeded(ctx) // it is another trouble now
		l.unhearing.Failed(ctx, err, "remedy", deafRemedy)
	case lost:
		l.unconnected.FailedAs(ctx, "LISTEN/NOTIFY connection lost, reconnecting", err, "reconnect_delay", delay)
	default:
		l.unconnected.Failed(ctx, err, "reconnect_delay", delay)
	}
}

// session is the life of one connection. All of it happens in the listener's goroutine, but for the sending of probes.
type session struct {
	l       *Listener
	conn    *pgx.Conn
	private string // the channel that nobody else listens to, for probes
	backend string // the process that executed LISTEN, whose connection a pooler may have lent us
	healthy func()

	up      bool           // notifications arrive
	heard   time.Time      // when something came last
	proof   time.Time      // when a notification came last that no statement of ours can have brought along
	echoed  time.Time      // when a probe arrived last, or could not be sent
	probe   *probe         // under way; nil if none
	senders sync.WaitGroup // of probes
}

// serve proves that a notification arrives, listens to what is asked for, and receives until the connection or ctx ends.
func (s *session) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer s.senders.Wait()
	defer cancel()
	var err error
	if s.backend, err = command(ctx, s.conn, listenSQL([]string{s.private}, nil)+"SELECT pg_catalog.pg_backend_pid()"); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	s.l.setState(StateProbing)
	s.send(ctx)
	for {
		if err := s.wait(ctx); err != nil {
			return err
		}
		if err := s.tend(ctx); err != nil {
			return err
		}
	}
}

// wait receives until there is something to do, or the connection or ctx ends.
func (s *session) wait(ctx context.Context) error {
	wait, stop := context.WithDeadline(ctx, s.nextLook())
	defer stop()
	if !s.l.arm(stop) {
		return nil
	}
	release := s.interruptBy(wait)
	err := s.receive(wait)
	release()
	s.l.disarm()
	over := wait.Err() != nil
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil && (!over || s.conn.IsClosed()):
		// Our wait was not over, so it is the connection that ended. What kind of error it is proves nothing: a dead
		// peer looks like a timeout too.
		return err
	}
	return nil
}

// interruptBy ends reads at the end of the wait, until the function it returns is called. With a context, pgx would do the
// same for each notification, which takes longer than to receive it.
func (s *session) interruptBy(wait context.Context) (release func()) {
	conn := s.conn.PgConn().Conn()
	interrupted := make(chan struct{})
	remain := context.AfterFunc(wait, func() {
		defer close(interrupted)
		_ = conn.SetReadDeadline(time.Unix(1, 0)) // an error means that it is closed, which ends the read as well
	})
	return func() {
		if !remain() {
			<-interrupted
		}
		_ = conn.SetReadDeadline(time.Time{}) // likewise
	}
}

// receive takes notifications until the wait is over, the connection ends, or a probe has arrived, which changes what is
// due. A wait that ends in the middle of a message is resumed by the next: pgx keeps what has arrived.
func (s *session) receive(wait context.Context) error {
	burst := 0
	for wait.Err() == nil {
		if burst++; burst%receiveBurst == 0 {
			pause(wait, s.l.overloaded())
		}
		n, err := s.conn.WaitForNotification(context.Background()) // interruptBy ends it
		if n != nil {
			now := time.Now()
			lull := now.Sub(s.heard) > lullBefore
			s.heard, s.proof = now, now
			s.take(wait, n, true)
			if lull {
				burst = 0
				runtime.Gosched() // those it is for go first: nothing more is here, most likely
			}
		}
		if err != nil || n == nil || n.Channel == s.private {
			return err // nil and nothing: a handler of the connection's own has taken it
		}
	}
	return wait.Err()
}

// leftOver takes the notifications that came along with the answer to a statement. They prove nothing: a pooler may lend
// the connection that listens to whoever has a statement to execute.
func (s *session) leftOver(ctx context.Context) {
	over, stop := context.WithCancel(ctx)
	stop()
	for {
		n, err := s.conn.WaitForNotification(over)
		if n != nil {
			s.heard = time.Now()
			s.take(ctx, n, false)
		}
		if err != nil {
			return // that the wait was over before it began; a broken connection shows at the next
		}
	}
}

// take hands n to those it is for. idle: no statement of ours can have brought it along.
func (s *session) take(ctx context.Context, n *pgconn.Notification, idle bool) {
	if n.Channel == s.private {
		s.echo(ctx, n.Payload, idle)
		return
	}
	s.l.dispatch(n, s.heard)
}

// dispatch hands n to the queues; it blocks on nobody.
func (l *Listener) dispatch(n *pgconn.Notification, at time.Time) {
	note := Notification{Channel: n.Channel, Payload: n.Payload, PID: n.PID, Received: at, CatchUp: n.Payload == ""}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.status.Received++
	l.status.LastNotification = at
	for _, s := range l.subs[n.Channel] {
		if dropped := s.push(note); dropped > 0 {
			l.status.Dropped += int64(dropped)
			l.overload.overflowed(at)
		}
	}
}

// overloaded returns how long to leave what arrives where it is, because receivers are overloaded.
func (l *Listener) overloaded() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.overload.rest(time.Now())
}

// tend does what is due between two waits.
func (s *session) tend(ctx context.Context) error {
	if err := s.judge(ctx); err != nil {
		return err
	}
	if !s.up && s.probe == nil && !s.proof.IsZero() {
		return s.establish(ctx)
	}
	if s.probe == nil && !time.Now().Before(s.probeDue()) {
		s.send(ctx)
	}
	if !s.listensForEcho() && !time.Now().Before(s.pingDue()) {
		if err := s.ping(ctx); err != nil {
			return err
		}
	}
	if !s.up {
		return nil
	}
	if err := s.l.listen(ctx, s.conn, nil); err != nil {
		return err
	}
	s.leftOver(ctx)
	return nil
}

// establish listens to what is asked for. The session is set up only now: what is SET in a session that a pooler lends to
// others would be theirs, too.
func (s *session) establish(ctx context.Context) error {
	if err := setSession(ctx, s.conn, sessionSettings); err != nil {
		return fmt.Errorf("set up the session: %w", err)
	}
	s.l.mu.Lock()
	s.l.stale = true
	s.l.mu.Unlock()
	if err := s.l.listen(ctx, s.conn, func() {
		s.healthy()
		s.l.established()
	}); err != nil {
		return err
	}
	s.up = true
	s.heard = time.Now()
	s.leftOver(ctx)
	return nil
}

// nextLook returns until when there is nothing to do but wait, unless something comes.
func (s *session) nextLook() time.Time {
	switch {
	case s.listensForEcho():
		return s.probe.look
	case s.probe != nil:
		return earlier(s.pingDue(), s.probe.look)
	}
	return earlier(s.pingDue(), s.probeDue())
}

// probeDue returns when to send the next probe: when nothing was notified for an interval, or nothing but what others sent
// for several.
func (s *session) probeDue() time.Time {
	interval := s.l.cfg.ProbeInterval
	return earlier(s.proof.Add(interval), s.echoed.Add(crowdShare*interval))
}

// pingDue returns when the silence is worth a ping, unless a probe is known to be sent.
func (s *session) pingDue() time.Time {
	due := s.heard.Add(s.l.cfg.SilenceLimit)
	if s.probe == nil {
		return due
	}
	if patience := s.probe.begun.Add(echoPatience); patience.After(due) {
		return patience
	}
	return due
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// ping asks the server for a sign of life.
func (s *session) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	if err := s.conn.Ping(ctx); err != nil {
		return fmt.Errorf("no answer within %s after %s of silence: %w", pingTimeout, time.Since(s.heard).Round(time.Millisecond), err)
	}
	s.heard = time.Now()
	s.leftOver(ctx)
	return nil
}

// unlisten keeps a pooler from lending a connection that listens to others. Best effort: which of its connections a
// pooler gives us is its secret, and the server may be gone.
func (s *session) unlisten() {
	ctx, cancel := context.WithTimeout(context.Background(), partTimeout)
	defer cancel()
	for range 10 {
		backend, err := command(ctx, s.conn, "UNLISTEN *; SELECT pg_catalog.pg_backend_pid()")
		if err != nil || backend == s.backend {
			return
		}
	}
}
