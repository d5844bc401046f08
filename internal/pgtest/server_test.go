//go:build unix

package pgtest_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/pgtest"
)

func exec1(t *testing.T, url, statement string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	if _, err := conn.Exec(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

func query1[T any](t *testing.T, url, query string) T {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	var value T
	if err := conn.QueryRow(t.Context(), query).Scan(&value); err != nil {
		t.Fatal(err)
	}
	return value
}

func TestRestartKeepsAddressAndData(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"fast", "immediate"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			server := pgtest.Private(t)
			url, _, err := server.CreateDatabase(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			exec1(t, url, "create table kept as select 42 as answer")
			before := server.PID()
			if err := server.Restart(t.Context(), mode); err != nil {
				t.Fatal(err)
			}
			if got := query1[int](t, url, "select answer from kept"); got != 42 {
				t.Errorf("after the restart the table holds %d, want 42", got)
			}
			if server.PID() == before {
				t.Error("the server's process is the old one")
			}
			if _, _, err := server.CreateDatabase(t.Context()); err != nil {
				t.Errorf("the server's own connection does not survive a restart: %v", err)
			}
		})
	}
}

func TestHaltRefusesConnectionsUntilResume(t *testing.T) {
	t.Parallel()
	server := pgtest.Private(t)
	if err := server.Halt(t.Context(), "fast"); err != nil {
		t.Fatal(err)
	}
	if conn, err := pgx.Connect(t.Context(), server.URL()); err == nil {
		_ = conn.Close(t.Context())
		t.Error("a halted server accepts connections")
	}
	if pid := server.PID(); pid != 0 {
		t.Errorf("a halted server has PID %d, want 0", pid)
	}
	if err := server.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	exec1(t, server.URL(), "select 1")
	if err := server.Halt(t.Context(), "gently"); err == nil || !strings.Contains(err.Error(), `"fast"`) {
		t.Errorf("an unknown mode gives %v, want an error that names the known ones", err)
	}
}

