package router

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func TestColdStartsAreNotSerialised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, nil)
		defer g.run()()
		g.state.put(active("f", 1))
		g.home.acquire = func(context.Context, *agentv1.SandboxSpec) (*agentv1.CreateSandboxResponse, error) {
			time.Sleep(time.Second)
			return nil, nil
		}
		began := time.Now()
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() { g.mustInvoke("f") })
		}
		all.Wait()
		if took := time.Since(began); took != time.Second {
			t.Errorf("100 cold starts took %v", took)
		}
	})
}

func TestFreeSandboxServesTheOldest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, nil)
		defer g.run()()
		g.state.put(active("f", 1))
		var acquired, called atomic.Int64
		g.home.acquire = func(ctx context.Context, _ *agentv1.SandboxSpec) (*agentv1.CreateSandboxResponse, error) {
			if acquired.Add(1) == 1 {
				return nil, nil
			}
			<-ctx.Done() // no room for a second one
			called.Add(1)
			return nil, fault.Throttled(noCapacity, "full")
		}
		g.home.invoke = func(_ *fakeLease, r *agentv1.InvokeRequest, _ func([]byte) error) (*agentv1.InvokeResponse, error) {
			time.Sleep(time.Second)
			return &agentv1.InvokeResponse{}, nil
		}
		var order []int
		var mu sync.Mutex
		var all sync.WaitGroup
		for i := range 5 {
			all.Go(func() {
				g.mustInvoke("f")
				mu.Lock()
				defer mu.Unlock()
				order = append(order, i)
			})
			synctest.Wait()
		}
		all.Wait()
		synctest.Wait()
		if fmt.Sprint(order) != "[0 1 2 3 4]" || called.Load() != 4 {
			t.Errorf("order %v, %d starts called off", order, called.Load())
		}
	})
}

func TestFailedStartWakesItsWaiterOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, nil)
		defer g.run()()
		g.state.put(active("f", 1))
		var n atomic.Int64
		g.home.acquire = func(context.Context, *agentv1.SandboxSpec) (*agentv1.CreateSandboxResponse, error) {
			if n.Add(1) == 2 {
				return nil, fault.Throttled(throttled, "Rate Exceeded.")
			}
			time.Sleep(time.Second)
			return nil, nil
		}
		results := make([]error, 3)
		var all sync.WaitGroup
		for i := range 3 {
			all.Go(func() { _, results[i] = g.invoke("f", "1") })
			synctest.Wait()
		}
		all.Wait()
		if results[0] != nil || !fault.Is(results[1], throttled) || results[2] != nil {
			t.Errorf("results %v", results)
		}
	})
}

func TestOvertakenStartServesWhoIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, nil)
		defer g.run()()
		g.state.put(active("f", 1))
		var n atomic.Int64
		g.home.acquire = func(context.Context, *agentv1.SandboxSpec) (*agentv1.CreateSandboxResponse, error) {
			if n.Add(1) == 1 {
				time.Sleep(3 * time.Second)
				return nil, fault.Throttled(noCapacity, "full after all")
			}
			time.Sleep(time.Second)
			return nil, nil
		}
		g.home.invoke = func(*fakeLease, *agentv1.InvokeRequest, func([]byte) error) (*agentv1.InvokeResponse, error) {
			time.Sleep(time.Hour)
			return &agentv1.InvokeResponse{}, nil
		}
		var first, second error
		var all sync.WaitGroup
		all.Go(func() { _, first = g.invoke("f", "1") })
		synctest.Wait()
		all.Go(func() { _, second = g.invoke("f", "2") })
		all.Wait()
		if first != nil || !fault.Is(second, noCapacity) {
			t.Errorf("first %v, second %v", first, second)
		}
	})
}

func TestQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, func(c *Config) { c.QueueLength = 3 })
		defer g.run()()
		g.state.put(active("f", 1))
		g.home.acquire = func(ctx context.Context, _ *agentv1.SandboxSpec) (*agentv1.CreateSandboxResponse, error) {
			<-ctx.Done()
			return nil, fault.Throttled(noCapacity, "full")
		}
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				if _, err := g.invoke("f", "1"); !fault.Is(err, noCapacity) {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		_, err := g.invoke("f", "1")
		if !fault.Is(err, mayflyv1.ErrorReason_ERROR_REASON_QUEUE_FULL) || fault.HTTPStatus(err) != 429 {
			t.Error(err)
		}
		began := time.Now()
		all.Wait()
		if waited := time.Since(began); waited != 30*time.Second {
			t.Errorf("waited %v", waited)
		}
	})
}

func TestStartThatHasBegunIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, nil)
		defer g.run()()
		g.state.put(active("f", 1))
		g.home.acquire = func(context.Context, *agentv1.SandboxSpec) (*agentv1.CreateSandboxResponse, error) {
			time.Sleep(time.Minute)
			return nil, nil
		}
		g.mustInvoke("f")
	})
}

func TestWaitingCallerGoesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, nil)
		defer g.run()()
		g.state.put(active("f", 1))
		g.home.acquire = func(context.Context, *agentv1.SandboxSpec) (*agentv1.CreateSandboxResponse, error) {
			time.Sleep(time.Second)
			return nil, nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := g.Invoke(ctx, &Request{Function: "f"}, nil); fault.From(err).Code != codes.DeadlineExceeded || !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		time.Sleep(2 * time.Second) // its sandbox is kept
		if g.mustInvoke("f").GetReport().GetInitDuration() != nil {
			t.Error("the next call started a sandbox")
		}
	})
}

func TestIdleLeasesGoHome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, nil)
		defer g.run()()
		g.home.reuse = true
		g.state.put(active("f", 1))
		g.mustInvoke("f")
		time.Sleep(time.Second)
		if _, released, _, _ := g.home.counts(); released != 0 {
			t.Error("released too early")
		}
		time.Sleep(2 * time.Second)
		if _, released, _, _ := g.home.counts(); released != 1 {
			t.Error("not released")
		}
		time.Sleep(time.Minute)
		if n := len(g.allPools()); n != 0 {
			t.Errorf("%d pools are remembered", n)
		}
		if g.mustInvoke("f").GetReport().GetInitDuration() != nil {
			t.Error("a sandbox was started though home had one")
		}
	})
}

func TestRecall(t *testing.T) {
	g := newRig(t, nil)
	defer g.run()()
	g.state.put(active("f", 1), active("g", 1))
	g.mustInvoke("f")
	g.mustInvoke("g")
	if n := g.RecallIdle(func(_, name string) bool { return name == "g" }, 5); n != 1 {
		t.Errorf("recalled %d", n)
	}
	if n := g.RecallIdle(func(string, string) bool { return true }, 5); n != 1 {
		t.Errorf("recalled %d", n)
	}
}

func TestUnusableAndUnwantedLeases(t *testing.T) {
	g := newRig(t, nil)
	defer g.run()()
	g.state.put(active("f", 1))
	var last *fakeLease
	g.home.invoke = func(l *fakeLease, _ *agentv1.InvokeRequest, _ func([]byte) error) (*agentv1.InvokeResponse, error) {
		last = l
		return &agentv1.InvokeResponse{}, nil
	}
	g.mustInvoke("f")
	last.unusable.Store(true)
	first := last
	if g.mustInvoke("f"); last == first {
		t.Error("a recalled lease was used")
	}
	last.unkept.Store(true)
	g.mustInvoke("f")
	if _, released, _, leased := g.home.counts(); released != 2 || leased != 0 {
		t.Errorf("%d released, %d leased", released, leased)
	}
}

func TestWaiterFollowsAnUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, nil)
		defer g.run()()
		g.state.put(active("f", 1))
		g.home.acquire = func(context.Context, *agentv1.SandboxSpec) (*agentv1.CreateSandboxResponse, error) {
			time.Sleep(time.Second)
			return nil, nil
		}
		g.home.invoke = func(l *fakeLease, _ *agentv1.InvokeRequest, _ func([]byte) error) (*agentv1.InvokeResponse, error) {
			return &agentv1.InvokeResponse{Payload: fmt.Append(nil, l.spec.GetCodeRevision())}, nil
		}
		go func() {
			time.Sleep(time.Second / 2)
			g.state.put(active("f", 2))
		}()
		if got, err := g.invoke("f", "1"); got != "2" || err != nil {
			t.Errorf("revision %s ran, %v", got, err)
		}
	})
}

func TestStopFailsWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, nil)
		stop := g.run()
		g.state.put(active("f", 1))
		g.home.acquire = func(ctx context.Context, _ *agentv1.SandboxSpec) (*agentv1.CreateSandboxResponse, error) {
			<-ctx.Done()
			return nil, fault.Throttled(noCapacity, "full")
		}
		done := make(chan error)
		go func() {
			_, err := g.invoke("f", "1")
			done <- err
		}()
		synctest.Wait()
		go stop()
		if err := <-done; fault.From(err).Code != codes.Unavailable {
			t.Error(err)
		}
	})
}

// A lease may be recalled between its grant and its use: its waiter must not be forgotten.
func TestRecalledBeforeUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRig(t, nil)
		defer g.run()()
		g.state.put(active("f", 1))
		g.home.useless = 2
		began := time.Now()
		g.mustInvoke("f")
		if n, released, _, _ := g.home.counts(); n != 3 || released != 2 || time.Since(began) > 0 {
			t.Errorf("%d acquired, %d released in %v", n, released, time.Since(began))
		}
	})
}
