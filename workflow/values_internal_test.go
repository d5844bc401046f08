package workflow

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// engineJSON are the functions that encode and decode what is the engine's own and no value of the application's: its records, what it
// notifies, metadata, attributes. sameJSON compares two inputs as they are stored, and describe only looks whether details are JSON.
var engineJSON = []string{
	"cancel.go cancelledAnnouncement", "hints.go", "channel.go encodeMetadata", "continue.go continueAs", "continue.go decodeContinued",
	"errors.go decodeAttempt", "errors.go decodeFailure", "errors.go describe", "errors.go mustEncode", "event.go encodeAttributes",
	"eventwait.go waitEvent", "metrics.go resumed", "select.go choice", "select.go firstLanded", "sameinput.go sameJSON", "step.go decodeStepRecord",
	"trace.go", "wait.go decodeMessage", "wait.go firesAt", "wait.go receiveMany", "wait.go subscribe", "wake.go", "watch.go",
}

// Values of the application's are encoded in one place and decoded in one: whoever adds a call of encoding/json elsewhere has to say here
// that it is not about them.
func TestValuesAreEncodedAndDecodedInOnePlace(t *testing.T) {
	t.Parallel()
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, declared := range file.Decls {
			where := name
			if function, ok := declared.(*ast.FuncDecl); ok {
				where += " " + function.Name.Name
			}
			ast.Inspect(declared, func(node ast.Node) bool {
				selected, ok := node.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				from, ok := selected.X.(*ast.Ident)
				if ok && from.Name == "json" && slices.Contains([]string{"Marshal", "MarshalIndent", "Unmarshal", "NewEncoder", "NewDecoder"}, selected.Sel.Name) {
					found[where] = true
				}
				return true
			})
		}
	}
	values := []string{"payload.go decodeValue", "payload.go marshalValue", "payload.go newValueEncoder"}
	for _, where := range values {
		if !found[where] {
			t.Errorf("%s encodes or decodes nothing: this test looks in the wrong place", where)
		}
	}
	for _, where := range slices.Sorted(maps.Keys(found)) {
		file, _, _ := strings.Cut(where, " ")
		if !slices.Contains(values, where) && !slices.Contains(engineJSON, where) && !slices.Contains(engineJSON, file) {
			t.Errorf("%s uses encoding/json: values of the application's go through encodeValue and decodeValue; if it is about the engine's own, name it in engineJSON", where)
		}
	}
}
