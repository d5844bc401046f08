package workflow

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/bounds"
	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/workflow/internal/journal"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

const (
	// readTimeout bounds one look at runs from outside, the wait for a connection of the pool included.
	readTimeout = 30 * time.Second
	// defaultListLimit is how many runs a page of List holds.
	defaultListLimit = 100
	maxListLimit     = 1000
	// maxInputPath is the longest Filter.InputPath, in bytes.
	maxInputPath = 10_000
	// listDepth is how many runs one statement of a filtered List looks at.
	listDepth = 5000
	// listTime is how long that may take, or it looks at fewer, down to leastDepth.
	listTime   = 2 * time.Second
	leastDepth = 50
)

// RunInfo describes a run, live or ended.
type RunInfo struct {
	ID            string
	Workflow      string
	Status        Status
	Input         json.RawMessage
	Output        json.RawMessage // of a completed run
	Err           *RunError       // of a failed, cancelled or stuck run; else nil, and of one that was erased
	Worker        string          // the label of the worker that executes it, or keeps it in memory; empty: none
	ContinuedFrom string          // the run that it continues; empty: none
	ContinuedAs   string          // the run that it goes on as, if it has continued as new
	CreatedAt     time.Time
	EndedAt       time.Time // zero: it has not ended
	ErasedAt      time.Time // see [Engine.Erase]; zero: it was not
	WakeAt        time.Time // of a waiting run: its earliest deadline; zero: it has none
	WaitingOn     []string  // of a waiting run: the channels whose messages wake it; "event:" and the type of an event
	Priority      int       // see WithPriority
	Deaths        int       // workers in a row that died with it, see Config.MaxDeaths
	Interruptions int       // executions again that were not its fault, see History and Config.MaxInterruptions
	HeldUp        []HeldUp  // of a run executing in this very process: its activities that wait for others to end
}

// HistoryEntry is a recorded step of a run.
type HistoryEntry struct {
	Position   int    // of the command in the run, from 1
	Kind       string // activity, compensation, timer, receive, publish, send, subscribe, unsubscribe, side_effect, side_effect_failed, ...
	Name       string
	Payload    json.RawMessage // as recorded; its form is the engine's own and may change between versions
	RecordedAt time.Time
	Attempts   []FailedAttempt
	// Interruptions are the times that the step was executed again although it had not failed: the database had refused its
	// transaction. At position 0 are those of the whole run, whose worker had lost its lease although it lived.
	Interruptions []Interruption
}

// Interruption is a time that a step was executed again without being its fault.
type Interruption struct {
	Number        int
	Type          string // see [Error.ErrorType]
	Message       string // the database's words
	InterruptedAt time.Time
}

// FailedAttempt is an attempt of a step that failed and was, or will be, followed by another.
type FailedAttempt struct {
	Number   int
	Type     string // see [Error.ErrorType]
	Message  string
	FailedAt time.Time
	NextAt   time.Time // when the next attempt is due
}

// Get returns the run with this id. It returns ErrNotFound if there is none, ErrNotStarted and ErrClosed.
func (e *Engine) Get(ctx context.Context, id string) (*RunInfo, error) {
	var found *store.Instance
	if err := e.readRun(ctx, id, func(b *pgx.Batch) { e.store.GetRun(b, id, &found) }); err != nil {
		return nil, fmt.Errorf("get run %.255q: %w", id, err)
	}
	if found == nil {
		return nil, fmt.Errorf("get run %.255q: %w", id, ErrNotFound)
	}
	info := newRunInfo(found)
	_, info.HeldUp = e.admission.heldUp(id)
	return info, nil
}

// History returns what the run with this id has recorded so far, in the order of its commands. A step that is still being
// retried, or of which no more is known than that it has begun beside the workflow, comes last, without a payload. It returns ErrNotFound if there is no such run, ErrNotStarted and ErrClosed.
func (e *Engine) History(ctx context.Context, id string) ([]HistoryEntry, error) {
	past, err := e.history(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("history of run %.255q: %w", id, err)
	}
	return newHistory(past.entries, past.attempts, past.interruptions), nil
}

