package sqlfile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Our statements are executed in sessions that are not ours, whose search_path may name schemas in which others create what
// they like. PostgreSQL prefers what is earlier in that path, and, wherever it is, a function or an operator that needs fewer
// conversions: a function unnest(text[]) in public wins over that of pg_catalog, which takes any array, under the default path.
// So every name is written with its schema when a statement is loaded: the files stay readable, and none is forgotten.

// Pin returns query with the schema pg_catalog before every function, operator, type, collation and relation that PostgreSQL
// brings along. What has a schema already is left as it is, and so are literals, comments and quoted names. OPERATOR(...)
// binds more tightly than comparisons do and less tightly than arithmetic, so operands are put in parentheses where they are
// operators themselves.
//
// It returns an error for a function, a type or a relation it does not know, and for whatever uses an operator that cannot be
// written with a schema: IS DISTINCT FROM, NULLIF, BETWEEN, CASE with an operand, JOIN USING. It knows queries, and none of
// the statements that define something but CREATE INDEX.
func Pin(query string) (string, error) {
	tokens, err := scan(query)
	if err != nil {
		return "", err
	}
	p := &pinner{tokens: tokens, local: withNames(tokens)}
	pinned := p.sequence("")
	if p.err != nil {
		return "", p.err
	}
	return pinned, nil
}

// MustPin is Pin for a statement that is written in this library's code. A statement that cannot be pinned is a mistake there,
// found when the package is loaded, and panics.
func MustPin(query string) string {
	pinned, err := Pin(query)
	if err != nil {
		panic(fmt.Sprintf("sqlfile: %v in %q", err, query))
	}
	return pinned
}

const catalog = "pg_catalog."

// pinner reads tokens from left to right. After a mistake it goes on to no purpose, and returns the first.
type pinner struct {
	tokens []token
	next   int
	local  []string // what WITH names
	err    error
}

// term is a part of an expression.
type term struct {
	space    string // before it
	text     string
	operator bool // its outermost part is an operator
}

func (t term) String() string { return t.space + t.text }

// operand is the text as an operand of an operator, without the space.
func (t term) operand() string {
	if t.operator {
		return "(" + t.text + ")"
	}
	return t.text
}

func (p *pinner) peek(ahead int) token {
	if p.err != nil || p.next+ahead >= len(p.tokens) {
		return token{kind: ending}
	}
	return p.tokens[p.next+ahead]
}

func (p *pinner) take() token {
	t := p.peek(0)
	if t.kind == ending {
		p.failf("the statement ends too early")
		return token{kind: ending}
	}
	p.next++
	return t
}

func (p *pinner) failf(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf(format, args...)
	}
}

// expect takes the next token, which must be text.
func (p *pinner) expect(text string) token {
	t := p.take()
	if t.text != text {
		p.failf("%q where %q is expected", t.text, text)
	}
	return t
}

// sequence reads clauses and expressions up to closer, which it leaves, or to the end.
func (p *pinner) sequence(closer string) string {
	var out strings.Builder
	before := "("      // the keyword or the sign before what comes; empty after an expression
	assigning := false // in the list of UPDATE ... SET
	for {
		t := p.peek(0)
		switch {
		case t.kind == ending:
			if closer != "" {
				p.failf("no %q", closer)
			}
			out.WriteString(t.space)
			return out.String()
		case closer != "" && t.text == closer:
			return out.String()
		case t.is(",", ";", "=>", ":=") || t.text == "*" && before != "" || t.kind == word && keywords[t.lower] && !p.callsKeyword():
			p.clause(&out)
			assigning = assigning && !t.is("where", "from", "returning") || t.is("set")
			before = t.lower
			continue
		case assigning && (before == "set" || before == ","):
			out.WriteString(p.target())
			before = "="
			continue
		case t.kind == word && p.defines(before):
			out.WriteString(p.definition())
		case t.kind == word && takesRelation[before] && !p.peek(1).is("(", "."):
			out.WriteString(p.relation())
		default:
			out.WriteString(p.expression(0).String())
		}
		before = ""
	}
}

// callsKeyword reports whether the next word is a function although it can be a keyword, too.
func (p *pinner) callsKeyword() bool {
	return builtinFunctions[p.peek(0).lower] && p.peek(1).text == "("
}

// clause takes a keyword or a comma that is part of no expression.
func (p *pinner) clause(out *strings.Builder) {
	t := p.take()
	out.WriteString(t.String())
	switch {
	case t.is("natural"), t.is("using") && p.peek(0).text == "(":
		p.failf("%s joins by an operator without a schema: write ON", t.lower)
	case t.is("is") && (p.peek(0).is("distinct") || p.peek(0).is("not") && p.peek(1).is("distinct")):
		p.failf("IS DISTINCT FROM uses an operator without a schema: compare, and say what null means")
	}
}

// target takes the column, or the list of them, that SET assigns to, and the sign that is no operator.
func (p *pinner) target() string {
	var out string
	if p.peek(0).text == "(" {
		out = p.names()
	} else {
		out = p.take().String()
	}
	return out + p.expect("=").String()
}

