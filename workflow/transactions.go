package workflow

import (
	"fmt"
	"runtime"
	"sync"
	"weak"

	"github.com/jackc/pgx/v5/pgxpool"
)

// pools has the gates for transactional activities: one a pool, because engines that share a pool share its connections. It
// keeps no pool alive.
var pools = struct {
	sync.Mutex

	gates map[weak.Pointer[pgxpool.Pool]]*gate
}{gates: map[weak.Pointer[pgxpool.Pool]]*gate{}}

// transactionsOf returns the gate for transactional activities on pool.
func transactionsOf(pool *pgxpool.Pool) *gate {
	key := weak.Make(pool)
	pools.Lock()
	defer pools.Unlock()
	if g := pools.gates[key]; g != nil {
		return g
	}
	connections := int(pool.Config().MaxConns)
	g := newGate(fmt.Sprintf("the pool's %d connections", connections), transactions(connections))
	pools.gates[key] = g
	runtime.AddCleanup(pool, forget, key)
	return g
}

func forget(key weak.Pointer[pgxpool.Pool]) {
	pools.Lock()
	defer pools.Unlock()
	delete(pools.gates, key)
}

// transactions is how many transactional activities may execute on a pool at one time: a quarter of its connections, one at
// least, is left to others, unless there is but one.
func transactions(connections int) int {
	return max(1, connections-max(1, connections/4))
}
