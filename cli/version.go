package cli

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// versionCommand alone prints the binary's version; its subcommands are about versions of functions.
func (a *App) versionCommand() *cobra.Command {
	cmd := group("version", "Print Mayfly's version, or publish and show versions of functions",
		a.versionList(), a.versionGet(), a.versionPublish(), a.versionDelete())
	cmd.Example = "  mayfly version\n  mayfly version publish hello\n  mayfly version list hello"
	cmd.RunE = func(*cobra.Command, []string) error {
		return a.printValue(map[string]string{"version": a.Version}, table{rows: [][]string{{a.Version}}})
	}
	return cmd
}

func (a *App) versionList() *cobra.Command {
	return &cobra.Command{
		Use: "list FUNCTION", Short: "List a function's versions", Args: argsNamed("FUNCTION"), ValidArgsFunction: a.completeFunctions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd, func(ctx context.Context, c *client) error {
				versions, err := allPages(func(token string) ([]*mayflyv1.Version, string, error) {
					r, err := c.versions.ListVersions(ctx, &mayflyv1.ListVersionsRequest{
						Namespace: c.namespace, Function: args[0], PageSize: pageSize, PageToken: token,
					})
					return r.GetVersions(), r.GetNextPageToken(), err
				})
				if err != nil {
					return err
				}
				return a.print(&mayflyv1.ListVersionsResponse{Versions: versions}, versionTable(versions))
			})
		},
	}
}

func versionTable(versions []*mayflyv1.Version) table {
	t := table{header: []string{"VERSION", "RUNTIME", "CODE", "PUBLISHED", "DESCRIPTION"}}
	for _, v := range versions {
		t.rows = append(t.rows, []string{
			strconv.FormatInt(v.GetNumber(), 10), v.GetConfiguration().GetRuntime(), shortDigest(v.GetCode().GetDigest()),
			timeOf(v.GetMeta().GetCreatedAt()), v.GetDescription(),
		})
	}
	return t
}

// shortDigest is enough of a digest to tell two apart.
func shortDigest(d string) string {
	if len(d) <= len("sha256:")+12 {
		return orDash(d)
	}
	return d[:len("sha256:")+12]
}

func versionNumber(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 1 {
		return 0, usagef("a version is a number from 1, %q is none", s)
	}
	return n, nil
}

func (a *App) versionGet() *cobra.Command {
	return &cobra.Command{
		Use: "get FUNCTION VERSION", Short: "Show a version", Args: argsNamed("FUNCTION", "VERSION"), ValidArgsFunction: a.completeFunctions,
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := versionNumber(args[1])
			if err != nil {
				return err
			}
			return a.with(cmd, func(ctx context.Context, c *client) error {
				r, err := c.versions.GetVersion(ctx, &mayflyv1.GetVersionRequest{Namespace: c.namespace, Function: args[0], Number: n})
				if err != nil {
					return err
				}
				return a.print(r, versionDetails(r.GetVersion()))
			})
		},
	}
}

func versionDetails(v *mayflyv1.Version) table {
	c := v.GetConfiguration()
	return details(
		"version", strconv.FormatInt(v.GetNumber(), 10),
		"function", v.GetFunction(),
		"arn", v.GetArn(),
		"description", v.GetDescription(),
		"runtime", c.GetRuntime(),
		"handler", c.GetHandler(),
		"memory", strconv.Itoa(int(c.GetMemoryMb()))+" MB",
		"timeout", durationOf(c.GetTimeout()),
		"environment", pairs(c.GetEnvironment()),
		"code", v.GetCode().GetDigest(),
		"code size", sizeOf(v.GetCode().GetSizeBytes()),
		"published", timeOf(v.GetMeta().GetCreatedAt()),
	)
}

func (a *App) versionPublish() *cobra.Command {
	req := &mayflyv1.PublishVersionRequest{}
	cmd := &cobra.Command{
		Use: "publish FUNCTION", Short: "Freeze a function's code and configuration as its next version",
		Long: "Freeze a function's code and configuration as its next version. When nothing changed since the last one, that is the answer.",
		Args: argsNamed("FUNCTION"), ValidArgsFunction: a.completeFunctions,
	}
	cmd.Flags().StringVar(&req.Description, "description", "", "description of the version")
	cmd.Flags().StringVar(&req.CodeDigest, "code-digest", "", "only if the code has this digest")
	revisionFlag(cmd, &req.ExpectedRevision)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.with(cmd, func(ctx context.Context, c *client) error {
			req.Namespace, req.Function = c.namespace, args[0]
			r, err := c.versions.PublishVersion(ctx, req)
			if err != nil {
				return err
			}
			n := strconv.FormatInt(r.GetVersion().GetNumber(), 10)
			return a.changed(r, n, "Version %s of %s", n, args[0])
		})
	}
	return cmd
}

func (a *App) versionDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete FUNCTION VERSION", Short: "Delete a version that no alias names",
		Args: argsNamed("FUNCTION", "VERSION"), ValidArgsFunction: a.completeFunctions,
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := versionNumber(args[1])
			if err != nil {
				return err
			}
			return a.with(cmd, func(ctx context.Context, c *client) error {
				r, err := c.versions.DeleteVersion(ctx, &mayflyv1.DeleteVersionRequest{Namespace: c.namespace, Function: args[0], Number: n})
				if err != nil {
					return err
				}
				return a.changed(r, args[1], "Deleted version %d of %s", n, args[0])
			})
		},
	}
}
