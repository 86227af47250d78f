package store_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/mayfly-faas/mayfly/controlplane/store"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

func TestFollowersRefuseAndFollow(t *testing.T) {
	nodes := cluster(t, 3, nil)
	leader := leaderOf(t, nodes)
	r := leader.must(putNode("a"))
	for _, n := range others(nodes, leader) {
		if err := n.state.WaitIndex(within(t), r.GetIndex()); err != nil || !n.has("a") {
			t.Fatalf("a follower lacks the entry: %v", err)
		}
		_, err := n.Propose(within(t), putNode("b"))
		wantReason(t, err, codes.Unavailable, mayflyv1.ErrorReason_ERROR_REASON_NO_LEADER)
		wantReason(t, n.Barrier(within(t)), codes.Unavailable, mayflyv1.ErrorReason_ERROR_REASON_NO_LEADER)
		if l, err := n.WaitLeader(within(t)); err != nil || l.ID != leader.NodeID() || l.Here {
			t.Fatalf("a follower knows leader %v, %v", l, err)
		}
	}
	if m, err := leader.Members(); err != nil || len(m) != 3 {
		t.Fatalf("members %v, %v", m, err)
	}
}

// Leaders come and go under load: every acknowledged proposal is on every node afterwards.
func TestLeaderLossLosesNothingAcknowledged(t *testing.T) {
	rounds := 2
	if os.Getenv("MAYFLY_TEST_LONG") != "" {
		rounds = 20
	}
	nodes := cluster(t, 3, nil)
	for round := range rounds {
		leader := leaderOf(t, nodes)
		var mu sync.Mutex
		var acknowledged []string
		var wg sync.WaitGroup
		var stop atomic.Bool
		for w := range 8 {
			wg.Go(func() {
				for i := 0; !stop.Load(); i++ {
					id := fmt.Sprint(round, "-", w, "-", i)
					if _, err := leader.Propose(within(t), putNode(id)); err != nil {
						return
					}
					mu.Lock()
					acknowledged = append(acknowledged, id)
					mu.Unlock()
				}
			})
		}
		eventually(t, "some are acknowledged", func() bool { mu.Lock(); defer mu.Unlock(); return len(acknowledged) > 50 })
		leader.stop()
		stop.Store(true)
		wg.Wait()
		next := leaderOf(t, others(nodes, leader))
		r := next.must(putNode(fmt.Sprint("after-", round)))
		leader.start(false)
		for _, n := range nodes {
			if err := n.state.WaitIndex(within(t), r.GetIndex()); err != nil {
				t.Fatal(err)
			}
			for _, id := range acknowledged {
				if !n.has(id) {
					t.Fatalf("round %d: %s was acknowledged and is lost", round, id)
				}
			}
		}
	}
}

// toLeader forwards in process; before and after can lose the request or its answer.
type toLeader struct {
	nodes  *[]*node
	before func() error
	after  func() error
}

func (f toLeader) Forward(ctx context.Context, leader store.Leader, c *statev1.Command) (*statev1.Result, error) {
	if err := f.before(); err != nil {
		return nil, err
	}
	for _, n := range *f.nodes {
		if n.NodeID() == leader.ID {
			r, err := n.Propose(ctx, c)
			if err := f.after(); err != nil {
				return nil, err
			}
			return r, err
		}
	}
	return nil, errors.New("no such node")
}

// A leader that is cut off answers nothing; healed, it finds out what became of its proposal, which is applied once.
func TestUnknownOutcomeIsRetriedOnce(t *testing.T) {
	var nodes []*node
	nothing := func() error { return nil }
	nodes = cluster(t, 3, func(_ int, c *store.Config) { c.Forwarder = toLeader{&nodes, nothing, nothing} })
	old := leaderOf(t, nodes)
	old.net.setCut(true)
	outcome := make(chan error, 1)
	c := createFunction("once")
	go func() {
		_, err := old.Propose(within(t), c)
		outcome <- err
	}()
	next := leaderOf(t, others(nodes, old))
	next.must(createFunction("other"))
	select {
	case err := <-outcome:
		t.Fatalf("a cut off leader answered: %v", err)
	default:
	}
	old.net.setCut(false)
	if err := <-outcome; err != nil {
		t.Fatal(err)
	}
	f, ok := old.View().Function("default", "once")
	if !ok {
		t.Fatal("the proposal was answered and is not applied")
	}
	again, err := old.Propose(within(t), c)
	if err != nil || again.GetIndex() != f.GetMeta().GetRevision() {
		t.Fatalf("the first result is of entry %d, later %v, %v", f.GetMeta().GetRevision(), again, err)
	}
}

