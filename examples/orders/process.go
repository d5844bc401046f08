package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	readyTimeout = 30 * time.Second
	stopTimeout  = 20 * time.Second
)

// process is a child, as the parent sees it.
type process struct {
	name    string
	logPath string
	command *exec.Cmd
	// lifeline is the child's standard input. It ends with us, however we end, and the child ends with it.
	lifeline io.WriteCloser
	ready    chan struct{} // closed when the child says so
	done     chan struct{} // closed when it has ended
	report   string        // read after done
	err      error         // read after done
	killed   bool          // by us
}

// spawn starts this program again in another role, and waits until it is ready.
func spawn(ctx context.Context, as role, config childConfig, logDir string) (*process, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	p := &process{name: config.Name, logPath: filepath.Join(logDir, config.Name+".log"), ready: make(chan struct{}), done: make(chan struct{})}
	log, err := os.Create(p.logPath)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }() // the child has its own handle

	p.command = exec.Command(program, string(as)) //nolint:noctx // stopped in order, or killed as part of the demo
	p.command.Stderr = log
	stdout, err := p.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if p.lifeline, err = p.command.StdinPipe(); err != nil {
		return nil, err
	}
	first, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	if err := p.command.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	go p.watch(stdout)
	if _, err := p.lifeline.Write(append(first, '\n')); err != nil {
		return nil, errors.Join(fmt.Errorf("configure %s: %w", p.name, err), p.stop())
	}
	if err := p.awaitReady(ctx); err != nil {
		return nil, errors.Join(err, p.stop())
	}
	return p, nil
}

// watch reads what the child says until it ends.
func (p *process) watch(stdout io.Reader) {
	defer close(p.done)
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if report, ok := strings.CutPrefix(lines.Text(), lineReport); ok {
			p.report = report
		} else if lines.Text() == lineReady {
			close(p.ready)
		}
	}
	p.err = p.command.Wait()
}

func (p *process) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("%s is not ready after %s", p.name, readyTimeout))
	defer cancel()
	select {
	case <-p.ready:
		return nil
	case <-p.done:
		return p.failure()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// running reports whether the child has not ended yet.
func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// failure says why the child, which has ended, did not end well; nil if it did, or if we killed it.
func (p *process) failure() error {
	if p.killed || p.err == nil && p.report != "" {
		return nil
	}
	return fmt.Errorf("%s ended before its time (%s); its log ends with:\n%s", p.name, p.command.ProcessState, tail(p.logPath))
}

// kill sends SIGKILL: the child has no chance to clean up.
func (p *process) kill() error {
	p.killed = true
	if err := p.command.Process.Kill(); err != nil {
		return fmt.Errorf("kill %s: %w", p.name, err)
	}
	<-p.done
	return nil
}

// stop has the child end in order, and waits for it.
func (p *process) stop() error {
	_ = p.lifeline.Close() // it may have ended already
	select {
	case <-p.done:
		return p.failure()
	case <-time.After(stopTimeout):
	}
	return errors.Join(fmt.Errorf("%s did not stop within %s and was killed; its log ends with:\n%s", p.name, stopTimeout, tail(p.logPath)), p.kill())
}

// decodeReport reads what the child, which has ended, reported.
func (p *process) decodeReport(report any) error {
	if err := json.Unmarshal([]byte(p.report), report); err != nil {
		return fmt.Errorf("report of %s (%q): %w", p.name, p.report, err)
	}
	return nil
}

// tail returns the end of a log.
func tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}
