package integration_test

import (
	"fmt"
	"slices"
	"time"

	"pgregory.net/rapid"
)

// modelOp is one command of a generated program. Which fields matter follows from Kind.
type modelOp struct {
	Kind     string
	Act      modelAct      `json:",omitzero"` // do, go
	Slot     int           `json:",omitzero"` // go, await: the future
	Slots    []int         `json:",omitempty"`
	Channel  string        `json:",omitzero"`
	Key      string        `json:",omitzero"` // what is sent
	Count    int           `json:",omitzero"` // messages sent, or received at most
	Duration time.Duration `json:",omitzero"` // of a sleep or timeout; 0: none
	Cases    []modelCase   `json:",omitempty"`
}

const (
	opDo          = "do"
	opGo          = "go"
	opAwait       = "await"
	opAll         = "all"
	opSleep       = "sleep"
	opSleepPast   = "sleep until the past"
	opSideEffect  = "side effect"
	opNow         = "now"
	opNewID       = "new id"
	opSend        = "send" // to itself
	opSubscribe   = "subscribe"
	opUnsubscribe = "unsubscribe"
	opPublish     = "publish"          // to its own channel of news
	opReport      = "report"           // publish to whoever collects
	opReportTo    = "report to"        // send to the first who collects
	opReceive     = "receive"          // one message
	opReceiveMany = "receive many"     // at most Count
	opSelect      = "select"           // the first of Cases
	opLost        = "send to nobody"   // a run that does not exist
	opConflict    = "conflicting mode" // of the channel that is collected
)

// modelAct is an activity.
type modelAct struct {
	Name       string
	Tx         bool
	Fails      int           // attempts that fail after they had their effect
	Dooms      int           // attempts after which it fails for good; 0: it succeeds in the end
	Terminal   bool          // it fails for good although more attempts are allowed
	Undo       bool          // it has a compensation
	UndoFails  int           // attempts of that which fail
	Takes      time.Duration // unless its context ends
	HasTimeout bool          // far away
}

// modelCase is a case of a select: a future, a channel or a timer.
type modelCase struct {
	Slot    int           `json:",omitzero"` // from 1; 0: not a future
	Channel string        `json:",omitzero"`
	Timer   time.Duration `json:",omitzero"`
}

// modelProgram is a workflow as data, and what is done to its run from outside.
type modelProgram struct {
	ID     string
	Rounds [][]modelOp // each continues as the next
	Fails  bool        // after the last round
	// Outside are the pauses before each message that comes from outside, on channel "outside".
	Outside []time.Duration
	// Cancel is when it is cancelled; 0: never.
	Cancel     time.Duration
	Compensate bool
}

func (p modelProgram) news() string { return "news-" + p.ID }

const (
	channelOutside = "outside"
	channelSilent  = "silent" // nobody ever sends here
	modelForever   = time.Hour
)

// modelWriter draws a program. It knows the least that the run is sure to find, so that it never waits for what may not come.
type modelWriter struct {
	t          *rapid.T
	p          modelProgram
	ops        []modelOp
	round      int
	names      int
	sure       map[string]int // messages that are or will be there, and that nothing drawn before can have taken
	slots      []int          // futures of this round
	slot       int
	subscribed bool
}

func drawProgram(t *rapid.T, id string) modelProgram {
	w := &modelWriter{t: t, p: modelProgram{ID: id}, sure: map[string]int{}}
	for range w.upTo(3, "outside") {
		w.p.Outside = append(w.p.Outside, w.millis(0, 150, "pause"))
	}
	w.sure[channelOutside] = len(w.p.Outside)
	rounds := rapid.SampledFrom([]int{1, 1, 1, 2, 3}).Draw(t, "rounds")
	for w.round = range rounds {
		w.ops, w.slots, w.subscribed = nil, nil, false
		w.sure[w.p.news()] = 0
		for range w.between(2, 8, "ops") {
			w.draw()
		}
		w.p.Rounds = append(w.p.Rounds, w.ops)
	}
	w.p.Fails = w.chance(3, "fails")
	if w.chance(5, "cancelled") {
		w.p.Cancel = w.millis(1, 200, "cancel")
		w.p.Compensate = w.chance(2, "compensate")
	}
	return w.p
}

