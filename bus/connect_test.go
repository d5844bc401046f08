package bus

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/dial"
	"github.com/romancy-go/romancy/internal/pgtest"
)

func TestListenerGoesWithoutASettingThatTheServerRefuses(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	conn, err := connect(within(t), pool, " test")
	if err != nil {
		t.Fatal(err)
	}
	defer dial.HangUp(conn)
	if err := setSession(within(t), conn, []string{"SET no_such_setting = 1", "SET tcp_keepalives_count = 7", "SET tcp_keepalives_idle = 'x'"}); err != nil {
		t.Fatal(err)
	}
	if got := conn.PgConn().ParameterStatus("application_name"); got != "romancy test" {
		t.Errorf("application_name is %q", got)
	}
	for setting, want := range map[string]string{"tcp_keepalives_count": "7", "tcp_user_timeout": "0"} {
		if got := show(t, conn, setting); got != want {
			t.Errorf("%s is %s, want %s", setting, got, want)
		}
	}
	if err := setSession(within(t), conn, sessionSettings); err != nil {
		t.Fatal(err)
	}
	if got := show(t, conn, "tcp_user_timeout"); got != "30000" {
		t.Errorf("tcp_user_timeout is %s ms", got)
	}
}

func show(t testing.TB, conn *pgx.Conn, setting string) (value string) {
	t.Helper()
	if err := conn.QueryRow(within(t), "show "+setting).Scan(&value); err != nil {
		t.Fatal(err)
	}
	return value
}
