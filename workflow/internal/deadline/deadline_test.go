package deadline_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/romancy-go/romancy/workflow/internal/deadline"
)

func TestHeapPopsWhatIsDueEarliestFirst(t *testing.T) {
	t.Parallel()
	var h deadline.Heap
	if _, ok := h.Next(); ok {
		t.Fatal("an empty heap has a next deadline")
	}
	start := time.Now()
	for i, offset := range []int{5, 1, 4, 2, 3} {
		earliest := h.Push(deadline.Entry{At: start.Add(time.Duration(offset) * time.Second), ID: fmt.Sprint(offset), Token: int64(i)})
		if want := offset == 5 || offset == 1; earliest != want {
			t.Errorf("pushing %d: earliest is %v", offset, earliest)
		}
	}
	if next, ok := h.Next(); !ok || !next.Equal(start.Add(time.Second)) {
		t.Fatalf("next is %v, %v", next, ok)
	}
	popped := func(at time.Duration, limit int) (ids string) {
		for _, entry := range h.PopDue(start.Add(at), limit) {
			ids += entry.ID
		}
		return ids
	}
	if got := popped(0, 10); got != "" {
		t.Errorf("popped %q before anything was due", got)
	}
	if got := popped(3*time.Second, 2); got != "12" {
		t.Errorf("popped %q, want the first two", got)
	}
	if got := popped(4*time.Second, 10); got != "34" {
		t.Errorf("popped %q, want what is due", got)
	}
	if h.Len() != 1 {
		t.Errorf("%d left, want 1", h.Len())
	}
	for i := range 10 {
		h.Push(deadline.Entry{At: start.Add(time.Duration(10-i) * time.Second), ID: fmt.Sprint(10 - i), Token: int64(i)})
	}
	h.Keep(func(entry deadline.Entry) bool { return entry.Token%2 == 1 && entry.ID != "5" })
	if got := popped(time.Hour, 100); got != "1379" {
		t.Errorf("kept %q, want the odd ones but 5, in order", got)
	}
}
