// Package containerd is the sandbox.Runtime that makes sandboxes with containerd.
//
// What belongs here: a containerd of our own and its supervision, the OCI spec of a sandbox, its namespaces, cgroups,
// mounts and disk space, and their removal. What does not: when sandboxes are made (agent/sandbox, agent), what is
// said over their sockets (agent), runtime images (agent/runtimes). What runs inside is agent/containerd/helper.
//
// Whatever exists on the host for a sandbox can be found from the instance: containers by containerd namespace and
// label, cgroups under /mayfly/<instance>, mounts and directories under RunDir/sandboxes.
package containerd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/mayfly-faas/mayfly/agent/containerd/egress"
	"github.com/mayfly-faas/mayfly/agent/sandbox"
)

const (
	defaultHandler  = "io.containerd.runc.v2"
	defaultPool     = 8
	defaultTmpBytes = 512 << 20
	// defaultUIDBase begins the range that neither useradd's subordinate ids nor systemd's containers use.
	defaultUIDBase = 0x70000000
	// startTimeout bounds the start of containerd; cleanupTimeout the removal of one sandbox.
	startTimeout   = 30 * time.Second
	cleanupTimeout = 30 * time.Second
)

// Config is what New works with. StateDir, RunDir and Logger are required.
type Config struct {
	// StateDir is this room's own directory on disk, such as /var/lib/mayfly/agent/containerd.
	StateDir string
	// RunDir is this room's own directory for sockets, mounts and pid files, such as /run/mayfly/containerd.
	// Both are made traversable for sandbox users, and so must their parents be.
	RunDir string
	// InstanceID tells this node's sandboxes from those of another Mayfly on the machine. It stays the same when the
	// agent restarts. Empty: derived from StateDir.
	InstanceID string
	// Address is the socket of an existing containerd. Empty: one of our own is started, or adopted if it runs.
	Address string
	// RuntimeHandler is the containerd shim, by default io.containerd.runc.v2.
	RuntimeHandler string
	// PoolSize is how many pairs of namespaces, and volumes of 512 MiB for /tmp, wait for sandboxes, by default 8;
	// negative: none.
	PoolSize int
	// UIDBase is the first host uid of the first sandbox, by default 0x70000000. Each sandbox takes 65536.
	UIDBase uint32
	// SandboxCIDR is the sandboxes' IPv4 addresses, a network of size /12 to /28 that nothing else uses; empty: a /20 of
	// 100.64.0.0/10 that the host doesn't use.
	SandboxCIDR string
	// HelperPath is the helper's binary; empty: the embedded one.
	HelperPath string
	Logger     *slog.Logger
}

// Runtime implements sandbox.Runtime on containerd.
type Runtime struct {
	cfg     Config
	log     *slog.Logger
	client  *client
	daemon  *daemon // nil for an existing containerd
	cgroups *cgroups
	pairs   *pairs
	volumes *volumes
	helper  string // directory of the helper's binary, mounted into sandboxes
	lock    *os.File
	shared  string          // directory of the sandboxes' directories, a shared mount
	network *egress.Network // nil: there is none, for the reason noEgress
	// noEgress is why sandboxes can't have other policies than none.
	noEgress error
	// readMappings tells that runc reads a user namespace's mappings itself.
	readMappings atomic.Bool

	mu    sync.Mutex
	boxes map[string]*box
}

var _ sandbox.Runtime = (*Runtime)(nil)

// New checks the host, starts or adopts containerd, and finds the sandboxes of earlier processes of this agent.
// It fails if something is missing and says what to install. It needs root.
func New(cfg Config) (*Runtime, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	r := &Runtime{cfg: cfg, log: cfg.Logger, shared: sandboxesDir(cfg), boxes: map[string]*box{}}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	for _, step := range []func(context.Context) error{
		r.prepareDirs, r.prepareCgroups, r.prepareHelper, r.prepareContainerd, r.prepareVolumes, r.adopt, r.prepareNetwork,
	} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, r.Close())
		}
	}
	return r, nil
}

func (c *Config) complete() error {
	if os.Geteuid() != 0 {
		return errors.New("sandboxes need root: run the agent as root")
	}
	if c.StateDir == "" || c.RunDir == "" || c.Logger == nil {
		return errors.New("containerd.Config needs StateDir, RunDir and Logger")
	}
	if c.InstanceID == "" {
		sum := sha256.Sum256([]byte(c.StateDir))
		c.InstanceID = hex.EncodeToString(sum[:6])
	}
	if c.RuntimeHandler == "" {
		c.RuntimeHandler = defaultHandler
	}
	if c.PoolSize == 0 {
		c.PoolSize = defaultPool
	}
	if c.UIDBase == 0 {
		c.UIDBase = defaultUIDBase
	}
	return nil
}