func TestStopRemovesEverything(t *testing.T) {
	t.Parallel()
	server := pgtest.Private(t)
	_, drop, err := server.CreateDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pid := server.PID()
	for range 2 {
		if err := server.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if alive(pid) {
		t.Error("the server's process lives on")
	}
	if _, err := os.Stat(server.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the server's directory: %v, want it gone", err)
	}
	if err := drop(t.Context()); err != nil {
		t.Errorf("dropping a database that went with its server: %v", err)
	}
	if _, _, err := server.CreateDatabase(t.Context()); err == nil {
		t.Error("a stopped server creates databases")
	}
	if err := server.Resume(t.Context()); err == nil {
		t.Error("a stopped server resumes")
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	server := pgtest.Private(t, pgtest.Durable(), pgtest.Setting("work_mem", "123kB"), pgtest.Setting("cluster_name", "it's"))
	for name, want := range map[string]string{
		"work_mem": "123kB", "cluster_name": "it's", "fsync": "on", "listen_addresses": "127.0.0.1", "max_connections": "300",
	} {
		if got := query1[string](t, server.URL(), "select current_setting('"+name+"')"); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

func TestAMistakenSettingShowsTheServersLog(t *testing.T) {
	t.Setenv("DATABASE_URL", "")
	server, err := pgtest.Start(t.Context(), pgtest.Setting("work_mem", "plenty"))
	if err == nil {
		_ = server.Stop(t.Context())
		t.Fatal("a server with work_mem = 'plenty' starts")
	}
	if !strings.Contains(err.Error(), `"work_mem": "plenty"`) {
		t.Errorf("got %v, want the server's own words in it", err)
	}
}

func TestNobodyGetsInWithoutThePassword(t *testing.T) {
	t.Parallel()
	config, err := pgx.ParseConfig(pgtest.Private(t).URL())
	if err != nil {
		t.Fatal(err)
	}
	config.Password = "guess"
	if conn, err := pgx.ConnectConfig(t.Context(), config); err == nil {
		_ = conn.Close(t.Context())
		t.Error("a wrong password is accepted")
	}
}

func TestServerNamedByDatabaseURL(t *testing.T) {
	external := pgtest.Private(t)
	t.Setenv("DATABASE_URL", external.URL())
	const databases = "select count(*) from pg_database where datname like 'romancy%'"

	server, err := pgtest.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	url, drop, err := server.CreateDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := query1[bool](t, url, "select to_regclass('romancy.instances') is not null"); !got {
		t.Error("the database is not migrated")
	}
	if got := query1[int](t, external.URL(), databases); got != 2 {
		t.Errorf("%d databases on the server, want 2: the template and its clone", got)
	}
	for name, call := range map[string]func(context.Context) error{
		"Halt":    func(ctx context.Context) error { return server.Halt(ctx, "fast") },
		"Restart": func(ctx context.Context) error { return server.Restart(ctx, "fast") },
		"Resume":  server.Resume,
	} {
		if err := call(t.Context()); !errors.Is(err, pgtest.ErrNotOurs) {
			t.Errorf("%s gives %v, want ErrNotOurs", name, err)
		}
	}
	if err := drop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := server.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := query1[int](t, external.URL(), databases); got != 0 {
		t.Errorf("%d databases left behind, want 0", got)
	}
}

func TestMistakesInDatabaseURL(t *testing.T) {
	for _, value := range []string{"nonsense", "host=127.0.0.1 port=1", "postgres://127.0.0.1:1/nobody-listens"} {
		t.Setenv("DATABASE_URL", value)
		server, err := pgtest.Start(t.Context())
		if err == nil {
			_ = server.Stop(t.Context())
			t.Fatalf("DATABASE_URL=%s is accepted", value)
		}
		if !strings.Contains(err.Error(), "DATABASE_URL") {
			t.Errorf("DATABASE_URL=%s gives %v, want the variable named", value, err)
		}
	}
}

// A directory for temporary files that only root may enter is common: sudo keeps TMPDIR.
func TestTemporaryDirectoryClosedToTheServersUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("an ordinary user runs the server itself and can enter its own directories")
	}
	closed := t.TempDir()
	if err := os.Chmod(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", closed)
	server := pgtest.Private(t)
	exec1(t, server.URL(), "select 1")
	if strings.HasPrefix(server.Dir(), closed) {
		t.Errorf("the server's files are in %s, which its user cannot enter", server.Dir())
	}
}

const childEnv = "PGTEST_CHILD"

// TestChild is no test: startAndKill runs it in a process of its own.
func TestChild(t *testing.T) {
	var opts []pgtest.Option
	switch os.Getenv(childEnv) {
	case "":
		t.Skip("runs in a child process of other tests")
	case "keep":
		opts = append(opts, pgtest.Keep())
	}
	server, err := pgtest.Start(t.Context(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("server", server.PID(), server.Dir(), server.URL()) //nolint:forbidigo // the parent reads it
	select {}
}

// startAndKill starts a server in a process that is killed with SIGKILL right after.
func startAndKill(t *testing.T, mode string) (pid int, dir, url string) {
	t.Helper()
	child := exec.Command(os.Args[0], "-test.run=^TestChild$", "-test.v")
	child.Env = append(os.Environ(), childEnv+"="+mode, "DATABASE_URL=")
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); pid == 0 && lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) == 4 && fields[0] == "server" {
			pid, _ = strconv.Atoi(fields[1])
			dir, url = fields[2], fields[3]
		}
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	if pid == 0 {
		t.Fatal("the child did not start a server")
	}
	return pid, dir, url
}

func TestServerDiesWithItsProcess(t *testing.T) {
	pid, dir, _ := startAndKill(t, "default")
	eventually(t, "the server outlives its killed process", func() bool { return !alive(pid) })

	// The next server removes what is left on the disk.
	pgtest.Private(t)
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the killed process's %s: %v, want it removed by the next server", filepath.Base(dir), err)
	}
}

func TestKeptServerOutlivesItsProcess(t *testing.T) {
	pid, dir, url := startAndKill(t, "keep")
	t.Cleanup(func() {
		_ = syscall.Kill(pid, syscall.SIGQUIT)
		eventually(t, "the kept server does not stop", func() bool { return !alive(pid) })
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	pgtest.Private(t) // removes what killed processes left, but not this
	exec1(t, url, "select 1")
}

// alive reports whether the process exists. A zombie, which a container without an init process never reaps, does not.
func alive(pid int) bool {
	if runtime.GOOS == "linux" {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return false
		}
		_, state, _ := strings.Cut(string(stat), ") ")
		return !strings.HasPrefix(state, "Z")
	}
	return syscall.Kill(pid, 0) == nil
}

func eventually(t *testing.T, complaint string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(complaint)
		}
	}
}
