package workflow

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strconv"
	"sync"
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
	e, _ := digestEncoders.Get().(*digestEncoder)
	defer e.putBack()
	if err := e.encoder.Encode(in); err != nil {
		return ""
	}
	encoded := e.text.Bytes()
	return encodeDigest(encoded[:len(encoded)-1]) // without the line's end
}

// digestEncoder is used again and again: what an input is encoded to is needed for as long as it is read.
type digestEncoder struct {
	text    bytes.Buffer
	encoder *json.Encoder
}

// maxKeptInput is how large a buffer is kept, in bytes.
const maxKeptInput = 64 << 10

func (e *digestEncoder) putBack() {
	if e.text.Cap() <= maxKeptInput {
		e.text.Reset()
		digestEncoders.Put(e)
	}
}

var digestEncoders = sync.Pool{New: func() any {
	e := new(digestEncoder)
	e.encoder = newValueEncoder(&e.text)
	return e
}}

// encodeDigest is FNV-1a of 64 bits, folded to 48: of what the standard library has, the quickest for inputs as they usually are.
func encodeDigest(text []byte) string {
	hash := uint64(14695981039346656037)
	for _, c := range text {
		hash = (hash ^ uint64(c)) * 1099511628211
	}
	var folded [8]byte
	binary.BigEndian.PutUint64(folded[:], hash^hash>>48<<16)
	var encoded [digestBytes * 4 / 3]byte
	base64.RawURLEncoding.Encode(encoded[:], folded[len(folded)-digestBytes:])
	return string(encoded[:])
}

// input is what an activity was given.
type input struct{ activity, digest string }

// inputs compares what activities are given with what they were given when they were recorded, step by step. Both maps hold the positions of
// steps that were given something else than what is recorded there.
type inputs struct {
	given    map[input]int32 // by what they were given
	recorded map[input]int32 // by what is recorded
}

// differ notes that the step at position, where recorded is recorded, is given something else. It returns a proof that results would be
// swapped, if this makes one: a step at position to is given what is recorded at position of, whose own step is given something else.
//
// That the input is recorded at another position proves nothing alone. Of a loop that asks the same again and again some rounds are recorded
// with a former form of the input, and some with the present one, once its type has gained a field: now all of them are given the present
// one, as are those that it is recorded for.
func (i *inputs) differ(position int32, given, recorded input) (to, of int32) {
	if i.given == nil {
		i.given, i.recorded = map[input]int32{}, map[input]int32{}
	}
	i.given[given], i.recorded[recorded] = position, position
	if of := i.recorded[given]; of != 0 {
		return position, of
	}
	if to := i.given[recorded]; to != 0 {
		return to, position
	}
	return 0, 0
}

// checkRecordedInput stops the run once it is proved that the record at position, with this digest, or a former one, is that of another step of
// the activity. Else an input that is not the recorded one may hold the time, or a field that has been added since: that is logged.
//
// Both steps of a proof are recorded, so it is there before the replay ends, and before the run has an effect of its own.
func (r *run) checkRecordedInput(s step, position int32, recorded string) {
	if recorded == "" || s.input == nil {
		return
	}
	digest := s.input()
	if digest == "" || digest == recorded {
		return
	}
	if to, of := r.inputs.differ(position, input{s.name, digest}, input{s.name, recorded}); to != 0 {
		r.misplaced(s, to, of)
	}
	if r.engine.strange.first(r.id + "/" + strconv.Itoa(int(position))) {
		r.log().Warn("activity is given another input than the one whose result is recorded, which it is answered with; "+
			"take what changes between executions, as the time, from recorded values such as workflow.Now", "activity", s.name, "position", position)
	}
}

// checkNewInput stops the run if the result of a step that is not recorded is, by its input, at another position, whose own step was
// given something else.
func (r *run) checkNewInput(s step, position int32) {
	if len(r.inputs.recorded) == 0 || s.digest == "" {
		return
	}
	if of := r.inputs.recorded[input{s.name, s.digest}]; of != 0 {
		r.misplaced(s, position, of)
	}
}

func (r *run) misplaced(s step, to, of int32) {
	r.misfit(to, fmt.Errorf("activity %q is given the input whose result is recorded at position %d, where another is given, so results would be taken "+
		"for those of others: the order of commands differs between executions; use Activity.Go, not goroutines, for activities that execute side by "+
		"side, and range over no map", s.name, of))
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
