package pgtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// minVersion is the oldest PostgreSQL major version that the library supports.
const minVersion = 14

// errNoPostgres says what to do on a machine without PostgreSQL.
var errNoPostgres = fmt.Errorf(`no PostgreSQL %d or newer found. Do one of these:
  Debian, Ubuntu:  sudo apt-get install postgresql postgresql-contrib
  Fedora:          sudo dnf install postgresql-server postgresql-contrib
  macOS:           brew install postgresql@17
  any server:      export DATABASE_URL=postgres://user:password@host:5432/postgres (a role that may create databases)`, minVersion)

// binaries is a directory with the programs of one PostgreSQL installation.
type binaries struct {
	dir     string // symbolic links resolved: initdb looks for its siblings beside itself
	version int    // major
}

func (b binaries) path(program string) string { return filepath.Join(b.dir, program) }

// preload returns the shared_preload_libraries that this installation has: pg_stat_statements comes with the contrib
// package, which may be missing.
func (b binaries) preload(ctx context.Context) string {
	const library = "pg_stat_statements"
	var dirs []string
	if out, err := exec.CommandContext(ctx, b.path("pg_config"), "--pkglibdir").Output(); err == nil {
		dirs = append(dirs, strings.TrimSpace(string(out)))
	}
	// Distributions ship pg_config with the development package, so it may be missing: look where they put libraries.
	dirs = append(dirs, filepath.Join(b.dir, "../lib"), filepath.Join(b.dir, "../lib/postgresql"), filepath.Join(b.dir, "../lib64/pgsql"))
	for _, dir := range dirs {
		for _, suffix := range []string{".so", ".dylib"} {
			if _, err := os.Stat(filepath.Join(dir, library+suffix)); err == nil {
				return library
			}
		}
	}
	return ""
}

// candidateDirs lists where the server's programs may be. Packages of most distributions keep them off PATH.
func candidateDirs(ctx context.Context) []string {
	var dirs []string
	if out, err := exec.CommandContext(ctx, "pg_config", "--bindir").Output(); err == nil {
		dirs = append(dirs, strings.TrimSpace(string(out)))
	}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		for _, program := range []string{"postgres", "initdb"} {
			if resolved, err := filepath.EvalSymlinks(filepath.Join(dir, program)); err == nil {
				dirs = append(dirs, filepath.Dir(resolved))
			}
		}
	}
	for _, pattern := range []string{
		"/usr/lib/postgresql/*/bin",         // Debian, Ubuntu
		"/usr/pgsql-*/bin",                  // PostgreSQL's own RPMs
		"/usr/libexec/postgresql*",          // Alpine
		"/opt/homebrew/opt/postgresql*/bin", // macOS, Apple silicon
		"/usr/local/opt/postgresql*/bin",    // macOS, Intel
		"/Applications/Postgres.app/Contents/Versions/*/bin",
		"/usr/local/pgsql/bin", // built from source
	} {
		matches, err := filepath.Glob(pattern)
		if err != nil {
			continue // the patterns are constants
		}
		dirs = append(dirs, matches...)
	}
	return dirs
}

// inspectAll returns the installations among dirs that owner can use, newest first; of equal versions the first named wins.
func inspectAll(ctx context.Context, owner *owner, dirs []string) []binaries {
	var found []binaries
	seen := map[string]bool{}
	for _, dir := range dirs {
		resolved, err := filepath.EvalSymlinks(dir)
		if err != nil || seen[resolved] || !owner.reaches(resolved) {
			continue
		}
		seen[resolved] = true
		if b, err := inspect(ctx, resolved); err == nil {
			found = append(found, b)
		}
	}
	slices.SortStableFunc(found, func(a, b binaries) int { return b.version - a.version })
	return found
}

var versionOutput = regexp.MustCompile(`PostgreSQL\) (\d+)`)

func inspect(ctx context.Context, dir string) (binaries, error) {
	b := binaries{dir: dir}
	if _, err := os.Stat(b.path("initdb")); err != nil {
		return b, err
	}
	out, err := exec.CommandContext(ctx, b.path("postgres"), "--version").Output()
	if err != nil {
		return b, err
	}
	match := versionOutput.FindSubmatch(out)
	if match == nil {
		return b, fmt.Errorf("%s --version printed %q", b.path("postgres"), out)
	}
	if b.version, err = strconv.Atoi(string(match[1])); err != nil {
		return b, err
	}
	if b.version < minVersion {
		return b, fmt.Errorf("%s is version %d, want %d or newer", b.path("postgres"), b.version, minVersion)
	}
	return b, nil
}

// source says where to look for PostgreSQL.
type source struct {
	dirs       []string // of installations
	repository string   // to download from
	cache      string   // for the download
}

// machine is the source of this machine and user.
func machine(ctx context.Context) source {
	return source{dirs: candidateDirs(ctx), repository: downloadRepository, cache: downloadDir()}
}

// find returns the newest installation that owner can use, or else a downloaded one.
func (s source) find(ctx context.Context, owner *owner) (binaries, error) {
	if found := inspectAll(ctx, owner, s.dirs); len(found) > 0 {
		return found[0], nil
	}
	downloaded, err := downloadBinaries(ctx, s.repository, s.cache)
	if err != nil {
		return binaries{}, fmt.Errorf("%w\nDownloading it did not work either: %w", errNoPostgres, err)
	}
	return downloaded, nil
}
