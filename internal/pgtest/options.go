package pgtest

// Option changes how a private server is set up. Options do not apply to a server named by DATABASE_URL.
type Option func(*settings)

type settings struct {
	durable bool
	keep    bool
	private bool
	extra   [][2]string
}

// Durable makes commits wait for the disk (fsync and full_page_writes on), as in production. By default they do not,
// because a throwaway server never recovers from a power cut.
func Durable() Option { return func(s *settings) { s.durable = true } }

// Keep lets the server outlive the process that started it, for a person to look into. Stop still removes it.
func Keep() Option { return func(s *settings) { s.keep = true } }

// Setting sets a configuration parameter, e.g. Setting("log_statement", "all"). It wins over pgtest's own.
func Setting(name, value string) Option {
	return func(s *settings) { s.extra = append(s.extra, [2]string{name, value}) }
}

// ownServer ignores DATABASE_URL: the caller wants to stop and start the server.
func ownServer() Option { return func(s *settings) { s.private = true } }
