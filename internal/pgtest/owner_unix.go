//go:build unix

package pgtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

const (
	dirPrefix     = "romancy-pg-"   // swept once its process is gone
	newDirPrefix  = "romancy-new-"  // being set up
	keptDirPrefix = "romancy-kept-" // outlives its process
)

// owner is the user that runs the server and owns its files; nil is ourselves.
type owner struct {
	uid, gid uint32
}

// findOwner returns the user to run PostgreSQL as: nobody else unless we are root, which PostgreSQL refuses.
func findOwner() (*owner, error) {
	if os.Geteuid() != 0 {
		return nil, nil //nolint:nilnil // nil is the documented value for ourselves
	}
	for _, name := range []string{"postgres", "nobody"} {
		found, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(found.Uid, 10, 32)
		if err != nil {
			continue
		}
		gid, err := strconv.ParseUint(found.Gid, 10, 32)
		if err != nil {
			continue
		}
		return &owner{uid: uint32(uid), gid: uint32(gid)}, nil
	}
	return nil, errors.New("PostgreSQL does not run as root, and there is neither a user postgres nor nobody to run it as: add one, or run as an ordinary user, or set DATABASE_URL")
}

// apply makes command run as o.
func (o *owner) apply(command *exec.Cmd) {
	if command.SysProcAttr == nil {
		command.SysProcAttr = &syscall.SysProcAttr{}
	}
	if o != nil {
		command.SysProcAttr.Credential = &syscall.Credential{Uid: o.uid, Gid: o.gid}
	}
}

// write creates a file that only o may read.
func (o *owner) write(path, text string) error {
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil { //nolint:gosec // in a directory of our own
		return err
	}
	return o.own(path)
}

func (o *owner) own(path string) error {
	if o == nil {
		return nil
	}
	return os.Chown(path, int(o.uid), int(o.gid))
}

func (o *owner) owns(info os.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if o == nil {
		return ok && int(stat.Uid) == os.Geteuid()
	}
	return ok && stat.Uid == o.uid
}

// reaches reports whether o may enter dir and everything above it.
func (o *owner) reaches(dir string) bool {
	if o == nil {
		return true
	}
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false
	}
	for {
		info, err := os.Stat(resolved)
		if err != nil {
			return false
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return false
		}
		allowed := info.Mode().Perm()
		switch {
		case stat.Uid == o.uid:
			allowed &= 0o100
		case stat.Gid == o.gid:
			allowed &= 0o010
		default:
			allowed &= 0o001
		}
		if allowed == 0 {
			return false
		}
		if parent := filepath.Dir(resolved); parent != resolved {
			resolved = parent
			continue
		}
		return true
	}
}

// makeDir creates the directory of a server, owned by o. The lock it returns is held for as long as this process lives,
// however it ends, and tells other processes that the directory is in use; a kept directory has none.
func makeDir(o *owner, keep bool) (string, *os.File, error) {
	var tried []string
	for _, base := range []string{os.TempDir(), "/tmp", "/var/tmp"} {
		if !o.reaches(base) {
			tried = append(tried, base)
			continue
		}
		o.sweep(base)
		dir, err := os.MkdirTemp(base, newDirPrefix)
		if err != nil {
			tried = append(tried, base)
			continue
		}
		if err := o.own(dir); err != nil {
			return "", nil, errors.Join(err, os.Remove(dir))
		}
		prefix := dirPrefix
		var lock *os.File
		if keep {
			prefix = keptDirPrefix
		} else if lock, err = lockDir(dir); err != nil {
			return "", nil, errors.Join(err, os.RemoveAll(dir))
		}
		final := filepath.Join(base, prefix+filepath.Base(dir)[len(newDirPrefix):])
		if err := os.Rename(dir, final); err != nil {
			return "", nil, errors.Join(err, os.RemoveAll(dir))
		}
		return final, lock, nil
	}
	return "", nil, fmt.Errorf("no directory for the server's files: tried %q, each must be writable, and open (chmod o+x) to the user that runs the server", tried)
}

func lockDir(dir string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// sweep removes what killed processes have left in base. Failing to is no concern of the caller: it may be another user's.
func (o *owner) sweep(base string) {
	dirs, err := filepath.Glob(filepath.Join(base, dirPrefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		// In a directory that everybody writes to, only what is really ours is touched.
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() || !o.owns(info) {
			continue
		}
		if lock, err := lockDir(dir); err == nil {
			_ = os.RemoveAll(dir)
			_ = lock.Close()
		}
	}
}

func shutdownSignal(mode string) (os.Signal, error) {
	switch mode {
	case "fast":
		return syscall.SIGINT, nil
	case "immediate":
		return syscall.SIGQUIT, nil
	}
	return nil, fmt.Errorf(`mode %q: use "fast" or "immediate"`, mode)
}
