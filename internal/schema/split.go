package schema

import (
	"regexp"
	"strings"
)

// token is what a semicolon may be hidden in, or a semicolon: comments, quoted text and names, dollar quotes.
var token = regexp.MustCompile(`--[^\n]*|/\*|'|"|\$(?:[A-Za-z_]\w*)?\$|;`)

// split returns the statements of a script without their semicolons and without the comments that stand between them. It knows
// what our migrations use: no nested comments, no backslashes in quotes.
func split(script string) []string {
	var statements []string
	var current strings.Builder
	flush := func() {
		if statement := strings.TrimSpace(current.String()); statement != "" {
			statements = append(statements, statement)
		}
		current.Reset()
	}
	for script != "" {
		at := token.FindStringIndex(script)
		if at == nil {
			current.WriteString(script)
			break
		}
		current.WriteString(script[:at[0]])
		opening, rest := script[at[0]:at[1]], script[at[1]:]
		script = rest
		switch {
		case opening == ";":
			flush()
		case strings.HasPrefix(opening, "--"):
		case opening == "/*":
			_, script, _ = strings.Cut(rest, "*/")
		default: // a quote, which is part of the statement
			var quoted string
			quoted, script, _ = strings.Cut(rest, opening)
			current.WriteString(opening + quoted + opening)
		}
	}
	flush()
	return statements
}
