package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
)

// role is what one of the demo's processes does, beside its parent.
type role string

const (
	roleWorker  role = "worker"
	roleStarter role = "starter"
	roleDesk    role = "desk"
)

var roles = map[role]func(ctx context.Context, child *childProcess) (report any, err error){
	roleWorker: runWorker, roleStarter: runStarter, roleDesk: runDesk,
}

// childConfig is the first line a child reads.
type childConfig struct {
	Name     string `json:"name"`
	Database string `json:"database"`
	NATS     string `json:"nats"`
	Notify   bool   `json:"notify"`
	Orders   int    `json:"orders"`
}

// What a child writes, a line each: that it is ready, and at the end its report.
const (
	lineReady  = "ready"
	lineReport = "report "
)

// childProcess is what the functions of the roles are given.
type childProcess struct {
	childConfig

	logger *slog.Logger
	out    io.Writer
}

func (c *childProcess) ready() { fmt.Fprintln(c.out, lineReady) }

func isChild(args []string) bool {
	return len(args) == 2 && roles[role(args[1])] != nil
}

// childMain runs a role until its work is done or its standard input ends, which says that the parent wants it to stop, or
// has died. It returns the exit code.
func childMain(name string) int {
	signal.Ignore(os.Interrupt) // a Ctrl-C reaches all processes of the terminal: the parent decides what happens
	child := &childProcess{logger: slog.New(slog.NewTextHandler(os.Stderr, nil)), out: os.Stdout}
	input := bufio.NewReader(os.Stdin)
	line, err := input.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &child.childConfig)
	}
	if err != nil {
		child.logger.Error("no configuration on standard input: this command is for the demo's own use", "error", err)
		return exitFailed
	}
	child.logger = child.logger.With("process", child.Name)
	slog.SetDefault(child.logger)

	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() { // ends with the process
		_, _ = io.Copy(io.Discard, input)
		stop()
	}()
	report, err := roles[role(name)](ctx, child)
	if err != nil {
		child.logger.Error("failed", "error", err)
		return exitFailed
	}
	text, err := json.Marshal(report)
	if err != nil {
		child.logger.Error("encode the report", "error", err)
		return exitFailed
	}
	fmt.Fprintf(child.out, "%s%s\n", lineReport, text)
	return exitPassed
}
