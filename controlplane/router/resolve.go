package router

import (
	"hash/maphash"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

const (
	defaultNamespace = "default"
	defaultRegion    = "us-east-1"
	defaultMemoryMB  = 128
	defaultTmpMB     = 512
	defaultTimeout   = 3 * time.Second
	// fullCPUMemoryMB is the memory that goes with one CPU; CPU is in proportion to memory.
	fullCPUMemoryMB = 1769

	routeShards = 64
	// routesPerShard bounds what is remembered: a full shard is emptied.
	routesPerShard = 1024
)

// Target is the version that an invocation runs. Nothing in it is ever changed.
type Target struct {
	// Function is the record at the time of the resolution.
	Function *mayflyv1.Function
	// Spec is what the version's sandboxes run.
	Spec *agentv1.SandboxSpec
	// InvokedARN has the qualifier that the caller gave.
	InvokedARN string
	pool       *pool
	measured   *measured
}

// Version is a number or $LATEST.
func (t *Target) Version() string { return t.Spec.GetVersion() }

// routes remembers resolutions until the next commit.
type routes struct {
	current atomic.Pointer[epoch]
	seed    maphash.Seed
	shards  []routeShard
}

type routeShard struct {
	mu     sync.RWMutex
	routes map[routeKey]*route
}

type routeKey struct{ namespace, function, qualifier string }

// epoch is the time between two commits.
type epoch struct {
	view    View
	changed <-chan struct{}
}

// route is the targets of a name; an alias may have several, of which each is chosen up to its bound.
type route struct {
	epoch   *epoch
	targets []*Target
	bounds  []float64
}

func newRoutes() routes {
	return routes{seed: maphash.MakeSeed(), shards: make([]routeShard, routeShards)}
}

// now is the epoch of the newest view.
func (r *Router) now() *epoch {
	if e := r.routes.current.Load(); e != nil {
		select {
		case <-e.changed:
		default:
			return e
		}
	}
	v := r.cfg.View()
	e := &epoch{view: v, changed: v.Changed()}
	r.routes.current.Store(e)
	return e
}

func (rs *routes) shard(k routeKey) *routeShard {
	return &rs.shards[maphash.Comparable(rs.seed, k)%routeShards]
}

func (rs *routes) find(k routeKey, e *epoch) *route {
	s := rs.shard(k)
	s.mu.RLock()
	defer s.mu.RUnlock()
	if found := s.routes[k]; found != nil && found.epoch == e {
		return found
	}
	return nil
}

func (rs *routes) keep(k routeKey, made *route) {
	s := rs.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.routes == nil || len(s.routes) >= routesPerShard {
		s.routes = map[routeKey]*route{}
	}
	s.routes[k] = made
}

func (rs *routes) forget(k routeKey) {
	s := rs.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.routes, k)
}

// Resolve finds the version to run. function is NAME, NAME:QUALIFIER or an ARN; an empty namespace is "default"; an
// empty qualifier is $LATEST. Of an alias with weights one version is drawn. It doesn't say whether the function is
// Active. Errors: NAMESPACE_, FUNCTION_, VERSION_, ALIAS_NOT_FOUND, INVALID_NAME; SECRET_NOT_FOUND (FailedPrecondition):
// the version refers to a secret that was deleted.
func (r *Router) Resolve(namespace, function, qualifier string) (*Target, error) {
	return r.resolve(routeKey{namespace, function, qualifier})
}

func (r *Router) resolve(k routeKey) (*Target, error) {
	e := r.now()
	found := r.routes.find(k, e)
	if found == nil {
		var err error
		if found, err = r.route(e, k); err != nil {
			return nil, err
		}
		r.routes.keep(k, found)
	}
	if len(found.targets) == 1 {
		return found.targets[0], nil
	}
	x := r.cfg.Rand()
	for i, bound := range found.bounds {
		if x < bound {
			return found.targets[i], nil
		}
	}
	return found.targets[len(found.targets)-1], nil
}

func (r *Router) route(e *epoch, k routeKey) (*route, error) {
	n, err := parseName(k.function, k.qualifier)
	if err != nil {
		return nil, err
	}
	if k.namespace == "" {
		k.namespace = defaultNamespace
	}
	fn, ns, err := lookUp(e.view, k.namespace, n)
	if err != nil {
		return nil, err
	}
	b := builder{router: r, view: e.view, namespace: ns, function: fn, qualifier: n.qualifier, route: &route{epoch: e}}
	if err := b.build(); err != nil {
		return nil, err
	}
	return b.route, nil
}

func lookUp(v View, namespace string, n name) (*mayflyv1.Function, *mayflyv1.Namespace, error) {
	ns, ok := v.Namespace(namespace)
	if !ok {
		return nil, nil, fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_NAMESPACE_NOT_FOUND,
			"namespace %q does not exist: see `mayfly namespace list`", namespace)
	}
	if n.account != "" && n.account != ns.GetAccountId() {
		return nil, nil, fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_FUNCTION_NOT_FOUND,
			"function %q of account %s is not in namespace %q, whose account is %s: name its namespace", n.function, n.account, namespace, ns.GetAccountId())
	}
	fn, ok := v.Function(namespace, n.function)
	if !ok {
		return nil, nil, fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_FUNCTION_NOT_FOUND,
			"function %q does not exist in namespace %q: see `mayfly function list`", n.function, namespace)
	}
	return fn, ns, nil
}

// builder makes the targets of one name.
type builder struct {
	router    *Router
	view      View
	namespace *mayflyv1.Namespace
	function  *mayflyv1.Function
	qualifier string
	route     *route
}

func (b *builder) build() error {
	switch q := b.qualifier; {
	case q == "" || q == latest || isNumber(q):
		return b.add(q, 1)
	default:
		return b.alias()
	}
}

