package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

const (
	defaultStateDir = "/var/lib/mayfly"
	defaultRunDir   = "/run/mayfly"
)

// ProcessOptions are those of every process.
type ProcessOptions struct {
	StateDir string
	// RunDir holds sockets and pid files.
	RunDir string
	// NodeName is 1 to 63 lower-case letters, digits and "-".
	NodeName string
	Log      LogOptions
}

// ServerOptions are those of a control-plane node.
type ServerOptions struct {
	ProcessOptions
	// APIAddress, HTTPAddress and RaftAddress are host:port.
	APIAddress, HTTPAddress, RaftAddress string
	// HTTPTLSCert and HTTPTLSKey are PEM files; empty: plain HTTP.
	HTTPTLSCert, HTTPTLSKey string
	// MinFreeBytes is the watermark below which writes are refused.
	MinFreeBytes int64
	// KeepAlive is how long an idle sandbox is kept.
	KeepAlive time.Duration
}

// AgentOptions are those of a worker.
type AgentOptions struct {
	ProcessOptions
	// Servers are host:port of control-plane nodes; unused by up.
	Servers []string
	// IdentityDir holds the node's certificate and key; unused by up.
	IdentityDir string
	// ContainerdAddress is the socket of an existing containerd; empty: the agent starts its own.
	ContainerdAddress string
	// RuntimeHandler is a containerd shim such as "io.containerd.runc.v2"; empty: the agent's default.
	RuntimeHandler string
	RuntimesDir    string
	// SandboxCIDR is the sandboxes' IPv4 addresses; empty: a /20 of 100.64.0.0/10 that the host doesn't use.
	SandboxCIDR string
	// MemoryBytes is what sandboxes may use together; 0: what the machine has, less a reserve.
	MemoryBytes int64
}

// UpOptions are those of a server and an agent in one process; both have the same ProcessOptions.
type UpOptions struct {
	Server ServerOptions
	Agent  AgentOptions
}

func (o *ProcessOptions) addFlags(cmd *cobra.Command, hostname string) {
	f := cmd.Flags()
	f.StringVar(&o.StateDir, "state-dir", defaultStateDir, "where state is kept")
	f.StringVar(&o.RunDir, "run-dir", defaultRunDir, "where sockets and pid files are; a short path")
	f.StringVar(&o.NodeName, "node-name", hostname, "name of this node: lower-case letters, digits and -")
	o.Log.addFlags(cmd)
}

func (o *ServerOptions) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.APIAddress, "api-address", "127.0.0.1:7070", "address of the gRPC API (TLS by the cluster's CA)")
	f.StringVar(&o.HTTPAddress, "http-address", "127.0.0.1:7080", "address of HTTP; other than loopback needs --http-tls-cert and --http-tls-key")
	f.StringVar(&o.RaftAddress, "raft-address", "127.0.0.1:7071", "address for other control-plane nodes (mTLS)")
	f.StringVar(&o.HTTPTLSCert, "http-tls-cert", "", "PEM file with the certificate for HTTPS")
	f.StringVar(&o.HTTPTLSKey, "http-tls-key", "", "PEM file with its key")
	o.MinFreeBytes = 512 << 20
	f.Var((*byteSize)(&o.MinFreeBytes), "min-free-bytes", "refuse writes when the state's disk has less free than this")
	f.DurationVar(&o.KeepAlive, "keep-alive", 10*time.Minute, "how long an idle sandbox is kept")
}

func (o *AgentOptions) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.ContainerdAddress, "containerd", "", "socket of an existing containerd (default: start one of our own)")
	f.StringVar(&o.RuntimeHandler, "runtime-handler", "", "containerd shim (default io.containerd.runc.v2)")
	f.StringVar(&o.SandboxCIDR, "sandbox-cidr", "", "IPv4 addresses for sandboxes, such as 100.64.0.0/16 (default: a /20 of 100.64.0.0/10 that this host doesn't use)")
	f.StringVar(&o.RuntimesDir, "runtimes-dir", "", "where runtime images are (default STATE/agent/runtimes)")
	f.Var((*byteSize)(&o.MemoryBytes), "memory", "what sandboxes may use together, such as 8GiB (default: most of the machine's)")
}

