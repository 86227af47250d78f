// Package agent is one worker node: it makes sandboxes, runs invocations in them, keeps their logs and tells the
// control plane.
//
// What belongs here: New and Run, the Worker that the control plane calls, the way of an invocation, admission,
// sessions with control-plane nodes. What does not: the life cycle's rules (agent/sandbox), containers
// (agent/containerd), code (agent/code), log files (agent/logs), and any decision about which sandbox runs what.
package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/mayfly-faas/mayfly/agent/code"
	"github.com/mayfly-faas/mayfly/agent/logs"
	"github.com/mayfly-faas/mayfly/agent/sandbox"
	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// Worker is what the control plane asks of an agent. *Agent implements it; over the network the fleet's session does.
type Worker interface {
	// CreateSandbox returns when the function is initialised, or with its init's error.
	CreateSandbox(ctx context.Context, r *agentv1.CreateSandboxRequest) (*agentv1.CreateSandboxResponse, error)
	DestroySandbox(ctx context.Context, r *agentv1.DestroySandboxRequest) (*agentv1.DestroySandboxResponse, error)
	// Invoke runs one event. emit is called with each chunk of a streamed answer; nil: buffer it. An error with
	// reason SANDBOX_GONE means that the event never reached the function.
	Invoke(ctx context.Context, r *agentv1.InvokeRequest, emit func([]byte) error) (*agentv1.InvokeResponse, error)
	// Prepare builds the runtime's image if there is none, and fetches code, so that a sandbox is made faster later.
	Prepare(ctx context.Context, r *agentv1.PrepareRequest) (*agentv1.PrepareResponse, error)
	ReadLogs(ctx context.Context, r *agentv1.ReadLogsRequest, emit func(*mayflyv1.ReadLogsResponse) error) error
}

// ControlPlane is what an agent asks of a control-plane node: in process the server, else a Remote.
type ControlPlane interface {
	// Attach announces the agent and lets the control plane use w until the Session ends.
	Attach(ctx context.Context, hello *agentv1.Hello, w Worker) (Session, error)
	// FetchBlob reads code by digest.
	FetchBlob(ctx context.Context, digest string) (io.ReadCloser, error)
}

// Session is an attachment to a control-plane node.
type Session interface {
	// Report never blocks.
	Report(r *agentv1.Report)
	// Done is closed when the control plane is lost; the agent attaches again.
	Done() <-chan struct{}
	Close() error
}

// Config is what an Agent needs. Fields without a default are required.
type Config struct {
	NodeID   string // UUID
	NodeName string
	Version  string // of mayfly
	// StateDir holds code and logs: <state>/agent.
	StateDir string
	// RuntimesDir holds the runtime images; empty: runtimes in StateDir.
	RuntimesDir string
	// RunDir holds the sandboxes' sockets; keep it short.
	RunDir  string
	Runtime sandbox.Runtime
	// EgressError is why Runtime can't give another egress policy than none; empty: it can.
	EgressError string
	// ControlPlanes are attached to all at a time; code is fetched from the first that has it.
	ControlPlanes []ControlPlane
	// Capacity is what sandboxes may use together. Zero memory: three quarters of the machine's. Zero CPU: eight
	// times the machine's, since most sandboxes idle.
	Capacity *mayflyv1.NodeResources
	// Builder builds images of runtimes that functions ask for, in RuntimesDir; nil: only what is there can be used.
	Builder ImageBuilder
	// CodeBytes is the budget of the code cache; 0: 10 GiB.
	CodeBytes int64
	// Logs may change limits of the logs; its Dir, Logger and Now are set by the agent.
	Logs    logs.Config
	Metrics prometheus.Registerer // nil: none
	Logger  *slog.Logger          // nil: none

	// CreateTimeout is how long a sandbox may take from nothing to its bootstrap's Hello; 0: 30 s.
	CreateTimeout time.Duration
	// InitTimeout is the limit of a function's init; 0: 10 s. Init that exceeds it, or crashes, runs once more in
	// a new container, with the function's own timeout as limit, as in Lambda.
	InitTimeout time.Duration
	// ExitGrace is how long the exit status is awaited after a bootstrap has hung up; 0: 2 s.
	ExitGrace time.Duration
	// ReportInterval is the time between two reports of load; 0: 1 s.
	ReportInterval time.Duration
	// ShutdownTimeout bounds the destruction of all sandboxes at the end of Run; 0: 10 s.
	ShutdownTimeout time.Duration
}

