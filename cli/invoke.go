package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// invokeFlags are how to invoke.
type invokeFlags struct {
	payload, qualifier, clientContext string
	log, dryRun, stream, fail         bool
}

func (a *App) invokeCommand() *cobra.Command {
	var f invokeFlags
	cmd := &cobra.Command{
		Use: "invoke NAME", Short: "Call a function and print its answer",
		Long: `Call a function and print its answer, and nothing else, on stdout. NAME may carry a version or alias: NAME:QUALIFIER.

A function that fails is no failure of the command: its error document is the answer, and the exit code is 0
unless --fail-on-function-error is given (then 10).`,
		Example: `  mayfly invoke hello
  mayfly invoke hello --payload '{"name": "world"}' --log
  mayfly invoke hello:live --payload @event.json
  echo '{}' | mayfly invoke hello --payload - --fail-on-function-error`,
		Args: argsNamed("NAME"), ValidArgsFunction: a.completeFunctions,
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.payload, "payload", "p", "", "the event: JSON, @FILE, or - for stdin (default {})")
	flags.StringVar(&f.qualifier, "qualifier", "", "version or alias (default $LATEST)")
	flags.StringVar(&f.clientContext, "client-context", "", "JSON for context.client_context")
	flags.BoolVar(&f.log, "log", false, "print the end of the invocation's log on stderr")
	flags.BoolVar(&f.dryRun, "dry-run", false, "check rights, function and payload, and run nothing")
	flags.BoolVar(&f.stream, "stream", false, "print the answer as the function writes it")
	flags.BoolVar(&f.fail, "fail-on-function-error", false, "exit with 10 if the function fails")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if f.dryRun && f.stream {
			return usagef("--dry-run and --stream exclude each other")
		}
		payload, err := a.payload(f.payload)
		if err != nil {
			return err
		}
		return a.with(cmd, func(ctx context.Context, c *client) error {
			return a.invoke(ctx, c, &f, &mayflyv1.InvokeRequest{
				Namespace: c.namespace, Function: args[0], Qualifier: f.qualifier, Payload: payload,
				LogTail: f.log, ClientContext: f.clientContext, Type: mayflyv1.InvocationType_INVOCATION_TYPE_REQUEST_RESPONSE,
			})
		})
	}
	return cmd
}

func (a *App) payload(flag string) ([]byte, error) {
	switch {
	case flag == "-":
		text, err := io.ReadAll(a.Stdin)
		if err != nil {
			return nil, fmt.Errorf("read the payload from stdin: %w", err)
		}
		return text, nil
	case strings.HasPrefix(flag, "@"):
		text, err := os.ReadFile(flag[1:])
		if err != nil {
			return nil, usagef("read the payload: %w", err)
		}
		return text, nil
	default:
		return []byte(flag), nil
	}
}

func (a *App) invoke(ctx context.Context, c *client, f *invokeFlags, req *mayflyv1.InvokeRequest) error {
	if f.stream {
		return a.invokeStream(ctx, c, f, req)
	}
	if f.dryRun {
		req.Type = mayflyv1.InvocationType_INVOCATION_TYPE_DRY_RUN
	}
	r, err := c.invocations.Invoke(ctx, req)
	if err != nil {
		return err
	}
	if f.dryRun {
		a.note("%s would run (version %s)", req.GetFunction(), orDash(r.GetExecutedVersion()))
		return nil
	}
	if err := a.printAnswer(r); err != nil {
		return err
	}
	return a.outcome(f, req, r)
}

func (a *App) printAnswer(r *mayflyv1.InvokeResponse) error {
	if a.global.output != "table" {
		return a.print(r, table{})
	}
	answer := r.GetPayload()
	if len(answer) > 0 && !bytes.HasSuffix(answer, []byte("\n")) {
		answer = append(bytes.Clone(answer), '\n')
	}
	return a.write(answer)
}

// outcome prints all but the answer, on stderr.
func (a *App) outcome(f *invokeFlags, req *mayflyv1.InvokeRequest, r *mayflyv1.InvokeResponse) error {
	if f.log {
		fmt.Fprintf(a.Stderr, "%s\n", bytes.TrimRight(r.GetLogTail(), "\n"))
	}
	if r.GetFunctionError() == "" {
		return nil
	}
	if f.fail {
		return hinted(ExitFunctionError, "See `mayfly logs "+name(req.GetFunction())+" --request-id "+r.GetRequestId()+"`.",
			"function %s failed (%s)", req.GetFunction(), r.GetFunctionError())
	}
	a.note("the function failed (%s), request %s", r.GetFunctionError(), r.GetRequestId())
	return nil
}

// name is NAME of NAME:QUALIFIER.
func name(function string) string {
	if strings.HasPrefix(function, "arn:") {
		return function
	}
	n, _, _ := strings.Cut(function, ":")
	return n
}

func (a *App) invokeStream(ctx context.Context, c *client, f *invokeFlags, req *mayflyv1.InvokeRequest) error {
	ctx, cancel := context.WithTimeout(ctx, invokeTimeout)
	defer cancel()
	stream, err := c.invocations.InvokeStream(ctx, &mayflyv1.InvokeStreamRequest{Invoke: req})
	if err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := a.write(m.GetChunk()); err != nil {
			return err
		}
		if r := m.GetComplete(); r != nil {
			if err := a.write(r.GetPayload()); err != nil {
				return err
			}
			if a.terminal(a.Stdout) {
				fmt.Fprintln(a.Stdout)
			}
			return a.outcome(f, req, r)
		}
	}
}
