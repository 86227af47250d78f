package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mayfly-faas/mayfly/cli/bundle"
	"github.com/mayfly-faas/mayfly/cli/config"
)

// Exit codes, for scripts.
const (
	ExitOK          = 0
	ExitError       = 1
	ExitUsage       = 2
	ExitNotFound    = 3
	ExitDenied      = 4
	ExitConflict    = 5
	ExitUnavailable = 6
	ExitThrottled   = 7
	// ExitFunctionError is used by `invoke --fail-on-function-error` alone.
	ExitFunctionError = 10
)

// exitError is an error with an exit code and advice of its own.
type exitError struct {
	code int
	err  error
	hint string
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// usagef is an error in what the person typed.
func usagef(format string, args ...any) error {
	return &exitError{code: ExitUsage, err: fmt.Errorf(format, args...)}
}

// hinted is an error with advice.
func hinted(code int, hint, format string, args ...any) error {
	return &exitError{code: code, hint: hint, err: fmt.Errorf(format, args...)}
}

var exitOf = map[codes.Code]int{
	codes.InvalidArgument:    ExitUsage,
	codes.OutOfRange:         ExitUsage,
	codes.NotFound:           ExitNotFound,
	codes.PermissionDenied:   ExitDenied,
	codes.Unauthenticated:    ExitDenied,
	codes.AlreadyExists:      ExitConflict,
	codes.FailedPrecondition: ExitConflict,
	codes.Aborted:            ExitConflict,
	codes.Unavailable:        ExitUnavailable,
	codes.DeadlineExceeded:   ExitUnavailable,
	codes.ResourceExhausted:  ExitThrottled,
}

// ExitCode is the exit code for err.
func ExitCode(err error) int {
	if err == nil {
		return ExitOK
	}
	if e, ok := errors.AsType[*exitError](err); ok {
		return e.code
	}
	if errors.Is(err, bundle.ErrUsage) || errors.Is(err, config.ErrNoContext) || errors.Is(err, config.ErrUnknownContext) {
		return ExitUsage
	}
	if st, ok := remote(err); ok && exitOf[st.Code()] != 0 {
		return exitOf[st.Code()]
	}
	return ExitError
}

// explain prints err and what to do about it.
func (a *App) explain(err error) {
	fmt.Fprintf(a.Stderr, "mayfly: %s\n", describe(err))
	if h := hint(err); h != "" {
		fmt.Fprintf(a.Stderr, "  %s\n", h)
	}
}

func describe(err error) string {
	if errors.Is(err, context.Canceled) {
		return "interrupted"
	}
	st, ok := remote(err)
	if !ok {
		return err.Error()
	}
	if st.Code() == codes.Unavailable {
		return shortenDial(st.Message())
	}
	return st.Message()
}

// remote finds the status of a call in err; its message is that of the server, without what wrapped it here.
func remote(err error) (*status.Status, bool) {
	var s interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &s) {
		return nil, false
	}
	return s.GRPCStatus(), true
}

// shortenDial takes the layers of gRPC off an error of the connection.
func shortenDial(message string) string {
	_, rest, ok := strings.Cut(message, "Error while dialing: ")
	if !ok {
		_, rest, ok = strings.Cut(message, "connection error: desc = ")
	}
	if !ok {
		return message
	}
	return "cannot reach Mayfly: " + strings.Trim(rest, `"`)
}

// hints give advice by what the message of an unreachable server contains.
var hints = []struct{ contains, advice string }{
	{"connection refused", "Is Mayfly running? Start it with `make up` or `mayfly up`; `mayfly context show` tells which endpoint is used."},
	{"unknown authority", "The server's certificate is not of this context's CA: was Mayfly reset? Run `mayfly context import` again."},
	{"no such host", "The endpoint's name does not resolve: see `mayfly context show`."},
	{"first record does not look like a TLS handshake", "That port speaks no TLS: the gRPC API is on 7070 by default, 7080 is HTTP."},
	{"i/o timeout", "Nothing answers there: check the endpoint (`mayfly context show`) and firewalls."},
}

func hint(err error) string {
	if e, ok := errors.AsType[*exitError](err); ok {
		return e.hint
	}
	if errors.Is(err, config.ErrNoContext) {
		return "On the machine that runs Mayfly: `mayfly context import`. Elsewhere: `mayfly context add NAME --endpoint HOST:7070 --ca FILE --access-key ID:SECRET`."
	}
	st, ok := remote(err)
	if !ok {
		return ""
	}
	for _, h := range hints {
		if st.Code() == codes.Unavailable && strings.Contains(st.Message(), h.contains) {
			return h.advice
		}
	}
	switch st.Code() {
	case codes.Unauthenticated:
		return "The key is unknown, disabled or wrong: see `mayfly context show`, or ask an administrator for a key."
	case codes.PermissionDenied:
		return "The key's role or namespace does not allow this: `mayfly key whoami` tells which it has."
	default:
		return ""
	}
}
