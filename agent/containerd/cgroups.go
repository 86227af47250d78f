package containerd

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mayfly-faas/mayfly/agent/sandbox"
)

const cgroupRoot = "/sys/fs/cgroup"

// controllers are the version 1 hierarchies in which a sandbox has a cgroup. Where the host lacks one of memory, cpu,
// cpuacct or pids, sandboxes can't be limited and New fails.
func controllers() []string {
	return []string{"memory", "cpu", "cpuacct", "pids", "freezer", "cpuset", "devices", "blkio", "net_cls", "net_prio", "perf_event", "hugetlb", "rdma", "misc", "systemd", "unified"}
}

// cgroups reads and removes the cgroups of sandboxes, which the container runtime makes.
type cgroups struct {
	root    string
	parent  string // such as /mayfly/<instance>, below every hierarchy
	unified bool   // version 2 with controllers
	swap    bool   // swap can be limited
}

func openCgroups(root, parent string) (*cgroups, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return nil, fmt.Errorf("no cgroups at %s (mount cgroup2 there): %w", root, err)
	}
	c := &cgroups{root: root, parent: parent, unified: st.Type == unix.CGROUP2_SUPER_MAGIC}
	err := c.checkControllers()
	if err != nil {
		return nil, err
	}
	if c.swap, err = c.canLimitSwap(); err != nil {
		return nil, err
	}
	return c, c.weighParent()
}

// Weights of all sandboxes together, against the other groups of the host. Under version 1 each process in the root
// group competes with them on its own, at 1024.
const (
	parentSharesV1 = "8192"
	parentWeightV2 = "400"
)

// weighParent sees to it that sandboxes aren't starved by what runs beside them, the control plane among it.
func (c *cgroups) weighParent() error {
	dir, file, weight := filepath.Join(c.root, "cpu", filepath.Dir(c.parent)), "cpu.shares", parentSharesV1
	if c.unified {
		dir, file, weight = filepath.Join(c.root, filepath.Dir(c.parent)), "cpu.weight", parentWeightV2
		if err := os.WriteFile(filepath.Join(c.root, "cgroup.subtree_control"), []byte("+cpu"), 0); err != nil {
			return fmt.Errorf("enable the cpu controller for cgroups under %s: %w", c.root, err)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, file), []byte(weight), 0); err != nil {
		return fmt.Errorf("weigh the sandboxes' cgroup: %w", err)
	}
	return nil
}

func (c *cgroups) checkControllers() error {
	for _, need := range []string{"memory", "cpu", "pids"} {
		if c.unified && !c.hasController(need) || !c.unified && !exists(filepath.Join(c.root, need, "cgroup.procs")) {
			return fmt.Errorf("the %s cgroup controller is missing under %s: enable it in the kernel's command line", need, c.root)
		}
	}
	return nil
}

func (c *cgroups) hasController(name string) bool {
	b, err := os.ReadFile(filepath.Join(c.root, "cgroup.controllers"))
	return err == nil && strings.Contains(" "+strings.TrimSpace(string(b))+" ", " "+name+" ")
}

