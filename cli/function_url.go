package cli

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

var authTypes = []string{"none", "key", "iam"}

// authTypeOf reads none, key or iam.
func authTypeOf(s string) (mayflyv1.AuthType, error) {
	switch s {
	case "none":
		return mayflyv1.AuthType_AUTH_TYPE_NONE, nil
	case "key":
		return mayflyv1.AuthType_AUTH_TYPE_KEY, nil
	case "iam":
		return mayflyv1.AuthType_AUTH_TYPE_AWS_IAM, nil
	default:
		return 0, usagef("the URL's authentication %q is none of %s", s, strings.Join(authTypes, ", "))
	}
}

func urlAuth(u *mayflyv1.FunctionUrl) string {
	if u == nil {
		return ""
	}
	return enumName(u.GetAuthType(), "AUTH_TYPE_")
}

func (a *App) functionURL() *cobra.Command {
	return group("url", "Make a function reachable by HTTP", a.urlGet(), a.urlSet(), a.urlDelete())
}

func (a *App) urlGet() *cobra.Command {
	return &cobra.Command{
		Use: "get NAME", Short: "Print a function's URL", Args: argsNamed("NAME"), ValidArgsFunction: a.completeFunctions,
		Example: "  curl \"$(mayfly function url get hello)\"",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd, func(ctx context.Context, c *client) error {
				r, err := c.functions.GetFunction(ctx, &mayflyv1.GetFunctionRequest{Namespace: c.namespace, Name: args[0]})
				if err != nil {
					return err
				}
				if r.GetUrl() == "" {
					return hinted(ExitNotFound, "Make one with `mayfly function url set "+args[0]+" --auth key`.", "function %s has no URL", args[0])
				}
				return a.changed(r, r.GetUrl(), "%s", r.GetUrl())
			})
		},
	}
}

type urlFlags struct {
	auth, qualifier string
	stream          bool
	cors            mayflyv1.Cors
	maxAge          time.Duration
}

func (f *urlFlags) url(cmd *cobra.Command) (*mayflyv1.FunctionUrl, error) {
	auth, err := authTypeOf(f.auth)
	if err != nil {
		return nil, err
	}
	u := &mayflyv1.FunctionUrl{AuthType: auth, Qualifier: f.qualifier, InvokeMode: mayflyv1.InvokeMode_INVOKE_MODE_BUFFERED}
	if f.stream {
		u.InvokeMode = mayflyv1.InvokeMode_INVOKE_MODE_RESPONSE_STREAM
	}
	if len(f.cors.GetAllowOrigins()) > 0 {
		f.cors.MaxAgeSeconds = int32(f.maxAge.Seconds())
		u.Cors = &f.cors
	} else if cmd.Flags().Changed("cors-method") || cmd.Flags().Changed("cors-header") {
		return nil, usagef("--cors-method and --cors-header need --cors-origin")
	}
	return u, nil
}

func (a *App) urlSet() *cobra.Command {
	var f urlFlags
	cmd := &cobra.Command{
		Use: "set NAME --auth none|key|iam", Short: "Give a function a URL, or change how it behaves",
		Long: `Give a function a URL, or change how it behaves. Authentication is one of
  none  anybody who reaches the port may call it
  key   "Authorization: Bearer ID:SECRET" of an access key with the role invoker
  iam   AWS Signature Version 4, with service "lambda"`,
		Example: "  mayfly function url set hello --auth key\n  mayfly function url set hello --auth none --cors-origin https://example.com",
		Args:    argsNamed("NAME"), ValidArgsFunction: a.completeFunctions,
	}
	flags := cmd.Flags()
	flags.StringVar(&f.auth, "auth", "key", "authentication: none, key or iam")
	flags.StringVar(&f.qualifier, "qualifier", "", "version or alias that it calls (default $LATEST)")
	flags.BoolVar(&f.stream, "stream", false, "pass the answer on as the function writes it")
	flags.StringSliceVar(&f.cors.AllowOrigins, "cors-origin", nil, "origin that browsers may call it from (repeatable, or *)")
	flags.StringSliceVar(&f.cors.AllowMethods, "cors-method", nil, "method that they may use (repeatable)")
	flags.StringSliceVar(&f.cors.AllowHeaders, "cors-header", nil, "header that they may send (repeatable)")
	flags.StringSliceVar(&f.cors.ExposeHeaders, "cors-expose-header", nil, "header that they may read (repeatable)")
	flags.BoolVar(&f.cors.AllowCredentials, "cors-credentials", false, "let them send cookies")
	flags.DurationVar(&f.maxAge, "cors-max-age", 0, "how long they may remember this, up to 24h")
	must(cmd.RegisterFlagCompletionFunc("auth", cobra.FixedCompletions(authTypes, cobra.ShellCompDirectiveNoFileComp)))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		u, err := f.url(cmd)
		if err != nil {
			return err
		}
		return a.with(cmd, func(ctx context.Context, c *client) error {
			r, err := c.functions.PutFunctionUrl(ctx, &mayflyv1.PutFunctionUrlRequest{Namespace: c.namespace, Name: args[0], Url: u})
			if err != nil {
				return err
			}
			return a.changed(r, r.GetUrl(), "%s", r.GetUrl())
		})
	}
	return cmd
}

func (a *App) urlDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME", Short: "Take a function's URL away", Args: argsNamed("NAME"), ValidArgsFunction: a.completeFunctions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd, func(ctx context.Context, c *client) error {
				r, err := c.functions.DeleteFunctionUrl(ctx, &mayflyv1.DeleteFunctionUrlRequest{Namespace: c.namespace, Name: args[0]})
				if err != nil {
					return err
				}
				return a.changed(r, args[0], "Deleted the URL of %s", args[0])
			})
		},
	}
}
