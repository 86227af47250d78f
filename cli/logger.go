package cli

import (
	"io"
	"log/slog"
	"slices"

	"github.com/spf13/cobra"
)

// LogOptions say what a process logs.
type LogOptions struct {
	// Level is debug, info, warn or error.
	Level string
	// Format is text or json.
	Format string
}

func (o *LogOptions) addFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.Level, "log-level", "info", "what is logged on stderr: debug, info, warn or error")
	cmd.Flags().StringVar(&o.Format, "log-format", "text", "how: text or json")
}

func (o *LogOptions) check() error {
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, o.Level) {
		return usagef("--log-level %q is none of debug, info, warn, error", o.Level)
	}
	if o.Format != "text" && o.Format != "json" {
		return usagef("--log-format %q is neither text nor json", o.Format)
	}
	return nil
}

func (o *LogOptions) logger(w io.Writer) *slog.Logger {
	var level slog.Level
	must(level.UnmarshalText([]byte(o.Level))) // check has seen it.
	opts := &slog.HandlerOptions{Level: level}
	if o.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}
