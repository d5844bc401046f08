package refusal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// secrets are what no text may contain.
var secrets = []string{"hunter2", "card-4111", "4111111"}

func mustNotQuote(t *testing.T, how, text string) {
	t.Helper()
	for _, secret := range secrets {
		if strings.Contains(text, secret) {
			t.Errorf("%s prints %s", how, text)
		}
	}
}

// ways are how an error is printed.
func ways(t *testing.T, err error) map[string]string {
	t.Helper()
	var text, structured bytes.Buffer
	slog.New(slog.NewTextHandler(&text, nil)).Error("failed", "error", err)
	slog.New(slog.NewJSONHandler(&structured, nil)).Error("failed", "error", err)
	marshalled, marshalErr := json.Marshal(map[string]any{"error": err})
	if marshalErr != nil {
		t.Fatal(marshalErr)
	}
	printed := map[string]string{"text log": text.String(), "JSON log": structured.String(), "JSON": string(marshalled)}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		printed[verb] = fmt.Sprintf(verb, err)
		printed["in a struct "+verb] = fmt.Sprintf(verb, struct{ Err error }{err})
	}
	return printed
}

func valueError() *pgconn.PgError {
	return &pgconn.PgError{
		Severity: "ERROR", Code: "22P02", Message: `invalid input syntax for type integer: "hunter2"`, Detail: "hunter2", Hint: "hunter2", Where: "hunter2",
		InternalQuery: "select 'hunter2'", TableName: "orders", ColumnName: "card", ConstraintName: "card_check", DataTypeName: "luhn",
	}
}

func TestWhatIsPublicOfAnErrorQuotesNothing(t *testing.T) {
	t.Parallel()
	taken := &pgconn.PgError{
		Severity: "ERROR", Code: "23505", Message: `duplicate key value violates unique constraint "cards_pkey"`, Detail: "Key (number)=(card-4111) already exists.",
		Where: "card-4111", InternalQuery: "card-4111", Hint: "card-4111",
	}
	value := valueError()
	lines := &pgconn.PgError{Severity: "ERROR", Code: "22023", Message: "bad value\nhunter2"}
	for name, err := range map[string]error{
		"a key that is taken": taken,
		"a value":             value,
		"wrapped":             fmt.Errorf("record: %w", fmt.Errorf("%w: try again", value)),
		"joined":              errors.Join(io.EOF, taken, fmt.Errorf("%w", value)),
		"public twice":        fmt.Errorf("flush: %w", Public(fmt.Errorf("batch: %w", value))),
		"changed on the way":  &indented{lines},
	} {
		public := Public(err)
		for how, text := range ways(t, public) {
			mustNotQuote(t, name+", "+how, text)
		}
		if found := (*pgconn.PgError)(nil); !errors.As(public, &found) || Code(public) != found.Code || !strings.Contains(public.Error(), "(SQLSTATE "+found.Code+")") {
			t.Errorf("%s: %v has lost what the database said", name, public)
		}
	}
	_, parsing := pgconn.ParseConfig("postgres://me:hunter2@hunter2@localhost:hunter2/shop")
	for how, text := range ways(t, Public(fmt.Errorf("connect: %w", parsing))) {
		mustNotQuote(t, "a connection string, "+how, text)
	}
	_, connecting := pgconn.Connect(t.Context(), "postgres://me:hunter2@127.0.0.1:1/shop?sslmode=disable")
	for how, text := range ways(t, Public(connecting)) {
		mustNotQuote(t, "a connection, "+how, text)
	}
	if got := Public(connecting); got.Error() != connecting.Error() || !errors.As(got, new(*pgconn.ConnectError)) {
		t.Errorf("of a connection that cannot be made is told %v", got)
	}
	got := Public(fmt.Errorf("record: %w", value)).Error()
	want := `record: ERROR: invalid text representation; ` + withheld + `, table "orders", column "card", type "luhn", constraint "card_check" (SQLSTATE 22P02)`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := Public(taken).Error(); got != taken.Error() {
		t.Errorf("a message that quotes nothing is %s", got)
	}
	if Public(nil) != nil || Public(io.EOF) != io.EOF || Text(nil) != "" { //nolint:errorlint // the very same
		t.Error("what the database did not send is changed")
	}
}

// indented changes the words of the error that it wraps, as pgconn.ConnectError does.
type indented struct{ err error }

func (e *indented) Error() string { return strings.ReplaceAll(e.err.Error(), "\n", "\n\t") }
func (e *indented) Unwrap() error { return e.err }