// history reads page by page, so that no statement takes longer the more there is.
func (e *Engine) history(ctx context.Context, id string) (past recorded, err error) {
	var found *store.Instance
	records, failed := store.HistoryPage{After: math.MinInt32, More: true}, store.AttemptsPage{After: store.Attempt{Position: -1}, More: true}
	for records.More || failed.More {
		if err := e.readRun(ctx, id, func(b *pgx.Batch) {
			e.store.GetRun(b, id, &found)
			e.store.GetHistory(b, id, &records)
			e.store.GetAttempts(b, id, &failed)
			e.store.GetInterruptions(b, id, &past.interruptions)
		}); err != nil {
			return past, err
		}
		if found == nil {
			return past, ErrNotFound
		}
		if past.entries = append(past.entries, records.Entries...); len(records.Entries) > 0 {
			records.After = records.Entries[len(records.Entries)-1].Position
		}
		if past.attempts = append(past.attempts, failed.Attempts...); len(failed.Attempts) > 0 {
			failed.After = failed.Attempts[len(failed.Attempts)-1]
		}
	}
	return past, nil
}

// recorded is what the database has of the past of a run.
type recorded struct {
	entries       []store.Entry
	attempts      []store.Attempt
	interruptions []store.Interruption
}

func newHistory(entries []store.Entry, attempts []store.Attempt, interruptions []store.Interruption) []HistoryEntry {
	history := make([]HistoryEntry, 0, len(entries))
	place := map[int32]int{}
	var begun []store.Entry
	for _, entry := range entries {
		if entry.Position < 0 {
			begun = append(begun, entry)
			continue
		}
		place[entry.Position] = len(history)
		history = append(history, HistoryEntry{
			Position: int(entry.Position), Kind: entry.Kind, Name: entry.Name, Payload: entry.Payload, RecordedAt: entry.RecordedAt,
		})
	}
	for _, entry := range begun {
		note := journal.Record{Position: entry.Position, Kind: journal.Kind(entry.Kind)}
		position, ok := note.Noted()
		if _, recorded := place[position]; ok && !recorded {
			place[position] = len(history)
			history = append(history, HistoryEntry{Position: int(position), Kind: string(journal.Activity), Name: entry.Name})
		}
	}
	// entry returns where what has no record yet stands.
	entry := func(position int32, failed attemptFailure) int {
		at, known := place[position]
		if !known {
			at = len(history)
			place[position] = at
			history = append(history, HistoryEntry{Position: int(position), Kind: string(failed.Kind), Name: failed.Step})
		}
		return at
	}
	for _, interrupted := range interruptions {
		failed := decodeAttempt(interrupted.Error)
		at := entry(interrupted.Position, failed)
		history[at].Interruptions = append(history[at].Interruptions, Interruption{
			Number: interrupted.Number, Type: failed.Type, Message: failed.Message, InterruptedAt: interrupted.At,
		})
	}
	for _, attempt := range attempts {
		failed := decodeAttempt(attempt.Error)
		at := entry(attempt.Position, failed)
		history[at].Attempts = append(history[at].Attempts, FailedAttempt{
			Number: attempt.Number, Type: failed.Type, Message: failed.Message, FailedAt: attempt.FailedAt, NextAt: orZero(attempt.NextAt),
		})
	}
	return history
}

func newRunInfo(found *store.Instance) *RunInfo {
	info := &RunInfo{
		ID: found.ID, Workflow: found.Workflow, Status: Status(found.Status), Input: found.Input, Output: found.Output,
		Worker: found.WorkerLabel, ContinuedFrom: found.ContinuedFrom,
		CreatedAt: found.CreatedAt, EndedAt: orZero(found.EndedAt), ErasedAt: orZero(found.ErasedAt), Priority: int(found.Priority), Deaths: found.Deaths, Interruptions: found.Interruptions,
	}
	if info.Status == StatusWaiting {
		info.WakeAt, info.WaitingOn = orZero(found.WakeAt), found.WakeChannels
	}
	if info.Status == StatusContinued {
		info.Output, info.ContinuedAs = nil, decodeContinued(found.Output)
	}
	if found.Error != nil {
		info.Err = newRunError(found.Run)
	}
	return info
}

