package cli

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/mayfly-faas/mayfly/cli/host"
)

func (a *App) doctorCommand() *cobra.Command {
	var install bool
	o := host.Options{Addresses: []string{"127.0.0.1:7070", "127.0.0.1:7071", "127.0.0.1:7080"}}
	cmd := &cobra.Command{
		Use: "doctor", Short: "Check whether this machine can run functions",
		Long: `Check whether this machine can run functions, and say what to do about what it lacks.

With --install, what is missing is installed by apt-get from the distribution's packages. What is there already
(Docker's containerd, say) is left alone, and no service is started.`,
		Example: "  mayfly doctor\n  sudo mayfly doctor --install",
		Args:    argsNamed(),
	}
	cmd.Flags().BoolVar(&install, "install", false, "install missing Debian packages (needs root)")
	cmd.Flags().StringVar(&o.StateDir, "state-dir", defaultStateDir, "where state will be")
	cmd.Flags().StringSliceVar(&o.Addresses, "address", o.Addresses, "addresses that must be free (empty: none)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if install {
			if err := a.install(cmd, o); err != nil {
				return err
			}
		}
		return a.diagnose(o)
	}
	return cmd
}

func (a *App) install(cmd *cobra.Command, o host.Options) error {
	packages := host.PackagesFor(host.Check(a.Host, o))
	if len(packages) == 0 {
		a.note("nothing to install")
		return nil
	}
	if err := a.needRoot("installing packages"); err != nil {
		return err
	}
	a.note("installing %v", packages)
	return a.InstallPackages(cmd.Context(), packages, a.Stderr)
}

func (a *App) diagnose(o host.Options) error {
	results := host.Check(a.Host, o)
	t := table{header: []string{"CHECK", "STATUS", "FOUND", "WHAT TO DO"}}
	for _, r := range results {
		t.rows = append(t.rows, []string{r.Check, string(r.Status), r.Found, r.Advice})
	}
	if err := a.printValue(map[string]any{"checks": results}, t); err != nil {
		return err
	}
	if slices.ContainsFunc(results, func(r host.Result) bool { return r.Status == host.Missing }) {
		return fmt.Errorf("this machine can't run functions yet: see above")
	}
	return nil
}
