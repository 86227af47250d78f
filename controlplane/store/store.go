// Package store replicates the state: it runs Raft around package state and takes proposals.
//
// What belongs here: Raft's settings, its log on disk, its transport over mutual TLS, proposing with retries, the watermark of
// free space, leadership and membership. What does not: what commands mean (package state), who may propose them (package
// api), and how a node reaches the leader (the Forwarder that the control plane gives).
package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"

	"github.com/mayfly-faas/mayfly/controlplane/state"
	"github.com/mayfly-faas/mayfly/controlplane/store/logstore"
)

const (
	logFile         = "log.db"
	snapshotsKept   = 2
	closePatience   = 10 * time.Second
	observerBacklog = 64
)

// Store is one node's part of the replicated state. Open starts it, Run must run while it is used, Close ends it.
type Store struct {
	cfg   Config
	id    string
	log   *slog.Logger
	logs  *logstore.Store
	trans *raft.NetworkTransport
	raft  *raft.Raft
	disk  *watermark

	metrics  *metrics
	leader   *leaderState
	observer *raft.Observer
	observed chan raft.Observation

	// closing is closed by Close; pending are calls that wait for Raft.
	closing chan struct{}
	gate    sync.RWMutex
	pending sync.WaitGroup

	failOnce sync.Once
	failed   chan struct{}
	failErr  error
}

// Open opens the node's directory, brings the state to what is known to be committed and starts Raft.
// It fails while another process has the directory open.
func Open(cfg Config) (_ *Store, err error) {
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	s := &Store{cfg: cfg, log: cfg.Logger, closing: make(chan struct{}), failed: make(chan struct{}), leader: newLeaderState()}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.closeFiles())
		}
	}()
	if err := s.openDir(); err != nil {
		return nil, err
	}
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(cfg.Dir, snapshotsKept, newRaftLogger(cfg.Logger))
	if err != nil {
		return nil, fmt.Errorf("open snapshots in %s: %w", cfg.Dir, err)
	}
	if err := s.recover(snapshots); err != nil {
		return nil, err
	}
	if s.trans, err = newTransport(&s.cfg); err != nil {
		return nil, err
	}
	if err := s.startRaft(snapshots); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Store) openDir() (err error) {
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("make raft directory: %w", err)
	}
	if s.logs, err = logstore.Open(filepath.Join(s.cfg.Dir, logFile)); err != nil {
		return err
	}
	if s.id, err = loadNodeID(s.cfg.Dir, s.cfg.NodeID); err != nil {
		return err
	}
	if s.disk, err = newWatermark(&s.cfg); err != nil {
		return err
	}
	s.metrics, err = newMetrics(s)
	return err
}

func (s *Store) startRaft(snapshots raft.SnapshotStore) error {
	conf := s.cfg.raftConfig(s.id)
	if s.cfg.Bootstrap {
		if err := s.bootstrap(conf, snapshots); err != nil {
			return err
		}
	}
	r, err := raft.NewRaft(conf, fsm{s}, s.logs, s.logs, snapshots, s.trans)
	if err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	s.raft = r
	s.observed = make(chan raft.Observation, observerBacklog)
	s.observer = raft.NewObserver(s.observed, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.LeaderObservation, raft.RaftState:
			return true
		}
		return false
	})
	r.RegisterObserver(s.observer)
	s.refreshLeader()
	return nil
}

func (s *Store) bootstrap(conf *raft.Config, snapshots raft.SnapshotStore) error {
	has, err := raft.HasExistingState(s.logs, s.logs, snapshots)
	if err != nil {
		return fmt.Errorf("look for an existing cluster in %s: %w", s.cfg.Dir, err)
	}
	if has {
		return nil
	}
	self := raft.Server{Suffrage: raft.Voter, ID: conf.LocalID, Address: s.trans.LocalAddr()}
	err = raft.BootstrapCluster(conf, s.logs, s.logs, snapshots, s.trans, raft.Configuration{Servers: []raft.Server{self}})
	if err != nil {
		return fmt.Errorf("bootstrap the cluster: %w", err)
	}
	return nil
}

// Run watches free space and leadership until ctx ends. It answers an error when this node's state can't go on.
func (s *Store) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.watchDisk(ctx) })
	g.Go(func() error { return s.watchLeader(ctx) })
	g.Go(func() error {
		select {
		case <-s.failed:
			return s.failErr
		case <-ctx.Done():
			return nil
		}
	})
	return g.Wait()
}

// Close refuses new proposals, waits for those that Raft has, stops Raft and closes its files. Call it once, after Run.
func (s *Store) Close() error {
	s.gate.Lock()
	close(s.closing)
	s.gate.Unlock()
	if !s.drain() {
		s.log.Warn("closing although raft still owes answers")
	}
	s.raft.DeregisterObserver(s.observer)
	err := s.raft.Shutdown().Error()
	return errors.Join(err, s.closeFiles())
}

// drain waits until Raft has answered what it was asked. It does in about a heartbeat, majority or not, unless a disk hangs.
func (s *Store) drain() bool {
	done := make(chan struct{})
	go func() {
		s.pending.Wait()
		close(done)
	}()
	select {
	case <-done:
		return true
	case <-time.After(closePatience):
		return false
	}
}

// closeFiles closes what is open, last opened first.
func (s *Store) closeFiles() error {
	var err error
	if s.trans != nil {
		err = s.trans.Close()
	} else if s.cfg.Listener != nil {
		err = s.cfg.Listener.Close()
	}
	if s.metrics != nil {
		s.metrics.unregister()
	}
	if s.logs != nil {
		err = errors.Join(err, s.logs.Close())
	}
	return err
}

// begin admits a call that will wait for Raft.
func (s *Store) begin() error {
	s.gate.RLock()
	defer s.gate.RUnlock()
	select {
	case <-s.closing:
		return noLeader("this node is shutting down: ask another one")
	default:
	}
	s.pending.Add(1)
	return nil
}

// fail stops this node's state for good.
func (s *Store) fail(err error) {
	s.failOnce.Do(func() {
		s.failErr = err
		close(s.failed)
		s.log.Error("the state can't go on: this node takes no more entries", "error", err)
	})
}

func (s *Store) failure() error {
	select {
	case <-s.failed:
		return s.failErr
	default:
		return nil
	}
}

// NodeID is this node's Raft id.
func (s *Store) NodeID() string { return s.id }

// Address is where other servers reach this node's Raft.
func (s *Store) Address() string { return string(s.trans.LocalAddr()) }

// View is the state as far as this node has applied it.
func (s *Store) View() state.View { return s.cfg.State.View() }

// Snapshot takes a snapshot now and compacts the log behind it.
func (s *Store) Snapshot() error {
	if err := s.raft.Snapshot().Error(); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return fmt.Errorf("take a snapshot: %w", err)
	}
	return nil
}