// Without a forwarder an unknown outcome ends with the context, and says that it is unknown.
func TestUnknownOutcomeEndsWithContext(t *testing.T) {
	nodes := cluster(t, 3, nil)
	old := leaderOf(t, nodes)
	old.net.setCut(true)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, err := old.Propose(ctx, putNode("x"))
	wantReason(t, err, codes.DeadlineExceeded, mayflyv1.ErrorReason_ERROR_REASON_DEADLINE_EXCEEDED)
	old.net.setCut(false)
}

// The way to the leader fails before and after the effect: the caller gets the one result, and it is applied once.
func TestForwardingIsRetried(t *testing.T) {
	var nodes []*node
	var calls atomic.Int32
	lost := errors.New("connection lost")
	nodes = cluster(t, 3, func(_ int, c *store.Config) {
		c.Forwarder = toLeader{
			&nodes,
			func() error {
				if calls.Add(1)%3 == 1 {
					return lost
				}
				return nil
			},
			func() error {
				if calls.Load()%3 == 2 {
					return lost
				}
				return nil
			},
		}
	})
	leader := leaderOf(t, nodes)
	follower := others(nodes, leader)[0]
	for i := range 6 {
		name := fmt.Sprint("f", i)
		r, err := follower.Propose(within(t), createFunction(name))
		if err != nil {
			t.Fatal(err)
		}
		if f, ok := follower.View().Function("default", name); !ok || f.GetMeta().GetRevision() != r.GetIndex() {
			t.Fatalf("answered %v, the follower has %v", r, f)
		}
	}
	if _, err := follower.Propose(within(t), createFunction("f0")); err == nil {
		t.Fatal("a refusal was not forwarded")
	} else {
		wantReason(t, err, codes.AlreadyExists, mayflyv1.ErrorReason_ERROR_REASON_ALREADY_EXISTS)
	}
}

// A follower that missed more than the log holds gets a snapshot, and goes on from there, also after a restart.
func TestLaggingFollowerInstallsSnapshot(t *testing.T) {
	nodes := cluster(t, 3, func(_ int, c *store.Config) { c.TrailingLogs = 5 })
	leader := leaderOf(t, nodes)
	lagging := others(nodes, leader)[0]
	lagging.stop()
	for i := range 100 {
		leader.must(putNode(fmt.Sprint(i)))
	}
	if err := leader.Snapshot(); err != nil {
		t.Fatal(err)
	}
	r := leader.must(putNode("after"))
	for range 2 {
		lagging.start(false)
		if err := lagging.state.WaitIndex(within(t), r.GetIndex()); err != nil {
			t.Fatal(err)
		}
		for i := range 100 {
			if !lagging.has(fmt.Sprint(i)) {
				t.Fatalf("entry %d is missing", i)
			}
		}
		lagging.stop()
		r = leader.must(putNode("later"))
	}
	lagging.start(false)
	if err := lagging.state.WaitIndex(within(t), r.GetIndex()); err != nil || !lagging.has("later") {
		t.Fatalf("the log behind the snapshot is missing: %v", err)
	}
}

func TestLeaderChangedAndRemoval(t *testing.T) {
	nodes := cluster(t, 3, nil)
	leader := leaderOf(t, nodes)
	follower := others(nodes, leader)[0]
	changed := follower.LeaderChanged()
	if err := leader.RemoveServer(within(t), leader.NodeID()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	case <-within(t).Done():
		t.Fatal("nobody was told that the leader is gone")
	}
	next := leaderOf(t, others(nodes, leader))
	next.must(putNode("x"))
	if m, err := next.Members(); err != nil || len(m) != 2 {
		t.Fatalf("members %v, %v", m, err)
	}
}
