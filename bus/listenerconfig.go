package bus

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/romancy-go/romancy/internal/secret"
)

// Format implements fmt.Formatter: of ListenURL it prints where that leads, without its password.
func (c ListenerConfig) Format(f fmt.State, verb rune) {
	type plain ListenerConfig // without methods
	shown := plain(c)
	shown.ListenURL = secret.Place(c.ListenURL)
	fmt.Fprintf(f, fmt.FormatString(f, verb), shown)
}

// LogValue implements slog.LogValuer, as Format does.
func (c ListenerConfig) LogValue() slog.Value { return slog.StringValue(fmt.Sprintf("%+v", c)) }

// MarshalText implements encoding.TextMarshaler, which encoders of JSON and other formats use, as Format does.
func (c ListenerConfig) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%+v", c), nil }

// warnOfTLS warns if the connection that listens is protected worse than the pool's: whoever reads along gets its password, ids and names.
func (l *Listener) warnOfTLS(ctx context.Context) {
	if l.url == nil || l.cfg.Pool == nil || l.cfg.Disabled {
		return
	}
	if weaker := secret.Weaker(l.cfg.Pool.Config().ConnConfig, l.url()); weaker != "" {
		l.log.WarnContext(ctx, "the URL to listen to asks for weaker TLS than the pool uses", "tls", weaker,
			"remedy", "add the sslmode of the pool, and its sslrootcert, to the URL of WithListenURL or ListenURL")
	}
}