// Filter chooses the runs that List returns. Zero fields choose all.
type Filter struct {
	// Statuses and Workflows: any of these.
	Statuses  []Status
	Workflows []string
	// CreatedFrom (inclusive) and CreatedBefore bound when the run was created, by the database's clock. Instants are
	// of the years 1 to 9999.
	CreatedFrom, CreatedBefore time.Time
	// EndedFrom (inclusive): only runs that have ended, at that time or later.
	EndedFrom time.Time
	// InputPath is an SQL/JSON path that must find something in the input, such as `$.customer ? (@ == "c-42")`. Up to
	// 10,000 bytes.
	InputPath string
	// Limit is how many runs a page holds, at most 1000. Default 100.
	Limit int
	// Cursor is the Next of the page before.
	Cursor string
}

// Page is a part of a list.
type Page struct {
	Runs []ListedRun
	Next string // the cursor of the next page; empty: this is the last
}

// ListedRun is a run in a list; Get tells more.
type ListedRun struct {
	ID            string
	Workflow      string
	Status        Status
	CreatedAt     time.Time
	EndedAt       time.Time // zero: it has not ended
	ErasedAt      time.Time // see [Engine.Erase]; zero: it was not
	WakeAt        time.Time // of a waiting run: its earliest deadline; zero: it has none
	ContinuedFrom string
}

// List returns the runs that match, by descending id: the newest first, if their ids are those that Start makes. A page is
// short only if it is the last. No index serves the filters, so that runs cost nothing to keep: List walks through all runs,
// thousands at a time, and a filter that few of them match takes time in proportion to those it passes.
//
// It returns an error that names the field at fault, ErrNotStarted and ErrClosed.
func (e *Engine) List(ctx context.Context, filter Filter) (Page, error) {
	page, err := e.list(ctx, filter)
	if err != nil {
		return Page{}, fmt.Errorf("list runs: %w", err)
	}
	return page, nil
}

func (e *Engine) list(ctx context.Context, filter Filter) (Page, error) {
	var page Page
	below, err := filter.check()
	if err != nil {
		return page, err
	}
	chosen := filter.chosen()
	limit, depth := filter.Limit, listDepth
	if limit == 0 {
		limit = defaultListLimit
	}
	if filter.choosesAll() {
		depth = limit + 1
	}
	if filter.InputPath != "" {
		if err := e.checkPath(ctx, filter.InputPath); err != nil {
			return page, err
		}
	}
	for {
		var found []store.Listed
		var looked store.Looked
		room := limit - len(page.Runs)
		err := e.read(ctx, func(b *pgx.Batch) {
			e.store.LimitTime(b, listTime)
			e.store.ListRuns(b, below, depth, room+1, chosen, &found, &looked)
		})
		switch late := refusal.Code(err) == "57014"; {
		case late && depth > leastDepth:
			depth = max(depth/10, leastDepth)
			continue
		case late && filter.InputPath != "":
			return page, fmt.Errorf("Filter.InputPath, of %d bytes, takes the server more than %s for %d runs: go down step by step, without .** one after the other: %w",
				len(filter.InputPath), listTime, depth, err)
		case err != nil:
			return page, err
		}
		for i, run := range found {
			if i == room {
				page.Next = base64.RawURLEncoding.EncodeToString([]byte(page.Runs[limit-1].ID))
				return page, nil
			}
			page.Runs = append(page.Runs, newListedRun(run))
		}
		if !looked.More {
			return page, nil
		}
		below = looked.Last
	}
}

func newListedRun(run store.Listed) ListedRun {
	listed := ListedRun{
		ID: run.ID, Workflow: run.Workflow, Status: Status(run.Status), CreatedAt: run.CreatedAt, EndedAt: orZero(run.EndedAt),
		ErasedAt: orZero(run.ErasedAt), ContinuedFrom: run.ContinuedFrom,
	}
	if listed.Status == StatusWaiting {
		listed.WakeAt = orZero(run.WakeAt)
	}
	return listed
}

