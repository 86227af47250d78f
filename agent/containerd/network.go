package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/mayfly-faas/mayfly/agent/containerd/egress"
)

// prepareNetwork lets sandboxes have egress. Where the host can't, those that need none still run.
func (r *Runtime) prepareNetwork(context.Context) error {
	var kept []int
	for _, b := range r.boxes {
		if b.slot != 0 {
			kept = append(kept, b.slot)
		}
	}
	network, err := egress.Open(egress.Config{InstanceID: r.cfg.InstanceID, CIDR: r.cfg.SandboxCIDR, Logger: r.log}, kept)
	if err == nil {
		err = writeResolvConf(resolvConf(r.cfg), network.ResolvConf())
	}
	if errors.Is(err, egress.ErrConfig) {
		return err
	}
	if err != nil {
		r.noEgress = err
		r.log.Error("sandboxes get no egress: functions whose policy is not none can't run here", slog.Any("error", err))
		return nil
	}
	r.network, r.pairs.network = network, network
	r.log.Info("sandboxes have egress by policy", slog.String("addresses", network.Pool().String()))
	return nil
}

// EgressError is why sandboxes can't have other egress policies than none, nil if they can.
func (r *Runtime) EgressError() error { return r.noEgress }

// resolvConf is the one file that all sandboxes see as /etc/resolv.conf.
func resolvConf(cfg Config) string { return filepath.Join(cfg.RunDir, "resolv.conf") }

// writeResolvConf leaves the file in its place: sandboxes that live have it mounted.
func writeResolvConf(path, text string) error {
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write the sandboxes' resolv.conf: %w", err)
	}
	return os.Chmod(path, 0o644) // whatever the umask
}

// makeFile makes an empty file in a root file system, as a place to mount on, if there is nothing. Links in it don't lead out.
func makeFile(rootFS, name string) error {
	root, err := os.OpenRoot(rootFS)
	if err != nil {
		return err
	}
	defer root.Close()
	name = strings.TrimPrefix(name, "/")
	if _, err := root.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := root.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("make %s in %s: %w", name, rootFS, err)
	}
	return f.Close()
}
