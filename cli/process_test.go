package cli_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-faas/mayfly/cli"
	"github.com/mayfly-faas/mayfly/cli/host"
)

func TestUpRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		uid  int
		port string
		code int
		says string
	}{
		"not root":                {uid: 1000, code: cli.ExitDenied, says: "needs root"},
		"port taken":              {port: "127.0.0.1:7080", code: cli.ExitError, says: "--http-address 127.0.0.1:7080: the port is taken"},
		"unknown flag":            {args: []string{"--frob"}, code: cli.ExitUsage, says: "unknown flag: --frob"},
		"argument":                {args: []string{"now"}, code: cli.ExitUsage, says: "one argument too many"},
		"http without TLS":        {args: []string{"--http-address", "0.0.0.0:7080"}, code: cli.ExitUsage, says: "--http-tls-cert and --http-tls-key"},
		"certificate without key": {args: []string{"--http-tls-cert", "c.pem"}, code: cli.ExitUsage, says: "go together"},
		"no port":                 {args: []string{"--api-address", "127.0.0.1"}, code: cli.ExitUsage, says: "HOST:PORT"},
		"bad port":                {args: []string{"--raft-address", "127.0.0.1:99999"}, code: cli.ExitUsage, says: "1 to 65535"},
		"long run directory":      {args: []string{"--run-dir", "/" + strings.Repeat("x", 60)}, code: cli.ExitUsage, says: "too long"},
		"node name":               {args: []string{"--node-name", "Up Here"}, code: cli.ExitUsage, says: "--node-name"},
		"size":                    {args: []string{"--memory", "lots"}, code: cli.ExitUsage, says: "no size such as"},
		"log level":               {args: []string{"--log-level", "loud"}, code: cli.ExitUsage, says: "--log-level"},
		"log format":              {args: []string{"--log-format", "xml"}, code: cli.ExitUsage, says: "--log-format"},
		"negative keep-alive":     {args: []string{"--keep-alive", "-1s"}, code: cli.ExitUsage, says: "--keep-alive"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.host.uid = c.uid
			if c.port != "" {
				b.host.ports[c.port] = syscall.EADDRINUSE
			}
			b.app.RunUp = func(context.Context, cli.UpOptions, *slog.Logger) error { return errors.New("it ran") }
			o := b.run(append([]string{"up"}, c.args...)...)
			if o.code != c.code || !strings.Contains(o.stderr, c.says) {
				t.Errorf("got %+v, want code %d and %q", o, c.code, c.says)
			}
		})
	}
}

func TestUpPassesItsFlags(t *testing.T) {
	b := newBench(t)
	run, state := shortDir(t), t.TempDir()
	var got cli.UpOptions
	b.app.RunUp = func(_ context.Context, o cli.UpOptions, log *slog.Logger) error {
		got = o
		log.Info("up")
		if _, err := os.Stat(filepath.Join(run, "mayfly.pid")); err != nil {
			t.Error(err)
		}
		return nil
	}
	o := b.run("up", "--state-dir", state, "--run-dir", run, "--memory", "2GiB", "--http-address", "[::1]:8080", "--log-format", "json", "--keep-alive", "1m")
	if o.code != 0 || !strings.Contains(o.stderr, `"msg":"up"`) {
		t.Errorf("got %+v", o)
	}
	process := cli.ProcessOptions{StateDir: state, RunDir: run, NodeName: "box", Log: cli.LogOptions{Level: "info", Format: "json"}}
	want := cli.UpOptions{
		Server: cli.ServerOptions{
			ProcessOptions: process, APIAddress: "127.0.0.1:7070", HTTPAddress: "[::1]:8080", RaftAddress: "127.0.0.1:7071",
			MinFreeBytes: 512 << 20, KeepAlive: time.Minute,
		},
		Agent: cli.AgentOptions{ProcessOptions: process, RuntimesDir: filepath.Join(state, "agent", "runtimes"), MemoryBytes: 2 << 30},
	}
	if got.Server != want.Server || got.Agent.MemoryBytes != want.Agent.MemoryBytes || got.Agent.RuntimesDir != want.Agent.RuntimesDir || got.Agent.ProcessOptions != process {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if _, err := os.Stat(filepath.Join(run, "mayfly.pid")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the pid file is left: %v", err)
	}
}

// shortDir is a directory with a path that is short enough for sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "mf-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestProcessEndsWithItsContext(t *testing.T) {
	b := newBench(t)
	ctx, cancel := context.WithCancel(t.Context())
	b.app.RunServer = func(ctx context.Context, _ cli.ServerOptions, _ *slog.Logger) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	}
	if o := b.runWith(ctx, "server", "--state-dir", t.TempDir(), "--run-dir", shortDir(t)); o.code != 0 {
		t.Errorf("an interrupt is a normal end, got %+v", o)
	}
}

