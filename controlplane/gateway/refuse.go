package gateway

import (
	"errors"
	"net/http"
	"strconv"

	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/controlplane/auth"
	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	allNamespaces = "*"
	accessDenied  = "AccessDeniedException"
	internalError = "Internal Server Error"
)

// refuse answers {"Message": message} with an AWS error type, which may be empty.
func refuse(w http.ResponseWriter, status int, errorType, message string) {
	body := append(appendString([]byte(`{"Message":`), message), '}')
	h := w.Header()
	h["Content-Type"] = []string{"application/json"}
	if errorType != "" {
		h["X-Amzn-Errortype"] = []string{errorType}
	}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(status)
	_, _ = w.Write(body) //nolint:gosec // G705: it is JSON, escaped, and typed so; browsers run nothing of it
}

// refuseKey answers a bearer key that isn't valid: 401 asks for one, and tells a wrong one nothing more.
func refuseKey(w http.ResponseWriter, err error) {
	if fault.From(err).Code != codes.Unauthenticated {
		refuse(w, fault.HTTPStatus(err), "ServiceException", http.StatusText(fault.HTTPStatus(err)))
		return
	}
	w.Header()["Www-Authenticate"] = []string{`Bearer realm="mayfly"`}
	refuse(w, http.StatusUnauthorized, "UnauthorizedException", "A valid access key is needed: Authorization: Bearer ID:SECRET.")
}

// refuseSignature answers as AWS does: unsigned requests learn only that they are forbidden.
func refuseSignature(w http.ResponseWriter, err error) {
	if e, ok := errors.AsType[*auth.SigV4Error](err); ok {
		if e.Kind == auth.SigV4Missing {
			refuse(w, http.StatusForbidden, accessDenied, "Forbidden")
			return
		}
		refuse(w, e.Status, e.Code, e.Message)
		return
	}
	refuse(w, http.StatusInternalServerError, "ServiceException", internalError)
}

// refuseInvocation answers a fault of the router. Callers are anonymous: only what they can act on is said.
func refuseInvocation(w http.ResponseWriter, err error) {
	e := fault.From(err)
	status := fault.HTTPStatus(e)
	switch {
	case e.Reason == mayflyv1.ErrorReason_ERROR_REASON_FUNCTION_NOT_ACTIVE:
		refuse(w, http.StatusServiceUnavailable, "ResourceConflictException", "The function is not ready.")
	case status == http.StatusTooManyRequests:
		w.Header()["Retry-After"] = []string{"1"}
		refuse(w, status, "TooManyRequestsException", "Rate Exceeded.")
	case status == http.StatusRequestEntityTooLarge:
		refuseTooLarge(w)
	case status == http.StatusNotFound:
		refuseNoFunction(w)
	case status == http.StatusServiceUnavailable:
		w.Header()["Retry-After"] = []string{"1"}
		refuse(w, status, "ServiceUnavailableException", "Service Unavailable")
	case status == http.StatusGatewayTimeout:
		refuse(w, status, "ServiceException", "Gateway Timeout")
	default:
		refuse(w, http.StatusInternalServerError, "ServiceException", internalError)
	}
}

func refuseTooLarge(w http.ResponseWriter) {
	refuse(w, http.StatusRequestEntityTooLarge, "RequestEntityTooLargeException",
		"The request is too large: its body may have 6 MiB, and 6291556 bytes as an event.")
}

func refuseNoFunction(w http.ResponseWriter) {
	refuse(w, http.StatusNotFound, "ResourceNotFoundException",
		"There is no function URL here. Check namespace and name, and that the function has a URL.")
}

func mayInvoke(r mayflyv1.Role) bool {
	return r == mayflyv1.Role_ROLE_INVOKER || r == mayflyv1.Role_ROLE_DEVELOPER || r == mayflyv1.Role_ROLE_ADMIN
}

func mayRead(r mayflyv1.Role) bool {
	return r == mayflyv1.Role_ROLE_READER || r == mayflyv1.Role_ROLE_DEVELOPER || r == mayflyv1.Role_ROLE_ADMIN
}
