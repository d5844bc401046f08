package refusal

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestEveryCodeHasItsClass(t *testing.T) {
	t.Parallel()
	for want, codes := range map[Class][]string{
		Value: {"22001", "22021", "22P02", "22P05", "54000", "54001"},
		Setup: {"42501", "42P01", "42703", "28000", "28P01", "3D000", "53300", "23502", "23505", "23514"},
		Later: {
			"53000", "53100", "53200", "53400", "55P03", "57014", "40001", "40P01", "25006", "25P02", "25P03", "26000", "42P05",
			"57P01", "57P02", "57P03", "57P05", "58000", "58030", "08000", "08006", "XX000", "XX001", "0A000", "42601", "42883", "P0001",
		},
	} {
		for _, code := range codes {
			err := fmt.Errorf("flush: %w", &pgconn.PgError{Code: code})
			if got := Of(err); got != want {
				t.Errorf("%s is sorted as %q, want %q", code, got, want)
			}
		}
	}
}

func TestWhatTheDatabaseDidNotSayIsTriedLater(t *testing.T) {
	t.Parallel()
	for _, err := range []error{io.ErrUnexpectedEOF, errors.New("connection reset"), &pgconn.PgError{}} {
		if Of(err) != Later || Said(err) || KeyTaken(err) || Remedy(err) != "" {
			t.Errorf("%v is sorted as %q, said %t", err, Of(err), Said(err))
		}
	}
	if err := error(&pgconn.PgError{Code: "23505"}); !KeyTaken(err) || !Said(err) {
		t.Error("a key that is taken is not recognised")
	}
	if Remedy(&pgconn.PgError{Code: "42P05"}) == "" {
		t.Error("no remedy for a pooler that shares prepared statements")
	}
	shared := &pgconn.PgError{Code: "26000"}
	once := WithRemedy(WithRemedy(shared))
	if !errors.Is(once, shared) || strings.Count(once.Error(), Remedy(shared)) != 1 {
		t.Errorf("the remedy is added as %q", once)
	}
	if WithRemedy(io.EOF) != io.EOF { //nolint:errorlint // the very same
		t.Error("an error without a remedy has changed")
	}
}

// foreign is the error of another driver, which tells its SQLSTATE.
type foreign struct{ code string }

func (f foreign) Error() string    { return f.code }
func (f foreign) SQLState() string { return f.code }

func TestWhatFollowsForLocksConflictsAndSessions(t *testing.T) {
	t.Parallel()
	is := map[string]func(error) bool{"held": Held, "conflict": Conflict, "spoilt": SpoilsSession}
	for code, want := range map[string]string{
		"55P03": "held", "40001": "conflict", "40P01": "conflict",
		"25006": "spoilt", "25P02": "spoilt", "26000": "spoilt", "42P05": "spoilt", "0A000": "spoilt", "08006": "spoilt", "57P01": "spoilt", "XX000": "spoilt",
		"57014": "", "22P02": "", "42501": "", "53100": "", "25P03": "",
	} {
		err := fmt.Errorf("flush: %w", &pgconn.PgError{Code: code})
		for name, what := range is {
			if got := what(err); got != (name == want) {
				t.Errorf("%s is %s: %t", code, name, got)
			}
		}
	}
	for name, what := range is {
		if what(io.EOF) || what(&pgconn.PgError{}) {
			t.Errorf("what the database did not say is %s", name)
		}
	}
	if !Conflict(fmt.Errorf("publish: %w", foreign{"40001"})) || Conflict(foreign{"23505"}) {
		t.Error("the conflict that another driver tells of is not recognised")
	}
}
