package bus

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
)

func TestPublisherNotifies(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode })
			s := subscribe(t, startListener(t, pool), 0, "news")
			p, err := NewPublisher(pool, PublisherConfig{})
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Publish("news", message.NewMessage("1", []byte("one")), message.NewMessage("2", []byte("two"))); err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{"one", "two"} {
				if n := next(t, s); n.Payload != want {
					t.Errorf("got %+v, want %s", n, want)
				}
			}
			if err := p.Publish("news"); err != nil {
				t.Errorf("nothing to publish: %v", err)
			}
			for range 2 {
				if err := p.Close(); err != nil {
					t.Error(err)
				}
			}
			if err := p.Publish("news", message.NewMessage("3", nil)); !errors.Is(err, ErrClosed) {
				t.Errorf("Publish after Close: %v", err)
			}
		})
	}
}

func TestPublisherHonoursTheMessagesContext(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	p, err := NewPublisher(pool, PublisherConfig{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	msg := message.NewMessage("1", nil)
	msg.SetContext(ctx)
	if err := p.Publish("news", msg); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestTxPublisherNotifiesWithTheCommit(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := subscribe(t, startListener(t, pool), 0, "news")
	dropped := begin(t, pool)
	if err := TxPublisher(dropped).Publish("news", message.NewMessage("1", []byte("rolled back"))); err != nil {
		t.Fatal(err)
	}
	if err := dropped.Rollback(within(t)); err != nil {
		t.Fatal(err)
	}
	tx := begin(t, pool)
	p := TxPublisher(tx)
	for topic, payload := range map[string]string{"": "x", strings.Repeat("t", 64): "x", "news": strings.Repeat("p", 8000), "other": "\xff"} {
		err := p.Publish(topic, message.NewMessage("1", []byte("good")), message.NewMessage("2", []byte(payload)))
		if refused := (*MessageError)(nil); !errors.As(err, &refused) || refused.Channel != topic {
			t.Errorf("%.10q to %.10q: got %v", payload, topic, err)
		}
	}
	if err := errors.Join(p.Publish("news", message.NewMessage("2", []byte("committed"))), p.Publish("news"), p.Close()); err != nil {
		t.Fatal(err)
	}
	commit(t, tx)
	if n := next(t, s); n.Payload != "committed" {
		t.Errorf("got %+v", n)
	}
}

func TestPublisherSurvivesPublishAndCloseInParallel(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, func(c *pgxpool.Config) { c.MaxConns = 4 })
	p, err := NewPublisher(pool, PublisherConfig{})
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			if err := p.Publish("news", message.NewMessage("1", []byte("x"))); err != nil && !errors.Is(err, ErrClosed) {
				t.Error(err)
			}
		})
		if i == 10 {
			all.Go(func() { _ = p.Close() })
		}
	}
	all.Wait()
}

func TestPublisherConfigReportsAllMistakes(t *testing.T) {
	t.Parallel()
	_, err := NewPublisher(nil, PublisherConfig{Timeout: -1})
	if err == nil || !strings.Contains(err.Error(), "pool") || !strings.Contains(err.Error(), "PublisherConfig.Timeout") {
		t.Errorf("got %v", err)
	}
}
