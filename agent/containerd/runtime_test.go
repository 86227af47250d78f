package containerd

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/mayfly-faas/mayfly/agent/sandbox"
	"github.com/mayfly-faas/mayfly/agent/sandbox/runtimetest"
)

func TestConformance(t *testing.T) {
	runtimetest.Run(t, func(*testing.T) sandbox.Runtime { return shared.runtime },
		func(t *testing.T, args ...string) sandbox.Config { return probe(t, args...) })
}

func TestOutputAndArguments(t *testing.T) {
	out := run(t, nil, "echo", "a", "b c")
	if out != "a b c\nto standard error" {
		t.Errorf("said %q", out)
	}
}

func TestCommandMayNameTheMode(t *testing.T) {
	out := run(t, func(c *sandbox.Config) { c.Command = []string{"exec", "--", "/bin/probe", "echo", "hi"} })
	if !strings.HasPrefix(out, "hi") {
		t.Errorf("said %q", out)
	}
}

func TestExits(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		oom  bool
	}{
		{[]string{"exit", "42"}, 42, false},
		{[]string{"signal"}, 128 + int(syscall.SIGKILL), false},
		{[]string{"oom"}, 128 + int(syscall.SIGKILL), true},
		// Killing any process of it tells, also one that its parent survives.
		{[]string{"oom-child"}, 0, true},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			exit := start(t, shared.runtime, probe(t, c.args...)).wait()
			if exit.Code != c.code || exit.OOMKilled != c.oom {
				t.Errorf("%+v, want code %d, out of memory %v", exit, c.code, c.oom)
			}
		})
	}
}

func TestMissingProgram(t *testing.T) {
	c := probe(t)
	c.Command = []string{"/bin/nothing"}
	if exit := start(t, shared.runtime, c).wait(); exit.Code != 125 {
		t.Errorf("%+v, want 125", exit)
	}
}

func TestOrphansAreReaped(t *testing.T) {
	if out := run(t, nil, "orphan"); out != "reaped" {
		t.Errorf("said %q", out)
	}
}

func TestPIDLimit(t *testing.T) {
	out := run(t, func(c *sandbox.Config) { c.PIDs = 40 }, "fork")
	if n, err := strconv.Atoi(out); err != nil || n < 1 || n > 40 {
		t.Errorf("%s children at once under a limit of 40 tasks", out)
	}
}

func TestTmpLimit(t *testing.T) {
	const limit = 32 << 20
	out := run(t, func(c *sandbox.Config) { c.TmpBytes = limit }, "fill", "/tmp/big")
	n, err := strconv.ParseInt(out, 10, 64)
	if err != nil || n < limit || n > limit+limit/4 {
		t.Errorf("%s bytes fit into a /tmp of %d", out, limit)
	}
}

func TestTmpIsNotMemory(t *testing.T) {
	out := run(t, func(c *sandbox.Config) { c.TmpBytes = 256 << 20 }, "fill", "/tmp/big")
	if n, err := strconv.ParseInt(out, 10, 64); err != nil || n < 256<<20 {
		t.Errorf("%s bytes fit into a /tmp of 256 MiB under 128 MiB of memory", out)
	}
}

func TestPlaceCode(t *testing.T) {
	b := start(t, shared.runtime, probe(t, "await", "/var/task/handler.py"))
	code := t.TempDir()
	if err := os.WriteFile(filepath.Join(code, "handler.py"), []byte("the code"), 0o644); err != nil {
		t.Fatal(err)
	}
	makeReachable(t, code)
	if err := shared.runtime.PlaceCode(t.Context(), b.ID, code); err != nil {
		t.Fatal(err)
	}
	if out := b.output(); out != "the code|true" {
		t.Errorf("said %q, want the code, read-only", out)
	}
}

func TestCodeFromTheStart(t *testing.T) {
	code := t.TempDir()
	if err := os.WriteFile(filepath.Join(code, "x"), []byte("the code"), 0o644); err != nil {
		t.Fatal(err)
	}
	makeReachable(t, code)
	if out := run(t, func(c *sandbox.Config) { c.CodeDir = code }, "await", "/var/task/x"); out != "the code|true" {
		t.Errorf("said %q, want the code, read-only", out)
	}
}