func (c Config) withDefaults() Config {
	setDefault(&c.CreateTimeout, 30*time.Second)
	setDefault(&c.InitTimeout, 10*time.Second)
	setDefault(&c.ExitGrace, 2*time.Second)
	setDefault(&c.ReportInterval, time.Second)
	setDefault(&c.ShutdownTimeout, 10*time.Second)
	setDefault(&c.Logger, slog.New(slog.DiscardHandler))
	setDefault(&c.RuntimesDir, filepath.Join(c.StateDir, "runtimes"))
	c.Logs.Dir = filepath.Join(c.StateDir, "logs")
	c.Logs.Logger = c.Logger
	capacity := &mayflyv1.NodeResources{MemoryBytes: c.Capacity.GetMemoryBytes(), MilliCpus: c.Capacity.GetMilliCpus()}
	if capacity.GetMemoryBytes() == 0 {
		capacity.MemoryBytes = machineMemory() / 4 * 3
	}
	if capacity.GetMilliCpus() == 0 {
		capacity.MilliCpus = int32(runtime.NumCPU()) * 8000 // a few hundred CPUs
	}
	c.Capacity = capacity
	return c
}

func setDefault[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

func machineMemory() int64 {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 1 << 30
	}
	return int64(info.Totalram) * int64(info.Unit) // bytes of memory
}

func (c Config) validate() error {
	switch {
	case c.NodeID == "" || c.NodeName == "":
		return errors.New("agent: NodeID and NodeName are required")
	case c.StateDir == "" || c.RunDir == "":
		return errors.New("agent: StateDir and RunDir are required")
	case c.Runtime == nil:
		return errors.New("agent: Runtime is required")
	case len(c.RunDir) > maxRunDir:
		return fmt.Errorf("agent: RunDir %q is longer than %d bytes: paths of sockets would not fit", c.RunDir, maxRunDir)
	}
	return nil
}

// maxRunDir leaves room for /s/, 32 digits and /agent.sock in the 107 bytes of a socket's path.
const maxRunDir = 60

// Agent is one worker. Make it with New; it serves as a Worker while Run runs.
type Agent struct {
	cfg        Config
	instanceID string
	log        *slog.Logger
	code       *code.Cache
	logs       *logs.Store
	images     *images
	spare      chan struct{} // an image may have no users left
	room       *room
	metrics    *metrics
	reports    []*reporter
	reporting  sync.Mutex // reports go out in the order in which they were made

	boxes    sync.Map // container id to *box
	names    sync.Map // the control plane's sandbox id to *box
	groupsMu sync.Mutex
	groups   map[groupKey]*group
	turns    *turns
	running  atomic.Int64 // invocations
	spinners int64        // up to this many of them may wait without sleeping
	tasks    sync.WaitGroup
	gate     sync.RWMutex // held to begin a sandbox, and to stop that
	closing  bool
	life     context.Context // ends when what runs in the background must stop
	end      context.CancelFunc
}

// New prepares an Agent; nothing runs yet.
func New(cfg Config) (*Agent, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	for _, dir := range []string{cfg.StateDir, filepath.Join(cfg.RunDir, sandboxesDir)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("agent: %w", err)
		}
	}
	a := &Agent{cfg: cfg, log: cfg.Logger, instanceID: uuid.NewString(), room: newRoom(cfg.Capacity), spinners: int64(max(1, runtime.NumCPU()/4))}
	a.groups, a.turns = map[groupKey]*group{}, newTurns()
	a.images, a.spare = &images{dir: cfg.RuntimesDir}, make(chan struct{}, 1)
	var err error
	if a.logs, err = logs.Open(cfg.Logs); err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	a.code, err = code.Open(code.Config{
		Dir: filepath.Join(cfg.StateDir, "code"), Budget: cfg.CodeBytes, Logger: cfg.Logger, Fetch: a.fetch,
	})
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	if a.metrics, err = newMetrics(cfg.Metrics, a); err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	for _, cp := range cfg.ControlPlanes {
		a.reports = append(a.reports, &reporter{agent: a, controlPlane: cp})
	}
	a.life, a.end = context.WithCancel(context.Background())
	return a, nil
}

