package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/api/services/tasks/v1"
	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/agent/sandbox"
)

// Wait returns when the helper, process 1, has exited. It goes on over restarts of containerd.
func (r *Runtime) Wait(ctx context.Context, id string) (sandbox.Exit, error) {
	b, ok := r.find(id)
	if !ok {
		return sandbox.Exit{}, unknown(id)
	}
	// containerd must not learn the deadline: it would answer an error of its own a moment before ctx ends here.
	call, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	for {
		end, err := r.client.tasks.Wait(call, &tasks.WaitRequest{ContainerID: id})
		switch {
		case err == nil:
			return r.recordExit(b, int(end.GetExitStatus()), end.GetExitedAt().AsTime()), nil
		case ctx.Err() != nil:
			return sandbox.Exit{}, ctx.Err()
		case isCode(err, codes.Unavailable, codes.Canceled):
			// containerd restarts; the call waits for it.
		case b.known() != nil:
			return *b.known(), nil
		case isNotFound(err):
			return sandbox.Exit{}, unknown(id)
		default:
			return sandbox.Exit{}, fmt.Errorf("wait for sandbox %s: %w", id, err)
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return sandbox.Exit{}, err
		}
	}
}

func (b *box) known() *sandbox.Exit {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.exit
}

func (r *Runtime) recordExit(b *box, code int, at time.Time) sandbox.Exit {
	if r.cgroups.oomKills(b.id) > 0 {
		b.setOOM()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.exit == nil {
		b.exit = &sandbox.Exit{Code: code, OOMKilled: b.oom, Time: at}
	}
	return *b.exit
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// Destroy kills everything in the sandbox and removes its traces. After an error it can be repeated.
func (r *Runtime) Destroy(ctx context.Context, id string) error {
	b, ok := r.find(id)
	if !ok {
		return nil
	}
	b.life.Lock()
	defer b.life.Unlock()
	if _, ok := r.find(id); !ok {
		return nil // another Destroy was first
	}
	if err := r.destroy(ctx, b); err != nil {
		return fmt.Errorf("destroy sandbox %s: %w", id, err)
	}
	if b.uid != 0 {
		r.pairs.uids.release(b.uid)
	}
	r.forget(b)
	return nil
}

func (r *Runtime) destroy(ctx context.Context, b *box) error {
	if r.cgroups.oomKills(b.id) > 0 {
		b.setOOM() // after this its cgroup is gone
	}
	r.cgroups.kill(b.id)
	if err := r.deleteTask(ctx, b); err != nil {
		return err
	}
	_, err := r.client.containers.Delete(ctx, &containers.DeleteContainerRequest{ID: b.id})
	if err := ignoreNotFound(err); err != nil {
		return fmt.Errorf("delete container: %w", err)
	}
	return errors.Join(r.cgroups.remove(b.id), r.removeDir(b.id), r.disconnect(b))
}

// disconnect removes the interface, once: its slot may be another's afterwards.
func (r *Runtime) disconnect(b *box) error {
	err := r.pairs.disconnect(b.slot)
	if err == nil {
		b.slot = 0
	}
	return err
}

// deleteTask deletes the task once its process has ended.
func (r *Runtime) deleteTask(ctx context.Context, b *box) error {
	for {
		_, err := r.client.tasks.Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: b.id})
		if err == nil || isNotFound(err) {
			return nil
		}
		// The kernel takes a moment to kill; a container still being started may have had no process to kill.
		if !isCode(err, codes.FailedPrecondition, codes.Unavailable, codes.Unknown) {
			return fmt.Errorf("delete task: %w", err)
		}
		r.cgroups.kill(b.id)
		if perr := pause(ctx, 5*time.Millisecond); perr != nil {
			return fmt.Errorf("delete task: %w", errors.Join(perr, err))
		}
	}
}

func (r *Runtime) removeDir(id string) error {
	dir := r.dir(id)
	errs := []error{r.volumes.remove(tmpDir(dir), id), unmount(taskDir(dir)), unmount(secretsDir(dir))}
	for _, d := range []string{taskDir(dir), tmpDir(dir), secretsDir(dir), dir} {
		if err := os.Remove(d); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
