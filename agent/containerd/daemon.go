package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// probeInterval is how often a containerd that this process did not start is looked at, and how long a restart waits.
	probeInterval = time.Second
	stopGrace     = 10 * time.Second
)

// daemon is a containerd of our own. It runs in a session and, where possible, cgroups of its own, and outlives the
// agent; a later agent adopts it.
type daemon struct {
	config   string // path
	root     string
	state    string
	socket   string
	pidFile  string
	logFile  string
	instance string
	child    chan error // how the containerd ended that this process started; nil if adopted
	lastEnd  error
	restarts int
}

func newDaemon(cfg Config) *daemon {
	return &daemon{
		config: filepath.Join(cfg.StateDir, "config.toml"), logFile: filepath.Join(cfg.StateDir, "containerd.log"),
		// Its metadata too is in the run directory: sandboxes don't outlive the machine, and a write to memory is faster.
		root: filepath.Join(cfg.RunDir, "root"), state: filepath.Join(cfg.RunDir, "state"), socket: filepath.Join(cfg.RunDir, "containerd.sock"),
		pidFile:  filepath.Join(cfg.RunDir, "containerd.pid"),
		instance: cfg.InstanceID,
	}
}

// findBinary looks in the PATH and where Debian puts administration tools.
func findBinary(name, pkg string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not installed: install the package %s (apt-get install %s)", name, pkg, pkg)
}

// Binaries finds the programs that sandboxes need, or says which packages to install.
func Binaries() (map[string]string, error) {
	found := map[string]string{}
	var errs []error
	for _, b := range [][2]string{
		{"containerd", "containerd"}, {"containerd-shim-runc-v2", "containerd"}, {"runc", "runc"}, {"mkfs.ext4", "e2fsprogs"},
	} {
		path, err := findBinary(b[0], b[1])
		found[b[0]] = path
		errs = append(errs, err)
	}
	return found, errors.Join(errs...)
}

// start adopts the containerd that runs, or starts one, and returns when it answers.
func (d *daemon) start(ctx context.Context) error {
	if d.runningPID() != 0 {
		return d.waitSocket(ctx)
	}
	if err := d.launch(); err != nil {
		return err
	}
	return d.waitSocket(ctx)
}

func (d *daemon) launch() error {
	binaries, err := Binaries()
	if err != nil {
		return err
	}
	if err := d.writeConfig(); err != nil {
		return err
	}
	log, err := os.OpenFile(d.logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open containerd's log: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(binaries["containerd"], "--config", d.config)
	cmd.Env = []string{"PATH=" + searchPath(binaries)}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	pid := cmd.Process.Pid
	if c, err := openCgroups(cgroupRoot, "/mayfly/"+d.instance); err == nil {
		_ = c.join("containerd", pid) // where the host doesn't allow it, containerd stays in the agent's cgroup
	}
	d.child = make(chan error, 1)
	go func(ended chan<- error) { ended <- cmd.Wait() }(d.child)
	return os.WriteFile(d.pidFile, []byte(strconv.Itoa(pid)), 0o644)
}

// searchPath lets containerd find its shim, and the shim runc, whatever the agent's PATH is.
func searchPath(binaries map[string]string) string {
	dirs := []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}
	for _, path := range binaries {
		dirs = append(dirs, filepath.Dir(path))
	}
	return strings.Join(dirs, ":")
}

func (d *daemon) writeConfig() error {
	for _, dir := range []string{d.root, d.state} {
		if err := makeDir(dir); err != nil {
			return err
		}
	}
	text := fmt.Sprintf(`# Written by mayfly at every start of containerd.
version = 2
root = %q
state = %q
disabled_plugins = [%s]
[grpc]
  address = %q
[ttrpc]
  address = %q
[debug]
  level = "warn"
[plugins."io.containerd.gc.v1.scheduler"]
  startup_delay = "1h"
`, d.root, d.state, quoted(unneededPlugins()), d.socket, d.socket+".ttrpc")
	if err := os.WriteFile(d.config, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write containerd's configuration: %w", err)
	}
	return nil
}

// unneededPlugins do nothing for sandboxes without images and snapshots; without them containerd starts faster, holds
// less memory and looks at less of the host.
func unneededPlugins() []string {
	return []string{
		"io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
		"io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs",
		"io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.zfs",
		"io.containerd.monitor.v1.cgroups", "io.containerd.monitor.task.v1.cgroups", "io.containerd.internal.v1.opt",
		"io.containerd.internal.v1.restart", "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp",
		"io.containerd.nri.v1.nri", "io.containerd.image-verifier.v1.bindir",
	}
}

func quoted(names []string) string {
	var out []string
	for _, n := range names {
		out = append(out, strconv.Quote(n))
	}
	return strings.Join(out, ", ")
}

func (d *daemon) waitSocket(ctx context.Context) error {
	for {
		conn, err := net.Dial("unix", d.socket)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("containerd does not answer at %s (see %s): %w", d.socket, d.logFile, err)
		case end := <-d.child:
			return fmt.Errorf("containerd ended at once (see %s): %w", d.logFile, errors.Join(errors.New("it exited"), end))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// runningPID is the pid of our containerd, started by whichever agent, or 0.
func (d *daemon) runningPID() int {
	b, err := os.ReadFile(d.pidFile)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0
	}
	// The number may belong to another process by now: ours names its configuration.
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !strings.Contains(string(cmdline), "\x00--config\x00"+d.config+"\x00") {
		return 0
	}
	return pid
}

// run starts containerd again whenever it dies.
func (d *daemon) run(ctx context.Context, log *slog.Logger) error {
	for {
		if err := d.waitEnd(ctx); err != nil {
			return err
		}
		d.restarts++
		log.Warn("containerd ended, starting it again", slog.Int("restarts", d.restarts), slog.Any("error", d.lastEnd))
		startCtx, cancel := context.WithTimeout(ctx, startTimeout)
		err := d.start(startCtx)
		cancel()
		if err == nil {
			continue
		}
		log.Error("could not start containerd", slog.Any("error", err))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(probeInterval):
		}
	}
}

// waitEnd returns nil when containerd has ended.
func (d *daemon) waitEnd(ctx context.Context) error {
	for d.runningPID() != 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case d.lastEnd = <-d.child: // nil, so never, if adopted
			return nil
		case <-time.After(probeInterval):
		}
	}
	return ctx.Err()
}

// stop ends containerd and waits for its end.
func (d *daemon) stop(ctx context.Context) error {
	pid := d.runningPID()
	if pid == 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil //nolint:nilerr // it has ended meanwhile
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil {
		return fmt.Errorf("end containerd: %w", err)
	}
	if !d.gone(ctx, stopGrace) {
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
			return fmt.Errorf("kill containerd: %w", err)
		}
		d.gone(ctx, stopGrace)
	}
	err = os.Remove(d.pidFile)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return err
}

func (d *daemon) gone(ctx context.Context, within time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for d.runningPID() != 0 {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(10 * time.Millisecond):
		}
	}
	return true
}
