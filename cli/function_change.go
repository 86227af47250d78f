package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

var runtimeNames = []string{"python3.11", "python3.13", "nodejs18", "nodejs20", "ruby3.1", "java17", "provided"}

// configFlags are the flags of a function's configuration, shared by deploy and function update.
type configFlags struct {
	runtime, handler, description string
	memory, tmp                   int32
	egress                        egressFlag
	timeout                       time.Duration
	env, tags                     map[string]string
	secrets                       secretRefs
}

func (f *configFlags) add(a *App, cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.runtime, "runtime", "", "runtime: "+strings.Join(runtimeNames, ", "))
	flags.StringVar(&f.handler, "handler", "", "what is called: MODULE.FUNCTION for Python, Node and Ruby, PACKAGE.CLASS::METHOD for Java")
	flags.Int32Var(&f.memory, "memory", 0, "memory in MB, 128 to 10240 (default 128)")
	flags.Int32Var(&f.tmp, "ephemeral-storage", 0, "size of /tmp in MB, 512 to 10240 (default 512)")
	flags.Var(&f.egress, "egress", "what it may reach: none, internet (public addresses) or all (default internet)")
	flags.DurationVar(&f.timeout, "timeout", 0, "time limit, 1s to 15m (default 3s)")
	flags.StringToStringVar(&f.env, "env", nil, "environment variable KEY=VALUE (repeatable); the given ones replace all that were set")
	flags.StringVar(&f.description, "description", "", "description for people")
	flags.StringToStringVar(&f.tags, "tag", nil, "tag KEY=VALUE (repeatable); the given ones replace all that were set")
	f.secrets.add(cmd, a.completeSecretFlag)
	must(cmd.RegisterFlagCompletionFunc("egress", cobra.FixedCompletions(egressNames(), cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.RegisterFlagCompletionFunc("runtime", cobra.FixedCompletions(runtimeNames, cobra.ShellCompDirectiveNoFileComp)))
}

func (f *configFlags) configuration() *mayflyv1.FunctionConfiguration {
	c := &mayflyv1.FunctionConfiguration{
		Runtime: f.runtime, Handler: f.handler, Description: f.description,
		MemoryMb: f.memory, EphemeralStorageMb: f.tmp, Environment: f.env,
		Egress: mayflyv1.EgressPolicy(f.egress),
	}
	if f.timeout != 0 {
		c.Timeout = durationpb.New(f.timeout)
	}
	return c
}

// update is the request that changes what was given, but for secrets, or nil if nothing was.
func (f *configFlags) update(cmd *cobra.Command) *mayflyv1.UpdateFunctionConfigurationRequest {
	r := &mayflyv1.UpdateFunctionConfigurationRequest{Configuration: f.configuration(), Tags: f.tags}
	given := false
	for _, name := range []string{"runtime", "handler", "memory", "ephemeral-storage", "timeout", "egress"} {
		given = given || cmd.Flags().Changed(name)
	}
	for flag, field := range map[string]string{"description": "description", "env": "environment", "tag": "tags"} {
		if cmd.Flags().Changed(flag) {
			r.Replace = append(r.Replace, field)
		}
	}
	if !given && len(r.Replace) == 0 {
		return nil
	}
	return r
}

func (a *App) functionUpdate() *cobra.Command {
	var flags configFlags
	var empty []string
	var revision uint64
	cmd := &cobra.Command{
		Use: "update NAME", Short: "Change a function's configuration",
		Long:    "Change a function's configuration. What is not given stays as it is; code is changed by `mayfly deploy`.",
		Example: "  mayfly function update hello --memory 512 --timeout 30s\n  mayfly function update hello --clear env\n  mayfly function update hello --secret DB_PASSWORD=db-password",
		Args:    argsNamed("NAME"), ValidArgsFunction: a.completeFunctions,
	}
	flags.add(a, cmd)
	flags.secrets.addRemove(cmd, a.completeSecretFlag)
	revisionFlag(cmd, &revision)
	cmd.Flags().StringSliceVar(&empty, "clear", nil, "empty these: env, secrets, tags, description")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := updateRequest(cmd, &flags, empty)
		if err != nil {
			return err
		}
		return a.with(cmd, func(ctx context.Context, c *client) error {
			r.Namespace, r.Name, r.ExpectedRevision = c.namespace, args[0], revision
			if err := c.applySecrets(ctx, r, &flags.secrets); err != nil {
				return err
			}
			resp, err := c.functions.UpdateFunctionConfiguration(ctx, r)
			if err != nil {
				return err
			}
			return a.changed(resp, args[0], "Updated function %s", args[0])
		})
	}
	return cmd
}

