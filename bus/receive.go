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

const (
	// silence is how long nothing may come before the server is asked whether it is still there, and pingTimeout how
	// long it may take to answer: pgx alone would notice a connection that died without a word after 151 s.
	silence     = 5 * time.Second
	pingTimeout = 2 * time.Second
	// commandTimeout bounds SET, LISTEN and UNLISTEN, none of which waits for anybody.
	commandTimeout = 5 * time.Second
)

// sessionSettings let the server end a session whose process no longer reads (it would hold back vacuum in the whole
// database), and keep it from ending one that is merely quiet. They are SET, not startup parameters, which poolers refuse.
var sessionSettings = []string{
	"SET tcp_user_timeout = '30s'",
	"SET tcp_keepalives_idle = '10s'",
	"SET tcp_keepalives_interval = '5s'",
	"SET tcp_keepalives_count = 3",
	"SET idle_session_timeout = 0",
}

// run is the listener's goroutine: it connects, receives until the connection ends, and begins again.
func (l *Listener) run(ctx context.Context) {
	defer close(l.done)
	defer l.setState(StateClosed)
	retry := backoff{limit: l.cfg.ReconnectDelay}
	refused := "" // the refusal that was logged last
	for ctx.Err() == nil {
		l.setState(StateConnecting)
		retry.attempt()
		conn, err := l.open(ctx)
		if err == nil {
			err = l.serve(ctx, conn, retry.healthy)
			dial.HangUp(conn)
		}
		if ctx.Err() != nil {
			return
		}
		lost := l.disconnected(err)
		switch {
		case lost:
			refused = ""
			l.log.Warn("LISTEN/NOTIFY connection lost, reconnecting", "error", err, "reconnect_delay", seconds(l.cfg.ReconnectDelay))
		case err.Error() != refused: // said once, not at every attempt of a long outage
			refused = err.Error()
			l.log.Warn("PostgreSQL LISTEN/NOTIFY connection failed, retrying", "error", err, "reconnect_delay", seconds(l.cfg.ReconnectDelay))
		}
		if wait := retry.next(); wait > 0 {
			l.setState(StateBackoff)
			pause(ctx, wait)
		}
	}
}

// open makes a connection that is ready to LISTEN.
func (l *Listener) open(ctx context.Context) (*pgx.Conn, error) {
	var conn *pgx.Conn
	var err error
	if l.cfg.Connect != nil {
		conn, err = l.cfg.Connect(ctx)
	} else {
		conn, err = connect(ctx, l.cfg.Pool, " listen")
	}
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	if err := setSession(ctx, conn, sessionSettings); err != nil {
		dial.HangUp(conn)
		return nil, fmt.Errorf("set up the session: %w", err)
	}
	return conn, nil
}

// setSession applies the settings. A server that does not know one, or cannot do it on its platform, is no reason to go
// without notifications.
func setSession(ctx context.Context, conn *pgx.Conn, settings []string) error {
	err := command(ctx, conn, strings.Join(settings, "; "))
	var refusal *pgconn.PgError
	if !errors.As(err, &refusal) {
		return err
	}
	for _, setting := range settings {
		if err := command(ctx, conn, setting); err != nil && !errors.As(err, &refusal) {
			return err
		}
	}
	return nil
}

// command sends SQL by the simple protocol, several statements as one transaction.
func command(ctx context.Context, conn *pgx.Conn, sql string) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	_, err := conn.PgConn().Exec(ctx, sql).ReadAll()
	return err
}

// serve listens to what is asked for and receives, until the connection or ctx ends. Once all channels are listened to
// it calls healthy, and everybody catches up: what was notified in between is lost, and what they wait for may be
// committed already.
func (l *Listener) serve(ctx context.Context, conn *pgx.Conn, healthy func()) error {
	l.mu.Lock()
	l.stale = true
	l.mu.Unlock()
	if err := l.listen(ctx, conn, func() {
		healthy()
		l.established()
	}); err != nil {
		return err
	}
	heard := time.Now()
	for {
		wait, stop := context.WithDeadline(ctx, heard.Add(silence))
		var err error
		if l.arm(stop) {
			heard, err = l.receive(wait, conn, heard)
			l.disarm()
		}
		over := wait.Err() != nil
		stop()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && (!over || conn.IsClosed()):
			// Our wait was not over, so it is the connection that ended. What kind of error it is proves nothing: a
			// dead peer looks like a timeout too.
			return err
		}
		if time.Since(heard) >= silence {
			if err := ping(ctx, conn); err != nil {
				return err
			}
			heard = time.Now()
		}
		if err := l.listen(ctx, conn, nil); err != nil {
			return err
		}
	}
}

