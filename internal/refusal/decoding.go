package refusal

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// decodingError says why JSON does not fit a Go type, without the value.
type decodingError struct {
	text string
	err  error
}

func (e *decodingError) Error() string { return e.text }
func (e *decodingError) Unwrap() error { return e.err }

// GoString is for %#v.
func (e *decodingError) GoString() string { return fmt.Sprintf("refusal.Decoding(%q)", e.text) }

// Decodes reports whether err is, or wraps, an error of encoding/json's own, made while it decoded.
func Decodes(err error) bool {
	var misfit *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	return errors.As(err, &misfit) || errors.As(err, &syntax)
}

// Encoding returns an error of encoding/json, made while it encoded, with a text that names the type at fault and
// nothing of its value: a number's literal, say, or what a MarshalJSON quotes. The error itself stays in the chain.
// Encoding(nil) is nil.
func Encoding(err error) error {
	if already := (*decodingError)(nil); err == nil || errorIs(err, &already) {
		return err
	}
	var unsupported *json.UnsupportedTypeError
	var value *json.UnsupportedValueError
	var method *json.MarshalerError
	var syntax *json.SyntaxError
	switch {
	case errorIs(err, &unsupported):
		return err // says the type
	case errorIs(err, &value):
		return &decodingError{fmt.Sprintf("json: a value of the type %s has no JSON: an infinity, no number, or a cycle", value.Value.Type()), err}
	case errorIs(err, &method) && errors.As(method, &syntax):
		return &decodingError{fmt.Sprintf("json: what the type %s is encoded as is no JSON", method.Type), err}
	case errorIs(err, &method):
		return &decodingError{fmt.Sprintf("json: the encoder of the type %s has failed with a %T, whose text may quote it and is withheld",
			method.Type, errors.Unwrap(method)), err}
	}
	return &decodingError{fmt.Sprintf("json: an encoder refuses it with a %T, whose text may quote it and is withheld", err), err}
}

// Decoding returns an error of encoding/json, made while it decoded, with a text that tells where and why, and nothing of what was
// decoded. Errors of other decoders (UnmarshalJSON, UnmarshalText) quote what they like, so only their type is told. The error itself
// stays in the chain. Decoding(nil) is nil.
func Decoding(err error) error {
	if already := (*decodingError)(nil); err == nil || errorIs(err, &already) {
		return err
	}
	var misfit *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &misfit):
		kind, _, _ := strings.Cut(misfit.Value, " ") // a number has its digits after it
		text := fmt.Sprintf("json: what is at byte %[2]d, of the kind %[1]s, does not fit the Go type %[3]s", kind, misfit.Offset, misfit.Type)
		if misfit.Field != "" {
			text += fmt.Sprintf(" of field %s.%s", misfit.Struct, misfit.Field)
		}
		return &decodingError{text, err}
	case errors.As(err, &syntax):
		return &decodingError{fmt.Sprintf("json: not valid at byte %d", syntax.Offset), err}
	}
	return &decodingError{fmt.Sprintf("json: a decoder refuses it with a %T, whose text may quote it and is withheld", err), err}
}
