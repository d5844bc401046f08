package workflow

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"iter"
	"strconv"
	"sync"

	"github.com/romancy-go/romancy/workflow/internal/journal"
)

// A position says whose result a record holds only if the workflow issues the same commands in the same order. So a step's record
// has a digest of its input: when it is not that of the input given in a replay, it may be the result of another step.

// digestBytes keeps records short. A digest is compared with those of one run alone: among a million of them the chance
// that a certain one is met by accident is one in 280 million.
const digestBytes = 6

// digestOf returns a digest of in, encoded as JSON. What cannot be encoded has none.
func digestOf(in any) (digest string) {
	defer func() {
		if value := recover(); value != nil { // a method of the user's
			digest = ""
		}
	}()
	text, err := json.Marshal(in)
	if err != nil {
		return ""
	}
	return encodeDigest(text)
}

// encodeDigest is FNV-1a of 64 bits, folded to 48: of what the standard library has, the quickest for inputs as they usually are.
func encodeDigest(text []byte) string {
	hash := uint64(14695981039346656037)
	for _, c := range text {
		hash = (hash ^ uint64(c)) * 1099511628211
	}
	var folded [8]byte
	binary.BigEndian.PutUint64(folded[:], hash^hash>>48<<16)
	return base64.RawURLEncoding.EncodeToString(folded[len(folded)-digestBytes:])
}

// input is what an activity was given.
type input struct{ activity, digest string }

// inputs compares what activities are given with what they were given when they were recorded.
type inputs struct {
	recorded  map[input][]int32 // positions; nil: not needed yet
	strangers map[input]int32   // of records whose own step was given something else
}

// elsewhere returns another position than the step's at which given is recorded; 0: there is none.
func (i *inputs) elsewhere(records iter.Seq[journal.Record], position int32, given input) int32 {
	if i.recorded == nil {
		i.recorded = map[input][]int32{}
		for record := range records {
			var done stepRecord
			if record.Kind == journal.Activity && json.Unmarshal(record.Payload, &done) == nil && done.Input != "" {
				was := input{record.Name, done.Input}
				i.recorded[was] = append(i.recorded[was], record.Position)
			}
		}
	}
	for _, at := range i.recorded[given] {
		if at != position {
			return at
		}
	}
	return 0
}

// estrange notes that the step at position was not given what is recorded there.
func (i *inputs) estrange(position int32, recorded input) {
	if i.strangers == nil {
		i.strangers = map[input]int32{}
	}
	i.strangers[recorded] = position
}

// checkRecordedInput stops the run if the record at position, with this digest, is that of another step of the activity. An input
// that is recorded nowhere may hold the time, or a field that has been added since: that is logged.
func (r *run) checkRecordedInput(s step, position int32, recorded string) {
	if recorded == "" || s.input == nil {
		return
	}
	digest := s.input()
	if digest == "" || digest == recorded {
		return
	}
	if at := r.inputs.elsewhere(r.journal.Records(), position, input{s.name, digest}); at != 0 {
		r.misplaced(s, position, at)
	}
	r.inputs.estrange(position, input{s.name, recorded})
	if r.engine.strange.first(r.id + "/" + strconv.Itoa(int(position))) {
		r.log().Warn("activity is given another input than the one whose result is recorded, which it is answered with; "+
			"take what changes between executions, as the time, from recorded values such as workflow.Now", "activity", s.name, "position", position)
	}
}

// checkNewInput stops the run if the result of a step that is not recorded is, by its input, at another position, whose own step was
// given something else.
func (r *run) checkNewInput(s step, position int32) {
	if len(r.inputs.strangers) == 0 || s.digest == "" {
		return
	}
	if at := r.inputs.strangers[input{s.name, s.digest}]; at != 0 {
		r.misplaced(s, position, at)
	}
}

func (r *run) misplaced(s step, position, at int32) {
	r.misfit(position, fmt.Errorf("activity %q is given the input whose result is recorded at position %d, so results would be taken for those "+
		"of others: the order of commands differs between executions; use Activity.Go, not goroutines, for activities that execute side by side, "+
		"and range over no map", s.name, at))
}

// said remembers what has been said. It forgets all when that has become too much.
type said struct {
	mu   sync.Mutex
	what map[string]struct{}
}

const maxSaid = 100_000

// first reports whether what has not been said before, and that it is now.
func (s *said) first(what string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, before := s.what[what]; before {
		return false
	}
	if s.what == nil || len(s.what) >= maxSaid {
		s.what = map[string]struct{}{}
	}
	s.what[what] = struct{}{}
	return true
}
