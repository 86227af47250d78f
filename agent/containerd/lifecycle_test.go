package containerd

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mayfly-faas/mayfly/agent/frame"
	"github.com/mayfly-faas/mayfly/agent/sandbox"
)

// traces are what a sandbox may leave on the host: mounts, cgroups, directories, loop devices, processes, containers.
func traces(t *testing.T, cfg Config, r *Runtime) (found []string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); strings.HasPrefix(f[4], cfg.RunDir+"/") && f[4] != r.shared {
			found = append(found, "mount "+f[4])
		}
	}
	for _, pattern := range []string{
		filepath.Join(cgroupRoot, "*", r.cgroups.parent, "*"), filepath.Join(cgroupRoot, r.cgroups.parent, "*"),
		filepath.Join(r.shared, "*"), filepath.Join(cfg.StateDir, "tmp", "volume-*"), filepath.Join(cfg.RunDir, "runc", "*", "*"),
		filepath.Join(cfg.RunDir, "state", "io.containerd.runtime.v2.task", "*", "*"),
	} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range paths {
			if st, err := os.Stat(p); err == nil && st.IsDir() && filepath.Base(p) != "containerd" {
				found = append(found, "directory "+p)
			}
		}
	}
	ids, err := r.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return append(found, ids...)
}

// shims counts the shim processes of an instance, which end a moment after their container.
func shims(t *testing.T, instance string) (pids []string) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		if b, err := os.ReadFile(path); err == nil && strings.Contains(string(b), "-namespace\x00mayfly-"+instance) {
			pids = append(pids, filepath.Dir(path))
		}
	}
	return pids
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Errorf("not within 30 s: %s", what)
}

func TestNothingLeaks(t *testing.T) {
	r, cfg := shared.runtime, shared.runtime.cfg
	if before := traces(t, cfg, r); len(before) > 0 {
		t.Fatalf("other tests left %q", before)
	}
	openBefore, loopsBefore := openFiles(t), loops(t)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8)
	for i := range 50 {
		c := probe(t, []string{"sleep", "exit", "oom", "fork"}[i%4], "1")
		if i%10 == 9 {
			c.Command = []string{"/bin/nothing"}
		}
		if i%3 == 0 {
			c.SecretFiles = map[string][]byte{"key": []byte("k")}
		}
		if i%7 == 6 {
			c.RootFS = filepath.Join(shared.dir, "no-such-root")
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			live(t, r, c, i)
		})
	}
	wg.Wait()
	if after := traces(t, cfg, r); len(after) > 0 {
		t.Errorf("left behind: %q", after)
	}
	eventually(t, "shims are gone", func() bool { return len(shims(t, cfg.InstanceID)) == 0 })
	eventually(t, "loop devices are free", func() bool { return loops(t) <= loopsBefore+cfg.PoolSize })
	if n := len(interfaces(t, r)); n > cfg.PoolSize+1 {
		t.Errorf("%d interfaces are there, a pool of %d should be", n, cfg.PoolSize)
	}
	eventually(t, "descriptors are closed", func() bool { return openFiles(t) <= openBefore+3*cfg.PoolSize })
	r.pairs.uids.mu.Lock()
	defer r.pairs.uids.mu.Unlock()
	if n := len(r.pairs.uids.used); n > cfg.PoolSize+1 {
		t.Errorf("%d ranges of uids are in use, a pool of %d should be", n, cfg.PoolSize)
	}
}

// live is the life of one sandbox, cut short in different ways.
func live(t *testing.T, r *Runtime, c sandbox.Config, i int) {
	ctx := t.Context()
	if i%5 == 4 {
		cut, cancel := context.WithTimeout(ctx, time.Duration(i)*time.Millisecond)
		defer cancel()
		ctx = cut
	}
	if err := r.Create(ctx, c); err != nil {
		return // it must have cleaned up itself
	}
	if i%3 == 0 {
		short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, _ = r.Wait(short, c.ID)
	}
	if err := r.Destroy(t.Context(), c.ID); err != nil {
		t.Errorf("Destroy: %v", err)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// loops counts the loop devices with a file of the tests.
func loops(t *testing.T) (n int) {
	t.Helper()
	all, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		if b, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(b), shared.dir) {
			n++
		}
	}
	return n
}

