package store

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/hashicorp/raft"
)

// Leader is who leads, as far as this node knows.
type Leader struct {
	// ID is empty while there is none.
	ID string
	// Address is the leader's Raft address.
	Address string
	// Here tells that it is this node.
	Here bool
}

// String names the leader for people.
func (l Leader) String() string {
	if l.ID == "" {
		return "unknown"
	}
	return fmt.Sprintf("%s at %s", l.ID, l.Address)
}

// leaderState is the last known leader, and a channel that closes with the next one.
type leaderState struct {
	mu      sync.Mutex
	leader  Leader
	changed chan struct{}
}

func newLeaderState() *leaderState { return &leaderState{changed: make(chan struct{})} }

// IsLeader tells whether this node leads right now. It may have just lost that: only Propose and Barrier are certain.
func (s *Store) IsLeader() bool { return s.raft.State() == raft.Leader }

// Leader is who leads.
func (s *Store) Leader() Leader {
	s.leader.mu.Lock()
	defer s.leader.mu.Unlock()
	return s.leader.leader
}

// LeaderChanged is closed when the answer of Leader changes. Take it before asking.
func (s *Store) LeaderChanged() <-chan struct{} {
	s.leader.mu.Lock()
	defer s.leader.mu.Unlock()
	return s.leader.changed
}

func (s *Store) refreshLeader() {
	addr, id := s.raft.LeaderWithID()
	// Raft says that it leads a moment before it says who leads; it observes both.
	now := Leader{ID: string(id), Address: string(addr), Here: string(id) == s.id && s.IsLeader()}
	s.leader.mu.Lock()
	defer s.leader.mu.Unlock()
	if now == s.leader.leader {
		return
	}
	s.leader.leader = now
	close(s.leader.changed)
	s.leader.changed = make(chan struct{})
}

// watchLeader follows what Raft observes. What it observes while this is behind is seen in the same look.
func (s *Store) watchLeader(ctx context.Context) error {
	for {
		s.refreshLeader()
		select {
		case <-s.observed:
		case <-ctx.Done():
			return nil
		}
	}
}

// WaitLeader returns the leader once there is one.
func (s *Store) WaitLeader(ctx context.Context) (Leader, error) {
	for {
		changed := s.LeaderChanged()
		if l := s.Leader(); l.ID != "" {
			return l, nil
		}
		select {
		case <-changed:
		case <-s.failed:
			return Leader{}, internal(s.failErr)
		case <-ctx.Done():
			return Leader{}, noLeader("the control plane has no leader (%v): check that a majority of its nodes run", ctx.Err())
		}
	}
}

// Barrier returns when this node, the leader, has applied all that was committed before, so that its view is current.
// On another node it answers NO_LEADER.
func (s *Store) Barrier(ctx context.Context) error {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if !s.IsLeader() {
		return noLeader("this node doesn't lead the control plane (the leader is %s)", s.Leader())
	}
	_, err := s.await(ctx, s.raft.Barrier)
	if errors.Is(err, errUnknown) {
		return noLeader("the leader of the control plane was lost: try again")
	}
	return err
}
