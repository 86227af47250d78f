package config

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Admin is what the first server of a cluster writes to STATE/server/admin.json for its owner: all that a context needs.
type Admin struct {
	ID     string `json:"id"`
	Secret string `json:"secret"`
	// CA is the cluster's CA certificate, PEM.
	CA string `json:"ca"`
	// Endpoint is host:port of the gRPC API.
	Endpoint string `json:"endpoint"`
}

// ParseAdmin reads the content of an admin.json.
func ParseAdmin(text []byte) (Context, error) {
	var a Admin
	if err := json.Unmarshal(text, &a); err != nil {
		return Context{}, fmt.Errorf("not an admin.json: %w", err)
	}
	if a.Endpoint == "" || a.ID == "" || a.Secret == "" || a.CA == "" {
		return Context{}, errors.New("not an admin.json: it lacks endpoint, id, secret or ca")
	}
	return Context{Endpoint: a.Endpoint, CA: a.CA, AccessKeyID: a.ID, SecretAccessKey: a.Secret}, nil
}
