package cli

import (
	"log/slog"

	"github.com/spf13/cobra"
)

func (a *App) upCommand() *cobra.Command {
	var o UpOptions
	cmd := &cobra.Command{
		Use: "up", Short: "Run Mayfly on this machine: control plane and worker in one process",
		Long: `Run Mayfly on this machine: control plane and worker in one process, in the foreground, until interrupted.

At its first start it makes the cluster, and an admin key that it leaves in STATE/server/admin.json:
"mayfly context import" makes a context of it. Runtime images are built when the first function needs them, or before
by "mayfly runtime build".
Sandboxes end with it; containerd lives on for its next start, and "mayfly down" stops that.`,
		Example: "  sudo mayfly doctor --install\n  sudo mayfly runtime build python3.11\n  sudo mayfly up",
		Args:    argsNamed(),
	}
	o.Server.ProcessOptions.addFlags(cmd, nodeNameOf(a.Host.Hostname()))
	o.Server.addFlags(cmd)
	o.Agent.addFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := o.Server.ProcessOptions.check(); err != nil {
			return err
		}
		if err := o.Server.check(); err != nil {
			return err
		}
		if err := a.needRoot("running functions in sandboxes"); err != nil {
			return err
		}
		if err := a.needPorts(&o.Server); err != nil {
			return err
		}
		o.Agent.ProcessOptions = o.Server.ProcessOptions
		o.Agent.complete()
		return a.runProcess(cmd.Context(), o.Server.ProcessOptions, upPID, func(log *slog.Logger) error {
			return a.RunUp(cmd.Context(), o, log)
		})
	}
	return cmd
}