func TestProcessReportsItsError(t *testing.T) {
	b := newBench(t)
	b.app.RunServer = func(context.Context, cli.ServerOptions, *slog.Logger) error { return errors.New("the log is damaged") }
	o := b.run("server", "--state-dir", t.TempDir(), "--run-dir", shortDir(t))
	if o.code != cli.ExitError || o.stderr != "mayfly: the log is damaged\n" {
		t.Errorf("got %+v", o)
	}
}

func TestAgent(t *testing.T) {
	b := newBench(t)
	var got cli.AgentOptions
	b.app.RunAgent = func(_ context.Context, o cli.AgentOptions, _ *slog.Logger) error {
		got = o
		return nil
	}
	state, run := t.TempDir(), shortDir(t)
	o := b.run("agent", "--server", "10.0.0.1:7070", "--server", "10.0.0.2:7070", "--state-dir", state, "--run-dir", run)
	if o.code != 0 || len(got.Servers) != 2 || got.IdentityDir != filepath.Join(state, "agent", "identity") {
		t.Errorf("got %+v with %+v", o, got)
	}
	if o := b.run("agent"); o.code != cli.ExitUsage || !strings.Contains(o.stderr, "--server HOST:PORT is missing") {
		t.Errorf("without a server: %+v", o)
	}
	b.host.missing["/id/node.key"] = true
	if o := b.run("agent", "--server", "10.0.0.1:7070", "--identity", "/id"); o.code != cli.ExitNotFound || !strings.Contains(o.stderr, "mayfly node enroll box --identity /id") {
		t.Errorf("without an identity: %+v", o)
	}
}

func TestDoctor(t *testing.T) {
	b := newBench(t)
	var installed []string
	b.app.InstallPackages = func(_ context.Context, packages []string, _ io.Writer) error {
		installed = packages
		clear(b.host.missing)
		return nil
	}
	if o := b.run("doctor"); o.code != 0 {
		t.Errorf("a complete machine: %+v", o)
	}
	b.host.missing["containerd"], b.host.missing["mmdebstrap"], b.host.missing["containerd-shim-runc-v2"] = true, true, true
	b.host.ports["127.0.0.1:7080"] = syscall.EADDRINUSE
	b.transcript("doctor", []string{"doctor"})
	b.host.uid = 1000
	if o := b.run("doctor", "--install"); o.code != cli.ExitDenied || installed != nil {
		t.Errorf("as a user: %+v, installed %v", o, installed)
	}
	b.host.uid = 0
	if o := b.run("doctor", "--install"); o.code != 0 || strings.Join(installed, " ") != "containerd mmdebstrap" {
		t.Errorf("as root: %+v, installed %v", o, installed)
	}
}

