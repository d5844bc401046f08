package workflow

import "testing"

func TestInputsAreComparedByWhatTheyMean(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		a, b string
		same bool
	}{
		{`1`, `1.0`, true},
		{`100`, `1e2`, true},
		{`0.10`, `1E-1`, true},
		{`-0`, `0`, true},
		{`-0.0`, `0e7`, true},
		{`12.50e+3`, `12500`, true},
		{`1`, `-1`, false},
		{`10`, `1`, false},
		{`9007199254740993`, `9007199254740992`, false},
		{`0.1`, `0.10000000000000000001`, false},
		{`1e1000000000`, `1e1000000000`, true},
		{`1e1000000000`, `10e999999999`, true},
		{`1e1000000000`, `1e999999999`, false},
		{`1e99999999999999999999999`, `10e99999999999999999999998`, true},
		{`1`, `"1"`, false},
		{`true`, `true `, true},
		{`true`, `false`, false},
		{`null`, `{}`, false},
		{`{"a":1,"b":[1,{"c":2}]}`, `{ "b" : [1.0, {"c": 2e0, "d": null}], "a": 1 }`, true},
		{`{"a":1}`, `{"a":1,"b":null}`, true},
		{`{"a":1,"b":null}`, `{"a":1}`, true},
		{`{"a":1}`, `{"a":1,"b":0}`, false},
		{`{"a":null}`, `{"a":1}`, false},
		{`{"a":1}`, `{"b":1}`, false},
		{`[1,null]`, `[1]`, false},
		{`[1,2]`, `[2,1]`, false},
		{`[]`, `{}`, false},
		{`{"a":`, `{"a":1}`, false},
	} {
		for _, order := range [][2]string{{test.a, test.b}, {test.b, test.a}} {
			if got := sameJSON([]byte(order[0]), []byte(order[1])); got != test.same {
				t.Errorf("%s and %s: %t", order[0], order[1], got)
			}
		}
	}
}
