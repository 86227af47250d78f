package cli

import (
	"log/slog"
	"path/filepath"

	"github.com/spf13/cobra"
)

func (a *App) agentCommand() *cobra.Command {
	var o AgentOptions
	cmd := &cobra.Command{
		Use: "agent --server HOST:PORT", Short: "Run a worker",
		Long: `Run a worker of a cluster, in the foreground, until interrupted. It needs an identity ("mayfly node enroll") and
mmdebstrap, to build runtime images when functions need them ("mayfly doctor --install"). Its sandboxes end with it; containerd lives on for its next start, and "mayfly down" stops that.`,
		Example: "  mayfly node enroll worker-1 --identity /var/lib/mayfly/agent/identity\n  mayfly agent --server 10.0.0.1:7070 --node-name worker-1",
		Args:    argsNamed(),
	}
	o.ProcessOptions.addFlags(cmd, nodeNameOf(a.Host.Hostname()))
	o.addFlags(cmd)
	cmd.Flags().StringArrayVar(&o.Servers, "server", nil, "gRPC address HOST:PORT of a control-plane node (repeatable)")
	cmd.Flags().StringVar(&o.IdentityDir, "identity", "", "directory with the node's identity (default STATE/agent/identity)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := a.checkAgent(&o); err != nil {
			return err
		}
		return a.runProcess(cmd.Context(), o.ProcessOptions, agentPID, func(log *slog.Logger) error {
			return a.RunAgent(cmd.Context(), o, log)
		})
	}
	return cmd
}

func (a *App) checkAgent(o *AgentOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	if len(o.Servers) == 0 {
		return usagef("--server HOST:PORT is missing: which control plane should the worker serve?")
	}
	for _, s := range o.Servers {
		if err := checkAddress(s); err != nil {
			return usagef("--server %q: %w", s, err)
		}
	}
	o.complete()
	if o.IdentityDir == "" {
		o.IdentityDir = filepath.Join(o.StateDir, "agent", "identity")
	}
	if !a.Host.Exists(filepath.Join(o.IdentityDir, IdentityKey)) {
		return hinted(ExitNotFound, "Make one with `mayfly node enroll "+o.NodeName+" --identity "+o.IdentityDir+"`.",
			"there is no identity in %s", o.IdentityDir)
	}
	return a.needRoot("running functions in sandboxes")
}
