package cli

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// Files of an agent's identity directory, all PEM.
const (
	IdentityKey  = "node.key"
	IdentityCert = "node.crt"
	IdentityCA   = "ca.crt"
)

func (a *App) nodeEnroll() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "enroll NAME", Short: "Make the identity of a new worker",
		Long: `Make the identity of a new worker: a private key, which does not leave this machine, and a certificate for it,
signed by the cluster. Run it on the worker, or copy the directory there. Then start the worker:

  mayfly agent --server HOST:7070 --identity DIR`,
		Example: "  mayfly node enroll worker-1 --identity /var/lib/mayfly/agent/identity",
		Args:    argsNamed("NAME"),
	}
	cmd.Flags().StringVar(&dir, "identity", "", "directory to write to (default ./NAME)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if dir == "" {
			dir = args[0]
		}
		if _, err := os.Stat(filepath.Join(dir, IdentityKey)); err == nil {
			return hinted(ExitConflict, "Remove it first if that worker is no more.", "%s already holds an identity", dir)
		}
		return a.with(cmd, func(ctx context.Context, c *client) error { return a.enroll(ctx, c, args[0], dir) })
	}
	return cmd
}

func (a *App) enroll(ctx context.Context, c *client, name, dir string) error {
	key, request, err := signingRequest(name)
	if err != nil {
		return fmt.Errorf("make a key for %s: %w", name, err)
	}
	r, err := c.nodes.EnrollNode(ctx, &mayflyv1.EnrollNodeRequest{Name: name, CertificateSigningRequest: request})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("write the identity: %w", err)
	}
	for file, content := range map[string][]byte{
		IdentityKey: key, IdentityCert: r.GetCertificate(), IdentityCA: r.GetCaCertificate(),
	} {
		if err := os.WriteFile(filepath.Join(dir, file), content, 0o600); err != nil {
			return fmt.Errorf("write the identity: %w", err)
		}
	}
	return a.changed(r, name, "Enrolled node %s (%s); its identity is in %s", name, r.GetNodeId(), dir)
}

// signingRequest makes a P-256 key and a request for a certificate with the name, both PEM.
func signingRequest(name string) (key, request []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, private)
	if err != nil {
		return nil, nil, err
	}
	key = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}), nil
}
