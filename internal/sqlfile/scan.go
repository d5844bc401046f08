package sqlfile

import (
	"fmt"
	"regexp"
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

// lexemes in the order in which they are tried. PostgreSQL's rule for operators is kept simple: none of ours ends in + or -
// behind another character, so a sign is a token of its own.
var lexemes = []struct {
	kind    tokenKind
	pattern *regexp.Regexp
}{
	{literal, regexp.MustCompile(`^(?i:[eb])?'(?:[^']|'')*'`)},
	{literal, regexp.MustCompile(`^\$\$(?s:.*?)\$\$`)},
	{literal, regexp.MustCompile(`^\$\d+`)},
	{literal, regexp.MustCompile(`^\d+(?:\.\d+)?(?:[eE][+-]?\d+)?`)},
	{quoted, regexp.MustCompile(`^"(?:[^"]|"")+"`)},
	{operator, regexp.MustCompile(`^(?i:operator)\(pg_catalog\.[^()\s]+\)`)}, // pinned already
	{word, regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_$]*`)},
	{punctuation, regexp.MustCompile(`^(?:::|=>|:=|[()\[\],;.])`)},
	{operator, regexp.MustCompile(`^(?:[+-](?:>>?)?|[*/<>=~!@#%^&|?]+)`)},
}

var blank = regexp.MustCompile(`^(?:\s+|--[^\n]*(?:\n|$)|/\*(?s:.*?)\*/)+`)

// scan takes query apart. What follows the last token is the space before an ending one.
func scan(query string) ([]token, error) {
	var tokens []token
	for rest := query; ; {
		space := blank.FindString(rest)
		if rest = rest[len(space):]; rest == "" {
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
	for _, lexeme := range lexemes {
		text := lexeme.pattern.FindString(rest)
		if text == "" {
			continue
		}
		t := token{kind: lexeme.kind, text: text}
		if t.kind == word || t.kind == punctuation {
			t.lower = strings.ToLower(text)
		}
		return t, nil
	}
	return token{}, fmt.Errorf("%.20q is no SQL that is known here", rest)
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
