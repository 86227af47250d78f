package store

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/mayfly-faas/mayfly/controlplane/state"
)

const replayBatch = 256

// recover brings the state to what this node's disk knows to be committed, before Raft starts: from the newest snapshot
// if the table is behind it, then from the log.
func (s *Store) recover(snapshots raft.SnapshotStore) error {
	metas, err := snapshots.List()
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	last, err := s.logs.LastIndex()
	if err != nil {
		return err
	}
	covered := uint64(0)
	if len(metas) > 0 {
		covered = metas[0].Index
	}
	known := max(last, covered)
	if applied := s.cfg.State.AppliedIndex(); len(metas) > 0 && (applied < covered || applied > known) {
		content, err := s.restoreIfBehind(snapshots, metas[0])
		if err != nil {
			return err
		}
		known = max(known, content)
	}
	applied := s.cfg.State.AppliedIndex()
	if applied > known {
		return fmt.Errorf("the state has applied entry %d, but the log in %s ends at %d: they don't belong together; restore both from one backup", applied, s.cfg.Dir, known)
	}
	return s.replay(max(applied, covered))
}

// restoreIfBehind answers the last entry in the snapshot itself, and compares with that: Raft's own entries count for the
// snapshot's index but never reach the state, and a state that replayed at its start may have been ahead of Raft.
func (s *Store) restoreIfBehind(snapshots raft.SnapshotStore, meta *raft.SnapshotMeta) (uint64, error) {
	_, r, err := snapshots.Open(meta.ID)
	if err != nil {
		return 0, fmt.Errorf("open snapshot %s: %w", meta.ID, err)
	}
	index, err := state.ReadSnapshotIndex(r)
	if err = errors.Join(err, r.Close()); err != nil {
		return 0, fmt.Errorf("read snapshot %s: %w", meta.ID, err)
	}
	applied := s.cfg.State.AppliedIndex()
	if applied >= index {
		return index, nil
	}
	s.log.Info("the table is behind the newest snapshot: restoring it", "applied_index", applied, "snapshot", meta.ID, "snapshot_index", index)
	if _, r, err = snapshots.Open(meta.ID); err != nil {
		return 0, fmt.Errorf("open snapshot %s: %w", meta.ID, err)
	}
	if err := errors.Join(s.cfg.State.Restore(r), r.Close()); err != nil {
		return 0, fmt.Errorf("restore snapshot %s: %w", meta.ID, err)
	}
	return index, nil
}

// replay applies what the log knows to be committed. Raft gives the rest once there is a leader, and all of this again,
// which the state skips.
func (s *Store) replay(from uint64) error {
	to, err := s.logs.GetCommitIndex()
	if err != nil {
		return err
	}
	for from < to {
		batch := make([]*raft.Log, 0, replayBatch)
		for ; from < to && len(batch) < replayBatch; from++ {
			l := &raft.Log{}
			if err := s.logs.GetLog(from+1, l); err != nil {
				return fmt.Errorf("replay entry %d: %w", from+1, err)
			}
			batch = append(batch, l)
		}
		if _, err := (fsm{s}).apply(batch); err != nil {
			return fmt.Errorf("replay the log: %w", err)
		}
	}
	return nil
}