func updateRequest(cmd *cobra.Command, flags *configFlags, empty []string) (*mayflyv1.UpdateFunctionConfigurationRequest, error) {
	r := flags.update(cmd)
	if r == nil && len(empty) == 0 && !flags.secrets.given() {
		return nil, usagef("nothing to change: give at least one flag (see `%s --help`)", cmd.CommandPath())
	}
	if r == nil {
		r = &mayflyv1.UpdateFunctionConfigurationRequest{Configuration: &mayflyv1.FunctionConfiguration{}}
	}
	fields := map[string][]string{
		"env": {"environment"}, "secrets": {"secret_environment", "secret_files"}, "tags": {"tags"}, "description": {"description"},
	}
	for _, e := range empty {
		names, ok := fields[e]
		if !ok {
			return nil, usagef("--clear %q is none of env, secrets, tags, description", e)
		}
		if e == "secrets" && flags.secrets.given() {
			return nil, usagef("--clear secrets excludes --secret, --secret-file and --remove-secret")
		}
		r.Replace = append(r.Replace, names...)
	}
	return r, nil
}

// applySecrets reads what references the function has, if they are to be changed.
func (c *client) applySecrets(ctx context.Context, r *mayflyv1.UpdateFunctionConfigurationRequest, refs *secretRefs) error {
	if !refs.given() {
		return nil
	}
	have, err := c.functions.GetFunction(ctx, &mayflyv1.GetFunctionRequest{Namespace: r.GetNamespace(), Name: r.GetName()})
	if err != nil {
		return err
	}
	return refs.apply(r, have.GetFunction())
}

func (a *App) functionDownload() *cobra.Command {
	var file, qualifier string
	cmd := &cobra.Command{
		Use: "download NAME --file FILE", Short: "Download a function's deployment package",
		Example: "  mayfly function download hello --qualifier 3 --file hello-3.zip",
		Args:    argsNamed("NAME"), ValidArgsFunction: a.completeFunctions,
	}
	cmd.Flags().StringVar(&file, "file", "", "file to write (- for stdout)")
	cmd.Flags().StringVar(&qualifier, "qualifier", "", "version or alias (default $LATEST)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if file == "" {
			return usagef("--file is missing: where should the package go?")
		}
		return a.with(cmd, func(ctx context.Context, c *client) error {
			stream, err := c.functions.DownloadCode(ctx, &mayflyv1.DownloadCodeRequest{
				Namespace: c.namespace, Name: args[0], Qualifier: qualifier,
			})
			if err != nil {
				return err
			}
			return a.saveCode(stream, file)
		})
	}
	return cmd
}

func (a *App) saveCode(stream grpc.ServerStreamingClient[mayflyv1.DownloadCodeResponse], file string) error {
	// The first message tells whether there is anything, before a file is made.
	m, err := stream.Recv()
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if file == "-" {
		return copyCode(a.Stdout, m, stream)
	}
	f, err := os.Create(file)
	if err != nil {
		return fmt.Errorf("write the package: %w", err)
	}
	err = errors.Join(copyCode(f, m, stream), f.Close())
	if err != nil {
		return errors.Join(err, os.Remove(file))
	}
	a.note("wrote %s", file)
	return nil
}

func copyCode(w io.Writer, m *mayflyv1.DownloadCodeResponse, stream grpc.ServerStreamingClient[mayflyv1.DownloadCodeResponse]) error {
	for {
		if _, err := w.Write(m.GetChunk()); err != nil {
			return fmt.Errorf("write the package: %w", err)
		}
		var err error
		if m, err = stream.Recv(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}
