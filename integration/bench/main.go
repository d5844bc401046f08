// Bench measures this library beside what it stands on, in one run on one throwaway server whose commits wait for the disk.
//
// It prints a table, and then each figure as a line "RESULT <name> <value> <unit>". Machines differ and are shared: compare
// the ratios of one run, not the times of two.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// suite is a benchmark that can be asked for by name.
type suite struct {
	name string
	run  func(ctx context.Context, b *bench) error
}

var suites = []suite{{"engine", runEngine}, {"bus", runBus}, {"storm", runStorm}}

func main() {
	if description := os.Getenv(workerVariable); description != "" {
		if err := serveWorker(description); err != nil {
			fmt.Fprintln(os.Stderr, "bench worker:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop has been called
	}
}

func run(ctx context.Context, arguments []string) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	only := flags.String("bench", "", "run only this benchmark: "+strings.Join(names(), ", "))
	parts := flags.String("parts", "", "run only these parts of -bench=engine (for example w1,w2) or of -bench=bus ("+strings.Join(busPartNames(), ",")+")")
	quick := flags.Bool("quick", false, "measure for a shorter time")
	profile := flags.String("cpuprofile", "", "write a CPU profile of this process to `file`; beside it those of the engine's worker, file.w1_1 and file.w1_500, and what its statements took")
	if err := flags.Parse(arguments); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if *only != "" && !slices.Contains(names(), *only) {
		return fmt.Errorf("-bench=%s: there is no such benchmark, only: %s", *only, strings.Join(names(), ", "))
	}
	if *parts != "" && *only == "" {
		return fmt.Errorf("-parts=%s: name the benchmark that has them with -bench as well", *parts)
	}
	if *profile != "" {
		stop, err := startProfile(*profile)
		if err != nil {
			return err
		}
		defer stop()
	}
	server, err := pgtest.Start(ctx, pgtest.Durable())
	if err != nil {
		return err
	}
	b := &bench{server: server, quick: *quick, profile: *profile}
	if *parts != "" {
		b.parts = strings.Split(*parts, ",")
	}
	for _, s := range suites {
		if *only == "" || *only == s.name {
			if err = s.run(ctx, b); err != nil {
				err = fmt.Errorf("%s: %w", s.name, err)
				break
			}
		}
	}
	b.print(os.Stdout) // what was measured before an error, too
	return errors.Join(err, server.Stop(context.WithoutCancel(ctx)))
}

func startProfile(path string) (stop func(), err error) {
	file, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("-cpuprofile: %w", err)
	}
	if err := pprof.StartCPUProfile(file); err != nil {
		return nil, fmt.Errorf("-cpuprofile: %w", err)
	}
	return func() {
		pprof.StopCPUProfile()
		if err := file.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "bench: -cpuprofile:", err)
		}
	}, nil
}

func names() []string {
	var all []string
	for _, s := range suites {
		all = append(all, s.name)
	}
	return all
}
