//go:build !unix

package pgtest

import (
	"errors"
	"os"
	"os/exec"
)

var errUnsupported = errors.New("private servers need a Unix: set DATABASE_URL")

type owner struct{}

func findOwner() (*owner, error) { return nil, errUnsupported }

func (o *owner) apply(*exec.Cmd) {}

func (o *owner) write(string, string) error { return errUnsupported }

func (o *owner) own(string) error { return errUnsupported }

func (o *owner) reaches(string) bool { return true }

func makeDir(*owner, bool) (string, *os.File, error) { return "", nil, errUnsupported }

func shutdownSignal(string) (os.Signal, error) { return nil, errUnsupported }

func prepare(*exec.Cmd, bool) {}

func watch(int) (stop func()) { return func() {} }
