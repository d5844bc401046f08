// Package secret keeps passwords out of what is printed: it reads connection strings without quoting them, and holds them where no
// printer looks.
package secret

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Text is a text that nothing prints: not fmt, whatever the verb and wherever it is, no encoder, and nothing else that goes through
// the fields of a value, since it is behind a function.
type Text struct{ reveal func() string }

// New returns a Text of text.
func New(text string) Text { return Text{func() string { return text }} }

// Reveal returns the text.
func (t Text) Reveal() string {
	if t.reveal == nil {
		return ""
	}
	return t.reveal()
}

var errUnescaped = errors.New("there is an unescaped @ in it that is not the one before the host: in the user name and the password, write %40 for @ (and " +
	"%3A for :, %2F for /, %3F for ?, %23 for #, %25 for %)")

// Parse reads a connection string as pgxpool.ParseConfig does. Its errors quote nothing of the string, and have nothing in their chain
// that does. A URL with an @ that is not percent-encoded is refused where pgx would take what follows for the host, or worse.
func Parse(connection string) (*pgxpool.Config, error) {
	if unescaped(connection) {
		return nil, errUnescaped
	}
	config, err := pgxpool.ParseConfig(connection)
	if err != nil {
		return nil, errors.New(reason(err))
	}
	return config, nil
}

// mayHaveAt are the settings of a URL's query whose values often have an @. In others it is likely to be part of a password.
var mayHaveAt = []string{
	"user", "password", "sslpassword", "host", "dbname", "application_name", "fallback_application_name", "options", "service", "passfile",
}

// unescaped reports whether there is an @ in a URL beside the one that ends user and password. As in libpq, that is the first one if it
// comes before any /.
func unescaped(connection string) bool {
	rest, isURL := strings.CutPrefix(connection, "postgres://")
	if !isURL {
		if rest, isURL = strings.CutPrefix(connection, "postgresql://"); !isURL {
			return false
		}
	}
	if i := strings.IndexAny(rest, "@/"); i >= 0 && rest[i] == '@' {
		rest = rest[i+1:]
	}
	place, query, _ := strings.Cut(rest, "?")
	if strings.Contains(place, "@") {
		return true
	}
	for pair := range strings.SplitSeq(query, "&") {
		if key, _, _ := strings.Cut(pair, "="); strings.Contains(pair, "@") && !slices.Contains(mayHaveAt, key) {
			return true
		}
	}
	return false
}

// reasons are what pgx says of a connection string, without what it quotes.
var reasons = []string{
	"failed to parse as URL", "failed to parse as keyword/value", "invalid port", "invalid connect_timeout", "invalid sslcertmode",
	"failed to configure TLS", "failed to read service", "could not match", "unknown target_session_attrs", "invalid min_protocol_version",
	"invalid max_protocol_version", "unknown channel_binding", "invalid require_auth", "cannot parse pool_max_conns", "pool_max_conns too small",
	"cannot parse pool_min_conns", "cannot parse pool_min_idle_conns", "cannot parse pool_max_conn_lifetime_jitter",
	"cannot parse pool_max_conn_lifetime", "cannot parse pool_max_conn_idle_time", "cannot parse pool_health_check_period",
	"cannot parse pool_ping_timeout", "cannot parse statement_cache_capacity", "cannot parse description_cache_capacity",
	"invalid default_query_exec_mode",
}

// reason says what is wrong with a connection string. What pgx says quotes it, with the passwords that it recognises taken out, but of
// a string with a mistake nobody can tell what is a password.
func reason(err error) string {
	text := err.Error()
	if at := strings.LastIndex(text, "`: "); at >= 0 { // behind the string
		text = text[at:]
	}
	told := "it cannot be parsed"
	for _, known := range reasons {
		if strings.Contains(text, known) {
			told = known
			break
		}
	}
	if told == "could not match" {
		told = "it has another number of ports than of hosts"
	}
	if file := (*fs.PathError)(nil); errors.As(err, &file) {
		told += " (" + file.Error() + ")"
	}
	return told + " (the text of a connection string is never shown; is every special character of the password percent-encoded?)"
}

// Place returns where a connection string leads, as a URL without a password and without settings; "" for "".
func Place(connection string) string {
	if connection == "" {
		return ""
	}
	config, err := Parse(connection)
	if err != nil {
		return "(not a connection string)"
	}
	to := config.ConnConfig
	place := url.URL{Scheme: "postgres", User: url.User(to.User), Host: net.JoinHostPort(to.Host, strconv.Itoa(int(to.Port))), Path: "/" + to.Database}
	return place.String()
}

// TLS is how well a connection is protected, at worst.
type TLS int

// From the weakest to the strongest.
const (
	None      TLS = iota // sslmode=disable
	Maybe                // allow or prefer: without, if the server, or whoever is in between, prefers that
	Encrypted            // require: with anybody
	CA                   // verify-ca: with a server that this authority knows
	Host                 // verify-full
)

func (t TLS) String() string {
	return [...]string{"none (sslmode=disable)", "only if the server offers it (sslmode=prefer or allow)", "sslmode=require", "sslmode=verify-ca", "sslmode=verify-full"}[t]
}

// Protection returns how well connections with config are protected: that of its weakest host. Sockets of this machine, which need no TLS,
// do not count; local reports whether there are none but those.
func Protection(config *pgx.ConnConfig) (weakest TLS, local bool) {
	ways := []*pgconn.FallbackConfig{{Host: config.Host, TLSConfig: config.TLSConfig}}
	ways = append(ways, config.Fallbacks...)
	weakest, local = Host, true
	without, with := false, false
	for _, way := range ways {
		if isSocket(way.Host) {
			continue
		}
		local = false
		switch {
		case way.TLSConfig == nil:
			without = true
			continue
		case !way.TLSConfig.InsecureSkipVerify:
			weakest = min(weakest, Host)
		case way.TLSConfig.VerifyPeerCertificate != nil || way.TLSConfig.VerifyConnection != nil:
			weakest = min(weakest, CA)
		default:
			weakest = min(weakest, Encrypted)
		}
		with = true
	}
	switch {
	case without && with:
		return Maybe, local
	case without:
		return None, local
	}
	return weakest, local
}

// isSocket reports whether host is the directory of a Unix socket, as pgx does.
func isSocket(host string) bool {
	network, _ := pgconn.NetworkAddress(host, 5432)
	return network == "unix"
}

// Weaker says how connections with other are protected worse than those with config; "" if they are not.
func Weaker(config, other *pgx.ConnConfig) string {
	wanted, local := Protection(config)
	got, otherLocal := Protection(other)
	if local || otherLocal || got >= wanted {
		return ""
	}
	return fmt.Sprintf("%s, where the pool has %s", got, wanted)
}
