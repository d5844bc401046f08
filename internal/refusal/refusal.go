// Package refusal sorts what the database says when it does not do what it was asked: the one table that the engine, the
// outbox, the sweeps and the Watermill handlers decide by.
package refusal

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// Class says what follows from a refusal.
type Class int

const (
	// Later is everything that may go by itself: locks, a full disk, a read-only or vanishing session, conflicts, lost
	// connections, and whatever is not listed. Try again, with care.
	Later Class = iota
	// Setup is a right, a table or a limit that is wrong for now. Try again, with care, and tell whoever operates it.
	Setup
	// Value is a value that can never be stored. Trying again is no use.
	Value
)

func (c Class) String() string {
	switch c {
	case Value:
		return "the value cannot be stored"
	case Setup:
		return "a right or the schema is wrong"
	default:
		return "not now"
	}
}

// classes are those of PostgreSQL's appendix A, by the first two characters of an SQLSTATE. What is not here is Later.
var classes = map[string]Class{
	"22": Value, // data exception
	"54": Value, // program limit exceeded
	"23": Setup, // integrity constraint: a CHECK or trigger of somebody's; callers recognise their own keys before they ask
	"28": Setup, // invalid authorization
	"3D": Setup, // no such database
}

// codes go before classes.
var codes = map[string]Class{
	"42501": Setup, // insufficient privilege
	"42P01": Setup, // undefined table
	"42703": Setup, // undefined column
	"53300": Setup, // too many connections
}

// Of returns the class of err, which is not nil. An error that the database did not send is Later.
func Of(err error) Class {
	code := Code(err)
	if class, ok := codes[code]; ok {
		return class
	}
	if len(code) < 2 {
		return Later
	}
	return classes[code[:2]]
}

// Code returns the SQLSTATE of err; "" if it is not an error of the database.
func Code(err error) string {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return ""
	}
	return pgErr.Code
}

// Said reports whether the database has answered with a refusal, so that its transaction is known not to have committed. Any
// other error may hide that it has.
func Said(err error) bool { return Code(err) != "" }

// conditions are the classes of what becomes of a server or a session, whatever was asked of it.
var conditions = map[string]bool{
	"08": true, "25": true, "26": true, "28": true, "3D": true, "40": true, "53": true, "54": true, "55": true, "57": true, "58": true,
	"F0": true, "XX": true,
}

// Raised reports whether SQL has raised err, a constraint or a trigger say, and no condition of the server.
func Raised(err error) bool {
	code := Code(err)
	return len(code) >= 2 && !conditions[code[:2]]
}

// KeyTaken reports whether err says that a row with this key is there already.
func KeyTaken(err error) bool { return Code(err) == "23505" }

// Conflict reports whether err says that another transaction has won: a serialization failure, or a deadlock. It knows the error
// of any driver that tells the SQLSTATE.
func Conflict(err error) bool {
	code := Code(err)
	var coded interface{ SQLState() string }
	if code == "" && errors.As(err, &coded) {
		code = coded.SQLState()
	}
	return code == "40001" || code == "40P01"
}

// Held reports whether err says that somebody holds a lock, for longer than was to be waited for.
func Held(err error) bool { return Code(err) == "55P03" }

// spoiling are what leaves a session of no use, by code or class.
var spoiling = map[string]bool{
	"25006": true, // read-only: it leads to a standby, or has become it
	"25P02": true, // an aborted transaction of somebody else's
	"26000": true, // it has lost what was prepared on it
	"42P05": true, // another's is prepared on it
	"0A000": true, // "cannot set transaction read-write mode during recovery", "cached plan must not change result type"
	"08":    true, // connection exception
	"57P":   true, // the server shuts down, or the session was ended
	"XX":    true, // internal error
}

// SpoilsSession reports whether err, which the database has said, is a reason to go on with another session.
func SpoilsSession(err error) bool {
	code := Code(err)
	return len(code) == 5 && (spoiling[code] || spoiling[code[:2]] || spoiling[code[:3]])
}

// remedies are what to do about a code, for log lines and errors.
var remedies = map[string]string{
	"42P05": remedyPooler,
	"26000": remedyPooler,
	"08P01": remedyPooler,
	"42501": "grant the role what it lacks: Start names all of that, as GRANT statements",
	"42P01": "run romancy.Migrate, or check search_path and the schema's name",
	"42703": "run romancy.Migrate",
	"53100": "free disk space on the database server",
	"53300": "raise max_connections, or the connection limit of the role or database, or lower the size of pools",
	"25006": "connect to the primary, or end default_transaction_read_only",
	"55P03": "see pg_locks for whoever holds the lock",
	"57014": "raise or remove the statement_timeout of the role or the database",
}

const remedyPooler = "a pooler in transaction mode shares prepared statements: set default_query_exec_mode=cache_describe (or exec) in the connection string, see docs/operations.md"

// Remedy returns what to do about err, in a few words; "" if nothing is known.
func Remedy(err error) string { return remedies[Code(err)] }

// WithRemedy returns err with what is known to help added to its text.
func WithRemedy(err error) error {
	remedy := Remedy(err)
	if remedy == "" || strings.Contains(err.Error(), remedy) {
		return err
	}
	return fmt.Errorf("%w: %s", err, remedy)
}
