// Package state is the cluster's replicated state: a pure state machine that turns commands into records.
//
// What belongs here: each stored kind with its whole life cycle in a file of its own, Apply, consistent views, snapshots, watches.
// What does not: consensus and disks (package store), the syntax of what users send and who may send it (package api), and
// anything that can be rebuilt: sandboxes, load, what nodes report. Apply has no clock, no randomness and no order of maps.
package state

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-memdb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/mayfly-faas/mayfly/controlplane/state/table"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
)

// Table is where every record lives, as a row. *table.Table is one.
type Table interface {
	// Get answers nil for a key without a row.
	Get(key []byte) ([]byte, error)
	// Write writes all rows or none; after a crash the table is as after some earlier Write.
	Write(rows []table.Row) error
	View() (table.View, error)
	// Replace puts rows, in order of their keys, in the place of everything, at once and durably.
	Replace(rows iter.Seq2[table.Row, error]) error
	// Flush makes what was written durable.
	Flush() error
	Close() error
}

// Config is what a State needs.
type Config struct {
	// Table is closed by State.Close.
	Table  Table
	Logger *slog.Logger
}

// State is the state machine. Apply, Restore and Close are for one goroutine; the rest may be called by any.
type State struct {
	table Table
	log   *slog.Logger

	// mu keeps Snapshot apart from Apply and Restore.
	mu        sync.Mutex
	mem       *memdb.MemDB
	proposals *proposals
	// failed is why the state stopped, for good.
	failed error

	current atomic.Pointer[published]
}

// published is all of the small state after some entry.
type published struct {
	txn     *memdb.Txn
	index   uint64
	term    uint64
	time    *timestamppb.Timestamp
	changed chan struct{}
}

// New loads the state from its table.
func New(cfg Config) (*State, error) {
	if cfg.Table == nil {
		return nil, errors.New("state: Config.Table is nil")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &State{table: cfg.Table, log: cfg.Logger}
	l, err := s.load()
	if err != nil {
		return nil, fmt.Errorf("load the state from its table: %w", err)
	}
	s.adopt(l)
	s.log.Info("state loaded", "applied_index", l.applied.GetIndex(), "proposals", l.proposals.len())
	return s, nil
}

// Close flushes and closes the table. Snapshots must be closed before.
func (s *State) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		s.failed = errors.New("the state is closed")
	}
	return s.table.Close()
}

// Flush makes everything applied durable in the table. Without it a crash loses the last entries there, and the Raft log has to bring them again.
func (s *State) Flush() error { return s.table.Flush() }

// AppliedIndex is the index of the last entry applied.
func (s *State) AppliedIndex() uint64 { return s.current.Load().index }

// View is the state now. It is cheap, holds nothing that must be freed, and never changes.
func (s *State) View() View { return View{s.current.Load()} }

// WaitIndex returns when the entry with this index, or a later one, has been applied.
func (s *State) WaitIndex(ctx context.Context, index uint64) error {
	for {
		v := s.View()
		if v.Index() >= index {
			return nil
		}
		select {
		case <-v.Changed():
		case <-ctx.Done():
			return fmt.Errorf("wait until entry %d is applied (now at %d): %w", index, v.Index(), ctx.Err())
		}
	}
}

// publish shows the mirror's content as the state after an entry.
func (s *State) publish(index, term uint64, now *timestamppb.Timestamp) {
	old := s.current.Swap(&published{
		txn: s.mem.Txn(false), index: index, term: term, time: now, changed: make(chan struct{}),
	})
	if old != nil {
		close(old.changed)
	}
}

// adopt makes what was loaded the state.
func (s *State) adopt(l *loader) {
	s.mem, s.proposals = l.mem, l.proposals
	s.publish(l.applied.GetIndex(), l.applied.GetTerm(), l.cluster.GetTime())
}

// load reads the whole table.
func (s *State) load() (*loader, error) {
	view, err := s.table.View()
	if err != nil {
		return nil, err
	}
	defer view.Close()
	l, err := newLoader(&statev1.SnapshotHeader{Version: SnapshotVersion})
	if err != nil {
		return nil, err
	}
	for row, err := range view.Rows(nil) {
		if err != nil {
			return nil, err
		}
		if err := l.add(row); err != nil {
			return nil, err
		}
	}
	return l, l.finish()
}
