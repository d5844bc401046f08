package archtest_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// make vuln fails when our code calls something vulnerable and when nothing could be found out; that the database of vulnerabilities is
// out of reach fails nothing, and is said.
func TestVulnerabilitiesFailTheCheck(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		output string // of govulncheck
		status string
		fails  bool
		says   string
	}{
		"nothing is found":       {"No vulnerabilities found.", "0", false, ""},
		"one is called":          {"Vulnerability #1: GO-2026-0001", "3", true, "known to be vulnerable"},
		"no database":            {`govulncheck: fetching vulnerabilities: Get "https://db.example/index/modules.json.gz": dial tcp: no such host`, "1", false, "NOT CHECKED"},
		"the code does not load": {"govulncheck: loading packages: there are errors", "1", true, "exit status 1"},
		"called, without a word": {`govulncheck: fetching vulnerabilities: nearly`, "3", true, "known to be vulnerable"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fake := filepath.Join(t.TempDir(), "govulncheck")
			script := "#!/bin/sh\ncat <<'END'\n" + c.output + "\nEND\nexit " + c.status + "\n"
			if err := os.WriteFile(fake, []byte(script), 0o700); err != nil {
				t.Fatal(err)
			}
			command := exec.CommandContext(t.Context(), filepath.Join("..", "..", "tools", "vulncheck.sh"))
			command.Env = append(os.Environ(), "GOVULNCHECK="+fake, "VULNDB=")
			output, err := command.CombinedOutput()
			if failed := err != nil; failed != c.fails || !strings.Contains(string(output), c.says) || !strings.Contains(string(output), c.output) {
				t.Errorf("it failed: %t, and says\n%s", failed, output)
			}
		})
	}
}