func (r *Runtime) prepareDirs(context.Context) error {
	for _, d := range []string{r.cfg.StateDir, r.cfg.RunDir, r.shared} {
		if err := makeDir(d); err != nil {
			return err
		}
	}
	if err := r.takeLock(); err != nil {
		return err
	}
	if err := writeHosts(hostsFile(r.cfg)); err != nil {
		return err
	}
	return makeShared(r.shared)
}

// takeLock keeps a second process from taking this one's sandboxes for left-overs.
func (r *Runtime) takeLock() (err error) {
	r.lock, err = os.OpenFile(filepath.Join(r.cfg.RunDir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("open the lock: %w", err)
	}
	if err := unix.Flock(int(r.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("another process runs sandboxes in %s: stop it first: %w", r.cfg.RunDir, err)
	}
	return nil
}

// makeDir makes a directory that a sandbox's user may pass but not list.
func makeDir(path string) error {
	if err := os.MkdirAll(path, 0o711); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	return os.Chmod(path, 0o711)
}

func (r *Runtime) prepareCgroups(context.Context) (err error) {
	r.cgroups, err = openCgroups(cgroupRoot, "/mayfly/"+r.cfg.InstanceID)
	return err
}

func (r *Runtime) prepareHelper(context.Context) (err error) {
	r.helper, err = installHelper(r.cfg)
	if err != nil {
		return err
	}
	r.pairs, err = newPairs(r.cfg, filepath.Join(r.helper, helperName))
	return err
}

func (r *Runtime) prepareContainerd(ctx context.Context) (err error) {
	address := r.cfg.Address
	if address == "" {
		r.daemon = newDaemon(r.cfg)
		if err := r.daemon.start(ctx); err != nil {
			return err
		}
		address = r.daemon.socket
	}
	r.client, err = dial(address, "mayfly-"+r.cfg.InstanceID)
	if err != nil {
		return err
	}
	return r.client.check(ctx)
}

func (r *Runtime) prepareVolumes(context.Context) (err error) {
	r.volumes, err = openVolumes(filepath.Join(r.cfg.StateDir, "tmp"), r.cfg.PoolSize, r.log)
	return err
}

// Run keeps containerd alive and the pools filled until ctx ends. containerd and sandboxes live on.
func (r *Runtime) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.pairs.pool.run(ctx, r.log) })
	if r.volumes.loops {
		g.Go(func() error { return r.volumes.pool.run(ctx, r.log) })
	}
	if r.network != nil {
		g.Go(func() error { return r.network.Run(ctx) })
	}
	if r.daemon != nil {
		g.Go(func() error { return r.daemon.run(ctx, r.log) })
	}
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// Close releases what this process holds: what is pooled, and the connection. containerd and sandboxes live on.
func (r *Runtime) Close() error {
	var errs []error
	if r.pairs != nil {
		r.pairs.pool.close()
	}
	if r.volumes != nil {
		r.volumes.pool.close()
	}
	if r.network != nil {
		errs = append(errs, r.network.Close())
	}
	if r.client != nil {
		errs = append(errs, r.client.conn.Close())
	}
	if r.lock != nil {
		errs = append(errs, r.lock.Close())
	}
	return errors.Join(errs...)
}

// Stop destroys all sandboxes of this instance and ends the containerd that it started: for `mayfly down`.
func Stop(ctx context.Context, cfg Config) error {
	if err := cfg.complete(); err != nil {
		return err
	}
	if cfg.Address == "" && nothingToStop(cfg) {
		return egress.Remove(cfg.InstanceID)
	}
	cfg.SandboxCIDR = "" // of no use any more, and perhaps in the way
	r, err := New(cfg)
	if err != nil {
		return err
	}
	ids, err := r.List(ctx)
	errs := []error{err}
	for _, id := range ids {
		errs = append(errs, r.Destroy(ctx, id))
	}
	errs = append(errs, r.Close())
	if r.daemon != nil {
		errs = append(errs, r.daemon.stop(ctx))
	}
	errs = append(errs, egress.Remove(cfg.InstanceID), r.cgroups.remove("containerd"), r.cgroups.removeParent(), unmount(r.shared))
	return errors.Join(errs...)
}

// nothingToStop spares a start of containerd only to end it.
func nothingToStop(cfg Config) bool {
	left, err := os.ReadDir(sandboxesDir(cfg))
	return (err == nil && len(left) == 0 || errors.Is(err, os.ErrNotExist)) && newDaemon(cfg).runningPID() == 0
}

func sandboxesDir(cfg Config) string { return filepath.Join(cfg.RunDir, "sandboxes") }
