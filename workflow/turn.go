package workflow

import (
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"sync"
	"sync/atomic"
)

// ErrConcurrentUse is returned by a command of a workflow that is called while another of the same run is under way. The run is
// stuck then, with its history as it was: positions in history are given in the order of commands, which goroutines of their own
// change from one execution to the next. Begin activities that execute side by side with Activity.Go.
var ErrConcurrentUse = errors.New("two commands of one run at a time")

// command is one of those that a workflow issues.
type command uint32

const (
	noCommand command = iota
	commandExecute
	commandGo
	commandGet
	commandAll
	commandSelect
	commandSleep
	commandSideEffect
	commandReceive
	commandSubscribe
	commandUnsubscribe
	commandPublish
	commandSendTo
	commandWaitEvent
	commandSendEvent
	theEnd         // of the run: nothing is issued any more
	producingValue // the function of a SideEffect is called: it may get what is there
)

var commandNames = [...]string{
	"nothing", "Activity.Execute", "Activity.Go", "Future.Get", "All", "Select", "Sleep", "SideEffect", "Receive", "Subscribe",
	"Unsubscribe", "Publish", "SendTo", "WaitEvent", "SendEvent", "the end of the run", "the function of a SideEffect",
}

func (c command) String() string { return commandNames[c] }

// turn lets one command of a run through at a time. Its counter costs every command two atomic operations; which goroutine it is
// that calls is found out, from its stack, only when something is wrong or the run ends here.
type turn struct {
	current atomic.Uint32 // the command under way
	clash   atomic.Pointer[clash]
}

// clash is two commands at a time. The one that came first stops the run: it alone may touch what belongs to the run's goroutine.
type clash struct {
	err     error
	once    sync.Once
	settled chan struct{} // closed when it has
}

func (c *clash) settle() { c.once.Do(func() { close(c.settled) }) }

// departure is what exit panics with in a goroutine that is not the run's. It passes through the engine's code alone, see complete.
type departure struct{}

// errDeparted is returned by a command, in a goroutine that the workflow has begun itself, if the run cannot go on here.
var errDeparted = errors.New("the run is not executed here any more: return")

// enter begins a command, unless another is under way. What it returns belongs into complete.
func (r *run) enter(next command) (before command, err error) {
	if r == nil {
		return noCommand, errNoContext
	}
	if r.turn.current.CompareAndSwap(uint32(noCommand), uint32(next)) {
		return noCommand, nil
	}
	if (next == commandGet || next == commandAll) && r.turn.current.CompareAndSwap(uint32(producingValue), uint32(next)) {
		return producingValue, nil
	}
	return noCommand, r.collide(next)
}

// complete ends a command. It is deferred.
func (r *run) complete(before command, err *error) {
	value := recover()
	if value != nil {
		r.fallOut(value, err)
	}
	r.turn.current.Store(uint32(before))
	if r.turn.clash.Load() != nil && before == noCommand && r.turn.current.CompareAndSwap(uint32(noCommand), uint32(theEnd)) {
		r.stopForClash(err)
	}
}

// carryOut carries out a command.
func carryOut[T any](r *run, next command, do func() (T, error)) (result T, err error) {
	before, err := r.enter(next)
	if err != nil {
		return result, err
	}
	defer r.complete(before, &err)
	return do()
}

// carryOut carries out a command that returns no value.
func (r *run) carryOut(next command, do func() error) (err error) {
	before, err := r.enter(next)
	if err != nil {
		return err
	}
	defer r.complete(before, &err)
	return do()
}

// fallOut handles what a command has panicked with. What code of the workflow panics with is recovered where it is called; the
// rest may have left a position without its record, so history must not go on.
func (r *run) fallOut(value any, err *error) {
	defer r.turn.current.Store(uint32(noCommand))
	if _, departed := value.(departure); departed {
		*err = errDeparted
		return
	}
	panicked := newPanicError(" in a command of the workflow", value)
	r.stopBy(err, func() { r.stuck(panicked) })
}

