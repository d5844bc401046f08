package workflow

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/romancy-go/romancy/workflow/internal/store"
)

// A look from the marks asks for every priority there is, in the order of urgency, whether it has been seen or not: an urgent
// run does not wait for the next look from the beginning.
func TestLooksFromTheMarksLeaveNoPriorityOut(t *testing.T) {
	t.Parallel()
	m := newReadyMarks([]string{"order"}, &priorities{})
	offer := store.Offer{Workflows: []string{"order"}, Allowed: []int{1}, Limit: 10}
	if _, full := m.begin(offer.Workflows); !full {
		t.Fatal("the first look is not a full one")
	}
	m.end(&store.Look{Mark: 100, Took: time.Minute}, true, offer, nil) // dear: the next begin at the marks
	for _, step := range []struct {
		found *store.Look
		want  []string
	}{
		{&store.Look{Mark: 200, Claimed: []store.Claimed{{Workflow: "order"}}, Priority: []int16{5}, ReadyAt: []int64{150}}, []string{"9..1", "0 from 100", "-1..-9"}},
		{&store.Look{Mark: 300}, []string{"9..6", "5 from 150", "4..1", "0 from 100", "-1..-9"}},
		{&store.Look{Mark: 400}, []string{"9..6", "5 from 300", "4..1", "0 from 300", "-1..-9"}},
	} {
		marks, full := m.begin(offer.Workflows)
		var got []string
		for _, since := range marks {
			if since.Mark != nil {
				got = append(got, fmt.Sprintf("%d from %d", since.Priority, *since.Mark))
				continue
			}
			got = append(got, fmt.Sprintf("%d..%d", since.Priority, since.Lowest))
		}
		if full || !slices.Equal(got, step.want) {
			t.Errorf("full %t, from %q; want %q", full, got, step.want)
		}
		m.end(step.found, full, offer, nil)
	}
}