// agentProcess is one process of an agent with a containerd of its own.
func agentProcess(t *testing.T, cfg Config) (r *Runtime, end func()) {
	t.Helper()
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- r.Run(ctx) }()
	return r, sync.OnceFunc(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("Run: %v", err)
		}
		if err := r.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
}

func ownHost(t *testing.T, name, address string) Config {
	t.Helper()
	cfg := shared.config(name)
	cfg.Address = address
	t.Cleanup(func() {
		if err := Stop(context.Background(), cfg); err != nil {
			t.Errorf("Stop: %v", err)
		}
	})
	return cfg
}

func TestAgentRestart(t *testing.T) {
	cfg := ownHost(t, "restart", "")
	first, end := agentProcess(t, cfg)
	defer end()
	lives, ended := launch(t, first, probe(t, "sleep")), launch(t, first, probe(t, "exit", "9"))
	generic := launch(t, first, probe(t, "await", "/var/task/go"))
	ended.wait()
	pid, uid := first.daemon.runningPID(), first.boxes[lives.ID].uid
	end()
	// A process that died half-way may have made no more than a directory.
	half := newID()
	if err := os.MkdirAll(taskDir(first.dir(half)), 0o711); err != nil {
		t.Fatal(err)
	}
	stray := strayInterface(t, first)

	second, endSecond := agentProcess(t, cfg)
	defer endSecond()
	if second.daemon.runningPID() != pid || pid == 0 {
		t.Errorf("containerd has pid %d, want %d adopted", second.daemon.runningPID(), pid)
	}
	ids, err := second.List(t.Context())
	slices.Sort(ids)
	want := []string{lives.ID, ended.ID, generic.ID, half}
	slices.Sort(want)
	if err != nil || !slices.Equal(ids, want) {
		t.Errorf("List: %q, %v; want %q", ids, err, want)
	}
	if second.boxes[lives.ID].uid != uid || !inUse(second, uid) {
		t.Error("the adopted sandbox's uids are not known")
	}
	checkAdopted(t, second, stray, lives.ID, generic.ID)
	if exit, err := second.Wait(t.Context(), ended.ID); err != nil || exit.Code != 9 {
		t.Errorf("Wait: %+v, %v; want status 9", exit, err)
	}
	placeLate(t, second, generic)
	for _, id := range ids {
		if err := second.Destroy(t.Context(), id); err != nil {
			t.Errorf("Destroy: %v", err)
		}
	}
	if left := traces(t, cfg, second); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	endSecond()
	if left := interfaces(t, second); len(left) > 0 {
		t.Errorf("interfaces left behind: %q", left)
	}
}

// placeLate gives code to a sandbox that an earlier process made.
func placeLate(t *testing.T, r *Runtime, b *running) {
	t.Helper()
	code := t.TempDir()
	if err := os.WriteFile(filepath.Join(code, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	makeReachable(t, code)
	if err := r.PlaceCode(t.Context(), b.ID, code); err != nil {
		t.Fatal(err)
	}
	b.r = r
	if exit := b.wait(); exit.Code != 0 {
		t.Errorf("%+v, want it to find its code", exit)
	}
}

func inUse(r *Runtime, uid uint32) bool {
	r.pairs.uids.mu.Lock()
	defer r.pairs.uids.mu.Unlock()
	return r.pairs.uids.used[uid]
}

func TestContainerdDies(t *testing.T) {
	cfg := ownHost(t, "dies", "")
	r, end := agentProcess(t, cfg)
	defer end()
	b := launch(t, r, probe(t, "await", "/var/task/go"))
	exit := make(chan sandbox.Exit, 1)
	go func() { exit <- b.wait() }()
	pid := r.daemon.runningPID()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "containerd runs again", func() bool { p := r.daemon.runningPID(); return p != 0 && p != pid })
	placeLate(t, r, b)
	if e := <-exit; e.Code != 0 {
		t.Errorf("%+v, want the sandbox to live on and end well", e)
	}
	run := launch(t, r, probe(t, "exit", "5"))
	if e := run.wait(); e.Code != 5 {
		t.Errorf("new sandbox: %+v", e)
	}
}

func TestTwoInstances(t *testing.T) {
	cfg := ownHost(t, "second", shared.runtime.daemon.socket)
	r, end := agentProcess(t, cfg)
	defer end()
	ours, theirs := launch(t, r, probe(t, "sleep")), start(t, shared.runtime, probe(t, "sleep"))
	for _, c := range []struct {
		r    *Runtime
		want string
	}{{r, ours.ID}, {shared.runtime, theirs.ID}} {
		if ids, err := c.r.List(t.Context()); err != nil || !slices.Equal(ids, []string{c.want}) {
			t.Errorf("List: %q, %v; want %q", ids, err, c.want)
		}
	}
	if err := r.Destroy(t.Context(), theirs.ID); err != nil {
		t.Error(err)
	}
	if _, err := shared.runtime.Usage(t.Context(), theirs.ID); err != nil {
		t.Errorf("another instance's sandbox was hurt: %v", err)
	}
	end()
	if err := Stop(t.Context(), cfg); err != nil {
		t.Error(err)
	}
	if shared.runtime.daemon.runningPID() == 0 {
		t.Error("Stop ended a containerd that was not its own")
	}
}

func TestOneProcessAtATime(t *testing.T) {
	if _, err := New(shared.runtime.cfg); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("New: %v, want it refused", err)
	}
}

