package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy"
	"github.com/romancy-go/romancy/bus"
)

// A storm is what another role of the same database can do to a worker: it may connect and is granted nothing, and notifies whatever it
// likes on every channel that the worker listens to. Meanwhile ordinary runs are started and awaited.
const (
	stormNotifications = 1_000_000 // on each channel
	stormQuickly       = 50        // so many times fewer when quick
	stormParked        = 2000      // runs that wait for messages
	stormBatch         = 1000      // notifications a transaction
	stormSenders       = 2         // connections that forge
	stormRole          = "bench_storm"
	stormPatience      = 15 * time.Minute // for the worker to have heard all of it
)

func runStorm(ctx context.Context, b *bench) (err error) {
	each := stormNotifications
	if b.quick {
		each /= stormQuickly
	}
	s, err := openStorm(ctx, b)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close(ctx)) }()
	b.progressf("storm: parks %d runs", stormParked)
	ids, err := call[[]string](ctx, s.worker, "park", stormParked)
	if err != nil {
		return err
	}
	calm, err := s.measure(ctx, func() error { return pass(ctx, b.span(25*time.Second)) })
	if err != nil {
		return err
	}
	channels := stormChannels()
	b.progressf("storm: sends as many notifications, %d on each of %d channels, to nobody", each, len(channels))
	elsewhere, err := s.measure(ctx, func() error { return s.forge(ctx, nobodysChannels(channels), ids, each) })
	if err != nil {
		return err
	}
	b.progressf("storm: forges %d notifications on each of %d channels", each, len(channels))
	begun := time.Now()
	storm, err := s.measure(ctx, func() error { return s.forge(ctx, channels, ids, each) })
	if err != nil {
		return err
	}
	took := time.Since(begun)
	changed, err := s.changed(ctx, b)
	if err != nil {
		return err
	}
	b.reportStorm(calm, elsewhere, storm, float64(each*len(channels))/took.Seconds(), changed)
	return s.worker.stop(ctx)
}

func (b *bench) reportStorm(calm, elsewhere, storm stormAnswer, perSecond float64, changed int) {
	const mib = 1 << 20
	b.report("storm_notifications", perSecond, "/s", "forged and heard, on all channels together")
	b.report("storm_heap_in_use", float64(storm.Heap)/mib, "MiB", fmt.Sprintf("most heap in use meanwhile, %d runs parked (goal: at most 100)", stormParked))
	b.report("storm_heap_before", float64(calm.Heap)/mib, "MiB", "the same before the storm")
	b.report("storm_ordinary_runs", float64(len(storm.Took)), "runs", "ordinary runs of five steps meanwhile")
	b.report("storm_ordinary_p50", percentile(storm.Took, 0.50), "ms", "half of them took at most")
	b.report("storm_ordinary_p99", percentile(storm.Took, 0.99), "ms", "99 of 100 of them took at most (goal: 250)")
	b.report("storm_ordinary_p99_before", percentile(calm.Took, 0.99), "ms", "the same before the storm")
	b.report("storm_ordinary_p99_elsewhere", percentile(elsewhere.Took, 0.99), "ms", "the same while as much is sent on channels that nobody listens to: what the senders and the server take of the machine")
	b.report("storm_log_lines", float64(storm.Lines), "lines", "lines logged meanwhile, info and above (goal: at most 20)")
	b.report("storm_leases_lost", float64(storm.LeasesLost), "leases", "leases lost meanwhile (goal: 0)")
	b.report("storm_runs_changed", float64(changed), "runs", "parked runs that are not as they were (goal: 0)")
}

// stormSite is a worker on a database of its own, and the role that forges.
type stormSite struct {
	site

	owner  *pgxpool.Pool
	forger *pgxpool.Pool
}

func openStorm(ctx context.Context, b *bench) (_ *stormSite, err error) {
	s := &stormSite{site: site{system: systemStorm, label: systemStorm}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close(ctx))
		}
	}()
	if s.url, s.drop, err = b.server.CreateDatabase(ctx); err != nil {
		return nil, err
	}
	if err := migrate(ctx, s.url); err != nil {
		return nil, err
	}
	if s.owner, err = pgxpool.New(ctx, s.url); err != nil {
		return nil, err
	}
	if _, err := s.owner.Exec(ctx, "create role "+stormRole+" login password 'storm'"); err != nil {
		return nil, err
	}
	address, err := url.Parse(s.url)
	if err != nil {
		return nil, err
	}
	address.User = url.UserPassword(stormRole, "storm")
	if s.forger, err = pgxpool.New(ctx, address.String()); err != nil {
		return nil, err
	}
	return s, s.startWorker(ctx)
}

func (s *stormSite) close(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	s.worker.kill()
	if s.forger != nil {
		s.forger.Close()
	}
	if s.owner == nil {
		return nil
	}
	_, err := s.owner.Exec(ctx, "drop role if exists "+stormRole)
	s.owner.Close()
	return errors.Join(err, s.drop(ctx))
}

