package integration_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy"
	"github.com/romancy-go/romancy/outbox"
)

// crashRole names the environment variable that makes this test binary a worker; it holds a crashWorkerConfig.
const crashRole = "ROMANCY_CRASH_WORKER"

const crashReady = "ready"

type crashWorkerConfig struct {
	Name     string        `json:"name"`
	Database string        `json:"database"`
	Notify   bool          `json:"notify"`
	Lease    time.Duration `json:"lease"`
	Fallback time.Duration `json:"fallback"`
	// Listen is where to listen if not in the database as the pool reaches it.
	Listen string `json:"listen"`
	// MaxDeaths, if not 0, is how many workers in a row may die with a run.
	MaxDeaths int `json:"max_deaths"`
	// Clock is by how much the process's wall clock is wrong.
	Clock time.Duration `json:"clock"`
}

// runCrashWorker is the main function of a worker process. It works until its standard input ends, which it also does when
// the parent dies, and returns the exit code.
func runCrashWorker(text string) int {
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	var config crashWorkerConfig
	if err := json.Unmarshal([]byte(text), &config); err != nil {
		logger.Error("bad configuration", "error", err)
		return 2
	}
	if config.Clock != 0 {
		if err := setClock(config.Clock); err != nil {
			logger.Error("cannot set the clock wrong", "error", err)
			return 2
		}
	}
	if err := config.work(context.Background(), logger.With("worker_name", config.Name)); err != nil {
		logger.Error("worker failed", "error", err)
		return 1
	}
	return 0
}

func (c crashWorkerConfig) work(ctx context.Context, logger *slog.Logger) error {
	pool, err := c.connect(ctx, 8)
	if err != nil {
		return err
	}
	defer pool.Close()
	log, err := c.connect(ctx, 4)
	if err != nil {
		return err
	}
	defer log.Close()

	var app *romancy.App
	shop := &crashShop{worker: c.Name, log: log, outbox: func() *outbox.Writer { return app.Outbox() }}
	options := []romancy.Option{
		romancy.WithPool(pool),
		romancy.WithListenNotify(&c.Notify),
		romancy.WithNotifyFallbackInterval(c.Fallback),
		romancy.WithLease(c.Lease),
		romancy.WithMaxDeaths(c.MaxDeaths),
		romancy.WithWorkflows(shop.flows().definitions()...),
		romancy.WithLogger(logger),
	}
	if c.Listen != "" {
		options = append(options, romancy.WithListenURL(c.Listen))
	}
	app = romancy.NewApp(options...)
	if err := app.Start(ctx); err != nil {
		return err
	}
	// Not the App's own relay: its slots stay with a killed one for twenty seconds, longer than this test should take.
	relay, err := outbox.NewRelay(outbox.RelayConfig{
		Pool: pool, Publisher: &crashPublisher{log: log, worker: c.Name}, Listener: app.Listener(), FallbackInterval: c.Fallback,
		PublishTimeout: time.Second, MaxBackoff: time.Second, MaxAttempts: 1000, Logger: logger,
	})
	if err != nil {
		return err
	}
	if err := relay.Start(ctx); err != nil {
		return err
	}
	fmt.Println(crashReady)
	_, _ = io.Copy(io.Discard, os.Stdin)
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return errors.Join(relay.Shutdown(ctx), app.Shutdown(ctx))
}

func (c crashWorkerConfig) connect(ctx context.Context, size int32) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(c.Database)
	if err != nil {
		return nil, err
	}
	config.MaxConns = size
	config.ConnConfig.RuntimeParams["application_name"] = c.Name
	return pgxpool.NewWithConfig(ctx, config)
}

// crashPublisher is a broker that remembers in a table what it was given.
type crashPublisher struct {
	log    *pgxpool.Pool
	worker string
}

func (p *crashPublisher) Publish(topic string, messages ...*message.Message) error {
	for _, msg := range messages {
		if _, err := p.log.Exec(msg.Context(), "insert into shop.deliveries (event_id, topic, key, worker) values ($1::text, $2::text, $3::text, $4::text)",
			msg.Metadata.Get(outbox.MetadataEventID), topic, msg.Metadata.Get(outbox.MetadataKey), p.worker); err != nil {
			return err
		}
	}
	return nil
}

func (p *crashPublisher) Close() error { return nil }

// crashProcess is a worker process, as the test sees it.
type crashProcess struct {
	name    string
	logPath string
	command *exec.Cmd
	stdin   io.WriteCloser
	ready   chan struct{} // closed when it says so
	done    chan struct{} // closed when it has ended
	err     error         // read after done
}

// spawnCrashWorker starts this binary again as a worker, and returns without waiting for it to be ready. The caller must
// kill it or stop it.
func spawnCrashWorker(t *testing.T, config crashWorkerConfig) *crashProcess {
	t.Helper()
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &crashProcess{
		name: config.Name, logPath: filepath.Join(t.ArtifactDir(), config.Name+".log"),
		command: exec.Command(program), ready: make(chan struct{}), done: make(chan struct{}),
	}
	log, err := os.Create(p.logPath)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close() // the child has its own handle
	p.command.Env = append(os.Environ(), crashRole+"="+string(text))
	p.command.Stderr = log
	stdout, err := p.command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if p.stdin, err = p.command.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			if lines.Text() == crashReady {
				close(p.ready)
			}
		}
		p.err = p.command.Wait()
	}()
	return p
}

// awaitReady waits until the worker works, has ended, or ctx ends.
func (p *crashProcess) awaitReady(ctx context.Context) error {
	select {
	case <-p.ready:
		return nil
	case <-p.done:
		return fmt.Errorf("%s ended before it was ready: %w\n%s", p.name, p.err, p.tail(40))
	case <-ctx.Done():
		return fmt.Errorf("%s is not ready: %w\n%s", p.name, ctx.Err(), p.tail(40))
	}
}

// kill sends SIGKILL, whatever state the process is in, and waits for its end.
func (p *crashProcess) kill() {
	_ = p.command.Process.Kill() // fails if it has ended
	<-p.done
}

// stop has the worker shut down in order.
func (p *crashProcess) stop(ctx context.Context) error {
	_ = p.stdin.Close() // fails if it has ended
	select {
	case <-p.done:
	case <-ctx.Done():
		return fmt.Errorf("%s does not stop: %w\n%s", p.name, ctx.Err(), p.tail(40))
	}
	if p.err != nil {
		return fmt.Errorf("%s ended badly: %w\n%s", p.name, p.err, p.tail(40))
	}
	return nil
}

// tail is the end of the worker's log.
func (p *crashProcess) tail(lines int) string {
	text, err := os.ReadFile(p.logPath)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
