package api

import (
	"context"
	"time"

	"github.com/mayfly-faas/mayfly/controlplane/auth"
	"github.com/mayfly-faas/mayfly/proto/fault"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

type accessKeyService struct {
	mayflyv1.UnimplementedAccessKeyServiceServer
	*core
}

// CreateAccessKey makes a key and shows its secret, this once.
func (s *accessKeyService) CreateAccessKey(ctx context.Context, r *mayflyv1.CreateAccessKeyRequest) (*mayflyv1.CreateAccessKeyResponse, error) {
	spec, err := s.keySpec(ctx, r)
	if err != nil {
		return nil, err
	}
	var secret string
	result, err := s.proposeSealed(ctx, func() *statev1.Command {
		var record *statev1.AccessKeyRecord
		record, secret = s.Keyring.MintKey(spec)
		return &statev1.Command{Operation: &statev1.Command_CreateAccessKey{CreateAccessKey: &statev1.CreateAccessKey{Record: record}}}
	})
	if err != nil {
		return nil, err
	}
	return &mayflyv1.CreateAccessKeyResponse{AccessKey: result.GetAccessKey(), Secret: secret}, nil
}

func (s *accessKeyService) keySpec(ctx context.Context, r *mayflyv1.CreateAccessKeyRequest) (auth.KeySpec, error) {
	spec := auth.KeySpec{Role: r.GetRole(), Namespace: r.GetNamespace(), Description: r.GetDescription()}
	if spec.Namespace == auth.AllNamespaces {
		if err := wholeCluster(ctx, "make an access key for all namespaces"); err != nil {
			return spec, err
		}
	} else {
		ns, err := namespace(ctx, s.View(), spec.Namespace)
		if err != nil {
			return spec, err
		}
		spec.Namespace = ns.GetName()
	}
	if spec.Role == mayflyv1.Role_ROLE_UNSPECIFIED {
		return spec, invalid("role is missing: give one of ROLE_READER, ROLE_INVOKER, ROLE_DEVELOPER and ROLE_ADMIN")
	}
	if err := checkRole(spec.Role); err != nil {
		return spec, err
	}
	if err := checkDescription(spec.Description); err != nil {
		return spec, err
	}
	if end := r.GetExpiresAt(); end != nil {
		if !end.IsValid() || !end.AsTime().After(s.Now()) {
			return spec, invalid("expires_at %s is not a time to come", end.AsTime().Format(time.RFC3339))
		}
		spec.ExpiresAt = end.AsTime()
	}
	return spec, nil
}

func checkRole(role mayflyv1.Role) error {
	if _, ok := mayflyv1.Role_name[int32(role)]; !ok {
		return invalid("role %d is not one of ROLE_READER, ROLE_INVOKER, ROLE_DEVELOPER and ROLE_ADMIN", role)
	}
	return nil
}

// ListAccessKeys reads a page of the keys that the caller may change.
func (s *accessKeyService) ListAccessKeys(ctx context.Context, r *mayflyv1.ListAccessKeysRequest) (*mayflyv1.ListAccessKeysResponse, error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	view, scope := s.View(), ""
	if p.Namespace != auth.AllNamespaces || r.GetNamespace() != "" && r.GetNamespace() != auth.AllNamespaces {
		ns, err := namespace(ctx, view, r.GetNamespace())
		if err != nil {
			return nil, err
		}
		scope = ns.GetName()
	}
	onlyAll := r.GetNamespace() == auth.AllNamespaces
	page, err := parsePage(r.GetPageSize(), r.GetPageToken(), "keys", r.GetNamespace(), scope)
	if err != nil {
		return nil, err
	}
	records, next := take(page, view.AccessKeys(scope, page.after),
		func(k *statev1.AccessKeyRecord) string { return k.GetAccessKey().GetId() },
		func(k *statev1.AccessKeyRecord) bool {
			return !onlyAll || k.GetAccessKey().GetNamespace() == auth.AllNamespaces
		})
	response := &mayflyv1.ListAccessKeysResponse{NextPageToken: next}
	for _, record := range records {
		response.AccessKeys = append(response.AccessKeys, record.GetAccessKey())
	}
	return response, nil
}

// UpdateAccessKey changes a key; who has its secret keeps it.
func (s *accessKeyService) UpdateAccessKey(ctx context.Context, r *mayflyv1.UpdateAccessKeyRequest) (*mayflyv1.UpdateAccessKeyResponse, error) {
	view := s.View()
	key, err := reachableKey(ctx, view, r.GetId())
	if err != nil {
		return nil, err
	}
	if err := checkRevision("access key "+key.GetId(), key.GetMeta(), r.GetExpectedRevision()); err != nil {
		return nil, err
	}
	if err := checkRole(r.GetRole()); err != nil {
		return nil, err
	}
	if err := checkDescription(r.GetDescription()); err != nil {
		return nil, err
	}
	demoted := r.GetRole() != mayflyv1.Role_ROLE_UNSPECIFIED && r.GetRole() != mayflyv1.Role_ROLE_ADMIN
	if r.GetDisabled() || demoted {
		if err := s.notLastAdmin(view, key); err != nil {
			return nil, err
		}
	}
	result, err := s.propose(ctx, &statev1.Command{Operation: &statev1.Command_UpdateAccessKey{UpdateAccessKey: &statev1.UpdateAccessKey{
		Id: key.GetId(), Disabled: r.Disabled, Role: r.GetRole(), Description: r.Description, ExpectedRevision: r.GetExpectedRevision(),
	}}})
	if err != nil {
		return nil, err
	}
	return &mayflyv1.UpdateAccessKeyResponse{AccessKey: result.GetAccessKey()}, nil
}

// DeleteAccessKey deletes a key: calls with it fail from then on.
func (s *accessKeyService) DeleteAccessKey(ctx context.Context, r *mayflyv1.DeleteAccessKeyRequest) (*mayflyv1.DeleteAccessKeyResponse, error) {
	view := s.View()
	key, err := reachableKey(ctx, view, r.GetId())
	if err != nil {
		return nil, err
	}
	if err := s.notLastAdmin(view, key); err != nil {
		return nil, err
	}
	_, err = s.propose(ctx, &statev1.Command{Operation: &statev1.Command_DeleteAccessKey{DeleteAccessKey: &statev1.DeleteAccessKey{Id: key.GetId()}}})
	if err != nil {
		return nil, err
	}
	return &mayflyv1.DeleteAccessKeyResponse{}, nil
}

// reachableKey finds a key that the caller may change; others don't exist for it.
func reachableKey(ctx context.Context, view View, id string) (*mayflyv1.AccessKey, error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	record, ok := view.AccessKey(id)
	if !ok || !p.Reaches(record.GetAccessKey().GetNamespace()) {
		return nil, keyNotFound(id)
	}
	return record.GetAccessKey(), nil
}

func keyNotFound(id string) error {
	return fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_ACCESS_KEY_NOT_FOUND, "there is no access key %.100q", id)
}

