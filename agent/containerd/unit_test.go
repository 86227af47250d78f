package containerd

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mayfly-faas/mayfly/agent/sandbox"
)

func TestUIDRanges(t *testing.T) {
	u, err := newUIDRanges(lastUID-3*idsPerSandbox, "x")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[uint32]bool{}
	for range 3 {
		uid, err := u.take()
		if err != nil || seen[uid] || uint64(uid)+idsPerSandbox-1 > lastUID {
			t.Errorf("range %d, %v; seen %v", uid, err, seen)
		}
		seen[uid] = true
	}
	if _, err := u.take(); err == nil {
		t.Error("a fourth of three ranges")
	}
	for uid := range seen {
		u.release(uid)
		if got, err := u.take(); err != nil || got != uid {
			t.Errorf("took %d, %v; want the one released, %d", got, err, uid)
		}
	}
	if _, err := newUIDRanges(lastUID, "x"); err == nil {
		t.Error("a base without room")
	}
}

func TestPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var made, discarded atomic.Int32
		var fail atomic.Bool
		p := newPool(2, func() (int32, error) {
			if fail.Load() {
				return 0, errors.New("as asked")
			}
			return made.Add(1), nil
		}, func(int32) { discarded.Add(1) })
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- p.run(ctx, slog.New(slog.DiscardHandler)) }()
		synctest.Wait()
		if made.Load() != 2 {
			t.Errorf("%d made ahead, want 2", made.Load())
		}
		fail.Store(true)
		if v, err := p.get(); err != nil || v != 1 {
			t.Errorf("got %d, %v; want the first made", v, err)
		}
		synctest.Wait()
		fail.Store(false)
		time.Sleep(poolRetry)
		synctest.Wait()
		if made.Load() != 3 {
			t.Errorf("%d made after the failure has passed, want 3", made.Load())
		}
		cancel()
		if err := <-ran; !errors.Is(err, context.Canceled) || discarded.Load() != 2 {
			t.Errorf("run: %v, %d discarded, want 2", err, discarded.Load())
		}
		if v, err := p.get(); err != nil || v != 4 {
			t.Errorf("an empty pool gave %d, %v; want a new one", v, err)
		}
	})
}

// files is a directory with these files.
func files(t *testing.T, content map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range content {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// This machine has version 1; what version 2 shows is played by files.
func TestCgroupsV2(t *testing.T) {
	root := files(t, map[string]string{
		"cgroup.controllers": "cpuset cpu io memory pids\n", "cgroup.subtree_control": "", "mayfly/memory.swap.max": "max\n",
		"mayfly/i/a/memory.current": "4096\n", "mayfly/i/a/memory.peak": "8192\n", "mayfly/i/a/cpu.stat": "nr_periods 5\nusage_usec 1500\n",
		"mayfly/i/a/memory.events": "low 0\noom 3\noom_kill 2\n", "mayfly/i/a/cgroup.kill": "",
		"mayfly/i/old/memory.current": "4096\n",
	})
	c := &cgroups{root: root, parent: "/mayfly/i", unified: true}
	if err := c.checkControllers(); err != nil {
		t.Error(err)
	}
	if swap, err := c.canLimitSwap(); err != nil || !swap {
		t.Errorf("swap can be limited: %v, %v", swap, err)
	}
	want := sandbox.Usage{MemoryBytes: 4096, PeakMemoryBytes: 8192, CPU: 1500 * time.Microsecond}
	if u, err := c.usage("a"); err != nil || u != want {
		t.Errorf("usage %+v, %v; want %+v", u, err, want)
	}
	if u, err := c.usage("old"); err != nil || u.PeakMemoryBytes != 4096 {
		t.Errorf("usage %+v, %v without memory.peak", u, err)
	}
	if n := c.oomKills("a"); n != 2 {
		t.Errorf("%d processes killed, want 2", n)
	}
	if n := c.oomKills("gone"); n != 0 {
		t.Errorf("%d processes killed in a cgroup that is gone", n)
	}
	c.kill("a")
	if b, err := os.ReadFile(filepath.Join(root, "mayfly/i/a/cgroup.kill")); err != nil || string(b) != "1" {
		t.Errorf("cgroup.kill has %q, %v", b, err)
	}
}

func TestMissingController(t *testing.T) {
	c := &cgroups{root: files(t, map[string]string{"cgroup.controllers": "cpu memory\n"}), unified: true}
	if err := c.checkControllers(); err == nil || !strings.Contains(err.Error(), "pids") {
		t.Errorf("%v, want one that names pids", err)
	}
}

// Hosts without loop devices have a directory in place of the volume.
func TestPlainVolume(t *testing.T) {
	v := &volumes{dir: t.TempDir()}
	at := filepath.Join(v.dir, "at")
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := v.place(at, "id", 1<<20, 4711); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(at, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if !exists(filepath.Join(v.plain("id"), "x")) {
		t.Error("what is written does not end up on the disk of the state directory")
	}
	for range 2 {
		if err := v.remove(at, "id"); err != nil {
			t.Error(err)
		}
	}
	if exists(v.plain("id")) || exists(filepath.Join(at, "x")) {
		t.Error("it is still there")
	}
}

func TestSweep(t *testing.T) {
	dir := files(t, map[string]string{"volume-1": "", "template-5.ext4.new": "", "template-4.ext4": ""})
	v := &volumes{dir: dir}
	if err := v.sweep(); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 1 || filepath.Base(left[0]) != "template-4.ext4" {
		t.Errorf("left %q", left)
	}
}

func TestHelperNotBuilt(t *testing.T) {
	_, err := readHelper("")
	if exists(embeddedHelper) == (err != nil) {
		t.Errorf("built %v, error %v", exists(embeddedHelper), err)
	}
	if err != nil && !strings.Contains(err.Error(), "make build") {
		t.Errorf("%v, want one that says what to do", err)
	}
}

func TestMissingBinary(t *testing.T) {
	if _, err := findBinary("mayfly-no-such-program", "some-package"); err == nil || !strings.Contains(err.Error(), "apt-get install some-package") {
		t.Errorf("%v, want one that says what to install", err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	for _, c := range []Config{{}, {StateDir: "/x", RunDir: "/y"}, {RunDir: "/y", Logger: slog.New(slog.DiscardHandler)}} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v: no error", c)
		}
	}
}

func TestHelperArguments(t *testing.T) {
	for _, c := range [][2][]string{
		{{"/bin/sh", "-c", "x"}, {"exec", "--", "/bin/sh", "-c", "x"}},
		{{"/bin/sh", "--", "x"}, {"exec", "--", "/bin/sh", "--", "x"}},
		{{"exec", "--", "/bin/sh"}, {"exec", "--", "/bin/sh"}},
		{{"runtime-api", "--", "/var/task/bootstrap"}, {"runtime-api", "--", "/var/task/bootstrap"}},
		{{"/run/mayfly-helper/init", "runtime-api", "--", "/b"}, {"runtime-api", "--", "/b"}},
	} {
		if got := helperArgs(c[0]); !slices.Equal(got, c[1]) {
			t.Errorf("%q: %q, want %q", c[0], got, c[1])
		}
	}
}
