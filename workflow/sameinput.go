package workflow

import (
	"bytes"
	"encoding/json"
	"math/big"
	"strings"
)

// sameJSON reports whether two inputs mean the same: whatever their spaces, the order of their members and how their numbers are written.
// A member that is null is as one that is not there, since both decode to the same, and a type that has gained a pointer encodes the one as
// the other.
func sameJSON(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	var values [2]any
	for i, text := range [][]byte{a, b} {
		decoder := json.NewDecoder(bytes.NewReader(text))
		decoder.UseNumber()
		if decoder.Decode(&values[i]) != nil {
			return false
		}
	}
	return sameValue(values[0], values[1])
}

func sameValue(a, b any) bool {
	switch a := a.(type) {
	case map[string]any:
		b, ok := b.(map[string]any)
		return ok && membersIn(a, b) && membersIn(b, a)
	case []any:
		b, ok := b.([]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for i := range a {
			if !sameValue(a[i], b[i]) {
				return false
			}
		}
		return true
	case json.Number:
		b, ok := b.(json.Number)
		return ok && (a == b || plainNumber(string(a)) == plainNumber(string(b)))
	default: // a string, a boolean or null
		return a == b
	}
}

// membersIn reports whether b has the same for each member of a that is not null.
func membersIn(a, b map[string]any) bool {
	for name, value := range a {
		if value != nil && !sameValue(value, b[name]) {
			return false
		}
	}
	return true
}

// plainNumber returns the one way to write a JSON number that all the ways to write it have in common: its digits without zeros at
// either end, and the power of ten of the last one.
func plainNumber(text string) string {
	sign := ""
	if strings.HasPrefix(text, "-") {
		sign, text = "-", text[1:]
	}
	power := new(big.Int)
	if mantissa, exponent, scaled := strings.Cut(strings.ToLower(text), "e"); scaled {
		text = mantissa
		power.SetString(strings.TrimPrefix(exponent, "+"), 10) // JSON's grammar is that of SetString
	}
	if whole, fraction, broken := strings.Cut(text, "."); broken {
		text = whole + fraction
		power.Sub(power, big.NewInt(int64(len(fraction))))
	}
	digits := strings.TrimRight(text, "0")
	power.Add(power, big.NewInt(int64(len(text)-len(digits))))
	if digits = strings.TrimLeft(digits, "0"); digits == "" {
		return "0" // also -0
	}
	return sign + digits + "e" + power.String()
}
