package cli

import (
	"log/slog"

	"github.com/spf13/cobra"
)

func (a *App) serverCommand() *cobra.Command {
	var o ServerOptions
	cmd := &cobra.Command{
		Use: "server", Short: "Run a control-plane node",
		Long: `Run a control-plane node, without a worker, in the foreground, until interrupted. Workers join it by "mayfly agent".

At its first start it makes the cluster, and an admin key that it leaves in STATE/server/admin.json.`,
		Example: "  mayfly server --api-address 10.0.0.1:7070 --state-dir /var/lib/mayfly",
		Args:    argsNamed(),
	}
	o.ProcessOptions.addFlags(cmd, nodeNameOf(a.Host.Hostname()))
	o.addFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := o.ProcessOptions.check(); err != nil {
			return err
		}
		if err := o.check(); err != nil {
			return err
		}
		if err := a.needPorts(&o); err != nil {
			return err
		}
		return a.runProcess(cmd.Context(), o.ProcessOptions, serverPID, func(log *slog.Logger) error {
			return a.RunServer(cmd.Context(), o, log)
		})
	}
	return cmd
}
