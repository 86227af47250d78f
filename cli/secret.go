package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const valueHelp = `
The value is read from --value-file, or from stdin with --value-file -, byte for byte: a newline at the end is part of
it (printf '%s' VALUE leaves none). --value takes it from the command line, where the shell's history and the list of
processes show it to others: it is for tests only.`

func (a *App) secretCommand() *cobra.Command {
	return group("secret", "Keep values that functions need and nobody shall see",
		a.secretList(), a.secretGet(), a.secretCreate(), a.secretUpdate(), a.secretDelete(), a.secretGetValue())
}

func (a *App) secretList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List secrets, without their values", Args: argsNamed(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd, func(ctx context.Context, c *client) error {
				secrets, err := allPages(func(token string) ([]*mayflyv1.Secret, string, error) {
					r, err := c.secrets.ListSecrets(ctx, &mayflyv1.ListSecretsRequest{Namespace: c.namespace, PageSize: pageSize, PageToken: token})
					return r.GetSecrets(), r.GetNextPageToken(), err
				})
				if err != nil {
					return err
				}
				return a.print(&mayflyv1.ListSecretsResponse{Secrets: secrets}, secretTable(secrets))
			})
		},
	}
}

func secretTable(secrets []*mayflyv1.Secret) table {
	t := table{header: []string{"NAME", "VERSION", "SIZE", "UPDATED", "DESCRIPTION"}}
	for _, s := range secrets {
		t.rows = append(t.rows, []string{
			s.GetName(), strconv.FormatInt(s.GetVersion(), 10), sizeOf(s.GetSizeBytes()), timeOf(s.GetMeta().GetUpdatedAt()), s.GetDescription(),
		})
	}
	return t
}

func (a *App) secretGet() *cobra.Command {
	return &cobra.Command{
		Use: "get NAME", Short: "Show a secret, without its value", Args: argsNamed("NAME"), ValidArgsFunction: a.completeSecrets,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd, func(ctx context.Context, c *client) error {
				r, err := c.secrets.GetSecret(ctx, &mayflyv1.GetSecretRequest{Namespace: c.namespace, Name: args[0]})
				if err != nil {
					return err
				}
				s := r.GetSecret()
				return a.print(r, details(
					"name", s.GetName(), "namespace", s.GetNamespace(), "description", s.GetDescription(),
					"version", strconv.FormatInt(s.GetVersion(), 10), "size", sizeOf(s.GetSizeBytes()),
					"used by", strings.Join(r.GetFunctions(), " "), "revision", strconv.FormatUint(s.GetMeta().GetRevision(), 10),
					"created", timeOf(s.GetMeta().GetCreatedAt()), "updated", timeOf(s.GetMeta().GetUpdatedAt())))
			})
		},
	}
}

// valueFlags say where the value of a secret comes from.
type valueFlags struct{ file, text string }

func (f *valueFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.file, "value-file", "", "file with the value (- for stdin)")
	cmd.Flags().StringVar(&f.text, "value", "", "the value itself; unsafe: it stays in the shell's history")
}

// read is the value, nil if none is given.
func (f *valueFlags) read(cmd *cobra.Command, stdin io.Reader) ([]byte, error) {
	fromFile, fromText := cmd.Flags().Changed("value-file"), cmd.Flags().Changed("value")
	switch {
	case fromFile && fromText:
		return nil, usagef("--value-file and --value exclude each other")
	case fromText:
		return []byte(f.text), nil
	case f.file == "-":
		value, err := io.ReadAll(stdin)
		if err != nil {
			return nil, fmt.Errorf("read the value from stdin: %w", err)
		}
		return value, nil
	case fromFile:
		value, err := os.ReadFile(f.file)
		if err != nil {
			return nil, usagef("read the value: %w", err)
		}
		return value, nil
	}
	return nil, nil
}

func (a *App) secretCreate() *cobra.Command {
	var value valueFlags
	req := &mayflyv1.CreateSecretRequest{}
	cmd := &cobra.Command{
		Use: "create NAME --value-file FILE", Short: "Create a secret",
		Long:    "Create a secret of 1 to 65536 bytes.\n" + valueHelp,
		Example: "  mayfly secret create db-password --value-file password.txt\n  printf '%s' \"$TOKEN\" | mayfly secret create token --value-file -",
		Args:    argsNamed("NAME"),
	}
	value.add(cmd)
	cmd.Flags().StringVar(&req.Description, "description", "", "description for people")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var err error
		if req.Value, err = value.read(cmd, a.Stdin); err != nil {
			return err
		}
		if req.Value == nil {
			return usagef("--value-file is missing: where is the value? (- for stdin)")
		}
		return a.with(cmd, func(ctx context.Context, c *client) error {
			req.Namespace, req.Name = c.namespace, args[0]
			r, err := c.secrets.CreateSecret(ctx, req)
			if err != nil {
				return err
			}
			return a.changed(r, args[0], "Created secret %s", args[0])
		})
	}
	return cmd
}

