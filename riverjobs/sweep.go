package riverjobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
)

// The job kinds, one a sweep.
const (
	KindResume          = "romancy_resume"           // runs that are runnable and owned by nobody
	KindTimers          = "romancy_timers"           // timers that are due and in no worker's memory
	KindChannelTimeouts = "romancy_channel_timeouts" // receives whose timeout has passed, and messages nobody fetched
	KindOutbox          = "romancy_outbox"           // outbox events nobody relayed
	KindRetention       = "romancy_retention"        // what is kept for a limited time only
)

// Queue is the River queue that holds the sweep jobs. Its name is fixed, so that every process of a cluster agrees.
const Queue = "romancy"

// Sweep is one periodic look into the database.
type Sweep struct {
	// Kind is the job kind, one of the Kind constants.
	Kind string

	// Interval is the time between two runs while Healthy reports false. Default: 1 s, for KindChannelTimeouts 5 s, for
	// KindRetention 1 min. Ticks come once a second, so a shorter interval means every tick.
	Interval time.Duration

	// HealthyInterval is the time between two runs while Healthy reports true. Default: Config.FallbackInterval, for
	// KindRetention its Interval: what it deletes is announced by nobody.
	HealthyInterval time.Duration

	// Run does the work and returns how many rows it found. Normally one worker of the cluster runs it at a time, but
	// it must allow for two. Its context ends after 30 seconds or with Stop. An error is logged and recorded in the job, which
	// is not retried: the next tick comes anyway.
	Run func(ctx context.Context) (int, error)

	// NextDue returns the earliest instant, by this process's clock, at which Run will find something; false if there is
	// none. Optional. It is called on the leader only, at most once an Interval: every HealthyInterval, and when a
	// deadline that it returned or that LowerDeadline announced has come, to see whether somebody has served it.
	NextDue func(ctx context.Context) (at time.Time, ok bool, err error)
}

const (
	// sweepTimeout bounds one sweep: they are batches of small statements, and the next tick continues.
	sweepTimeout = 30 * time.Second

	// A job is unique among the unfinished ones of its period only. Without the period the row of a worker that was
	// killed in the middle of a sweep would block its kind until River rescues it, an hour later by default.
	uniquePeriod = time.Minute

	// How often a worker that has no sweep of a kind hands the job back before it gives up.
	maxHandBacks   = 10
	handBackDelay  = 500 * time.Millisecond
	finishedKept   = time.Minute
	deleteBatch    = 1000
	deleteMaxBatch = 10
)

type sweepKind struct {
	name      string
	interval  time.Duration
	args      func(schema string) river.JobArgs
	addWorker func(workers *river.Workers, jobs *Jobs) error
}

// kinds are the sweeps there are, each a real worker with an argument type of its own.
var kinds = []sweepKind{
	newKind(KindResume, time.Second, func(a sweepArgs) ResumeArgs { return ResumeArgs{a} }),
	newKind(KindTimers, time.Second, func(a sweepArgs) TimersArgs { return TimersArgs{a} }),
	newKind(KindChannelTimeouts, 5*time.Second, func(a sweepArgs) ChannelTimeoutsArgs { return ChannelTimeoutsArgs{a} }),
	newKind(KindOutbox, time.Second, func(a sweepArgs) OutboxArgs { return OutboxArgs{a} }),
	newKind(KindRetention, time.Minute, func(a sweepArgs) RetentionArgs { return RetentionArgs{a} }),
}

func newKind[T targetedArgs](name string, interval time.Duration, args func(sweepArgs) T) sweepKind {
	return sweepKind{
		name: name, interval: interval,
		args: func(schema string) river.JobArgs { return args(sweepArgs{Schema: schema}) },
		addWorker: func(workers *river.Workers, jobs *Jobs) error {
			return river.AddWorkerSafely(workers, &sweepWorker[T]{jobs: jobs})
		},
	}
}

func kindByName(name string) (sweepKind, bool) {
	for _, kind := range kinds {
		if kind.name == name {
			return kind, true
		}
	}
	return sweepKind{}, false
}

func kindNames() []string {
	names := make([]string, len(kinds))
	for i, kind := range kinds {
		names[i] = kind.name
	}
	return names
}

// sweepArgs is what every sweep job carries. The schema makes jobs of two installations in one River distinct.
type sweepArgs struct {
	Schema string `json:"schema" river:"unique"`
}

func (a sweepArgs) target() string { return a.Schema }

// Hooks implements river.JobArgsWithHooks.
func (sweepArgs) Hooks() []rivertype.Hook {
	return []rivertype.Hook{river.HookInsertBeginFunc(scheduleBackwards)}
}

// scheduleBackwards makes a tick's job fetchable at once. River schedules it at the leader's own time, and a worker
// fetches what the database's clock has reached: a leader whose clock is a little ahead would delay every sweep.
func scheduleBackwards(_ context.Context, params *rivertype.JobInsertParams) error {
	at := time.Now().Add(-time.Minute)
	params.ScheduledAt = &at
	return nil
}

// ResumeArgs are the arguments of a KindResume job.
type ResumeArgs struct{ sweepArgs }

