package sqlfile

import (
	"fmt"
	"slices"
	"strings"
)

type tokenKind int

const (
	ending tokenKind = iota
	word
	quoted  // a name in quotes
	literal // a string, a number, a parameter
	operator
	punctuation
)

// token is one of a statement's, with the white space and the comments before it.
type token struct {
	kind  tokenKind
	space string
	text  string
	lower string // of a word and of punctuation
}

func (t token) String() string { return t.space + t.text }

// is reports whether the token is one of words, or of the signs that are not operators.
func (t token) is(words ...string) bool { return slices.Contains(words, t.lower) && t.lower != "" }

const (
	digits    = "0123456789"
	letters   = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"
	operators = "*/<>=~!@#%^&|?"
	blanks    = " \t\r\n\f\v"
)

// span returns the length of the beginning of text that consists of what is in chars.
func span(text, chars string) int { return len(text) - len(strings.TrimLeft(text, chars)) }

// blank returns the length of the white space and the comments at the beginning of text.
func blank(text string) int {
	rest := text
	for {
		rest = rest[span(rest, blanks):]
		opening, closing := "--", "\n"
		if strings.HasPrefix(rest, "/*") {
			opening, closing = "/*", "*/"
		}
		if !strings.HasPrefix(rest, opening) {
			return len(text) - len(rest)
		}
		_, after, closed := strings.Cut(rest[len(opening):], closing)
		if !closed && opening == "/*" {
			return len(text) - len(rest)
		}
		rest = after
	}
}

// scan takes query apart. What follows the last token is the space before an ending one.
func scan(query string) ([]token, error) {
	var tokens []token
	for rest := query; ; {
		n := blank(rest)
		space := rest[:n]
		if rest = rest[n:]; rest == "" {
			return append(tokens, token{kind: ending, space: space}), nil
		}
		t, err := scanOne(rest)
		if err != nil {
			return nil, err
		}
		rest, t.space = rest[len(t.text):], space
		tokens = append(tokens, t)
	}
}

func scanOne(rest string) (token, error) {
	kind, length := lexeme(rest)
	if length == 0 {
		return token{}, fmt.Errorf("%.20q is no SQL that is known here", rest)
	}
	t := token{kind: kind, text: rest[:length]}
	if kind == word || kind == punctuation {
		t.lower = strings.ToLower(t.text)
	}
	return t, nil
}

// lexeme returns the kind and the length of the token that rest, which is not empty, begins with; 0 if there is none. PostgreSQL's
// rule for operators is kept simple: none of ours ends in + or - behind another character, so a sign is a token of its own.
func lexeme(rest string) (tokenKind, int) {
	two := rest[:min(2, len(rest))]
	switch first := rest[0]; {
	case first == '\'':
		return literal, enclosed(rest, '\'')
	case strings.EqualFold(two, "e'"), strings.EqualFold(two, "b'"):
		if n := enclosed(rest[1:], '\''); n > 0 {
			return literal, 1 + n
		}
		return literal, 0
	case first == '"':
		return quoted, enclosed(rest, '"')
	case first == '$':
		return literal, dollar(rest)
	case strings.IndexByte(digits, first) >= 0:
		return literal, number(rest)
	case strings.IndexByte(letters, first) >= 0:
		if n := pinnedOperator(rest); n > 0 {
			return operator, n
		}
		return word, span(rest, letters+digits+"$")
	case two == "::", two == "=>", two == ":=":
		return punctuation, 2
	case strings.IndexByte("()[],;.", first) >= 0:
		return punctuation, 1
	case first == '+', first == '-':
		return operator, 1 + min(2, span(rest[1:], ">"))
	default:
		return operator, span(rest, operators)
	}
}

// enclosed returns the length of text in quotes, in which two quotes are one; 0 if it does not end.
func enclosed(rest string, quote byte) int {
	for i := 1; i < len(rest); i++ {
		switch {
		case rest[i] != quote:
		case i+1 < len(rest) && rest[i+1] == quote:
			i++
		default:
			return i + 1
		}
	}
	return 0
}

// dollar returns the length of a parameter, or of text between two dollars.
func dollar(rest string) int {
	if n := span(rest[1:], digits); n > 0 {
		return 1 + n
	}
	if !strings.HasPrefix(rest, "$$") {
		return 0
	}
	text, _, closed := strings.Cut(rest[2:], "$$")
	if !closed {
		return 0
	}
	return len(text) + 4
}

func number(rest string) int {
	n := span(rest, digits)
	if n+1 < len(rest) && rest[n] == '.' && span(rest[n+1:n+2], digits) > 0 {
		n += 1 + span(rest[n+1:], digits)
	}
	return n
}

// pinnedOperator returns the length of an operator that is written with its schema; 0 if there is none.
func pinnedOperator(rest string) int {
	const opening = "operator(" + catalog
	if len(rest) < len(opening) || !strings.EqualFold(rest[:len(opening)], opening) {
		return 0
	}
	n := span(rest[len(opening):], operators+"+-")
	if n == 0 || !strings.HasPrefix(rest[len(opening)+n:], ")") {
		return 0
	}
	return len(opening) + n + 1
}

// withNames returns what the WITHs of a statement name.
func withNames(tokens []token) (names []string) {
	for i := range tokens {
		if isHeadOfWith(tokens[i:]) {
			names = append(names, tokens[i].lower)
		}
	}
	return names
}

// isHeadOfWith reports whether tokens begin with a name, perhaps its columns, AS, perhaps [NOT] MATERIALIZED, and a parenthesis.
func isHeadOfWith(tokens []token) bool {
	if len(tokens) == 0 || tokens[0].kind != word || keywords[tokens[0].lower] {
		return false
	}
	at := 1
	if at < len(tokens) && tokens[at].text == "(" {
		for at < len(tokens) && tokens[at].text != ")" {
			at++
		}
		at++
	}
	for _, each := range []struct {
		text string
		must bool
	}{{"as", true}, {"not", false}, {"materialized", false}, {"(", true}} {
		if at < len(tokens) && tokens[at].lower == each.text {
			at++
		} else if each.must {
			return false
		}
	}
	return true
}
