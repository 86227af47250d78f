package api

import (
	"bytes"
	"context"
	"iter"
	"slices"
	"unicode/utf8"

	"github.com/mayfly-faas/mayfly/proto/fault"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	maxSecretName  = 64
	maxSecretBytes = 64 << 10
	// maxSecretRefs bounds each kind of reference of a function: all values together fit into one message to an agent,
	// and those of the environment into what the kernel lets a process begin with.
	maxSecretRefs  = 16
	maxSecretUsers = 100
)

type secretService struct {
	mayflyv1.UnimplementedSecretServiceServer
	*core
}

// CreateSecret seals a value and stores it.
func (s *secretService) CreateSecret(ctx context.Context, r *mayflyv1.CreateSecretRequest) (*mayflyv1.CreateSecretResponse, error) {
	view := s.View()
	ns, err := namespace(ctx, view, r.GetNamespace())
	if err != nil {
		return nil, err
	}
	if err := checkSecretName("name", r.GetName()); err != nil {
		return nil, err
	}
	if err := checkSecretValue(r.GetValue()); err != nil {
		return nil, err
	}
	if err := checkDescription(r.GetDescription()); err != nil {
		return nil, err
	}
	if _, taken := view.Secret(ns.GetName(), r.GetName()); taken {
		return nil, alreadyExists("secret %q exists already in namespace %q: update it, or choose another name", r.GetName(), ns.GetName())
	}
	record := &statev1.SecretRecord{Secret: &mayflyv1.Secret{
		Namespace: ns.GetName(), Name: r.GetName(), Description: r.GetDescription(),
		SizeBytes: int64(len(r.GetValue())), Binary: isBinary(r.GetValue()),
	}}
	result, err := s.proposeSealed(ctx, func() *statev1.Command {
		record.SealedValue, record.RootKeyId = s.Keyring.SealValue(ns.GetName(), r.GetName(), r.GetValue())
		return &statev1.Command{Operation: &statev1.Command_CreateSecret{CreateSecret: &statev1.CreateSecret{Record: record}}}
	})
	if err != nil {
		return nil, err
	}
	return &mayflyv1.CreateSecretResponse{Secret: result.GetSecret()}, nil
}

// checkSecretName allows 1 to 64 letters, digits, "-" and "_": it is the name of a file in sandboxes, too.
func checkSecretName(field, name string) error {
	if isName(name, maxSecretName) {
		return nil
	}
	return invalidName("%s %.100q is not 1 to %d letters, digits, \"-\" and \"_\"", field, name, maxSecretName)
}

// checkSecretValue never tells the value.
func checkSecretValue(value []byte) error {
	if n := len(value); n < 1 || n > maxSecretBytes {
		return invalid("value has %d bytes; 1 to %d are allowed", n, maxSecretBytes)
	}
	return nil
}

// isBinary tells of a value that can be no environment variable.
func isBinary(value []byte) bool { return !utf8.Valid(value) || bytes.IndexByte(value, 0) >= 0 }

// GetSecret tells all but the value.
func (s *secretService) GetSecret(ctx context.Context, r *mayflyv1.GetSecretRequest) (*mayflyv1.GetSecretResponse, error) {
	view := s.View()
	record, err := secret(ctx, view, r.GetNamespace(), r.GetName())
	if err != nil {
		return nil, err
	}
	found := record.GetSecret()
	return &mayflyv1.GetSecretResponse{Secret: found, Functions: view.SecretUsers(found.GetNamespace(), found.GetName(), maxSecretUsers)}, nil
}

// secret finds one by namespace and name.
func secret(ctx context.Context, view View, requested, name string) (*statev1.SecretRecord, error) {
	ns, err := namespace(ctx, view, requested)
	if err != nil {
		return nil, err
	}
	if err := checkSecretName("name", name); err != nil {
		return nil, err
	}
	record, ok := view.Secret(ns.GetName(), name)
	if !ok {
		return nil, secretNotFound(ns.GetName(), name)
	}
	return record, nil
}

func secretNotFound(ns, name string) error {
	return fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_SECRET_NOT_FOUND, "there is no secret %q in namespace %q: check its name, or create it first", name, ns)
}

// ListSecrets reads a page of a namespace's secrets.
func (s *secretService) ListSecrets(ctx context.Context, r *mayflyv1.ListSecretsRequest) (*mayflyv1.ListSecretsResponse, error) {
	view := s.View()
	ns, err := namespace(ctx, view, r.GetNamespace())
	if err != nil {
		return nil, err
	}
	p, err := parsePage(r.GetPageSize(), r.GetPageToken(), "secrets", ns.GetName())
	if err != nil {
		return nil, err
	}
	secrets, next := take(p, described(view.Secrets(ns.GetName(), p.after)), (*mayflyv1.Secret).GetName, all)
	return &mayflyv1.ListSecretsResponse{Secrets: secrets, NextPageToken: next}, nil
}

