package fleet

import (
	"slices"
	"strconv"
	"time"

	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
	"github.com/mayfly-faas/mayfly/scheduler"
)

// latest is the version name of a function's unpublished code.
const latest = "$LATEST"

// outdated is why a sandbox of a retired version is destroyed.
const outdated = "its version or a secret of it was replaced"

// versionKey names what a sandbox runs; it never runs anything else.
type versionKey struct {
	scheduler.Function
	version  string
	revision uint64
	// secrets is the revision of the values that it started with.
	secrets uint64
}

func keyOf(spec *agentv1.SandboxSpec) versionKey {
	return versionKey{
		scheduler.Function{Namespace: spec.GetNamespace(), Name: spec.GetFunction()}, spec.GetVersion(), spec.GetCodeRevision(), spec.GetSecretsRevision(),
	}
}

// current tells whether view still has the version, with the same revision of code and secrets.
func (k versionKey) current(view View) bool {
	c, revision, ok := k.configuration(view)
	if !ok || revision != k.revision {
		return false
	}
	secrets, missing := view.SecretsRevision(k.Namespace, c)
	return missing == "" && secrets == k.secrets
}

// configuration is what view has for the version.
func (k versionKey) configuration(view View) (c *mayflyv1.FunctionConfiguration, codeRevision uint64, ok bool) {
	if k.version == latest {
		fn, ok := view.Function(k.Namespace, k.Name)
		return fn.GetConfiguration(), fn.GetCodeRevision(), ok
	}
	number, err := strconv.ParseInt(k.version, 10, 64)
	if err != nil {
		return nil, 0, false
	}
	v, ok := view.Version(k.Namespace, k.Name, number)
	return v.GetConfiguration(), v.GetCodeRevision(), ok
}

// version is the sandboxes of one version; retired, it gets no new invocation.
type version struct {
	live    int
	idle    []*sandbox // the last used is last
	retired bool
}

type sandboxState int

const (
	starting sandboxState = iota
	// foreign sandboxes were busy when their agent attached: they are left alone until it reports them idle.
	foreign
	idle
	leased
	removing
)

// sandbox is one sandbox of a node. Fleet.mu guards it.
type sandbox struct {
	id       string
	node     *node
	session  *session
	key      versionKey
	memory   int64
	cpus     int64
	state    sandboxState
	lease    *Lease
	lastUsed time.Time
	init     time.Duration
	grant    *agentv1.Grant
	// uncounted: its memory was given to the sandbox that it makes room for.
	uncounted bool
	reason    string
}

func (f *Fleet) addLocked(sb *sandbox) {
	f.sandboxes[sb.id] = sb
	n := sb.node
	n.UsedMemoryBytes += sb.memory
	n.UsedMilliCPUs += sb.cpus
	n.Sandboxes++
	n.Functions[sb.key.Function]++
	f.versionLocked(sb.key).live++
}

func (f *Fleet) versionLocked(k versionKey) *version {
	v := f.versions[k]
	if v == nil {
		v = &version{}
		f.versions[k] = v
	}
	return v
}

// removeLocked forgets a sandbox: it exists no more, or its node is lost.
func (f *Fleet) removeLocked(sb *sandbox) {
	if f.sandboxes[sb.id] != sb {
		return
	}
	delete(f.sandboxes, sb.id)
	f.leaveIdleLocked(sb)
	f.endLeaseLocked(sb)
	sb.state = removing
	f.uncountLocked(sb)
	n := sb.node
	n.Sandboxes--
	if n.Functions[sb.key.Function]--; n.Functions[sb.key.Function] <= 0 {
		delete(n.Functions, sb.key.Function)
	}
	v := f.versions[sb.key]
	if v.live--; v.live == 0 {
		delete(f.versions, sb.key)
	}
}

// uncountLocked frees a sandbox's memory and CPU, once.
func (f *Fleet) uncountLocked(sb *sandbox) {
	if !sb.uncounted {
		sb.uncounted = true
		sb.node.UsedMemoryBytes -= sb.memory
		sb.node.UsedMilliCPUs -= sb.cpus
	}
}

func (f *Fleet) becomeIdleLocked(sb *sandbox) {
	sb.state, sb.lastUsed = idle, time.Now()
	v := f.versions[sb.key]
	if v.retired {
		f.destroyLocked(sb, outdated)
		return
	}
	v.idle = append(v.idle, sb)
	sb.node.Idle = append(sb.node.Idle, scheduler.Idle{
		ID: sb.id, Function: sb.key.Function, Version: sb.key.version, MemoryBytes: sb.memory, MilliCPUs: sb.cpus,
		LastUsed: sb.lastUsed, Init: sb.init,
	})
}

func (f *Fleet) leaveIdleLocked(sb *sandbox) {
	if sb.state != idle {
		return
	}
	v := f.versions[sb.key]
	v.idle = slices.DeleteFunc(v.idle, func(s *sandbox) bool { return s == sb })
	n := sb.node
	if i := slices.IndexFunc(n.Idle, func(i scheduler.Idle) bool { return i.ID == sb.id }); i >= 0 {
		n.Idle[i] = n.Idle[len(n.Idle)-1]
		n.Idle = n.Idle[:len(n.Idle)-1]
	}
}

// adoptLocked takes over a sandbox that lived before the session.
func (f *Fleet) adoptLocked(n *node, status *agentv1.SandboxStatus) {
	if status.GetState() == agentv1.SandboxState_SANDBOX_STATE_GONE || f.sandboxes[status.GetSandboxId()] != nil {
		return
	}
	f.raiseGrantLocked(status.GetGrant())
	sb := &sandbox{
		id: status.GetSandboxId(), node: n, session: n.session, memory: status.GetMemoryBytes(), state: foreign, lastUsed: time.Now(),
		key: versionKey{
			scheduler.Function{Namespace: status.GetNamespace(), Name: status.GetFunction()}, status.GetVersion(), status.GetCodeRevision(), status.GetSecretsRevision(),
		},
	}
	f.addLocked(sb)
	if status.GetState() == agentv1.SandboxState_SANDBOX_STATE_IDLE {
		f.becomeIdleLocked(sb)
	}
}

// reportedLocked learns that a sandbox ended, or that one which was busy before the session is free. All else the fleet
// knows better: it gave the order.
func (f *Fleet) reportedLocked(n *node, status *agentv1.SandboxStatus) {
	sb := f.sandboxes[status.GetSandboxId()]
	if sb == nil || sb.node != n {
		return
	}
	switch status.GetState() {
	case agentv1.SandboxState_SANDBOX_STATE_GONE:
		if sb.state != starting && sb.state != removing {
			f.removeLocked(sb)
		}
	case agentv1.SandboxState_SANDBOX_STATE_IDLE:
		if sb.state == foreign {
			f.becomeIdleLocked(sb)
		}
	}
}

// raiseGrantLocked keeps grants above one that an agent has seen.
func (f *Fleet) raiseGrantLocked(g *agentv1.Grant) {
	if g.GetTerm() > f.term || (g.GetTerm() == f.term && g.GetSequence() > f.sequence) {
		f.term, f.sequence = g.GetTerm(), g.GetSequence()
	}
}

func (f *Fleet) nextGrantLocked() *agentv1.Grant {
	if t := f.cfg.Term(); t > f.term {
		f.term, f.sequence = t, 0
	}
	f.sequence++
	return &agentv1.Grant{Term: f.term, Sequence: f.sequence}
}
