package pgtest

import (
	"encoding/binary"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// FaultProxy is a Proxy that understands what its clients send: it knows which statement each message executes, and can
// break the connection, or what is answered, at a chosen execution of a chosen statement.
//
// It speaks version 3 of PostgreSQL's protocol and answers requests for encryption with no. What it does not have to
// change it passes on as it is, a batch at a time: all messages up to a Sync, a Flush or a simple query.
type FaultProxy struct {
	*Proxy

	t        testing.TB
	faults   faultBook
	disguise atomic.Bool
}

// NewFaultProxy starts a proxy to the server that url names. It is closed when the test ends.
func NewFaultProxy(t testing.TB, url string) *FaultProxy {
	t.Helper()
	proxy, err := newProxy(url)
	if err != nil {
		t.Fatalf("pgtest: fault proxy: %v", err)
	}
	p := &FaultProxy{Proxy: proxy, t: t, faults: faultBook{executed: map[Execution]int{}}}
	t.Cleanup(p.Close)
	p.session = func(client, server *net.TCPConn) { newFaultSession(p, client, server).run() }
	p.wg.Go(p.accept)
	return p
}

// Disguise gives the clients of new connections another process id than the server's, by which they take it for a pooler.
// Nothing else is different, so a session is still theirs alone.
func (p *FaultProxy) Disguise() { p.disguise.Store(true) }

// disguiseBy is added to process ids.
const disguiseBy = 1 << 24

// disguised changes the process id that begins with key's first byte.
func (p *FaultProxy) disguised(key []byte, by uint32) {
	if p.disguise.Load() {
		binary.BigEndian.PutUint32(key, binary.BigEndian.Uint32(key)+by)
	}
}

// Inject begins a fault. A batch suffers one at most: of several that fit, one for its first statement, the oldest; the
// others hit a later execution instead.
func (p *FaultProxy) Inject(fault Fault) *Injection {
	p.t.Helper()
	if err := fault.check(); err != nil {
		p.t.Fatalf("pgtest: %v", err)
	}
	i := &Injection{fault: fault, proxy: p, hit: make(chan struct{})}
	p.faults.add(i)
	return i
}

// Executed returns how often each statement was executed through the proxy, faults included.
func (p *FaultProxy) Executed() map[Execution]int {
	p.faults.mu.Lock()
	defer p.faults.mu.Unlock()
	return maps.Clone(p.faults.executed)
}

// faultSession is one client's connection. One goroutine, talk, reads the client and is the only one to write to the
// server; another, listen, reads the server.
type faultSession struct {
	proxy          *FaultProxy
	client, server *net.TCPConn
	application    string
	in             batchReader
	pending        *Injection // a CutAfterCommit whose transaction has not ended yet
	readOnly       readOnly

	toClient clientWriter

	mu        sync.Mutex
	changed   sync.Cond // of what follows
	owed      int       // ReadyForQuery messages that are still to come
	status    byte      // the transaction's, by the last of them
	capturing bool      // answers are kept for talk instead of going to the client
	captured  [][]byte
	ended     bool // the server says no more
}

func newFaultSession(p *FaultProxy, client, server *net.TCPConn) *faultSession {
	s := &faultSession{proxy: p, client: client, server: server, owed: 1} // one when the session has begun
	s.changed.L = &s.mu
	s.in = newBatchReader(client)
	s.toClient.init(client)
	return s
}

func (s *faultSession) run() {
	if !s.startUp() {
		return
	}
	var back sync.WaitGroup
	back.Go(s.listen)
	s.talk()
	back.Wait()
}

// talk passes on what the client says, until it ends.
func (s *faultSession) talk() {
	for {
		b, err := s.in.next()
		if !s.proxy.flowing() {
			return
		}
		if err != nil {
			_ = s.server.CloseWrite() // an orderly end is passed on as one; so is any other, when all before it has arrived
			return
		}
		if !s.carryOut(b) {
			return
		}
	}
}

// listen passes on what the server says, until it ends.
func (s *faultSession) listen() {
	defer func() {
		s.toClient.flush()
		_ = s.client.CloseWrite()
		s.mu.Lock()
		s.ended = true
		s.changed.Broadcast()
		s.mu.Unlock()
	}()
	in := newFrameReader(s.server)
	for {
		f, err := in.next()
		if err != nil {
			return
		}
		if f[0] == messageKey {
			s.proxy.disguised(f[headerSize:], disguiseBy)
		}
		if !s.keep(f) {
			s.toClient.write(f)
		}
		if !in.more() {
			if !s.proxy.flowing() {
				return
			}
			s.toClient.flush()
		}
		if f[0] == messageReadyForQuery {
			s.ready(f)
		}
	}
}

// keep reports whether the frame is kept for talk. What a server says at any time is not an answer.
func (s *faultSession) keep(f []byte) bool {
	switch f[0] {
	case messageNotification, messageNotice, messageParameterStatus:
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.capturing {
		return false
	}
	s.captured = append(s.captured, append([]byte(nil), f...))
	s.changed.Broadcast()
	return true
}

func (s *faultSession) ready(f []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owed--
	s.status = f[len(f)-1]
	s.changed.Broadcast()
}

// cut resets both connections.
func (s *faultSession) cut() {
	reset(s.client)
	reset(s.server)
}
