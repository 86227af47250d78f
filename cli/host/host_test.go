package host

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// machine is a Local whose file systems and kernel are made up.
type machine struct {
	Local
	magic  map[string]int64
	kernel string
	uid    int
	tables error
}

func (m machine) FSMagic(path string) int64 { return m.magic[path] }
func (m machine) KernelRelease() string     { return m.kernel }
func (m machine) Geteuid() int              { return m.uid }
func (m machine) TryNFTables() error        { return m.tables }

func TestCgroupMode(t *testing.T) {
	for want, magic := range map[Cgroups]map[string]int64{
		CgroupsV2:     {"/sys/fs/cgroup": unix.CGROUP2_SUPER_MAGIC},
		CgroupsHybrid: {"/sys/fs/cgroup": unix.TMPFS_MAGIC, "/sys/fs/cgroup/unified": unix.CGROUP2_SUPER_MAGIC, "/sys/fs/cgroup/memory": unix.CGROUP_SUPER_MAGIC},
		CgroupsV1:     {"/sys/fs/cgroup": unix.TMPFS_MAGIC, "/sys/fs/cgroup/memory": unix.CGROUP_SUPER_MAGIC},
		CgroupsNone:   {},
	} {
		if got := CgroupMode(machine{magic: magic}); got != want {
			t.Errorf("%v: got %s, want %s", magic, got, want)
		}
	}
}

func find(t *testing.T, results []Result, check string) Result {
	t.Helper()
	i := slices.IndexFunc(results, func(r Result) bool { return r.Check == check })
	if i < 0 {
		t.Fatalf("no check %q", check)
	}
	return results[i]
}

func TestCheckOfABareMachine(t *testing.T) {
	m := machine{Local: Local{Root: t.TempDir()}, kernel: "5.10.0-1", uid: 1000}
	results := Check(m, Options{StateDir: "/var/lib/mayfly"})
	for _, check := range []string{"root", "kernel", "cgroups", "user namespaces", "debian-archive-keyring"} {
		if r := find(t, results, check); r.Status != Missing || r.Advice == "" {
			t.Errorf("%+v", r)
		}
	}
	if packages := PackagesFor(results); !slices.Contains(packages, "debian-archive-keyring") {
		t.Errorf("packages %v", packages)
	}
	if r := find(t, results, "disk space"); r.Found == "" || r.Status == Missing {
		t.Errorf("%+v", r)
	}
}

func TestCheckWarnsOfMissingNFTables(t *testing.T) {
	if r := nfTables(machine{}); r.Status != OK {
		t.Errorf("%+v", r)
	}
	if r := nfTables(machine{tables: syscall.EPROTONOSUPPORT}); r.Status != Warning || !strings.Contains(r.Advice, "none") {
		t.Errorf("%+v", r)
	}
}

func TestCheckFindsUserNamespaces(t *testing.T) {
	m := machine{Local: Local{Root: t.TempDir()}}
	path := m.path("/proc/sys/user")
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]Status{"0\n": Missing, "1000\n": OK} {
		if err := os.WriteFile(filepath.Join(path, "max_user_namespaces"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if r := userNamespaces(m); r.Status != want {
			t.Errorf("%q: %+v", text, r)
		}
	}
}

func TestAtLeast(t *testing.T) {
	for release, want := range map[string]bool{"5.12.0": true, "5.11.9": false, "6.1.0-18-amd64": true, "10.0": true, "4.19": false, "": false, "x": false} {
		if got := atLeast(release, 5, 12); got != want {
			t.Errorf("%q: %v", release, got)
		}
	}
}

func TestTryListen(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := (Local{}).TryListen(address); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a taken port: %v", err)
	}
	if r := port(Local{}, address); r.Status != Warning || r.Found != "taken" {
		t.Errorf("%+v", r)
	}
	l.Close()
	if err := (Local{}).TryListen(address); err != nil {
		t.Errorf("a free port: %v", err)
	}
}

func TestHoldServices(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policy-rc.d")
	restore, err := holdServices(path)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, "containerd", "start").CombinedOutput()
	if e, ok := errors.AsType[*exec.ExitError](err); !ok || e.ExitCode() != 101 {
		t.Errorf("the policy says %v %s, want exit 101", err, out)
	}
	// The policy of the host, or of another apt run, stays.
	other, err := holdServices(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := other(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error("somebody else's policy was removed")
	}
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error("our policy was left")
	}
}

