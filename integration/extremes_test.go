package integration_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/romancy-go/romancy"
	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// extremePatience bounds one call: it only decides how long a failure takes.
const extremePatience = 30 * time.Second

var (
	mebibyte = strings.Repeat("x", 1<<20)

	extremeInts      = []int{0, 1, -1, math.MinInt64, math.MaxInt32 + 1, math.MaxInt64, 10_000, 1_000_000}
	extremeDurations = []time.Duration{0, 1, -1, time.Millisecond, math.MinInt64, math.MaxInt64, 24 * time.Hour, 365 * 24 * time.Hour}
	extremeFloats    = []float64{0, 1, -1, math.NaN(), math.Inf(1), math.Inf(-1), math.MaxFloat64, math.SmallestNonzeroFloat64}
	extremeTexts     = []string{"", "a", mebibyte, "\xff\xfe", "a\x00b", `'"; -- %s 🚂`}
	extremeTimes     = []time.Time{
		{},
		time.Unix(0, 0), time.Date(1, 1, 1, 0, 0, 0, 1, time.UTC), time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2400, 1, 1, 0, 0, 0, 0, time.UTC),
		time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(300_000, 1, 1, 0, 0, 0, 0, time.UTC),
		time.Unix(1<<60, 0), time.Unix(math.MinInt64, 0),
	}
	extremePools = []*pgxpool.Pool{nil, new(pgxpool.Pool)}
)

// nilsOf are nil pointers that implement an interface.
var nilsOf = map[reflect.Type]any{
	reflect.TypeFor[metric.MeterProvider]():       (*sdkmetric.MeterProvider)(nil),
	reflect.TypeFor[trace.TracerProvider]():       (*sdktrace.TracerProvider)(nil),
	reflect.TypeFor[message.Publisher]():          (*crashPublisher)(nil),
	reflect.TypeFor[pgx.Tx]():                     (*pgxpool.Tx)(nil),
	reflect.TypeFor[workflow.Definition]():        (*workflow.Workflow[int, int])(nil),
	reflect.TypeFor[watermillsql.SchemaAdapter](): (*watermillsql.DefaultPostgreSQLSchema)(nil),
}

// extremesOf returns what is tried of a type.
func extremesOf(of reflect.Type) (values []reflect.Value) {
	add := func(given any) { values = append(values, reflect.ValueOf(given).Convert(of)) }
	switch {
	case of == reflect.TypeFor[time.Duration]():
		for _, d := range extremeDurations {
			add(d)
		}
	case of == reflect.TypeFor[time.Time]():
		for _, at := range extremeTimes {
			add(at)
		}
	case of == reflect.TypeFor[*pgxpool.Pool]():
		for _, pool := range extremePools {
			add(pool)
		}
	case of.Kind() == reflect.String:
		for _, text := range extremeTexts {
			add(text)
		}
	case of.Kind() == reflect.Float64:
		for _, number := range extremeFloats {
			add(number)
		}
	case of.ConvertibleTo(reflect.TypeFor[int]()):
		for _, number := range extremeInts {
			if !reflect.Zero(of).OverflowInt(int64(number)) {
				add(number)
			}
		}
	case of.Kind() == reflect.Slice && of.Elem().Kind() == reflect.Uint8:
		for _, text := range extremeTexts {
			add([]byte(text))
		}
		values = append(values, reflect.Zero(of))
	case of.Kind() == reflect.Slice:
		values = append(values, reflect.Zero(of))
		for _, element := range extremesOf(of.Elem()) {
			values = append(values, reflect.Append(reflect.Zero(of), element))
		}
	case of.Kind() == reflect.Map:
		values = append(values, reflect.Zero(of))
		for _, text := range extremeTexts {
			add(map[string]string{text: "value"})
			add(map[string]string{"name": text})
		}
	default: // pointers and interfaces
		values = append(values, reflect.Zero(of))
		if nothing, ok := nilsOf[of]; ok {
			values = append(values, reflect.ValueOf(nothing))
		}
	}
	return values
}