// check returns where the page begins, and all mistakes.
func (f Filter) check() (below string, err error) {
	var errs []error
	for _, status := range f.Statuses {
		if !status.known() {
			errs = append(errs, fmt.Errorf("Filter.Statuses: %.40q is not a status of a run: use the constants of this package", status))
		}
	}
	if f.Limit < 0 || f.Limit > maxListLimit {
		errs = append(errs, fmt.Errorf("Filter.Limit is %d: use 1 to %d, or 0 for %d", f.Limit, maxListLimit, defaultListLimit))
	}
	for _, name := range f.Workflows {
		errs = append(errs, checkName("Filter.Workflows:", name))
	}
	errs = append(errs,
		checkUnshown("Filter.InputPath", f.InputPath, maxInputPath),
		bounds.CheckInstant("Filter.CreatedFrom", f.CreatedFrom),
		bounds.CheckInstant("Filter.CreatedBefore", f.CreatedBefore),
		bounds.CheckInstant("Filter.EndedFrom", f.EndedFrom))
	last, err := base64.RawURLEncoding.DecodeString(f.Cursor)
	if err == nil && f.Cursor != "" && checkName("its run", string(last)) != nil {
		err = errors.New("no run can be called what it says")
	}
	if err != nil {
		errs = append(errs, fmt.Errorf("Filter.Cursor, of %d bytes, is not the Next of a page, use that: %w", len(f.Cursor), err))
	}
	return string(last), errors.Join(errs...)
}

func (f Filter) choosesAll() bool {
	return len(f.Statuses)+len(f.Workflows) == 0 && f.CreatedFrom.IsZero() && f.CreatedBefore.IsZero() && f.EndedFrom.IsZero() && f.InputPath == ""
}

func (f Filter) chosen() store.Filter {
	chosen := store.Filter{Workflows: f.Workflows}
	for _, status := range f.Statuses {
		chosen.Statuses = append(chosen.Statuses, string(status))
	}
	for given, into := range map[*time.Time]**time.Time{
		&f.CreatedFrom: &chosen.CreatedFrom, &f.CreatedBefore: &chosen.CreatedBefore, &f.EndedFrom: &chosen.EndedFrom,
	} {
		if !given.IsZero() {
			*into = given
		}
	}
	if f.InputPath != "" {
		chosen.InputPath = &f.InputPath
	}
	return chosen
}

func (e *Engine) checkPath(ctx context.Context, path string) error {
	err := e.read(ctx, func(b *pgx.Batch) { e.store.CheckPath(b, path) })
	if refusal.Said(err) {
		// The path may compare with values, and the server quotes a part of it.
		return fmt.Errorf("Filter.InputPath, of %d bytes, is not an SQL/JSON path, use one like $.customer: %w", len(path), refusal.Withheld(err))
	}
	return err
}

// readRun is read about the run with this id.
func (e *Engine) readRun(ctx context.Context, id string, statements func(*pgx.Batch)) error {
	if err := e.checkFor(id); err != nil {
		return err
	}
	return e.read(ctx, statements)
}

// checkFor returns why the engine cannot serve a call about the run with this id now, or nil.
func (e *Engine) checkFor(id string) error {
	if err := e.check(); err != nil {
		return err
	}
	if err := checkName("the id", id); err != nil {
		return fmt.Errorf("%w: no run has such an id: %w", ErrNotFound, err)
	}
	return nil
}

// read carries out statements on the application's pool, which find their rows by key even if nobody has analyzed the tables.
func (e *Engine) read(ctx context.Context, statements func(*pgx.Batch)) error {
	if err := e.check(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	batch := &pgx.Batch{}
	e.store.Guard(batch, time.Second)
	statements(batch)
	return e.explained(ctx, refusal.Public(e.config.Pool.SendBatch(ctx, batch).Close()))
}

func orZero[T any](value *T) T {
	if value == nil {
		var zero T
		return zero
	}
	return *value
}