// check completes paths and finds what can't work.
func (o *ProcessOptions) check() error {
	for flag, dir := range map[string]*string{"--state-dir": &o.StateDir, "--run-dir": &o.RunDir} {
		abs, err := filepath.Abs(*dir)
		if err != nil || *dir == "" {
			return usagef("%s %q is no directory", flag, *dir)
		}
		*dir = abs
	}
	// A unix socket's path has at most 107 bytes, and sandboxes have theirs below the run directory.
	if len(o.RunDir) > 40 {
		return usagef("--run-dir %q is too long: sockets are below it, at most 40 characters", o.RunDir)
	}
	if !validNodeName(o.NodeName) {
		return usagef("--node-name %q must be 1 to 63 lower-case letters, digits and -", o.NodeName)
	}
	return o.Log.check()
}

func validNodeName(s string) bool {
	if s == "" || len(s) > 63 {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// nodeNameOf makes a node name of a host's name.
func nodeNameOf(hostname string) string {
	short, _, _ := strings.Cut(strings.ToLower(hostname), ".")
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return '-'
	}, short)
	if !validNodeName(name) {
		return "node"
	}
	return name
}

func (o *ServerOptions) check() error {
	for flag, address := range map[string]string{
		"--api-address": o.APIAddress, "--http-address": o.HTTPAddress, "--raft-address": o.RaftAddress,
	} {
		if err := checkAddress(address); err != nil {
			return usagef("%s %q: %w", flag, address, err)
		}
	}
	if (o.HTTPTLSCert == "") != (o.HTTPTLSKey == "") {
		return usagef("--http-tls-cert and --http-tls-key go together")
	}
	if o.HTTPTLSCert == "" && !loopback(o.HTTPAddress) {
		return usagef("--http-address %s is not a loopback address: give --http-tls-cert and --http-tls-key, or use 127.0.0.1", o.HTTPAddress)
	}
	if o.KeepAlive < 0 {
		return usagef("--keep-alive must not be negative")
	}
	return nil
}

func checkAddress(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return errors.New("it must be HOST:PORT")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return errors.New("the port must be a number from 1 to 65535")
	}
	return nil
}

func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (o *AgentOptions) complete() {
	if o.RuntimesDir == "" {
		o.RuntimesDir = defaultRuntimesDir(o.StateDir)
	}
}

func (a *App) needRoot(what string) error {
	if a.Host.Geteuid() == 0 {
		return nil
	}
	return hinted(ExitDenied, "Try again with sudo.", "%s needs root", what)
}

// needPorts finds a port that is taken before anything is started.
func (a *App) needPorts(o *ServerOptions) error {
	for _, p := range []struct{ flag, address string }{
		{"--api-address", o.APIAddress}, {"--http-address", o.HTTPAddress}, {"--raft-address", o.RaftAddress},
	} {
		err := a.Host.TryListen(p.address)
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			return hinted(ExitError, "Is Mayfly running already (`mayfly status`)? Else choose another address with "+p.flag+"; `ss -ltnp` tells who has it.",
				"%s %s: the port is taken", p.flag, p.address)
		case err != nil:
			return fmt.Errorf("%s %s: %w", p.flag, p.address, err)
		}
	}
	return nil
}

// Names of pid files in the run directory, by which down finds what runs.
const (
	upPID     = "mayfly.pid"
	serverPID = "server.pid"
	agentPID  = "agent.pid"
)

// runProcess runs a process with its pid file and logger. The end of ctx is a normal end.
func (a *App) runProcess(ctx context.Context, o ProcessOptions, pidFile string, run func(*slog.Logger) error) error {
	pidFile = filepath.Join(o.RunDir, pidFile)
	if err := os.MkdirAll(o.RunDir, 0o711); err != nil {
		return fmt.Errorf("make the run directory: %w", err)
	}
	if err := os.MkdirAll(o.StateDir, 0o711); err != nil {
		return fmt.Errorf("make the state directory: %w", err)
	}
	if err := os.WriteFile(pidFile, fmt.Appendln(nil, os.Getpid()), 0o644); err != nil {
		return fmt.Errorf("write the pid file: %w", err)
	}
	err := run(o.Log.logger(a.Stderr))
	err = errors.Join(err, os.Remove(pidFile))
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
