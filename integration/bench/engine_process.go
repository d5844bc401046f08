package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"time"
)

// Each system under measurement works in a process of its own, which is this program again with workerVariable set. Orders
// go to its standard input and answers come from its standard output, a line of JSON each, one after the other.
//
// A worker whose standard input ends exits at once, so none outlives this process, however this process ends.
const workerVariable = "ROMANCY_BENCH_WORKER"

// answerLimit bounds the wait for an answer: no order takes nearly as long.
const answerLimit = 5 * time.Minute

// assignment says what a worker process is.
type assignment struct {
	System  string `json:"system"`            // a key of systems
	URL     string `json:"url"`               // the database
	Outside bool   `json:"outside,omitempty"` // it executes no runs: it starts and signals those of others
}

type order struct {
	Do   string          `json:"do"`
	With json.RawMessage `json:"with,omitempty"`
}

type answer struct {
	Failure string          `json:"failure,omitempty"`
	Value   json.RawMessage `json:"value,omitempty"`
}

// process is a worker process. It takes one order at a time.
type process struct {
	name    string
	command *exec.Cmd
	input   io.WriteCloser // of orders
	answers *json.Decoder
	ended   bool
}

// spawn starts a worker process and waits until it is ready. It dies with ctx.
func spawn(ctx context.Context, as assignment) (*process, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	description, err := json.Marshal(as)
	if err != nil {
		return nil, err
	}
	command := exec.CommandContext(ctx, program)
	command.Env = append(os.Environ(),
		workerVariable+"="+string(description),
		"GOMAXPROCS="+strconv.Itoa(runtime.GOMAXPROCS(0)))
	command.Stderr = os.Stderr
	input, err := command.StdinPipe()
	if err != nil {
		return nil, err
	}
	output, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, err
	}
	p := &process{
		name: as.System + " worker", command: command,
		input: input, answers: json.NewDecoder(output),
	}
	if _, err := call[struct{}](ctx, p, "ready", nil); err != nil {
		p.kill()
		return nil, err
	}
	return p, nil
}

// call gives an order and waits for its answer.
func call[Value any](ctx context.Context, p *process, do string, with any) (value Value, err error) {
	failed := func(err error) (Value, error) {
		if ctx.Err() != nil {
			err = context.Cause(ctx) // which has killed the worker
		}
		return value, fmt.Errorf("%s: %s: %w", p.name, do, err)
	}
	given := order{Do: do}
	if with != nil {
		if given.With, err = json.Marshal(with); err != nil {
			return failed(err)
		}
	}
	limit := time.AfterFunc(answerLimit, func() {
		_ = p.command.Process.Kill() // already ended: the answer says so
	})
	defer limit.Stop()
	if err := json.NewEncoder(p.input).Encode(given); err != nil {
		return failed(err)
	}
	var got answer
	if err := p.answers.Decode(&got); err != nil {
		return failed(fmt.Errorf("it ended, or did not answer within %s: %w", answerLimit, err))
	}
	if got.Failure != "" {
		return failed(errors.New(got.Failure))
	}
	if got.Value != nil {
		if err := json.Unmarshal(got.Value, &value); err != nil {
			return failed(err)
		}
	}
	return value, nil
}

// kill ends the process as a crash would, and waits until it is gone.
func (p *process) kill() {
	if p == nil || p.ended {
		return
	}
	p.ended = true
	_ = p.command.Process.Kill() // it may have ended by itself
	_ = p.command.Wait()         // says that it was killed
}

// stop shuts the system down in order and waits until the process is gone.
func (p *process) stop(ctx context.Context) error {
	_, err := call[struct{}](ctx, p, "stop", nil)
	if err != nil {
		p.kill()
		return err
	}
	p.ended = true
	if err := p.command.Wait(); err != nil {
		return fmt.Errorf("%s: after its shutdown: %w", p.name, err)
	}
	return nil
}
