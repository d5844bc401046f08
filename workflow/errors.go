package workflow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"runtime/debug"
	"slices"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/romancy-go/romancy/workflow/internal/journal"
)

var (
	// ErrTimeout is returned by a wait when what it waits for did not come within its timeout.
	ErrTimeout = errors.New("timed out waiting for a message")
	// ErrNotStarted is returned by calls on an engine that has not been started, or on a nil one.
	ErrNotStarted = errors.New("engine not started: call Start first")
	// ErrClosed is returned by calls on an engine that is shutting down or has shut down.
	ErrClosed = errors.New("engine is shut down")
	// ErrNotFound says that there is no run with that id.
	ErrNotFound = errors.New("no such run")
	// ErrUndeliverable is returned by SendTo when the receiving run does not exist or has ended.
	ErrUndeliverable = errors.New("undeliverable: the receiving run does not exist or has ended")
	// ErrModeConflict is returned by Subscribe when others are subscribed to the channel in another mode.
	ErrModeConflict = errors.New("channel is in use in another mode")
	// ErrIDConflict is returned by Start when the id belongs to a run of another workflow or with another input.
	ErrIDConflict = errors.New("id belongs to another run")
	// ErrNotRetryable is returned by Retry for a run that is neither stuck nor failed, that has compensated all it had done, that
	// would only fail again by what stays recorded, or whose history is being deleted by retention.
	ErrNotRetryable = errors.New("the run cannot be retried")
	// ErrCancelled is what a workflow is told by every command once its run is cancelled, as a *CancelledError, and what the
	// result of such a run is, as a *RunError.
	ErrCancelled = errors.New("the run is cancelled")
	// ErrNotChosen is the result of a future that lost a Select.
	ErrNotChosen = errors.New("another case of the Select was chosen")
	// ErrEnded is returned by Cancel for a run that has ended in another way, or is undoing its steps already.
	ErrEnded = errors.New("the run has ended, or is ending")
	// ErrNotEnded says that a run cannot be erased, because it may still go on.
	ErrNotEnded = errors.New("the run has not ended")
	// ErrErased says that what is asked of a run was erased, see [Engine.Erase].
	ErrErased = errors.New("the run was erased")
	// ErrTooLarge says that a value is larger than MaxPayload, or nested too deep to be read back (9,990 levels). An activity with such a
	// result has failed, for good.
	ErrTooLarge = errors.New("too large to be stored")
	// ErrDiverged is what a run is stuck with whose recorded history does not fit the code: the workflow issued another command than the one
	// recorded, or what is recorded does not decode into its types. Deploy code that fits, and Retry the run.
	ErrDiverged = journal.ErrDiverged
	// ErrOutcomeUnknown says that the connection was lost, or the caller's context ended, before the database confirmed: what was asked may
	// have been carried out, may be carried out soon, or not. With an id or a key of its own it can be asked again.
	ErrOutcomeUnknown = errors.New("outcome unknown: the database has not confirmed it")
)

// Error is an error with a type and details that survive being recorded: for a failure of a step, live and replayed,
// errors.Is(err, target) holds when target is an *Error of the same Type, and errors.As finds the *Error with its details.
type Error struct {
	Type    string // a stable identifier, such as "card_declined"
	Message string // for people
	Details json.RawMessage
}

// NewError returns an *Error.
func NewError(errorType, message string) *Error { return &Error{Type: errorType, Message: message} }

// WithDetails returns a copy of the error with details, encoded as JSON. What cannot be encoded is left out, and said in the message.
func (e *Error) WithDetails(details any) *Error {
	detailed := *e
	text, err := marshalValue(details)
	if err != nil {
		detailed.Message = fmt.Sprintf("%s (its details could not be encoded: %v)", e.Message, err)
		return &detailed
	}
	detailed.Details = text
	return &detailed
}

func (e *Error) Error() string { return e.Message }

// ErrorType returns Type. Any error with this method is recorded with the type it returns.
func (e *Error) ErrorType() string { return e.Type }

// ErrorDetails returns Details. Any error with this method is recorded with the details it returns.
func (e *Error) ErrorDetails() json.RawMessage { return e.Details }

// Is reports whether target is an *Error of the same type.
func (e *Error) Is(target error) bool {
	other, ok := target.(*Error)
	return ok && other != nil && other.Type == e.Type
}