func (a *App) secretUpdate() *cobra.Command {
	var value valueFlags
	var description string
	req := &mayflyv1.UpdateSecretRequest{}
	cmd := &cobra.Command{
		Use: "update NAME", Short: "Change a secret's value or description",
		Long:    "Change a secret's value or description. Invocations that begin later run in new sandboxes, which have the new value.\n" + valueHelp,
		Example: "  mayfly secret update db-password --value-file password.txt",
		Args:    argsNamed("NAME"), ValidArgsFunction: a.completeSecrets,
	}
	value.add(cmd)
	cmd.Flags().StringVar(&description, "description", "", "description for people")
	revisionFlag(cmd, &req.ExpectedRevision)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var err error
		if req.Value, err = value.read(cmd, a.Stdin); err != nil {
			return err
		}
		if cmd.Flags().Changed("description") {
			req.Description = &description
		}
		if req.Value == nil && req.Description == nil {
			return usagef("nothing to change: give --value-file (- for stdin) or --description")
		}
		return a.with(cmd, func(ctx context.Context, c *client) error {
			req.Namespace, req.Name = c.namespace, args[0]
			r, err := c.secrets.UpdateSecret(ctx, req)
			if err != nil {
				return err
			}
			return a.changed(r, args[0], "Updated secret %s (version %d)", args[0], r.GetSecret().GetVersion())
		})
	}
	return cmd
}

func (a *App) secretDelete() *cobra.Command {
	req := &mayflyv1.DeleteSecretRequest{}
	cmd := &cobra.Command{
		Use: "delete NAME", Short: "Delete a secret that no function refers to", Args: argsNamed("NAME"), ValidArgsFunction: a.completeSecrets,
	}
	cmd.Flags().BoolVar(&req.Force, "force", false, "delete it even so: functions that refer to it can't start any more")
	revisionFlag(cmd, &req.ExpectedRevision)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.with(cmd, func(ctx context.Context, c *client) error {
			req.Namespace, req.Name = c.namespace, args[0]
			r, err := c.secrets.DeleteSecret(ctx, req)
			if err != nil {
				return err
			}
			return a.changed(r, args[0], "Deleted secret %s", args[0])
		})
	}
	return cmd
}

func (a *App) secretGetValue() *cobra.Command {
	return &cobra.Command{
		Use: "get-value NAME", Short: "Print the value of a secret, and nothing else; the server's log names who asked",
		Args: argsNamed("NAME"), ValidArgsFunction: a.completeSecrets,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd, func(ctx context.Context, c *client) error {
				r, err := c.secrets.GetSecretValue(ctx, &mayflyv1.GetSecretValueRequest{Namespace: c.namespace, Name: args[0]})
				if err != nil {
					return err
				}
				if a.global.output != "table" {
					return a.print(r, table{})
				}
				return a.write(r.GetValue())
			})
		},
	}
}

// secretRefs are the flags for the secrets of a function: what is given is added to what there is.
type secretRefs struct {
	variables map[string]string
	files     []string
	remove    []string
}

func (s *secretRefs) add(cmd *cobra.Command, complete cobra.CompletionFunc) {
	cmd.Flags().StringToStringVar(&s.variables, "secret", nil, "environment variable VARIABLE=SECRET with the value of a secret (repeatable); added to those that were set")
	cmd.Flags().StringSliceVar(&s.files, "secret-file", nil, "secret that is the file /run/secrets/SECRET (repeatable); added to those that were set")
	must(cmd.RegisterFlagCompletionFunc("secret-file", complete))
}

func (s *secretRefs) addRemove(cmd *cobra.Command, complete cobra.CompletionFunc) {
	cmd.Flags().StringSliceVar(&s.remove, "remove-secret", nil, "secret that the function refers to no more, neither by variable nor as a file (repeatable)")
	must(cmd.RegisterFlagCompletionFunc("remove-secret", complete))
}

func (s *secretRefs) given() bool { return len(s.variables)+len(s.files)+len(s.remove) > 0 }

// apply makes r change the references of a function that has c. That it still does is checked by the revision.
func (s *secretRefs) apply(r *mayflyv1.UpdateFunctionConfigurationRequest, f *mayflyv1.Function) error {
	c := f.GetConfiguration()
	variables, files := map[string]string{}, []string{}
	removed := map[string]bool{}
	for variable, name := range c.GetSecretEnvironment() {
		if slices.Contains(s.remove, name) {
			removed[name] = true
			continue
		}
		variables[variable] = name
	}
	for _, name := range c.GetSecretFiles() {
		if slices.Contains(s.remove, name) {
			removed[name] = true
			continue
		}
		files = append(files, name)
	}
	for _, name := range s.remove {
		if !removed[name] {
			return usagef("--remove-secret %s: function %s does not refer to it", name, f.GetName())
		}
	}
	maps.Copy(variables, s.variables)
	for _, name := range s.files {
		if !slices.Contains(files, name) {
			files = append(files, name)
		}
	}
	r.Configuration.SecretEnvironment, r.Configuration.SecretFiles = variables, files
	r.Replace = append(r.Replace, "secret_environment", "secret_files")
	if r.ExpectedRevision == 0 {
		r.ExpectedRevision = f.GetMeta().GetRevision()
	}
	return nil
}

// secretsText is a function's references for people.
func secretsText(c *mayflyv1.FunctionConfiguration) string {
	var all []string
	if variables := pairs(c.GetSecretEnvironment()); variables != "" {
		all = append(all, variables)
	}
	for _, name := range c.GetSecretFiles() {
		all = append(all, "/run/secrets/"+name)
	}
	return strings.Join(all, " ")
}
