package state

import (
	"google.golang.org/protobuf/proto"

	"github.com/mayfly-faas/mayfly/proto/fault"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// The root key itself is never here: only its id, so that a rotation has an end. See package auth.

func (t *tx) setRootKey(c *statev1.SetRootKey) error {
	if c.GetRootKeyId() == "" {
		return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT, "the root key has no id: give one")
	}
	cluster := proto.CloneOf(t.clusterRecord())
	if cluster.GetClusterId() == "" {
		return fault.Conflict(mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT, "the cluster has not been initialised: nothing is sealed yet")
	}
	cluster.RootKeyId = c.GetRootKeyId()
	t.put(nil, cluster)
	return nil
}

// checkRootKey refuses what another root key sealed than the one that seals now: it could come in after everything was
// sealed anew, when its key is gone.
func (t *tx) checkRootKey(id string) error {
	if now := t.clusterRecord().GetRootKeyId(); now != "" && now != id {
		return fault.Unavailable(mayflyv1.ErrorReason_ERROR_REASON_ROOT_KEY_ROTATED, "root key %s was replaced by %s meanwhile: try again", id, now)
	}
	return nil
}

// resealAccessKey leaves the revision alone: nothing that anybody sees has changed.
func (t *tx) resealAccessKey(c *statev1.ResealAccessKey) error {
	if err := t.checkRootKey(c.GetRootKeyId()); err != nil {
		return err
	}
	old, ok := get[*statev1.AccessKeyRecord](t.mem, key(prefixAccessKey, c.GetId()))
	if !ok || old.GetRootKeyId() != c.GetFromRootKeyId() || len(c.GetSealedSecret()) == 0 {
		return nil
	}
	r := proto.CloneOf(old)
	r.SealedSecret, r.RootKeyId = c.GetSealedSecret(), c.GetRootKeyId()
	t.put(old, r)
	return nil
}

// resealSecret leaves revisions and version alone, too.
func (t *tx) resealSecret(c *statev1.ResealSecret) error {
	if err := t.checkRootKey(c.GetRootKeyId()); err != nil {
		return err
	}
	old, ok := findSecret(t.mem, c.GetNamespace(), c.GetName())
	if !ok || old.GetRootKeyId() != c.GetFromRootKeyId() || len(c.GetSealedValue()) == 0 {
		return nil
	}
	r := proto.CloneOf(old)
	r.SealedValue, r.RootKeyId = c.GetSealedValue(), c.GetRootKeyId()
	t.put(old, r)
	return nil
}
