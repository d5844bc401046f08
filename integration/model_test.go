package integration_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// modelPrograms are executed at the same time in one check.
const modelPrograms = 12

// Generated workflows, of everything that a workflow can do, end as they would undisturbed, whatever happens to the engines that
// execute them: what they have seen is what they may see, what they did in transactions is there once, what they did otherwise at
// least once, and what was to be undone is undone, the last first. -rapid.seed repeats programs and faults.
func TestGeneratedWorkflowsEndAsIfUndisturbed(t *testing.T) {
	t.Parallel()
	repeatModel(pgtest.Soak(200, 5))
	w := newModelWorld(t)
	rapid.Check(t, func(rt *rapid.T) {
		w.checks++
		check := drawModelCheck(rt, fmt.Sprintf("m%04d", w.checks))
		if err := check.run(w); err != nil {
			w.t.Log(err) // a check that does not fail again is not printed by rapid
			w.clear()
			rt.Fatal(err)
		}
	})
}

// repeatModel sets how many checks there are, unless the command line does.
func repeatModel(checks int) {
	given := map[string]bool{}
	flag.Visit(func(f *flag.Flag) { given[f.Name] = true })
	for name, value := range map[string]string{"rapid.checks": fmt.Sprint(checks), "rapid.shrinktime": "0s", "rapid.nofailfile": "true"} {
		if !given[name] {
			if err := flag.Set(name, value); err != nil {
				panic(err) // rapid has these flags
			}
		}
	}
}

// modelCheck is programs that are executed together, by engines to which things happen.
type modelCheck struct {
	name     string
	engines  []modelEngineConfig
	programs []modelProgram
	faults   []modelFault
}

func drawModelCheck(t *rapid.T, name string) modelCheck {
	c := modelCheck{name: name}
	drawEngine := func() modelEngineConfig {
		return modelEngineConfig{
			Notify:     rapid.IntRange(0, 3).Draw(t, "notify") > 0,
			Cache:      rapid.SampledFrom([]int{0, 0, 1, 3}).Draw(t, "cache"),
			Concurrent: rapid.SampledFrom([]int{0, 0, 2}).Draw(t, "concurrent"),
		}
	}
	for range rapid.IntRange(1, 3).Draw(t, "engines") {
		c.engines = append(c.engines, drawEngine())
	}
	for i := range modelPrograms {
		c.programs = append(c.programs, drawProgram(t, fmt.Sprintf("%s-program-%d", name, i)))
	}
	kinds := []string{faultKill, faultBury, faultBury, faultExpire, faultExpire, faultSever, faultSever, faultFreeze, faultRestart, faultInject, faultInject, faultInject}
	for range rapid.IntRange(0, 6).Draw(t, "faults") {
		c.faults = append(c.faults, modelFault{
			Kind: rapid.SampledFrom(kinds).Draw(t, "fault"), Slot: rapid.IntRange(0, len(c.engines)-1).Draw(t, "victim"),
			Pause: time.Duration(rapid.IntRange(5, 200).Draw(t, "pause")) * time.Millisecond, Then: drawEngine(),
			Inject: drawInjection(t),
		})
	}
	return c
}

// drawInjection draws what a statement of an engine suffers, which may not come again in the check.
func drawInjection(t *rapid.T) pgtest.Fault {
	fault := pgtest.Fault{
		Statement: rapid.SampledFrom(modelStatements).Draw(t, "statement"), Kind: rapid.SampledFrom(pgtest.FaultKinds()).Draw(t, "kind"),
		Nth: rapid.IntRange(1, 10).Draw(t, "nth"), Times: rapid.IntRange(1, 3).Draw(t, "times"),
	}
	switch fault.Kind {
	case pgtest.FaultRefuse:
		fault.Code = rapid.SampledFrom([]string{"53100", "42501", "55P03", "57014", "40001", "40P01", "XX000"}).Draw(t, "code")
	case pgtest.FaultDelay:
		fault.For = time.Duration(rapid.IntRange(10, 1500).Draw(t, "delay")) * time.Millisecond // the lease is one second
	case pgtest.FaultReadOnly:
		fault.For = time.Duration(rapid.IntRange(10, 500).Draw(t, "read-only")) * time.Millisecond
	default: // they need nothing more
	}
	return fault
}

