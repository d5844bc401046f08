package riverjobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"

	"github.com/romancy-go/romancy/internal/outage"
)

// ErrStopped is returned by Start after Stop.
var ErrStopped = errors.New("riverjobs: stopped; make a new one")

var errStopped = errors.New("sweep stopped by shutdown")

// Jobs are the sweeps of one process in one River client.
type Jobs struct {
	config   Config
	client   *river.Client[pgx.Tx]
	logger   *slog.Logger
	sweeps   map[string]*Sweep
	lookouts map[string]*lookout         // by kind, of the sweeps with a NextDue
	outages  map[string]*outage.Reporter // by kind
	floods   *floods                     // of an own client's lines

	lastTick atomic.Int64 // when River last called a constructor here, Unix nanoseconds
	lastWork atomic.Int64 // when a sweep last ran here

	stopping   context.Context // ends when running sweeps must
	cancelWork context.CancelFunc

	mu      sync.Mutex
	state   state
	working int
	idle    chan struct{} // closed once nothing works any more after Stop

	turn       chan struct{} // capacity 1, held by Start and Stop, guards what follows
	background sync.WaitGroup
	stopLoops  context.CancelFunc
	handles    []rivertype.PeriodicJobHandle
	ownsQueue  bool
}

type state int

const (
	stateNew state = iota
	stateRunning
	stateStopping
	stateStopped
)

// New checks config, reporting all mistakes at once, and prepares the jobs: it makes the own client, or adds our workers
// to the host's bundle (a bundle takes them once, and River offers no way to take them out). It does not touch the
// database and starts nothing.
func New(config Config) (*Jobs, error) {
	config = config.withDefaults()
	if err := config.validate(); err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(config.Sweeps, func(s Sweep) bool { return s.Kind == KindRetention }) {
		// Always there: it clears away our own jobs in a host's River, and its traces show that a leader ticks.
		config.Sweeps = append(config.Sweeps, Sweep{
			Kind: KindRetention, Interval: time.Minute, HealthyInterval: time.Minute,
			Run: func(context.Context) (int, error) { return 0, nil },
		})
	}
	j := &Jobs{
		config:   config,
		client:   config.Client,
		logger:   config.Logger,
		sweeps:   map[string]*Sweep{},
		lookouts: map[string]*lookout{},
		outages:  map[string]*outage.Reporter{},
		floods:   newFloods(config.Logger),
		idle:     make(chan struct{}),
		turn:     make(chan struct{}, 1),
	}
	j.stopping, j.cancelWork = context.WithCancel(context.Background())
	for i := range config.Sweeps {
		sweep := &config.Sweeps[i]
		j.sweeps[sweep.Kind] = sweep
		j.outages[sweep.Kind] = outage.New(config.Logger.With(slog.String("kind", sweep.Kind)),
			"sweep failed, the next tick tries again", "sweeps succeed again")
		if sweep.NextDue != nil {
			j.lookouts[sweep.Kind] = newLookout(lookoutConfig{
				next: sweep.NextDue, clock: config.Clock, leading: j.Leading, healthy: config.Healthy,
				spacing: max(sweep.Interval, tickInterval), every: sweep.HealthyInterval, logger: config.Logger,
			})
		}
	}
	var err error
	if j.guest() {
		err = j.joinHost()
	} else {
		err = j.makeClient()
	}
	if err != nil {
		return nil, err
	}
	return j, nil
}

func (j *Jobs) guest() bool { return j.config.Client != nil }

// joinHost adds a worker for every kind, also for those that only other processes sweep: a job without a worker would be
// discarded, one with a worker is handed back.
func (j *Jobs) joinHost() error {
	for _, kind := range kinds {
		if err := kind.addWorker(j.config.Workers, j); err != nil {
			return fmt.Errorf("riverjobs: Workers: %w: a bundle can have one App or Jobs, so give each its own River client", err)
		}
	}
	// An insert with an impossible priority is refused before anything is sent, but after the look for a worker.
	_, err := j.client.InsertTx(context.Background(), nil, kinds[0].args(j.config.Schema), &river.InsertOpts{Priority: -1})
	if unknown := (*river.UnknownJobKindError)(nil); errors.As(err, &unknown) {
		return errors.New("riverjobs: Workers is not the bundle that Client was made with: give the one in its river.Config")
	}
	return nil
}

func (j *Jobs) makeClient() error {
	workers := river.NewWorkers()
	for _, kind := range kinds {
		if j.sweeps[kind.name] == nil {
			continue
		}
		if err := kind.addWorker(workers, j); err != nil {
			return fmt.Errorf("riverjobs: %w", err)
		}
	}
	config := &river.Config{
		// Sweeps leave a row each; what went wrong stays a little longer to be looked at.
		CompletedJobRetentionPeriod: finishedKept,
		CancelledJobRetentionPeriod: 10 * time.Minute,
		DiscardedJobRetentionPeriod: 10 * time.Minute,
		FetchOnlyKnownKinds:         true, // other processes of this schema may have other sweeps
		JobTimeout:                  sweepTimeout,
		Logger:                      slog.New(quiet{j.logger.Handler(), j.floods}),
		PollOnly:                    j.config.PollOnly,
		Queues:                      map[string]river.QueueConfig{Queue: {MaxWorkers: maxWorkers}},
		RescueStuckJobsAfter:        2 * sweepTimeout,
		Schema:                      j.config.Schema,
		Workers:                     workers,
	}
	if j.config.PollOnly {
		config.FetchPollInterval = 500 * time.Millisecond
	}
	client, err := river.NewClient(wary{riverpgxv5.New(j.config.Pool)}, config)
	if err != nil {
		return fmt.Errorf("riverjobs: make the River client: %w", err)
	}
	j.client = client
	return nil
}