func (w *modelWriter) between(least, most int, label string) int {
	return rapid.IntRange(least, most).Draw(w.t, label)
}

func (w *modelWriter) upTo(most int, label string) int { return w.between(0, most, label) }

// chance is true once in n.
func (w *modelWriter) chance(n int, label string) bool { return w.between(1, n, label) == n }

func (w *modelWriter) millis(least, most int, label string) time.Duration {
	return time.Duration(w.between(least, most, label)) * time.Millisecond
}

func (w *modelWriter) name(prefix string) string {
	w.names++
	return fmt.Sprintf("%s%d", prefix, w.names)
}

func (w *modelWriter) emit(op modelOp) { w.ops = append(w.ops, op) }

func (w *modelWriter) act() modelAct {
	act := modelAct{
		Name: w.name("act"), Tx: rapid.Bool().Draw(w.t, "tx"), Undo: w.chance(2, "undo"),
		Takes: time.Duration(rapid.SampledFrom([]int{0, 0, 2, 10, 40}).Draw(w.t, "takes")) * time.Millisecond, HasTimeout: w.chance(4, "timeout"),
	}
	switch w.between(1, 5, "fate") {
	case 1:
		act.Fails = w.between(1, 3, "fails")
	case 2:
		act.Dooms = w.between(1, 3, "dooms")
		act.Terminal = rapid.Bool().Draw(w.t, "terminal")
	}
	if act.Undo && w.chance(3, "undo fails") {
		act.UndoFails = w.between(1, 2, "undo failures")
	}
	return act
}

// draw adds an op, or two that belong together.
func (w *modelWriter) draw() {
	kinds := []string{
		opDo, opDo, opDo, opGo, opGo, opGo, opAwait, opAwait, opAll, opSleep, opSleep, opSleepPast, opSideEffect, opNow, opNewID,
		opSend, opSend, opSubscribe, opPublish, opReport, opReport, opReportTo, opReceive, opReceive, opReceiveMany, opSelect, opSelect, opSelect,
		opLost, opConflict,
	}
	switch kind := rapid.SampledFrom(kinds).Draw(w.t, "op"); kind {
	case opDo:
		w.emit(modelOp{Kind: opDo, Act: w.act()})
	case opGo:
		w.begin()
	case opAwait:
		if len(w.slots) > 0 {
			w.emit(modelOp{Kind: opAwait, Slot: rapid.SampledFrom(w.slots).Draw(w.t, "slot")})
		}
	case opAll:
		if len(w.slots) > 0 {
			w.emit(modelOp{Kind: opAll, Slots: w.someSlots(1)})
		}
	case opSleep:
		w.emit(modelOp{Kind: opSleep, Duration: w.millis(1, 40, "sleep")})
	case opSend:
		op := modelOp{Kind: opSend, Channel: w.ownChannel(), Key: w.name("msg"), Count: w.between(1, 3, "messages")}
		w.sure[op.Channel] += op.Count
		w.emit(op)
	case opSubscribe:
		if w.subscribed = !w.subscribed; !w.subscribed {
			kind = opUnsubscribe
		}
		w.emit(modelOp{Kind: kind, Channel: w.p.news()})
	case opPublish:
		op := modelOp{Kind: opPublish, Channel: w.p.news(), Key: w.name("news"), Count: 1}
		if !w.subscribed {
			w.subscribed = true
			w.emit(modelOp{Kind: opSubscribe, Channel: op.Channel})
		}
		w.sure[op.Channel]++
		w.emit(op)
	case opReport, opReportTo:
		w.emit(modelOp{Kind: kind, Key: w.name("report")})
	case opReceive:
		w.receive()
	case opReceiveMany:
		if sure := w.sureChannels(); len(sure) > 0 {
			op := modelOp{Kind: kind, Channel: rapid.SampledFrom(sure).Draw(w.t, "from"), Count: w.between(1, 4, "limit")}
			w.take(op.Channel, op.Count)
			w.emit(op)
		}
	case opSelect:
		w.choose()
	default:
		w.emit(modelOp{Kind: kind})
	}
}

