package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// RuntimeBuild is which images of runtimes to build.
type RuntimeBuild struct {
	// Dir is where images are kept.
	Dir string
	// Names are runtimes such as "python3.11".
	Names []string
	// Force builds anew what is there already.
	Force bool
}

// RuntimeProgress is how far a build is.
type RuntimeProgress struct {
	Runtime string
	// Step is what is done now, for people.
	Step string
	// Fraction of this runtime's whole build that is done: 0 to 1.
	Fraction float64
}

// LocalRuntime is an image of a runtime on this machine.
type LocalRuntime struct {
	Name      string    `json:"name"`
	Version   string    `json:"version"`
	Digest    string    `json:"digest"`
	SizeBytes int64     `json:"sizeBytes"`
	BuiltAt   time.Time `json:"builtAt"`
	// Cached tells that it was there before.
	Cached bool `json:"cached"`
}

func (a *App) runtimeCommand() *cobra.Command {
	return group("runtime", "Show and build the images that functions run on", a.runtimeList(), a.runtimeBuild())
}

func (a *App) runtimeList() *cobra.Command {
	var local bool
	var dir string
	cmd := &cobra.Command{
		Use: "list", Short: "List runtimes and the nodes that have them", Args: argsNamed(),
		Example: "  mayfly runtime list\n  mayfly runtime list --local",
	}
	cmd.Flags().BoolVar(&local, "local", false, "list the images on this machine, without asking the cluster")
	cmd.Flags().StringVar(&dir, "runtimes-dir", defaultRuntimesDir(defaultStateDir), "where this machine's images are")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if local {
			return a.listLocal(cmd.Context(), dir)
		}
		return a.with(cmd, func(ctx context.Context, c *client) error {
			r, err := c.cluster.ListRuntimes(ctx, &mayflyv1.ListRuntimesRequest{})
			if err != nil {
				return err
			}
			t := table{header: []string{"RUNTIME", "VERSION", "DIGEST", "SIZE", "AGE", "BUILT", "NODES"}}
			for _, i := range r.GetRuntimes() {
				t.rows = append(t.rows, []string{
					i.GetRuntime(), orDash(i.GetVersion()), shortDigest(i.GetDigest()), sizeOf(i.GetSizeBytes()),
					ageOf(i.GetBuiltAt().AsTime(), a.Now()), timeOf(i.GetBuiltAt()), strings.Join(i.GetNodes(), " "),
				})
			}
			return a.print(r, t)
		})
	}
	return cmd
}

func (a *App) listLocal(ctx context.Context, dir string) error {
	images, err := a.ListLocalRuntimes(ctx, dir)
	if err != nil {
		return err
	}
	return a.printLocal(images)
}

func (a *App) printLocal(images []LocalRuntime) error {
	t := table{header: []string{"RUNTIME", "VERSION", "DIGEST", "SIZE", "AGE", "BUILT"}}
	for _, i := range images {
		t.rows = append(t.rows, []string{
			i.Name, orDash(i.Version), shortDigest(i.Digest), sizeOf(i.SizeBytes),
			ageOf(i.BuiltAt, a.Now()), i.BuiltAt.UTC().Format(time.RFC3339),
		})
	}
	return a.printValue(map[string]any{"runtimes": images}, t)
}

func (a *App) runtimeBuild() *cobra.Command {
	var build RuntimeBuild
	var all bool
	var stateDir string
	cmd := &cobra.Command{
		Use: "build [RUNTIME…]", Short: "Build images of runtimes on this machine, from Debian packages",
		Long: `Build images of runtimes on this machine, from Debian packages. What is there already is not built again.
A runtime that no node has is also built when the first function asks for it. A new build is used by new sandboxes;
running ones stay on theirs, and the agent removes an image once nothing uses it.

It needs root and mmdebstrap: see ` + "`mayfly doctor`.",
		Example:           "  mayfly runtime build --all\n  mayfly runtime build python3.11 --force",
		ValidArgsFunction: cobra.FixedCompletions(runtimeNames, cobra.ShellCompDirectiveNoFileComp),
	}
	cmd.Flags().BoolVar(&all, "all", false, "build every runtime")
	cmd.Flags().BoolVar(&build.Force, "force", false, "build anew what is there already")
	cmd.Flags().StringVar(&stateDir, "state-dir", defaultStateDir, "where the node's state is")
	cmd.Flags().StringVar(&build.Dir, "runtimes-dir", "", "where images are kept (default STATE/agent/runtimes)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if all == (len(args) > 0) {
			return usagef("name the runtimes to build (%s), or give --all", strings.Join(runtimeNames, ", "))
		}
		if err := a.needRoot("building runtime images"); err != nil {
			return err
		}
		build.Names = args
		if all {
			build.Names = runtimeNames
		}
		if build.Dir == "" {
			build.Dir = defaultRuntimesDir(stateDir)
		}
		return a.build(cmd.Context(), build)
	}
	return cmd
}

func (a *App) build(ctx context.Context, build RuntimeBuild) error {
	s := newSteps(a, len(build.Names))
	images, err := a.BuildRuntimes(ctx, build, s.show)
	s.finish()
	if err != nil {
		return fmt.Errorf("build runtime images: %w", err)
	}
	return a.printLocal(images)
}

func defaultRuntimesDir(stateDir string) string {
	return filepath.Join(stateDir, "agent", "runtimes")
}
