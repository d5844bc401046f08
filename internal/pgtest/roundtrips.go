package pgtest

import (
	"context"
	"net"
	"sync/atomic"

	"github.com/jackc/pgx/v5/pgconn"
)

// RoundTrips counts how often connections waited for the server.
type RoundTrips struct {
	count atomic.Int64
}

// CountRoundTrips makes connections opened from config count their round trips. For a pool, pass
// &poolConfig.ConnConfig.Config before the pool is made.
func CountRoundTrips(config *pgconn.Config) *RoundTrips {
	counter := &RoundTrips{}
	dial := config.DialFunc
	config.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &countingConn{Conn: conn, counter: counter}, nil
	}
	return counter
}

// Count returns how many times an answer followed something sent, on all connections together since they were opened:
// connecting counts as well, so take the difference of two calls. Statements sent in one pipeline count once.
func (r *RoundTrips) Count() int64 { return r.count.Load() }

type countingConn struct {
	net.Conn

	counter *RoundTrips
	asked   atomic.Bool // something was sent that nothing has answered yet
}

func (c *countingConn) Write(b []byte) (int, error) {
	c.asked.Store(true)
	return c.Conn.Write(b)
}

func (c *countingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && c.asked.Swap(false) {
		c.counter.count.Add(1)
	}
	return n, err
}
