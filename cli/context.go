package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mayfly-faas/mayfly/cli/config"
)

// contexts reads the contexts file.
func (a *App) contexts() (*config.File, string, error) {
	path, err := config.Path(a.Getenv)
	if err != nil {
		return nil, "", err
	}
	f, err := config.Load(path)
	return f, path, err
}

func (a *App) changeContexts(change func(*config.File) error) error {
	f, path, err := a.contexts()
	if err != nil {
		return err
	}
	if err := change(f); err != nil {
		return err
	}
	return f.Save(path)
}

func (a *App) contextCommand() *cobra.Command {
	cmd := group("context", "Choose which Mayfly to talk to, and with which key",
		a.contextList(), a.contextShow(), a.contextUse(), a.contextAdd(), a.contextImport(), a.contextRemove())
	cmd.Long = `A context is one Mayfly and a key for it. They are kept in $XDG_CONFIG_HOME/mayfly/config.yaml (else below ~/.config).

What the environment says wins over the context: MAYFLY_CONTEXT, MAYFLY_ENDPOINT, MAYFLY_CA (PEM or a file),
MAYFLY_ACCESS_KEY (ID:SECRET), MAYFLY_NAMESPACE. The flags --context, --endpoint and --namespace win over both.`
	return cmd
}

// shownContext is a context without its secret.
type shownContext struct {
	Name      string `json:"name"`
	Current   bool   `json:"current"`
	Endpoint  string `json:"endpoint"`
	KeyID     string `json:"accessKeyId"`
	Namespace string `json:"namespace"`
}

func (a *App) contextList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List contexts", Args: argsNamed(),
		RunE: func(*cobra.Command, []string) error {
			f, _, err := a.contexts()
			if err != nil {
				return err
			}
			shown := []shownContext{}
			t := table{header: []string{"NAME", "CURRENT", "ENDPOINT", "KEY", "NAMESPACE"}}
			for _, name := range f.Names() {
				c, mark := f.Contexts[name], ""
				if name == f.Current {
					mark = "*"
				}
				shown = append(shown, shownContext{name, name == f.Current, c.Endpoint, c.AccessKeyID, c.Namespace})
				t.rows = append(t.rows, []string{name, mark, c.Endpoint, orDash(c.AccessKeyID), orDash(c.Namespace)})
			}
			return a.printValue(map[string]any{"contexts": shown}, t)
		},
	}
}

func (a *App) contextShow() *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Show what is in use now, flags and environment included", Args: argsNamed(),
		RunE: func(*cobra.Command, []string) error {
			f, path, err := a.contexts()
			if err != nil {
				return err
			}
			c, err := config.Resolve(f, a.global.Overrides, a.Getenv)
			if err != nil {
				return err
			}
			name := a.global.Context
			if name == "" {
				name = a.Getenv("MAYFLY_CONTEXT")
			}
			if name == "" {
				name = f.Current
			}
			return a.printValue(shownContext{name, name == f.Current, c.Endpoint, c.AccessKeyID, c.Namespace}, details(
				"context", orDash(name), "endpoint", c.Endpoint, "key", orDash(c.AccessKeyID),
				"namespace", orDash(c.Namespace), "file", path))
		},
	}
}

func (a *App) contextUse() *cobra.Command {
	return &cobra.Command{
		Use: "use NAME", Short: "Make a context the current one", Args: argsNamed("NAME"), ValidArgsFunction: a.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			err := a.changeContexts(func(f *config.File) error {
				if _, ok := f.Contexts[args[0]]; !ok {
					return hinted(ExitNotFound, "`mayfly context list` tells which there are.", "there is no context %q", args[0])
				}
				f.Current = args[0]
				return nil
			})
			if err != nil {
				return err
			}
			return a.done(args[0], "Using context %s", args[0])
		},
	}
}

