// Package archtest checks what no compiler does: who may import whom, and how large a file may grow.
package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	module       = "github.com/romancy-go/romancy"
	maxFileLines = 500
)

// room is a part of the library. A package belongs to the room with the longest matching path.
type room struct {
	path string // within the module; "" is package romancy itself
	// floor: a package imports only rooms on lower floors, and its own room.
	floor int
	// modules that may be imported besides the standard library.
	modules []string
	// barred are packages of the standard library that the room promises not to know.
	barred []string
}

const (
	pgx        = "github.com/jackc/pgx/v5"
	watermill  = "github.com/ThreeDotsLabs/watermill"
	watersql   = "github.com/ThreeDotsLabs/watermill-sql/v4"
	river      = "github.com/riverqueue/river"
	uuid       = "github.com/google/uuid"
	goleak     = "go.uber.org/goleak"
	embeddedpg = "github.com/fergusstrange/embedded-postgres"
	otel       = "go.opentelemetry.io/otel"
)

// rooms is the plan of the house, top to bottom. A new module is a decision: add it here, and say in the commit why.
var rooms = []room{
	{path: "", floor: 5, modules: []string{pgx, watermill, river, otel}},
	{path: "riverjobs", floor: 4, modules: []string{pgx, river}},
	{path: "outbox", floor: 3, modules: []string{pgx, watermill, watersql, uuid, otel}},
	{path: "workflow", floor: 3, modules: []string{pgx, watermill, uuid, otel}},
	// Replay decides what happens next from history alone: no clock, no database, nothing concurrent.
	{path: "workflow/internal/journal", floor: 3, barred: []string{"time", "sync", "sync/atomic", "database/sql", "context"}},
	// The bus knows watermill-sql for its seams alone: what waits between two polls, and what a publisher inserts.
	{path: "bus", floor: 2, modules: []string{pgx, watermill, watersql, otel}},
	{path: "internal", floor: 1, modules: []string{pgx}},
	{path: "internal/rivertables", floor: 1, modules: []string{pgx, river}},
	{path: "internal/sqlfile", floor: 1},
	{path: "internal/pgtest", floor: 1, modules: []string{pgx, goleak, embeddedpg}},
	{path: "internal/archtest", floor: 1},
}

// guests are outside the house: they use the library as anybody does, and nothing in it uses them.
var guests = []string{"examples", "integration"}

// testModules are for tests alone, in any room. Pgtest is a package of the library's own that only tests and guests use.
var testModules = []string{goleak, watermill, "golang.org/x/sync", "pgregory.net/rapid", "github.com/anishathalye/porcupine"}

const testServer = "internal/pgtest"

// pkg is what `go list -json` says about a package.
type pkg struct {
	ImportPath   string   `json:"ImportPath"`
	Imports      []string `json:"Imports"`
	TestImports  []string `json:"TestImports"`
	XTestImports []string `json:"XTestImports"`
	Error        *problem `json:"Error"`
}

type problem struct {
	Err string `json:"Err"`
}

func TestImportsFollowThePlan(t *testing.T) {
	t.Parallel()
	for _, complaint := range complaints(list(t)) {
		t.Error(complaint)
	}
}

