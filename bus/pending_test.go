package bus

import (
	"fmt"
	"testing"
)

func TestPendingIsASetInOrder(t *testing.T) {
	t.Parallel()
	for _, count := range []int{1, fewTexts, fewTexts + 1, 50} {
		p := newPending(1)
		p.add(Message{"before", "1"}, Message{"before", "2"}, Message{"c0", "before"}, Message{"c1", "0"})
		p.reset(count)
		if !p.empty() || p.size() != 0 || len(p.messages()) != 0 {
			t.Fatalf("after the reset there is still %v", p.messages())
		}
		for range 2 { // the second time everything is known
			for channel := range count {
				for payload := range count {
					if collapsed := p.add(Message{fmt.Sprint("c", channel), fmt.Sprint(payload)}); collapsed != 0 {
						t.Fatalf("%d of %d: %d collapsed within the limit", payload, count, collapsed)
					}
				}
			}
		}
		if collapsed := p.add(Message{"c0", "one too many"}, Message{"c0", "and another"}, Message{"c0", ""}); collapsed != 2 {
			t.Errorf("%d collapsed, want 2", collapsed)
		}
		got := p.messages()
		if len(got) != count*count+1 || p.size() != len(got) {
			t.Fatalf("%d messages, size %d, want %d", len(got), p.size(), count*count+1)
		}
		if got[count] != (Message{"c0", ""}) {
			t.Errorf("got %+v after the payloads of the first channel, want an empty payload", got[count])
		}
		got = append(got[:count], got[count+1:]...)
		for i, m := range got {
			if want := (Message{fmt.Sprint("c", i/count), fmt.Sprint(i % count)}); m != want {
				t.Fatalf("message %d of %d is %+v, want %+v", i, count*count, m, want)
			}
		}
	}
}
