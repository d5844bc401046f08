package bus

import (
	"slices"
	"strings"
	"testing"

	"github.com/romancy-go/romancy/internal/schema"
)

func TestChannelNamesComeFromTheSchema(t *testing.T) {
	t.Parallel()
	c := ChannelsFor("romancy")
	want := []string{"romancy_workflow_resumable", "romancy_timer_expired", "romancy_channel_message", "romancy_outbox_pending"}
	if got := c.All(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	for _, event := range Events() {
		if got, ok := c.Event(c.Name(event)); !ok || got != event {
			t.Errorf("the channel of %s belongs to %q", event, got)
		}
	}
	if event, ok := c.Event("other"); ok {
		t.Errorf("%q belongs to %s", "other", event)
	}
	if event, ok := (Channels{}).Event(""); ok {
		t.Errorf("no channel belongs to %s", event)
	}
	if name := c.Name("other"); name != "" {
		t.Errorf("an unknown event has the channel %s", name)
	}
}

func TestChannelsReportAllMistakes(t *testing.T) {
	t.Parallel()
	c := Channels{WorkflowResumable: "same", TimerExpired: "same", ChannelMessage: strings.Repeat("x", 64)}
	err := c.Validate()
	for _, part := range []string{"both workflow_resumable and timer_expired", "64 bytes", "channel of outbox_pending: channel name is empty"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%q is missing in: %v", part, err)
		}
	}
}

func TestChannelsAreNotThoseOfEngines(t *testing.T) {
	t.Parallel()
	for _, private := range []string{schema.EndedChannel("shop"), schema.CancelledChannel("shop"), schema.LeftChannel("shop"), schema.LaterChannel("shop")} {
		c := ChannelsFor("shop")
		c.ChannelMessage = private
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), private) {
			t.Errorf("%s: %v", private, err)
		}
	}
}