// extremeWorld is a running App with a database that everything is tried in.
type extremeWorld struct {
	t      *testing.T
	ctx    context.Context
	pool   *pgxpool.Pool
	logger *slog.Logger
	lines  *extremeLines
	app    *romancy.App
	probe  *workflow.Workflow[int, int] // calls what is in probes at that place

	mu     sync.Mutex
	probes []func(ctx *workflow.Context)
}

// extremeLines are the warnings and errors that were logged meanwhile.
type extremeLines struct {
	mu    sync.Mutex
	lines []string
}

func (l *extremeLines) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(line))
	return len(line), nil
}

// expectedLines are those about what the test does on purpose: Notify cannot return an error.
var expectedLines = regexp.MustCompile(`msg="notification dropped"`)

// check reports the lines that say that something accepted does not work.
func (l *extremeLines) check(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if !expectedLines.MatchString(line) {
			t.Errorf("logged: %.400s", line)
		}
	}
}

func newExtremeWorld(t *testing.T) *extremeWorld {
	t.Helper()
	w := &extremeWorld{t: t, ctx: t.Context(), lines: &extremeLines{}}
	w.logger = slog.New(slog.NewTextHandler(w.lines, &slog.HandlerOptions{Level: slog.LevelWarn}))
	w.pool = pgtest.Pool(t, func(config *pgxpool.Config) { config.MaxConns = 20 })
	w.probe = workflow.Define("probe", func(ctx *workflow.Context, which int) (int, error) {
		w.mu.Lock()
		call := w.probes[which]
		w.mu.Unlock()
		call(ctx)
		return which, nil
	})
	if err := romancy.Migrate(w.ctx, w.pool, romancy.WithLogger(w.logger)); err != nil {
		t.Fatal(err)
	}
	w.app = romancy.NewApp(w.options()...)
	if err := w.app.Start(w.ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.app.Shutdown(context.Background()); err != nil {
			t.Errorf("shut down after everything: %v", err)
		}
	})
	return w
}

// options are those of an App that works, but for what is tried.
func (w *extremeWorld) options(tried ...romancy.Option) []romancy.Option {
	return append([]romancy.Option{romancy.WithPool(w.pool), romancy.WithWorkflows(w.probe), romancy.WithLogger(w.logger)}, tried...)
}

// inRun has a run of the App's call commands. It fails the test if the run does not complete.
func (w *extremeWorld) inRun(call func(ctx *workflow.Context)) {
	w.t.Helper()
	if err := w.runOn(w.app.Engine(), call); err != nil {
		w.t.Errorf("a run that tries extremes: %v", err)
	}
}

func (w *extremeWorld) runOn(engine *workflow.Engine, call func(ctx *workflow.Context)) error {
	w.mu.Lock()
	w.probes = append(w.probes, call)
	which := len(w.probes) - 1
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(w.ctx, extremePatience)
	defer cancel()
	run, err := w.probe.Start(ctx, engine, which)
	if err != nil {
		return err
	}
	_, err = run.Result(ctx)
	return err
}

// attempt calls do, and returns an error also for a panic and for a call that does not return.
func attempt(do func() error) (err error, broken bool) { //nolint:revive // the second says what kind the first is of
	type outcome struct {
		err    error
		broken bool
	}
	done := make(chan outcome, 1)
	go func() {
		defer func() {
			if value := recover(); value != nil {
				done <- outcome{fmt.Errorf("panic: %v", value), true}
			}
		}()
		done <- outcome{err: do()}
	}()
	select {
	case got := <-done:
		return got.err, got.broken
	case <-time.After(extremePatience):
		return errors.New("the call does not return"), true
	}
}

// remedy is what tells a caller what to do instead.
var remedy = regexp.MustCompile(`\b(use|give|pass|leave|encode|send|make|name|must be)\b`)

