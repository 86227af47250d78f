package cli

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/mayfly-faas/mayfly/cli/config"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

var roleNames = []string{"reader", "invoker", "developer", "admin"}

func roleOf(s string) (mayflyv1.Role, error) {
	role, ok := mayflyv1.Role_value["ROLE_"+strings.ToUpper(s)]
	if !ok || role == 0 {
		return 0, usagef("the role %q is none of %s", s, strings.Join(roleNames, ", "))
	}
	return mayflyv1.Role(role), nil
}

func roleText(r mayflyv1.Role) string { return strings.ToLower(enumName(r, "ROLE_")) }

func (a *App) keyCommand() *cobra.Command {
	return group("key", "Hand out access keys",
		a.keyList(), a.keyCreate(), a.keyUpdate(), a.keyDelete(), a.keyWhoami())
}

func (a *App) keyList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List access keys, of --namespace or of all", Args: argsNamed(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd, func(ctx context.Context, c *client) error {
				keys, err := allPages(func(token string) ([]*mayflyv1.AccessKey, string, error) {
					r, err := c.keys.ListAccessKeys(ctx, &mayflyv1.ListAccessKeysRequest{
						Namespace: a.global.Namespace, PageSize: pageSize, PageToken: token,
					})
					return r.GetAccessKeys(), r.GetNextPageToken(), err
				})
				if err != nil {
					return err
				}
				return a.print(&mayflyv1.ListAccessKeysResponse{AccessKeys: keys}, keyTable(keys))
			})
		},
	}
}

func keyTable(keys []*mayflyv1.AccessKey) table {
	t := table{header: []string{"ID", "NAMESPACE", "ROLE", "STATE", "CREATED", "EXPIRES", "DESCRIPTION"}}
	for _, k := range keys {
		t.rows = append(t.rows, []string{
			k.GetId(), k.GetNamespace(), roleText(k.GetRole()), keyState(k), timeOf(k.GetMeta().GetCreatedAt()), timeOf(k.GetExpiresAt()), k.GetDescription(),
		})
	}
	return t
}

func keyState(k *mayflyv1.AccessKey) string {
	if k.GetDisabled() {
		return "Disabled"
	}
	return "Active"
}

func (a *App) keyCreate() *cobra.Command {
	var role, description, saveAs string
	var expires time.Duration
	cmd := &cobra.Command{
		Use: "create --role ROLE", Short: "Create an access key; its secret is shown once",
		Long: `Create an access key; its secret is shown once. It belongs to --namespace (* for all), and its role is one of
  reader     reads functions and logs
  invoker    invokes functions
  developer  both, and changes functions, versions and aliases
  admin      everything`,
		Example: "  mayfly key create --role developer --namespace team-a --description laptop\n  mayfly key create --role invoker --expires-in 24h --save-as ci",
		Args:    argsNamed(),
	}
	cmd.Flags().StringVar(&role, "role", "", "role: reader, invoker, developer or admin")
	cmd.Flags().StringVar(&description, "description", "", "what it is for")
	cmd.Flags().DurationVar(&expires, "expires-in", 0, "how long it is valid (default: for ever)")
	cmd.Flags().StringVar(&saveAs, "save-as", "", "keep it as a context of this name, too")
	must(cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(roleNames, cobra.ShellCompDirectiveNoFileComp)))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if role == "" {
			return usagef("--role is missing: one of %s", strings.Join(roleNames, ", "))
		}
		r, err := roleOf(role)
		if err != nil {
			return err
		}
		req := &mayflyv1.CreateAccessKeyRequest{Role: r, Description: description}
		if expires != 0 {
			req.ExpiresAt = timestamppb.New(a.Now().Add(expires))
		}
		return a.with(cmd, func(ctx context.Context, c *client) error {
			req.Namespace = c.namespace
			resp, err := c.keys.CreateAccessKey(ctx, req)
			if err != nil {
				return err
			}
			return a.keyCreated(resp, saveAs)
		})
	}
	return cmd
}

func (a *App) keyCreated(r *mayflyv1.CreateAccessKeyResponse, saveAs string) error {
	k := r.GetAccessKey()
	if err := a.print(r, details(
		"id", k.GetId(), "secret", r.GetSecret(), "namespace", k.GetNamespace(), "role", roleText(k.GetRole()))); err != nil {
		return err
	}
	if saveAs == "" {
		a.note("The secret is not shown again.")
		return nil
	}
	c, err := a.context()
	if err != nil {
		return err
	}
	c.AccessKeyID, c.SecretAccessKey, c.Namespace = k.GetId(), r.GetSecret(), ""
	if k.GetNamespace() != "*" {
		c.Namespace = k.GetNamespace()
	}
	return a.changeContexts(func(f *config.File) error {
		f.Contexts[saveAs] = c
		return nil
	})
}

func (a *App) keyUpdate() *cobra.Command {
	req := &mayflyv1.UpdateAccessKeyRequest{}
	var role, description string
	var disable, enable bool
	cmd := &cobra.Command{
		Use: "update ID", Short: "Disable or enable a key, or change its role", Args: argsNamed("ID"), ValidArgsFunction: a.completeKeys,
		Example: "  mayfly key update AKIA… --disable",
	}
	cmd.Flags().BoolVar(&disable, "disable", false, "refuse calls with it from now on")
	cmd.Flags().BoolVar(&enable, "enable", false, "allow them again")
	cmd.Flags().StringVar(&role, "role", "", "role: reader, invoker, developer or admin")
	cmd.Flags().StringVar(&description, "description", "", "what it is for")
	revisionFlag(cmd, &req.ExpectedRevision)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if disable == enable && role == "" && !cmd.Flags().Changed("description") {
			return usagef("nothing to change: give --disable or --enable, --role or --description")
		}
		req.Id = args[0]
		if disable != enable {
			req.Disabled = &disable
		}
		if cmd.Flags().Changed("description") {
			req.Description = &description
		}
		if role != "" {
			r, err := roleOf(role)
			if err != nil {
				return err
			}
			req.Role = r
		}
		return a.with(cmd, func(ctx context.Context, c *client) error {
			r, err := c.keys.UpdateAccessKey(ctx, req)
			if err != nil {
				return err
			}
			k := r.GetAccessKey()
			return a.changed(r, args[0], "Updated key %s (%s, %s)", args[0], roleText(k.GetRole()), strings.ToLower(keyState(k)))
		})
	}
	return cmd
}

func (a *App) keyDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete ID", Short: "Delete an access key", Args: argsNamed("ID"), ValidArgsFunction: a.completeKeys,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd, func(ctx context.Context, c *client) error {
				r, err := c.keys.DeleteAccessKey(ctx, &mayflyv1.DeleteAccessKeyRequest{Id: args[0]})
				if err != nil {
					return err
				}
				return a.changed(r, args[0], "Deleted key %s", args[0])
			})
		},
	}
}

func (a *App) keyWhoami() *cobra.Command {
	return &cobra.Command{
		Use: "whoami", Short: "Show the key that this context uses", Args: argsNamed(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd, func(ctx context.Context, c *client) error {
				r, err := c.keys.GetCallerIdentity(ctx, &mayflyv1.GetCallerIdentityRequest{})
				if err != nil {
					return err
				}
				k := r.GetAccessKey()
				return a.print(r, details(
					"id", k.GetId(), "namespace", k.GetNamespace(), "role", roleText(k.GetRole()), "description", k.GetDescription(),
					"expires", timeOf(k.GetExpiresAt()), "revision", strconv.FormatUint(k.GetMeta().GetRevision(), 10)))
			})
		},
	}
}