func TestRuntimeBuild(t *testing.T) {
	b := newBench(t)
	var got cli.RuntimeBuild
	b.app.BuildRuntimes = func(_ context.Context, build cli.RuntimeBuild, progress func(cli.RuntimeProgress)) ([]cli.LocalRuntime, error) {
		got = build
		var built []cli.LocalRuntime
		for _, name := range build.Names {
			progress(cli.RuntimeProgress{Runtime: name, Step: "unpacking", Fraction: 0.5})
			progress(cli.RuntimeProgress{Runtime: name, Step: "unpacking", Fraction: 0.6})
			built = append(built, cli.LocalRuntime{Name: name, Version: "1", Digest: "sha256:00", SizeBytes: 1 << 20, BuiltAt: testNow})
		}
		return built, nil
	}
	b.app.ListLocalRuntimes = func(context.Context, string) ([]cli.LocalRuntime, error) {
		return []cli.LocalRuntime{{Name: "provided", Digest: "sha256:00", SizeBytes: 1 << 20, BuiltAt: testNow}}, nil
	}
	b.transcript("runtime", [][]string{
		{"runtime", "build"},
		{"runtime", "build", "--all", "provided"},
		{"runtime", "build", "python3.11", "nodejs18", "--force"},
		{"runtime", "build", "provided", "--quiet"},
		{"runtime", "list", "--local"},
		{"runtime", "list", "--local", "--output", "json"},
	}...)
	if got.Dir != "/var/lib/mayfly/agent/runtimes" {
		t.Errorf("images go to %s", got.Dir)
	}
	b.host.uid = 1000
	if o := b.run("runtime", "build", "--all"); o.code != cli.ExitDenied {
		t.Errorf("as a user: %+v", o)
	}
}

// startAs runs a shell script under another name, with further arguments, and waits until it says "ready".
func startAs(t *testing.T, name, script string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := &exec.Cmd{
		Path: "/bin/sh", Args: append([]string{name, "-c", "echo ready; " + script, "x"}, args...),
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Error(err)
		}
		cmd.Wait()
	})
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func TestDownStopsProcessesAndWhatTheyLeft(t *testing.T) {
	b := newBench(t)
	state, run := t.TempDir(), shortDir(t)
	mayfly := startAs(t, "mayfly", "sleep 1000 & wait")
	shim := startAs(t, "containerd-shim-test", "sleep 1000 & wait", "-address", run+"/containerd/containerd.sock")
	other := startAs(t, "containerd-shim-test", "sleep 1000 & wait", "-address", "/run/else/containerd.sock")
	if err := os.WriteFile(run+"/mayfly.pid", fmt.Appendln(nil, mayfly.Process.Pid), 0o644); err != nil {
		t.Fatal(err)
	}
	var asked cli.AgentOptions
	b.app.StopSandboxes = func(_ context.Context, o cli.AgentOptions, _ *slog.Logger) error {
		asked = o
		return errors.New("containerd does not answer")
	}
	o := b.run("down", "--state-dir", state, "--run-dir", run)
	if o.code != 0 || asked.RunDir != run || !strings.Contains(o.stderr, "containerd does not answer") {
		t.Errorf("got %+v, asked with %+v", o, asked)
	}
	for cmd, want := range map[*exec.Cmd]bool{mayfly: false, shim: false, other: true} {
		if got := host.Running(cmd.Process.Pid, cmd.Args[0]); got != want {
			t.Errorf("%v runs: %v, want %v", cmd.Args, got, want)
		}
	}
	if o := b.run("down", "--state-dir", state, "--run-dir", run); o.code != 0 || strings.Contains(o.stderr, "stopping") {
		t.Errorf("again: %+v", o)
	}
}

func TestDownWithNothingToStop(t *testing.T) {
	b := newBench(t)
	state, run := t.TempDir(), shortDir(t)
	for _, dir := range []string{state + "/server", state + "/agent"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// The pid of a process that is no Mayfly.
	if err := os.WriteFile(run+"/mayfly.pid", []byte("1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	// What outlives processes, such as interfaces, is removed all the same.
	asked := 0
	b.app.StopSandboxes = func(context.Context, cli.AgentOptions, *slog.Logger) error {
		asked++
		return nil
	}
	if o := b.run("down", "--state-dir", state, "--run-dir", run); o.code != 0 || !strings.Contains(o.stdout, "its state is in") || asked != 1 {
		t.Errorf("down: %+v, asked %d times", o, asked)
	}
	if _, err := os.Stat(state + "/server"); err != nil {
		t.Error("down took the state")
	}
	if o := b.run("down", "--wipe", "--state-dir", state, "--run-dir", run); o.code != 0 {
		t.Errorf("down --wipe: %+v", o)
	}
	if _, err := os.Stat(state + "/server"); err == nil {
		t.Error("--wipe left the state")
	}
	b.host.uid = 1000
	if o := b.run("down"); o.code != cli.ExitDenied {
		t.Errorf("as a user: %+v", o)
	}
}