// judge fails the test unless err, of a call with value, is nil, one of the documented, or says which argument or
// field has which value and what to use instead. It reports whether the value was accepted.
func (w *extremeWorld) judge(name, field string, value any, do func() error, documented ...error) (accepted bool) {
	w.t.Helper()
	err, broken := attempt(do)
	short := fmt.Sprintf("%.60v", value)
	switch {
	case broken:
		w.t.Errorf("%s with %s: %v", name, short, err)
		return false
	case err == nil:
		return true
	case slices.ContainsFunc(documented, func(one error) bool { return errors.Is(err, one) }):
		return true
	}
	text := err.Error()
	if len(text) > 3000 {
		w.t.Errorf("%s with %s: the error has %d bytes: %.300s", name, short, len(text), text)
	}
	if !strings.Contains(strings.ToLower(text), strings.ToLower(field)) {
		w.t.Errorf("%s with %s: the error does not name %q: %.300s", name, short, field, text)
	}
	if !slices.ContainsFunc(shown(value), func(form string) bool { return strings.Contains(text, form) }) {
		w.t.Errorf("%s with %s: the error does not show the value: %.300s", name, short, text)
	}
	if !remedy.MatchString(text) {
		w.t.Errorf("%s with %s: the error has no remedy: %.300s", name, short, text)
	}
	return false
}

// shown are the forms in which an error may show a value.
func shown(value any) []string {
	of := reflect.ValueOf(value)
	if !of.IsValid() {
		return []string{"nil"}
	}
	switch given := value.(type) {
	case time.Duration:
		return []string{given.String()}
	case time.Time:
		return []string{fmt.Sprint("year ", given.UTC().Year())}
	}
	switch of.Kind() {
	case reflect.String:
		return shownText(of.String())
	case reflect.Pointer:
		return []string{"nil", "zero value"}
	case reflect.Map:
		var forms []string
		for _, key := range of.MapKeys() {
			forms = append(append(forms, shownText(key.String())...), shownText(of.MapIndex(key).String())...)
		}
		return append(forms, "name") // of an attribute that has none
	case reflect.Slice:
		if text, ok := value.([]byte); ok {
			return shownText(string(text))
		}
		forms := []string{"nil"}
		for i := range of.Len() {
			forms = append(forms, shown(of.Index(i).Interface())...)
		}
		return forms
	default:
		return []string{fmt.Sprint(value)}
	}
}

func shownText(text string) []string {
	if text == "" {
		return []string{"empty", `""`, "of 0 bytes"}
	}
	if len(text) > 1000 {
		return []string{"1048", text[:40]} // its size in all, or its beginning
	}
	size := fmt.Sprintf("of %d bytes", len(text)) // of what may hold somebody's data
	return []string{fmt.Sprintf("%q", text), strings.Trim(fmt.Sprintf("%q", text), `"`), size, "UTF-8", "NUL"}
}

// tryEach calls do with each of the values.
func tryEach[T any](w *extremeWorld, name, field string, values []T, do func(value T) error, documented ...error) {
	w.t.Helper()
	for _, value := range values {
		w.judge(name, field, value, func() error { return do(value) }, documented...)
	}
}

// extremeRow tries what it names.
type extremeRow struct {
	names []string
	try   func(w *extremeWorld)
}

// triedNames lists what the tables name.
func triedNames() (names []string) {
	for _, row := range slices.Concat(extremeCalls, extremeRunCalls) {
		names = append(names, row.names...)
	}
	for _, trial := range extremeStructs {
		for _, field := range trial.fields() {
			names = append(names, trial.name+"."+field.Name)
		}
	}
	for _, option := range extremeOptions {
		names = append(names, option.name)
	}
	return names
}

// Whatever users give: a documented result, or an error that says which value it was and what to use. Nothing panics,
// hangs or breaks later.
func TestExtremesOfEverythingGiveResultsOrErrorsThatSayWhatToUse(t *testing.T) {
	t.Parallel()
	w := newExtremeWorld(t)
	for _, row := range slices.Concat(extremeCalls, extremeRunCalls) {
		row.try(w)
	}
	for _, trial := range extremeStructs {
		w.tryStruct(trial)
	}
	w.tryOptions()
	w.inRun(func(*workflow.Context) {}) // after all that
	w.lines.check(t)
	if status := w.app.Status(); status.State != romancy.StateRunning {
		t.Errorf("the App is %s in the end", status.State)
	}
}
