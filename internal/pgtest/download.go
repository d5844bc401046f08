package pgtest

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// downloadVersion is what is fetched for a machine without PostgreSQL.
const downloadVersion = embeddedpostgres.V17

// downloadRepository is where archives are fetched from: empty is embedded-postgres' own choice.
const downloadRepository = ""

// downloadBinaries fetches PostgreSQL from repository into the directory cache, once per machine and user. The library
// downloads, unpacks, initialises and starts in one go; only its unpacked programs are used, because the server it starts
// survives a killed test, and it cannot start any as root.
func downloadBinaries(ctx context.Context, repository, cache string) (binaries, error) {
	unpacked := filepath.Join(cache, string(downloadVersion))
	if b, err := inspect(ctx, filepath.Join(unpacked, "bin")); err == nil {
		return b, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil { //nolint:gosec // the unprivileged user that runs the server reads it
		return binaries{}, err
	}
	// Unpacked beside its final place and renamed into it, so that test binaries running in parallel never see half of it.
	work, err := os.MkdirTemp(cache, "download-")
	if err != nil {
		return binaries{}, err
	}
	defer func() { _ = os.RemoveAll(work) }()
	fresh := filepath.Join(work, "postgresql")
	startErr := fetch(repository, work, fresh)
	if _, err := inspect(ctx, filepath.Join(fresh, "bin")); err != nil {
		return binaries{}, errors.Join(startErr, err)
	}
	if err := os.Rename(fresh, unpacked); err != nil && !errors.Is(err, os.ErrExist) {
		return binaries{}, err
	}
	return inspect(ctx, filepath.Join(unpacked, "bin"))
}

// fetch downloads and unpacks to target. Its error alone means nothing: as root the library's initdb fails after the
// programs have been unpacked.
func fetch(repository, work, target string) error {
	port, err := freePort()
	if err != nil {
		return err
	}
	defer http.DefaultClient.CloseIdleConnections() // else a goroutine outlives the download
	config := embeddedpostgres.DefaultConfig().
		Version(downloadVersion).
		Port(uint32(port)).
		CachePath(filepath.Join(work, "archive")).
		BinariesPath(target).
		RuntimePath(filepath.Join(work, "runtime")).
		Logger(io.Discard)
	if repository != "" {
		config = config.BinaryRepositoryURL(repository)
	}
	server := embeddedpostgres.NewDatabase(config)
	if err := server.Start(); err != nil {
		return err
	}
	return server.Stop()
}

// downloadDir is the user's cache directory; root's home is usually closed to the unprivileged user that runs the server.
func downloadDir() string {
	if os.Geteuid() == 0 {
		return "/var/cache/romancy-pgtest"
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir() // no home
	}
	return filepath.Join(cache, "romancy-pgtest")
}