// makeReachable lets others pass to a directory of the test.
func makeReachable(t *testing.T, dir string) {
	t.Helper()
	for ; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUnreachableRootIsRefused(t *testing.T) {
	c := probe(t, "sleep")
	c.RootFS = filepath.Join(t.TempDir(), "closed", "rootfs")
	if err := os.MkdirAll(c.RootFS, 0o700); err != nil {
		t.Fatal(err)
	}
	err := shared.runtime.Create(t.Context(), c)
	if err == nil || !strings.Contains(err.Error(), "chmod o+x") {
		t.Errorf("Create: %v, want one that says what to do", err)
	}
}

// inside is what the probe saw.
type inside struct {
	UID        int               `json:"uid"`
	GID        int               `json:"gid"`
	PPID       int               `json:"ppid"`
	Env        []string          `json:"env"`
	Status     map[string]string `json:"status"`
	Init       map[string]string `json:"init"`
	Interfaces []string          `json:"interfaces"`
	Processes  []string          `json:"processes"`
	CWD        string            `json:"cwd"`
	UIDMap     string            `json:"uid_map"`
	Mounts     string            `json:"mounts"`
	Cgroup     string            `json:"cgroup"`
	Attempts   map[string]string `json:"attempts"`
	Outside    []string          `json:"outside"`
}

func look(t *testing.T) inside {
	t.Helper()
	t.Setenv("MAYFLY_TEST_SECRET", "of the agent")
	out := run(t, nil, "facts")
	var in inside
	if err := json.Unmarshal([]byte(out), &in); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return in
}

func TestIsolation(t *testing.T) {
	in := look(t)
	if in.UID != 1000 || in.GID != 1000 || in.PPID != 1 || in.CWD != "/var/task" {
		t.Errorf("uid %d gid %d ppid %d cwd %s", in.UID, in.GID, in.PPID, in.CWD)
	}
	if len(in.Status) < 6 || !maps.Equal(in.Init, in.Status) {
		t.Errorf("process 1 has other rights: %v, %v", in.Init, in.Status)
	}
	for k, v := range in.Status {
		want := map[string]string{"NoNewPrivs": "1", "Seccomp": "2"}[k]
		if want == "" {
			want = "0000000000000000"
		}
		if v != want {
			t.Errorf("%s is %s, want %s", k, v, want)
		}
	}
	if m := strings.Fields(in.UIDMap); len(m) != 3 || m[0] != "0" || m[1] == "0" || m[2] != "65536" {
		t.Errorf("uid map %q", in.UIDMap)
	}
	if i := strings.Join(in.Interfaces, ", "); i != "lo up=true, eth0 up=true" {
		t.Errorf("interfaces %q", in.Interfaces)
	}
	if len(in.Processes) != 2 {
		t.Errorf("processes %q, want the helper and the probe", in.Processes)
	}
	if env := strings.Join(in.Env, " "); env != "PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 HOME=/tmp" {
		t.Errorf("environment %q", env)
	}
	for line := range strings.Lines(in.Cgroup) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); f[2] != "/" {
			t.Errorf("cgroup shows the host: %q", line)
		}
	}
	if strings.Contains(in.Mounts, shared.dir) {
		t.Errorf("mounts show host paths: %s", in.Mounts)
	}
}

func TestAttemptsFail(t *testing.T) {
	for name, got := range look(t).Attempts {
		switch {
		case strings.HasPrefix(name, "may ") && got != "<nil>":
			t.Errorf("%s: %s", name, got)
		case !strings.HasPrefix(name, "may ") && (got == "<nil>" || got == ""):
			t.Errorf("%s: succeeded", name)
		case (name == "clone3" || name == "future call") && got != syscall.ENOSYS.Error():
			t.Errorf("%s: %s, want ENOSYS so that C libraries fall back", name, got)
		}
	}
}

func TestNothingOfTheHostIsVisible(t *testing.T) {
	allowed := []string{"/bin/probe", "/dev/", "/run/mayfly/log", "/run/mayfly-helper/init", "/tmp/", "/proc", "/etc/hosts", "/etc/resolv.conf"}
next:
	for _, path := range look(t).Outside {
		for _, a := range allowed {
			if strings.HasPrefix(path, a) {
				continue next
			}
		}
		t.Errorf("visible inside: %s", path)
	}
}

func TestCPUIsSharedInProportion(t *testing.T) {
	for milli, want := range map[int32]uint64{1: 2, 72: 73, 1000: 1024, 3500: 3584} {
		if got := cpu(milli); *got.Shares != want || got.Quota != nil {
			t.Errorf("%d mCPU: %+v", milli, got)
		}
	}
}

func TestSandboxHasItsCPUShare(t *testing.T) {
	c := probe(t, "sleep")
	c.MilliCPUs = 500
	start(t, shared.runtime, c)
	file, want := filepath.Join(shared.runtime.cgroups.dir("cpu", c.ID), "cpu.shares"), int64(512)
	if shared.runtime.cgroups.unified {
		file, want = filepath.Join(shared.runtime.cgroups.dir("cpu", c.ID), "cpu.weight"), 1+(512-2)*9999/262142
	}
	if got, err := readInt(file); err != nil || got != want {
		t.Errorf("%s is %d (%v), want %d", file, got, err, want)
	}
}
