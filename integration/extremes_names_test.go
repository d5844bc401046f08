//nolint:forcetypeassert // a panic is a failure of the test
package integration_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// extremePackages are the packages whose users give the values, and where they are.
var extremePackages = map[string]string{
	"romancy": "..", "bus": "../bus", "outbox": "../outbox", "riverjobs": "../riverjobs", "workflow": "../workflow",
}

// givenNames lists what users give numbers, durations, times, strings and pointers (interfaces included, alone, in
// slices and in maps) by: arguments of exported functions and methods as package.Function(argument), and exported
// fields of the structs that these take, and of structs in those, as package.Type.Field.
func givenNames(t *testing.T) map[string]bool {
	t.Helper()
	g := &given{types: map[string]*ast.TypeSpec{}, structs: map[string]bool{}, names: map[string]bool{}}
	sources := map[string][]*ast.File{}
	for name, dir := range extremePackages {
		paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil || len(paths) == 0 {
			t.Fatalf("no source of %s: %v", name, err)
		}
		for _, path := range paths {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			sources[name] = append(sources[name], file)
			for _, declared := range file.Decls {
				if types, ok := declared.(*ast.GenDecl); ok && types.Tok == token.TYPE {
					for _, spec := range types.Specs {
						g.types[name+"."+spec.(*ast.TypeSpec).Name.Name] = spec.(*ast.TypeSpec)
					}
				}
			}
		}
	}
	for name, files := range sources {
		for _, file := range files {
			for _, declared := range file.Decls {
				if function, ok := declared.(*ast.FuncDecl); ok && function.Name.IsExported() {
					g.function(name, function)
				}
			}
		}
	}
	for len(g.open) > 0 {
		next := g.open[0]
		g.open = g.open[1:]
		g.fields(next)
	}
	return g.names
}

type given struct {
	types   map[string]*ast.TypeSpec // by package.Name
	structs map[string]bool          // those seen
	open    []string                 // those whose fields are to be listed
	names   map[string]bool
}

func (g *given) function(pkg string, function *ast.FuncDecl) {
	name := pkg + "." + function.Name.Name
	variable := map[string]bool{} // type parameters: whatever users have
	if function.Recv != nil {
		receiver := function.Recv.List[0].Type
		if pointer, ok := receiver.(*ast.StarExpr); ok {
			receiver = pointer.X
		}
		switch generic := receiver.(type) {
		case *ast.IndexExpr:
			receiver = generic.X
			variable[generic.Index.(*ast.Ident).Name] = true
		case *ast.IndexListExpr:
			receiver = generic.X
			for _, index := range generic.Indices {
				variable[index.(*ast.Ident).Name] = true
			}
		}
		if !receiver.(*ast.Ident).IsExported() {
			return
		}
		name = pkg + "." + receiver.(*ast.Ident).Name + "." + function.Name.Name
	}
	if function.Type.TypeParams != nil {
		for _, parameter := range function.Type.TypeParams.List {
			for _, one := range parameter.Names {
				variable[one.Name] = true
			}
		}
	}
	for _, argument := range function.Type.Params.List {
		if g.takes(pkg, argument.Type, variable) {
			for _, one := range argument.Names {
				g.names[name+"("+one.Name+")"] = true
			}
		}
	}
}

func (g *given) fields(name string) {
	pkg, _, _ := strings.Cut(name, ".")
	for _, field := range g.types[name].Type.(*ast.StructType).Fields.List {
		for _, one := range field.Names {
			if one.IsExported() && g.takes(pkg, field.Type, nil) {
				g.names[name+"."+one.Name] = true
			}
		}
		if len(field.Names) == 0 { // what is embedded has fields of its own
			g.takes(pkg, field.Type, nil)
		}
	}
}

// takes reports whether what has this type is one of the kinds, and notes the struct that it is or points to.
func (g *given) takes(pkg string, of ast.Expr, variable map[string]bool) bool {
	switch of := of.(type) {
	case *ast.Ident:
		return !variable[of.Name] && g.named(pkg, of.Name)
	case *ast.StarExpr:
		g.takes(pkg, of.X, variable)
		return true
	case *ast.ArrayType:
		return g.takes(pkg, of.Elt, variable)
	case *ast.Ellipsis:
		return g.takes(pkg, of.Elt, variable)
	case *ast.MapType:
		key, value := g.takes(pkg, of.Key, variable), g.takes(pkg, of.Value, variable)
		return key || value
	case *ast.IndexExpr:
		return g.takes(pkg, of.X, variable)
	case *ast.SelectorExpr:
		from := of.X.(*ast.Ident).Name
		if extremePackages[from] != "" {
			return g.named(from, of.Sel.Name)
		}
		return from != "context" // time.Duration and time.Time, and the interfaces of other modules
	}
	return false
}

func (g *given) named(pkg, name string) bool {
	switch name {
	case "string", "byte", "float64", "int", "int16", "int32", "int64", "uint32", "uint64":
		return true
	}
	spec, ok := g.types[pkg+"."+name]
	if !ok {
		return false
	}
	switch declared := spec.Type.(type) {
	case *ast.StructType:
		if full := pkg + "." + name; ast.IsExported(name) && !g.structs[full] {
			g.structs[full] = true
			g.open = append(g.open, full)
		}
		return false
	case *ast.InterfaceType:
		return true
	default:
		return g.takes(pkg, declared, nil)
	}
}

// The table names everything that takes a value with extremes, and nothing else.
func TestEveryValueThatUsersGiveIsTriedAtItsExtremes(t *testing.T) {
	t.Parallel()
	exported := givenNames(t)
	tried := map[string]bool{}
	for _, name := range triedNames() {
		if tried[name] {
			t.Errorf("%s is in the table twice", name)
		}
		if tried[name] = true; !exported[name] {
			t.Errorf("%s is in the table, and there is no such argument or field", name)
		}
	}
	for name := range exported {
		if !tried[name] {
			t.Errorf("%s takes a number, a duration, a time, a string or a pointer: add it to the table of extremes", name)
		}
	}
	if len(exported) < 200 {
		t.Errorf("only %d names were found in the source", len(exported))
	}
}
