package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/containerd/containerd/api/services/containers/v1"

	"github.com/mayfly-faas/mayfly/agent/sandbox"
)

const (
	labelInstance = "mayfly/instance"
	labelUID      = "mayfly/uid"
	labelSlot     = "mayfly/slot"
)

// box is what this process knows of a sandbox.
type box struct {
	id   string
	uid  uint32 // first of its range; 0 if unknown
	slot int    // of its interface; 0 if it has none

	life sync.Mutex // held by Create and Destroy: one at a time

	mu   sync.Mutex
	exit *sandbox.Exit // once known
	oom  bool
}

func (b *box) setOOM() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.oom = true
}

func (r *Runtime) add(id string) (*box, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.boxes[id]; ok {
		return nil, fmt.Errorf("sandbox %s exists already", id)
	}
	b := &box{id: id}
	r.boxes[id] = b
	return b, nil
}

func (r *Runtime) find(id string) (*box, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, ok := r.boxes[id]
	return b, ok
}

func (r *Runtime) forget(b *box) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.boxes[b.id] == b {
		delete(r.boxes, b.id)
	}
}

// dir is a sandbox's directory on the host.
func (r *Runtime) dir(id string) string { return filepath.Join(r.shared, id) }

// List returns the ids of all sandboxes of this instance, half-made ones included.
func (r *Runtime) List(context.Context) ([]string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ids := make([]string, 0, len(r.boxes))
	for id := range r.boxes {
		ids = append(ids, id)
	}
	return ids, nil
}

// adopt finds the sandboxes of earlier processes: by container, and by directory where a process died half-way.
func (r *Runtime) adopt(ctx context.Context) error {
	found, err := r.client.containers.List(ctx, &containers.ListContainersRequest{
		Filters: []string{fmt.Sprintf("labels.%q==%s", labelInstance, r.cfg.InstanceID)},
	})
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	for _, c := range found.GetContainers() {
		b := &box{id: c.GetID()}
		b.slot, _ = strconv.Atoi(c.GetLabels()[labelSlot]) // none: 0
		if uid, err := strconv.ParseUint(c.GetLabels()[labelUID], 10, 32); err == nil {
			b.uid = uint32(uid)
			r.pairs.uids.claim(b.uid)
		}
		r.boxes[b.id] = b
	}
	dirs, err := os.ReadDir(r.shared)
	if err != nil {
		return fmt.Errorf("list sandbox directories: %w", err)
	}
	for _, d := range dirs {
		if _, ok := r.boxes[d.Name()]; !ok {
			r.boxes[d.Name()] = &box{id: d.Name()}
		}
	}
	return nil
}

// Usage reads the sandbox's cgroup.
func (r *Runtime) Usage(_ context.Context, id string) (sandbox.Usage, error) {
	if _, ok := r.find(id); !ok {
		return sandbox.Usage{}, unknown(id)
	}
	u, err := r.cgroups.usage(id)
	if err != nil {
		return u, fmt.Errorf("read the usage of sandbox %s: %w", id, err)
	}
	return u, nil
}

// PlaceCode mounts codeDir where the sandbox's /var/task is bound from.
func (r *Runtime) PlaceCode(_ context.Context, id, code string) error {
	if _, ok := r.find(id); !ok {
		return unknown(id)
	}
	if err := bindReadOnly(code, taskDir(r.dir(id))); err != nil {
		return fmt.Errorf("place code in sandbox %s: %w", id, err)
	}
	return nil
}

// ErrUnknown is wrapped by errors about an id that has no sandbox.
var ErrUnknown = errors.New("no such sandbox")

func unknown(id string) error { return fmt.Errorf("sandbox %s: %w", id, ErrUnknown) }
