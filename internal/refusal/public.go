package refusal

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// withheld stands in place of a message that quotes the value which it is about.
const withheld = "the message, which quotes the value, is withheld"

// valueNames are what PostgreSQL's appendix A calls the codes of class 22 that values meet most.
var valueNames = map[string]string{
	"22000": "data exception", "22001": "string data right truncation", "22003": "numeric value out of range", "22004": "null value not allowed",
	"22007": "invalid datetime format", "22008": "datetime field overflow", "22012": "division by zero", "22021": "character not in repertoire",
	"22023": "invalid parameter value", "2201B": "invalid regular expression", "22030": "duplicate JSON object key value",
	"22032": "invalid JSON text", "22P02": "invalid text representation", "22P03": "invalid binary representation",
	"22P05": "untranslatable character",
}

// publicError says of the database's error what anybody may read. The error itself stays in the chain, for errors.As. Whichever way
// this is printed, nothing else of it is.
type publicError struct {
	text string
	err  error
}

func (e *publicError) Error() string { return e.text }
func (e *publicError) Unwrap() error { return e.err }

// GoString is for %#v, which otherwise may reach the error itself.
func (e *publicError) GoString() string { return fmt.Sprintf("refusal.Public(%q)", e.text) }

// MarshalText is for JSON, which otherwise writes what an error has in exported fields.
func (e *publicError) MarshalText() ([]byte, error) { return []byte(e.text), nil }

// Public returns err with a text that anybody may read. Of what the database has said, that is the severity, the message and the SQLSTATE,
// never Detail, Hint, Where or InternalQuery, which quote rows and statements. Messages of class 22 quote values: they are replaced, and
// table, column, type and constraint are added where the server names them. The *pgconn.PgError stays in the chain.
//
// Of a connection that could not be made the text stays, and the configuration, which has the password, is out of the reach of encoders;
// of a connection string that cannot be parsed nothing is told. Any other error is returned as it is; so is nil.
func Public(err error) error {
	if already := (*publicError)(nil); err == nil || errorIs(err, &already) {
		return err
	}
	if !known(err) {
		return err
	}
	text := err.Error()
	for _, refusal := range sent(err, nil) {
		text = publicText(text, refusal)
	}
	if parsing := (*pgconn.ParseConfigError)(nil); errors.As(err, &parsing) {
		text = strings.ReplaceAll(text, parsing.Error(), "a connection string cannot be parsed; its text is withheld")
	}
	return &publicError{text: text, err: err}
}

// Withheld is Public for an error that quotes what a caller has given: of the database's words only the SQLSTATE is
// told. Nil stays nil.
func Withheld(err error) error {
	if err == nil {
		return nil
	}
	text := fmt.Sprintf("a %T, whose text may quote it and is withheld", err)
	if code := Code(err); code != "" {
		text = fmt.Sprintf("the database's message, which may quote it, is withheld (SQLSTATE %s)", code)
	}
	return &publicError{text: text, err: err}
}

// errorIs reports whether err itself, not its chain, is of the type of target.
func errorIs[T error](err error, target *T) bool {
	found, ok := err.(T) //nolint:errorlint // the outermost decides what is printed
	*target = found
	return ok
}

// sent appends all errors of the database in err's tree to found.
func sent(err error, found []*pgconn.PgError) []*pgconn.PgError {
	if refusal := (*pgconn.PgError)(nil); errorIs(err, &refusal) && refusal != nil {
		return append(found, refusal)
	}
	switch wrapping := err.(type) { //nolint:errorlint // the tree is walked here
	case interface{ Unwrap() error }:
		if inner := wrapping.Unwrap(); inner != nil {
			return sent(inner, found)
		}
	case interface{ Unwrap() []error }:
		for _, inner := range wrapping.Unwrap() {
			if inner != nil {
				found = sent(inner, found)
			}
		}
	}
	return found
}

// publicText returns text, which says refusal in the database's words, without what is not public.
func publicText(text string, refusal *pgconn.PgError) string {
	if !strings.HasPrefix(refusal.Code, "22") {
		return text
	}
	public := describeValue(refusal)
	switch {
	case strings.Contains(text, refusal.Error()):
		return strings.ReplaceAll(text, refusal.Error(), public)
	case strings.Contains(text, withheld):
		return text
	default: // its words may have been changed on the way: nobody can tell what of them is in there
		return public
	}
}

// describeValue says what is public of an error of class 22.
func describeValue(refusal *pgconn.PgError) string {
	var text strings.Builder
	text.WriteString(cmp.Or(valueNames[refusal.Code], "data exception") + "; " + withheld)
	for _, place := range []struct{ what, name string }{
		{"table", refusal.TableName}, {"column", refusal.ColumnName}, {"type", refusal.DataTypeName}, {"constraint", refusal.ConstraintName},
	} {
		if place.name != "" {
			fmt.Fprintf(&text, ", %s %q", place.what, place.name)
		}
	}
	return fmt.Sprintf("%s: %s (SQLSTATE %s)", refusal.Severity, &text, refusal.Code)
}

// Text returns the text of Public(err); "" for nil.
func Text(err error) string {
	if err == nil {
		return ""
	}
	return Public(err).Error()
}

// known reports whether there is something in err's tree that not everybody may read.
func known(err error) bool {
	return errors.As(err, new(*pgconn.PgError)) || errors.As(err, new(*pgconn.ConnectError)) || errors.As(err, new(*pgconn.ParseConfigError))
}

// Answer returns what a question to the database has returned, with Public(err).
func Answer[T any](value T, err error) (T, error) { return value, Public(err) }
