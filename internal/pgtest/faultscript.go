package pgtest

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// Codes of what a client may send instead of a StartupMessage.
const (
	codeCancel     = 80877102
	codeEncrypt    = 80877103
	codeEncryptGSS = 80877104
)

// startUp reads what a client begins with and passes it on. It returns false if that was all.
func (s *faultSession) startUp() bool {
	for {
		raw, err := readStartup(s.in.r)
		if err != nil {
			return false
		}
		switch binary.BigEndian.Uint32(raw[4:]) {
		case codeEncrypt, codeEncryptGSS:
			if _, err := s.client.Write([]byte("N")); err != nil {
				return false
			}
		case codeCancel:
			s.forwardCancel(raw)
			return false
		default:
			var start pgproto3.StartupMessage
			if start.Decode(raw[4:]) == nil {
				s.application = start.Parameters["application_name"]
			}
			return s.write(raw)
		}
	}
}

func readStartup(r io.Reader) ([]byte, error) {
	raw := make([]byte, 4)
	if _, err := io.ReadFull(r, raw); err != nil {
		return nil, err
	}
	length := int(binary.BigEndian.Uint32(raw))
	if length < 8 || length > 10_000 {
		return nil, fmt.Errorf("a startup message of %d bytes", length)
	}
	all := make([]byte, length)
	copy(all, raw)
	_, err := io.ReadFull(r, all[4:])
	return all, err
}

// forwardCancel asks the server to cancel, and returns when it has closed the connection, as the client waits for that.
func (s *faultSession) forwardCancel(raw []byte) {
	s.proxy.disguised(raw[8:], ^uint32(disguiseBy-1))
	if s.write(raw) {
		_, _ = io.Copy(io.Discard, s.server)
	}
}

// carryOut passes a batch on, unless it is to suffer a fault. It returns false when the session is over.
func (s *faultSession) carryOut(b batch) bool {
	fault, at := s.proxy.faults.match(s.application, b.executions)
	if s.readOnly.pending() && !s.keepReadOnly() {
		return false
	}
	switch {
	case fault == nil && s.pending != nil:
		return s.awaitCommit(b)
	case fault == nil:
		return s.send(b.raw, b.answered())
	case !s.quiet():
		return false
	default:
		return s.inflict(fault, b, b.executions[at])
	}
}

func (s *faultSession) inflict(fault *Injection, b batch, e execution) bool {
	switch fault.fault.Kind {
	case FaultCutBefore:
		fault.count()
		s.wait(fault.fault.For)
		s.cut()
		return false
	case FaultCutAfterRun:
		return s.cutAfterRun(fault, b, e)
	case FaultCutAfterCommit:
		s.pending = fault
		return s.awaitCommit(b)
	case FaultRefuse:
		return s.refuse(fault, b, e)
	case FaultDelay:
		fault.count()
		if !s.wait(fault.fault.For) {
			return false
		}
	case FaultReadOnly:
		if !s.becomeReadOnly(fault) {
			return false
		}
	}
	return s.send(b.raw, b.answered())
}

// wait returns false if the proxy closes meanwhile.
func (s *faultSession) wait(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-s.proxy.closing:
		return false
	}
}

// cutAfterRun has the server execute the batch up to the statement, in a transaction that stays open.
func (s *faultSession) cutAfterRun(fault *Injection, b batch, e execution) bool {
	defer s.cut()
	if endsTransaction(e.statement) {
		fault.count()
		return false
	}
	if !b.simple() {
		s.capture()
		before := slices.DeleteFunc(slices.Clone(b.executions), func(other execution) bool { return other.start > e.start })
		if !s.send(append(slices.Clone(b.raw[:e.end]), encode(&pgproto3.Flush{})...), 0) {
			return false
		}
		if s.awaitAnswers(func(answers [][]byte) bool { return executed(answers) >= len(before) }) {
			fault.count()
		}
		return false
	}
	if s.txStatus() == 'I' && e.statement != "begin" {
		if answers := s.query("begin"); answers == nil {
			return false
		}
	}
	if answers := s.exchange(b.raw, 1); answers != nil {
		fault.count()
	}
	return false
}

// executed counts the executions that have been answered. An error answers all.
func executed(answers [][]byte) int {
	n := 0
	for _, f := range answers {
		switch f[0] {
		case messageCommandComplete, messageEmptyQuery, messageSuspended:
			n++
		case messageError:
			return len(answers) + 1<<20
		}
	}
	return n
}

// awaitCommit carries the batch out, and cuts the session instead of answering if that has committed the transaction.
func (s *faultSession) awaitCommit(b batch) bool {
	if b.answered() == 0 { // the transaction ends with a later one
		return s.send(b.raw, 0)
	}
	if !s.quiet() {
		return false
	}
	inBlock := s.txStatus() != 'I'
	answers := s.exchange(b.raw, b.answered())
	switch {
	case answers == nil:
		return false
	case s.txStatus() != 'I':
		s.relay(answers)
		return true
	case inBlock && !slices.ContainsFunc(answers, saysCommit), !inBlock && slices.ContainsFunc(answers, saysError):
		s.pending.miss()
		s.pending = nil
		s.relay(answers)
		return true
	default:
		s.pending.count()
		s.cut()
		return false
	}
}

func saysError(f []byte) bool { return f[0] == messageError }

