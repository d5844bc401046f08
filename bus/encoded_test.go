package bus

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestReadEncodedReadsWhatEncodeWrites(t *testing.T) {
	t.Parallel()
	quickly(t, WorkflowResumable{InstanceID: "0198c0de", WorkflowName: "order"})
	quickly(t, WorkflowResumable{})
	quickly(t, ChannelMessage{ChannelName: "approval", MessageID: 123456789012345678})
	quickly(t, ChannelMessage{ChannelName: "approval", MessageID: 0, TargetInstanceID: "run-1"})
	quickly(t, OutboxPending{EventID: "e-1 <&>"})
}

func quickly[T Payload](t *testing.T, want T) {
	t.Helper()
	if got, ok := readEncoded[T](Encode(want)); !ok || any(got) != any(want) {
		t.Errorf("%s: got %+v, %v, want %+v", Encode(want), got, ok, want)
	}
}

// FuzzReadEncoded: what the shortcut accepts, full decoding accepts and reads in the same way.
func FuzzReadEncoded(f *testing.F) {
	for _, seed := range []string{
		Encode(WorkflowResumable{InstanceID: "a", WorkflowName: "b"}),
		Encode(ChannelMessage{ChannelName: "a", MessageID: 7, TargetInstanceID: "b"}),
		Encode(ChannelMessage{ChannelName: "a", MessageID: -7}),
		Encode(OutboxPending{EventID: "\u00e9\"\\\n"}),
		`{"event_id":"a","more":1}`, `{"event_id":"a"} `, `{"channel_name":"a","message_id":007}`, `{"channel_name":"a","message_id":}`,
		`{"channel_name":"a","message_id":9999999999999999999}`, `{"instance_id":"a"`, `{"event_id":"` + strings.Repeat("x", 300) + `"}`, "",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, payload string) {
		sameAsJSON[WorkflowResumable](t, payload)
		sameAsJSON[ChannelMessage](t, payload)
		sameAsJSON[OutboxPending](t, payload)
		sameAsJSON[TimerRegistered](t, payload)
	})
}

func sameAsJSON[T Payload](t *testing.T, payload string) {
	t.Helper()
	got, ok := readEncoded[T](payload)
	if !ok {
		return
	}
	var want T
	if err := json.Unmarshal([]byte(payload), &want); err != nil || any(got) != any(want) {
		t.Errorf("%q: got %+v, want %+v, %v", payload, got, want, err)
	}
}
