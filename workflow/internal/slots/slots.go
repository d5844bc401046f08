// Package slots shares the room for executing runs between workflows: who may begin at once, what the next look for ready
// runs may bring, and who goes on first when there is too little for all. It knows no time, no database and no goroutine; its
// user guards it with a mutex.
//
// A workflow that has fewer runs executing than another goes first, and of two that have equally many the one whose turn is
// longer ago. The last slots are kept for workflows that have none, one for each, so that no number of long runs of one
// workflow keeps all others out.
package slots

import (
	"cmp"
	"slices"
)

// Slots is the room of one worker. T is a run that waits in memory for a slot.
type Slots[T any] struct {
	max     int
	taken   int // offered ones included
	turn    int64
	classes []*class[T]
	of      map[string]*class[T]
}

// class is a workflow.
type class[T any] struct {
	name    string
	limit   int
	taken   int // by runs
	offered int // to a look under way
	hungry  bool
	turn    int64
	waiting []T
}

// New returns slots for the workflows in limits, total in all; a limit of 0 is none.
func New[T any](total int, limits map[string]int) *Slots[T] {
	s := &Slots[T]{max: total, of: map[string]*class[T]{}}
	for name, own := range limits {
		if own == 0 {
			own = total
		}
		c := &class[T]{name: name, limit: min(own, total)}
		s.of[name] = c
		s.classes = append(s.classes, c)
	}
	slices.SortFunc(s.classes, func(a, b *class[T]) int { return cmp.Compare(a.name, b.name) })
	return s
}

// Take takes a slot for a run of workflow, unless others have to come first. After false, what did not get it has to wait in
// the queue or in the database, and a look is due.
func (s *Slots[T]) Take(workflow string) bool {
	c := s.of[workflow]
	if c == nil {
		return false
	}
	if c.hungry || s.room(c) <= 0 || s.wanted(c) && (c.taken+c.offered)*len(s.classes) >= s.max {
		c.hungry = true
		return false
	}
	s.grant(c)
	return true
}

func (s *Slots[T]) grant(c *class[T]) {
	s.taken++
	c.taken++
	s.turn++
	c.turn = s.turn
}

// Give gives a slot back. It reports whether somebody may be waiting for it: then a look is due.
func (s *Slots[T]) Give(workflow string) (wanted bool) {
	if c := s.of[workflow]; c != nil {
		s.taken--
		c.taken--
	}
	return s.wanted(nil)
}

// room is what c may still take: its own limit, and the slots that are kept for workflows that have none, count.
func (s *Slots[T]) room(c *class[T]) int {
	room := s.max - s.taken
	if c.taken > 0 {
		room -= s.kept()
	}
	return min(room, c.limit-c.taken-c.offered)
}

// kept is how many slots are kept for workflows that have none.
func (s *Slots[T]) kept() int {
	idle := 0
	for _, c := range s.classes {
		if c.taken == 0 {
			idle++
		}
	}
	return min(idle, len(s.classes)-1, s.max/2)
}

// wanted reports whether a workflow other than by may be waiting for a slot that it could have.
func (s *Slots[T]) wanted(by *class[T]) bool {
	return slices.ContainsFunc(s.classes, func(c *class[T]) bool { return c != by && c.hungry && c.taken+c.offered < c.limit })
}

// Wait queues a run of workflow that got no slot; Serve returns it when it has one.
func (s *Slots[T]) Wait(workflow string, run T) {
	if c := s.of[workflow]; c != nil {
		c.waiting = append(c.waiting, run)
		c.hungry = true
	}
}

// Waiting returns how many runs are queued.
func (s *Slots[T]) Waiting() (waiting int) {
	for _, c := range s.classes {
		waiting += len(c.waiting)
	}
	return waiting
}

// Serve gives slots to queued runs and returns them. fair: only as far as their workflows' shares go if all of them want
// some; else whatever there is.
func (s *Slots[T]) Serve(fair bool) (served []T) {
	order := s.order()
	caps := make([]int, len(order))
	waiting := 0
	for i, c := range order {
		caps[i] = max(0, s.room(c))
		if !fair {
			caps[i] = min(caps[i], len(c.waiting))
		}
		waiting += len(c.waiting)
	}
	if waiting == 0 {
		return nil
	}
	for i, share := range fill(order, s.max-s.taken, caps) {
		c := order[i]
		for range min(share, len(c.waiting)) {
			if s.room(c) <= 0 { // others have come out of none meanwhile
				break
			}
			served = append(served, c.waiting[0])
			c.waiting = c.waiting[1:]
			s.grant(c)
		}
		if len(c.waiting) == 0 {
			c.waiting = nil
		}
	}
	return served
}

// order returns the workflows in the order in which they go.
func (s *Slots[T]) order() []*class[T] {
	order := slices.Clone(s.classes)
	slices.SortStableFunc(order, func(a, b *class[T]) int {
		return cmp.Or(cmp.Compare(a.taken+a.offered, b.taken+b.offered), cmp.Compare(a.turn, b.turn))
	})
	return order
}

// fill shares room out, one slot after the other to who has least, up to caps. order decides between equals.
func fill[T any](order []*class[T], room int, caps []int) []int {
	shares := make([]int, len(order))
	for ; room > 0; room-- {
		least := -1
		for i, c := range order {
			if shares[i] < caps[i] && (least < 0 || c.taken+shares[i] < order[least].taken+shares[least]) {
				least = i
			}
		}
		if least < 0 {
			break
		}
		shares[least]++
	}
	return shares
}
