// Package deadline keeps what is due when, for the runs that this process parked.
package deadline

import (
	"container/heap"
	"slices"
	"time"
)

// Entry is a run's deadline. It is stale once the run's token has moved on; whoever pops it finds out.
type Entry struct {
	At    time.Time // by this process's monotonic clock
	ID    string
	Token int64
}

// Heap orders entries by time. The zero value is empty and ready to use. It is not safe for concurrent use.
type Heap struct {
	entries entries
}

// Push adds an entry. It reports whether it is now the earliest.
func (h *Heap) Push(entry Entry) bool {
	earliest := len(h.entries) == 0 || entry.At.Before(h.entries[0].At)
	heap.Push(&h.entries, entry)
	return earliest
}

// Next returns the earliest deadline; ok is false when there is none.
func (h *Heap) Next() (at time.Time, ok bool) {
	if len(h.entries) == 0 {
		return time.Time{}, false
	}
	return h.entries[0].At, true
}

// PopDue removes and returns up to limit entries that are due at now, earliest first.
func (h *Heap) PopDue(now time.Time, limit int) []Entry {
	var due []Entry
	for len(due) < limit && len(h.entries) > 0 && !h.entries[0].At.After(now) {
		due = append(due, heap.Pop(&h.entries).(Entry)) //nolint:forcetypeassert // entries hold nothing else
	}
	return due
}

// Keep removes the entries for which wanted is false.
func (h *Heap) Keep(wanted func(Entry) bool) {
	h.entries = slices.DeleteFunc(h.entries, func(entry Entry) bool { return !wanted(entry) })
	heap.Init(&h.entries)
}

// Len returns the number of entries, stale ones included.
func (h *Heap) Len() int { return len(h.entries) }

type entries []Entry

func (e *entries) Len() int           { return len(*e) }
func (e *entries) Less(i, j int) bool { return (*e)[i].At.Before((*e)[j].At) }
func (e *entries) Swap(i, j int)      { (*e)[i], (*e)[j] = (*e)[j], (*e)[i] }
func (e *entries) Push(x any)         { *e = append(*e, x.(Entry)) } //nolint:forcetypeassert // see PopDue

func (e *entries) Pop() any {
	last := len(*e) - 1
	entry := (*e)[last]
	(*e)[last] = Entry{} // let go of its id
	*e = (*e)[:last]
	return entry
}
