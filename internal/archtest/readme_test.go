package archtest_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var goBlock = regexp.MustCompile("(?s)```go\n(.*?)```")

// Every Go snippet of the documents stands in a file that is compiled: the README's quick start is the program of
// examples/quickstart, to the letter.
func TestDocumentedCodeIsCompiled(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..")
	var sources []string
	err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") {
			text, readErr := os.ReadFile(path)
			sources, err = append(sources, string(text)), readErr
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	documents, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	readme := filepath.Join(root, "README.md")
	for _, document := range append(documents, readme) {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		snippets := goBlock.FindAllStringSubmatch(string(text), -1)
		if document == readme && len(snippets) == 0 {
			t.Error("the README has no quick start")
		}
		for _, snippet := range snippets {
			if !compiled(sources, snippet[1]) {
				t.Errorf("%s shows code that stands in no source file:\n%s", document, snippet[1])
			}
		}
	}
}

func compiled(sources []string, snippet string) bool {
	for _, source := range sources {
		if strings.Contains(source, snippet) {
			return true
		}
	}
	return false
}
