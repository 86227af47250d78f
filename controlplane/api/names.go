package api

import (
	"strconv"
	"strings"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	maxFunctionName = 64
	maxAliasName    = 128
	maxLabel        = 63
)

// checkFunctionName allows 1 to 64 letters, digits, "-" and "_".
func checkFunctionName(field, name string) error {
	if isName(name, maxFunctionName) {
		return nil
	}
	return invalidName("%s %.100q is not 1 to %d letters, digits, \"-\" and \"_\"", field, name, maxFunctionName)
}

// checkAliasName allows 1 to 128 letters, digits, "-" and "_" that are not all digits.
func checkAliasName(field, name string) error {
	if isAliasName(name) {
		return nil
	}
	return invalidName("%s %.200q is not 1 to %d letters, digits, \"-\" and \"_\", or it is a number, which would be a version's", field, name, maxAliasName)
}

// checkLabel allows what can be a part of a host name: namespaces and nodes are named so.
func checkLabel(field, name string) error {
	if name != "" && len(name) <= maxLabel && name[0] != '-' && name[len(name)-1] != '-' && onlyLabel(name) {
		return nil
	}
	return invalidName("%s %.100q is not 1 to %d lower-case letters, digits and \"-\" with no \"-\" at its ends", field, name, maxLabel)
}

func onlyLabel(name string) bool {
	for i := range len(name) {
		if c := name[i]; c != '-' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

func isName(name string, limit int) bool {
	if name == "" || len(name) > limit {
		return false
	}
	for i := range len(name) {
		if c := name[i]; c != '-' && c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

func isAliasName(name string) bool {
	return isName(name, maxAliasName) && strings.Trim(name, "0123456789") != ""
}

// parseVersion reads a version number as it is written: from 1, without sign or leading zeros.
func parseVersion(field, text string) (int64, error) {
	number, err := strconv.ParseInt(text, 10, 64)
	if err != nil || number < 1 || strconv.FormatInt(number, 10) != text {
		return 0, invalid("%s %.100q is neither $LATEST nor the number of a version", field, text)
	}
	return number, nil
}

// checkQualifier fills the default $LATEST.
func checkQualifier(field, qualifier string) (string, error) {
	if qualifier == "" || qualifier == latest {
		return latest, nil
	}
	if isAliasName(qualifier) {
		return qualifier, nil
	}
	if _, err := parseVersion(field, qualifier); err != nil {
		return "", invalid("%s %.200q is neither $LATEST, the number of a version, nor the name of an alias", field, qualifier)
	}
	return qualifier, nil
}

func checkDigest(field, digest string) error {
	const prefix, digits = "sha256:", 64
	hex, ok := strings.CutPrefix(digest, prefix)
	if ok && len(hex) == digits && strings.Trim(hex, "0123456789abcdef") == "" {
		return nil
	}
	return invalid("%s %.100q is not %q and %d lower-case hexadecimal digits", field, digest, prefix, digits)
}

func invalidName(format string, args ...any) error {
	return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_NAME, format, args...)
}

// functionRef is what InvokeRequest.function names.
type functionRef struct {
	// account is empty but for ARNs.
	account   string
	name      string
	qualifier string
}

// parseFunctionRef reads NAME, NAME:QUALIFIER, ACCOUNT:function:NAME[:QUALIFIER], or an ARN.
func parseFunctionRef(text string) (functionRef, error) {
	parts := strings.Split(text, ":")
	ref := functionRef{}
	switch {
	case len(parts) >= 7 && parts[0] == "arn" && parts[2] == "lambda" && parts[5] == "function":
		ref.account, parts = parts[4], parts[6:]
	case len(parts) >= 3 && parts[1] == "function":
		ref.account, parts = parts[0], parts[2:]
	}
	if len(parts) > 2 {
		return ref, invalidName("function %.200q is neither a name, NAME:QUALIFIER nor the ARN of a function", text)
	}
	ref.name = parts[0]
	if len(parts) == 2 {
		ref.qualifier = parts[1]
		if ref.qualifier == "" {
			return ref, invalid("function %.200q ends with an empty qualifier", text)
		}
	}
	return ref, checkFunctionName("function", ref.name)
}
