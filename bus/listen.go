package bus

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// resync has the goroutine compare what it listens to with what is asked for. The caller holds mu.
func (l *Listener) resync() {
	l.stale = true
	l.poke()
}

// poke ends the wait on the connection, or keeps the next from beginning: there is something to do. The caller holds mu.
func (l *Listener) poke() {
	l.poked = true
	if l.interrupt != nil {
		l.interrupt()
	}
}

// arm lets others end the wait that begins now, and reports whether there is nothing to do before.
func (l *Listener) arm(interrupt func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.poked {
		l.poked = false
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
		if _, err := command(ctx, conn, sql); err != nil {
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
