package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func (a *App) aliasCommand() *cobra.Command {
	return group("alias", "Name versions and shift traffic between them",
		a.aliasList(), a.aliasGet(), a.aliasCreate(), a.aliasUpdate(), a.aliasDelete())
}

func (a *App) aliasList() *cobra.Command {
	req := &mayflyv1.ListAliasesRequest{PageSize: pageSize}
	cmd := &cobra.Command{
		Use: "list FUNCTION", Short: "List a function's aliases", Args: argsNamed("FUNCTION"), ValidArgsFunction: a.completeFunctions,
	}
	cmd.Flags().StringVar(&req.Version, "version", "", "only those that name this version")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.with(cmd, func(ctx context.Context, c *client) error {
			req.Namespace, req.Function = c.namespace, args[0]
			aliases, err := allPages(func(token string) ([]*mayflyv1.Alias, string, error) {
				req.PageToken = token
				r, err := c.aliases.ListAliases(ctx, req)
				return r.GetAliases(), r.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			return a.print(&mayflyv1.ListAliasesResponse{Aliases: aliases}, aliasTable(aliases))
		})
	}
	return cmd
}

func aliasTable(aliases []*mayflyv1.Alias) table {
	t := table{header: []string{"NAME", "VERSION", "WEIGHTS", "UPDATED", "DESCRIPTION"}}
	for _, al := range aliases {
		t.rows = append(t.rows, []string{
			al.GetName(), al.GetVersion(), orDash(weightsText(al.GetWeights())), timeOf(al.GetMeta().GetUpdatedAt()), al.GetDescription(),
		})
	}
	return t
}

func weightsText(w map[string]float64) string {
	var all []string
	for _, v := range slices.Sorted(maps.Keys(w)) {
		all = append(all, fmt.Sprintf("%s=%g", v, w[v]))
	}
	return strings.Join(all, " ")
}

func weightsOf(flags map[string]string) (map[string]float64, error) {
	weights := map[string]float64{}
	for version, share := range flags {
		w, err := strconv.ParseFloat(share, 64)
		if err != nil || w < 0 || w > 1 {
			return nil, usagef("--weight %s=%s: a weight is a number from 0 to 1", version, share)
		}
		weights[version] = w
	}
	return weights, nil
}

func (a *App) aliasGet() *cobra.Command {
	return &cobra.Command{
		Use: "get FUNCTION ALIAS", Short: "Show an alias", Args: argsNamed("FUNCTION", "ALIAS"), ValidArgsFunction: a.completeAliases,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd, func(ctx context.Context, c *client) error {
				r, err := c.aliases.GetAlias(ctx, &mayflyv1.GetAliasRequest{Namespace: c.namespace, Function: args[0], Name: args[1]})
				if err != nil {
					return err
				}
				al := r.GetAlias()
				return a.print(r, details(
					"alias", al.GetName(), "function", al.GetFunction(), "arn", al.GetArn(), "version", al.GetVersion(),
					"weights", weightsText(al.GetWeights()), "description", al.GetDescription(),
					"revision", strconv.FormatUint(al.GetMeta().GetRevision(), 10), "updated", timeOf(al.GetMeta().GetUpdatedAt())))
			})
		},
	}
}

func (a *App) aliasCreate() *cobra.Command {
	req := &mayflyv1.CreateAliasRequest{}
	var weights map[string]string
	cmd := &cobra.Command{
		Use: "create FUNCTION ALIAS --version N", Short: "Create an alias",
		Example: "  mayfly alias create hello live --version 3\n  mayfly alias create hello canary --version 3 --weight 4=0.1",
		Args:    argsNamed("FUNCTION", "ALIAS"), ValidArgsFunction: a.completeFunctions,
	}
	cmd.Flags().StringVar(&req.Version, "version", "", "version that it names, or $LATEST")
	cmd.Flags().StringVar(&req.Description, "description", "", "description for people")
	cmd.Flags().StringToStringVar(&weights, "weight", nil, "share VERSION=0..1 of invocations that another version gets (repeatable)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if req.GetVersion() == "" {
			return usagef("--version is missing: which version should %s name?", args[1])
		}
		w, err := weightsOf(weights)
		if err != nil {
			return err
		}
		return a.with(cmd, func(ctx context.Context, c *client) error {
			req.Namespace, req.Function, req.Name, req.Weights = c.namespace, args[0], args[1], w
			r, err := c.aliases.CreateAlias(ctx, req)
			if err != nil {
				return err
			}
			return a.changed(r, args[1], "Created alias %s of %s", args[1], args[0])
		})
	}
	return cmd
}

func (a *App) aliasUpdate() *cobra.Command {
	req := &mayflyv1.UpdateAliasRequest{}
	var weights map[string]string
	var noWeights bool
	cmd := &cobra.Command{
		Use: "update FUNCTION ALIAS", Short: "Point an alias elsewhere, or shift traffic",
		Example: "  mayfly alias update hello live --weight 4=0.5\n  mayfly alias update hello live --version 4 --clear-weights",
		Args:    argsNamed("FUNCTION", "ALIAS"), ValidArgsFunction: a.completeAliases,
	}
	cmd.Flags().StringVar(&req.Version, "version", "", "version that it names")
	cmd.Flags().StringVar(&req.Description, "description", "", "description for people")
	cmd.Flags().StringToStringVar(&weights, "weight", nil, "share VERSION=0..1 of another version (repeatable); the given ones replace all")
	cmd.Flags().BoolVar(&noWeights, "clear-weights", false, "send everything to the alias's own version")
	revisionFlag(cmd, &req.ExpectedRevision)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		w, err := weightsOf(weights)
		if err != nil {
			return err
		}
		if noWeights && len(w) > 0 {
			return usagef("--weight and --clear-weights exclude each other")
		}
		req.Weights = w
		if noWeights || len(w) > 0 {
			req.Replace = append(req.Replace, "weights")
		}
		if cmd.Flags().Changed("description") {
			req.Replace = append(req.Replace, "description")
		}
		if req.GetVersion() == "" && len(req.GetReplace()) == 0 {
			return usagef("nothing to change: give --version, --weight, --clear-weights or --description")
		}
		return a.with(cmd, func(ctx context.Context, c *client) error {
			req.Namespace, req.Function, req.Name = c.namespace, args[0], args[1]
			r, err := c.aliases.UpdateAlias(ctx, req)
			if err != nil {
				return err
			}
			return a.changed(r, args[1], "Updated alias %s of %s", args[1], args[0])
		})
	}
	return cmd
}

func (a *App) aliasDelete() *cobra.Command {
	var revision uint64
	cmd := &cobra.Command{
		Use: "delete FUNCTION ALIAS", Short: "Delete an alias", Args: argsNamed("FUNCTION", "ALIAS"), ValidArgsFunction: a.completeAliases,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd, func(ctx context.Context, c *client) error {
				r, err := c.aliases.DeleteAlias(ctx, &mayflyv1.DeleteAliasRequest{
					Namespace: c.namespace, Function: args[0], Name: args[1], ExpectedRevision: revision,
				})
				if err != nil {
					return err
				}
				return a.changed(r, args[1], "Deleted alias %s of %s", args[1], args[0])
			})
		},
	}
	revisionFlag(cmd, &revision)
	return cmd
}
