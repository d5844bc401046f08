package pgtest

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

const poolerUser = "pooled"

const pgBouncerHint = "install it: apt-get install pgbouncer, dnf install pgbouncer, or brew install pgbouncer"

// PgBouncer starts a real PgBouncer in front of the server that dbURL names and returns the same database's URL by way
// of it. Mode is "session", "transaction" or "statement". It is stopped when the test ends. Without the program the test
// is skipped, see SkipOrFail.
func PgBouncer(t testing.TB, dbURL, mode string) string {
	t.Helper()
	program, ok := findPgBouncer()
	if !ok {
		SkipOrFail(t, "pgbouncer", pgBouncerHint)
	}
	pooled, stop, err := startPgBouncer(t.Context(), program, dbURL, mode)
	if err != nil {
		t.Fatalf("pgtest: pgbouncer: %v", err)
	}
	t.Cleanup(stop)
	return pooled
}

func findPgBouncer() (string, bool) {
	// Debian installs it to sbin, which an ordinary user's PATH lacks.
	for _, name := range []string{"pgbouncer", "/usr/sbin/pgbouncer", "/usr/local/sbin/pgbouncer"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, true
		}
	}
	return "", false
}

func startPgBouncer(ctx context.Context, program, dbURL, mode string) (pooled string, stop func(), err error) {
	config, err := pgx.ParseConfig(dbURL)
	if err != nil {
		return "", nil, err
	}
	owner, err := findOwner() // it refuses to run as root, too
	if err != nil {
		return "", nil, err
	}
	dir, lock, err := makeDir(owner, false)
	if err != nil {
		return "", nil, err
	}
	cleanup := func() {
		_ = os.RemoveAll(dir)
		_ = lock.Close()
	}
	password := rand.Text()
	if err := owner.write(filepath.Join(dir, "users.txt"), fmt.Sprintf("%q %q\n", poolerUser, password)); err != nil {
		cleanup()
		return "", nil, err
	}
	for range 10 { // the port may be taken between finding it free and using it
		var port int
		if port, err = freePort(); err != nil {
			break
		}
		var running *process
		pooled = (&url.URL{
			Scheme:   "postgres",
			User:     url.UserPassword(poolerUser, password),
			Host:     net.JoinHostPort("127.0.0.1", strconv.Itoa(port)),
			Path:     "/" + config.Database,
			RawQuery: "sslmode=disable",
		}).String()
		if running, err = launchPgBouncer(ctx, program, dir, owner, pgBouncerConfig(config, port, mode), pooled); err == nil {
			return pooled, func() { running.kill(); cleanup() }, nil
		}
	}
	cleanup()
	return "", nil, err
}

func launchPgBouncer(ctx context.Context, program, dir string, owner *owner, ini, pooled string) (*process, error) {
	iniPath, logPath := filepath.Join(dir, "pgbouncer.ini"), filepath.Join(dir, "pgbouncer.log")
	if err := owner.write(iniPath, ini); err != nil {
		return nil, err
	}
	log, err := os.Create(logPath)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	command := exec.Command(program, iniPath)
	command.Dir = dir
	command.Stdout, command.Stderr = log, log
	owner.apply(command)
	running, err := startProcess(command, false)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, pooled)
		if err == nil {
			return running, conn.Close(ctx)
		}
		select {
		case <-running.done:
			return nil, fmt.Errorf("it exited at once; its log says:\n%s", readFrom(logPath, 0))
		case <-ctx.Done():
			running.kill()
			return nil, fmt.Errorf("%w; its log says:\n%s", err, readFrom(logPath, 0))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// pgBouncerConfig asks clients for a random password of its own, and logs in with what the database's URL says.
func pgBouncerConfig(server *pgx.ConnConfig, port int, mode string) string {
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
	return fmt.Sprintf(`[databases]
* = host=%s port=%d user=%s password=%s

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = scram-sha-256
auth_file = users.txt
pool_mode = %s
max_client_conn = 500
default_pool_size = 50
`, quote(server.Host), server.Port, quote(server.User), quote(server.Password), port, mode)
}