// ActivityError is how an activity's failure reaches the workflow. It is made from what was recorded, so it is the same
// live and replayed. Of the error that the activity returned its chain has an *Error with type, message and details, and
// context.DeadlineExceeded, ErrTooLarge, ErrTimeout, ErrUndeliverable or ErrModeConflict if that was its cause; the Go error itself is not in it.
type ActivityError struct {
	Activity string // the activity's name
	Type     string // see [Error.ErrorType]; the Go type of the error if it names none; "panic" for a panic; "goexit" if it ended its goroutine
	Message  string
	Details  json.RawMessage // see [Error.ErrorDetails]
	Attempts int
	Stack    string // of a panic

	position int32 // of the step, for the log
}

func (e *ActivityError) Error() string {
	return fmt.Sprintf("activity %s failed after %d attempt(s): %s", e.Activity, e.Attempts, e.Message)
}

// ErrorType returns the type of the error that the activity returned.
func (e *ActivityError) ErrorType() string { return e.Type }

// ErrorDetails returns the details of the error that the activity returned.
func (e *ActivityError) ErrorDetails() json.RawMessage { return e.Details }

func (e *ActivityError) trace() string { return e.Stack }

// Unwrap returns the *Error that the activity's error is recorded as.
func (e *ActivityError) Unwrap() error { return recordedError(e.Type, e.Message, e.Details) }

// survivors are the errors that a recorded failure still is, if it was one when it was returned and names no type of its own, with the
// types that they are recorded with. The first that fits is taken. No application calls a type of its own like those that begin
// with romancy: an error of its type "timeout" is not ErrTimeout.
var survivors = []struct {
	err      error
	recorded string
}{
	{ErrTooLarge, "too_large"},
	{context.DeadlineExceeded, "deadline_exceeded"}, // such as WithTimeout of an activity sets
	{ErrTimeout, "romancy_timeout"},
	{ErrUndeliverable, "romancy_undeliverable"},
	{ErrModeConflict, "romancy_mode_conflict"},
	{ErrDiverged, "romancy_diverged"},
}

func recordedError(errorType, message string, details json.RawMessage) error {
	recorded := &Error{Type: errorType, Message: message, Details: details}
	for _, survivor := range survivors {
		if survivor.recorded == errorType {
			return errors.Join(recorded, survivor.err)
		}
	}
	return recorded
}

// RunError is what Result returns for a run that did not complete.
type RunError struct {
	ID      string
	Status  Status
	Type    string // see [Error.ErrorType]
	Message string
	Details json.RawMessage // see [Error.ErrorDetails]
	Stack   string          // of a panic
	// CompensationErrors are the compensations that failed for good, one line each.
	CompensationErrors []string
}

func (e *RunError) Error() string {
	text := fmt.Sprintf("run %s is %s: %s", e.ID, e.Status, e.Message)
	if len(e.CompensationErrors) > 0 {
		text += fmt.Sprintf(" (and %d compensation(s) failed: %q)", len(e.CompensationErrors), e.CompensationErrors)
	}
	return text
}

// ErrorType returns the type of the error that ended the run.
func (e *RunError) ErrorType() string { return e.Type }

// ErrorDetails returns the details of the error that ended the run.
func (e *RunError) ErrorDetails() json.RawMessage { return e.Details }

// Unwrap returns the *Error that the error which ended the run is recorded as, joined with context.DeadlineExceeded, ErrTooLarge, ErrTimeout,
// ErrUndeliverable, ErrModeConflict or ErrDiverged if that was its cause.
func (e *RunError) Unwrap() error { return recordedError(e.Type, e.Message, e.Details) }

// Is reports whether target is ErrCancelled and the run was cancelled.
func (e *RunError) Is(target error) bool {
	return target == ErrCancelled && e.Status == StatusCancelled
}

type terminalError struct{ err error }

func (e terminalError) Error() string { return e.err.Error() }
func (e terminalError) Unwrap() error { return e.err }

// Terminal marks err as not worth another attempt: the activity fails at once, whatever its retry policy. Terminal(nil) is nil.
func Terminal(err error) error {
	if err == nil {
		return nil
	}
	return terminalError{err: err}
}

// failure is how an error is stored.
type failure struct {
	Type               string          `json:"type"`
	Message            string          `json:"message"`
	Details            json.RawMessage `json:"details,omitempty"`
	Stack              string          `json:"stack,omitempty"`
	CompensationErrors []string        `json:"compensation_errors,omitempty"`
	// KnownAt says, for steps beside the workflow that have failed, by position, what the last position was when the workflow learnt of it:
	// what is recorded up to there does not follow from it.
	KnownAt map[int32]int32 `json:"known_at,omitempty"`
}

type panicError struct {
	where string // empty: the workflow or the activity itself
	value any
	stack string
}

// newPanicError is called where value was recovered, so that the stack is that of the panic.
func newPanicError(where string, value any) *panicError {
	return &panicError{where: where, value: value, stack: string(debug.Stack())}
}