// stopBy calls what ends the run here, which it does if this is its goroutine; another is told by err.
func (r *run) stopBy(err *error, end func()) {
	defer func() {
		if value := recover(); value != nil {
			if _, departed := value.(departure); !departed {
				panic(value)
			}
			*err = errDeparted
		}
	}()
	end()
}

// stopForClash stops the run because of the clash, if it has not been stopped already. The caller has the turn, and keeps it.
func (r *run) stopForClash(err *error) {
	met := r.turn.clash.Load()
	defer met.settle()
	if r.exiting {
		return
	}
	r.stopBy(err, func() { r.stuckInSilence(met.err) })
	*err = met.err
}

// stuckInSilence stops the run for good when what executes beside its goroutine has ended, and all that was done is recorded.
func (r *run) stuckInSilence(err error) {
	for r.air.executing() {
		r.idle(nil)
	}
	r.settle()
	r.stuck(err)
}

// yieldToClash ends a command that waits, or is about to do something, if another has been called meanwhile.
func (r *run) yieldToClash() {
	if met := r.turn.clash.Load(); met != nil {
		r.stuckInSilence(met.err)
	}
}

// collide is called instead of a command while another is under way.
func (r *run) collide(next command) error {
	current := command(r.turn.current.Load())
	if within := enclosing(); within != "" && onRunGoroutine() {
		r.stuckInSilence(fmt.Errorf("%s was called inside %s: history has no place for it; call it before or after, or do the work in an activity; "+
			"deploy code that does and retry the run", next, within))
	}
	met := &clash{settled: make(chan struct{}), err: fmt.Errorf("%w: %s was called while %s was under way: a workflow issues its commands one after the "+
		"other, in its own goroutine; use Activity.Go for activities that execute side by side; deploy code that does and retry the run",
		ErrConcurrentUse, next, current)}
	if r.turn.clash.CompareAndSwap(nil, met) {
		r.log().Error("workflow uses its run concurrently", "error", met.err)
	}
	met = r.turn.clash.Load()
	r.poke() // the command under way may wait
	err := met.err
	if r.turn.current.CompareAndSwap(uint32(noCommand), uint32(theEnd)) { // it has ended meanwhile, and has not seen it
		r.stopForClash(&err)
	}
	return err
}

// enterEnd begins the end of the run, for good. A command that is still under way, in a goroutine that the workflow has begun
// itself, is waited for: it stops the run.
func (r *run) enterEnd() {
	if !r.turn.current.CompareAndSwap(uint32(noCommand), uint32(theEnd)) {
		_ = r.collide(theEnd)
		select {
		case <-r.turn.clash.Load().settled:
		case <-r.lifetime().Done():
		}
		r.exit()
	}
	if r.exiting { // told in a goroutine that was not the run's
		r.exit()
	}
}

// enclosing says which function of the workflow's this goroutine is inside of, that must not issue commands; empty: none.
func enclosing() (function string) {
	walkStack(func(name string) bool {
		switch name {
		case bodyFunction:
			function = "an activity or a compensation"
		case produceFunction:
			function = "the function of a SideEffect"
		}
		return function == ""
	})
	return function
}

// onRunGoroutine reports whether this goroutine is that of a run: its stack begins with main.
func onRunGoroutine() bool {
	found := false
	walkStack(func(name string) bool {
		found = name == mainFunction
		return !found
	})
	return found
}

// What the stack calls functions of this package; mainFunction is what a run's goroutine begins with.
var (
	packagePath     = reflect.TypeFor[run]().PkgPath()
	mainFunction    = packagePath + ".(*run).main"
	bodyFunction    = packagePath + ".callBody"
	produceFunction = packagePath + ".(*run).produce"
)

// walkStack calls visit with the functions of this goroutine's stack, innermost first, until it returns false.
func walkStack(visit func(function string) bool) {
	var pcs [128]uintptr
	for skip := 2; ; skip += len(pcs) {
		n := runtime.Callers(skip, pcs[:])
		frames := runtime.CallersFrames(pcs[:n])
		for more := n > 0; more; {
			var frame runtime.Frame
			if frame, more = frames.Next(); !visit(frame.Function) {
				return
			}
		}
		if n < len(pcs) {
			return
		}
	}
}
