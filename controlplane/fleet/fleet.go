// Package fleet is the home of functions: it knows the agents, which sandboxes they have and who holds them, and grants
// a sandbox to a router, an idle one or a new one that package scheduler placed.
//
// What belongs here: sessions with agents (in process and over gRPC), the table of nodes and sandboxes, grants,
// concurrency limits, removal of idle and outdated sandboxes, preparation of functions, logs merged over agents. What
// does not: which invocation gets which sandbox (controlplane/router), decisions (scheduler), anything that must
// survive a restart (controlplane/state): all of this is rebuilt from what agents report.
package fleet

import (
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
	"github.com/mayfly-faas/mayfly/scheduler"
)

// View is what the fleet reads of the replicated state: a consistent snapshot, whose records it never changes.
type View interface {
	Namespace(name string) (*mayflyv1.Namespace, bool)
	Function(namespace, name string) (*mayflyv1.Function, bool)
	Version(namespace, function string, number int64) (*mayflyv1.Version, bool)
	Secret(namespace, name string) (*statev1.SecretRecord, bool)
	// SecretsRevision changes with the values of the secrets that a configuration refers to; missing names one that
	// doesn't exist.
	SecretsRevision(namespace string, c *mayflyv1.FunctionConfiguration) (revision uint64, missing string)
	// Functions of a namespace, or of all ("").
	Functions(namespace, after string) iter.Seq[*mayflyv1.Function]
	// Changed is closed at the first commit after the view.
	Changed() <-chan struct{}
}

// Worker is an agent as the fleet uses it. Errors are *fault.Error or wrap one.
type Worker interface {
	CreateSandbox(ctx context.Context, r *agentv1.CreateSandboxRequest) (*agentv1.CreateSandboxResponse, error)
	DestroySandbox(ctx context.Context, r *agentv1.DestroySandboxRequest) (*agentv1.DestroySandboxResponse, error)
	// Invoke returns when the sandbox is free again (or gone). emit gets each chunk of a streamed answer; nil: buffer.
	// Reason SANDBOX_GONE means that the event never reached the runtime.
	Invoke(ctx context.Context, r *agentv1.InvokeRequest, emit func([]byte) error) (*agentv1.InvokeResponse, error)
	Prepare(ctx context.Context, r *agentv1.PrepareRequest) (*agentv1.PrepareResponse, error)
	ReadLogs(ctx context.Context, r *agentv1.ReadLogsRequest, emit func(*mayflyv1.ReadLogsResponse) error) error
}

// Session is an agent's side of its attachment.
type Session interface {
	// Report tells what changed. It never blocks.
	Report(r *agentv1.Report)
	// Done is closed when the fleet has let the agent go; it attaches again.
	Done() <-chan struct{}
	Close() error
}

// Holder is who holds leases: a router.
type Holder interface {
	// RecallIdle releases up to n idle leases of functions that match accepts, and answers how many. match takes no
	// locks.
	RecallIdle(match func(namespace, function string) bool, n int) int
}

// Blobs opens code by digest.
type Blobs interface {
	Open(digest string) (*os.File, int64, error)
}

// Config is what a Fleet needs. View, Propose and Logger are required, Identify and Blobs too if agents come over gRPC.
type Config struct {
	Logger *slog.Logger
	View   func() View
	// Propose commits a command; its error says by a code of Unavailable that trying again may help.
	Propose func(ctx context.Context, c *statev1.Command) (*statev1.Result, error)
	// OpenSecret reads the value of a secret; nil: no function refers to any.
	OpenSecret func(*statev1.SecretRecord) ([]byte, error)
	// IsLeader says whether this node prepares functions; nil: always.
	IsLeader func() bool
	// Term is the term of the home's grants; nil: 1. Grants also stay above those that agents report.
	Term func() uint64
	// Identify finds in the client certificate who opened a session.
	Identify func(ctx context.Context) (nodeID, name string, err error)
	Blobs    Blobs
	// ServerID is told to agents.
	ServerID string

	// KeepAlive is how long an idle sandbox is kept; default 5 min.
	KeepAlive time.Duration
	// StartParallelism is how many sandboxes start on a node at once; default 8.
	StartParallelism int
	// DestroyParallelism is how many sandboxes are destroyed at once; default 8.
	DestroyParallelism int
	// SessionTimeout ends a remote session that was silent for so long; default 10 s.
	SessionTimeout time.Duration
	// LogBufferBytes bounds what is kept of a remote agent's log for one reader; default 4 MiB.
	LogBufferBytes int
}

func (c *Config) setDefaults() error {
	if c.View == nil || c.Propose == nil || c.Logger == nil {
		return errors.New("fleet: Config needs Logger, View and Propose")
	}
	if c.IsLeader == nil {
		c.IsLeader = func() bool { return true }
	}
	if c.Term == nil {
		c.Term = func() uint64 { return 1 }
	}
	setDefault(&c.KeepAlive, 5*time.Minute)
	setDefault(&c.StartParallelism, 8)
	setDefault(&c.DestroyParallelism, 8)
	setDefault(&c.SessionTimeout, 10*time.Second)
	setDefault(&c.LogBufferBytes, 4<<20)
	return nil
}

func setDefault[T int | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// Fleet is made by New; its methods may be called concurrently.
type Fleet struct {
	cfg Config
	log *slog.Logger
	// crowded is set while sandboxes wait for others to go: idle leases are wanted back.
	crowded atomic.Bool
	// destroyWake has a token when destroys isn't empty.
	destroyWake chan struct{}
	receivers   sync.WaitGroup // of sessions over gRPC

	mu        sync.Mutex
	holders   []Holder
	nodes     map[string]*node
	snapshot  scheduler.Snapshot // of nodes, kept up to date
	sandboxes map[string]*sandbox
	versions  map[versionKey]*version
	pending   []*pending
	destroys  []*sandbox
	limits    limits
	term      uint64
	sequence  uint64
	stopped   bool // Run has ended
	// nodesChanged is closed and replaced when a node comes, goes or has other images.
	nodesChanged chan struct{}
}

// New makes a fleet without nodes.
func New(cfg Config) (*Fleet, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	return &Fleet{
		cfg: cfg, log: cfg.Logger, destroyWake: make(chan struct{}, 1), nodes: map[string]*node{},
		sandboxes: map[string]*sandbox{}, versions: map[versionKey]*version{}, limits: newLimits(),
		nodesChanged: make(chan struct{}),
	}, nil
}

// AddHolder lets the fleet ask h for idle leases back before it throttles.
func (f *Fleet) AddHolder(h Holder) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.holders = append(f.holders, h)
}

// Run removes idle and outdated sandboxes, prepares functions and watches sessions until ctx ends, then ends all
// sessions. After that no agent may attach.
func (f *Fleet) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return f.runDestroyer(ctx) })
	g.Go(func() error { return f.runRetirement(ctx) })
	g.Go(func() error { return f.runUpkeep(ctx) })
	g.Go(func() error { return newPreparer(f).run(ctx) })
	err := g.Wait()
	f.endAllSessions()
	f.receivers.Wait()
	return err
}

// FetchBlob opens code for an agent in this process.
func (f *Fleet) FetchBlob(_ context.Context, digest string) (io.ReadCloser, error) {
	file, _, err := f.openBlob(digest)
	if err != nil {
		return nil, err
	}
	return file, nil
}

// pause waits d, or less if ctx ends; it tells whether ctx still lives.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