func (e *panicError) Error() string   { return fmt.Sprintf("panic%s: %v", e.where, e.value) }
func (*panicError) ErrorType() string { return "panic" }
func (e *panicError) trace() string   { return e.stack }

// checked returns err if it can be asked all that the engine asks an error, which is what describe does and whether it is one of
// targets, and otherwise a *panicError in its place. The methods of an error are code of the user's: those of a nil pointer,
// returned as an error by mistake, usually panic, and outside the call that returned it nothing would make a failure of that.
func checked(err error, targets ...error) (safe error) {
	if err == nil {
		return nil
	}
	defer func() {
		if value := recover(); value != nil {
			if terminal, ok := err.(terminalError); ok { //nolint:errorlint // what it wraps cannot be asked
				err = terminal.err
			}
			where := fmt.Sprintf(" in a method of the error that was returned, a %T", err)
			if pointer := reflect.ValueOf(err); pointer.Kind() == reflect.Pointer && pointer.IsNil() {
				where += " that is a nil pointer (return a plain nil for success)"
			}
			safe = newPanicError(where, value)
		}
	}()
	describe(err)
	for _, survivor := range survivors { // describe asks these of some only
		errors.Is(err, survivor.err)
	}
	for _, target := range targets {
		errors.Is(err, target)
	}
	return err
}

func describe(err error) failure {
	described := failure{Message: clipped(err.Error())}
	var panicked interface{ trace() string }
	if errors.As(err, &panicked) {
		described.Stack = clipped(panicked.trace())
	}
	var detailed interface{ ErrorDetails() json.RawMessage }
	if errors.As(err, &detailed) {
		switch details := detailed.ErrorDetails(); {
		case len(details) > maxErrorDetails:
			described.Message += fmt.Sprintf(" (its details are left out: they have %d bytes, and %d is the most)", len(details), maxErrorDetails)
		case tooDeep(details):
			described.Message += fmt.Sprintf(" (its details are left out: they are nested deeper than %d levels)", maxNesting)
		case json.Valid(details) && utf8.Valid(details):
			described.Details = details
		}
	}
	var typed interface{ ErrorType() string }
	if errors.As(err, &typed) {
		described.Type = clipped(typed.ErrorType())
		return described
	}
	for _, survivor := range survivors {
		if errors.Is(err, survivor.err) {
			described.Type = survivor.recorded
			return described
		}
	}
	if terminal := (terminalError{}); errors.As(err, &terminal) {
		err = terminal.err
	}
	described.Type = fmt.Sprintf("%T", err)
	return described
}

// mustEncode encodes what always can be: strings, and JSON that was checked.
func mustEncode(record any) []byte {
	text, err := json.Marshal(record)
	if err != nil {
		panic(err)
	}
	return text
}

// encodeWords encodes what holds words of somebody's, of an error say, so that every encoding of a database can store it: what is
// not ASCII is escaped, as JSON allows. A failure must not be refused for the way in which it is told.
func encodeWords(record any) []byte {
	text := mustEncode(record)
	if !slices.ContainsFunc(text, func(b byte) bool { return b >= utf8.RuneSelf }) {
		return text
	}
	escaped := make([]byte, 0, 2*len(text))
	for _, r := range string(text) {
		switch {
		case r < utf8.RuneSelf:
			escaped = append(escaped, byte(r))
		case r > 0xFFFF:
			high, low := utf16.EncodeRune(r)
			escaped = fmt.Appendf(escaped, `\u%04x\u%04x`, high, low)
		default:
			escaped = fmt.Appendf(escaped, `\u%04x`, r)
		}
	}
	return escaped
}

func (f failure) encode() []byte { return encodeWords(f) }

// attemptFailure is how a failed attempt is recorded. Its step has no record yet, so it says which one that is.
type attemptFailure struct {
	failure

	Kind    journal.Kind `json:"kind,omitempty"`
	Step    string       `json:"step,omitempty"`
	InDoubt bool         `json:"in_doubt,omitempty"` // see [step]
	Once    string       `json:"once,omitempty"`     // of an interruption: what it is known by when its answer was lost
}

func (f attemptFailure) encode() []byte { return encodeWords(f) }

func decodeAttempt(text []byte) attemptFailure {
	var described attemptFailure
	if err := json.Unmarshal(text, &described); err != nil {
		return attemptFailure{failure: decodeFailure(text)}
	}
	return described
}

func decodeFailure(text []byte) failure {
	var described failure
	if err := json.Unmarshal(text, &described); err != nil {
		return failure{Type: "unknown", Message: string(text)}
	}
	return described
}