// notLastAdmin refuses to take away the cluster's last key that can make others.
func (s *accessKeyService) notLastAdmin(view View, key *mayflyv1.AccessKey) error {
	if !s.rules(key) {
		return nil
	}
	for record := range view.AccessKeys("", "") {
		if other := record.GetAccessKey(); other.GetId() != key.GetId() && s.rules(other) {
			return nil
		}
	}
	return fault.Conflict(mayflyv1.ErrorReason_ERROR_REASON_IN_USE, "access key %s is the last usable one with the role ADMIN for all namespaces: make another first", key.GetId())
}

// rules tells whether a key is an admin's for all namespaces and can be used without end.
func (s *accessKeyService) rules(key *mayflyv1.AccessKey) bool {
	return key.GetRole() == mayflyv1.Role_ROLE_ADMIN && key.GetNamespace() == auth.AllNamespaces && !key.GetDisabled() && key.GetExpiresAt() == nil
}

// GetCallerIdentity shows the caller its own key.
func (s *accessKeyService) GetCallerIdentity(ctx context.Context, _ *mayflyv1.GetCallerIdentityRequest) (*mayflyv1.GetCallerIdentityResponse, error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	record, ok := s.View().AccessKey(p.KeyID)
	if !ok {
		return nil, keyNotFound(p.KeyID)
	}
	return &mayflyv1.GetCallerIdentityResponse{AccessKey: record.GetAccessKey()}, nil
}
