//go:build unix && !linux

package pgtest

import (
	"os/exec"
	"strconv"
	"syscall"
)

func prepare(command *exec.Cmd, keep bool) {
	if command.SysProcAttr == nil {
		command.SysProcAttr = &syscall.SysProcAttr{}
	}
	if keep {
		command.SysProcAttr.Setsid = true
		return
	}
	command.SysProcAttr.Setpgid = true
}

// watch stops the child when we die: a shell waits for the end of a pipe that only we hold open.
func watch(pid int) (stop func()) {
	guard := exec.Command("/bin/sh", "-c", `cat >/dev/null; kill -QUIT "$1"`, "sh", strconv.Itoa(pid))
	guard.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	pipe, err := guard.StdinPipe()
	if err != nil {
		return func() {}
	}
	if err := guard.Start(); err != nil {
		return func() {}
	}
	return func() {
		// Killed before the pipe closes: the child's id may belong to somebody else by now.
		_ = syscall.Kill(-guard.Process.Pid, syscall.SIGKILL)
		_ = pipe.Close()
		_ = guard.Wait()
	}
}
