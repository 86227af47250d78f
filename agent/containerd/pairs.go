package containerd

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/mayfly-faas/mayfly/agent/containerd/egress"
	"github.com/mayfly-faas/mayfly/agent/sandbox"
)

// idsPerSandbox is the size of the range of host ids that one sandbox's user namespace maps.
const idsPerSandbox = 65536

// lastUID bounds the ranges: uids over it are negative as int32, which some file systems and tools don't take.
const lastUID = 1<<31 - 1

// pair is a user namespace with a network namespace that it owns, for one sandbox. Its namespaces live by the
// descriptors of this process until the sandbox has joined them, so a dead agent leaves none behind.
type pair struct {
	uid     uint32 // host uid of the namespace's root
	user    *os.File
	network *os.File
	slot    int // of its interface; 0: it has none
}

// path is where another process on the host finds a namespace that this process holds.
func path(ns *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.Fd()) }

func (p *pair) close() {
	_ = p.user.Close()    // nothing was written
	_ = p.network.Close() // nothing was written
}

// uidRanges gives every live sandbox a range of its own.
type uidRanges struct {
	base  uint32
	mu    sync.Mutex
	used  map[uint32]bool // by first uid
	next  uint32
	count uint32
}

// newUIDRanges begins at a place that depends on the instance, so that two Mayflies on a machine rarely share ids.
func newUIDRanges(base uint32, instance string) (*uidRanges, error) {
	if base > lastUID-idsPerSandbox {
		return nil, fmt.Errorf("uid base %d leaves no room below %d", base, lastUID)
	}
	count := (lastUID - base) / idsPerSandbox
	h := fnv.New32a()
	_, _ = h.Write([]byte(instance)) // never fails
	return &uidRanges{base: base, used: map[uint32]bool{}, count: count, next: h.Sum32() % count}, nil
}

// take finds a free range, the one least recently begun.
func (u *uidRanges) take() (uint32, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for range u.count {
		uid := u.base + u.next*idsPerSandbox
		u.next = (u.next + 1) % u.count
		if !u.used[uid] {
			u.used[uid] = true
			return uid, nil
		}
	}
	return 0, fmt.Errorf("all %d ranges of uids are in use", u.count)
}

func (u *uidRanges) claim(uid uint32) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.used[uid] = true
}

func (u *uidRanges) release(uid uint32) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.used, uid)
}

// pairs makes pairs, ahead of need where it can.
type pairs struct {
	helper  string
	uids    *uidRanges
	pool    *pool[*pair]
	network *egress.Network // nil: there is none
	log     *slog.Logger
}

func newPairs(cfg Config, helper string) (*pairs, error) {
	uids, err := newUIDRanges(cfg.UIDBase, cfg.InstanceID)
	if err != nil {
		return nil, err
	}
	p := &pairs{helper: helper, uids: uids, log: cfg.Logger}
	p.pool = newPool(cfg.PoolSize, p.make, p.discard)
	return p, nil
}

func (p *pairs) discard(pr *pair) {
	pr.close()
	if err := p.disconnect(pr.slot); err != nil {
		p.log.Error("an interface is left until the next start", slog.Any("error", err))
	}
	p.uids.release(pr.uid)
}

func (p *pairs) disconnect(slot int) error {
	if p.network == nil || slot == 0 {
		return nil
	}
	return p.network.Disconnect(slot)
}

func (p *pairs) make() (*pair, error) {
	uid, err := p.uids.take()
	if err != nil {
		return nil, err
	}
	pr, err := newPair(p.helper, uid)
	if err != nil {
		p.uids.release(uid)
		return nil, fmt.Errorf("make namespaces: %w", err)
	}
	if err := p.connect(pr); err != nil {
		p.discard(pr)
		return nil, fmt.Errorf("connect a network namespace: %w", err)
	}
	return pr, nil
}

// connect gives a pair its interface, with the policy that most functions have: nothing runs there yet.
func (p *pairs) connect(pr *pair) (err error) {
	if p.network != nil {
		pr.slot, err = p.network.Connect(pr.network, sandbox.EgressInternet)
	}
	return err
}

// newPair starts a short-lived process in new namespaces and keeps them by descriptors when it ends.
func newPair(helper string, uid uint32) (*pair, error) {
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(uid), Size: idsPerSandbox}}
	cmd := exec.Command(helper, "netns")
	cmd.Env = []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		// The process is nobody in the new namespace and needs this one right there, to bring up lo.
		AmbientCaps: []uintptr{unix.CAP_NET_ADMIN},
	}
	end, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	up, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s in new namespaces (are user namespaces allowed on this host?): %w", helper, err)
	}
	pr, err := holdPair(cmd.Process.Pid, uid, up)
	// The end of its input ends the process; how it ended adds nothing.
	_ = end.Close()
	_ = cmd.Wait()
	return pr, err
}

func holdPair(pid int, uid uint32, up io.Reader) (*pair, error) {
	if _, err := io.ReadFull(up, make([]byte, 1)); err != nil {
		return nil, fmt.Errorf("bring up lo: %w", err)
	}
	user, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
	if err != nil {
		return nil, err
	}
	network, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return nil, errors.Join(err, user.Close())
	}
	return &pair{uid: uid, user: user, network: network}, nil
}