func (w *modelWriter) begin() {
	w.slot++
	w.slots = append(w.slots, w.slot)
	w.emit(modelOp{Kind: opGo, Slot: w.slot, Act: w.act()})
}

func (w *modelWriter) ownChannel() string {
	return rapid.SampledFrom([]string{"mail-a", "mail-b"}).Draw(w.t, "channel")
}

func (w *modelWriter) someSlots(least int) []int {
	return rapid.SliceOfNDistinct(rapid.SampledFrom(w.slots), min(least, len(w.slots)), min(3, len(w.slots)), rapid.ID[int]).Draw(w.t, "slots")
}

func (w *modelWriter) sureChannels() []string {
	var sure []string
	for _, channel := range []string{"mail-a", "mail-b", w.p.news(), channelOutside} {
		if w.sure[channel] > 0 {
			sure = append(sure, channel)
		}
	}
	return sure
}

// take notes that so many messages may be gone.
func (w *modelWriter) take(channel string, most int) {
	w.sure[channel] = max(0, w.sure[channel]-most)
}

func (w *modelWriter) receive() {
	if sure := w.sureChannels(); len(sure) > 0 && !w.chance(4, "perhaps") {
		op := modelOp{Kind: opReceive, Channel: rapid.SampledFrom(sure).Draw(w.t, "from")}
		if w.chance(3, "patient") {
			op.Duration = modelForever
		}
		w.take(op.Channel, 1)
		w.emit(op)
		return
	}
	channels := []string{channelSilent, channelOutside, "mail-a", "mail-b"}
	op := modelOp{Kind: opReceive, Channel: rapid.SampledFrom(channels).Draw(w.t, "from"), Duration: w.millis(1, 40, "timeout")}
	w.take(op.Channel, 1)
	w.emit(op)
}

// choose adds a select of which at least one case will be chosen.
func (w *modelWriter) choose() {
	if w.chance(2, "begin") {
		w.begin()
	}
	op := modelOp{Kind: opSelect}
	certain := false
	if len(w.slots) > 0 {
		for _, slot := range w.someSlots(0) {
			op.Cases = append(op.Cases, modelCase{Slot: slot})
			certain = true // it ends in one way or the other
		}
	}
	channels := []string{"mail-a", "mail-b", w.p.news(), channelOutside, channelSilent}
	for _, channel := range rapid.SliceOfNDistinct(rapid.SampledFrom(channels), 0, 3, rapid.ID[string]).Draw(w.t, "channels") {
		op.Cases = append(op.Cases, modelCase{Channel: channel})
		certain = certain || w.sure[channel] > 0
	}
	for _, c := range op.Cases {
		if c.Channel != "" {
			w.take(c.Channel, 1)
		}
	}
	if !certain || w.chance(2, "timer") {
		timer := w.millis(1, 40, "timer")
		if certain && w.chance(2, "far") {
			timer = modelForever
		}
		op.Cases = append(op.Cases, modelCase{Timer: timer})
	}
	op.Cases = rapid.Permutation(op.Cases).Draw(w.t, "order")
	w.emit(op)
}

// acts are the activities of a round, by name.
func (p modelProgram) acts(round int) map[string]modelOp {
	acts := map[string]modelOp{}
	for _, op := range p.Rounds[round] {
		if op.Kind == opDo || op.Kind == opGo {
			acts[op.Act.Name] = op
		}
	}
	return acts
}

// reports are the keys that the program tells those who collect.
func (p modelProgram) reports() []string {
	var keys []string
	for _, op := range slices.Concat(p.Rounds...) {
		if op.Kind == opReport || op.Kind == opReportTo {
			keys = append(keys, p.ID+"/"+op.Key)
		}
	}
	return keys
}
