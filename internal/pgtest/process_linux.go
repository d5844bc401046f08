package pgtest

import (
	"os/exec"
	"syscall"
)

// prepare asks the kernel to stop the child when we die. Its own process group keeps a Ctrl-C at the terminal away from
// it: we decide when it stops. A kept child leaves our session, too.
func prepare(command *exec.Cmd, keep bool) {
	if command.SysProcAttr == nil {
		command.SysProcAttr = &syscall.SysProcAttr{}
	}
	if keep {
		command.SysProcAttr.Setsid = true
		return
	}
	command.SysProcAttr.Setpgid = true
	command.SysProcAttr.Pdeathsig = syscall.SIGQUIT
}

// watch has nothing to do: the kernel watches.
func watch(int) (stop func()) { return func() {} }
