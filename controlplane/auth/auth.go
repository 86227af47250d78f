// Package auth says who calls and whether they may: access keys, the root key that seals their secrets, roles, and the
// gRPC interceptors that ask for both.
//
// What belongs here: proof of identity (bearer keys, AWS signatures), roles as declared in proto, making of keys. What does
// not: node certificates (peer), storage of keys (state), and what a caller may do within its namespace (api).
package auth

import (
	"context"

	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// AllNamespaces is the namespace of keys that belong to none.
const AllNamespaces = "*"

// Principal is who makes a call, as proved by an access key.
type Principal struct {
	// KeyID is the access key's id.
	KeyID string
	// Namespace is the key's, or AllNamespaces.
	Namespace string
	Role      mayflyv1.Role
}

// May tells whether the principal has at least the role need.
func (p Principal) May(need mayflyv1.Role) bool { return Includes(p.Role, need) }

// Reaches tells whether the principal's key is of this namespace or of all.
func (p Principal) Reaches(namespace string) bool {
	return p.Namespace == AllNamespaces || p.Namespace == namespace
}

// Includes tells whether a key with the role have may do what needs the role need. ROLE_UNSPECIFIED is needed of nobody and includes nothing else.
func Includes(have, need mayflyv1.Role) bool {
	switch have {
	case mayflyv1.Role_ROLE_ADMIN:
		return need >= mayflyv1.Role_ROLE_UNSPECIFIED && need <= mayflyv1.Role_ROLE_ADMIN
	case mayflyv1.Role_ROLE_DEVELOPER:
		return need >= mayflyv1.Role_ROLE_UNSPECIFIED && need <= mayflyv1.Role_ROLE_DEVELOPER
	case mayflyv1.Role_ROLE_INVOKER, mayflyv1.Role_ROLE_READER:
		return need == have || need == mayflyv1.Role_ROLE_UNSPECIFIED
	default:
		return false
	}
}

type principalKey struct{}

// NewContext returns a context in which FromContext finds p.
func NewContext(ctx context.Context, p Principal) context.Context {
	return context.WithValue(ctx, principalKey{}, p)
}

// FromContext is the caller that the interceptors or NewContext put into ctx.
func FromContext(ctx context.Context) (Principal, bool) {
	p, ok := ctx.Value(principalKey{}).(Principal)
	return p, ok
}

func unauthenticated(format string, args ...any) error {
	return fault.New(codes.Unauthenticated, mayflyv1.ErrorReason_ERROR_REASON_UNAUTHENTICATED, format, args...)
}

func denied(format string, args ...any) error {
	return fault.New(codes.PermissionDenied, mayflyv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED, format, args...)
}
