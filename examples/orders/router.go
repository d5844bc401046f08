package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
)

func newRouter(child *childProcess) (*message.Router, error) {
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: shutdownTimeout}, watermill.NewSlogLogger(child.logger))
	if err != nil {
		return nil, fmt.Errorf("router: %w", err)
	}
	return router, nil
}

// whileRouting runs the router for as long as work takes, which begins when all handlers are subscribed. Ending the router
// closes its subscribers.
func whileRouting(ctx context.Context, router *message.Router, work func(ctx context.Context) error) error {
	ended := make(chan error, 1)
	go func() { ended <- router.Run(ctx) }()
	select {
	case <-router.Running():
	case err := <-ended:
		return fmt.Errorf("router: %w", err)
	}
	workErr := work(ctx)
	closeErr := router.Close()
	return errors.Join(workErr, closeErr, <-ended)
}
