package auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"

	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// AdminFile is the content of admin.json: all that the CLI on the same machine, as root, needs to make its context.
type AdminFile struct {
	ID     string `json:"id"`
	Secret string `json:"secret"`
	// CA is the cluster's CA certificate, PEM.
	CA string `json:"ca"`
	// Endpoint is host:port of the gRPC API.
	Endpoint string `json:"endpoint"`
}

// EnsureAdminConfig is what EnsureAdmin works with.
type EnsureAdminConfig struct {
	// Path of admin.json.
	Path    string
	Keyring *Keyring
	// Keys are all stored keys, read after a barrier: a stale view would make a second admin.
	Keys iter.Seq[*statev1.AccessKeyRecord]
	// Propose commits a command.
	Propose  func(context.Context, *statev1.Command) (*statev1.Result, error)
	CA       []byte
	Endpoint string
}

// EnsureAdmin makes an admin key for all namespaces if the cluster has none, and leaves it in admin.json (0600). It is for the leader, and may be called at every start.
// The file is written before the key exists: after a crash between the two, the next call starts over.
func EnsureAdmin(ctx context.Context, cfg EnsureAdminConfig) (created bool, err error) {
	has := false
	for record := range cfg.Keys {
		key := record.GetAccessKey()
		has = has || key.GetRole() == mayflyv1.Role_ROLE_ADMIN && key.GetNamespace() == AllNamespaces
	}
	if has {
		return false, refreshAdmin(cfg)
	}
	record, secret := cfg.Keyring.MintKey(KeySpec{Role: mayflyv1.Role_ROLE_ADMIN, Namespace: AllNamespaces, Description: "first key of the cluster"})
	if err := cfg.write(AdminFile{ID: record.GetAccessKey().GetId(), Secret: secret}); err != nil {
		return false, err
	}
	_, err = cfg.Propose(ctx, &statev1.Command{Operation: &statev1.Command_CreateAccessKey{CreateAccessKey: &statev1.CreateAccessKey{Record: record}}})
	if err != nil {
		return false, fmt.Errorf("make the first admin key: %w", err)
	}
	return true, nil
}

// refreshAdmin keeps endpoint and CA of an existing file right.
func refreshAdmin(cfg EnsureAdminConfig) error {
	file, err := ReadAdmin(cfg.Path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if file.Endpoint == cfg.Endpoint && file.CA == string(cfg.CA) {
		return nil
	}
	return cfg.write(file)
}

func (cfg EnsureAdminConfig) write(file AdminFile) error {
	file.CA, file.Endpoint = string(cfg.CA), cfg.Endpoint
	data, err := json.MarshalIndent(file, "", "  ") //nolint:gosec // the secret is what the file is for; it is 0600
	if err != nil {
		return fmt.Errorf("encode the admin file: %w", err)
	}
	if err := writeFile(cfg.Path, append(data, '\n')); err != nil {
		return fmt.Errorf("store the admin file: %w", err)
	}
	return nil
}

// ReadAdmin reads admin.json; the error wraps os.ErrNotExist if there is none.
func ReadAdmin(path string) (AdminFile, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return AdminFile{}, fmt.Errorf("read the admin file: %w", err)
	}
	var file AdminFile
	if err := json.Unmarshal(data, &file); err != nil {
		return AdminFile{}, fmt.Errorf("admin file %s is damaged: %w", path, err)
	}
	return file, nil
}
