package auth

import (
	"net/http"

	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// SigV4Kind is why a signature was refused.
type SigV4Kind int

// Kinds of refusal.
const (
	// SigV4Missing: the request is not signed.
	SigV4Missing SigV4Kind = iota
	// SigV4Incomplete: part of the signature is absent or malformed.
	SigV4Incomplete
	// SigV4UnknownKey: there is no such access key.
	SigV4UnknownKey
	// SigV4Mismatch: the signature is wrong.
	SigV4Mismatch
	// SigV4Scoped: it is for another service, region or day, or does not sign the host.
	SigV4Scoped
	// SigV4Skewed: its time is more than SigV4MaxSkew from ours.
	SigV4Skewed
	// SigV4Expired: the presigned URL's time is over.
	SigV4Expired
	// SigV4TokenExpired: the key's or session's time is over.
	SigV4TokenExpired
	// SigV4PayloadMismatch: the body is not the one that was signed.
	SigV4PayloadMismatch
)

// SigV4Error is a refusal in AWS's words. It unwraps to a *fault.Error.
type SigV4Error struct {
	Kind SigV4Kind
	// Code is the error code of the service that the request was for, such as InvalidSignatureException.
	Code string
	// Status is the HTTP status that the service answers.
	Status  int
	Message string
}

// Error returns code and message.
func (e *SigV4Error) Error() string { return e.Code + ": " + e.Message }

// Unwrap returns the refusal as a fault.
func (e *SigV4Error) Unwrap() error {
	reason := mayflyv1.ErrorReason_ERROR_REASON_UNAUTHENTICATED
	switch e.Kind {
	case SigV4Mismatch, SigV4Scoped, SigV4PayloadMismatch:
		reason = mayflyv1.ErrorReason_ERROR_REASON_SIGNATURE_MISMATCH
	case SigV4Skewed, SigV4Expired, SigV4TokenExpired:
		reason = mayflyv1.ErrorReason_ERROR_REASON_SIGNATURE_EXPIRED
	case SigV4Missing, SigV4Incomplete, SigV4UnknownKey:
	}
	return fault.New(codes.Unauthenticated, reason, "%s", e.Message)
}

// sigV4Style is how a family of services names its errors.
type sigV4Style int

const (
	sigV4RestJSON sigV4Style = iota // lambda, scheduler and all that is not below
	sigV4JSON                       // JSON-RPC: the same codes, all with status 400
	sigV4Query
	sigV4S3
)

func sigV4StyleOf(service string) sigV4Style {
	switch service {
	case "s3":
		return sigV4S3
	case "sts", "iam", "sns", "sqs":
		return sigV4Query
	case "events", "logs", "dynamodb":
		return sigV4JSON
	}
	return sigV4RestJSON
}

func newSigV4Error(kind SigV4Kind, service, message string) *SigV4Error {
	style := sigV4StyleOf(service)
	e := &SigV4Error{Kind: kind, Status: http.StatusForbidden, Message: message}
	switch style {
	case sigV4S3:
		e.Code = sigV4S3Code(kind)
		if kind == SigV4Incomplete || kind == SigV4Scoped || kind == SigV4TokenExpired || kind == SigV4PayloadMismatch {
			e.Status = http.StatusBadRequest
		}
	case sigV4Query:
		e.Code = sigV4QueryCode(kind)
		if kind == SigV4Expired {
			e.Status = http.StatusBadRequest
		}
	case sigV4JSON, sigV4RestJSON:
		e.Code = sigV4JSONCode(kind)
		if style == sigV4JSON {
			e.Status = http.StatusBadRequest
		}
	}
	return e
}

func sigV4JSONCode(kind SigV4Kind) string {
	switch kind {
	case SigV4Missing:
		return "MissingAuthenticationTokenException"
	case SigV4Incomplete:
		return "IncompleteSignatureException"
	case SigV4UnknownKey:
		return "UnrecognizedClientException"
	case SigV4TokenExpired:
		return "ExpiredTokenException"
	case SigV4Mismatch, SigV4Scoped, SigV4Skewed, SigV4Expired, SigV4PayloadMismatch:
	}
	return "InvalidSignatureException"
}

func sigV4QueryCode(kind SigV4Kind) string {
	switch kind {
	case SigV4Missing:
		return "MissingAuthenticationToken"
	case SigV4Incomplete:
		return "IncompleteSignature"
	case SigV4UnknownKey:
		return "InvalidClientTokenId"
	case SigV4TokenExpired:
		return "ExpiredToken"
	case SigV4Expired:
		return "RequestExpired"
	case SigV4Mismatch, SigV4Scoped, SigV4Skewed, SigV4PayloadMismatch:
	}
	return "SignatureDoesNotMatch"
}

func sigV4S3Code(kind SigV4Kind) string {
	switch kind {
	case SigV4Missing, SigV4Expired:
		return "AccessDenied"
	case SigV4Incomplete, SigV4Scoped:
		return "AuthorizationHeaderMalformed"
	case SigV4UnknownKey:
		return "InvalidAccessKeyId"
	case SigV4Skewed:
		return "RequestTimeTooSkewed"
	case SigV4TokenExpired:
		return "ExpiredToken"
	case SigV4PayloadMismatch:
		return "XAmzContentSHA256Mismatch"
	case SigV4Mismatch:
	}
	return "SignatureDoesNotMatch"
}
