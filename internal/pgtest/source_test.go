//go:build unix

package pgtest

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// install makes a directory with programs that print a version, as an installation of PostgreSQL has.
func install(t *testing.T, version string, programs ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, program := range programs {
		script := "#!/bin/sh\necho '" + program + " (PostgreSQL) " + version + "'\n"
		if err := os.WriteFile(filepath.Join(dir, program), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestNewestUsableInstallationWins(t *testing.T) {
	t.Parallel()
	old := install(t, "13.14", "postgres", "initdb")
	client := install(t, "18.1", "postgres") // no initdb
	first := install(t, "16.4 (Debian 16.4-1)", "postgres", "initdb")
	newest := install(t, "17beta2", "postgres", "initdb")
	again := install(t, "17.1", "postgres", "initdb")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(newest, link); err != nil {
		t.Fatal(err)
	}
	found := inspectAll(t.Context(), nil, []string{old, client, "/no/such/dir", first, link, newest, again})
	if len(found) != 3 {
		t.Fatalf("found %v, want three", found)
	}
	want, err := filepath.EvalSymlinks(newest)
	if err != nil {
		t.Fatal(err)
	}
	if found[0] != (binaries{dir: want, version: 17}) || found[2].version != 16 {
		t.Errorf("found %v, want version 17 at %s first and 16 last", found, want)
	}
}

func TestInstallationClosedToTheServersUserIsPassedOver(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("an ordinary user runs the server itself")
	}
	dir := install(t, "17.1", "postgres", "initdb")
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if found := inspectAll(t.Context(), &owner{uid: 65534, gid: 65534}, []string{dir}); len(found) != 0 {
		t.Errorf("found %v, which the server's user cannot run", found)
	}
}

func TestWithoutAnySourceTheErrorSaysWhatToInstall(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir()) // the downloader leaves a log there
	nowhere := httptest.NewServer(http.NotFoundHandler())
	defer nowhere.Close()
	_, err := source{repository: nowhere.URL, cache: t.TempDir()}.find(t.Context(), nil)
	if !errors.Is(err, errNoPostgres) {
		t.Fatalf("got %v, want errNoPostgres", err)
	}
	for _, word := range []string{"apt-get install", "dnf install", "brew install", "DATABASE_URL="} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("the error does not mention %q:\n%v", word, err)
		}
	}
}

// The archive in testdata holds bin/postgres and bin/initdb as scripts: the first prints a version, the second fails, as
// the real one does for root.
func TestDownloadUnpacksOnce(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	archive, err := os.ReadFile("testdata/programs.txz")
	if err != nil {
		t.Fatal(err)
	}
	var jar bytes.Buffer
	writer := zip.NewWriter(&jar)
	entry, err := writer.Create("postgres-any.txz")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := entry.Write(archive); err != nil {
		t.Fatal(err)
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(jar.Bytes())
	requests := 0
	repository := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests++
		if strings.HasSuffix(r.URL.Path, ".sha256") {
			_, _ = w.Write([]byte(hex.EncodeToString(sum[:])))
			return
		}
		_, _ = w.Write(jar.Bytes())
	}))
	defer repository.Close()

	cache := filepath.Join(t.TempDir(), "cache")
	for range 2 {
		got, err := downloadBinaries(t.Context(), repository.URL, cache)
		if err != nil {
			t.Fatal(err)
		}
		if got.version != 17 || !strings.HasPrefix(got.dir, cache) {
			t.Errorf("got %+v, want version 17 in %s", got, cache)
		}
	}
	if requests != 2 {
		t.Errorf("%d requests for two calls, want 2: the archive and its checksum, once", requests)
	}
	left, err := os.ReadDir(cache)
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 1 {
		t.Errorf("the cache holds %v, want nothing but the programs", left)
	}
}
