package workflow

import "github.com/romancy-go/romancy/workflow/internal/slots"

// Runs execute in slots, of which there are MaxConcurrentRuns. A run has one from before it is claimed, created or woken until
// it parks or its goroutine has ended: one that was taken from this worker, and is still in a step, has it as well.

// newSlots returns the room for runs of these workflows.
func newSlots(total int, definitions []Definition) *slots.Slots[*run] {
	limits := map[string]int{}
	for _, definition := range definitions {
		if definition != nil {
			limits[definition.Name()] = definition.settings().maxRuns
		}
	}
	return slots.New[*run](total, limits)
}

// freeLocked gives the slot of r back, if it has one.
func (e *Engine) freeLocked(r *run) {
	if r.slot {
		r.slot = false
		e.giveSlotLocked(r.definition.Name())
	}
}

func (e *Engine) giveSlotLocked(workflow string) {
	if e.cache.slots.Give(workflow) {
		e.claims.give()
	}
}

// slotLocked takes a slot for a parked run that there is a reason to poll for. After false it waits for one.
func (e *Engine) slotLocked(r *run) bool {
	if r.slot {
		return true
	}
	if e.cache.slots.Take(r.definition.Name()) {
		r.slot, r.due = true, false
		return true
	}
	if !r.due {
		r.due = true
		e.cache.slots.Wait(r.definition.Name(), r)
	}
	e.claims.give()
	return false
}

// serve wakes parked runs that have waited for a slot; fair: only as many as their workflows' shares of the room allow.
func (e *Engine) serve(fair bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, r := range e.cache.slots.Serve(fair) {
		if r.phase != parked || !r.due { // it is gone, or has gone on, meanwhile
			e.giveSlotLocked(r.definition.Name())
			continue
		}
		r.slot, r.due = true, false
		if e.pollLocked(r); !r.reasons.polling {
			e.freeLocked(r)
		}
	}
}