// defines reports whether the next word is a name that is made here, with its columns perhaps: an alias, or a query of WITH.
func (p *pinner) defines(before string) bool {
	switch before {
	case "as":
		return true
	case "", "ordinality":
		return p.peek(1).text == "("
	case "with", "recursive", ",":
		return isHeadOfWith(p.tokens[p.next:])
	default:
		return false
	}
}

func (p *pinner) definition() string {
	out := p.take().String()
	if p.peek(0).text == "(" {
		out += p.names()
	}
	return out
}

// names takes a list of nothing but names.
func (p *pinner) names() string {
	var out strings.Builder
	out.WriteString(p.expect("(").String())
	for {
		name, after := p.take(), p.take()
		if name.kind != word && name.kind != quoted || !after.is(",", ")") {
			p.failf("%q where a list of names is expected", name.text+" "+after.text)
			return ""
		}
		out.WriteString(name.String() + after.String())
		if after.text == ")" {
			return out.String()
		}
	}
}

// relation takes one that is written without a schema.
func (p *pinner) relation() string {
	t := p.take()
	switch {
	case slices.Contains(p.local, t.lower):
		return t.String()
	case strings.HasPrefix(t.lower, "pg_"):
		return t.space + catalog + t.text
	default:
		p.failf("relation %s has no schema", t.text)
		return ""
	}
}

// How tightly operators bind. Those of comparison are not associative, the others go from left to right.
const (
	comparison = iota + 1
	membership
	otherOperator
	sum
	product
	power
)

func precedence(operator string) int {
	switch operator {
	case "<", ">", "=", "<=", ">=", "<>", "!=":
		return comparison
	case "+", "-":
		return sum
	case "*", "/", "%":
		return product
	case "^":
		return power
	default:
		return otherOperator
	}
}

// expression reads operands and the operators between them that bind at least as tightly as least.
func (p *pinner) expression(least int) term {
	left := p.operand()
	for {
		t := p.peek(0)
		switch negated := t.is("not"); {
		case t.kind == operator && precedence(t.text) >= least:
			p.next++
			left = join(left, t.space, schemaOperator(t.text), p.expression(precedence(t.text)+1))
		case (t.is("in") || negated && p.peek(1).is("in")) && membership >= least:
			left = p.in(left, negated)
		case (t.is("like") || negated && p.peek(1).is("like")) && membership >= least:
			left = p.like(left, negated)
		case t.is("between", "ilike", "similar", "overlaps", "isnull", "notnull"):
			p.failf("%s uses an operator without a schema: write it out", t.lower)
			return left
		default:
			return left
		}
	}
}

func schemaOperator(operator string) string {
	if pinned(operator) {
		return operator
	}
	return "operator(" + catalog + operator + ")"
}

func pinned(operator string) bool { return strings.HasSuffix(operator, ")") }

// in writes IN as what PostgreSQL makes of it.
func (p *pinner) in(left term, negated bool) term {
	if negated {
		p.next++
	}
	space := p.take().space
	list := !p.peek(1).is("select", "with", "values")
	among := p.group()
	switch {
	case !list && negated:
		within := join(left, space, schemaOperator("=")+" any", among)
		return term{space: within.space, text: "(not " + within.text + ")"}
	case !list:
		return join(left, space, schemaOperator("=")+" any", among)
	case p.err == nil:
		among.text = "(array[" + among.text[1:len(among.text)-1] + "])"
	}
	if negated {
		return join(left, space, schemaOperator("<>")+" all", among)
	}
	return join(left, space, schemaOperator("=")+" any", among)
}

func (p *pinner) like(left term, negated bool) term {
	sign := "~~"
	if negated {
		p.next++
		sign = "!~~"
	}
	space := p.take().space
	return join(left, space, schemaOperator(sign), p.expression(membership+1))
}

func join(left term, space, operator string, right term) term {
	return term{left.space, left.operand() + cmp.Or(space, " ") + operator + right.space + right.operand(), true}
}

// operand reads one operand and what follows it: casts, subscripts, fields, a collation, a time zone, and what belongs to an
// aggregate.
func (p *pinner) operand() term {
	first := p.primary()
	var after strings.Builder
	for {
		t := p.peek(0)
		switch {
		case t.text == "::":
			p.next++
			after.WriteString(t.String() + p.typeName())
		case t.text == "[":
			p.next++
			after.WriteString(t.String() + p.sequence("]") + p.expect("]").String())
		case t.text == ".":
			p.next++
			after.WriteString(t.String() + p.take().String())
		case t.is("collate"):
			p.next++
			after.WriteString(t.String() + p.collation())
		case t.is("at") && p.peek(1).is("time"):
			after.WriteString(p.take().String() + p.take().String() + p.expect("zone").String() + p.primary().String())
		case t.is("filter") && p.peek(1).text == "(":
			p.next++
			after.WriteString(t.String() + p.group().String())
		case t.is("over"):
			p.next++
			after.WriteString(t.String() + p.primary().String())
		default:
			first.text += after.String()
			return first
		}
	}
}

