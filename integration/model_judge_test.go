package integration_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// modelJudge walks through a program beside what a run of it has seen, and says where the run did what no run may.
type modelJudge struct {
	p     modelProgram
	trace []string
	at    int // how much of the trace is accounted for

	sent    map[string][]string // messages that are there, by channel, in order
	outside int                 // messages from outside that were taken
	futures map[int]*modelFuture
	// wants is what should be recorded of each activity; its name is missing if the run never came to it.
	wants map[string]*modelWant
}

type modelFuture struct {
	act     modelAct
	want    *modelWant
	result  string
	landed  bool // certainly
	dropped bool
}

// modelWant is what should have become of an activity.
type modelWant struct {
	act   modelAct
	round int
	seen  string
	maybe bool // whether it came to an end is not certain
}

// judge returns the first thing that is wrong with a trace, and what it says must have been done.
func judge(p modelProgram, trace []string) (map[string]*modelWant, error) {
	j := &modelJudge{p: p, trace: trace, sent: map[string][]string{}, wants: map[string]*modelWant{}}
	for round, ops := range p.Rounds {
		j.futures = map[int]*modelFuture{}
		delete(j.sent, p.news()) // copies of what was published end with the run
		for i, op := range ops {
			if err := j.step(op, round); err != nil {
				return nil, fmt.Errorf("round %d, op %d (%+v): %w", round, i, op, err)
			}
		}
		for _, future := range j.futures {
			future.want.maybe = !future.landed && (future.dropped || p.Fails && round+1 == len(p.Rounds))
		}
	}
	if j.at < len(trace) {
		return nil, fmt.Errorf("the run has seen more than it should: %q", trace[j.at:])
	}
	return j.wants, nil
}

// next takes the next line of the trace.
func (j *modelJudge) next() (string, error) {
	if j.at == len(j.trace) {
		return "", fmt.Errorf("the run has seen no more than %d lines", j.at)
	}
	j.at++
	return j.trace[j.at-1], nil
}

func (j *modelJudge) expect(want string) error {
	got, err := j.next()
	if err == nil && got != want {
		err = fmt.Errorf("the run has seen %q, want %q", got, want)
	}
	return err
}

func (j *modelJudge) expectPrefix(want string) error {
	got, err := j.next()
	if err == nil && !strings.HasPrefix(got, want) {
		err = fmt.Errorf("the run has seen %q, want %q", got, want)
	}
	return err
}

// result is what an activity that was begun now makes the run see.
func (j *modelJudge) begin(act modelAct, round int) (result string, want *modelWant) {
	hash := seen(j.trace[:j.at])
	want = &modelWant{act: act, round: round, seen: hash}
	j.wants[act.Name] = want
	if act.Dooms > 0 {
		return fmt.Sprintf("failed doomed %s %q after %d", act.Name, hash, act.Dooms), want
	}
	return act.Name + "@" + hash, want
}

func (j *modelJudge) step(op modelOp, round int) error {
	switch op.Kind {
	case opDo:
		result, _ := j.begin(op.Act, round)
		return j.expect("do " + op.Act.Name + ": " + result)
	case opGo:
		future := &modelFuture{act: op.Act}
		future.result, future.want = j.begin(op.Act, round)
		j.futures[op.Slot] = future
	case opAwait:
		return j.await(op.Slot)
	case opAll:
		for _, slot := range op.Slots {
			if err := j.await(slot); err != nil {
				return err
			}
		}
	case opSideEffect, opNow, opNewID:
		return j.expectPrefix(op.Kind + " ")
	case opSend, opPublish:
		for i := range op.Count {
			j.sent[op.Channel] = append(j.sent[op.Channel], fmt.Sprintf("%s#%d", op.Key, i))
		}
	case opReceive:
		return j.receive(op)
	case opReceiveMany:
		return j.receiveMany(op)
	case opSelect:
		return j.choose(op)
	}
	return nil
}

func (j *modelJudge) await(slot int) error {
	future := j.futures[slot]
	result := future.result
	if future.dropped {
		result = "another case of the Select was chosen"
	} else {
		future.landed = true
	}
	return j.expect(fmt.Sprintf("future %d: %s", slot, result))
}

