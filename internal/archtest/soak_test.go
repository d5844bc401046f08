package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A test that pgtest.Soak makes smaller is of full size in make soak alone, so that must run it.
func TestMakeSoakRunsEveryTestThatIsReduced(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..")
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	pattern := regexp.MustCompile(`(?m)^SOAK := (.+)$`).FindSubmatch(makefile)
	command := regexp.MustCompile(`(?m)^\tROMANCY_SOAK=1 .* -run '\$\(SOAK\)' (.+)$`).FindSubmatch(makefile)
	if pattern == nil || command == nil {
		t.Fatal("the Makefile has no SOAK pattern, or no command that uses it")
	}
	run, packages := regexp.MustCompile(string(pattern[1])), strings.Fields(string(command[1]))
	files, err := filepath.Glob(filepath.Join(root, "*", "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	deeper, err := filepath.Glob(filepath.Join(root, "*", "*", "*", "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	byPackage := map[string][]string{}
	for _, file := range append(files, deeper...) {
		byPackage[filepath.Dir(file)] = append(byPackage[filepath.Dir(file)], file)
	}
	reduced := 0
	for dir, files := range byPackage {
		path, err := filepath.Rel(root, dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, test := range reducedTests(t, files) {
			reduced++
			if name := "./" + filepath.ToSlash(path); !slices.Contains(packages, name) || !run.MatchString(test) {
				t.Errorf("%s: %s is never run at its full size: have make soak run it", name, test)
			}
		}
	}
	if reduced < 10 {
		t.Errorf("only %d tests that are reduced were found: this test does not see them", reduced)
	}
}

// reducedTests returns the tests of a package's files that call pgtest.Soak, by themselves or by way of other functions there.
func reducedTests(t *testing.T, files []string) (tests []string) {
	t.Helper()
	uses := map[string][]string{} // of functions, by name: the names of what they mention
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, declaration := range parsed.Decls {
			function, ok := declaration.(*ast.FuncDecl)
			if !ok || function.Body == nil {
				continue
			}
			ast.Inspect(function.Body, func(node ast.Node) bool {
				if name, ok := node.(*ast.Ident); ok {
					uses[function.Name.Name] = append(uses[function.Name.Name], name.Name)
				}
				return true
			})
		}
	}
	found := map[string]bool{"Soak": true}
	for grown := true; grown; {
		grown = false
		for name, mentioned := range uses {
			if !found[name] && slices.ContainsFunc(mentioned, func(other string) bool { return found[other] }) {
				found[name], grown = true, true
			}
		}
	}
	for name := range found {
		if strings.HasPrefix(name, "Test") && name != "TestMain" {
			tests = append(tests, name)
		}
	}
	slices.Sort(tests)
	return tests
}
