package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mayfly-faas/mayfly/agent/sandbox"
)

// host is what all tests share: a containerd, a root file system with the probe in it, the helper.
type host struct {
	dir, rootfs, helper, code string
	runtime                   *Runtime
	world                     *world
}

var shared host //nolint:gochecknoglobals // made once by TestMain: a containerd for each test would take minutes

func TestMain(m *testing.M) {
	status, err := apart(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "these tests run real sandboxes:", err)
		status = 1
	}
	os.Exit(status)
}

// apart runs the tests in network and mount namespaces of their own, which play the host: nothing of the machine's network
// is touched.
func apart(m *testing.M) (int, error) {
	const inside = "MAYFLY_TEST_APART"
	if os.Geteuid() != 0 {
		return 1, errors.New("run them as root")
	}
	if os.Getenv(inside) != "" {
		return withHost(m)
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode(), nil
	}
	return 0, err
}

func withHost(m *testing.M) (status int, err error) {
	if _, err := Binaries(); err != nil {
		return 1, err
	}
	dir, err := os.MkdirTemp("", "mf-ct-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o711); err != nil {
		return 1, err
	}
	shared = host{dir: dir, rootfs: filepath.Join(dir, "rootfs"), helper: filepath.Join(dir, "helper"), code: filepath.Join(dir, "code")}
	if err := shared.build(); err != nil {
		return 1, err
	}
	outside, err := makeWorld(dir)
	if err != nil {
		return 1, fmt.Errorf("make networks: %w", err)
	}
	shared.world = outside
	defer outside.close()
	cfg := shared.config("shared")
	if shared.runtime, err = New(cfg); err != nil {
		return 1, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- shared.runtime.Run(ctx) }()
	status = m.Run()
	cancel()
	err = errors.Join(<-ran, shared.runtime.Close(), Stop(context.Background(), cfg))
	return status, errors.Join(err, outside.asBefore())
}

func (h *host) build() error {
	for _, d := range []string{"bin", "proc", "dev", "run", "tmp", "var/task", "etc", "sys", "opt"} {
		if err := os.MkdirAll(filepath.Join(h.rootfs, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(h.rootfs, "etc/hosts"), nil, 0o644); err != nil { // as images have
		return err
	}
	for pkg, out := range map[string]string{
		"./testdata/probe": filepath.Join(h.rootfs, "bin/probe"), "./helper": h.helper, "./testdata/function": filepath.Join(h.code, "bootstrap"),
	} {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w: %s", pkg, err, text)
		}
	}
	return nil
}

func (h *host) config(name string) Config {
	return Config{
		StateDir: filepath.Join(h.dir, name), RunDir: filepath.Join(h.dir, name+"-run"), HelperPath: h.helper,
		Logger: slog.New(slog.DiscardHandler), PoolSize: 4,
	}
}

var lastID struct { //nolint:gochecknoglobals // ids are unique over all tests
	sync.Mutex
	n int
}

func newID() string {
	lastID.Lock()
	defer lastID.Unlock()
	lastID.n++
	return fmt.Sprintf("%08d-test-4000-8000-%012d", os.Getpid(), lastID.n)
}

// probe is the configuration of a sandbox that runs the probe.
func probe(t testing.TB, args ...string) sandbox.Config {
	t.Helper()
	sockets, err := os.MkdirTemp(shared.dir, "s-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(sockets) })
	return sandbox.Config{
		ID: newID(), RootFS: shared.rootfs, Command: append([]string{"/bin/probe"}, args...),
		Env: []string{"LANG=C.UTF-8", "HOME=/tmp"}, SocketDir: sockets,
		MemoryBytes: 128 << 20, MilliCPUs: 1000, PIDs: 64, TmpBytes: 64 << 20, Egress: sandbox.EgressInternet,
	}
}

// running is a created sandbox with its log.
type running struct {
	sandbox.Config
	t    testing.TB
	r    *Runtime
	log  *os.File
	said chan string // all of it, once reading was stopped
}

// start makes a sandbox that is destroyed with the test.
func start(t testing.TB, r *Runtime, c sandbox.Config) *running {
	t.Helper()
	b := launch(t, r, c)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := r.Destroy(ctx, c.ID); err != nil {
			t.Errorf("Destroy: %v", err)
		}
	})
	return b
}

// launch makes a sandbox for whose end the test cares.
func launch(t testing.TB, r *Runtime, c sandbox.Config) *running {
	t.Helper()
	b := &running{Config: c, t: t, r: r, log: openLog(t, c.SocketDir), said: make(chan string, 1)}
	if err := r.Create(t.Context(), c); err != nil {
		t.Fatalf("Create: %v", err)
	}
	go func() {
		text, _ := io.ReadAll(b.log)
		b.said <- string(text)
	}()
	return b
}

// openLog does as the agent: it has the log open before the sandbox is made.
func openLog(t testing.TB, dir string) *os.File {
	t.Helper()
	path := filepath.Join(dir, "log")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func (b *running) wait() sandbox.Exit {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
	defer cancel()
	exit, err := b.r.Wait(ctx, b.ID)
	if err != nil {
		b.t.Fatalf("Wait: %v", err)
	}
	return exit
}

// output is what was said until the end, which must be good.
func (b *running) output() string {
	b.t.Helper()
	exit := b.wait()
	for pending(b.t, b.log) > 0 {
		time.Sleep(time.Millisecond)
	}
	if err := b.log.SetReadDeadline(time.Now()); err != nil {
		b.t.Fatal(err)
	}
	said := strings.TrimSpace(<-b.said)
	if exit.Code != 0 {
		b.t.Fatalf("exit status %d: %s", exit.Code, said)
	}
	return said
}

func pending(t testing.TB, f *os.File) (n int) {
	t.Helper()
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return n
}

// run runs the probe to its end and returns what it said.
func run(t testing.TB, change func(*sandbox.Config), args ...string) string {
	t.Helper()
	c := probe(t, args...)
	if change != nil {
		change(&c)
	}
	return start(t, shared.runtime, c).output()
}
