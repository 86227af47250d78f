// Package cli is the command line of Mayfly: its commands, their output and exit codes, and what the processes
// that it starts are told by flags.
//
// What belongs here: flags, contexts, calls of the gRPC API, printing. What does not: anything that the API lacks
// (the CLI is one of its clients), and the rooms themselves: cli/mayfly hands App the functions that run them.
package cli

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/mayfly-faas/mayfly/cli/config"
	"github.com/mayfly-faas/mayfly/cli/host"
)

// App is the command line with all that it needs of the world.
type App struct {
	// Version is that of the binary.
	Version string
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	// Getenv reads the environment.
	Getenv func(string) string
	// Now tells the time; Sleep waits and returns early, with the context's error, when it ends.
	Now   func() time.Time
	Sleep func(context.Context, time.Duration) error
	// Host is the machine, for doctor, down and the checks before a process starts.
	Host host.Host

	// RunUp, RunServer and RunAgent run a process until its context ends.
	RunUp     func(context.Context, UpOptions, *slog.Logger) error
	RunServer func(context.Context, ServerOptions, *slog.Logger) error
	RunAgent  func(context.Context, AgentOptions, *slog.Logger) error
	// BuildRuntimes builds images of managed runtimes on this machine; those that are there already are returned at once.
	BuildRuntimes func(context.Context, RuntimeBuild, func(RuntimeProgress)) ([]LocalRuntime, error)
	// ListLocalRuntimes lists the images below a directory.
	ListLocalRuntimes func(ctx context.Context, dir string) ([]LocalRuntime, error)
	// StopSandboxes destroys the sandboxes that the options' agent left behind and ends the containerd that it started.
	StopSandboxes func(context.Context, AgentOptions, *slog.Logger) error
	// InstallPackages installs Debian packages.
	InstallPackages func(ctx context.Context, packages []string, out io.Writer) error

	global globalFlags
}

// globalFlags are the flags that every command has.
type globalFlags struct {
	config.Overrides
	output string
	quiet  bool
}

// Run runs the command line and returns the exit code.
func (a *App) Run(ctx context.Context, args []string) int {
	root := a.Command()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ExitOK
	}
	a.explain(err)
	return ExitCode(err)
}

// Command is the tree of commands.
func (a *App) Command() *cobra.Command {
	root := group("mayfly", "Mayfly runs functions on your own machines",
		a.upCommand(), a.downCommand(), a.serverCommand(), a.agentCommand(),
		a.deployCommand(), a.invokeCommand(), a.logsCommand(),
		a.functionCommand(), a.versionCommand(), a.aliasCommand(),
		a.namespaceCommand(), a.keyCommand(), a.secretCommand(), a.nodeCommand(), a.runtimeCommand(),
		a.settingsCommand(), a.clusterCommand(), a.statusCommand(), a.contextCommand(), a.doctorCommand())
	root.Long = rootHelp
	root.Version = a.Version
	root.SetVersionTemplate("mayfly {{.Version}}\n")
	root.SilenceUsage, root.SilenceErrors = true, true
	root.SetIn(a.Stdin)
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%w (see `%s --help`)", err, cmd.CommandPath())
	})
	root.PersistentPreRunE = func(*cobra.Command, []string) error { return a.checkOutput() }
	a.addGlobalFlags(root)
	return root
}

func (a *App) addGlobalFlags(root *cobra.Command) {
	f := root.PersistentFlags()
	f.StringVar(&a.global.Context, "context", "", "context to use (default: the current one; env MAYFLY_CONTEXT)")
	f.StringVar(&a.global.Endpoint, "endpoint", "", "host:port of the gRPC API (env MAYFLY_ENDPOINT)")
	f.StringVarP(&a.global.Namespace, "namespace", "n", "", "namespace (default: the context's, else the key's; env MAYFLY_NAMESPACE)")
	f.StringVarP(&a.global.output, "output", "o", "table", "output: table, json or yaml")
	f.BoolVarP(&a.global.quiet, "quiet", "q", false, "print names only, and no progress")
	must(root.RegisterFlagCompletionFunc("context", a.completeContexts))
	must(root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(outputs, cobra.ShellCompDirectiveNoFileComp)))
}

// group is a command that only has subcommands.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q for %q (see `%s --help`)", args[0], cmd.CommandPath(), cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(subs...)
	return cmd
}

// argsNamed demands exactly the named arguments.
func argsNamed(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return usagef("%s is missing: usage is `%s`", names[len(args)], cmd.UseLine())
		}
		if len(args) > len(names) {
			return usagef("%q is one argument too many: usage is `%s`", args[len(names)], cmd.UseLine())
		}
		return nil
	}
}

// must stops a program that was put together wrongly, before it does anything.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

const rootHelp = `Mayfly runs functions on your own machines.

Start it with ` + "`mayfly up`" + ` (or ` + "`make up`" + ` in a checkout), then deploy and call a function:

  mayfly deploy hello.py --runtime python3.11 --handler hello.handler --url none
  mayfly invoke hello --payload '{"name": "world"}'
  mayfly logs hello --follow

Exit codes: 0 done, 1 error, 2 wrong usage or invalid request, 3 not found, 4 no or too few rights, 5 conflict,
6 unavailable, 7 throttled, 10 the function failed (with --fail-on-function-error).`
