package pgtest

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"time"
)

// process is a child that dies with us.
type process struct {
	pid  int
	os   *os.Process
	done chan struct{} // closed when it has exited
	err  error         // how it exited; read after done
}

// startProcess starts command such that it is killed when this process dies, however it dies, unless keep.
func startProcess(command *exec.Cmd, keep bool) (*process, error) {
	prepare(command, keep)
	p := &process{done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// Linux kills the child when the thread that started it ends, so that thread must live as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := command.Start()
		if err == nil {
			p.os, p.pid = command.Process, command.Process.Pid
		}
		started <- err
		if err != nil {
			return
		}
		if !keep {
			defer watch(p.pid)()
		}
		p.err = command.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// stop asks the process to end and waits for it. When ctx ends first, it is killed.
func (p *process) stop(ctx context.Context, signal os.Signal) error {
	// An error here means that it has exited already.
	_ = p.os.Signal(signal)
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		p.kill()
		return ctx.Err()
	}
}

// kill ends the process at once. A postmaster that gets SIGKILL leaves its children for a moment, hence SIGQUIT first.
func (p *process) kill() {
	if signal, err := shutdownSignal("immediate"); err == nil {
		_ = p.os.Signal(signal)
	}
	select {
	case <-p.done:
		return
	case <-time.After(5 * time.Second):
	}
	_ = p.os.Kill()
	<-p.done
}
