package workflow

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/romancy-go/romancy/internal/pace"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// Looks for what is ready, due or sent begin at low-water marks; see package pace for why, and for what makes it safe. The
// marks keep a margin, so that an ordinary transaction that commits a little late is above them.
const (
	// readyMargin is how long before the last look the mark of ready runs is.
	readyMargin = time.Second
	// deadlineMargin is the same for deadlines. What is left to the worker that holds it in memory is above the mark.
	deadlineMargin = hotGrace + time.Second
	// mailMargin is how many messages before the last one taken the mark of a channel is.
	mailMargin = 1000
)

// readyMarks are those of the ready runs of each workflow and priority. They belong to claimLoop.
type readyMarks struct {
	pace  pace.Pace
	used  *priorities
	marks map[string]*[priorityCount]int64 // microseconds since 1970
	later <-chan time.Time                 // when to look again, because the last look was not a full one
	began time.Time
}

const priorityCount = HighestPriority - LowestPriority + 1

func newReadyMarks(names []string, used *priorities) *readyMarks {
	m := &readyMarks{used: used, marks: map[string]*[priorityCount]int64{}}
	for _, name := range names {
		m.marks[name] = new([priorityCount]int64)
	}
	return m
}

// begin returns where the next look for runs of these workflows begins, unless it is a full one: in the order of urgency, a
// mark for each priority that has been seen in use, and between those a range without one.
func (m *readyMarks) begin(names []string) (marks []store.Since, full bool) {
	m.began = time.Now()
	if m.pace.Begin(m.began) {
		return nil, true
	}
	for _, name := range names {
		unseen := false
		for priority := int16(HighestPriority); priority >= LowestPriority; priority-- {
			last := len(marks) - 1
			switch {
			case m.used.seen(priority):
				mark := m.marks[name][priority-LowestPriority]
				marks = append(marks, store.Since{Workflow: name, Priority: priority, Mark: &mark, Lowest: priority})
				unseen = false
			case unseen:
				marks[last].Lowest = priority
			default:
				marks = append(marks, store.Since{Workflow: name, Priority: priority, Lowest: priority})
				unseen = true
			}
		}
	}
	return marks, false
}

// end takes note of what the look has found. After an error look may still change.
func (m *readyMarks) end(look *store.Look, full bool, offer store.Offer, err error) {
	now := time.Now()
	switch {
	case full && err != nil:
		m.pace.Took(now, now.Sub(m.began))
	case full:
		m.pace.Took(now, look.Took)
		m.later = nil
	default:
		m.later = time.After(m.pace.Next().Sub(now))
	}
	if err != nil {
		return
	}
	found, lowest, last := map[string]int{}, map[string]int16{}, map[string]int64{}
	for i, run := range look.Claimed {
		priority := look.Priority[i]
		m.used.note(priority)
		if known, seen := lowest[run.Workflow]; !seen || priority < known {
			lowest[run.Workflow], last[run.Workflow] = priority, 0
		}
		if priority == lowest[run.Workflow] {
			last[run.Workflow] = max(last[run.Workflow], look.ReadyAt[i])
		}
		found[run.Workflow]++
	}
	cut := len(look.Claimed) >= offer.Limit
	for i, name := range offer.Workflows {
		switch {
		case !cut && found[name] < offer.Allowed[i]: // that was all
			m.move(name, look.Mark, LowestPriority, look.Mark)
		case found[name] > 0:
			m.move(name, look.Mark, lowest[name], last[name])
		}
	}
}

// move moves the marks of a workflow. Of the lowest priority found there may be more after the last one, of the priorities
// below all that there were.
func (m *readyMarks) move(name string, mark int64, lowest int16, last int64) {
	for level := range m.marks[name] {
		switch priority := int16(level) + LowestPriority; {
		case !m.used.seen(priority): // it has no mark
		case priority > lowest:
			m.marks[name][level] = mark
		case priority == lowest:
			m.marks[name][level] = min(mark, last)
		}
	}
}

// priorities are those that runs have been seen with, and the usual one.
type priorities struct{ bits atomic.Uint32 }

func (p *priorities) note(priority int16) {
	if priority >= LowestPriority && priority <= HighestPriority {
		p.bits.Or(1 << (priority - LowestPriority))
	}
}

func (p *priorities) seen(priority int16) bool {
	return priority == 0 || p.bits.Load()&(1<<(priority-LowestPriority)) != 0
}

// deadlineMark is that of the parked runs that wait for time alone, or of those that receive with a timeout.
type deadlineMark struct {
	pace pace.Pace
	mu   sync.Mutex
	mark int64 // microseconds since 1970
}

// begin returns where the next look begins. Only the first of several is a full one.
func (m *deadlineMark) begin(now time.Time, first bool) (mark int64, full bool) {
	if first && m.pace.Begin(now) {
		return 0, true
	}
	return m.at(), false
}

// end moves the mark to where the look has come. After an error seen may still change.
func (m *deadlineMark) end(seen *int64, full bool, took time.Duration, err error) {
	if full {
		m.pace.Took(time.Now(), took)
	}
	if err != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mark = *seen
}

func (m *deadlineMark) at() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mark
}

// deadlineMark is where the deadlines begin, of whatever kind.
func (e *Engine) deadlineMark() int64 { return min(e.sleeping.at(), e.receiving.at()) }

// mailMarks are those of the mailbox: one for the sweep through all of it, one for each channel that runs compete on.
type mailMarks struct {
	pace pace.Pace

	mu      sync.Mutex
	low     int64            // the sweep begins after it
	highest int64            // message that the database has spoken of
	shared  map[string]int64 // of channels: the messages for whoever competes begin here
}

// sent takes note of a message that was sent from here, which may come to light late.
func (m *mailMarks) sent(channel string, id int64) {
	m.seen(id)
	m.heard(channel, id)
}

// seen takes note of the number of a message that the database has returned.
func (m *mailMarks) seen(id int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.highest = max(m.highest, id)
}

// heard takes note of a message that a notification names, which may come to light late. It lowers marks and
// raises none: if there is no such message the next sweep has more to look at, and nothing is passed over.
func (m *mailMarks) heard(channel string, id int64) {
	id = max(id, 1)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.low = min(m.low, id-1)
	if mark, known := m.shared[channel]; known && id < mark {
		m.shared[channel] = id
	}
}

// took takes note that a run has taken a message for whoever competes: those before were taken, or are being. id 0: none was.
func (m *mailMarks) took(channel string, id int64) {
	if id <= mailMargin {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.shared == nil {
		m.shared = map[string]int64{}
	}
	m.shared[channel] = max(m.shared[channel], id-mailMargin)
	m.highest = max(m.highest, id)
}

// since returns where the messages for whoever competes on the channel begin.
func (m *mailMarks) since(channel string) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.shared[channel]
}

// reset forgets the marks of the channels, since notifications may have been lost.
func (m *mailMarks) reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.shared)
}

// begin returns after which message the next sweep begins.
func (m *mailMarks) begin(now time.Time) (after int64, full bool) {
	if m.pace.Begin(now) {
		return 0, true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.low, false
}

// end takes note of what the first page of a sweep has found. After an error page may still change.
func (m *mailMarks) end(page *store.Page, full bool, took time.Duration, err error) {
	if full {
		m.pace.Took(time.Now(), took)
	}
	if err != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.highest = max(m.highest, page.Last)
	switch {
	case page.First > 0:
		m.low = page.First - 1
	default:
		m.low = max(0, m.highest-mailMargin)
	}
}
