package secret

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

func TestATextIsNeverPrinted(t *testing.T) {
	t.Parallel()
	held := struct {
		List []Text
		held Text
	}{[]Text{New("hunter2")}, New("hunter2")}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		if text := fmt.Sprintf(verb, held); strings.Contains(text, "hunter2") || strings.Contains(text, "68756e74657232") {
			t.Errorf("%s prints %s", verb, text)
		}
	}
	if text, err := json.Marshal(held); err != nil || strings.Contains(string(text), "hunter2") { //nolint:musttag // whatever it would be printed as
		t.Errorf("JSON is %s (%v)", text, err)
	}
	if held.held.Reveal() != "hunter2" || (Text{}).Reveal() != "" {
		t.Error("it does not reveal what it holds")
	}
}

func TestAURLWithAnUnescapedAtIsRefusedWithoutBeingShown(t *testing.T) {
	t.Parallel()
	for _, connection := range []string{
		"postgres://me:hunter2@hunter2@localhost/shop", "postgresql://me:hunter2@hunter2@localhost/shop",
		"postgres://me:hunter2/hunter2@localhost/shop", "postgres://me:12/hunter2@localhost/shop", "postgres://localhost/shop?search_path=hunter2@localhost",
		"postgres://me:hunter2@localhost/sh@op", "postgres://me:hunter2@hunter2@/shop?host=localhost",
	} {
		_, err := Parse(connection)
		if err == nil || !strings.Contains(err.Error(), "%40") {
			t.Errorf("%s: %v", connection, err)
		}
		mustNotShow(t, err)
	}
	config, err := Parse("postgres://me:hunter2%40hunter2@localhost/shop?application_name=a@b")
	if err != nil || config.ConnConfig.Password != "hunter2@hunter2" || config.ConnConfig.Host != "localhost" {
		t.Errorf("with %%40 it is %v", err)
	}
	if config, err := Parse("host=localhost password=hunter2@hunter2"); err != nil || config.ConnConfig.Password != "hunter2@hunter2" {
		t.Errorf("as keyword and value it is %v", err)
	}
}

func TestNoMistakeInAConnectionStringShowsIt(t *testing.T) {
	t.Parallel()
	for connection, want := range map[string]string{
		"postgres://me:hunter2@localhost:hunter2/shop":                          "invalid port",
		"postgres://me:hun:ter2%zz@localhost/shop":                              "",
		"postgres://me:hunter2@localhost/shop?sslmode=hunter2":                  "TLS",
		"postgres://me:hunter2@localhost/shop?sslpassword=hunter2&sslmode=x":    "TLS",
		"postgres://me:hunter2@localhost/shop?pool_max_conns=hunter2":           "pool_max_conns",
		"postgres://me:hunter2@localhost/shop?default_query_exec_mode=hunter2":  "default_query_exec_mode",
		"postgres://me:hunter2@localhost/shop?target_session_attrs=hunter2":     "target_session_attrs",
		"postgres://me:hunter2@localhost/shop?connect_timeout=hunter2":          "connect_timeout",
		"postgres://me:hunter2@a,b,c:1,2/shop":                                  "",
		"postgres://me:hunter2@localhost/s?sslmode=verify-full&sslrootcert=/no": "/no",
		"host=localhost password='hunter2":                                      "",
		"host=localhost password = hun'ter2 hunter2":                            "",
		"me:hunter2@localhost":                                                  "keyword/value",
		"hunter2":                                                               "keyword/value",
		"http://me:hunter2@localhost":                                           "keyword/value",
	} {
		config, err := Parse(connection)
		if err == nil {
			if want != "" {
				t.Errorf("%s is taken: %+v", connection, config.ConnConfig.Host)
			}
			continue
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", connection, err, want)
		}
		mustNotShow(t, err)
	}
}

func mustNotShow(t *testing.T, err error) {
	t.Helper()
	text, jsonErr := json.Marshal(err)
	if jsonErr != nil {
		t.Fatal(jsonErr)
	}
	for _, printed := range []string{fmt.Sprint(err), fmt.Sprintf("%+v", err), fmt.Sprintf("%#v", err), string(text)} {
		if strings.Contains(printed, "hunter2") || strings.Contains(printed, "ter2") {
			t.Errorf("it shows %s", printed)
		}
	}
	if errors.As(err, new(*pgconn.ParseConfigError)) {
		t.Error("its chain has the connection string")
	}
}

func TestAPlaceHasNoPassword(t *testing.T) {
	t.Parallel()
	for connection, want := range map[string]string{
		"postgres://me:hunter2@localhost:6543/shop?sslpassword=hunter2": "postgres://me@localhost:6543/shop",
		"host=localhost port=6543 user=me password=hunter2 dbname=shop": "postgres://me@localhost:6543/shop",
		"postgres://me:hunter2@hunter2@localhost/shop":                  "(not a connection string)",
		"": "",
	} {
		if got := Place(connection); got != want {
			t.Errorf("%s leads to %s, want %s", connection, got, want)
		}
	}
}

func TestWeakerTLSIsFound(t *testing.T) {
	t.Parallel()
	modes := []string{"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}
	order := map[string]int{"disable": 0, "allow": 1, "prefer": 1, "require": 2, "verify-ca": 3, "verify-full": 4}
	parse := func(host, mode string) *pgx.ConnConfig {
		config, err := pgx.ParseConfig("postgres://me@/shop?host=" + host + "&sslmode=" + mode)
		if err != nil {
			t.Fatal(err)
		}
		return config
	}
	for _, pool := range modes {
		for _, other := range modes {
			weaker := Weaker(parse("a,b", pool), parse("b", other)) != ""
			if want := order[other] < order[pool]; weaker != want {
				t.Errorf("%s instead of %s is weaker: %t", other, pool, weaker)
			}
			if Weaker(parse("/tmp", pool), parse("b", other)) != "" || Weaker(parse("a", pool), parse("/tmp", other)) != "" {
				t.Errorf("a socket of this machine is compared with %s", other)
			}
		}
	}
}
