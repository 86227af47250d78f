package fleet

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
	"github.com/mayfly-faas/mayfly/scheduler"
)

// node is an agent, connected or not. Fleet.mu guards it.
type node struct {
	scheduler.Node
	session    *session // nil: down
	instanceID string
	release    string
	capacity   *mayflyv1.NodeResources
	used       *mayflyv1.NodeResources
	images     []*mayflyv1.RuntimeImage
	// egressError is why NoEgress is set.
	egressError string
	lastSeen    time.Time
}

// session is one attachment of an agent.
type session struct {
	fleet  *Fleet
	node   *node
	worker Worker
	once   sync.Once
	done   chan struct{}
	// heard is the Unix time in nanoseconds of the last sign of life; watched tells that silence ends the session.
	heard   atomic.Int64
	watched bool
}

// Attach lets the fleet use w, an agent in this process, until the session ends. A session that the same node has is
// ended first.
func (f *Fleet) Attach(_ context.Context, hello *agentv1.Hello, w Worker) (Session, error) {
	return f.attach(hello, w, false)
}

func (f *Fleet) attach(hello *agentv1.Hello, w Worker, watched bool) (*session, error) {
	if hello.GetNodeId() == "" || hello.GetNodeName() == "" {
		return nil, fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_ARGUMENT,
			"an agent's hello needs node_id and node_name, got %q and %q", hello.GetNodeId(), hello.GetNodeName())
	}
	s := &session{fleet: f, worker: w, done: make(chan struct{}), watched: watched}
	s.touch()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		return nil, errStopping()
	}
	n := f.nodeLocked(hello.GetNodeId())
	if n.session != nil {
		f.detachLocked(n.session)
	}
	s.node, n.session, n.Up = n, s, true
	n.Name, n.instanceID, n.release, n.lastSeen = hello.GetNodeName(), hello.GetInstanceId(), hello.GetMayflyVersion(), time.Now()
	n.capacity = hello.GetCapacity()
	n.MemoryBytes, n.MilliCPUs = n.capacity.GetMemoryBytes(), int64(n.capacity.GetMilliCpus())
	n.egressError, n.NoEgress = hello.GetEgressError(), hello.GetEgressError() != ""
	n.setImages(hello.GetRuntimes())
	for _, status := range hello.GetSandboxes() {
		f.adoptLocked(n, status)
	}
	f.signalNodesLocked()
	f.schedulePendingLocked()
	f.log.Info("agent attached", "node", n.Name, "node_id", n.ID, "sandboxes", len(hello.GetSandboxes()))
	return s, nil
}

func errStopping() error {
	return fault.Unavailable(mayflyv1.ErrorReason_ERROR_REASON_UNSPECIFIED, "this server is stopping: attach later")
}

func (f *Fleet) nodeLocked(id string) *node {
	if n := f.nodes[id]; n != nil {
		return n
	}
	n := &node{Node: scheduler.Node{
		ID: id, MaxStarting: f.cfg.StartParallelism, Code: map[string]int{}, Functions: map[scheduler.Function]int{},
	}}
	f.nodes[id] = n
	f.snapshot.Nodes = append(f.snapshot.Nodes, &n.Node)
	return n
}

func (n *node) setImages(images []*mayflyv1.RuntimeImage) {
	n.images = images
	n.Runtimes = n.Runtimes[:0:0]
	for _, image := range images {
		n.Runtimes = append(n.Runtimes, image.GetRuntime())
	}
}

func (f *Fleet) signalNodesLocked() {
	close(f.nodesChanged)
	f.nodesChanged = make(chan struct{})
}

func (f *Fleet) watchNodes() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.nodesChanged
}

