// Command orders runs Northwind's 830 orders as durable workflows, on real parts, and checks the outcome to the cent. See
// README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// The demo consists of several processes, all of them this program: see child.go.
	if isChild(os.Args) {
		os.Exit(childMain(os.Args[1]))
	}
	os.Exit(parentMain())
}

// Exit codes of the parent; flag uses 2 for mistakes on the command line.
const (
	exitPassed      = 0
	exitFailed      = 1
	exitInterrupted = 130
)

var errInterrupted = errors.New("interrupted")

func parentMain() int {
	set := settings{out: os.Stdout}
	notify := flag.String("notify", "on", "`on` or off: LISTEN/NOTIFY, or polling only")
	flag.BoolVar(&set.keep, "keep", false, "leave the database running")
	flag.IntVar(&set.orders, "orders", 0, "run only the last `n` orders of the file (0: all)")
	flag.Parse()
	if err := set.complete(*notify, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		flag.Usage()
		return 2
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

	passed, err := runDemo(ctx, set)
	switch {
	case errors.Is(context.Cause(ctx), errInterrupted):
		fmt.Fprintln(os.Stderr, "interrupted; everything is stopped and removed")
		if err != nil && !errors.Is(err, errInterrupted) && !errors.Is(err, context.Canceled) {
			fmt.Fprintln(os.Stderr, err)
		}
		return exitInterrupted
	case err != nil:
		fmt.Fprintln(os.Stderr, "orders:", err)
		return exitFailed
	case !passed:
		return exitFailed
	}
	return exitPassed
}
