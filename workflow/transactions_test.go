package workflow

import "testing"

func TestTransactionalActivitiesLeaveConnectionsToOthers(t *testing.T) {
	t.Parallel()
	for connections, want := range map[int]int{1: 1, 2: 1, 3: 2, 4: 3, 8: 6, 16: 12, 100: 75} {
		if got := transactions(connections); got != want {
			t.Errorf("%d transactional activities on a pool of %d, want %d", got, connections, want)
		}
	}
}