func TestProcessesAndLeftovers(t *testing.T) {
	proc := t.TempDir()
	add := func(pid, parent int, state, cmdline string) {
		dir := filepath.Join(proc, fmt.Sprint(pid))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		stat := fmt.Sprintf("%d (na) me) %s %d 1 1", pid, state, parent)
		args := strings.ReplaceAll(cmdline, " ", "\x00")
		if err := errors.Join(os.WriteFile(filepath.Join(dir, "stat"), []byte(stat), 0o644), os.WriteFile(filepath.Join(dir, "cmdline"), []byte(args), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	add(1, 0, "S", "/sbin/init")
	add(2, 0, "S", "")
	add(10, 1, "S", "/usr/bin/containerd --config /var/lib/mayfly/agent/containerd/config.toml")
	add(11, 1, "S", "/usr/bin/containerd-shim-runc-v2 -namespace mayfly -address /run/mayfly/containerd/containerd.sock")
	add(12, 11, "S", "/run/mayfly-helper/init exec")
	add(13, 12, "S", "python3 bootstrap.py")
	add(14, 11, "Z", "")
	add(20, 1, "S", "/usr/bin/containerd")
	add(21, 20, "S", "/usr/bin/containerd-shim-runc-v2 -address /run/containerd/containerd.sock")
	add(22, 1, "S", "vi /var/lib/mayfly/agent/containerd/config.toml")
	add(23, 1, "S", "/usr/bin/containerd --config=/var/lib/mayfly2/config.toml")
	all, err := Processes(proc)
	if err != nil || len(all) != 11 {
		t.Fatalf("%d processes, %v", len(all), err)
	}
	var pids []int
	for _, p := range Leftovers(all, "/var/lib/mayfly", "/run/mayfly") {
		pids = append(pids, p.PID)
	}
	if want := []int{10, 13, 12, 11}; !slices.Equal(pids, want) {
		t.Errorf("got %v, want %v", pids, want)
	}
}

func TestStop(t *testing.T) {
	for name, script := range map[string]string{"one that obeys": "echo ready; sleep 1000 & wait", "one that does not": "trap '' TERM; echo ready; while :; do sleep 1000 & wait; done"} {
		cmd := exec.Command("sh", "-c", script)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Only now it is what it will be, with its trap.
		if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
			t.Fatal(err)
		}
		if !Running(cmd.Process.Pid, "sh") || Running(cmd.Process.Pid, "mayfly") {
			t.Errorf("%s: Running is wrong", name)
		}
		if err := Stop(t.Context(), cmd.Process.Pid, 100*time.Millisecond); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		// The sleep of the script is in its group.
		if err := unix.Kill(-cmd.Process.Pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Error(err)
		}
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) {
			t.Errorf("%s ended by itself: %v", name, err)
		}
		if Running(cmd.Process.Pid, "sh") {
			t.Errorf("%s still runs", name)
		}
		if err := Stop(t.Context(), cmd.Process.Pid, time.Second); err != nil {
			t.Errorf("%s, again: %v", name, err)
		}
	}
}

func TestMountsBelow(t *testing.T) {
	info := `22 1 0:20 / / rw shared:1 - ext4 /dev/vda rw
30 22 0:21 / /run rw - tmpfs tmpfs rw
31 30 0:22 / /run/mayfly/sandboxes rw shared:9 - tmpfs tmpfs rw
32 31 0:23 / /run/mayfly/sandboxes/a\040b rw - tmpfs tmpfs rw
33 30 0:24 / /run/mayfly2 rw - tmpfs tmpfs rw
`
	want := []string{"/run/mayfly/sandboxes/a b", "/run/mayfly/sandboxes"}
	if got := MountsBelow(info, "/run/mayfly"); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWipe(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "mayfly")
	for _, d := range []string{"server/raft", "agent"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	strange := filepath.Join(dir, "thesis.tex")
	if err := os.WriteFile(strange, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Wipe(dir); err == nil || !strings.Contains(err.Error(), "thesis.tex") {
		t.Errorf("a directory with something else: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "server/raft")); err != nil {
		t.Error("a refused wipe removed something")
	}
	if err := os.Remove(strange); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(Wipe(dir), Wipe(dir)); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Error("the directory is left")
	}
}