// Run removes what an earlier process left, attaches to the control planes and serves until ctx ends. Then it destroys
// all sandboxes, within Config.ShutdownTimeout, and writes the logs.
func (a *Agent) Run(ctx context.Context) error {
	defer a.end()
	if err := a.cleanUp(ctx); err != nil {
		return err
	}
	logsCtx, stopLogs := context.WithCancel(context.Background())
	defer stopLogs()
	var logGroup errgroup.Group
	logGroup.Go(func() error { return a.logs.Run(logsCtx) })

	group, groupCtx := errgroup.WithContext(ctx)
	for _, r := range a.reports {
		group.Go(func() error { return r.run(groupCtx) })
	}
	group.Go(func() error { return a.observe(groupCtx) })
	if a.cfg.Builder != nil {
		group.Go(func() error { return a.pruneImages(groupCtx) })
	}
	<-groupCtx.Done()
	a.gate.Lock()
	a.closing = true
	a.gate.Unlock()
	err := group.Wait()
	err = errors.Join(err, a.destroyAll())
	stopLogs()
	return errors.Join(err, logGroup.Wait())
}

// cleanUp destroys the sandboxes of an earlier process.
func (a *Agent) cleanUp(ctx context.Context) error {
	ids, err := a.cfg.Runtime.List(ctx)
	if err != nil {
		return fmt.Errorf("list sandboxes of an earlier agent: %w", err)
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for _, id := range ids {
		group.Go(func() error {
			if err := a.cfg.Runtime.Destroy(groupCtx, id); err != nil {
				return fmt.Errorf("destroy sandbox %s of an earlier agent: %w", id, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	dir := filepath.Join(a.cfg.RunDir, sandboxesDir)
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove leftovers: %w", err)
	}
	return os.MkdirAll(dir, 0o700)
}

// destroyAll ends all sandboxes and waits for whatever runs in the background.
func (a *Agent) destroyAll() error {
	for b := range a.all() {
		b.step(sandbox.Event{Kind: sandbox.EventKill})
	}
	done := make(chan struct{})
	go func() {
		a.tasks.Wait()
		close(done)
	}()
	limit := time.NewTimer(a.cfg.ShutdownTimeout)
	defer limit.Stop()
	select {
	case <-done:
		return nil
	case <-limit.C:
	}
	a.end() // the rest gives up
	<-done
	if n := a.count(); n > 0 {
		return fmt.Errorf("%d sandboxes could not be destroyed within %s; the next start removes them", n, a.cfg.ShutdownTimeout)
	}
	return nil
}

// all iterates over the sandboxes.
func (a *Agent) all() func(yield func(*box) bool) {
	return func(yield func(*box) bool) {
		a.boxes.Range(func(_, v any) bool { return yield(v.(*box)) }) // the map's only type
	}
}

// allNamed iterates over the sandboxes by the control plane's names, each name once.
func (a *Agent) allNamed() func(yield func(string, *box) bool) {
	return func(yield func(string, *box) bool) {
		a.names.Range(func(k, v any) bool { return yield(k.(string), v.(*box)) }) // the map's only types
	}
}

func (a *Agent) count() int {
	n := 0
	for range a.all() {
		n++
	}
	return n
}

// fetch reads code from the first control plane that has it.
func (a *Agent) fetch(ctx context.Context, digest string) (io.ReadCloser, error) {
	var errs error
	for _, cp := range a.cfg.ControlPlanes {
		in, err := cp.FetchBlob(ctx, digest)
		if err == nil {
			return in, nil
		}
		errs = errors.Join(errs, err)
	}
	if errs == nil {
		errs = fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_CODE_NOT_FOUND, "no control plane to fetch code %s from", digest)
	}
	return nil, errs
}

// logStreamName is Lambda's: YYYY/MM/DD/[VERSION]32 digits.
func logStreamName(now time.Time, version string) string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	return fmt.Sprintf("%s/[%s]%x", now.UTC().Format("2006/01/02"), version, id)
}
