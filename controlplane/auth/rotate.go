package auth

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
)

// RotationConfig is what a rotation of the root key works with.
type RotationConfig struct {
	// Path of the root keys.
	Path    string
	Keyring *Keyring
	// AccessKeys and Secrets are all stored ones, in the newest state that this node has.
	AccessKeys func() iter.Seq[*statev1.AccessKeyRecord]
	Secrets    func() iter.Seq[*statev1.SecretRecord]
	// Propose commits a command.
	Propose func(context.Context, *statev1.Command) (*statev1.Result, error)
	// Settle returns when all that was committed before is applied and on this node's disk.
	Settle func(context.Context) error
}

// Rotation is what a rotation has done.
type Rotation struct {
	RootKeyID string
	// AccessKeys and Secrets are how many were sealed anew.
	AccessKeys, Secrets int
}

// RotateRootKey makes a new root key and seals everything with it. It is for a cluster of one control-plane node. After an
// error, or a crash at any moment, everything can be read, and the next call goes on where this one ended:
//
//  1. the new key is on disk beside the old one,
//  2. the state takes nothing any more that the old one seals,
//  3. what the old one has sealed is sealed anew, entry by entry,
//  4. all of that is on disk, so the old one is removed.
func RotateRootKey(ctx context.Context, cfg RotationConfig) (Rotation, error) {
	cfg.Keyring.rotation.Lock()
	defer cfg.Keyring.rotation.Unlock()
	if !cfg.Keyring.rotating() {
		if err := cfg.begin(); err != nil {
			return Rotation{}, err
		}
	}
	return cfg.finish(ctx)
}

// FinishRotation ends a rotation that was interrupted; without one it does nothing.
func FinishRotation(ctx context.Context, cfg RotationConfig) (Rotation, error) {
	cfg.Keyring.rotation.Lock()
	defer cfg.Keyring.rotation.Unlock()
	if !cfg.Keyring.rotating() {
		return Rotation{}, nil
	}
	return cfg.finish(ctx)
}

// rotating tells that there is another key than the one that is to stay.
func (k *Keyring) rotating() bool { return len(k.sealers.Load().all) > 1 }

// begin puts a new key beside the old one, which still seals.
func (cfg RotationConfig) begin() error {
	fresh, err := newSealer(makeRootKey())
	if err != nil {
		return err
	}
	have := cfg.Keyring.sealers.Load()
	next := &sealers{current: have.current, all: slices.Insert(slices.Clone(have.all), 0, fresh)}
	var roots []*RootKey
	for _, s := range next.all {
		roots = append(roots, s.root)
	}
	if err := writeRootKeys(cfg.Path, roots); err != nil {
		return err
	}
	cfg.Keyring.sealers.Store(next)
	return nil
}

func (cfg RotationConfig) finish(ctx context.Context) (Rotation, error) {
	have := cfg.Keyring.sealers.Load()
	fresh := have.all[0]
	r := Rotation{RootKeyID: fresh.root.id}
	_, err := cfg.Propose(ctx, &statev1.Command{Operation: &statev1.Command_SetRootKey{SetRootKey: &statev1.SetRootKey{RootKeyId: fresh.root.id}}})
	if err != nil {
		return r, fmt.Errorf("make root key %s the one that seals: %w", fresh.root.id, err)
	}
	cfg.Keyring.sealers.Store(&sealers{current: fresh, all: have.all})
	if r.AccessKeys, err = cfg.resealAccessKeys(ctx, fresh); err != nil {
		return r, err
	}
	if r.Secrets, err = cfg.resealSecrets(ctx, fresh); err != nil {
		return r, err
	}
	if err := cfg.Settle(ctx); err != nil {
		return r, fmt.Errorf("make sure that everything is on disk: %w", err)
	}
	if cfg.leftOver(fresh) {
		return r, errors.New("something is still sealed with the old root key, which is kept: run the rotation again")
	}
	if err := writeRootKeys(cfg.Path, []*RootKey{fresh.root}); err != nil {
		return r, err
	}
	cfg.Keyring.sealers.Store(&sealers{current: fresh, all: []*sealer{fresh}})
	return r, nil
}

func (cfg RotationConfig) resealAccessKeys(ctx context.Context, fresh *sealer) (done int, err error) {
	for record := range cfg.AccessKeys() {
		id := record.GetAccessKey().GetId()
		if record.GetRootKeyId() == fresh.root.id {
			continue
		}
		secret, err := cfg.Keyring.OpenSecret(record)
		if err != nil {
			return done, err
		}
		_, err = cfg.Propose(ctx, &statev1.Command{Operation: &statev1.Command_ResealAccessKey{ResealAccessKey: &statev1.ResealAccessKey{
			Id: id, FromRootKeyId: record.GetRootKeyId(), SealedSecret: fresh.sealSecret(id, secret), RootKeyId: fresh.root.id,
		}}})
		if err != nil {
			return done, fmt.Errorf("seal access key %s anew: %w", id, err)
		}
		done++
	}
	return done, nil
}

func (cfg RotationConfig) resealSecrets(ctx context.Context, fresh *sealer) (done int, err error) {
	for record := range cfg.Secrets() {
		namespace, name := record.GetSecret().GetNamespace(), record.GetSecret().GetName()
		if record.GetRootKeyId() == fresh.root.id {
			continue
		}
		value, err := cfg.Keyring.OpenValue(record)
		if err != nil {
			return done, err
		}
		_, err = cfg.Propose(ctx, &statev1.Command{Operation: &statev1.Command_ResealSecret{ResealSecret: &statev1.ResealSecret{
			Namespace: namespace, Name: name, FromRootKeyId: record.GetRootKeyId(),
			SealedValue: fresh.sealValue(namespace, name, value), RootKeyId: fresh.root.id,
		}}})
		if err != nil {
			return done, fmt.Errorf("seal secret %s/%s anew: %w", namespace, name, err)
		}
		done++
	}
	return done, nil
}

// leftOver tells whether anything needs another key than fresh.
func (cfg RotationConfig) leftOver(fresh *sealer) bool {
	for record := range cfg.AccessKeys() {
		if record.GetRootKeyId() != fresh.root.id {
			return true
		}
	}
	for record := range cfg.Secrets() {
		if record.GetRootKeyId() != fresh.root.id {
			return true
		}
	}
	return false
}