// Kind implements river.JobArgs.
func (ResumeArgs) Kind() string { return KindResume }

// TimersArgs are the arguments of a KindTimers job.
type TimersArgs struct{ sweepArgs }

// Kind implements river.JobArgs.
func (TimersArgs) Kind() string { return KindTimers }

// ChannelTimeoutsArgs are the arguments of a KindChannelTimeouts job.
type ChannelTimeoutsArgs struct{ sweepArgs }

// Kind implements river.JobArgs.
func (ChannelTimeoutsArgs) Kind() string { return KindChannelTimeouts }

// OutboxArgs are the arguments of a KindOutbox job.
type OutboxArgs struct{ sweepArgs }

// Kind implements river.JobArgs.
func (OutboxArgs) Kind() string { return KindOutbox }

// RetentionArgs are the arguments of a KindRetention job.
type RetentionArgs struct{ sweepArgs }

// Kind implements river.JobArgs.
func (RetentionArgs) Kind() string { return KindRetention }

type targetedArgs interface {
	river.JobArgs
	target() string
}

type sweepWorker[T targetedArgs] struct {
	river.WorkerDefaults[T]
	jobs *Jobs
}

func (*sweepWorker[T]) Timeout(*river.Job[T]) time.Duration { return sweepTimeout }

func (w *sweepWorker[T]) Work(ctx context.Context, job *river.Job[T]) error {
	return w.jobs.work(ctx, job.JobRow, job.Args.target())
}

// insertOpts are the options of every sweep job. A bad one would drop the host's jobs of that tick too, so they are
// constants, checked by a test against a real client.
func insertOpts() *river.InsertOpts {
	return &river.InsertOpts{
		MaxAttempts: 1, // the next tick is the retry
		Queue:       Queue,
		Tags:        []string{"romancy"},
		UniqueOpts: river.UniqueOpts{
			ByArgs:   true,
			ByPeriod: uniquePeriod,
			ByState: []rivertype.JobState{
				rivertype.JobStateAvailable, rivertype.JobStatePending, rivertype.JobStateRetryable,
				rivertype.JobStateRunning, rivertype.JobStateScheduled,
			},
		},
	}
}

// work runs one sweep job. Errors come back as a cancelled job: recorded and visible in River, but neither retried nor
// given to the host's error handler once a second. Whatever the database says, the next tick tries again: a sweep writes no
// value that could be refused for good.
func (j *Jobs) work(ctx context.Context, row *rivertype.JobRow, schema string) error {
	sweep, ok := j.sweeps[row.Kind]
	if !ok || schema != j.config.Schema || !j.enter() {
		return handBack(row)
	}
	defer j.leave()
	j.lastWork.Store(time.Now().UnixNano())

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(j.stopping, func() { cancel(errStopped) })()

	found, err := sweep.Run(ctx)
	if row.Kind == KindRetention && j.guest() {
		err = errors.Join(err, j.deleteFinished(ctx))
	}
	switch {
	case err == nil:
		j.outages[row.Kind].Succeeded(ctx)
		j.logger.DebugContext(ctx, "swept", slog.String("kind", row.Kind), slog.Int("found", found))
		return nil
	case errors.Is(context.Cause(ctx), errStopped):
		return river.JobCancel(errStopped)
	default:
		j.outages[row.Kind].Failed(ctx, err)
		return river.JobCancel(fmt.Errorf("sweep %s: %w", row.Kind, err))
	}
}

// handBack returns a job to the queue that another process of the cluster can work: this one has no such sweep, another
// schema, or is not running. It gives up after a few seconds, so that a kind that has died out leaves nothing circling.
func handBack(row *rivertype.JobRow) error {
	var metadata struct {
		Snoozes int `json:"snoozes"`
	}
	if err := json.Unmarshal(row.Metadata, &metadata); err != nil || metadata.Snoozes >= maxHandBacks {
		return river.JobCancel(errors.New("no running worker here has this sweep: the workers' own slow sweeps do its work"))
	}
	return river.JobSnooze(handBackDelay)
}

// deleteFinished removes our finished jobs from the host's River, which by default keeps them for a day: at a job a
// second that is 86,400 rows of each kind.
func (j *Jobs) deleteFinished(ctx context.Context) error {
	params := river.NewJobDeleteManyParams().
		First(deleteBatch).
		Kinds(kindNames()...).
		Queues(Queue).
		States(rivertype.JobStateCancelled, rivertype.JobStateCompleted, rivertype.JobStateDiscarded).
		Where("finalized_at operator(pg_catalog.<) (pg_catalog.now() operator(pg_catalog.-) pg_catalog.make_interval(secs => @kept::pg_catalog.float8))", river.NamedArgs{"kept": finishedKept.Seconds()})
	for range deleteMaxBatch {
		deleted, err := j.client.JobDeleteMany(ctx, params)
		if err != nil {
			return fmt.Errorf("delete finished sweep jobs: %w", err)
		}
		if len(deleted.Jobs) < deleteBatch {
			return nil
		}
	}
	return nil
}