// canLimitSwap tells whether the kernel counts swap. Asked to limit it on one that doesn't, container runtimes fail.
func (c *cgroups) canLimitSwap() (bool, error) {
	if !c.unified {
		return exists(filepath.Join(c.root, "memory", "memory.memsw.limit_in_bytes")), nil
	}
	// The root has no limits, so a child must show it.
	if err := os.WriteFile(filepath.Join(c.root, "cgroup.subtree_control"), []byte("+memory"), 0); err != nil {
		return false, fmt.Errorf("enable the memory controller for cgroups under %s: %w", c.root, err)
	}
	top := filepath.Join(c.root, filepath.Dir(c.parent))
	if err := os.MkdirAll(top, 0o755); err != nil {
		return false, fmt.Errorf("make cgroup: %w", err)
	}
	return exists(filepath.Join(top, "memory.swap.max")), nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// path is the cgroup of a sandbox as the OCI spec names it.
func (c *cgroups) path(id string) string { return c.parent + "/" + id }

// dir is the directory of a sandbox's cgroup in the hierarchy of a controller.
func (c *cgroups) dir(controller, id string) string {
	if c.unified {
		return filepath.Join(c.root, c.path(id))
	}
	return filepath.Join(c.root, controller, c.path(id))
}

// hierarchies are the roots in which a cgroup may exist.
func (c *cgroups) hierarchies() []string {
	if c.unified {
		return []string{c.root}
	}
	var out []string
	for _, name := range controllers() {
		if dir := filepath.Join(c.root, name); exists(dir) {
			out = append(out, dir)
		}
	}
	return out
}

// oomKills counts the processes that the kernel killed because the sandbox was at its memory limit.
func (c *cgroups) oomKills(id string) int64 {
	file := "memory.oom_control"
	if c.unified {
		file = "memory.events"
	}
	return readField(filepath.Join(c.dir("memory", id), file), "oom_kill")
}

func (c *cgroups) usage(id string) (u sandbox.Usage, err error) {
	if c.unified {
		return c.usageV2(id)
	}
	if u.MemoryBytes, err = readInt(filepath.Join(c.dir("memory", id), "memory.usage_in_bytes")); err != nil {
		return u, err
	}
	if u.PeakMemoryBytes, err = readInt(filepath.Join(c.dir("memory", id), "memory.max_usage_in_bytes")); err != nil {
		return u, err
	}
	ns, err := readInt(filepath.Join(c.dir("cpuacct", id), "cpuacct.usage"))
	u.CPU = time.Duration(ns)
	return u, err
}

func (c *cgroups) usageV2(id string) (u sandbox.Usage, err error) {
	dir := c.dir("", id)
	if u.MemoryBytes, err = readInt(filepath.Join(dir, "memory.current")); err != nil {
		return u, err
	}
	u.PeakMemoryBytes, err = readInt(filepath.Join(dir, "memory.peak"))
	if errors.Is(err, fs.ErrNotExist) { // before Linux 5.19
		u.PeakMemoryBytes, err = u.MemoryBytes, nil
	}
	u.CPU = time.Duration(readField(filepath.Join(dir, "cpu.stat"), "usage_usec")) * time.Microsecond
	return u, err
}

// kill sends SIGKILL to everything in the sandbox, frozen or not.
func (c *cgroups) kill(id string) {
	if c.unified {
		if os.WriteFile(filepath.Join(c.dir("", id), "cgroup.kill"), []byte("1"), 0) == nil {
			return
		}
		_ = os.WriteFile(filepath.Join(c.dir("", id), "cgroup.freeze"), []byte("0"), 0) // there is nothing to thaw if it is gone
	} else {
		_ = os.WriteFile(filepath.Join(c.dir("freezer", id), "freezer.state"), []byte("THAWED"), 0)
	}
	for _, pid := range c.procs(id) {
		c.killMember(pid, id)
	}
}

// killMember kills pid only if it still is in the sandbox: the descriptor keeps the number from being used again.
func (c *cgroups) killMember(pid int, id string) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // it has ended
	}
	defer unix.Close(fd)
	of, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err == nil && bytes.Contains(of, []byte(c.path(id)+"\n")) {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) // it may have ended
	}
}

func (c *cgroups) procs(id string) []int {
	b, err := os.ReadFile(filepath.Join(c.dir("pids", id), "cgroup.procs"))
	if err != nil {
		return nil
	}
	var pids []int
	for field := range strings.FieldsSeq(string(b)) {
		if pid, err := strconv.Atoi(field); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// remove removes what the container runtime left; the processes must have ended.
func (c *cgroups) remove(id string) error {
	var errs []error
	for _, h := range c.hierarchies() {
		errs = append(errs, removeCgroup(filepath.Join(h, c.path(id))))
	}
	return errors.Join(errs...)
}

// removeCgroup retries for a moment: a cgroup stays busy until its last process is reaped.
func removeCgroup(dir string) error {
	var err error
	for range 50 {
		if err = os.Remove(dir); err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("remove cgroup: %w", err)
}

// removeParent removes the instance's cgroup, and the one above unless another instance uses it.
func (c *cgroups) removeParent() error {
	var errs []error
	for _, h := range c.hierarchies() {
		errs = append(errs, removeCgroup(filepath.Join(h, c.parent)))
		_ = os.Remove(filepath.Join(h, filepath.Dir(c.parent))) // in use by another instance
	}
	return errors.Join(errs...)
}

// join moves process pid to the instance's cgroup of this name, where that is possible.
func (c *cgroups) join(name string, pid int) error {
	var errs []error
	for _, h := range c.hierarchies() {
		if !c.unified && filepath.Base(h) == "cpuset" {
			continue // a new cpuset has no CPUs
		}
		dir := filepath.Join(h, c.path(name))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0))
	}
	return errors.Join(errs...)
}

func readInt(path string) (int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}

// readField is the number after a name in a file of lines "name number"; 0 if there is none.
func readField(path, name string) int64 {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			n, _ := strconv.ParseInt(rest, 10, 64) // 0 is the answer then
			return n
		}
	}
	return 0
}
