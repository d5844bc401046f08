package pgtest

import (
	"errors"
	"net"
	"net/url"
	"sync"
	"testing"
)

// Proxy stands between clients and a server, to break their connections in ways a server cannot: a reset without a
// word, or silence on a connection that stays open.
type Proxy struct {
	listener *net.TCPListener
	url      string
	target   string

	wg sync.WaitGroup

	mu      sync.Mutex
	open    chan struct{} // closed while data flows
	conns   map[*net.TCPConn]struct{}
	closing chan struct{}

	// session serves one client. Who made the proxy has set it before the first is accepted.
	session func(client, server *net.TCPConn)
}

// NewProxy starts a proxy to the server that url names. It is closed when the test ends.
func NewProxy(t testing.TB, url string) *Proxy {
	t.Helper()
	p, err := newProxy(url)
	if err != nil {
		t.Fatalf("pgtest: proxy: %v", err)
	}
	t.Cleanup(p.Close)
	p.session = p.copyBothWays
	p.wg.Go(p.accept)
	return p
}

// newProxy listens, but does not accept yet.
func newProxy(server string) (*Proxy, error) {
	parsed, err := url.Parse(server)
	if err != nil {
		return nil, err
	}
	port := parsed.Port()
	if port == "" {
		port = "5432"
	}
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	p := &Proxy{
		listener: listener,
		target:   net.JoinHostPort(parsed.Hostname(), port),
		open:     make(chan struct{}),
		conns:    map[*net.TCPConn]struct{}{},
		closing:  make(chan struct{}),
	}
	close(p.open)
	parsed.Host = listener.Addr().String()
	p.url = parsed.String()
	return p, nil
}

// URL is the server's URL by way of the proxy.
func (p *Proxy) URL() string { return p.url }

// Cut resets all connections. New ones are accepted.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for conn := range p.conns {
		reset(conn)
	}
}

// reset closes conn so that the other side gets RST instead of FIN.
func reset(conn *net.TCPConn) {
	_ = conn.SetLinger(0)
	_ = conn.Close()
}

// Stall stops forwarding, on connections that stay open and on new ones, until Resume. Nothing is lost: what is sent
// meanwhile arrives after Resume.
func (p *Proxy) Stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.open:
		p.open = make(chan struct{})
	default:
	}
}

// Resume ends Stall.
func (p *Proxy) Resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.open:
	default:
		close(p.open)
	}
}

// Close resets all connections, accepts no more, and waits for the proxy's goroutines. Calling it again does nothing.
func (p *Proxy) Close() {
	p.mu.Lock()
	select {
	case <-p.closing:
	default:
		close(p.closing)
		_ = p.listener.Close()
	}
	p.mu.Unlock()
	p.Cut()
	p.wg.Wait()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.AcceptTCP()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(client) })
	}
}

func (p *Proxy) serve(client *net.TCPConn) {
	if !p.track(client) || !p.flowing() {
		_ = client.Close()
		return
	}
	defer p.forget(client)
	dialled, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	server := dialled.(*net.TCPConn) //nolint:forcetypeassert // dialled as TCP
	if !p.track(server) {
		return
	}
	defer p.forget(server)
	p.session(client, server)
}

func (p *Proxy) copyBothWays(client, server *net.TCPConn) {
	var back sync.WaitGroup
	back.Go(func() { p.pump(client, server) })
	p.pump(server, client)
	back.Wait()
}

// pump copies until either side ends. An orderly end is passed on as one, so that a last message is not lost to a reset;
// an error resets both sides.
func (p *Proxy) pump(to, from *net.TCPConn) {
	buffer := make([]byte, 32<<10)
	for {
		n, readErr := from.Read(buffer)
		if !p.flowing() {
			return
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			_ = from.Close()
			return
		}
		if readErr != nil {
			_ = to.CloseWrite()
			if errors.Is(readErr, net.ErrClosed) {
				_ = to.Close()
			}
			return
		}
	}
}

// flowing waits while the proxy is stalled. It returns false if it is closed.
func (p *Proxy) flowing() bool {
	p.mu.Lock()
	open := p.open
	p.mu.Unlock()
	select {
	case <-open:
		return true
	case <-p.closing:
		return false
	}
}

// track registers conn for Cut. It returns false, and closes conn, if the proxy is closed.
func (p *Proxy) track(conn *net.TCPConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.closing:
		_ = conn.Close()
		return false
	default:
		p.conns[conn] = struct{}{}
		return true
	}
}

func (p *Proxy) forget(conn *net.TCPConn) {
	p.mu.Lock()
	delete(p.conns, conn)
	p.mu.Unlock()
	_ = conn.Close()
}