func (p *pinner) primary() term {
	t := p.take()
	switch {
	case t.kind == literal:
		return term{space: t.space, text: t.text}
	case t.text == "(":
		p.next--
		return p.group()
	case t.kind == operator && (t.text == "-" || t.text == "+" || pinned(t.text)):
		return p.signed(t)
	case t.kind == word && p.peek(0).kind == literal && p.peek(0).text[0] == '\'': // a literal with its type
		return term{space: t.space, text: p.typed(t) + p.take().String()}
	case t.is("case"):
		return p.caseOf(t)
	case t.is("array") && p.peek(0).text == "[":
		return term{space: t.space, text: t.text + p.take().String() + p.sequence("]") + p.expect("]").String()}
	case t.is("extract"):
		return p.extract(t)
	case t.kind == word && constructs[t.lower] && p.peek(0).text == "(":
		return term{space: t.space, text: t.text + p.group().String()}
	case t.kind == word && (!keywords[t.lower] || builtinFunctions[t.lower]), t.kind == quoted:
		return p.named(t)
	default:
		p.failf("%q where an expression is expected", t.text)
		return term{}
	}
}

// group reads what is in parentheses, with them.
func (p *pinner) group() term {
	begin := p.expect("(")
	return term{space: begin.space, text: begin.text + p.sequence(")") + p.expect(")").String()}
}

// signed reads an operand with a sign. Of a number it is a part.
func (p *pinner) signed(sign token) term {
	if next := p.peek(0); next.kind == literal && next.text[0] >= '0' && next.text[0] <= '9' {
		return term{space: sign.space, text: sign.text + p.take().String()}
	}
	of := p.operand()
	return term{sign.space, schemaOperator(sign.text) + cmp.Or(of.space, " ") + of.operand(), true}
}

func (p *pinner) caseOf(t token) term {
	if !p.peek(0).is("when") {
		p.failf("CASE with an operand uses an operator without a schema: write the comparisons out")
	}
	return term{space: t.space, text: t.text + p.sequence("end") + p.expect("end").String()}
}

func (p *pinner) extract(t token) term {
	text := t.text + p.expect("(").String() + p.take().String() + p.expect("from").String()
	return term{space: t.space, text: text + p.sequence(")") + p.expect(")").String()}
}

// named reads a column, a row, a value that is a word, or a function.
func (p *pinner) named(t token) term {
	name := term{space: t.space, text: t.text}
	qualified := false
	for p.peek(0).text == "." {
		name.text += p.take().String() + p.take().String()
		qualified = true
	}
	switch next := p.peek(0); {
	case next.text == "(":
		if !qualified {
			name.text = p.function(t) + name.text
		}
		name.text += p.group().String()
	case qualified && next.kind == literal && next.text[0] == '\'':
		name.text += p.take().String() // the name was a type
	}
	return name
}

// function returns what is to be put before the name of a function.
func (p *pinner) function(t token) string {
	switch {
	case t.kind != word || !builtinFunctions[t.lower]:
		p.failf("function %s is not known here", t.text)
		return ""
	case t.lower == "unnest" && p.arguments() > 1:
		return "" // the grammar knows it, takes it apart and adds the schema itself; with a schema it would be an error
	default:
		return catalog
	}
}

// arguments counts those of the call whose parenthesis is next.
func (p *pinner) arguments() int {
	depth, count := 0, 1
	for _, t := range p.tokens[p.next:] {
		switch {
		case t.text == "(" || t.text == "[":
			depth++
		case t.text == ")" || t.text == "]":
			if depth--; depth == 0 {
				return count
			}
		case t.text == "," && depth == 1:
			count++
		}
	}
	return count
}

// typeName reads the type of a cast.
func (p *pinner) typeName() string {
	t := p.take()
	name := t.String()
	if p.peek(0).text == "." {
		name += p.take().String() + p.take().String()
	} else {
		name = t.space + p.typed(t)
	}
	for p.peek(0).text == "[" && p.peek(1).text == "]" {
		name += p.take().String() + p.take().String()
	}
	return name
}

// typed returns the type t with its schema. The grammar has words for some, which mean nothing else.
func (p *pinner) typed(t token) string {
	switch {
	case t.kind == word && grammarTypes[t.lower]:
		return t.text
	case t.kind == word && builtinTypes[t.lower]:
		return catalog + t.text
	default:
		p.failf("type %s is not known here", t.text)
		return ""
	}
}

func (p *pinner) collation() string {
	t := p.take()
	if t.text+p.peek(0).text == catalog {
		return t.String() + p.take().String() + p.take().String()
	}
	if t.kind != quoted || t.text != `"C"` {
		p.failf("collation %s is not known here", t.text)
	}
	return t.space + catalog + t.text
}