func TestALoggerQuotesNothing(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	logger := Logger(slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if Logger(logger) != logger || Logger(nil) != nil {
		t.Error("a logger is wrapped twice, or where there is none")
	}
	err := fmt.Errorf("flush: %w", valueError())
	logger.With("error", err).WithGroup("more").Debug("one", "run", 1)
	logger.Error("two", "run", 1, "error", err, slog.Group("inner", slog.Any("cause", err), slog.String("kind", "record")))
	logger.Log(context.Background(), slog.LevelWarn, "three", "error", io.EOF)
	mustNotQuote(t, "the log", log.String())
	for _, want := range []string{`"run":1`, `flush: ERROR: invalid text representation; ` + withheld, `"kind":"record"`, `"error":"EOF"`} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %s:\n%s", want, log.String())
		}
	}
}

type amount struct{}

func (*amount) UnmarshalJSON([]byte) error { return errors.New("no amount: card-4111") }

func TestWhatCannotBeDecodedIsNotQuoted(t *testing.T) {
	t.Parallel()
	decode := func(text string, into any) error { return json.Unmarshal([]byte(text), into) }
	for name, test := range map[string]struct {
		err  error
		want string
	}{
		"a number": {decode(`{"Count": 4111111}`, new(struct{ Count int8 })), "number"},
		"a key":    {decode(`{"hunter2": 1}`, new(map[int]int)), ""},
		"a string in a number": {decode(`{"Count": "hunter2"}`, new(struct {
			Count int `json:",string"`
		})), ""},
		"a time":                    {decode(`"hunter2"`, new(time.Time)), "time.ParseError"},
		"an address":                {decode(`"hunter2"`, new(netip.Addr)), ""},
		"a type's own decoder":      {decode(`1`, new(amount)), "errors.errorString"},
		"the text is not JSON":      {decode(`{"a": hunter2}`, new(any)), "byte 7"},
		"another type of a field":   {decode(`{"Count": "hunter2"}`, new(struct{ Count int })), "Count"},
		"wrapped by whoever called": {fmt.Errorf("decode: %w", decode(`4111111`, new(int8))), "int8"},
	} {
		told := Decoding(test.err)
		if test.err == nil || !errors.Is(told, test.err) || !strings.Contains(told.Error(), test.want) {
			t.Errorf("%s: %v is told as %v", name, test.err, told)
		}
		for how, text := range ways(t, told) {
			mustNotQuote(t, name+", "+how, text)
		}
	}
	if Decoding(nil) != nil {
		t.Error("nothing is an error")
	}
}

// secretive is encoded by a method that quotes what it encodes.
type secretive string

func (s secretive) MarshalJSON() ([]byte, error) {
	return nil, fmt.Errorf("cannot encode %s", string(s))
}

func TestEncodingNeverQuotesWhatWasEncoded(t *testing.T) {
	t.Parallel()
	encode := func(value any) error {
		_, err := json.Marshal(value)
		return err
	}
	for name, test := range map[string]struct {
		err  error
		want string
	}{
		"a number's literal":     {encode(json.Number("hunter2")), "errors.errorString"},
		"a type's own encoder":   {encode(secretive("hunter2")), "secretive"},
		"JSON that is none":      {encode(json.RawMessage(`{"a": 4111111 hunter2}`)), "json.RawMessage is encoded as is no JSON"},
		"no number":              {encode(math.NaN()), "float64"},
		"a type that has none":   {encode(make(chan int)), "chan int"},
		"a value within a value": {encode(map[string]any{"hunter2": []any{math.Inf(1)}}), "float64"},
	} {
		told := Encoding(test.err)
		if test.err == nil || !errors.Is(told, test.err) || !strings.Contains(told.Error(), test.want) {
			t.Errorf("%s: %v is told as %v", name, test.err, told)
		}
		for how, text := range ways(t, told) {
			mustNotQuote(t, name+", "+how, text)
		}
	}
	if Encoding(nil) != nil || Withheld(nil) != nil {
		t.Error("nothing is an error")
	}
}

func TestWithheldTellsTheCodeAlone(t *testing.T) {
	t.Parallel()
	refused := &pgconn.PgError{Severity: "ERROR", Code: "42601", Message: `syntax error at or near "hunter2" of jsonpath input`}
	told := Withheld(fmt.Errorf("check: %w", refused))
	if !errors.Is(told, refused) || !strings.Contains(told.Error(), "42601") {
		t.Errorf("%v is told as %v", refused, told)
	}
	for how, text := range ways(t, told) {
		mustNotQuote(t, how, text)
	}
	mustNotQuote(t, "another error", Withheld(errors.New("hunter2")).Error())
}
