package state

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/go-memdb"
	"google.golang.org/protobuf/proto"

	"github.com/mayfly-faas/mayfly/proto/fault"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	// MaxSecretBytes is the largest value of a secret, before it is sealed.
	MaxSecretBytes = 64 << 10
	// maxSealing is what sealing may add.
	maxSealing = 1 << 10
	// maxNamed is how many functions a refusal names.
	maxNamed = 10
)

func (t *tx) createSecret(c *statev1.CreateSecret) (*mayflyv1.Secret, error) {
	r := proto.CloneOf(c.GetRecord())
	s := r.GetSecret()
	n, err := t.namespace(s.GetNamespace())
	if err != nil {
		return nil, err
	}
	if err := checkID("the secret's name", s.GetName()); err != nil {
		return nil, err
	}
	if err := checkSealed(s.GetName(), r.GetSealedValue(), r.GetRootKeyId(), s.GetSizeBytes()); err != nil {
		return nil, err
	}
	if _, ok := findSecret(t.mem, s.GetNamespace(), s.GetName()); ok {
		return nil, exists("secret %q exists already in namespace %q: update it, or choose another name", s.GetName(), n.GetName())
	}
	if err := t.checkSecretCount(n); err != nil {
		return nil, err
	}
	if err := t.checkRootKey(r.GetRootKeyId()); err != nil {
		return nil, err
	}
	s.Meta, s.Version, s.ValueRevision = t.newMeta(), 1, t.index
	t.put(nil, r)
	return s, nil
}

// checkSecretCount refuses one secret more than the quota.
func (t *tx) checkSecretCount(n *mayflyv1.Namespace) error {
	limit := int(n.GetQuotas().GetSecrets())
	if limit == 0 {
		limit = DefaultSecrets
	}
	if t.usage(n.GetName()).Secrets < limit {
		return nil
	}
	return quota("namespace %q may have %d secrets and has them: delete one, or raise the namespace's quota", n.GetName(), limit)
}

func checkSealed(name string, sealed []byte, rootKeyID string, size int64) error {
	if len(sealed) == 0 || rootKeyID == "" || size < 1 {
		return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT, "secret %q has no value: give one", name)
	}
	if size > MaxSecretBytes || len(sealed) > MaxSecretBytes+maxSealing {
		return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT, "the value of secret %q has %d bytes: at most %d are allowed", name, size, MaxSecretBytes)
	}
	return nil
}

func (t *tx) updateSecret(c *statev1.UpdateSecret) (*mayflyv1.Secret, error) {
	old, err := t.secretAt(c.GetNamespace(), c.GetName(), c.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	r := proto.CloneOf(old)
	s := r.GetSecret()
	if c.Description != nil {
		s.Description = c.GetDescription()
	}
	if len(c.GetSealedValue()) > 0 {
		if err := t.checkNewValue(old.GetSecret(), c); err != nil {
			return nil, err
		}
		if err := t.checkRootKey(c.GetRootKeyId()); err != nil {
			return nil, err
		}
		r.SealedValue, r.RootKeyId = c.GetSealedValue(), c.GetRootKeyId()
		s.SizeBytes, s.Binary, s.ValueRevision = c.GetSizeBytes(), c.GetBinary(), t.index
		s.Version++
	}
	s.Meta = t.touched(s.GetMeta())
	t.put(old, r)
	return s, nil
}

// checkNewValue refuses a binary value for what is an environment variable somewhere.
func (t *tx) checkNewValue(s *mayflyv1.Secret, c *statev1.UpdateSecret) error {
	if err := checkSealed(s.GetName(), c.GetSealedValue(), c.GetRootKeyId(), c.GetSizeBytes()); err != nil {
		return err
	}
	if !c.GetBinary() || s.GetBinary() {
		return nil
	}
	for use := range secretUses(t.mem, s.GetNamespace(), s.GetName()) {
		if use.variable {
			return inUse("secret %q is an environment variable of function %q: its value must be UTF-8 text without NUL", s.GetName(), use.function)
		}
	}
	return nil
}

func (t *tx) deleteSecret(c *statev1.DeleteSecret) (*mayflyv1.Secret, error) {
	r, err := t.secretAt(c.GetNamespace(), c.GetName(), c.GetExpectedRevision())
	if err != nil {
		return nil, err
	}
	if !c.GetForce() {
		if users := secretUsers(t.mem, c.GetNamespace(), c.GetName(), maxNamed+1); len(users) > 0 {
			return nil, inUse("secret %q can't be deleted: %s; remove the references first, or delete it by force: then they can't start", c.GetName(), usedBy(users))
		}
	}
	t.remove(r)
	return r.GetSecret(), nil
}

func usedBy(users []string) string {
	if len(users) > maxNamed {
		return fmt.Sprintf("functions %s and others refer to it", strings.Join(users[:maxNamed], ", "))
	}
	if len(users) == 1 {
		return fmt.Sprintf("function %s refers to it", users[0])
	}
	return fmt.Sprintf("functions %s refer to it", strings.Join(users, ", "))
}

func findSecret(txn *memdb.Txn, namespace, name string) (*statev1.SecretRecord, bool) {
	return get[*statev1.SecretRecord](txn, key(prefixSecret, namespace, name))
}

// secretAt finds a secret or refuses; revision is the expected one, 0 for any.
func (t *tx) secretAt(namespace, name string, revision uint64) (*statev1.SecretRecord, error) {
	if _, err := t.namespace(namespace); err != nil {
		return nil, err
	}
	r, ok := findSecret(t.mem, namespace, name)
	if !ok {
		return nil, noSecret(namespace, name)
	}
	return r, checkRevision("secret "+name, revision, r.GetSecret().GetMeta())
}

func noSecret(namespace, name string) error {
	return fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_SECRET_NOT_FOUND,
		"there is no secret %q in namespace %q: check its name, or create it first", name, namespace)
}

