package agent

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mayfly-faas/mayfly/agent/sandbox/runtimetest"
	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// plane is a control plane in memory.
type plane struct {
	blobs    map[string][]byte
	attached chan *agentv1.Hello

	mu      sync.Mutex
	refuse  int                  // how many more times
	during  func(*agentv1.Hello) // while an agent attaches
	current *planeSession
}

type planeSession struct {
	reports chan *agentv1.Report
	done    chan struct{}
	once    sync.Once
}

func (s *planeSession) Report(r *agentv1.Report) { s.reports <- r }
func (s *planeSession) Done() <-chan struct{}    { return s.done }
func (s *planeSession) Close() error {
	s.once.Do(func() { close(s.done) })
	return nil
}

func (p *plane) Attach(_ context.Context, h *agentv1.Hello, _ Worker) (Session, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refuse > 0 {
		p.refuse--
		return nil, errors.New("not now")
	}
	if p.during != nil {
		p.during(h)
	}
	p.current = &planeSession{reports: make(chan *agentv1.Report, 100_000), done: make(chan struct{})}
	p.attached <- h
	return p.current, nil
}

func (p *plane) FetchBlob(_ context.Context, digest string) (io.ReadCloser, error) {
	b, ok := p.blobs[digest]
	if !ok {
		return nil, fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_CODE_NOT_FOUND, "no code %s", digest)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// reported waits until a report has the status of a sandbox in a state.
func (p *plane) reported(t testing.TB, id string, state agentv1.SandboxState) *agentv1.SandboxStatus {
	t.Helper()
	p.mu.Lock()
	session := p.current
	p.mu.Unlock()
	limit := time.After(20 * time.Second)
	for {
		select {
		case r := <-session.reports:
			for _, s := range r.GetSandboxes() {
				if s.GetSandboxId() == id && s.GetState() == state {
					return s
				}
			}
		case <-limit:
			t.Fatalf("no report of %s as %v", id, state)
		}
	}
}

type node struct {
	*Agent
	t      testing.TB
	fake   *runtimetest.Fake
	plane  *plane
	digest string
	stop   func() error
	dir    string
}

func codeZip(t testing.TB) (data []byte, digest string) {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	f, err := w.Create("main.py")
	if err == nil {
		_, err = f.Write([]byte("code"))
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b.Bytes())
	return b.Bytes(), "sha256:" + hex.EncodeToString(sum[:])
}

func writeImage(t testing.TB, dir, name string) {
	t.Helper()
	d := filepath.Join(dir, "state", "runtimes", name)
	manifest := `{"runtime":"` + name + `","version":"1.2","digest":"sha256:ab","size_bytes":5,"built_at":"2026-01-02T03:04:05Z","command":["/bin/x"],"mode":"exec"}`
	err := errors.Join(os.MkdirAll(filepath.Join(d, "ab", "rootfs"), 0o755),
		os.WriteFile(filepath.Join(d, "ab", "manifest.json"), []byte(manifest), 0o600), os.Symlink("ab", filepath.Join(d, "current")))
	if err != nil {
		t.Fatal(err)
	}
}

// newNode runs an agent over fake.
func newNode(t testing.TB, fake *runtimetest.Fake, change func(*Config)) *node {
	t.Helper()
	dir, err := os.MkdirTemp("", "mfa")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	data, digest := codeZip(t)
	p := &plane{blobs: map[string][]byte{digest: data}, attached: make(chan *agentv1.Hello, 100)}
	writeImage(t, dir, "fake")
	cfg := Config{
		NodeID: uuid.NewString(), NodeName: "n1", StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"), Runtime: fake,
		ControlPlanes: []ControlPlane{p}, Metrics: prometheus.NewRegistry(), ReportInterval: 20 * time.Millisecond,
		Capacity: &mayflyv1.NodeResources{MemoryBytes: 100 << 30, MilliCpus: 1_000_000}, ExitGrace: 200 * time.Millisecond,
	}
	if testing.Verbose() {
		cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	if change != nil {
		change(&cfg)
	}
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{Agent: a, t: t, fake: fake, plane: p, digest: digest, dir: dir}
	n.run()
	t.Cleanup(func() {
		if err := n.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
		n.clean()
	})
	return n
}

func (n *node) run() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	n.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	if len(n.cfg.ControlPlanes) > 0 {
		<-n.plane.attached
	}
}

// clean checks that nothing of any sandbox is left.
func (n *node) clean() {
	ids, _ := n.fake.List(context.Background())
	left, _ := os.ReadDir(filepath.Join(n.cfg.RunDir, sandboxesDir))
	if len(ids) != 0 || len(left) != 0 || n.count() != 0 || n.room.memory != 0 || n.room.cpus != 0 {
		n.t.Errorf("left: containers %v, directories %v, sandboxes %d, memory %d, cpus %d", ids, left, n.count(), n.room.memory, n.room.cpus)
	}
	n.fake.Close()
}

func (n *node) spec() *agentv1.SandboxSpec {
	return &agentv1.SandboxSpec{
		Namespace: "default", Function: "f", Version: "$LATEST", Runtime: "fake", Handler: "main.handler", CodeDigest: n.digest,
		MemoryBytes: 128 << 20, MilliCpus: 72, TmpBytes: 1 << 20, Timeout: durationpb.New(20 * time.Second), Region: "us-east-1",
		Environment: map[string]string{"COLOUR": "red", "AWS_REGION": "mars"},
	}
}

func (n *node) tryCreate(change func(*agentv1.SandboxSpec)) (string, *agentv1.CreateSandboxResponse, error) {
	id := uuid.NewString()
	spec := n.spec()
	if change != nil {
		change(spec)
	}
	resp, err := n.CreateSandbox(context.Background(), &agentv1.CreateSandboxRequest{SandboxId: id, Spec: spec, Grant: &agentv1.Grant{Term: 1, Sequence: 1}})
	return id, resp, err
}

func (n *node) create(change func(*agentv1.SandboxSpec)) string {
	n.t.Helper()
	id, resp, err := n.tryCreate(change)
	if err != nil || resp.GetInitError() != nil || resp.GetInitDuration().AsDuration() <= 0 {
		n.t.Fatalf("create: %v, %v", resp, err)
	}
	return id
}

func (n *node) call(id, payload string) (*agentv1.InvokeResponse, error) {
	return n.Invoke(context.Background(), request(id, payload), nil)
}

func request(id, payload string) *agentv1.InvokeRequest {
	return &agentv1.InvokeRequest{RequestId: "req-1", SandboxId: id, Grant: &agentv1.Grant{Term: 1, Sequence: 1}, Payload: []byte(payload), InvokedArn: "arn:f", LogTail: true}
}

func (n *node) gone(id string) {
	n.t.Helper()
	b := n.named(id)
	if b == nil {
		return
	}
	select {
	case <-b.gone:
	case <-time.After(20 * time.Second):
		n.t.Fatalf("sandbox %s is not gone but %v", id, b.machine().State)
	}
}