// measure has the worker start ordinary runs and observe itself while meanwhile goes on.
func (s *stormSite) measure(ctx context.Context, meanwhile func() error) (stormAnswer, error) {
	if _, err := call[struct{}](ctx, s.worker, "observe", nil); err != nil {
		return stormAnswer{}, err
	}
	if err := meanwhile(); err != nil {
		return stormAnswer{}, err
	}
	return call[stormAnswer](ctx, s.worker, "observed", nil)
}

// stormChannels are all channels that the worker, its subscribers and its River client listen to, but for the listener's own, whose name is
// a secret.
func stormChannels() []string {
	channels := bus.ChannelsFor(romancy.DefaultSchema).All()
	for _, private := range []string{"_workflow_ended", "_workflow_cancelled", "_worker_left", "_run_later"} {
		channels = append(channels, romancy.DefaultSchema+private)
	}
	for _, topic := range []string{"river_insert", "river_control", "river_leadership"} {
		channels = append(channels, romancy.DefaultSchema+"."+topic)
	}
	return channels
}

// nobodysChannels are as many channels, of the same kinds of payloads, that the worker does not listen to.
func nobodysChannels(channels []string) []string {
	nobodys := make([]string, len(channels))
	for i, channel := range channels {
		nobodys[i] = "nobodys_" + channel
	}
	return nobodys
}

// forge sends notifications on all channels in turns, and returns when the worker has heard them. What they say is what somebody would
// send who has listened: ids of runs that are parked, channels that they wait for, ids and instants beyond all there are, and every tenth
// no JSON at all, two kilobytes of it.
func (s *stormSite) forge(ctx context.Context, channels, ids []string, each int) error {
	batches := make(chan stormOrder)
	var senders sync.WaitGroup
	errs := make(chan error, stormSenders)
	sendCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	for range stormSenders {
		senders.Go(func() {
			for order := range batches {
				if err := s.send(sendCtx, order, ids); err != nil {
					errs <- err
					cancel()
					return
				}
			}
		})
	}
feed:
	for first := 0; first < each; first += stormBatch {
		for _, channel := range channels {
			select {
			case batches <- stormOrder{channel, first, min(stormBatch, each-first)}:
			case <-sendCtx.Done():
				break feed
			}
		}
	}
	close(batches)
	senders.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return s.awaitHeard(ctx)
	}
}

type stormOrder struct {
	channel      string
	first, count int
}

// Payloads differ, because the server sends equal ones of one transaction once.
const stormStatement = `select count(pg_notify($1, case
    when n % 10 = 0 then repeat('no json ', 250) || n
    when $1 like '%workflow_resumable' then json_build_object('instance_id', id, 'workflow_name', 'receiver', 'n', n)::text
    when $1 like '%timer_expired' then json_build_object('instance_id', id, 'timer_id', 'timer:' || n, 'expires_at', '2099-01-01T00:00:00Z')::text
    when $1 like '%channel_message' then json_build_object('channel_name', '` + channel + `', 'message_id', 9223372036854775807 - n, 'target_instance_id', case when n % 2 = 0 then id end)::text
    when $1 like '%outbox_pending' then json_build_object('event_id', 'forged-' || n)::text
    when $1 like '%river%' then json_build_object('queue', 'forged-' || n, 'action', 'cancel', 'job_id', n, 'leader_id', 'forged')::text
    else json_build_object('instance_id', id, 'reason', 'forged', 'ended', n % 2 = 0, 'n', n)::text
  end))
from (select n, ($2::text[])[1 + n % cardinality($2::text[])] as id from generate_series($3::integer, $3::integer + $4::integer - 1) n) f`

func (s *stormSite) send(ctx context.Context, order stormOrder, ids []string) error {
	_, err := s.forger.Exec(ctx, stormStatement, order.channel, ids, order.first, order.count)
	return err
}

// awaitHeard returns when no session has left anything in the queue of notifications.
func (s *stormSite) awaitHeard(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, stormPatience, fmt.Errorf("the worker has not heard all notifications within %s", stormPatience))
	defer cancel()
	for {
		var used float64
		if err := s.owner.QueryRow(ctx, "select pg_notification_queue_usage()").Scan(&used); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return err
		}
		if used == 0 {
			return pass(ctx, 2*time.Second) // what is heard is worked off
		}
		if err := pass(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// changed counts the parked runs that a forged notification has changed.
func (s *stormSite) changed(ctx context.Context, b *bench) (changed int, err error) {
	rows, err := s.owner.Query(ctx, "select status from romancy.instances where workflow = 'receiver' and (status <> 'waiting' or ended_at is not null)")
	if err != nil {
		return 0, err
	}
	statuses, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err == nil && len(statuses) > 0 {
		b.progressf("storm: parked runs were changed, to: %s ...", strings.Join(statuses[:min(len(statuses), 5)], ", "))
	}
	return len(statuses), err
}
