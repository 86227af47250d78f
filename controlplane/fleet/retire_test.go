package fleet

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func TestReplacedVersionServesNothingNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, nil)
		defer h.run()()
		w, _ := h.attach("a", 1000)
		old := active("f", 128)
		h.state.put(old)
		used, unused := h.acquire(old), h.acquire(old)
		unused.Release()
		fresh := active("f", 128)
		fresh.CodeRevision = 2
		h.state.put(fresh)
		h.refused(old, sandboxGone)
		time.Sleep(time.Second)
		if live, _ := w.count(); live != 1 || used.Usable() {
			t.Errorf("%d live after the update, the leased one usable: %v", live, used.Usable())
		}
		used.Release()
		time.Sleep(time.Second)
		if live, _ := w.count(); live != 0 {
			t.Errorf("%d live after the release", live)
		}
		h.acquire(fresh)
	})
}

func TestPublishedVersionOutlivesAnUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, nil)
		defer h.run()()
		w, _ := h.attach("a", 1000)
		fn := active("f", 128)
		h.state.put(fn)
		h.state.change(func(v *fakeView) { v.versions["default/f/1"] = &mayflyv1.Version{Number: 1, CodeRevision: 1} })
		spec := specOf(fn)
		spec.Version = "1"
		l, _, err := h.Acquire(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		next := active("f", 128)
		next.CodeRevision = 2
		h.state.put(next)
		time.Sleep(time.Second)
		if l.Release(); !l.sandbox.node.Up {
			t.Error("the node is down")
		}
		time.Sleep(time.Second)
		if live, _ := w.count(); live != 1 {
			t.Errorf("%d live", live)
		}
		h.state.change(func(v *fakeView) { delete(v.versions, "default/f/1") })
		time.Sleep(time.Second)
		if live, _ := w.count(); live != 0 {
			t.Errorf("%d live after the version was deleted", live)
		}
	})
}

func TestLoweredReservationRecallsLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, nil)
		defer h.run()()
		h.attach("a", 1000)
		fn := active("f", 128)
		h.state.put(fn)
		leases := []*Lease{h.acquire(fn), h.acquire(fn), h.acquire(fn)}
		h.state.put(reserved(active("f", 128), 1))
		synctest.Wait()
		h.state.put(active("other", 128)) // the recall is not repeated
		time.Sleep(time.Second)
		usable := 0
		for _, l := range leases {
			if l.Usable() {
				usable++
			}
		}
		if usable != 1 {
			t.Errorf("%d leases are usable", usable)
		}
	})
}

func TestKeepAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, func(c *Config) { c.KeepAlive = time.Minute })
		defer h.run()()
		w, _ := h.attach("a", 1000)
		fn := active("f", 128)
		h.state.put(fn)
		held := h.acquire(fn)
		h.acquire(fn).Release()
		time.Sleep(59 * time.Second)
		if live, _ := w.count(); live != 2 {
			t.Errorf("%d live before the time", live)
		}
		time.Sleep(3 * time.Second)
		if live, _ := w.count(); live != 1 || !held.Usable() {
			t.Errorf("%d live after the time", live)
		}
	})
}

func TestLostNode(t *testing.T) {
	h := newHome(t, nil)
	_, s := h.attach("a", 1000)
	fn := reserved(active("f", 128), 1)
	h.state.put(fn)
	l := h.acquire(fn)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
	if l.Usable() || h.Nodes()[0].GetState() != mayflyv1.NodeState_NODE_STATE_DOWN || len(h.Runtimes()) != 0 {
		t.Fatal("the node's loss went unnoticed")
	}
	l.Release()
	h.attach("a", 1000)
	h.acquire(fn) // counted out with its node
}

func TestNewSessionReplacesTheOld(t *testing.T) {
	h := newHome(t, nil)
	_, old := h.attach("a", 1000)
	_, fresh := h.attach("a", 1000)
	<-old.Done()
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-fresh.Done():
		t.Fatal("the end of the old session ended the new one")
	default:
	}
	if n := h.Nodes(); len(n) != 1 || n[0].GetState() != mayflyv1.NodeState_NODE_STATE_UP {
		t.Fatalf("nodes %v", n)
	}
}

func TestSandboxThatEndedByItself(t *testing.T) {
	h := newHome(t, nil)
	_, s := h.attach("a", 1000)
	fn := active("f", 128)
	h.state.put(fn)
	leased, idle := h.acquire(fn), h.acquire(fn)
	idle.Release()
	s.Report(&agentv1.Report{Sandboxes: []*agentv1.SandboxStatus{
		{SandboxId: leased.SandboxID(), State: agentv1.SandboxState_SANDBOX_STATE_GONE},
		{SandboxId: idle.SandboxID(), State: agentv1.SandboxState_SANDBOX_STATE_GONE},
	}})
	if n := h.Nodes()[0]; n.GetSandboxes() != 0 || leased.Usable() || len(h.limits.functions) != 0 || len(h.versions) != 0 {
		t.Fatalf("%v, leases %v", n, h.limits.functions)
	}
}

func TestDiscard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHome(t, nil)
		defer h.run()()
		w, _ := h.attach("a", 1000)
		fn := active("f", 128)
		h.state.put(fn)
		gone, broken := h.acquire(fn), h.acquire(fn)
		gone.Discard(true)
		broken.Discard(false)
		synctest.Wait()
		if _, destroyed := w.count(); destroyed != 1 || h.Nodes()[0].GetSandboxes() != 0 {
			t.Errorf("%d destroyed, %d left", destroyed, h.Nodes()[0].GetSandboxes())
		}
	})
}

func TestRuntimesAndNodes(t *testing.T) {
	h := newHome(t, nil)
	_, s := h.attach("b", 1000)
	h.attach("a", 1000)
	s.Report(&agentv1.Report{
		Used:     &mayflyv1.NodeResources{MemoryBytes: 5},
		Runtimes: []*mayflyv1.RuntimeImage{{Runtime: "python3.11", Digest: "sha256:1"}, {Runtime: "nodejs18", Digest: "sha256:2"}},
	})
	images := h.Runtimes()
	if len(images) != 2 || !slices.Equal(images[0].GetNodes(), []string{"b"}) || !slices.Equal(images[1].GetNodes(), []string{"a", "b"}) {
		t.Fatalf("images %v", images)
	}
	nodes := h.Nodes()
	if len(nodes) != 2 || nodes[0].GetName() != "a" || nodes[1].GetUsed().GetMemoryBytes() != 5 || nodes[1].GetLastSeen() == nil {
		t.Fatalf("nodes %v", nodes)
	}
}
