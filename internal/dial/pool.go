package dial

import "github.com/jackc/pgx/v5/pgxpool"

// Unusable says what is wrong with a pool that nothing can be asked of: it is nil, or the zero value of its type,
// whose methods panic. It returns "" for any other, and does not connect.
func Unusable(pool *pgxpool.Pool) (flaw string) {
	if pool == nil {
		return "is nil"
	}
	defer func() {
		if recover() != nil {
			flaw = "was not made by pgxpool.New or NewWithConfig, and its zero value cannot be used"
		}
	}()
	_ = pool.Config() // the only thing that one can be asked for without waiting
	return ""
}
