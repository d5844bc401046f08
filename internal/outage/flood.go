package outage

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// maxKinds bounds the kinds that a Flood tells apart. What comes beyond it shares one.
const maxKinds = 1000

// Flood rations lines about events of which each deserves one, such as runs that fail: of every kind, the first few of a minute
// are logged, and the others are counted in one line at the end of that minute. While a minute has had too many, the next has one
// line of its own. Its methods are safe for concurrent use.
type Flood struct {
	logger  *slog.Logger
	summary string
	most    int
	again   int // lines of its own that a minute has which follows one that had too many

	mu     sync.Mutex
	kinds  map[string]*tide
	closed bool
}

// tide is the present minute of a kind.
type tide struct {
	attrs []any
	left  int // lines that may still be logged
	kept  int // events that were only counted
	over  *time.Timer
}

// NewFlood returns a Flood that lets most lines of a kind pass in a minute and then logs summary, with the number of the others as
// "count".
func NewFlood(logger *slog.Logger, summary string, most int) *Flood {
	return &Flood{logger: logger, summary: summary, most: most, again: 1, kinds: map[string]*tide{}}
}

// Once has no line of its own follow the first minute of a flood, only counts: for what says nothing new. It returns
// f, and is called before f is used.
func (f *Flood) Once() *Flood {
	f.again = 0
	return f
}

// Pass reports whether the caller is to log its line about an event of this kind. If not, the event is counted; attrs say in the
// line that counts what the kind is.
func (f *Flood) Pass(kind string, attrs ...any) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return true
	}
	now := f.kinds[kind]
	if now == nil && len(f.kinds) >= maxKinds {
		kind, attrs = "", nil
		now = f.kinds[kind]
	}
	if now == nil {
		now = &tide{attrs: attrs, left: f.most}
		now.over = time.AfterFunc(between, func() { f.turn(kind) })
		f.kinds[kind] = now
	}
	if now.left == 0 {
		now.kept++
		return false
	}
	now.left--
	return true
}

// turn ends the minute of a kind.
func (f *Flood) turn(kind string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.kinds[kind]
	if f.closed || now == nil {
		return
	}
	if now.kept == 0 {
		delete(f.kinds, kind)
		return
	}
	f.say(now)
	now.kept, now.left = 0, f.again
	now.over.Reset(between)
}

func (f *Flood) say(now *tide) {
	f.logger.WarnContext(context.Background(), f.summary, append([]any{"count", now.kept}, now.attrs...)...)
}

// Close logs what was counted and not said yet. Events after it are not counted: each has its line.
func (f *Flood) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for _, now := range f.kinds {
		now.over.Stop()
		if now.kept > 0 {
			f.say(now)
		}
	}
	clear(f.kinds)
}