func TestFilesAreSmall(t *testing.T) {
	t.Parallel()
	seen := 0
	err := filepath.WalkDir(root(t), func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && strings.HasPrefix(entry.Name(), ".") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		seen++
		if lines := bytes.Count(text, []byte("\n")); lines >= maxFileLines {
			t.Errorf("%s has %d lines, want fewer than %d: split it by concept", path, lines, maxFileLines)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 20 {
		t.Errorf("only %d files found: is this the right directory?", seen)
	}
}

// The rules must be able to fail.
func TestEachRuleBites(t *testing.T) {
	t.Parallel()
	in := func(path string) string { return strings.TrimSuffix(module+"/"+path, "/") }
	for name, c := range map[string]struct {
		pkg  pkg
		want string // "" is allowed
	}{
		"down one floor":                  {pkg{ImportPath: in("workflow"), Imports: []string{in("bus"), "time"}}, ""},
		"down to internal":                {pkg{ImportPath: in("bus"), Imports: []string{in("internal/sqlfile")}}, ""},
		"within the room":                 {pkg{ImportPath: in("workflow"), Imports: []string{in("workflow/internal/store")}}, ""},
		"between leaves":                  {pkg{ImportPath: in("internal/schema"), Imports: []string{in("internal/sqlfile")}}, ""},
		"up":                              {pkg{ImportPath: in("bus"), Imports: []string{in("workflow")}}, "bus imports workflow, which is not below it"},
		"up from internal":                {pkg{ImportPath: in("internal/schema"), Imports: []string{in("bus")}}, "not below"},
		"sideways":                        {pkg{ImportPath: in("outbox"), Imports: []string{in("workflow")}}, "not below"},
		"sideways in a test":              {pkg{ImportPath: in("outbox"), XTestImports: []string{in("workflow")}}, "not below"},
		"into the roof":                   {pkg{ImportPath: in("riverjobs"), Imports: []string{module}}, "not below"},
		"a guest from inside":             {pkg{ImportPath: in("workflow"), Imports: []string{in("examples/orders")}}, "examples/orders, which is not part of the library"},
		"a guest may use anything":        {pkg{ImportPath: in("examples/orders"), Imports: []string{in("workflow"), in("internal/pgtest"), river, "example.com/x"}}, ""},
		"river in riverjobs":              {pkg{ImportPath: in("riverjobs"), Imports: []string{river + "/rivertype"}}, ""},
		"river at the top":                {pkg{ImportPath: module, Imports: []string{river}}, ""},
		"river elsewhere":                 {pkg{ImportPath: in("workflow"), Imports: []string{river}}, "may not use " + river},
		"river in a test elsewhere":       {pkg{ImportPath: in("bus"), TestImports: []string{river}}, "may not use"},
		"watermill-sql in outbox":         {pkg{ImportPath: in("outbox"), Imports: []string{watersql + "/pkg/sql"}}, ""},
		"watermill-sql in bus":            {pkg{ImportPath: in("bus"), Imports: []string{watersql + "/pkg/sql"}}, ""},
		"watermill-sql elsewhere":         {pkg{ImportPath: in("workflow"), Imports: []string{watersql + "/pkg/sql"}}, "may not use"},
		"a module nobody decided on":      {pkg{ImportPath: in("bus"), Imports: []string{"github.com/lib/pq"}}, "may not use github.com/lib/pq"},
		"goleak in a test":                {pkg{ImportPath: in("internal/sqlfile"), TestImports: []string{goleak}}, ""},
		"goleak in production":            {pkg{ImportPath: in("bus"), Imports: []string{goleak}}, "may not use"},
		"the test server in a test":       {pkg{ImportPath: in("bus"), XTestImports: []string{in(testServer)}}, ""},
		"the test server in production":   {pkg{ImportPath: in("bus"), Imports: []string{in(testServer)}}, "only tests"},
		"testing in production":           {pkg{ImportPath: in("bus"), Imports: []string{"testing"}}, "only tests"},
		"a clock in replay":               {pkg{ImportPath: in("workflow/internal/journal"), Imports: []string{"time"}}, "knows no time"},
		"a database in replay":            {pkg{ImportPath: in("workflow/internal/journal"), Imports: []string{pgx}}, "may not use"},
		"a room missing from the plan":    {pkg{ImportPath: in("utils")}, "not in the plan"},
		"a package that does not build":   {pkg{ImportPath: in("bus"), Error: &problem{"no such file"}}, "no such file"},
		"a prefix of a module's name":     {pkg{ImportPath: in("workflow"), Imports: []string{"github.com/ThreeDotsLabs/watermill-sql"}}, "may not use"},
		"the journal's tests have clocks": {pkg{ImportPath: in("workflow/internal/journal"), TestImports: []string{"time"}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := strings.Join(complaints([]pkg{c.pkg}), "\n")
			if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// complaints says where packages leave the plan.
func complaints(pkgs []pkg) []string {
	var found []string
	for _, p := range pkgs {
		path := within(p.ImportPath)
		if p.Error != nil {
			found = append(found, fmt.Sprintf("%s: %s", p.ImportPath, p.Error.Err))
		}
		if isGuest(path) {
			continue
		}
		home, ok := roomOf(path)
		if !ok {
			found = append(found, p.ImportPath+" is not in the plan of internal/archtest: give it a room and a floor")
			continue
		}
		for _, imported := range p.Imports {
			found = append(found, home.judge(path, imported, false)...)
		}
		for _, imported := range slices.Concat(p.TestImports, p.XTestImports) {
			found = append(found, home.judge(path, imported, true)...)
		}
	}
	return found
}

// judge says what is wrong with the package at path, which is in room r, importing another.
func (r room) judge(path, imported string, test bool) []string {
	name := "romancy"
	if path != "" {
		name = path
	}
	complain := func(format string, args ...any) []string { return []string{name + " " + fmt.Sprintf(format, args...)} }

	if imported != module && !strings.HasPrefix(imported, module+"/") {
		if !strings.Contains(strings.SplitN(imported, "/", 2)[0], ".") {
			switch {
			case test:
			case slices.Contains(r.barred, imported):
				return complain("knows no %s", imported)
			case imported == "testing" && path != testServer:
				return complain("imports testing, which is for only tests and %s", testServer)
			}
			return nil
		}
		allowed := r.modules
		if test {
			allowed = slices.Concat(allowed, testModules)
		}
		if !slices.ContainsFunc(allowed, func(m string) bool { return covers(m, imported) }) {
			return complain("may not use %s (internal/archtest lists what it may)", imported)
		}
		return nil
	}

	target := within(imported)
	if target == testServer && path != testServer {
		if test {
			return nil
		}
		return complain("imports %s, which only tests and examples may", target)
	}
	if isGuest(target) {
		return complain("imports %s, which is not part of the library", target)
	}
	other, ok := roomOf(target)
	if !ok {
		return nil // reported as a package of its own
	}
	if other.floor < r.floor || sameWing(path, target) {
		return nil
	}
	return complain("imports %s, which is not below it", target)
}

// covers reports whether imported is m or below it. River's repository holds several modules, which count as one.
func covers(m, imported string) bool { return imported == m || strings.HasPrefix(imported, m+"/") }

// sameWing reports whether two packages share their first path element: the inner packages of workflow, or the leaves in
// internal.
func sameWing(a, b string) bool {
	first := func(path string) string { return strings.SplitN(path, "/", 2)[0] }
	return first(a) == first(b)
}

func within(importPath string) string {
	return strings.TrimPrefix(strings.TrimPrefix(importPath, module), "/")
}

func isGuest(path string) bool {
	return slices.ContainsFunc(guests, func(guest string) bool { return covers(guest, path) })
}

func roomOf(path string) (room, bool) {
	best, found := room{}, false
	for _, r := range rooms {
		if r.path == path || r.path != "" && covers(r.path, path) {
			if !found || len(r.path) > len(best.path) {
				best, found = r, true
			}
		}
	}
	return best, found
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func list(t *testing.T) []pkg {
	t.Helper()
	command := exec.CommandContext(t.Context(), "go", "list", "-e", "-json=ImportPath,Imports,TestImports,XTestImports,Error", "./...")
	command.Dir = root(t)
	var problems bytes.Buffer
	command.Stderr = &problems
	out, err := command.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, problems.String())
	}
	var pkgs []pkg
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) == 0 {
		t.Fatal("go list names no package")
	}
	return pkgs
}
