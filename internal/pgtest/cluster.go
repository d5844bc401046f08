package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// readyTimeout bounds the wait for a server that has been started. Recovery after an immediate shutdown is part of it.
const readyTimeout = 60 * time.Second

// cluster is a private server: a data directory and, unless halted, a process.
type cluster struct {
	programs binaries
	set      settings
	dir      string
	owner    *owner
	lock     *os.File
	password string

	mu      sync.Mutex
	port    int
	process *process // nil while halted
	removed bool
}

// newCluster initialises a data directory and starts a server on it.
func newCluster(ctx context.Context, programs binaries, owner *owner, set settings) (*cluster, error) {
	dir, lock, err := makeDir(owner, set.keep)
	if err != nil {
		return nil, err
	}
	c := &cluster{programs: programs, set: set, dir: dir, owner: owner, lock: lock, password: rand.Text()}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(err, c.remove(ctx))
	}
	return c, nil
}

func (c *cluster) data() string { return filepath.Join(c.dir, "data") }

// command runs one of PostgreSQL's programs as the data directory's owner.
func (c *cluster) command(program string, args ...string) *exec.Cmd {
	command := exec.Command(c.programs.path(program), args...)
	command.Dir = c.dir // ours may be closed to the owner
	// PGDATA, PGPORT and their like would override what is given here.
	command.Env = slices.DeleteFunc(os.Environ(), func(variable string) bool { return strings.HasPrefix(variable, "PG") })
	command.Env = append(command.Env, "LC_ALL=C", "TZ=UTC", "HOME="+c.dir, "TMPDIR="+c.dir)
	c.owner.apply(command)
	return command
}

func (c *cluster) start(ctx context.Context) error {
	passwordFile := filepath.Join(c.dir, "password")
	if err := c.owner.write(passwordFile, c.password); err != nil {
		return err
	}
	// scram rather than trust: on a shared machine any local user could otherwise become superuser here, and run programs
	// as us.
	initdb := c.command("initdb", "--pgdata="+c.data(), "--username=postgres", "--pwfile="+passwordFile,
		"--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync")
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	if err := c.owner.write(filepath.Join(c.data(), "pgtest.conf"), c.config(ctx)); err != nil {
		return err
	}
	conf, err := os.OpenFile(filepath.Join(c.data(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := conf.WriteString("\ninclude 'pgtest.conf'\n"); err != nil {
		return errors.Join(err, conf.Close())
	}
	if err := conf.Close(); err != nil {
		return err
	}
	return c.launchAnywhere(ctx)
}

// launchAnywhere is launch on a free port. Between looking for one and the server's bind somebody else may take it.
func (c *cluster) launchAnywhere(ctx context.Context) (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range 10 {
		if c.port, err = freePort(); err != nil {
			return err
		}
		if err = c.launch(ctx); !errors.Is(err, errPortTaken) {
			return err
		}
	}
	return err
}

// config is the server's configuration. Only what makes a throwaway server cheap differs from PostgreSQL's defaults, so
// that plans, locks and limits are those of production.
func (c *cluster) config(ctx context.Context) string {
	onOff := map[bool]string{true: "on", false: "off"}
	set := [][2]string{
		{"listen_addresses", "127.0.0.1"},
		{"unix_socket_directories", ""},
		{"max_connections", "300"},
		{"fsync", onOff[c.set.durable]},
		{"full_page_writes", onOff[c.set.durable]},
		{"shared_preload_libraries", c.programs.preload(ctx)},
		{"timezone", "UTC"},
		{"log_timezone", "UTC"},
		{"log_line_prefix", "%m [%p] %a "},
		{"max_wal_size", "512MB"},
	}
	var text strings.Builder
	for _, setting := range append(set, c.set.extra...) {
		fmt.Fprintf(&text, "%s = '%s'\n", setting[0], strings.ReplaceAll(setting[1], "'", "''"))
	}
	return text.String()
}

func (c *cluster) url() string {
	return (&url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword("postgres", c.password),
		Host:     net.JoinHostPort("127.0.0.1", strconv.Itoa(c.port)),
		Path:     "/postgres",
		RawQuery: "sslmode=disable",
	}).String()
}

func (c *cluster) pid() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process == nil {
		return 0
	}
	return c.process.pid
}

// errPortTaken says that somebody else listens on the chosen port.
var errPortTaken = errors.New("port taken by another process")

// launch starts the process on c.port and waits until it accepts connections. Called with c.mu held.
func (c *cluster) launch(ctx context.Context) error {
	logPath := filepath.Join(c.dir, "server.log")
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	before, err := log.Seek(0, 2)
	if err != nil {
		return err
	}
	command := c.command("postgres", "-D", c.data(), "-p", strconv.Itoa(c.port))
	command.Stdout, command.Stderr = log, log
	started, err := startProcess(command, c.set.keep)
	if err != nil {
		return err
	}
	if err := c.awaitReady(ctx, started); err != nil {
		started.kill()
		tail := readFrom(logPath, before)
		if errors.Is(err, errPortTaken) || strings.Contains(tail, "could not bind") {
			return errPortTaken
		}
		return fmt.Errorf("%w; its log says:\n%s", err, tail)
	}
	c.process = started
	return nil
}

func (c *cluster) awaitReady(ctx context.Context, started *process) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, c.url())
		if err == nil {
			return conn.Close(ctx)
		}
		var refused *pgconn.PgError
		if errors.As(err, &refused) && refused.Code == "28P01" {
			// Our password is random: a server that refuses it is somebody else's.
			return errPortTaken
		}
		select {
		case <-started.done:
			return fmt.Errorf("postgres exited at once: %w", started.err)
		case <-ctx.Done():
			return fmt.Errorf("postgres does not accept connections: %w", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (c *cluster) halt(ctx context.Context, mode string) error {
	signal, err := shutdownSignal(mode)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process == nil {
		return nil
	}
	if err := c.process.stop(ctx, signal); err != nil {
		return fmt.Errorf("stop PostgreSQL (%s): %w", mode, err)
	}
	c.process = nil
	return nil
}

func (c *cluster) resume(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process != nil {
		return nil
	}
	if c.removed {
		return errors.New("the server has been removed")
	}
	if err := c.launch(ctx); err != nil {
		return fmt.Errorf("start PostgreSQL again on port %d: %w", c.port, err)
	}
	return nil
}

func (c *cluster) remove(ctx context.Context) error {
	err := c.halt(ctx, "immediate")
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.removed || err != nil {
		return err
	}
	c.removed = true
	err = os.RemoveAll(c.dir)
	if c.lock != nil {
		err = errors.Join(err, c.lock.Close())
	}
	return err
}

// readFrom returns the text of a file from an offset on, its last 4,000 bytes at most.
func readFrom(path string, offset int64) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	text = text[min(int(offset), len(text)):]
	text = text[max(0, len(text)-4000):]
	return strings.TrimSpace(string(text))
}