// checkSecrets refuses a configuration that refers to secrets which are missing, or can't be what it makes of them.
func (t *tx) checkSecrets(namespace string, c *mayflyv1.FunctionConfiguration) error {
	for name, variable := range secretRefs(c) {
		r, ok := findSecret(t.mem, namespace, name)
		if !ok {
			return noSecret(namespace, name)
		}
		if variable && r.GetSecret().GetBinary() {
			return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT,
				"secret %q can't be an environment variable, as its value is not UTF-8 text without NUL: make it a file", name)
		}
	}
	return nil
}

// secretRefs yields the secrets that a configuration refers to, and whether as an environment variable, in a fixed order.
func secretRefs(c *mayflyv1.FunctionConfiguration) iter.Seq2[string, bool] {
	return func(yield func(string, bool) bool) {
		for _, variable := range slices.Sorted(maps.Keys(c.GetSecretEnvironment())) {
			if !yield(c.GetSecretEnvironment()[variable], true) {
				return
			}
		}
		for _, name := range c.GetSecretFiles() {
			if !yield(name, false) {
				return
			}
		}
	}
}

// secretUse is a reference to a secret.
type secretUse struct {
	function string
	variable bool
}

// secretUses yields the references to a secret, of functions and then of published versions. It steps through all of its
// namespace, which is well for what is rare.
func secretUses(txn *memdb.Txn, namespace, name string) iter.Seq[secretUse] {
	return func(yield func(secretUse) bool) {
		for function, c := range configurations(txn, namespace) {
			for secret, variable := range secretRefs(c) {
				if secret == name && !yield(secretUse{function, variable}) {
					return
				}
			}
		}
	}
}

// configurations yields those of a namespace's functions and versions, with the function's name.
func configurations(txn *memdb.Txn, namespace string) iter.Seq2[string, *mayflyv1.FunctionConfiguration] {
	return func(yield func(string, *mayflyv1.FunctionConfiguration) bool) {
		functions := within(prefixFunction, namespace)
		for f := range scan[*mayflyv1.Function](txn, functions, functions) {
			if !yield(f.GetName(), f.GetConfiguration()) {
				return
			}
		}
		versions := within(prefixVersion, namespace)
		for v := range scan[*mayflyv1.Version](txn, versions, versions) {
			if !yield(v.GetFunction(), v.GetConfiguration()) {
				return
			}
		}
	}
}

// secretUsers is the names of the first functions that refer to a secret, themselves or by a version.
func secretUsers(txn *memdb.Txn, namespace, name string, limit int) []string {
	var users []string
	for use := range secretUses(txn, namespace, name) {
		if slices.Contains(users, use.function) {
			continue
		}
		if users = append(users, use.function); len(users) == limit {
			break
		}
	}
	slices.Sort(users)
	return users
}

// Secret finds one by name.
func (v View) Secret(namespace, name string) (*statev1.SecretRecord, bool) {
	return findSecret(v.p.txn, namespace, name)
}

// Secrets yields a namespace's secrets by name, from the first one after afterName on. With namespace "" it yields those
// of all, by namespace and name; afterName is then empty.
func (v View) Secrets(namespace, afterName string) iter.Seq[*statev1.SecretRecord] {
	if namespace == "" {
		return all[*statev1.SecretRecord](v, prefixSecret)
	}
	from := key(prefixSecret, namespace, afterName)
	if afterName != "" {
		from = after(from)
	}
	return scan[*statev1.SecretRecord](v.p.txn, from, within(prefixSecret, namespace))
}

// SecretUsers is the names of functions that refer to a secret, themselves or by a version: the first limit that are found.
func (v View) SecretUsers(namespace, name string, limit int) []string {
	return secretUsers(v.p.txn, namespace, name, limit)
}

// SecretsRevision changes when the value of a secret does that the configuration refers to; it is 0 if there is none.
// missing is a secret that doesn't exist (any more), empty if all do.
func (v View) SecretsRevision(namespace string, c *mayflyv1.FunctionConfiguration) (revision uint64, missing string) {
	if len(c.GetSecretEnvironment()) == 0 && len(c.GetSecretFiles()) == 0 {
		return 0, "" // as most: this is asked for each version after each entry
	}
	for name := range secretRefs(c) {
		r, ok := findSecret(v.p.txn, namespace, name)
		if !ok {
			return 0, name
		}
		revision = max(revision, r.GetSecret().GetValueRevision())
	}
	return revision, ""
}
