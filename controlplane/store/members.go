package store

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// Member is a server of the Raft group.
type Member struct {
	ID, Address string
	Voter       bool
}

// Members lists the latest configuration, committed or not.
func (s *Store) Members() ([]Member, error) {
	f := s.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return nil, fmt.Errorf("read the raft configuration: %w", err)
	}
	members := make([]Member, 0, len(f.Configuration().Servers))
	for _, m := range f.Configuration().Servers {
		members = append(members, Member{ID: string(m.ID), Address: string(m.Address), Voter: m.Suffrage == raft.Voter})
	}
	return members, nil
}

// AddVoter makes a node a voter, or gives a voter its new address. On another node than the leader it answers NO_LEADER.
func (s *Store) AddVoter(ctx context.Context, id, address string) error {
	return s.configure(ctx, func(timeout time.Duration) raft.Future {
		return s.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(address), 0, timeout)
	})
}

// RemoveServer takes a node out of the group. On another node than the leader it answers NO_LEADER.
func (s *Store) RemoveServer(ctx context.Context, id string) error {
	return s.configure(ctx, func(timeout time.Duration) raft.Future {
		return s.raft.RemoveServer(raft.ServerID(id), 0, timeout)
	})
}

func (s *Store) configure(ctx context.Context, change func(time.Duration) raft.Future) error {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if _, err := s.await(ctx, change); err != nil {
		return fmt.Errorf("change the members of the control plane: %w", err)
	}
	return nil
}