// modelStatements are those that programs depend on.
var modelStatements = []string{
	"AppendRecord", "AppendHistory", "WaitRun", "WaitRuns", "WakeRun", "WakeRuns", "TakeMore", "LookForMail", "ClaimReady", "ClaimReadyFrom", "ClaimWaiting",
	"LoadHistory", "LoadAttempts", "FailRuns", "FinishRun", "FinishRuns", "ContinueRuns", "RetrySteps", "DeliverDirect", "DeliverMessages",
	"SubscribeRuns", "LockChannels", "LetGo", "ReleaseRuns", "Heartbeat", "RegisterWorker", "TakeOver", "SweepMail", "SweepDeadlines", "GuardSession",
	"Send", "begin", "commit",
}

// modelEnd is how a program ended.
type modelEnd struct {
	trace  []string
	status workflow.Status
	err    error // anything else than an end it may have
}

const modelCollectors = 3

func (c modelCheck) collector(i int) string { return fmt.Sprintf("%s-collector-%d", c.name, i) }
func (c modelCheck) box() string            { return "box-" + c.name }
func (c modelCheck) keeper() string         { return c.name + "-keeper" }

func (c modelCheck) run(w *modelWorld) (err error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), modelPatience)
	defer cancel()
	fleet := &modelFleet{w: w, ctx: ctx, name: c.name}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s with engines %+v and faults %+v: %w\n%s", c.name, c.engines, c.faults, err, w.leftOver(c.name))
		}
	}()
	defer func() { err = errors.Join(err, fleet.disband()) }()
	for _, config := range c.engines {
		e, err := fleet.start(config)
		if err != nil {
			return err
		}
		fleet.engines = append(fleet.engines, e)
	}
	if err := c.prepare(ctx, w); err != nil {
		return err
	}
	ends := make([]modelEnd, len(c.programs))
	var busy sync.WaitGroup
	for i, p := range c.programs {
		busy.Go(func() { ends[i] = c.live(ctx, w, p) })
	}
	var broken error
	for _, fault := range c.faults {
		broken = errors.Join(broken, fleet.suffer(fault))
	}
	busy.Wait()
	if broken != nil {
		return broken
	}
	var errs []error
	for i, p := range c.programs {
		if err := w.judge(ctx, p, ends[i]); err != nil {
			program, encoding := json.Marshal(p) //nolint:musttag // only to be read by people
			errs = append(errs, encoding)
			errs = append(errs, fmt.Errorf("%s: %w\nprogram %s\nit saw\n\t%s\n%s", p.ID, err, program, strings.Join(ends[i].trace, "\n\t"), w.history(p.ID)))
		}
	}
	if errs != nil {
		return errors.Join(errs...)
	}
	return c.collected(ctx, w, ends)
}

// prepare starts those who collect reports, and waits until the mode of the kept channel is taken.
func (c modelCheck) prepare(ctx context.Context, w *modelWorld) error {
	e := w.client.engine
	for i := range modelCollectors {
		if _, err := w.collector.Start(ctx, e, modelCollector{Box: c.box()}, workflow.WithID(c.collector(i))); err != nil {
			return err
		}
	}
	if _, err := w.keeper.Start(ctx, e, c.keeper(), workflow.WithID(c.keeper())); err != nil {
		return err
	}
	return w.until(ctx, "the channel is kept", "select exists (select 1 from romancy.subscriptions where channel = $1::text)", c.keeper())
}

