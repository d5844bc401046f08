// Command watermill is an existing Watermill application, a box office, before and after Romancy is added to it. See
// README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
)

const (
	exitFailed      = 1
	exitUsage       = 2 // as flag
	exitInterrupted = 130
)

var errInterrupted = errors.New("interrupted")

func main() { os.Exit(mainExit()) }

func mainExit() int {
	log := flag.Bool("log", false, "write what Watermill and Romancy log to standard error")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "unexpected argument %q\n", flag.Arg(0))
		flag.Usage()
		return exitUsage
	}
	logger := slog.New(slog.DiscardHandler)
	if *log {
		logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}

	ctx, stop := context.WithCancelCause(context.Background())
	defer stop(nil)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() { // ends with the process
		<-signals
		signal.Stop(signals) // a second Ctrl-C ends at once
		stop(errInterrupted)
	}()

	passed, err := run(ctx, os.Stdout, logger)
	switch {
	case errors.Is(context.Cause(ctx), errInterrupted):
		fmt.Fprintln(os.Stderr, "interrupted; everything is stopped and removed")
		return exitInterrupted
	case err != nil:
		fmt.Fprintln(os.Stderr, "watermill:", err)
		return exitFailed
	case !passed:
		return exitFailed
	}
	return 0
}
