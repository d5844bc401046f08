package slots

// Round is a series of looks for ready runs, which ends when there is no room left or nothing more to find.
type Round struct {
	closed map[string]bool // workflows of which all that was ready has been found
}

// Offer is the room that a look may fill. It is taken until Settle.
type Offer struct {
	Workflows []string // in the order in which they go
	Allowed   []int    // of each of them, at least 1
	Limit     int      // in all
}

// Offer returns what the next look may bring, batch at most. ok is false at the end of the round.
func (s *Slots[T]) Offer(round *Round, batch int) (offer Offer, ok bool) {
	room, kept := s.max-s.taken, s.kept()
	spare := room > kept // else it is all for workflows that have none
	if spare {
		room -= kept
	}
	var open []*class[T]
	var caps []int
	wanted := false
	for _, c := range s.order() {
		if round.closed[c.name] {
			continue
		}
		own := c.limit - c.taken - c.offered
		if room <= 0 || own <= 0 || !spare && c.taken > 0 {
			c.hungry = true // for all we know
			continue
		}
		wanted = wanted || c.hungry
		if !spare {
			own = 1
		}
		open, caps = append(open, c), append(caps, own)
	}
	if len(open) == 0 {
		return Offer{}, false
	}
	room = min(room, batch)
	if !wanted {
		room = (room + 1) / 2 // leaves something to those who begin without a look
	}
	offer.Limit = room
	for i, share := range fill(open, room, caps) {
		// One at least, so that a look finds whoever there is; it stops at the limit.
		allowed := max(1, share)
		open[i].offered += allowed
		offer.Workflows, offer.Allowed = append(offer.Workflows, open[i].name), append(offer.Allowed, allowed)
	}
	s.taken += room
	return offer, true
}

// Settle takes note of what a look has found of each workflow. Those runs have their slots.
func (s *Slots[T]) Settle(round *Round, offer Offer, found map[string]int) {
	total := s.settle(offer, found)
	if round.closed == nil {
		round.closed = map[string]bool{}
	}
	for i, name := range offer.Workflows {
		if found[name] < offer.Allowed[i] && total < offer.Limit {
			round.closed[name] = true
			s.of[name].hungry = len(s.of[name].waiting) > 0
		}
	}
}

func (s *Slots[T]) settle(offer Offer, found map[string]int) (total int) {
	for i, name := range offer.Workflows {
		c := s.of[name]
		c.offered -= offer.Allowed[i]
		c.taken += found[name]
		if found[name] > 0 {
			s.turn++
			c.turn = s.turn
		}
		total += found[name]
	}
	s.taken -= offer.Limit - total
	return total
}

// Withdraw takes an offer back after a look that has failed.
func (s *Slots[T]) Withdraw(offer Offer) { s.settle(offer, nil) }

// Blind returns an offer for n runs of workflows that are not known beforehand; ok is false if there may be too little room
// for them.
func (s *Slots[T]) Blind(n int) (offer Offer, ok bool) {
	for _, c := range s.classes {
		if c.hungry || s.room(c) < n {
			return Offer{}, false
		}
		offer.Workflows, offer.Allowed = append(offer.Workflows, c.name), append(offer.Allowed, n)
	}
	for _, c := range s.classes {
		c.offered += n
	}
	s.taken += n
	offer.Limit = n
	return offer, true
}

// SettleBlind takes note of what was found of each workflow.
func (s *Slots[T]) SettleBlind(offer Offer, found map[string]int) { s.settle(offer, found) }

// Full returns the workflows of which runs may be waiting for a slot.
func (s *Slots[T]) Full() (names []string) {
	for _, c := range s.classes {
		if c.hungry {
			names = append(names, c.name)
		}
	}
	return names
}
