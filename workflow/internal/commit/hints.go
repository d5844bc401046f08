package commit

import (
	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/workflow/internal/store"
)

// hintRun stands for the run of statements that hints ask for, which wait for each other and for nothing else: no run
// is called so.
const hintRun = "\x00hints"

// Hinted queues what a notification asks for that anybody can have sent, thousands of times. It shares no flush with
// what the runs of this worker do, which would wait for it, and is under way on one lane at a time, so that another
// takes their operations at once. It reads, or makes ready what others have left.
type Hinted struct{ committer *Committer }

// Hinted returns the way for what hints ask for.
func (c *Committer) Hinted() Hinted { return Hinted{c} }

// Look is [Committer.Look].
func (h Hinted) Look(ask store.Wake, then func(bool, error)) {
	submit(h.committer, &operation{kind: kindLook, ask: ask, repeat: true, hinted: true}, then)
}

// LookEvent is [Committer.LookEvent].
func (h Hinted) LookEvent(ask store.WakeEvent, then func(bool, error)) {
	submit(h.committer, &operation{kind: kindLookEvent, ask: ask, repeat: true, hinted: true}, then)
}

// Do is [Committer.Do] for statements that may be repeated.
func (h Hinted) Do(statements func(*pgx.Batch), then func(struct{}, error)) {
	submit(h.committer, &operation{kind: kindCustom, run: hintRun, custom: statements, repeat: true, hinted: true}, then)
}
