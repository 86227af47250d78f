package api

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"math/big"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/mayfly-faas/mayfly/proto/fault"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// Defaults of a namespace's quotas.
const (
	defaultFunctions   = 10_000
	defaultConcurrency = 1000
	defaultCodeBytes   = 75 << 30
	defaultSecrets     = 1000
)

// DefaultQuotas are those of a namespace that was given none.
func DefaultQuotas() *mayflyv1.Quotas {
	return &mayflyv1.Quotas{Functions: defaultFunctions, Concurrency: defaultConcurrency, CodeBytes: defaultCodeBytes, Secrets: defaultSecrets}
}

type namespaceService struct {
	mayflyv1.UnimplementedNamespaceServiceServer
	*core
}

// CreateNamespace makes a namespace with an account number of its own.
func (s *namespaceService) CreateNamespace(ctx context.Context, r *mayflyv1.CreateNamespaceRequest) (*mayflyv1.CreateNamespaceResponse, error) {
	if err := wholeCluster(ctx, "create a namespace"); err != nil {
		return nil, err
	}
	if err := checkLabel("name", r.GetName()); err != nil {
		return nil, err
	}
	if err := checkQuotas(r.GetQuotas()); err != nil {
		return nil, err
	}
	view := s.View()
	if _, taken := view.Namespace(r.GetName()); taken {
		return nil, alreadyExists("namespace %q exists already", r.GetName())
	}
	quotas := DefaultQuotas()
	proto.Merge(quotas, r.GetQuotas()) // leaves zero fields alone
	result, err := s.propose(ctx, &statev1.Command{Operation: &statev1.Command_CreateNamespace{CreateNamespace: &statev1.CreateNamespace{
		Namespace: &mayflyv1.Namespace{Name: r.GetName(), AccountId: newAccountID(view), Quotas: quotas},
	}}})
	if err != nil {
		return nil, err
	}
	return &mayflyv1.CreateNamespaceResponse{Namespace: result.GetNamespace()}, nil
}

func checkQuotas(q *mayflyv1.Quotas) error {
	for _, quota := range []struct {
		field string
		value int64
	}{{"functions", int64(q.GetFunctions())}, {"concurrency", int64(q.GetConcurrency())}, {"code_bytes", q.GetCodeBytes()}, {"secrets", int64(q.GetSecrets())}} {
		if quota.value < 0 {
			return invalid("quotas.%s %d is negative", quota.field, quota.value)
		}
	}
	return checkEgress("quotas.max_egress", q.GetMaxEgress())
}

// newAccountID draws 12 digits that no namespace has.
func newAccountID(view View) string {
	for {
		n, _ := rand.Int(rand.Reader, big.NewInt(900_000_000_000)) // never fails
		id := fmt.Sprint(n.Int64() + 100_000_000_000)
		if _, taken := view.NamespaceByAccount(id); !taken {
			return id
		}
	}
}

// GetNamespace reads one namespace.
func (s *namespaceService) GetNamespace(ctx context.Context, r *mayflyv1.GetNamespaceRequest) (*mayflyv1.GetNamespaceResponse, error) {
	ns, err := namespace(ctx, s.View(), r.GetName())
	if err != nil {
		return nil, err
	}
	return &mayflyv1.GetNamespaceResponse{Namespace: ns}, nil
}

// ListNamespaces reads a page of the namespaces that the caller's key reaches.
func (s *namespaceService) ListNamespaces(ctx context.Context, r *mayflyv1.ListNamespacesRequest) (*mayflyv1.ListNamespacesResponse, error) {
	caller, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	p, err := parsePage(r.GetPageSize(), r.GetPageToken(), "namespaces")
	if err != nil {
		return nil, err
	}
	byName := slices.SortedFunc(s.View().Namespaces(), func(a, b *mayflyv1.Namespace) int { return cmp.Compare(a.GetName(), b.GetName()) })
	namespaces, next := take(p, slices.Values(byName), (*mayflyv1.Namespace).GetName, func(ns *mayflyv1.Namespace) bool {
		return ns.GetName() > p.after && caller.Reaches(ns.GetName())
	})
	return &mayflyv1.ListNamespacesResponse{Namespaces: namespaces, NextPageToken: next}, nil
}

// UpdateNamespace changes quotas.
func (s *namespaceService) UpdateNamespace(ctx context.Context, r *mayflyv1.UpdateNamespaceRequest) (*mayflyv1.UpdateNamespaceResponse, error) {
	ns, err := s.named(ctx, "change a namespace", r.GetName())
	if err != nil {
		return nil, err
	}
	if err := checkRevision("namespace "+ns.GetName(), ns.GetMeta(), r.GetExpectedRevision()); err != nil {
		return nil, err
	}
	if err := checkQuotas(r.GetQuotas()); err != nil {
		return nil, err
	}
	result, err := s.propose(ctx, &statev1.Command{Operation: &statev1.Command_UpdateNamespace{
		UpdateNamespace: &statev1.UpdateNamespace{Name: r.GetName(), Quotas: r.GetQuotas(), ExpectedRevision: r.GetExpectedRevision()},
	}})
	if err != nil {
		return nil, err
	}
	return &mayflyv1.UpdateNamespaceResponse{Namespace: result.GetNamespace()}, nil
}

// named finds the namespace that a caller with a key for all of them names; there is no default where it could do harm.
func (s *namespaceService) named(ctx context.Context, what, name string) (*mayflyv1.Namespace, error) {
	if err := wholeCluster(ctx, what); err != nil {
		return nil, err
	}
	if err := checkLabel("name", name); err != nil {
		return nil, err
	}
	return namespace(ctx, s.View(), name)
}

// DeleteNamespace deletes an empty namespace.
func (s *namespaceService) DeleteNamespace(ctx context.Context, r *mayflyv1.DeleteNamespaceRequest) (*mayflyv1.DeleteNamespaceResponse, error) {
	if _, err := s.named(ctx, "delete a namespace", r.GetName()); err != nil {
		return nil, err
	}
	if r.GetName() == defaultNamespace {
		return nil, fault.Conflict(mayflyv1.ErrorReason_ERROR_REASON_IN_USE, "namespace %q always exists", defaultNamespace)
	}
	_, err := s.propose(ctx, &statev1.Command{Operation: &statev1.Command_DeleteNamespace{DeleteNamespace: &statev1.DeleteNamespace{Name: r.GetName()}}})
	if err != nil {
		return nil, err
	}
	return &mayflyv1.DeleteNamespaceResponse{}, nil
}
