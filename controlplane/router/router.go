// Package router brings one invocation to one sandbox: it resolves name and qualifier, uses a warm sandbox that it holds
// on lease, or lets the invocation wait while its home grants or starts one.
//
// What belongs here: names, aliases and their weights, pools of leased sandboxes, the queues of waiting invocations,
// retries on another sandbox. What does not: which node a sandbox is on, concurrency limits and starting sandboxes
// (the home: controlplane/fleet), events and their retries (queue), who may invoke (api).
//
// A warm invocation takes no lock but that of its version's pool, for the time of a pop and a push; it touches no disk
// and reads the state only after a commit.
package router

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// MaxPayloadBytes is the largest payload of a synchronous invocation, Lambda's limit.
const MaxPayloadBytes = 6_291_556

// View is what the router reads of the replicated state: a consistent snapshot, whose records it never changes.
type View interface {
	Namespace(name string) (*mayflyv1.Namespace, bool)
	Function(namespace, name string) (*mayflyv1.Function, bool)
	Version(namespace, function string, number int64) (*mayflyv1.Version, bool)
	Alias(namespace, function, name string) (*mayflyv1.Alias, bool)
	Settings() *mayflyv1.Settings
	// SecretsRevision changes with the values of the secrets that a configuration refers to; missing names one that
	// doesn't exist.
	SecretsRevision(namespace string, c *mayflyv1.FunctionConfiguration) (revision uint64, missing string)
	// Changed is closed at the first commit after the view.
	Changed() <-chan struct{}
}

// Home grants sandboxes of the functions whose home it is.
type Home interface {
	// Acquire leases a sandbox. The response is set if one was started for it; with init_error there is no lease. When
	// ctx ends before the start began Acquire returns an error at once, else it sees the start through. Errors:
	// throttling at once; SANDBOX_GONE: the version is outdated, resolve again; NO_CAPACITY.
	Acquire(ctx context.Context, spec *agentv1.SandboxSpec) (Lease, *agentv1.CreateSandboxResponse, error)
}

// Lease is the right to use a sandbox for one invocation at a time.
type Lease interface {
	// Invoke returns when the sandbox is free again, even if ctx ends before.
	Invoke(ctx context.Context, r *agentv1.InvokeRequest, emit func([]byte) error) (*agentv1.InvokeResponse, error)
	// Usable tells whether an invocation may start, Keep whether the lease may be kept while there is none.
	Usable() bool
	Keep() bool
	// Release gives the sandbox back healthy; Discard gives it up, gone already or to be destroyed.
	Release()
	Discard(gone bool)
}

// Config is what a Router needs: Logger, View and Home are required.
type Config struct {
	Logger *slog.Logger
	View   func() View
	Home   Home
	// Starts is how many sandboxes to ask for when so many invocations wait, are covered by starts, or by idle
	// sandboxes; nil: one for each that nothing covers.
	Starts func(waiting, starting, idle int) int
	// Registerer gets the router's metrics; nil: nobody does.
	Registerer prometheus.Registerer
	// Rand returns a number in [0, 1) for weighted aliases; nil: math/rand/v2.
	Rand func() float64

	// QueueLength is how many invocations of a function may wait; default 1000. One more is answered QUEUE_FULL.
	QueueLength int
	// MaxWait is how long an invocation waits until a node begins to start a sandbox for it; default 30 s. Then it is
	// answered NO_CAPACITY. A start that has begun is waited for.
	MaxWait time.Duration
	// PendingWait is how long an invocation waits for a function that is Pending; default 10 s.
	PendingWait time.Duration
	// LeaseIdle is how long an idle sandbox stays on lease before it goes back to its home; default 2 s.
	LeaseIdle time.Duration
}

func (c *Config) setDefaults() error {
	if c.Logger == nil || c.View == nil || c.Home == nil {
		return errors.New("router: Config needs Logger, View and Home")
	}
	if c.Starts == nil {
		c.Starts = func(waiting, starting, idle int) int { return max(0, waiting-starting-idle) }
	}
	if c.Rand == nil {
		c.Rand = rand.Float64
	}
	if c.QueueLength <= 0 {
		c.QueueLength = 1000
	}
	setDefault(&c.MaxWait, 30*time.Second)
	setDefault(&c.PendingWait, 10*time.Second)
	setDefault(&c.LeaseIdle, 2*time.Second)
	return nil
}

func setDefault(v *time.Duration, d time.Duration) {
	if *v <= 0 {
		*v = d
	}
}

// Router is made by New; its methods may be called concurrently.
type Router struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	routes  routes
	// starts are the Acquires under way; they end with ctx, which Run cancels.
	starts sync.WaitGroup
	ctx    context.Context
	stop   context.CancelFunc

	mu        sync.Mutex
	pools     map[poolKey]*pool
	functions map[functionKey]*function
}

// New makes a router that holds no sandbox.
func New(cfg Config) (*Router, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	return &Router{
		cfg: cfg, log: cfg.Logger, metrics: m, ctx: ctx, stop: stop, routes: newRoutes(),
		pools: map[poolKey]*pool{}, functions: map[functionKey]*function{},
	}, nil
}

// Run gives idle sandboxes back to their home until ctx ends, then all of them, and fails what waits.
func (r *Router) Run(ctx context.Context) error {
	every := time.NewTicker(max(r.cfg.LeaseIdle/4, time.Millisecond))
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			r.close()
			return nil
		case now := <-every.C:
			r.sweep(now)
		}
	}
}

// close ends what Acquires still wait for and gives everything back.
func (r *Router) close() {
	r.stop()
	r.starts.Wait()
	for _, p := range r.allPools() {
		for _, l := range p.shut() {
			l.Release()
		}
	}
}

// sweep releases leases that were idle for too long or are wanted back, and forgets pools without use.
func (r *Router) sweep(now time.Time) {
	for _, p := range r.allPools() {
		leases, empty := p.expire(now.Add(-r.cfg.LeaseIdle))
		for _, l := range leases {
			l.Release()
		}
		if empty {
			r.dropPool(p)
		}
	}
}

// RecallIdle releases up to n idle leases of functions that match accepts, and answers how many.
func (r *Router) RecallIdle(match func(namespace, function string) bool, n int) int {
	got := 0
	for _, p := range r.allPools() {
		if got >= n {
			break
		}
		if !match(p.key.namespace, p.key.name) {
			continue
		}
		for _, l := range p.recall(n - got) {
			l.Release()
			got++
		}
	}
	return got
}

func (r *Router) allPools() []*pool {
	r.mu.Lock()
	defer r.mu.Unlock()
	pools := make([]*pool, 0, len(r.pools))
	for _, p := range r.pools {
		pools = append(pools, p)
	}
	return pools
}

// poolFor finds or makes the pool of a version.
func (r *Router) poolFor(spec *agentv1.SandboxSpec) *pool {
	fk := functionKey{spec.GetNamespace(), spec.GetFunction()}
	k := poolKey{fk, spec.GetVersion(), spec.GetCodeRevision(), spec.GetSecretsRevision()}
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.pools[k]; p != nil && !p.isClosed() {
		return p
	}
	f := r.functions[fk]
	if f == nil {
		f = &function{}
		r.functions[fk] = f
	}
	f.pools++
	p := &pool{router: r, key: k, spec: spec, function: f}
	r.pools[k] = p
	return p
}

// dropPool forgets a pool that expire has closed.
func (r *Router) dropPool(p *pool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pools[p.key] == p {
		delete(r.pools, p.key)
	}
	if p.function.pools--; p.function.pools == 0 {
		delete(r.functions, p.key.functionKey)
	}
}