func TestStopEndsEverything(t *testing.T) {
	cfg := shared.config("stop")
	r, end := agentProcess(t, cfg)
	launch(t, r, probe(t, "sleep"))
	pid := r.daemon.runningPID()
	end()
	for range 2 { // the second finds nothing to do
		if err := Stop(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Kill(pid, 0); err == nil {
		t.Error("containerd lives")
	}
	for _, h := range r.cgroups.hierarchies() {
		if exists(filepath.Join(h, r.cgroups.parent)) {
			t.Errorf("cgroup left in %s", h)
		}
	}
	if m, err := findMount(r.shared); err != nil || m.found {
		t.Errorf("%s is mounted still, %v", r.shared, err)
	}
}

// provided is a sandbox with a bootstrap, and the test as its agent.
func provided(t *testing.T) (*running, net.Conn) {
	t.Helper()
	c := probe(t)
	c.Command = []string{"runtime-api", "--", "/var/task/bootstrap"}
	c.CodeDir = shared.code
	l, err := net.Listen("unix", filepath.Join(c.SocketDir, "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	b := start(t, shared.runtime, c)
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	expect(t, conn, frame.TypeHello)
	load, err := json.Marshal(frame.Load{Env: map[string]string{"VARIABLE": "its value"}, FunctionName: "f", MemoryLimitMB: 128})
	if err != nil {
		t.Fatal(err)
	}
	conn.Write(frame.Append(nil, frame.TypeLoad, load))
	expect(t, conn, frame.TypeReady)
	return b, conn
}

func expect(t *testing.T, conn net.Conn, want frame.Type) string {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(time.Minute))
	got, body, err := frame.Read(conn)
	if err != nil || got != want {
		t.Fatalf("frame %d %q, %v; want type %d", got, body, err, want)
	}
	return string(body)
}

func invoke(conn net.Conn, id, event string) {
	conn.Write(append(frame.AppendInvoke(nil, fmt.Appendf(nil, `{"request_id":%q,"deadline_ms":9999999999999}`, id), len(event)), event...))
}

func TestProvidedFunction(t *testing.T) {
	b, conn := provided(t)
	invoke(conn, "1", `{"name":"you"}`)
	if got := expect(t, conn, frame.TypeResult); got != `{"hello":"you","request":"1","variable":"its value"}` {
		t.Errorf("result %s", got)
	}
	invoke(conn, "2", `{"do":"fail"}`)
	if got := expect(t, conn, frame.TypeError); got != `{"errorMessage":"as asked","errorType":"errorString"}` {
		t.Errorf("error %s", got)
	}
	conn.Write(frame.Append(nil, frame.TypeShutdown, []byte(`{"reason":"spindown"}`)))
	if exit := b.wait(); exit.Code != 0 {
		t.Errorf("%+v, want status 0", exit)
	}
}

func TestProvidedFunctionExits(t *testing.T) {
	b, conn := provided(t)
	invoke(conn, "1", `{"do":"exit"}`)
	if exit := b.wait(); exit.Code != 3 {
		t.Errorf("%+v, want status 3", exit)
	}
}