// alias adds the weighted versions in order of their numbers, then the alias's own.
func (b *builder) alias() error {
	fn := b.function
	a, ok := b.view.Alias(fn.GetNamespace(), fn.GetName(), b.qualifier)
	if !ok {
		return fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_ALIAS_NOT_FOUND,
			"function %q in namespace %q has no alias %q: see `mayfly alias list %s`", fn.GetName(), fn.GetNamespace(), b.qualifier, fn.GetName())
	}
	versions := make([]string, 0, len(a.GetWeights()))
	for version := range a.GetWeights() {
		versions = append(versions, version)
	}
	slices.Sort(versions)
	bound := 0.0
	for _, version := range versions {
		bound += a.GetWeights()[version]
		if err := b.add(version, bound); err != nil {
			return err
		}
	}
	return b.add(a.GetVersion(), 1)
}

func (b *builder) add(version string, bound float64) error {
	spec := b.spec()
	if version == "" || version == latest {
		spec.Version, spec.CodeRevision = latest, b.function.GetCodeRevision()
		if err := b.configure(spec, b.function.GetConfiguration(), b.function.GetCode()); err != nil {
			return err
		}
	} else if err := b.published(spec, version); err != nil {
		return err
	}
	arn := b.function.GetArn()
	if b.qualifier != "" {
		arn += ":" + b.qualifier
	}
	b.route.targets = append(b.route.targets, &Target{
		Function: b.function, Spec: spec, InvokedARN: arn, pool: b.router.poolFor(spec),
		measured: b.router.metrics.of(functionKey{spec.GetNamespace(), spec.GetFunction()}),
	})
	b.route.bounds = append(b.route.bounds, bound)
	return nil
}

func (b *builder) published(spec *agentv1.SandboxSpec, version string) error {
	fn := b.function
	number, err := strconv.ParseInt(version, 10, 64)
	v, ok := b.view.Version(fn.GetNamespace(), fn.GetName(), number)
	if err != nil || !ok {
		return fault.NotFound(mayflyv1.ErrorReason_ERROR_REASON_VERSION_NOT_FOUND,
			"function %q in namespace %q has no version %s: see `mayfly version list %s`", fn.GetName(), fn.GetNamespace(), version, fn.GetName())
	}
	spec.Version, spec.CodeRevision = strconv.FormatInt(number, 10), v.GetCodeRevision()
	return b.configure(spec, v.GetConfiguration(), v.GetCode())
}

func (b *builder) spec() *agentv1.SandboxSpec {
	region := b.view.Settings().GetRegion()
	if region == "" {
		region = defaultRegion
	}
	return &agentv1.SandboxSpec{
		Namespace: b.function.GetNamespace(), Function: b.function.GetName(), FunctionArn: b.function.GetArn(),
		AccountId: b.namespace.GetAccountId(), Region: region,
	}
}

func (b *builder) configure(spec *agentv1.SandboxSpec, c *mayflyv1.FunctionConfiguration, code *mayflyv1.Code) error {
	var missing string
	if spec.SecretsRevision, missing = b.view.SecretsRevision(spec.GetNamespace(), c); missing != "" {
		return fault.Conflict(mayflyv1.ErrorReason_ERROR_REASON_SECRET_NOT_FOUND,
			"version %s of function %q in namespace %q can't start: secret %q, which it refers to, does not exist; create it, or remove the reference",
			spec.GetVersion(), spec.GetFunction(), spec.GetNamespace(), missing)
	}
	memory := int64(orDefault(c.GetMemoryMb(), defaultMemoryMB))
	spec.Runtime, spec.Handler, spec.Environment = c.GetRuntime(), c.GetHandler(), c.GetEnvironment()
	spec.CodeDigest, spec.CodeSizeBytes = code.GetDigest(), code.GetSizeBytes()
	spec.MemoryBytes, spec.MilliCpus = memory<<20, int32(memory*1000/fullCPUMemoryMB)
	spec.TmpBytes = int64(orDefault(c.GetEphemeralStorageMb(), defaultTmpMB)) << 20
	if spec.Egress = c.GetEgress(); spec.Egress == mayflyv1.EgressPolicy_EGRESS_POLICY_UNSPECIFIED {
		spec.Egress = mayflyv1.EgressPolicy_EGRESS_POLICY_INTERNET // it was made before there were policies
	}
	if spec.Timeout = c.GetTimeout(); spec.Timeout.AsDuration() <= 0 {
		spec.Timeout = durationpb.New(defaultTimeout)
	}
	return nil
}

func orDefault(v, d int32) int32 {
	if v <= 0 {
		return d
	}
	return v
}

// outdated tells whether the newest view has the target's version no more: no invocation of it may start.
func (r *Router) outdated(t *Target) bool {
	v := r.now().view
	fn, ok := v.Function(t.Spec.GetNamespace(), t.Spec.GetFunction())
	if !ok {
		return true
	}
	if t.Version() == latest {
		return fn.GetCodeRevision() != t.Spec.GetCodeRevision() || otherSecrets(v, t.Spec, fn.GetConfiguration())
	}
	number, _ := strconv.ParseInt(t.Version(), 10, 64) // a target's version is a number
	published, ok := v.Version(t.Spec.GetNamespace(), t.Spec.GetFunction(), number)
	return !ok || published.GetCodeRevision() != t.Spec.GetCodeRevision() || otherSecrets(v, t.Spec, published.GetConfiguration())
}

// otherSecrets tells whether values have changed since spec was made.
func otherSecrets(v View, spec *agentv1.SandboxSpec, c *mayflyv1.FunctionConfiguration) bool {
	revision, missing := v.SecretsRevision(spec.GetNamespace(), c)
	return missing != "" || revision != spec.GetSecretsRevision()
}