func (a *App) contextAdd() *cobra.Command {
	var ca, key string
	cmd := &cobra.Command{
		Use: "add NAME --endpoint HOST:PORT", Short: "Add a context, or replace it, and use it",
		Example: "  mayfly context add prod --endpoint mayfly.example.com:7070 --ca ca.pem --access-key AKIA…:SECRET --namespace shop",
		Args:    argsNamed("NAME"),
	}
	cmd.Flags().StringVar(&ca, "ca", "", "the cluster's certificate authority: PEM, or a file with it (default: the system's)")
	cmd.Flags().StringVar(&key, "access-key", "", "ID:SECRET (default: env MAYFLY_ACCESS_KEY, which keeps it out of the shell's history)")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		c, err := a.newContext(ca, key)
		if err != nil {
			return err
		}
		return a.addContext(args[0], c)
	}
	return cmd
}

func (a *App) newContext(ca, key string) (config.Context, error) {
	c := config.Context{Endpoint: a.global.Endpoint, Namespace: a.global.Namespace}
	if c.Endpoint == "" {
		return c, usagef("--endpoint HOST:PORT is missing")
	}
	if ca != "" {
		pem, err := config.PEM(ca)
		if err != nil {
			return c, usagef("--ca: %w", err)
		}
		c.CA = pem
		if _, err := tlsOf(c); err != nil {
			return c, usagef("--ca holds no PEM certificate")
		}
	}
	if key == "" {
		key = a.Getenv("MAYFLY_ACCESS_KEY")
	}
	if key != "" {
		id, secret, ok := strings.Cut(key, ":")
		if !ok {
			return c, usagef("an access key is ID:SECRET, there is no colon in it")
		}
		c.AccessKeyID, c.SecretAccessKey = id, secret
	}
	return c, nil
}

func (a *App) addContext(name string, c config.Context) error {
	err := a.changeContexts(func(f *config.File) error {
		f.Contexts[name], f.Current = c, name
		return nil
	})
	if err != nil {
		return err
	}
	return a.done(name, "Using context %s (%s)", name, c.Endpoint)
}

func (a *App) contextImport() *cobra.Command {
	name := "local"
	cmd := &cobra.Command{
		Use: "import [FILE]", Short: "Make a context of the admin key that a server wrote when it was first started",
		Long: `Make a context of the admin key that a server wrote when it was first started, and use it.
FILE is its admin.json (default ` + defaultAdminFile + `; - for stdin).`,
		Example: "  sudo cat " + defaultAdminFile + " | mayfly context import -",
		Args:    cobra.MaximumNArgs(1),
	}
	cmd.Flags().StringVar(&name, "name", name, "name of the context")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		file := defaultAdminFile
		if len(args) > 0 {
			file = args[0]
		}
		text, err := a.readAdmin(file)
		if err != nil {
			return err
		}
		c, err := config.ParseAdmin(text)
		if err != nil {
			return usagef("%s: %w", file, err)
		}
		c.Namespace = a.global.Namespace
		return a.addContext(name, c)
	}
	return cmd
}

var defaultAdminFile = filepath.Join(defaultStateDir, "server", "admin.json")

func (a *App) readAdmin(file string) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(a.Stdin)
	}
	text, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, hinted(ExitNotFound, "A server writes it when it is first started: `make up` or `mayfly up`.", "%s does not exist", file)
	case errors.Is(err, fs.ErrPermission):
		return nil, hinted(ExitDenied, "It is root's: `sudo cat "+file+" | mayfly context import -`.", "%s may not be read", file)
	case err != nil:
		return nil, fmt.Errorf("read the admin key: %w", err)
	}
	return text, nil
}

func (a *App) contextRemove() *cobra.Command {
	return &cobra.Command{
		Use: "remove NAME", Short: "Remove a context", Args: argsNamed("NAME"), ValidArgsFunction: a.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			err := a.changeContexts(func(f *config.File) error {
				if _, ok := f.Contexts[args[0]]; !ok {
					return hinted(ExitNotFound, "`mayfly context list` tells which there are.", "there is no context %q", args[0])
				}
				delete(f.Contexts, args[0])
				if f.Current == args[0] {
					f.Current = ""
				}
				return nil
			})
			if err != nil {
				return err
			}
			return a.done(args[0], "Removed context %s", args[0])
		},
	}
}
