package cli

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func (a *App) namespaceCommand() *cobra.Command {
	return group("namespace", "Keep tenants apart",
		a.namespaceList(), a.namespaceGet(), a.namespaceCreate(), a.namespaceUpdate(), a.namespaceDelete())
}

func (a *App) namespaceList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List namespaces", Args: argsNamed(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd, func(ctx context.Context, c *client) error {
				all, err := allPages(func(token string) ([]*mayflyv1.Namespace, string, error) {
					r, err := c.namespaces.ListNamespaces(ctx, &mayflyv1.ListNamespacesRequest{PageSize: pageSize, PageToken: token})
					return r.GetNamespaces(), r.GetNextPageToken(), err
				})
				if err != nil {
					return err
				}
				return a.print(&mayflyv1.ListNamespacesResponse{Namespaces: all}, namespaceTable(all))
			})
		},
	}
}

func namespaceTable(all []*mayflyv1.Namespace) table {
	t := table{header: []string{"NAME", "ACCOUNT", "FUNCTIONS", "CONCURRENCY", "CODE"}}
	for _, n := range all {
		q := n.GetQuotas()
		t.rows = append(t.rows, []string{
			n.GetName(), n.GetAccountId(), fmt.Sprint(q.GetFunctions()), fmt.Sprint(q.GetConcurrency()), sizeOf(q.GetCodeBytes()),
		})
	}
	return t
}

func namespaceDetails(n *mayflyv1.Namespace) table {
	q := n.GetQuotas()
	return details(
		"name", n.GetName(), "account", n.GetAccountId(),
		"functions", "at most "+fmt.Sprint(q.GetFunctions()),
		"concurrency", "at most "+fmt.Sprint(q.GetConcurrency()),
		"secrets", secretsQuota(q),
		"code", "at most "+sizeOf(q.GetCodeBytes()),
		"egress", atMost(q.GetMaxEgress()),
		"revision", strconv.FormatUint(n.GetMeta().GetRevision(), 10),
		"created", timeOf(n.GetMeta().GetCreatedAt()),
	)
}

// secretsQuota is empty for a namespace that is older than the quota: it has the default.
func secretsQuota(q *mayflyv1.Quotas) string {
	if q.GetSecrets() == 0 {
		return ""
	}
	return "at most " + fmt.Sprint(q.GetSecrets())
}

func (a *App) namespaceGet() *cobra.Command {
	return &cobra.Command{
		Use: "get NAME", Short: "Show a namespace", Args: argsNamed("NAME"), ValidArgsFunction: a.completeNamespaces,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd, func(ctx context.Context, c *client) error {
				r, err := c.namespaces.GetNamespace(ctx, &mayflyv1.GetNamespaceRequest{Name: args[0]})
				if err != nil {
					return err
				}
				return a.print(r, namespaceDetails(r.GetNamespace()))
			})
		},
	}
}

func atMost(p mayflyv1.EgressPolicy) string {
	if p == mayflyv1.EgressPolicy_EGRESS_POLICY_UNSPECIFIED {
		p = mayflyv1.EgressPolicy_EGRESS_POLICY_ALL
	}
	return "at most " + egressName(p)
}

// quotaFlags are the flags of a namespace's quotas.
func quotaFlags(cmd *cobra.Command, q *mayflyv1.Quotas) {
	cmd.Flags().Int32Var(&q.Functions, "functions", 0, "how many functions it may have (default 10000)")
	cmd.Flags().Int32Var(&q.Concurrency, "concurrency", 0, "how many invocations may run at once (default 1000)")
	cmd.Flags().Int32Var(&q.Secrets, "secrets", 0, "how many secrets it may have (default 1000)")
	cmd.Flags().Var((*byteSize)(&q.CodeBytes), "code", "how large its packages may be together, such as 10GiB (default 75GiB)")
	cmd.Flags().Var((*egressFlag)(&q.MaxEgress), "max-egress", "the widest egress policy its functions may be given: none, internet or all (default all)")
}

func (a *App) namespaceCreate() *cobra.Command {
	q := &mayflyv1.Quotas{}
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create a namespace", Args: argsNamed("NAME"),
		Example: "  mayfly namespace create team-a --concurrency 100",
	}
	quotaFlags(cmd, q)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.with(cmd, func(ctx context.Context, c *client) error {
			r, err := c.namespaces.CreateNamespace(ctx, &mayflyv1.CreateNamespaceRequest{Name: args[0], Quotas: q})
			if err != nil {
				return err
			}
			return a.changed(r, args[0], "Created namespace %s (account %s)", args[0], r.GetNamespace().GetAccountId())
		})
	}
	return cmd
}

func (a *App) namespaceUpdate() *cobra.Command {
	q := &mayflyv1.Quotas{}
	var revision uint64
	cmd := &cobra.Command{
		Use: "update NAME", Short: "Change a namespace's quotas", Args: argsNamed("NAME"), ValidArgsFunction: a.completeNamespaces,
	}
	quotaFlags(cmd, q)
	revisionFlag(cmd, &revision)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if q.GetFunctions() == 0 && q.GetConcurrency() == 0 && q.GetCodeBytes() == 0 && q.GetSecrets() == 0 && q.GetMaxEgress() == 0 {
			return usagef("nothing to change: give --functions, --concurrency, --code, --secrets or --max-egress")
		}
		return a.with(cmd, func(ctx context.Context, c *client) error {
			r, err := c.namespaces.UpdateNamespace(ctx, &mayflyv1.UpdateNamespaceRequest{Name: args[0], Quotas: q, ExpectedRevision: revision})
			if err != nil {
				return err
			}
			return a.changed(r, args[0], "Updated namespace %s", args[0])
		})
	}
	return cmd
}

func (a *App) namespaceDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME", Short: "Delete an empty namespace", Args: argsNamed("NAME"), ValidArgsFunction: a.completeNamespaces,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd, func(ctx context.Context, c *client) error {
				r, err := c.namespaces.DeleteNamespace(ctx, &mayflyv1.DeleteNamespaceRequest{Name: args[0]})
				if err != nil {
					return err
				}
				return a.changed(r, args[0], "Deleted namespace %s", args[0])
			})
		},
	}
}
