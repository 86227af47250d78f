package router

import (
	"strings"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// latest is the version name of a function's unpublished code.
const latest = "$LATEST"

// name is a function as a caller names it. account is empty unless an ARN gave it.
type name struct {
	account, function, qualifier string
}

// parseName reads NAME, ACCOUNT:function:NAME or arn:aws:lambda:REGION:ACCOUNT:function:NAME, each with or without
// :QUALIFIER, and a qualifier given beside it, which must agree.
func parseName(function, qualifier string) (name, error) {
	n := name{qualifier: qualifier}
	parts := strings.Split(function, ":")
	switch {
	case parts[0] == "arn":
		if len(parts) < 7 || parts[2] != "lambda" || parts[5] != "function" {
			return n, badName(function)
		}
		n.account, parts = parts[4], parts[6:]
	case len(parts) > 2 && isAccount(parts[0]) && parts[1] == "function":
		n.account, parts = parts[0], parts[2:]
	}
	if n.function = parts[0]; len(parts) > 2 || !validName(n.function, 64) {
		return n, badName(function)
	}
	if len(parts) == 2 {
		if qualifier != "" && qualifier != parts[1] {
			return n, fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT,
				"function %q names the qualifier %q, but %q was given beside it: leave one out", function, parts[1], qualifier)
		}
		n.qualifier = parts[1]
	}
	if (n.qualifier != "" || len(parts) == 2) && n.qualifier != latest && !validName(n.qualifier, 128) {
		return n, fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_NAME,
			"%q is no qualifier: give a version number, an alias or $LATEST", n.qualifier)
	}
	return n, nil
}

func badName(function string) error {
	return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_NAME,
		"%q names no function: give NAME, NAME:QUALIFIER or an ARN; a name is 1 to 64 letters, digits, \"-\" and \"_\"", function)
}

func validName(s string, limit int) bool {
	return s != "" && len(s) <= limit && allIn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
}

func isAccount(s string) bool { return len(s) == 12 && isNumber(s) }

func isNumber(s string) bool { return s != "" && allIn(s, "0123456789") }

func allIn(s, characters string) bool {
	return strings.IndexFunc(s, func(c rune) bool { return !strings.ContainsRune(characters, c) }) < 0
}
