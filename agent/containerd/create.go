package containerd

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/mayfly-faas/mayfly/agent/sandbox"
)

const (
	specType    = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
	optionsType = "containerd.runc.v1.Options"
)

// Create makes the sandbox and starts its helper. A failed Create leaves nothing behind, also when ctx ends.
//
// The agent makes agent.sock in SocketDir before; Create makes the log FIFO if it is missing, and gives both to the
// sandbox's user.
func (r *Runtime) Create(ctx context.Context, c sandbox.Config) error {
	if err := checkConfig(c); err != nil {
		return err
	}
	b, err := r.add(c.ID)
	if err != nil {
		return err
	}
	// containerd is not left half-way: a cancelled call goes on there, out of reach of Destroy.
	whole, stop := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer stop()
	b.life.Lock()
	err = r.create(whole, b, c)
	b.life.Unlock()
	err = cmp.Or(err, ctx.Err())
	if err == nil {
		return nil
	}
	err = fmt.Errorf("create sandbox %s: %w", c.ID, err)
	cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	return errors.Join(err, r.Destroy(cleanup, c.ID))
}

func checkConfig(c sandbox.Config) error {
	// As containerd takes them, and short enough for a path.
	if ok, _ := regexp.MatchString(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`, c.ID); !ok {
		return fmt.Errorf("sandbox id %q must be letters, digits, '-', '_' and '.'", c.ID)
	}
	for _, p := range []string{c.RootFS, c.SocketDir} {
		if !filepath.IsAbs(p) {
			return fmt.Errorf("sandbox %s: %q must be an absolute path", c.ID, p)
		}
	}
	if c.CodeDir != "" && !filepath.IsAbs(c.CodeDir) {
		return fmt.Errorf("sandbox %s: %q must be an absolute path", c.ID, c.CodeDir)
	}
	if len(c.Command) == 0 || c.MemoryBytes <= 0 || c.MilliCPUs <= 0 || c.PIDs <= 0 {
		return fmt.Errorf("sandbox %s needs a command and limits of memory, CPU and processes", c.ID)
	}
	if err := checkSecretFiles(c); err != nil {
		return err
	}
	if !slices.Contains([]sandbox.Egress{sandbox.EgressNone, sandbox.EgressInternet, sandbox.EgressAll}, c.Egress) {
		return fmt.Errorf("sandbox %s: there is no egress policy %q", c.ID, c.Egress)
	}
	return traversable(c.RootFS)
}

// traversable checks that a sandbox's user can reach a directory: its uid is nobody's on the host.
func traversable(path string) error {
	for dir := path; ; dir = filepath.Dir(dir) {
		st, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if st.Mode().Perm()&0o001 == 0 {
			return fmt.Errorf("sandboxes can't reach %s: %s has mode %#o, allow others to pass (chmod o+x)", path, dir, st.Mode().Perm())
		}
		if dir == "/" {
			return nil
		}
	}
}

func (r *Runtime) create(ctx context.Context, b *box, c sandbox.Config) error {
	p, err := r.pairs.pool.get()
	if err != nil {
		return err
	}
	defer p.close() // the sandbox has joined by then, or never will
	b.uid, b.slot = p.uid, p.slot
	if err := r.permit(p, c.Egress); err != nil {
		return err
	}
	l, err := r.lay(c, p)
	if err != nil {
		return err
	}
	if err := r.createTask(ctx, c, l); err != nil {
		return err
	}
	if _, err := r.client.tasks.Start(ctx, &tasks.StartRequest{ContainerID: c.ID}); err != nil {
		return fmt.Errorf("start task: %w", err)
	}
	return nil
}

// permit puts the sandbox's policy in force before anything runs in it.
func (r *Runtime) permit(p *pair, policy sandbox.Egress) error {
	switch {
	case p.slot != 0:
		return r.pairs.network.SetPolicy(p.slot, policy)
	case policy != sandbox.EgressNone:
		return fmt.Errorf("egress policy %s: %w", policy, r.noEgress)
	}
	return nil
}

// createTask makes container and task. Debian 12's runc wants the mappings of a user namespace that it joins to be said; Debian 13's
// reads them from the namespace, and refuses ours. Which one this is shows at the first sandbox.
func (r *Runtime) createTask(ctx context.Context, c sandbox.Config, l layout) error {
	l.readMappings = r.readMappings.Load()
	if err := r.createContainer(ctx, c, l); err != nil {
		return err
	}
	_, err := r.client.tasks.Create(ctx, &tasks.CreateTaskRequest{ContainerID: c.ID})
	if err == nil {
		return nil
	}
	if l.readMappings || !strings.Contains(err.Error(), "both namespace path and non-matching mapping") {
		return fmt.Errorf("create task: %w", err)
	}
	r.readMappings.Store(true)
	if _, err := r.client.containers.Delete(ctx, &containers.DeleteContainerRequest{ID: c.ID}); err != nil {
		return fmt.Errorf("delete container: %w", err)
	}
	return r.createTask(ctx, c, l)
}

// lay makes the sandbox's directories and mounts on the host.
func (r *Runtime) lay(c sandbox.Config, p *pair) (l layout, err error) {
	dir := r.dir(c.ID)
	for _, d := range []string{dir, taskDir(dir), tmpDir(dir)} {
		if err := os.Mkdir(d, 0o711); err != nil {
			return l, err
		}
	}
	user := int(p.uid) + sandboxUID
	if err := r.volumes.place(tmpDir(dir), c.ID, tmpBytes(c), user); err != nil {
		return l, err
	}
	if err := openSockets(c.SocketDir, user); err != nil {
		return l, err
	}
	if err := placeSecrets(secretsDir(dir), c.SecretFiles, user); err != nil {
		return l, fmt.Errorf("place secrets: %w", err)
	}
	l = layout{
		hosts:  hostsFile(r.cfg),
		helper: r.helper, task: taskDir(dir), tmp: tmpDir(dir), secrets: secretsDir(dir), userNS: path(p.user), networkNS: path(p.network), uid: p.uid,
		cgroup: r.cgroups.path(c.ID), limitSwap: r.cgroups.swap,
	}
	if c.CodeDir != "" {
		l.task = c.CodeDir
	}
	if p.slot != 0 {
		l.slot, l.resolvConf = p.slot, resolvConf(r.cfg)
		if err := makeFile(c.RootFS, resolvConfPath); err != nil {
			return l, err
		}
		if l.confOpts, err = lockedOptions(l.resolvConf); err != nil {
			return l, err
		}
	}
	if l.taskOpts, err = lockedOptions(l.task); err != nil {
		return l, err
	}
	l.helpOpts, err = lockedOptions(l.helper)
	return l, err
}

func tmpBytes(c sandbox.Config) int64 {
	if c.TmpBytes <= 0 {
		return defaultTmpBytes
	}
	return c.TmpBytes
}

// openSockets gives the sandbox's user, and nobody else, what the agent made for it.
func openSockets(dir string, user int) error {
	log := filepath.Join(dir, "log")
	if err := unix.Mkfifo(log, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make %s: %w", log, err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		return err
	}
	for _, path := range []string{log, filepath.Join(dir, "agent.sock")} {
		err := os.Lchown(path, user, user)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := os.Chmod(path, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (r *Runtime) createContainer(ctx context.Context, c sandbox.Config, l layout) error {
	spec, err := json.Marshal(buildSpec(c, l))
	if err != nil {
		return fmt.Errorf("write the OCI spec: %w", err)
	}
	runtime := &containers.Container_Runtime{Name: r.cfg.RuntimeHandler}
	if r.cfg.RuntimeHandler == defaultHandler {
		if runtime.Options, err = r.runcOptions(); err != nil {
			return err
		}
	}
	_, err = r.client.containers.Create(ctx, &containers.CreateContainerRequest{Container: &containers.Container{
		ID: c.ID,
		Labels: map[string]string{
			labelInstance: r.cfg.InstanceID, labelUID: strconv.FormatUint(uint64(l.uid), 10), labelSlot: strconv.Itoa(l.slot),
		},
		Runtime: runtime,
		Spec:    &anypb.Any{TypeUrl: specType, Value: spec},
	}})
	if err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	return nil
}

func (r *Runtime) runcOptions() (*anypb.Any, error) {
	value, err := proto.Marshal(&options.Options{Root: filepath.Join(r.cfg.RunDir, "runc")})
	if err != nil {
		return nil, fmt.Errorf("write runc's options: %w", err)
	}
	return &anypb.Any{TypeUrl: optionsType, Value: value}, nil
}