// receive takes notifications until the wait is over or the connection ends, and returns when it last heard something.
// A wait that ends in the middle of a message is resumed by the next: pgx keeps what has arrived.
func (l *Listener) receive(wait context.Context, conn *pgx.Conn, heard time.Time) (time.Time, error) {
	for {
		n, err := conn.WaitForNotification(wait)
		if n != nil {
			heard = time.Now()
			l.dispatch(n, heard)
		}
		if err != nil {
			return heard, err
		}
	}
}

// dispatch hands n to the queues; it blocks on nobody.
func (l *Listener) dispatch(n *pgconn.Notification, at time.Time) {
	note := Notification{Channel: n.Channel, Payload: n.Payload, PID: n.PID, Received: at, CatchUp: n.Payload == ""}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.status.Received++
	l.status.LastNotification = at
	for _, s := range l.subs[n.Channel] {
		l.status.Dropped += int64(s.push(note))
	}
}

// listen issues the LISTENs and UNLISTENs that are due, as one transaction, and has those concerned catch up once it is
// committed. committed, if not nil, is called between the two.
func (l *Listener) listen(ctx context.Context, conn *pgx.Conn, committed func()) error {
	l.mu.Lock()
	var add, drop []string
	if l.stale {
		add, drop = l.difference()
		l.stale = false
		// From here on, whoever subscribes to one of these has to wait for the next LISTEN.
		for _, channel := range drop {
			delete(l.listened, channel)
		}
	}
	l.mu.Unlock()

	if sql := listenSQL(add, drop); sql != "" {
		if err := command(ctx, conn, sql); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
	}
	if committed != nil {
		committed()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, channel := range add {
		l.listened[channel] = true
	}
	told := map[*Subscription]bool{}
	for _, channel := range add {
		for _, s := range l.subs[channel] {
			if !told[s] {
				told[s] = true
				s.catchUp(intersect(s.channels, add), l.hears(s))
			}
		}
	}
	return nil
}

// difference returns the channels that lack a LISTEN and those that nobody wants any more. The caller holds mu.
func (l *Listener) difference() (add, drop []string) {
	for channel := range l.subs {
		if !l.listened[channel] {
			add = append(add, channel)
		}
	}
	for channel := range l.listened {
		if len(l.subs[channel]) == 0 {
			drop = append(drop, channel)
		}
	}
	return add, drop
}

func (l *Listener) hears(s *Subscription) bool {
	for _, channel := range s.channels {
		if !l.listened[channel] {
			return false
		}
	}
	return true
}

func intersect(a, b []string) []string {
	var both []string
	for _, s := range a {
		if slices.Contains(b, s) {
			both = append(both, s)
		}
	}
	return both
}

func listenSQL(add, drop []string) string {
	var sql strings.Builder
	for _, channel := range drop {
		sql.WriteString("UNLISTEN " + pgx.Identifier{channel}.Sanitize() + ";")
	}
	for _, channel := range add {
		sql.WriteString("LISTEN " + pgx.Identifier{channel}.Sanitize() + ";")
	}
	return sql.String()
}

// arm lets a subscriber end the wait that begins now, and reports whether there is nothing to do before.
func (l *Listener) arm(interrupt func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stale {
		return false
	}
	l.interrupt = interrupt
	return true
}

func (l *Listener) disarm() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.interrupt = nil
}

// established notes that notifications arrive from now on.
func (l *Listener) established() {
	l.mu.Lock()
	if l.connected {
		l.status.Reconnects++
	}
	l.connected = true
	l.mu.Unlock()
	l.log.Info("PostgreSQL LISTEN/NOTIFY connection established")
	l.setState(StateListening)
}

// disconnected notes why there is no connection, and reports whether there was one that worked.
func (l *Listener) disconnected(err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.listened)
	l.status.LastError = err
	return l.status.State == StateListening
}

// ping asks the server for a sign of life.
func ping(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	if err := conn.Ping(ctx); err != nil {
		return fmt.Errorf("no answer within %s after %s of silence: %w", pingTimeout, silence, err)
	}
	return nil
}
