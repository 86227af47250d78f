package router

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/proto/fault"
	agentv1 "github.com/mayfly-faas/mayfly/proto/mayfly/agent/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// check is safety: each waiter has a start of its own, and starts nobody has are orphans.
func (p *pool) check(t *testing.T) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	owned := map[*start]bool{}
	for _, w := range p.waiters {
		if w.start == nil || w.start.waiter != w || owned[w.start] {
			t.Errorf("a waiter of %v has no start of its own", p.key)
			return
		}
		owned[w.start] = true
	}
	for _, o := range p.orphans {
		if o.waiter != nil || owned[o] {
			t.Errorf("an orphan of %v has a waiter", p.key)
		}
	}
	if p.starts != len(p.waiters)+len(p.orphans) {
		t.Errorf("%v: %d starts, %d waiters, %d orphans", p.key, p.starts, len(p.waiters), len(p.orphans))
	}
	if len(p.waiters) > 0 && len(p.idle) > 0 {
		t.Errorf("%v: %d wait beside %d idle", p.key, len(p.waiters), len(p.idle))
	}
}

// drawer draws numbers below n; it may be called concurrently.
func drawer(seed uint64) func(n int) int {
	random := rand.New(rand.NewPCG(seed, seed))
	var mu sync.Mutex
	return func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return random.IntN(n)
	}
}

// chaos makes a home that fails in every way, in time.
func chaos(g *rig, draw func(n int) int) {
	g.home.acquire = func(ctx context.Context, _ *agentv1.SandboxSpec) (*agentv1.CreateSandboxResponse, error) {
		select { // in line for a place
		case <-time.After(time.Duration(draw(200)) * time.Millisecond):
		case <-ctx.Done():
			return nil, fault.Throttled(noCapacity, "called off")
		}
		time.Sleep(time.Duration(draw(100)) * time.Millisecond)
		switch draw(10) {
		case 0:
			return nil, fault.Throttled(throttled, "Rate Exceeded.")
		case 1:
			return nil, errGone
		case 2:
			return &agentv1.CreateSandboxResponse{InitError: []byte("{}")}, nil
		case 3:
			g.home.mu.Lock()
			g.home.useless = 1
			g.home.mu.Unlock()
		}
		return nil, nil
	}
	g.home.invoke = func(l *fakeLease, _ *agentv1.InvokeRequest, _ func([]byte) error) (*agentv1.InvokeResponse, error) {
		time.Sleep(time.Duration(draw(50)) * time.Millisecond)
		switch draw(10) {
		case 0:
			return nil, fault.Unavailable(nodeLost, "lost")
		case 1:
			return nil, errGone
		case 2:
			return &agentv1.InvokeResponse{SandboxGone: true}, nil
		case 3:
			l.unusable.Store(true)
		case 4:
			l.unkept.Store(true)
		}
		return &agentv1.InvokeResponse{}, nil
	}
}

// Whatever fails, whoever goes away: every call ends, in time and with an answer or a fault that is expected, and no
// lease is lost.
func TestChaos(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { runChaos(t, drawer(seed)) })
		})
	}
}

func runChaos(t *testing.T, draw func(n int) int) {
	g := newRig(t, func(c *Config) { c.MaxWait = time.Second })
	defer g.run()()
	g.state.put(active("f", 1), active("g", 1))
	chaos(g, draw)
	began := time.Now()
	var calls sync.WaitGroup
	for i := range 300 {
		limit, function := time.Duration(draw(3000))*time.Millisecond, "f"
		if i%3 == 0 {
			function = "g"
		}
		calls.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			_, err := g.Invoke(ctx, &Request{Function: function}, nil)
			checkOutcome(t, err)
		})
		if time.Sleep(time.Duration(draw(20)) * time.Millisecond); i%50 == 49 {
			g.state.put(active("f", uint64(i)))
		}
		for _, p := range g.allPools() {
			p.check(t)
		}
	}
	calls.Wait()
	if took := time.Since(began); took > time.Minute {
		t.Errorf("took %v", took)
	}
}

func checkOutcome(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	switch e := fault.From(err); {
	case e.Code == codes.DeadlineExceeded, e.Reason == throttled, e.Reason == noCapacity, e.Reason == nodeLost, e.Reason == sandboxLost:
	case e.Reason == mayflyv1.ErrorReason_ERROR_REASON_QUEUE_FULL:
	default:
		t.Error(err)
	}
}
