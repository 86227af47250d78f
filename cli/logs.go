package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func (a *App) logsCommand() *cobra.Command {
	req := &mayflyv1.ReadLogsRequest{}
	var since, until string
	cmd := &cobra.Command{
		Use: "logs NAME", Short: "Show what a function wrote",
		Long: `Show what a function wrote, and when its invocations began and ended, oldest first.
With --output json each line is a JSON object of its own.`,
		Example: `  mayfly logs hello --follow
  mayfly logs hello --since 10m --filter ERROR
  mayfly logs hello --request-id 5f0c6c1e-8a6b-4b1c-9d53-0e3f7a1b2c3d --output json`,
		Args: argsNamed("NAME"), ValidArgsFunction: a.completeFunctions,
	}
	flags := cmd.Flags()
	flags.BoolVarP(&req.Follow, "follow", "f", false, "go on with what comes, until interrupted")
	flags.StringVar(&since, "since", "", "from then on: a time (RFC 3339) or how long ago (10m)")
	flags.StringVar(&until, "until", "", "before then: a time (RFC 3339) or how long ago (5m)")
	flags.StringVar(&req.RequestId, "request-id", "", "only of this invocation")
	flags.StringVar(&req.Filter, "filter", "", "only lines that contain this text")
	flags.Int32Var(&req.Limit, "limit", 0, "only the newest N lines (0: all)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var err error
		if req.Since, err = a.instant("since", since); err != nil {
			return err
		}
		if req.Until, err = a.instant("until", until); err != nil {
			return err
		}
		return a.with(cmd, func(ctx context.Context, c *client) error {
			req.Namespace, req.Function = c.namespace, args[0]
			return a.readLogs(ctx, c, req)
		})
	}
	return cmd
}

// instant reads a time, or a duration before now.
func (a *App) instant(flag, s string) (*timestamppb.Timestamp, error) {
	if s == "" {
		return nil, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return timestamppb.New(a.Now().Add(-d)), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return nil, usagef("--%s %q is neither a duration such as 10m nor a time such as 2026-01-31T12:00:00Z", flag, s)
	}
	return timestamppb.New(t), nil
}

func (a *App) readLogs(ctx context.Context, c *client, req *mayflyv1.ReadLogsRequest) error {
	stream, err := c.logs.ReadLogs(ctx, req)
	if err != nil {
		return err
	}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) || req.GetFollow() && status.Code(err) == codes.Canceled {
			return nil
		}
		if err != nil {
			return err
		}
		for _, line := range r.GetLines() {
			if err := a.printLine(line); err != nil {
				return err
			}
		}
	}
}

func (a *App) printLine(line *mayflyv1.LogLine) error {
	switch a.global.output {
	case "json":
		text, err := marshal(line)
		if err != nil {
			return err
		}
		return a.write(append(text, '\n'))
	case "yaml":
		if err := a.write([]byte("---\n")); err != nil {
			return err
		}
		return a.print(line, table{})
	}
	if a.global.quiet {
		return a.write([]byte(line.GetText() + "\n"))
	}
	stamp := line.GetTime().AsTime().UTC().Format("2006-01-02T15:04:05.000Z")
	return a.write(fmt.Appendf(nil, "%s %s\n", stamp, line.GetText()))
}
