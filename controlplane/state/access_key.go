package state

import (
	"google.golang.org/protobuf/proto"

	"github.com/mayfly-faas/mayfly/proto/fault"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func (t *tx) createAccessKey(c *statev1.CreateAccessKey) (*mayflyv1.AccessKey, error) {
	r := proto.CloneOf(c.GetRecord())
	k := r.GetAccessKey()
	if err := checkID("the access key's id", k.GetId()); err != nil {
		return nil, err
	}
	if k.GetNamespace() != AllNamespaces {
		if _, err := t.namespace(k.GetNamespace()); err != nil {
			return nil, err
		}
	}
	if k.GetRole() == mayflyv1.Role_ROLE_UNSPECIFIED || len(r.GetSealedSecret()) == 0 {
		return nil, fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT, "access key %s has no role or no secret: give both", k.GetId())
	}
	if _, ok := get[*statev1.AccessKeyRecord](t.mem, key(prefixAccessKey, k.GetId())); ok {
		return nil, exists("access key %s exists already: make another one", k.GetId())
	}
	if err := t.checkRootKey(r.GetRootKeyId()); err != nil {
		return nil, err
	}
	k.Meta = t.newMeta()
	t.put(nil, r)
	return k, nil
}

func (t *tx) updateAccessKey(c *statev1.UpdateAccessKey) (*mayflyv1.AccessKey, error) {
	old, err := t.accessKey(c.GetId())
	if err != nil {
		return nil, err
	}
	if err := checkRevision("access key "+c.GetId(), c.GetExpectedRevision(), old.GetAccessKey().GetMeta()); err != nil {
		return nil, err
	}
	r := proto.CloneOf(old)
	k := r.GetAccessKey()
	if c.Disabled != nil {
		k.Disabled = c.GetDisabled()
	}
	if c.GetRole() != mayflyv1.Role_ROLE_UNSPECIFIED {
		k.Role = c.GetRole()
	}
	if c.Description != nil {
		k.Description = c.GetDescription()
	}
	k.Meta = t.touched(k.GetMeta())
	t.put(old, r)
	return k, nil
}

func (t *tx) deleteAccessKey(c *statev1.DeleteAccessKey) (*mayflyv1.AccessKey, error) {
	r, err := t.accessKey(c.GetId())
	if err != nil {
		return nil, err
	}
	t.remove(r)
	return r.GetAccessKey(), nil
}

// accessKey finds a key or refuses.
func (t *tx) accessKey(id string) (*statev1.AccessKeyRecord, error) {
	r, ok := get[*statev1.AccessKeyRecord](t.mem, key(prefixAccessKey, id))
	if !ok {
		return nil, fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_ACCESS_KEY_NOT_FOUND,
			"there is no access key %q: list the keys to find its id", id)
	}
	return r, nil
}
