package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/mayfly-faas/mayfly/controlplane/peer"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// IdentityKey is the file of an agent's identity directory that says whether there is one.
const IdentityKey = "node.key"

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
	key, request, err := peer.NewRequest(name)
	if err != nil {
		return fmt.Errorf("make a key for %s: %w", name, err)
	}
	r, err := c.nodes.EnrollNode(ctx, &mayflyv1.EnrollNodeRequest{Name: name, CertificateSigningRequest: request})
	if err != nil {
		return err
	}
	identity := peer.Credentials{Key: key, Certificate: r.GetCertificate(), CACertificate: r.GetCaCertificate()}
	if err := identity.Save(dir); err != nil {
		return fmt.Errorf("write the identity: %w", err)
	}
	return a.changed(r, name, "Enrolled node %s (%s); its identity is in %s", name, r.GetNodeId(), dir)
}