// live starts a program's run and does to it from outside what is to be done.
func (c modelCheck) live(ctx context.Context, w *modelWorld, p modelProgram) modelEnd {
	e := w.client.engine
	run, err := w.flow.Start(ctx, e, modelInput{Program: p, Collector: c.collector(0), Box: c.box(), Kept: c.keeper()}, workflow.WithID(p.ID))
	if err != nil {
		return modelEnd{err: err}
	}
	var outside sync.WaitGroup
	var errs [2]error
	outside.Go(func() {
		for i, pause := range p.Outside {
			time.Sleep(pause)
			if err := e.SendTo(ctx, p.ID, channelOutside, crashMessage{Key: fmt.Sprintf("outside#%d", i)}); err != nil && !errors.Is(err, workflow.ErrUndeliverable) {
				errs[0] = err
			}
		}
	})
	if p.Cancel > 0 {
		outside.Go(func() {
			time.Sleep(p.Cancel)
			var options []workflow.CancelOption
			if p.Compensate {
				options = append(options, workflow.Compensate())
			}
			if err := e.Cancel(ctx, p.ID, "changed my mind", options...); err != nil && !errors.Is(err, workflow.ErrEnded) {
				errs[1] = err
			}
		})
	}
	trace, err := run.Result(ctx)
	outside.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		return modelEnd{err: err}
	}
	failed := new(workflow.RunError)
	switch {
	case err == nil:
		return modelEnd{trace: trace, status: workflow.StatusCompleted}
	case errors.As(err, &failed) && failed.Type == "failed" && failed.Status == workflow.StatusFailed && failed.CompensationErrors == nil:
		return modelEnd{status: workflow.StatusFailed, err: json.Unmarshal(failed.Details, &trace), trace: trace}
	case errors.Is(err, workflow.ErrCancelled) && failed.CompensationErrors == nil:
		return modelEnd{status: workflow.StatusCancelled}
	default:
		return modelEnd{err: err}
	}
}

// judge compares how a program ended, what is recorded of it and what it did.
func (w *modelWorld) judge(ctx context.Context, p modelProgram, end modelEnd) error {
	allowed := workflow.StatusCompleted
	if p.Fails {
		allowed = workflow.StatusFailed
	}
	switch {
	case end.err != nil:
		return fmt.Errorf("it ended with %w", end.err)
	case end.status != allowed && (end.status != workflow.StatusCancelled || p.Cancel == 0):
		return fmt.Errorf("it is %s, want it %s", end.status, allowed)
	}
	var wants map[string]*modelWant
	if end.status != workflow.StatusCancelled {
		var err error
		if wants, err = judge(p, end.trace); err != nil {
			return err
		}
	}
	return w.checkDone(ctx, p, end.status, wants)
}

// collected checks that every report was heard once, and that nothing is left of the check's runs.
func (c modelCheck) collected(ctx context.Context, w *modelWorld, ends []modelEnd) error {
	reports, cancelled := 0, false
	for i, p := range c.programs {
		reports += len(p.reports())
		cancelled = cancelled || ends[i].status == workflow.StatusCancelled
	}
	if !cancelled { // else nobody knows how many there are
		if err := w.until(ctx, "all reports are heard", "select count(*) >= $2::integer from model.heard where key like $1::text || '-program-%'", c.name, reports); err != nil {
			return err
		}
	}
	if err := w.until(ctx, "no report is left", "select not exists (select 1 from romancy.mailbox where channel = any ($1::text[]))", []string{c.box()}); err != nil {
		return err
	}
	return c.dismiss(ctx, w)
}

func (c modelCheck) dismiss(ctx context.Context, w *modelWorld) error {
	e := w.client.engine
	if err := e.SendTo(ctx, c.keeper(), "stop", crashMessage{Key: "enough"}); err != nil {
		return err
	}
	if said, err := w.keeper.Run(e, c.keeper()).Result(ctx); err != nil || said != "enough" {
		return fmt.Errorf("the keeper ended with %q, %w", said, err)
	}
	heard := 0
	for i := range modelCollectors {
		if err := e.SendTo(ctx, c.collector(i), "stop", crashMessage{}); err != nil {
			return err
		}
		one, err := w.collector.Run(e, c.collector(i)).Result(ctx)
		if err != nil {
			return fmt.Errorf("collector %d: %w", i, err)
		}
		heard += one
	}
	return w.checkHeard(ctx, c, heard)
}
