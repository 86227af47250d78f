package cli

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func (a *App) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show how the cluster is", Args: argsNamed(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd, func(ctx context.Context, c *client) error {
				r, err := c.cluster.GetInfo(ctx, &mayflyv1.GetInfoRequest{})
				if err != nil {
					return err
				}
				return a.print(r, details(
					"version", r.GetMayflyVersion(), "cluster", r.GetClusterId(),
					"node", fmt.Sprintf("%s (%s)", r.GetNodeName(), r.GetNodeId()), "leader", yesNo(r.GetLeader()),
					"http", r.GetHttpUrl(), "applied index", strconv.FormatUint(r.GetAppliedIndex(), 10)))
			})
		},
	}
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func (a *App) settingsCommand() *cobra.Command {
	return group("settings", "Show and change what belongs to the whole cluster", a.settingsGet(), a.settingsUpdate())
}

func settingsDetails(s *mayflyv1.Settings) table {
	return details("region", s.GetRegion(), "url domain", s.GetUrlDomain(), "revision", strconv.FormatUint(s.GetMeta().GetRevision(), 10))
}

func (a *App) settingsGet() *cobra.Command {
	return &cobra.Command{
		Use: "get", Short: "Show the settings", Args: argsNamed(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd, func(ctx context.Context, c *client) error {
				r, err := c.cluster.GetSettings(ctx, &mayflyv1.GetSettingsRequest{})
				if err != nil {
					return err
				}
				return a.print(r, settingsDetails(r.GetSettings()))
			})
		},
	}
}

func (a *App) settingsUpdate() *cobra.Command {
	s := &mayflyv1.Settings{}
	var revision uint64
	cmd := &cobra.Command{
		Use: "update", Short: "Change the settings", Args: argsNamed(),
		Example: "  mayfly settings update --region eu-central-1 --url-domain faas.example.com",
	}
	cmd.Flags().StringVar(&s.Region, "region", "", "AWS region in ARNs and in functions' AWS_REGION")
	cmd.Flags().StringVar(&s.UrlDomain, "url-domain", "", "function URLs by host are NAME.fn.DOMAIN")
	revisionFlag(cmd, &revision)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if s.GetRegion() == "" && s.GetUrlDomain() == "" {
			return usagef("nothing to change: give --region or --url-domain")
		}
		return a.with(cmd, func(ctx context.Context, c *client) error {
			r, err := c.cluster.UpdateSettings(ctx, &mayflyv1.UpdateSettingsRequest{Settings: s, ExpectedRevision: revision})
			if err != nil {
				return err
			}
			return a.print(r, settingsDetails(r.GetSettings()))
		})
	}
	return cmd
}

func (a *App) clusterCommand() *cobra.Command {
	rotate := &cobra.Command{
		Use: "rotate-root-key", Short: "Seal all secrets with a new root key", Args: argsNamed(),
		Long: `Make a new root key and seal the secrets of access keys and the values of secrets with it; they themselves stay as they
are. Back up root.key again afterwards, and keep the old copy as long as you keep backups of the state from before.
If it is interrupted, run it again: it goes on where it ended. It needs a cluster of one control-plane node.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd, func(ctx context.Context, c *client) error {
				r, err := c.cluster.RotateRootKey(ctx, &mayflyv1.RotateRootKeyRequest{})
				if err != nil {
					return err
				}
				return a.changed(r, r.GetRootKeyId(), "Sealed %d access keys and %d secrets with root key %s",
					r.GetAccessKeys(), r.GetSecrets(), r.GetRootKeyId())
			})
		},
	}
	return group("cluster", "Look after the cluster as a whole", rotate)
}
