package schema_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/internal/schema"
)

// A script that fails because of a row says where and why, and not what is in the row.
func TestAScriptThatFailsDoesNotQuoteRows(t *testing.T) {
	t.Parallel()
	conn, err := pgx.Connect(t.Context(), pgtest.EmptyURL(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	for name, test := range map[string]struct{ sql, want string }{
		"a key":   {"create table a (card text);\ninsert into a values ('card-4111'), ('card-4111');\ncreate unique index a_card on a (card);", `could not create unique index "a_card"`},
		"a cast":  {"create table b (card text);\ninsert into b values ('hunter2');\nalter table b alter card type int using card::int;", "SQLSTATE 22P02"},
		"a check": {"create table c (card text);\ninsert into c values ('card-4111');\nalter table c add check (card = '');", "SQLSTATE 23514"},
	} {
		err := schema.Script(t.Context(), conn, test.sql)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %s", name, err, test.want)
		}
		if text := fmt.Sprintf("%v %+v %#v", err, err, err); strings.Contains(text, "card-4111") || strings.Contains(text, "hunter2") {
			t.Errorf("%s: %s", name, text)
		}
	}
}
