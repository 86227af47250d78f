package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// completeTimeout is how long a shell waits for names.
const completeTimeout = 2 * time.Second

// complete asks the API for names for the argument at position; what goes wrong completes nothing.
func (a *App) complete(cmd *cobra.Command, args []string, position int, names func(context.Context, *client) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	if len(args) != position {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
	defer cancel()
	cmd.SetContext(ctx)
	var found []string
	err := a.with(cmd, func(ctx context.Context, c *client) (err error) {
		found, err = names(ctx, c)
		return err
	})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return found, cobra.ShellCompDirectiveNoFileComp
}

func (a *App) completeFunctions(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return a.complete(cmd, args, 0, func(ctx context.Context, c *client) ([]string, error) {
		r, err := c.functions.ListFunctions(ctx, &mayflyv1.ListFunctionsRequest{Namespace: c.namespace, NamePrefix: prefix, PageSize: pageSize})
		return namesOf(r.GetFunctions()), err
	})
}

func (a *App) completeAliases(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return a.completeFunctions(cmd, args, prefix)
	}
	return a.complete(cmd, args, 1, func(ctx context.Context, c *client) ([]string, error) {
		r, err := c.aliases.ListAliases(ctx, &mayflyv1.ListAliasesRequest{Namespace: c.namespace, Function: args[0], PageSize: pageSize})
		return namesOf(r.GetAliases()), err
	})
}

func (a *App) completeNodes(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(cmd, args, 0, func(ctx context.Context, c *client) ([]string, error) {
		r, err := c.nodes.ListNodes(ctx, &mayflyv1.ListNodesRequest{})
		return namesOf(r.GetNodes()), err
	})
}

func (a *App) completeNamespaces(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(cmd, args, 0, func(ctx context.Context, c *client) ([]string, error) {
		r, err := c.namespaces.ListNamespaces(ctx, &mayflyv1.ListNamespacesRequest{PageSize: pageSize})
		return namesOf(r.GetNamespaces()), err
	})
}

func (a *App) completeKeys(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(cmd, args, 0, func(ctx context.Context, c *client) ([]string, error) {
		r, err := c.keys.ListAccessKeys(ctx, &mayflyv1.ListAccessKeysRequest{PageSize: pageSize})
		var ids []string
		for _, k := range r.GetAccessKeys() {
			ids = append(ids, k.GetId())
		}
		return ids, err
	})
}

func (a *App) completeSecrets(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(cmd, args, 0, listSecrets)
}

// completeSecretFlag is for a flag, whatever arguments stand before it.
func (a *App) completeSecretFlag(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(cmd, nil, 0, listSecrets)
}

func listSecrets(ctx context.Context, c *client) ([]string, error) {
	r, err := c.secrets.ListSecrets(ctx, &mayflyv1.ListSecretsRequest{Namespace: c.namespace, PageSize: pageSize})
	return namesOf(r.GetSecrets()), err
}

func (a *App) completeContexts(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	f, _, err := a.contexts()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return f.Names(), cobra.ShellCompDirectiveNoFileComp
}

func namesOf[T interface{ GetName() string }](all []T) []string {
	var names []string
	for _, x := range all {
		names = append(names, x.GetName())
	}
	return names
}
