package archtest_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/dependencies.md")

// licences are told by what stands in no other one's text.
var licences = []struct{ name, says string }{
	{"MPL-2.0", "Mozilla Public License Version 2.0"},
	{"Apache-2.0", "Apache License Version 2.0"},
	{"BSD-3-Clause", "Neither the name of"},
	{"BSD-2-Clause", "Redistributions in binary form must reproduce"},
	{"MIT", "Permission is hereby granted, free of charge, to any person obtaining a copy"},
	{"ISC", "Permission to use, copy, modify, and/or distribute this software for any purpose"},
}

// licenceOf reads the licence in the module's directory.
func licenceOf(directory string) (string, error) {
	for _, name := range []string{"LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING"} {
		text, err := os.ReadFile(filepath.Join(directory, name))
		if err != nil {
			continue
		}
		words := strings.Join(strings.Fields(string(text)), " ")
		for _, licence := range licences {
			if strings.Contains(words, licence.says) {
				return licence.name, nil
			}
		}
		return "", fmt.Errorf("%s is of no kind that is known here: read it, and add it to licences", filepath.Join(directory, name))
	}
	return "", fmt.Errorf("there is no licence in %s", directory)
}

// linked lists the modules that an application links with this library, whatever it uses of it: path, version, licence.
func linked(t *testing.T) (modules [][3]string) {
	t.Helper()
	command := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}}\t{{.Version}}\t{{.Dir}}{{end}}{{end}}",
		".", "./bus", "./outbox", "./workflow", "./riverjobs")
	command.Dir = filepath.Join("..", "..")
	output, err := command.Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := slices.Compact(slices.Sorted(strings.SplitSeq(strings.TrimSpace(string(output)), "\n")))
	for _, line := range lines {
		fields := strings.Split(line, "\t")
		if len(fields) != 3 {
			continue // a package of ours or of the standard library
		}
		licence, err := licenceOf(fields[2])
		if err != nil {
			t.Fatal(err)
		}
		modules = append(modules, [3]string{fields[0], fields[1], licence})
	}
	return modules
}

// What an application links with this library, and under which licences, is listed, and what asks to be named is named.
func TestDependenciesAndTheirLicencesAreListed(t *testing.T) {
	t.Parallel()
	var want strings.Builder
	want.WriteString(`# What this library links

The modules that an application gets into its binary with this library, at the versions of its go.mod, with their licences. Romancy itself is under the
MIT licence. What only its tests, examples and benchmarks use is not here. Made by ` +
		"`go test ./internal/archtest -run TestDependencies -update`" + `, and held to go.mod and to the
licences in the module cache by the same test.

| module | version | licence |
|---|---|---|
`)
	modules := linked(t)
	for _, m := range modules {
		fmt.Fprintf(&want, "| `%s` | %s | %s |\n", m[0], m[1], m[2])
	}
	want.WriteString(`
Modules under MPL-2.0 are used unchanged. Their licence covers their own files: who distributes a binary says where their source is, as [NOTICE](../NOTICE)
does; nothing follows for the application's own code.
`)
	path := filepath.Join("..", "..", "docs", "dependencies.md")
	if *update {
		if err := os.WriteFile(path, []byte(want.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want.String() {
		t.Errorf("docs/dependencies.md is not what is linked: go test ./internal/archtest -run TestDependencies -update")
	}
	notice, err := os.ReadFile(filepath.Join("..", "..", "NOTICE"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range modules {
		if named := strings.Contains(string(notice), "\n    "+m[0]+"\n"); named != (m[2] == "MPL-2.0") {
			t.Errorf("%s is under %s; NOTICE names it: %t", m[0], m[2], named)
		}
	}
}