// saysCommit reports whether f says that a transaction block has been committed.
func saysCommit(f []byte) bool {
	return f[0] == messageCommandComplete && strings.HasPrefix(string(f[headerSize:]), "COMMIT")
}

// refuse has the server raise an error in place of the statement.
func (s *faultSession) refuse(fault *Injection, b batch, e execution) bool {
	raise := fmt.Sprintf("do $fault$ begin raise exception using errcode = '%s', message = '%s is refused by the fault proxy'; end $fault$",
		fault.fault.Code, strings.ReplaceAll(e.statement, "'", ""))
	fault.count()
	var answers [][]byte
	if b.simple() {
		answers = s.exchange(encode(&pgproto3.Query{String: raise}), 1)
	} else {
		answers = withoutRaise(s.exchangeUntilError(append(slices.Clone(b.raw[:e.start]), ownQuery(raise)...), b))
	}
	if answers == nil {
		return false
	}
	if endsTransaction(e.statement) && s.txStatus() == 'E' {
		ended := s.query("rollback")
		if ended == nil {
			return false
		}
		answers[len(answers)-1] = ended[len(ended)-1] // the status
	}
	s.relay(answers)
	return true
}

func endsTransaction(statement string) bool { return statement == "commit" || statement == "end" }

// exchangeUntilError sends what is known to fail, in place of b. If b leaves its Sync to a later one, the server skips what
// comes before that.
func (s *faultSession) exchangeUntilError(raw []byte, b batch) [][]byte {
	if b.answered() > 0 {
		return s.exchange(append(raw, encode(&pgproto3.Sync{})...), 1)
	}
	s.capture()
	defer s.release()
	if !s.send(append(raw, encode(&pgproto3.Flush{})...), 0) ||
		!s.awaitAnswers(func(answers [][]byte) bool { return slices.ContainsFunc(answers, saysError) }) {
		return nil
	}
	return s.release()
}

// withoutRaise removes the answers to what raises the error, before that. If the batch failed earlier, there are none.
func withoutRaise(answers [][]byte) [][]byte {
	at := slices.IndexFunc(answers, saysError)
	first := at - len(ownAnswers)
	if first < 0 {
		return answers
	}
	for i, f := range answers[first:at] {
		if f[0] != ownAnswers[i] {
			return answers
		}
	}
	return slices.Delete(answers, first, at)
}

// readOnly is what is still to be done about a session that was made read-only.
type readOnly struct {
	next bool      // the transaction is, and the session is to be
	end  time.Time // when it is to be writable again, unless zero
}

func (r readOnly) pending() bool { return r.next || !r.end.IsZero() }

func (s *faultSession) becomeReadOnly(fault *Injection) bool {
	s.readOnly = readOnly{next: true}
	// A setting made in a transaction that fails is forgotten, and the default is only for the next.
	if s.txStatus() == 'T' && s.query("set transaction_read_only = on") == nil {
		return false
	}
	if fault.fault.For > 0 {
		s.readOnly.end = time.Now().Add(fault.fault.For)
	}
	fault.count()
	return s.keepReadOnly()
}

// keepReadOnly does what is to be done when no transaction is open.
func (s *faultSession) keepReadOnly() bool {
	over := !s.readOnly.end.IsZero() && time.Now().After(s.readOnly.end)
	if !s.readOnly.next && !over {
		return true
	}
	if !s.quiet() {
		return false
	}
	if s.txStatus() != 'I' {
		return true
	}
	s.readOnly.next = false
	set := "on"
	if over {
		s.readOnly.end, set = time.Time{}, "off"
	}
	return s.query("set default_transaction_read_only = "+set) != nil
}

// The exchange with the server.

func (s *faultSession) write(raw []byte) bool {
	_, err := s.server.Write(raw)
	return err == nil
}

// send passes on what is answered with so many ReadyForQuery messages.
func (s *faultSession) send(raw []byte, answered int) bool {
	s.mu.Lock()
	s.owed += answered
	s.mu.Unlock()
	return s.write(raw)
}

// quiet waits until all that was sent has been answered. It returns false if the server is gone.
func (s *faultSession) quiet() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.owed > 0 && !s.ended {
		s.changed.Wait()
	}
	return !s.ended
}

func (s *faultSession) txStatus() byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// capture keeps what the server answers from here on, until release.
func (s *faultSession) capture() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.capturing, s.captured = true, nil
}

func (s *faultSession) release() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.capturing = false
	return s.captured
}

// awaitAnswers waits until what was captured is enough. It returns false if the server is gone.
func (s *faultSession) awaitAnswers(enough func([][]byte) bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !enough(s.captured) && !s.ended {
		s.changed.Wait()
	}
	return !s.ended
}

// exchange sends raw and returns the answers instead of passing them on, up to the last ReadyForQuery. It returns nil if the
// server is gone.
func (s *faultSession) exchange(raw []byte, answered int) [][]byte {
	s.capture()
	if !s.send(raw, answered) || !s.quiet() {
		s.release()
		return nil
	}
	return s.release()
}

// query executes a text of the proxy's own.
func (s *faultSession) query(text string) [][]byte {
	return s.exchange(append(ownQuery(text), encode(&pgproto3.Sync{})...), 1)
}

func (s *faultSession) relay(answers [][]byte) {
	for _, f := range answers {
		s.toClient.write(f)
	}
	s.toClient.flush()
}
