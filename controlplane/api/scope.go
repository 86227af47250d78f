package api

import (
	"context"
	"fmt"
	"strconv"

	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/controlplane/auth"
	"github.com/mayfly-faas/mayfly/proto/fault"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	defaultNamespace = "default"
	latest           = "$LATEST"
)

func caller(ctx context.Context) (auth.Principal, error) {
	p, ok := auth.FromContext(ctx)
	if !ok {
		return p, fault.New(codes.Unauthenticated, mayflyv1.ErrorReason_ERROR_REASON_UNAUTHENTICATED, "the call has no caller")
	}
	return p, nil
}

// namespace finds the namespace of a request: the named one, or else the key's own, or else "default". The right to it comes before its existence.
func namespace(ctx context.Context, view View, requested string) (*mayflyv1.Namespace, error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	name := requested
	switch {
	case name == "" && p.Namespace == auth.AllNamespaces:
		name = defaultNamespace
	case name == "":
		name = p.Namespace
	default:
		if err := checkLabel("namespace", name); err != nil {
			return nil, err
		}
	}
	if !p.Reaches(name) {
		return nil, denied("access key %s belongs to namespace %q and can't reach %q", p.KeyID, p.Namespace, name)
	}
	ns, ok := view.Namespace(name)
	if !ok {
		return nil, namespaceNotFound(name)
	}
	return ns, nil
}

// wholeCluster lets pass only keys for all namespaces: what follows concerns more than one.
func wholeCluster(ctx context.Context, what string) error {
	p, err := caller(ctx)
	if err != nil {
		return err
	}
	if p.Namespace != auth.AllNamespaces {
		return denied("to %s an access key for all namespaces (\"*\") is needed; %s is for %q", what, p.KeyID, p.Namespace)
	}
	return nil
}

// function finds a function by namespace and name.
func function(ctx context.Context, view View, requested, field, name string) (*mayflyv1.Function, *mayflyv1.Namespace, error) {
	ns, err := namespace(ctx, view, requested)
	if err != nil {
		return nil, nil, err
	}
	if err := checkFunctionName(field, name); err != nil {
		return nil, nil, err
	}
	fn, ok := view.Function(ns.GetName(), name)
	if !ok {
		return nil, nil, functionNotFound(ns.GetName(), name)
	}
	return fn, ns, nil
}

// checkRevision refuses early what apply would refuse: the local copy is already past the expected revision. A copy that lags decides nothing.
func checkRevision(what string, meta *mayflyv1.Meta, expected uint64) error {
	if expected != 0 && meta.GetRevision() > expected {
		return fault.New(codes.Aborted, mayflyv1.ErrorReason_ERROR_REASON_REVISION_CONFLICT,
			"expected_revision %d is not the revision of %s, which is %d: read it again", expected, what, meta.GetRevision())
	}
	return nil
}

// versionExists finds what a version field names: "$LATEST" or the number of a published version.
func versionExists(view View, fn *mayflyv1.Function, version string) error {
	if version == latest {
		return nil
	}
	number, err := parseVersion("version", version)
	if err != nil {
		return err
	}
	if _, ok := view.Version(fn.GetNamespace(), fn.GetName(), number); !ok {
		return versionNotFound(fn, number)
	}
	return nil
}

// qualifierExists checks that a checked qualifier names something.
func qualifierExists(view View, fn *mayflyv1.Function, qualifier string) error {
	if isAliasName(qualifier) {
		if _, ok := view.Alias(fn.GetNamespace(), fn.GetName(), qualifier); !ok {
			return aliasNotFound(fn, qualifier)
		}
		return nil
	}
	return versionExists(view, fn, qualifier)
}

// codeOf is the deployment package that a checked qualifier means; for an alias with weights, that of its main version.
func codeOf(view View, fn *mayflyv1.Function, qualifier string) (*mayflyv1.Code, error) {
	if isAliasName(qualifier) {
		alias, ok := view.Alias(fn.GetNamespace(), fn.GetName(), qualifier)
		if !ok {
			return nil, aliasNotFound(fn, qualifier)
		}
		qualifier = alias.GetVersion()
	}
	if qualifier == latest {
		return fn.GetCode(), nil
	}
	number, err := parseVersion("qualifier", qualifier)
	if err != nil {
		return nil, err
	}
	version, ok := view.Version(fn.GetNamespace(), fn.GetName(), number)
	if !ok {
		return nil, versionNotFound(fn, number)
	}
	return version.GetCode(), nil
}

func functionARN(view View, ns *mayflyv1.Namespace, name string) string {
	return fmt.Sprintf("arn:aws:lambda:%s:%s:function:%s", view.Settings().GetRegion(), ns.GetAccountId(), name)
}

func denied(format string, args ...any) error {
	return fault.New(codes.PermissionDenied, mayflyv1.ErrorReason_ERROR_REASON_PERMISSION_DENIED, format, args...)
}

func invalid(format string, args ...any) error {
	return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT, format, args...)
}

func alreadyExists(format string, args ...any) error {
	return fault.New(codes.AlreadyExists, mayflyv1.ErrorReason_ERROR_REASON_ALREADY_EXISTS, format, args...)
}

func namespaceNotFound(name string) error {
	return fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_NAMESPACE_NOT_FOUND, "there is no namespace %q", name)
}

func functionNotFound(ns, name string) error {
	return fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_FUNCTION_NOT_FOUND, "there is no function %q in namespace %q", name, ns)
}

func versionNotFound(fn *mayflyv1.Function, number int64) error {
	return fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_VERSION_NOT_FOUND, "function %q has no version %s", fn.GetName(), strconv.FormatInt(number, 10))
}

func aliasNotFound(fn *mayflyv1.Function, name string) error {
	return fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_ALIAS_NOT_FOUND, "function %q has no alias %q", fn.GetName(), name)
}
