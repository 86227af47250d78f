// Package fault is the one error type that crosses the rooms and wires of Mayfly: a kind that maps
// to gRPC, HTTP and AWS codes, a reason for programs and a message for people.
//
// What belongs here: the kinds, their codes, and the way in and out of gRPC. What does not: errors
// that a room handles itself (those are its own sentinels), and messages (their makers write them).
package fault

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// Domain is the domain of the google.rpc.ErrorInfo detail that carries the reason.
const Domain = "mayfly"

const reasonPrefix = "ERROR_REASON_"

// Error is an error with a gRPC code and a reason. Message says what was asked, what is wrong and what to do next.
type Error struct {
	Code    codes.Code
	Reason  mayflyv1.ErrorReason
	Message string
	// Cause is for logs only; callers never see it.
	Cause error
}

// New makes an Error whose message is formatted as by fmt.Sprintf.
func New(code codes.Code, reason mayflyv1.ErrorReason, format string, args ...any) *Error {
	return &Error{Code: code, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// Invalid is New with codes.InvalidArgument.
func Invalid(reason mayflyv1.ErrorReason, format string, args ...any) *Error {
	return New(codes.InvalidArgument, reason, format, args...)
}

// NotFound is New with codes.NotFound.
func NotFound(reason mayflyv1.ErrorReason, format string, args ...any) *Error {
	return New(codes.NotFound, reason, format, args...)
}

// Conflict is New with codes.FailedPrecondition.
func Conflict(reason mayflyv1.ErrorReason, format string, args ...any) *Error {
	return New(codes.FailedPrecondition, reason, format, args...)
}

// Throttled is New with codes.ResourceExhausted.
func Throttled(reason mayflyv1.ErrorReason, format string, args ...any) *Error {
	return New(codes.ResourceExhausted, reason, format, args...)
}

// Unavailable is New with codes.Unavailable: nothing happened, the caller may retry.
func Unavailable(reason mayflyv1.ErrorReason, format string, args ...any) *Error {
	return New(codes.Unavailable, reason, format, args...)
}

// Internal wraps an unexpected error; its text stays in the log.
func Internal(cause error, format string, args ...any) *Error {
	e := New(codes.Internal, mayflyv1.ErrorReason_ERROR_REASON_INTERNAL, format, args...)
	e.Cause = cause
	return e
}

// Error returns the message, with the cause if there is one.
func (e *Error) Error() string {
	if e.Cause != nil {
		return e.Message + ": " + e.Cause.Error()
	}
	return e.Message
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// GRPCStatus makes an Error a gRPC status with an ErrorInfo detail; it leaves out the cause.
func (e *Error) GRPCStatus() *status.Status {
	st := status.New(e.Code, e.Message)
	detailed, err := st.WithDetails(&errdetails.ErrorInfo{Domain: Domain, Reason: ReasonName(e.Reason)})
	if err != nil {
		return st
	}
	return detailed
}

// ReasonName is a reason without its enum prefix, such as "FUNCTION_NOT_FOUND".
func ReasonName(r mayflyv1.ErrorReason) string {
	return strings.TrimPrefix(r.String(), reasonPrefix)
}

// From finds the Error in err, in its chain or in a gRPC status that it came in. It returns nil for a nil err,
// and an Internal one for an error of another kind.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	// Not status.FromError: that puts the texts of what wraps the status before its message.
	remote, ok := errors.AsType[interface {
		error
		GRPCStatus() *status.Status
	}](err)
	if !ok {
		return Internal(err, "internal error")
	}
	st := remote.GRPCStatus()
	return &Error{Code: st.Code(), Reason: reasonOf(st), Message: st.Message()}
}

func reasonOf(st *status.Status) mayflyv1.ErrorReason {
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == Domain {
			return mayflyv1.ErrorReason(mayflyv1.ErrorReason_value[reasonPrefix+info.GetReason()])
		}
	}
	return mayflyv1.ErrorReason_ERROR_REASON_UNSPECIFIED
}

// Is tells whether err is or came from an Error with this reason.
func Is(err error, reason mayflyv1.ErrorReason) bool {
	return err != nil && From(err).Reason == reason
}

// HTTPStatus is the status that the HTTP gateway answers for err.
func HTTPStatus(err error) int {
	e := From(err)
	if e.Reason == mayflyv1.ErrorReason_ERROR_REASON_PAYLOAD_TOO_LARGE {
		return http.StatusRequestEntityTooLarge
	}
	if s, ok := httpStatus[e.Code]; ok {
		return s
	}
	return http.StatusInternalServerError
}

var httpStatus = map[codes.Code]int{
	codes.OK:                 http.StatusOK,
	codes.InvalidArgument:    http.StatusBadRequest,
	codes.NotFound:           http.StatusNotFound,
	codes.AlreadyExists:      http.StatusConflict,
	codes.FailedPrecondition: http.StatusConflict,
	codes.Aborted:            http.StatusConflict,
	codes.PermissionDenied:   http.StatusForbidden,
	codes.Unauthenticated:    http.StatusUnauthorized,
	codes.ResourceExhausted:  http.StatusTooManyRequests,
	codes.Unavailable:        http.StatusServiceUnavailable,
	codes.DeadlineExceeded:   http.StatusGatewayTimeout,
	codes.Canceled:           499,
	codes.Unimplemented:      http.StatusNotImplemented,
}
