package bus

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"
)

// nasty are payloads that a stranger may send to keep a decoder busy, or to have it believe something.
func nasty() []string {
	fill := func(text string) string { return strings.Repeat(text, MaxPayload/len(text)) }
	around := func(before, fill, after string) string {
		return before + strings.Repeat(fill, (MaxPayload-len(before)-len(after))/len(fill)) + after
	}
	return []string{
		"", " ", "null", "{}", "[]", `""`, "0", "\x00", "\xff\xfe", "{", `{"`, `{"event_id"`, `{"event_id":`, "\ufeff{}",
		Encode(WorkflowResumable{"a", "b"}), Encode(OutboxPending{"a"}), Encode(ChannelMessage{"a", math.MaxInt64, "b"}),
		Encode(TimerRegistered{"a", "b", time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)}),
		`{"instance_id":1}`, `{"instance_id":["a"],"event_id":{"a":1},"channel_name":true}`, `{"instance_id":null,"event_id":null}`,
		`{"event_id":"a","event_id":"b","EVENT_ID":"c"}`, `{"channel_name":"a","message_id":"1"}`, `{"channel_name":"a","message_id":1.5}`,
		`{"channel_name":"a","message_id":9223372036854775808}`, `{"channel_name":"a","message_id":1e400}`, `{"channel_name":"a","message_id":-0}`,
		`{"instance_id":"a","expires_at":"10000-01-01T00:00:00Z"}`, `{"instance_id":"a","expires_at":"9999-12-31T23:59:59.999999999+23:59"}`,
		`{"instance_id":"a","expires_at":1e99}`, `{"event_id":"\ud800"}`, `{"event_id":"\u0000"}`, "{\"event_id\":\"\xc3\x28\"}",
		fill("["), fill(`{"a":`), fill("{"), fill(`"`), fill("\\"), fill("\xff"),
		around(`{"a":`, "[", ""), around(`{"event_id":"a","b":`, "[", ""), around(`{"event_id":"a"`, `,"b":1`, "}"), around(`{"event_id":"a"`, `,"event_id":"b"`, "}"),
		around(`{"event_id":"`, "x", `"}`), around(`{"event_id":"`, `\u0041`, `"}`), around(`{"event_id":"`, "\xff", `"}`), around(`{"event_id":"`, "\u2028", `"}`),
		around(`{"channel_name":"a","message_id":`, "9", "}"), around(`{"channel_name":"a","message_id":1e`, "9", "}"), around(`{"channel_name":"a","message_id":"`, "9", `"}`),
		around(`{"instance_id":"a","expires_at":"`, "9", `"}`), around(`{"instance_id":"a","expires_at":"2030-01-01T00:00:00.`, "9", `Z"}`),
	}
}

// FuzzDecode: whatever comes is decoded or refused, with an error that keeps little of it; what is decoded has an id, and is
// the same after another round.
func FuzzDecode(f *testing.F) {
	for _, payload := range nasty() {
		f.Add(payload)
	}
	f.Fuzz(func(t *testing.T, payload string) {
		if len(payload) > MaxPayload {
			return
		}
		decodes(t, payload, func(v WorkflowResumable) string { return v.InstanceID })
		decodes(t, payload, func(v TimerRegistered) string { return v.InstanceID })
		decodes(t, payload, func(v ChannelMessage) string { return v.ChannelName })
		decodes(t, payload, func(v OutboxPending) string { return v.EventID })
	})
}

func decodes[T Payload](t *testing.T, payload string, id func(T) string) {
	t.Helper()
	v, err := Decode[T](message.NewMessage("", []byte(payload)))
	if refused := (*PayloadError)(nil); err != nil {
		if !errors.As(err, &refused) || len(refused.Payload) > 110 || len(refused.Error()) > 1000 || !utf8.ValidString(refused.Payload) && utf8.ValidString(payload) {
			t.Errorf("%.40q is refused with %T of %d bytes: %.300v", payload, err, len(err.Error()), err)
		}
		return
	}
	if id(v) == "" {
		t.Errorf("%.40q names nothing and is accepted", payload)
	}
	if text := Encode(v); text != "" {
		if again, err := decode[T]("", []byte(text)); err != nil || Encode(again) != text {
			t.Errorf("%.40q: %.300s becomes %.300s, %v", payload, text, Encode(again), err)
		}
	}
}

// A storm of the worst costs no more than one of true payloads that are as long: some memory of the payload's size, at once
// given back.
func TestNastyPayloadsCostLittle(t *testing.T) {
	// Not parallel: it counts the process's allocations.
	const rounds = 20
	for _, payload := range nasty() {
		for _, event := range Events() {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			began := time.Now()
			for range rounds {
				_ = checkEvent(event, "channel", payload)
			}
			took := time.Since(began) / rounds
			runtime.ReadMemStats(&after)
			allocated, allocations := (after.TotalAlloc-before.TotalAlloc)/rounds, (after.Mallocs-before.Mallocs)/rounds
			if allocated > 16*MaxPayload || allocations > 100 {
				t.Errorf("%s, %.40q: %d bytes in %d allocations, %s", event, payload, allocated, allocations, took)
			}
			if testing.Verbose() && allocated > 2*MaxPayload {
				t.Logf("%s, %.40q: %d bytes in %d allocations, %s", event, payload, allocated, allocations, took)
			}
		}
	}
	if !json.Valid([]byte(Encode(OutboxPending{fmt.Sprint(rounds)}))) {
		t.Error("what is written is no JSON")
	}
}
