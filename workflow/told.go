package workflow

import (
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/romancy-go/romancy/internal/refusal"
)

// maxToldText is how much of an error's text stands in a log line or on a span, in bytes. History keeps more, see maxErrorText.
const maxToldText = 1 << 10

// told is an error as the log and spans show it. Its text is the user's: it may say anything.
type told struct {
	kind string // its type, as it is recorded
	text string // empty if texts are not to be shown
}

func (t *told) Error() string {
	if t.text == "" {
		return t.kind
	}
	return t.text
}

// told returns err, which code of the user's has returned, as it is shown.
func (e *Engine) told(err error) *told { return e.toldFailure(describe(err)) }

// toldFailure does the same for what is recorded of an error.
func (e *Engine) toldFailure(failed failure) *told {
	if e.config.HideErrorTexts {
		return &told{kind: failed.Type}
	}
	return &told{kind: failed.Type, text: clippedTo(failed.Message, maxToldText)}
}

// endSpan ends a span with the outcome of what it stands for. An error of the user's must be told by now.
func endSpan(span trace.Span, err error) {
	if err != nil && span.IsRecording() {
		shown, ok := err.(*told) //nolint:errorlint // as it is given
		if !ok {
			shown = &told{kind: fmt.Sprintf("%T", err), text: clippedTo(refusal.Text(err), maxToldText)}
		}
		attributes := []attribute.KeyValue{attribute.String("exception.type", shown.kind)}
		if shown.text != "" {
			attributes = append(attributes, attribute.String("exception.message", shown.text))
		}
		span.AddEvent("exception", trace.WithAttributes(attributes...))
		span.SetStatus(codes.Error, shown.Error())
	}
	span.End()
}