// Start begins to tick. An own client is started, after a check that its tables exist; in a host's client our queue and
// periodic jobs are added. It returns an error if the client can only insert, ErrStopped after Stop, and nil if already
// started. After an error nothing runs and Start may be tried again. ctx bounds the start only.
func (j *Jobs) Start(ctx context.Context) error {
	release, err := j.takeTurn(ctx)
	if err != nil {
		return fmt.Errorf("riverjobs: start: %w", err)
	}
	defer release()
	switch j.currentState() {
	case stateNew:
	case stateRunning:
		return nil
	case stateStopping, stateStopped:
		return ErrStopped
	}
	if !j.guest() {
		if err := checkMigrated(ctx, j.config.Pool, j.config.Schema); err != nil {
			return err
		}
	}
	if err := j.addToClient(); err != nil {
		return err
	}
	if !j.guest() {
		// River ends with the context it is started with.
		if err := j.client.Start(context.WithoutCancel(ctx)); err != nil {
			j.removePeriodic()
			return fmt.Errorf("riverjobs: start the River client: %w", err)
		}
	}
	j.mu.Lock()
	j.state = stateRunning
	j.mu.Unlock()
	loops, cancel := context.WithCancel(context.WithoutCancel(ctx))
	j.stopLoops = cancel
	for _, lookout := range j.lookouts {
		j.background.Go(func() { lookout.run(loops) })
	}
	j.background.Go(func() { j.watch(loops, watchInterval) })
	return nil
}

func (j *Jobs) addToClient() error {
	if j.guest() && !j.ownsQueue {
		err := j.client.Queues().Add(Queue, river.QueueConfig{MaxWorkers: maxWorkers})
		switch {
		case errors.Is(err, &river.QueueAlreadyAddedError{}): // the host's own choice of workers
		case err != nil:
			return fmt.Errorf("riverjobs: add queue %q to Client: %w; a client that only inserts cannot sweep: give one with Queues and Workers, or none for an own client", Queue, err)
		default:
			j.ownsQueue = true
		}
	}
	bundle := periodicJobs(j.client)
	if bundle == nil {
		j.logger.Warn("this River client takes no part in leader election, so it never ticks: another client of the cluster must, or sweeps run only in each worker, every fallback interval")
		return nil
	}
	var periodic []*river.PeriodicJob
	for _, kind := range kinds {
		if sweep := j.sweeps[kind.name]; sweep != nil {
			periodic = append(periodic, river.NewPeriodicJob(river.PeriodicInterval(tickInterval), j.constructor(kind, sweep), nil))
		}
	}
	handles, err := bundle.AddManySafely(periodic)
	if err != nil {
		return fmt.Errorf("riverjobs: add periodic jobs: %w", err)
	}
	j.handles = handles
	return nil
}

// periodicJobs returns nil for a client with LeaderElectionDisabled, where River panics.
func periodicJobs(client *river.Client[pgx.Tx]) (bundle *river.PeriodicJobBundle) {
	defer func() { _ = recover() }()
	return client.PeriodicJobs()
}

func (j *Jobs) removePeriodic() {
	if bundle := periodicJobs(j.client); bundle != nil {
		bundle.RemoveMany(j.handles)
	}
	j.handles = nil
}

// LowerDeadline takes note that something falls due at the given instant of the database's clock, for the sweeps that
// have a NextDue. If nobody has served it when it has passed, the next tick sweeps. It never blocks, and does nothing
// before Start, after Stop or on nil. An instant more than 292 years away counts as one that far.
func (j *Jobs) LowerDeadline(at time.Time) {
	if j == nil {
		return
	}
	for _, lookout := range j.lookouts {
		lookout.announce(at)
	}
}

// Recheck asks for NextDue soon: deadlines may have been announced unheard. It never blocks and does nothing on nil.
func (j *Jobs) Recheck() {
	if j == nil {
		return
	}
	for _, lookout := range j.lookouts {
		lookout.lookAgain()
	}
}

// Leading reports whether River's leader is the client in this process: whether it ticks here.
func (j *Jobs) Leading() bool {
	return j != nil && time.Since(time.Unix(0, j.lastTick.Load())) < termGap
}

func (j *Jobs) currentState() state {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.state
}

func (j *Jobs) enter() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.state != stateRunning {
		return false
	}
	j.working++
	return true
}

func (j *Jobs) leave() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.working--
	if j.working == 0 && j.state != stateRunning {
		close(j.idle)
	}
}