// head is the message of a channel that is taken next. Sure says that it is there; if it is not, it may still come.
func (j *modelJudge) head(channel string) (key string, sure, possible bool) {
	if channel == channelOutside {
		return fmt.Sprintf("outside#%d", j.outside), false, j.outside < len(j.p.Outside)
	}
	if waiting := j.sent[channel]; len(waiting) > 0 {
		return waiting[0], true, true
	}
	return "", false, false
}

func (j *modelJudge) took(channel string) {
	if channel == channelOutside {
		j.outside++
	} else {
		j.sent[channel] = j.sent[channel][1:]
	}
}

func (j *modelJudge) receive(op modelOp) error {
	key, sure, possible := j.head(op.Channel)
	got, err := j.next()
	switch {
	case err != nil:
		return err
	case possible && got == "message "+op.Channel+" "+key:
		j.took(op.Channel)
		return nil
	case !sure && op.Duration > 0 && op.Duration < modelForever && got == "nothing from "+op.Channel:
		return nil
	default:
		return fmt.Errorf("the run has seen %q; next on the channel is %q (sure %v, possible %v)", got, key, sure, possible)
	}
}

func (j *modelJudge) receiveMany(op modelOp) error {
	got, err := j.next()
	if err != nil {
		return err
	}
	keys, ok := strings.CutPrefix(got, "many "+op.Channel+" ")
	if !ok {
		return fmt.Errorf("the run has seen %q", got)
	}
	received := strings.Fields(keys)
	for i, one := range received {
		if key, _, possible := j.head(op.Channel); !possible || one != key {
			return fmt.Errorf("message %d of %q: next on the channel is %q", i+1, got, key)
		}
		j.took(op.Channel)
	}
	if _, sure, _ := j.head(op.Channel); len(received) == 0 || len(received) > op.Count || len(received) < op.Count && sure {
		return fmt.Errorf("the run has received %d, at most %d; left are %q", len(received), op.Count, j.sent[op.Channel])
	}
	return nil
}

// choose: a future that has certainly ended goes before messages, and a message that is certainly there before a timer, of
// their kind the first.
func (j *modelJudge) choose(op modelOp) error {
	got, err := j.next()
	if err != nil {
		return err
	}
	var allowed []string
	chosen := -1
	allow := func(i int, line string) {
		allowed = append(allowed, line)
		if line == got && chosen < 0 {
			chosen = i
		}
	}
	settled := false // something that goes before the rest is there
	for i, c := range op.Cases {
		if future := j.futures[c.Slot]; c.Slot > 0 && !settled {
			result := future.result
			if future.dropped {
				result = "another case of the Select was chosen"
			}
			allow(i, fmt.Sprintf("chose future %d: %s", c.Slot, result))
			settled = future.dropped || future.landed
		}
	}
	for i, c := range op.Cases {
		if c.Channel != "" && !settled {
			key, sure, possible := j.head(c.Channel)
			if possible {
				allow(i, "chose message "+c.Channel+" "+key)
			}
			settled = sure
		}
	}
	for i, c := range op.Cases {
		if c.Timer > 0 && c.Timer < modelForever && !settled {
			allow(i, "chose the timer")
		}
	}
	if chosen < 0 {
		return fmt.Errorf("the run has seen %q, allowed are %q", got, allowed)
	}
	for i, c := range op.Cases {
		switch {
		case c.Slot > 0 && i == chosen:
			j.futures[c.Slot].landed = !j.futures[c.Slot].dropped
		case c.Slot > 0:
			j.futures[c.Slot].dropped = true
		case i == chosen && c.Channel != "":
			j.took(c.Channel)
		}
	}
	return nil
}

// modelRecord is a row of history.
type modelRecord struct {
	Position   int
	Kind, Name string
	OK         bool // the step succeeded
}

// checkUndone: what a run has done is undone if undone says so, the last first; if not, nothing is.
func checkUndone(p modelProgram, history []modelRecord, undone bool) error {
	acts := map[string]modelOp{}
	for round := range p.Rounds {
		if undone {
			maps.Copy(acts, p.acts(round)) // the names are different, and the run may have ended in any round
		}
	}
	var want, got []string
	for _, record := range history {
		switch op, known := acts[record.Name]; {
		case record.Kind == "compensation":
			got = append(got, record.Name)
		case record.Kind == "activity" && record.OK && known && op.Act.Undo:
			want = append(want, record.Name)
		}
	}
	slices.Reverse(want)
	if !slices.Equal(got, want) {
		return fmt.Errorf("undone are %q, want %q", got, want)
	}
	return nil
}