// Report takes what the agent says of itself.
func (s *session) Report(r *agentv1.Report) {
	s.touch()
	f := s.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	n := s.node
	if n.session != s {
		return
	}
	n.lastSeen = time.Now()
	if r.GetUsed() != nil {
		n.used = r.GetUsed()
	}
	if len(r.GetRuntimes()) > 0 {
		n.setImages(r.GetRuntimes())
		f.signalNodesLocked()
	}
	for _, status := range r.GetSandboxes() {
		f.reportedLocked(n, status)
	}
	if len(r.GetSandboxes())+len(r.GetRuntimes()) > 0 {
		f.schedulePendingLocked()
	}
}

func (s *session) touch() { s.heard.Store(time.Now().UnixNano()) }

// Done is closed when the session has ended.
func (s *session) Done() <-chan struct{} { return s.done }

// Close ends the session: the node is down, its sandboxes are forgotten until it attaches again.
func (s *session) Close() error {
	s.fleet.mu.Lock()
	defer s.fleet.mu.Unlock()
	s.fleet.detachLocked(s)
	return nil
}

func (f *Fleet) detachLocked(s *session) {
	s.once.Do(func() { close(s.done) })
	n := s.node
	if n == nil || n.session != s {
		return
	}
	n.session, n.Up = nil, false
	for _, sb := range f.sandboxes {
		if sb.node == n {
			f.removeLocked(sb)
		}
	}
	n.reset()
	f.signalNodesLocked()
	f.schedulePendingLocked()
	f.log.Info("agent detached", "node", n.Name, "node_id", n.ID)
}

// reset forgets what is only known from the session that ended. Starts in progress still count themselves out.
func (n *node) reset() {
	n.Code = map[string]int{}
	n.NotBefore = time.Time{}
	n.used = nil
}

// endAllSessions ends those that there are, and lets no other begin.
func (f *Fleet) endAllSessions() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopped = true
	for _, n := range f.nodes {
		if n.session != nil {
			f.detachLocked(n.session)
		}
	}
}

// Nodes is the live status of all agents seen since the start, by name. Its meta and server fields are empty.
func (f *Fleet) Nodes() []*mayflyv1.Node {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]*mayflyv1.Node, 0, len(f.nodes))
	for _, n := range f.nodes {
		out = append(out, n.status())
	}
	slices.SortFunc(out, func(a, b *mayflyv1.Node) int {
		return cmp.Or(cmp.Compare(a.GetName(), b.GetName()), cmp.Compare(a.GetId(), b.GetId()))
	})
	return out
}

func (n *node) status() *mayflyv1.Node {
	state := mayflyv1.NodeState_NODE_STATE_DOWN
	if n.Up {
		state = mayflyv1.NodeState_NODE_STATE_UP
	}
	return &mayflyv1.Node{
		Id: n.ID, Name: n.Name, Agent: true, State: state, Capacity: n.capacity, Used: n.used,
		Sandboxes: int32(n.Sandboxes), Runtimes: slices.Clone(n.Runtimes), MayflyVersion: n.release,
		LastSeen: timestamppb.New(n.lastSeen), EgressError: n.egressError,
	}
}

// Runtimes lists the images of all connected agents by runtime and digest, with the names of the nodes that have them.
func (f *Fleet) Runtimes() []*mayflyv1.RuntimeImage {
	f.mu.Lock()
	defer f.mu.Unlock()
	type key struct{ runtime, digest string }
	images := map[key]*mayflyv1.RuntimeImage{}
	for _, n := range f.nodes {
		if !n.Up {
			continue
		}
		for _, image := range n.images {
			k := key{image.GetRuntime(), image.GetDigest()}
			if images[k] == nil {
				images[k] = proto.CloneOf(image)
				images[k].Nodes = nil
			}
			images[k].Nodes = append(images[k].Nodes, n.Name)
		}
	}
	out := make([]*mayflyv1.RuntimeImage, 0, len(images))
	for _, image := range images {
		slices.Sort(image.Nodes)
		out = append(out, image)
	}
	slices.SortFunc(out, func(a, b *mayflyv1.RuntimeImage) int {
		return cmp.Or(cmp.Compare(a.GetRuntime(), b.GetRuntime()), cmp.Compare(a.GetDigest(), b.GetDigest()))
	})
	return out
}
