// Command bench measures what Mayfly adds to a function: it starts Mayfly from bin/mayfly and, beside it, a bare HTTP
// server that returns the same bytes, calls both in turn with the same client, and prints each row with its ratio to the
// bare server and the machine's load. It fails on wrong answers, never on slow ones.
//
// What belongs here: rows with a budget. What does not: tests of behaviour (test/e2e), benchmarks of one package (beside it).
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// roleEnv makes a process of this program a client or the bare server, so that neither shares a process with the other.
const roleEnv = "MAYFLY_BENCH_ROLE"

const (
	roleClient = "client"
	roleBare   = "bare"
)

type options struct {
	out         string
	binary      string
	runtimesDir string
	runtime     string
	rows        []string
	warmup      time.Duration
	duration    time.Duration
	rounds      int
	cold        int
	ownShim     bool
	keep        bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := dispatch(ctx, os.Getenv(roleEnv), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func dispatch(ctx context.Context, role string, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	switch role {
	case roleClient:
		return clientMain(ctx, stdin, stdout)
	case roleBare:
		return bareMain(ctx, stdout)
	}
	o, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	return bench(ctx, o, stdout, stderr)
}

func parseOptions(args []string, stderr io.Writer) (options, error) {
	o := options{}
	var rows string
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.out, "out", "", "`FILE` to write the rows to as JSON")
	f.StringVar(&o.binary, "mayfly", "bin/mayfly", "the mayfly `BINARY`")
	f.StringVar(&o.runtimesDir, "runtimes-dir", "/var/lib/mayfly/agent/runtimes", "`DIR` with built runtime images")
	f.StringVar(&o.runtime, "runtime", "python3.11", "runtime of the function; its code is Python")
	f.StringVar(&rows, "rows", strings.Join(rowNames(), ","), "rows to measure")
	f.DurationVar(&o.warmup, "warmup", 2*time.Second, "warm-up of each point")
	f.DurationVar(&o.duration, "duration", 6*time.Second, "time of each point, over all rounds")
	f.IntVar(&o.rounds, "rounds", 3, "how often bare and Mayfly take turns")
	f.IntVar(&o.cold, "cold", 40, "cold starts to measure")
	f.BoolVar(&o.ownShim, "own-shim", false, "hold cold starts against the budget of our own runtime shim, not runc's")
	f.BoolVar(&o.keep, "keep", false, "keep state and logs of the processes")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.rows = strings.Split(rows, ",")
	return o, o.check(f.Args())
}

func (o options) check(rest []string) error {
	if len(rest) > 0 {
		return fmt.Errorf("unknown argument %q", rest[0])
	}
	for _, r := range o.rows {
		if !slices.Contains(rowNames(), r) {
			return fmt.Errorf("unknown row %q: there are %s", r, strings.Join(rowNames(), ", "))
		}
	}
	if o.rounds < 1 || o.cold < 1 || o.duration <= 0 || o.warmup < 0 {
		return errors.New("-rounds, -cold and -duration must be positive")
	}
	return nil
}

// bench measures the rows, prints them, and writes them even if a later one failed.
func bench(ctx context.Context, o options, stdout, stderr io.Writer) error {
	fmt.Fprintf(stderr, "load before: %s\n", loadAverage())
	b := &run{o: o, log: stderr}
	err := b.measure(ctx)
	printTable(stdout, b.rows, loadAverage())
	if o.out != "" {
		err = errors.Join(err, writeRows(o.out, b.rows))
	}
	return err
}

func writeRows(path string, rows []row) error {
	b, err := json.MarshalIndent(map[string]any{"rows": rows}, "", "  ")
	if err != nil {
		return fmt.Errorf("encode rows: %w", err)
	}
	if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write rows: %w", err)
	}
	return nil
}
