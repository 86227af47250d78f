package cli

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const pageSize = 500

func (a *App) functionCommand() *cobra.Command {
	return group("function", "Show and change functions",
		a.functionList(), a.functionGet(), a.functionUpdate(), a.functionDelete(), a.functionDownload(),
		a.functionConcurrency(), a.functionURL())
}

func (a *App) functionList() *cobra.Command {
	req := &mayflyv1.ListFunctionsRequest{PageSize: pageSize}
	cmd := &cobra.Command{
		Use: "list", Short: "List functions", Args: argsNamed(),
		Example: "  mayfly function list\n  mayfly function list --prefix shop- --tag team=payments",
	}
	cmd.Flags().StringVar(&req.NamePrefix, "prefix", "", "only names that begin so")
	cmd.Flags().StringVar(&req.Runtime, "runtime", "", "only this runtime")
	cmd.Flags().StringToStringVar(&req.Tags, "tag", nil, "only with this tag KEY=VALUE (repeatable: all must match)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.with(cmd, func(ctx context.Context, c *client) error {
			req.Namespace = c.namespace
			functions, err := allPages(func(token string) ([]*mayflyv1.Function, string, error) {
				req.PageToken = token
				r, err := c.functions.ListFunctions(ctx, req)
				return r.GetFunctions(), r.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			return a.print(&mayflyv1.ListFunctionsResponse{Functions: functions}, functionTable(functions))
		})
	}
	return cmd
}

func functionTable(functions []*mayflyv1.Function) table {
	t := table{header: []string{"NAME", "RUNTIME", "HANDLER", "MEMORY", "TIMEOUT", "STATE", "UPDATED"}}
	for _, f := range functions {
		c := f.GetConfiguration()
		t.rows = append(t.rows, []string{
			f.GetName(), c.GetRuntime(), c.GetHandler(), fmt.Sprintf("%d MB", c.GetMemoryMb()), durationOf(c.GetTimeout()),
			functionState(f), timeOf(f.GetMeta().GetUpdatedAt()),
		})
	}
	return t
}

func functionState(f *mayflyv1.Function) string {
	return stateName(f.GetState(), "FUNCTION_STATE_")
}

func (a *App) functionGet() *cobra.Command {
	return &cobra.Command{
		Use: "get NAME", Short: "Show a function", Args: argsNamed("NAME"), ValidArgsFunction: a.completeFunctions,
		Example: "  mayfly function get hello\n  mayfly function get hello --output json",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd, func(ctx context.Context, c *client) error {
				r, err := c.functions.GetFunction(ctx, &mayflyv1.GetFunctionRequest{Namespace: c.namespace, Name: args[0]})
				if err != nil {
					return err
				}
				return a.print(r, functionDetails(r.GetFunction(), r.GetUrl()))
			})
		},
	}
}

func functionDetails(f *mayflyv1.Function, url string) table {
	c := f.GetConfiguration()
	return details(
		"name", f.GetName(),
		"namespace", f.GetNamespace(),
		"arn", f.GetArn(),
		"state", functionState(f),
		"reason", f.GetStateReason(),
		"runtime", c.GetRuntime(),
		"handler", c.GetHandler(),
		"description", c.GetDescription(),
		"memory", fmt.Sprintf("%d MB", c.GetMemoryMb()),
		"timeout", durationOf(c.GetTimeout()),
		"egress", cmp.Or(egressName(c.GetEgress()), "internet"),
		"environment", pairs(c.GetEnvironment()),
		"secrets", secretsText(c),
		"tags", pairs(f.GetTags()),
		"code", f.GetCode().GetDigest(),
		"code size", sizeOf(f.GetCode().GetSizeBytes()),
		"concurrency", reserved(f),
		"last version", strconv.FormatInt(f.GetLastVersion(), 10),
		"url", url,
		"url auth", urlAuth(f.GetUrl()),
		"revision", strconv.FormatUint(f.GetMeta().GetRevision(), 10),
		"updated", timeOf(f.GetMeta().GetUpdatedAt()),
	)
}

// details is a table of names and values without header; what is empty is left out.
func details(pairs ...string) table {
	var t table
	for p := range slices.Chunk(pairs, 2) {
		if p[1] != "" {
			t.rows = append(t.rows, []string{p[0], p[1]})
		}
	}
	return t
}

func pairs(m map[string]string) string {
	var all []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		all = append(all, k+"="+m[k])
	}
	return strings.Join(all, " ")
}

func reserved(f *mayflyv1.Function) string {
	if f.ReservedConcurrency == nil {
		return ""
	}
	return fmt.Sprintf("%d reserved", f.GetReservedConcurrency())
}

func (a *App) functionDelete() *cobra.Command {
	var revision uint64
	cmd := &cobra.Command{
		Use: "delete NAME", Short: "Delete a function with its versions and aliases",
		Args: argsNamed("NAME"), ValidArgsFunction: a.completeFunctions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd, func(ctx context.Context, c *client) error {
				r, err := c.functions.DeleteFunction(ctx, &mayflyv1.DeleteFunctionRequest{
					Namespace: c.namespace, Name: args[0], ExpectedRevision: revision,
				})
				if err != nil {
					return err
				}
				return a.changed(r, args[0], "Deleted function %s", args[0])
			})
		},
	}
	revisionFlag(cmd, &revision)
	return cmd
}

func revisionFlag(cmd *cobra.Command, revision *uint64) {
	cmd.Flags().Uint64Var(revision, "expected-revision", 0, "only if this is still the revision (0: whatever it is)")
}

func (a *App) functionConcurrency() *cobra.Command {
	set := &cobra.Command{
		Use: "set NAME N", Short: "Reserve concurrency for a function, which is its limit too; 0 stops it",
		Args: argsNamed("NAME", "N"), ValidArgsFunction: a.completeFunctions,
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := strconv.ParseInt(args[1], 10, 32)
			if err != nil || n < 0 {
				return usagef("N must be a number from 0, it is %q", args[1])
			}
			return a.with(cmd, func(ctx context.Context, c *client) error {
				r, err := c.functions.PutFunctionConcurrency(ctx, &mayflyv1.PutFunctionConcurrencyRequest{
					Namespace: c.namespace, Name: args[0], ReservedConcurrency: int32(n),
				})
				if err != nil {
					return err
				}
				return a.changed(r, args[0], "Reserved a concurrency of %d for %s", n, args[0])
			})
		},
	}
	remove := &cobra.Command{
		Use: "delete NAME", Short: "Let a function share the namespace's concurrency",
		Args: argsNamed("NAME"), ValidArgsFunction: a.completeFunctions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd, func(ctx context.Context, c *client) error {
				r, err := c.functions.DeleteFunctionConcurrency(ctx, &mayflyv1.DeleteFunctionConcurrencyRequest{
					Namespace: c.namespace, Name: args[0],
				})
				if err != nil {
					return err
				}
				return a.changed(r, args[0], "%s shares the namespace's concurrency", args[0])
			})
		},
	}
	return group("concurrency", "Reserve concurrency for a function", set, remove)
}
