package store

import (
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/mayfly-faas/mayfly/controlplane/state"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
)

// fsm is a thin shim between the library and package state.
type fsm struct{ s *Store }

// Apply implements raft.FSM.
func (f fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM. It answers a *statev1.Result or an error for each entry. After an error nothing
// is applied any more: what the state has not seen stays in the log for the next start.
func (f fsm) ApplyBatch(logs []*raft.Log) []any {
	answers := make([]any, len(logs))
	results, err := f.apply(logs)
	if err != nil {
		f.s.fail(err)
		for i := range answers {
			answers[i] = err
		}
		return answers
	}
	for i, l := range logs {
		if l.Type == raft.LogCommand {
			answers[i], results = results[0], results[1:]
		}
	}
	return answers
}

func (f fsm) apply(logs []*raft.Log) ([]*statev1.Result, error) {
	entries, err := decodeEntries(logs)
	if err != nil {
		return nil, err
	}
	results, err := f.s.cfg.State.Apply(entries)
	if err != nil {
		return nil, err
	}
	if len(logs) == 0 {
		return results, nil
	}
	// What is applied is committed; the next write to the log takes that along, for the replay at the next start.
	return results, f.s.logs.StageCommitIndex(logs[len(logs)-1].Index)
}

func decodeEntries(logs []*raft.Log) ([]state.Entry, error) {
	entries := make([]state.Entry, 0, len(logs))
	for _, l := range logs {
		if l.Type != raft.LogCommand {
			continue
		}
		c := &statev1.Command{}
		if err := proto.Unmarshal(l.Data, c); err != nil {
			return nil, fmt.Errorf("decode entry %d: %w", l.Index, err)
		}
		entries = append(entries, state.Entry{Index: l.Index, Term: l.Term, Command: c})
	}
	return entries, nil
}

// Snapshot implements raft.FSM.
func (f fsm) Snapshot() (raft.FSMSnapshot, error) {
	if err := f.s.failure(); err != nil {
		return nil, err
	}
	snap, err := f.s.cfg.State.Snapshot()
	if err != nil {
		return nil, err
	}
	return &fsmSnapshot{state: f.s.cfg.State, snap: snap}, nil
}

// Restore implements raft.FSM.
func (f fsm) Restore(r io.ReadCloser) error {
	return errors.Join(f.s.cfg.State.Restore(r), r.Close())
}

type fsmSnapshot struct {
	state *state.State
	snap  *state.Snapshot
}

// Persist implements raft.FSMSnapshot. The log is compacted after it: the table is made durable first, so that the
// snapshot is needed by other nodes only.
func (p *fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	if err := p.state.Flush(); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	if err := p.snap.Write(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	if err := sink.Close(); err != nil {
		return fmt.Errorf("finish snapshot: %w", err)
	}
	return nil
}

// Release implements raft.FSMSnapshot.
func (p *fsmSnapshot) Release() { p.snap.Close() }