// described is what may be told of secrets.
func described(records iter.Seq[*statev1.SecretRecord]) iter.Seq[*mayflyv1.Secret] {
	return func(yield func(*mayflyv1.Secret) bool) {
		for record := range records {
			if !yield(record.GetSecret()) {
				return
			}
		}
	}
}

// UpdateSecret changes value or description.
func (s *secretService) UpdateSecret(ctx context.Context, r *mayflyv1.UpdateSecretRequest) (*mayflyv1.UpdateSecretResponse, error) {
	record, err := secret(ctx, s.View(), r.GetNamespace(), r.GetName())
	if err != nil {
		return nil, err
	}
	old := record.GetSecret()
	if err := checkRevision("secret "+old.GetName(), old.GetMeta(), r.GetExpectedRevision()); err != nil {
		return nil, err
	}
	if r.Value == nil && r.Description == nil {
		return nil, invalid("nothing to change: give a value or a description")
	}
	if err := checkDescription(r.GetDescription()); err != nil {
		return nil, err
	}
	u := &statev1.UpdateSecret{Namespace: old.GetNamespace(), Name: old.GetName(), Description: r.Description, ExpectedRevision: r.GetExpectedRevision()}
	if r.Value != nil {
		if err := checkSecretValue(r.GetValue()); err != nil {
			return nil, err
		}
		u.SizeBytes, u.Binary = int64(len(r.GetValue())), isBinary(r.GetValue())
	}
	result, err := s.proposeSealed(ctx, func() *statev1.Command {
		if r.Value != nil {
			u.SealedValue, u.RootKeyId = s.Keyring.SealValue(old.GetNamespace(), old.GetName(), r.GetValue())
		}
		return &statev1.Command{Operation: &statev1.Command_UpdateSecret{UpdateSecret: u}}
	})
	if err != nil {
		return nil, err
	}
	return &mayflyv1.UpdateSecretResponse{Secret: result.GetSecret()}, nil
}

// DeleteSecret deletes a secret. Whether functions refer to it is apply's to check.
func (s *secretService) DeleteSecret(ctx context.Context, r *mayflyv1.DeleteSecretRequest) (*mayflyv1.DeleteSecretResponse, error) {
	record, err := secret(ctx, s.View(), r.GetNamespace(), r.GetName())
	if err != nil {
		return nil, err
	}
	found := record.GetSecret()
	_, err = s.propose(ctx, &statev1.Command{Operation: &statev1.Command_DeleteSecret{DeleteSecret: &statev1.DeleteSecret{
		Namespace: found.GetNamespace(), Name: found.GetName(), Force: r.GetForce(), ExpectedRevision: r.GetExpectedRevision(),
	}}})
	if err != nil {
		return nil, err
	}
	return &mayflyv1.DeleteSecretResponse{}, nil
}

// GetSecretValue shows the value, and leaves in the log who asked for it.
func (s *secretService) GetSecretValue(ctx context.Context, r *mayflyv1.GetSecretValueRequest) (*mayflyv1.GetSecretValueResponse, error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	record, err := secret(ctx, s.View(), r.GetNamespace(), r.GetName())
	if err != nil {
		return nil, err
	}
	found := record.GetSecret()
	value, err := s.Keyring.OpenValue(record)
	if err != nil {
		return nil, fault.Internal(err, "the value of secret %q can't be read", found.GetName())
	}
	s.Log.Info("the value of a secret was read", "namespace", found.GetNamespace(), "secret", found.GetName(), "version", found.GetVersion(),
		"access_key", p.KeyID, "request_id", requestID(ctx))
	return &mayflyv1.GetSecretValueResponse{Value: value, Version: found.GetVersion()}, nil
}

// checkSecretRefs checks how a configuration refers to secrets; secretsExist, that there are any.
func checkSecretRefs(c *mayflyv1.FunctionConfiguration) error {
	variables, files := c.GetSecretEnvironment(), c.GetSecretFiles()
	if len(variables) > maxSecretRefs || len(files) > maxSecretRefs {
		return invalid("%d environment variables and %d files are secrets; at most %d of each are allowed", len(variables), len(files), maxSecretRefs)
	}
	for _, key := range sortedKeys(variables) {
		if err := checkEnvironmentKey("secret_environment", key); err != nil {
			return err
		}
		if _, both := c.GetEnvironment()[key]; both {
			return invalid("secret_environment: %q is in environment too: leave one out", key)
		}
		if err := checkSecretName("secret_environment: the secret of "+key+",", variables[key]); err != nil {
			return err
		}
	}
	for i, name := range files {
		if err := checkSecretName("secret_files:", name); err != nil {
			return err
		}
		if slices.Contains(files[:i], name) {
			return invalid("secret_files: %q is there twice", name)
		}
	}
	return nil
}

// secretsExist refuses early what apply would refuse, before any code is stored.
func secretsExist(view View, ns string, c *mayflyv1.FunctionConfiguration) error {
	if _, missing := view.SecretsRevision(ns, c); missing != "" {
		return secretNotFound(ns, missing)
	}
	return nil
}
