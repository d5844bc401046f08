package pgtest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5/pgproto3"
)

// The messages that the proxy has to tell apart, by their first byte.
const (
	messageParse    = 'P'
	messageBind     = 'B'
	messageExecute  = 'E'
	messageClose    = 'C'
	messageSync     = 'S'
	messageFlush    = 'H'
	messageQuery    = 'Q'
	messageCall     = 'F'
	messageDescribe = 'D'

	messageKey             = 'K'
	messageCommandComplete = 'C'
	messageEmptyQuery      = 'I'
	messageSuspended       = 's'
	messageError           = 'E'
	messageReadyForQuery   = 'Z'
	messageNotification    = 'A'
	messageNotice          = 'N'
	messageParameterStatus = 'S'
)

// headerSize is of the type and the length of a message.
const headerSize = 5

// frameReader reads messages without decoding them.
type frameReader struct {
	r     *bufio.Reader
	frame []byte
}

func newFrameReader(r io.Reader) *frameReader {
	return &frameReader{r: bufio.NewReaderSize(r, 32<<10)}
}

// next returns one message with its header, valid until the next call.
func (f *frameReader) next() ([]byte, error) {
	var err error
	f.frame, err = appendFrame(f.frame[:0], f.r)
	return f.frame, err
}

// more reports whether the next message is there already, so that it can be sent together with the last.
func (f *frameReader) more() bool {
	if f.r.Buffered() < headerSize {
		return false
	}
	header, err := f.r.Peek(headerSize)
	return err == nil && f.r.Buffered() > int(binary.BigEndian.Uint32(header[1:]))
}

func appendFrame(to []byte, r *bufio.Reader) ([]byte, error) {
	header, err := r.Peek(headerSize)
	if err != nil {
		return to, err
	}
	length := int(binary.BigEndian.Uint32(header[1:])) + 1
	if length < headerSize {
		return to, fmt.Errorf("a message %q of %d bytes", header[0], length)
	}
	start := len(to)
	to = append(to, make([]byte, length)...)
	_, err = io.ReadFull(r, to[start:])
	return to, err
}

// clientWriter writes whole messages to a client. Once that fails it swallows them: what the client has asked for is
// still carried out.
type clientWriter struct {
	mu   sync.Mutex
	w    *bufio.Writer
	gone bool
}

func (c *clientWriter) init(conn *net.TCPConn) { c.w = bufio.NewWriterSize(conn, 32<<10) }

func (c *clientWriter) write(frame []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.gone {
		_, err := c.w.Write(frame)
		c.gone = err != nil
	}
}

func (c *clientWriter) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.gone {
		c.gone = c.w.Flush() != nil
	}
}

// execution is one statement that a batch executes, and where the message that does so stands in it.
type execution struct {
	statement  string
	start, end int
}

// batch is what a client sends up to a Sync, a Flush or a simple query.
type batch struct {
	raw        []byte
	executions []execution
	last       byte // the type of its last message
}

// simple reports whether the batch is a simple query.
func (b batch) simple() bool { return b.last == messageQuery }

// answered returns how many ReadyForQuery messages the batch is answered with.
func (b batch) answered() int {
	switch b.last {
	case messageSync, messageQuery, messageCall:
		return 1
	}
	return 0
}

// batchReader reads what a client sends, and knows what its prepared statements and portals are.
type batchReader struct {
	r        *bufio.Reader
	current  batch
	prepared map[string]string // statement name -> name of the query
	portals  map[string]string
}

func newBatchReader(r io.Reader) batchReader {
	return batchReader{r: bufio.NewReaderSize(r, 32<<10), prepared: map[string]string{}, portals: map[string]string{}}
}

// next returns the next batch, valid until the next call. What belongs to none (passwords, copied data, the end) is a batch
// of its own, without executions.
func (r *batchReader) next() (batch, error) {
	r.current = batch{raw: r.current.raw[:0], executions: r.current.executions[:0]}
	b := &r.current
	for {
		start := len(b.raw)
		var err error
		if b.raw, err = appendFrame(b.raw, r.r); err != nil {
			return batch{}, err
		}
		b.last = b.raw[start]
		if !r.understand(b, start) {
			return *b, nil
		}
	}
}

// understand notes what the message that begins at start means. It reports whether its batch goes on.
func (r *batchReader) understand(b *batch, start int) bool {
	body := b.raw[start+headerSize:]
	switch b.last {
	case messageParse:
		name, rest := cString(body)
		text, _ := cString(rest)
		r.prepared[name] = StatementNames(text)[0]
	case messageBind:
		portal, rest := cString(body)
		name, _ := cString(rest)
		r.portals[portal] = r.prepared[name]
	case messageExecute:
		portal, _ := cString(body)
		b.executions = append(b.executions, execution{r.portals[portal], start, len(b.raw)})
	case messageClose:
		kind, _ := cString(body) // and the name behind it
		if name, found := strings.CutPrefix(kind, "S"); found {
			delete(r.prepared, name)
		} else {
			delete(r.portals, strings.TrimPrefix(kind, "P"))
		}
	case messageDescribe:
	case messageQuery:
		text, _ := cString(body)
		for _, name := range StatementNames(text) {
			b.executions = append(b.executions, execution{name, start, len(b.raw)})
		}
		return false
	default:
		return false
	}
	return true
}

func cString(from []byte) (text string, rest []byte) {
	before, after, _ := bytes.Cut(from, []byte{0})
	return string(before), after
}

const heading = "-- name: "

var selects = regexp.MustCompile(`^select\s+([\w.]+)\(`)

// StatementNames returns by which names a proxy knows what a text executes, one at least: what the `-- name:` headings say,
// with "river." before River's, or else the first word in small letters, to which "select" adds the function that it calls
// first, as in "select pg_notify".
func StatementNames(text string) []string {
	var names []string
	for line := text; ; {
		at := strings.Index(line, heading)
		if at < 0 {
			break
		}
		headed := at == 0 || line[at-1] == '\n' || line[at-1] == ';' // pgx joins the texts of a batch so
		line = line[at+len(heading):]
		if !headed {
			continue
		}
		name, _, _ := strings.Cut(line, "\n")
		name, river, found := strings.Cut(strings.TrimSpace(name), " ")
		if found && strings.HasPrefix(river, ":") {
			name = "river." + name
		}
		names = append(names, name)
	}
	if names != nil {
		return names
	}
	text = strings.ToLower(strings.TrimSpace(text))
	if called := selects.FindStringSubmatch(text); called != nil {
		return []string{"select " + called[1]}
	}
	word := strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || r == '\n' || r == '\t' || r == ';' || r == '(' })
	if len(word) == 0 {
		return []string{""}
	}
	return word[:1]
}

// ownStatement is the proxy's. The unnamed one is the client's, and a simple query would make the server forget it.
const ownStatement = "pgtest_fault"

// ownQuery executes a text without a trace in the session, up to the Sync. The answers to its parts before the Execute are
// ownAnswers.
func ownQuery(text string) []byte {
	return encode(
		&pgproto3.Close{ObjectType: 'S', Name: ownStatement}, // if one before has failed
		&pgproto3.Parse{Name: ownStatement, Query: text},
		&pgproto3.Bind{PreparedStatement: ownStatement},
		&pgproto3.Execute{},
	)
}

const ownAnswers = "312" // CloseComplete, ParseComplete, BindComplete

// encode returns messages as a client sends them.
func encode(messages ...pgproto3.FrontendMessage) []byte {
	var raw []byte
	for _, message := range messages {
		var err error
		if raw, err = message.Encode(raw); err != nil {
			panic(err) // they are ours, and short
		}
	}
	return raw
}
