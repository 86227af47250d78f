package state

import (
	"errors"
	"fmt"

	"github.com/hashicorp/go-memdb"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/mayfly-faas/mayfly/controlplane/state/table"
	"github.com/mayfly-faas/mayfly/proto/fault"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
	mayflyv1 "github.com/mayfly-faas/mayfly/proto/mayfly/v1"
)

// Entry is a committed Raft entry.
type Entry struct {
	Index, Term uint64
	Command     *statev1.Command
}

// Apply applies entries in order of their indexes and answers a result for each. Entries up to the applied index are
// skipped: their result is the first one if its proposal is still known, else it holds the index only.
// A refused command changes nothing but the window of proposals. An error means that this node can't go on (its table
// can't be written, or an entry is of a newer Mayfly): the batch changed nothing, and neither will any later call.
func (s *State) Apply(batch []Entry) ([]*statev1.Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return nil, s.failed
	}
	results, err := s.apply(batch)
	if err != nil {
		s.failed = fmt.Errorf("the state machine stopped at entry %d: %w", s.AppliedIndex(), err)
		return nil, s.failed
	}
	return results, nil
}

func (s *State) apply(batch []Entry) ([]*statev1.Result, error) {
	t := s.begin()
	defer t.mem.Abort()
	results := make([]*statev1.Result, len(batch))
	for i, e := range batch {
		r, err := t.applyEntry(e)
		if err != nil {
			return nil, fmt.Errorf("apply entry %d: %w", e.Index, err)
		}
		results[i] = r
	}
	return results, t.commit()
}

// tx applies the entries of a batch. Handlers validate first and write after, so nothing is ever taken back.
type tx struct {
	s   *State
	mem *memdb.Txn
	// rows go to the table when the batch ends.
	rows    []table.Row
	ledger  *ledger
	results map[uint64]*statev1.Result

	index, term uint64
	now         *timestamppb.Timestamp
	// err is the first failure of a write to the mirror.
	err     error
	applied bool
}

func (s *State) begin() *tx {
	p := s.current.Load()
	return &tx{
		s: s, mem: s.mem.Txn(true), ledger: newLedger(), results: map[uint64]*statev1.Result{},
		index: p.index, term: p.term, now: p.time,
	}
}

func (t *tx) applyEntry(e Entry) (*statev1.Result, error) {
	if e.Command == nil {
		return nil, errors.New("it holds no command")
	}
	if e.Index > t.index {
		t.index, t.term, t.applied = e.Index, e.Term, true
		t.now = later(t.now, e.Command.GetTime())
		return t.applyNew(e.Command)
	}
	r, err := t.firstResult(e.Command.GetProposalId())
	if r == nil && err == nil {
		r = &statev1.Result{Index: e.Index}
	}
	return r, err
}

func (t *tx) applyNew(c *statev1.Command) (*statev1.Result, error) {
	if r, err := t.firstResult(c.GetProposalId()); r != nil || err != nil {
		return r, err
	}
	r, err := t.dispatch(c)
	if f, ok := errors.AsType[*fault.Error](err); ok {
		r = &statev1.Result{Refusal: &statev1.Refusal{Code: int32(f.Code), Reason: f.Reason, Message: f.Message}}
	} else if err != nil {
		return nil, err
	}
	r.Index = t.index
	t.remember(c.GetProposalId(), r)
	if err := t.ledger.flush(t.mem); err != nil {
		return nil, fmt.Errorf("mirror usage: %w", err)
	}
	return r, t.err
}

// later is the later of two times: time never goes back, whatever the proposers' clocks say.
func later(a, b *timestamppb.Timestamp) *timestamppb.Timestamp {
	if b == nil || !b.IsValid() || (a != nil && !b.AsTime().After(a.AsTime())) {
		return a
	}
	return b
}

// commit writes the batch: the table first, then what readers see.
func (t *tx) commit() error {
	if !t.applied {
		return nil
	}
	cluster := proto.CloneOf(t.clusterRecord())
	cluster.Time = t.now
	t.put(nil, cluster)
	t.write([]byte{prefixApplied}, &statev1.SnapshotHeader{Version: SnapshotVersion, Index: t.index, Term: t.term})
	if t.err != nil {
		return t.err
	}
	if err := t.s.table.Write(t.rows); err != nil {
		return err
	}
	t.mem.Commit()
	t.s.publish(t.index, t.term, t.now)
	return nil
}

// put writes a record of a small kind. old is the record that it replaces, nil if there is none.
func (t *tx) put(old, m proto.Message) {
	e := newEntry(m)
	t.fail(t.mem.Insert(memRows, e))
	t.write(e.key, m)
	t.ledger.replace(t.mem, shareOf(old), shareOf(m))
}

// remove deletes a record of a small kind.
func (t *tx) remove(m proto.Message) {
	e := newEntry(m)
	t.fail(t.mem.Delete(memRows, e))
	t.rows = append(t.rows, table.Row{Key: e.key})
	t.ledger.replace(t.mem, shareOf(m), share{})
}

func (t *tx) write(k []byte, m proto.Message) {
	raw, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend([]byte{}, m)
	t.fail(err)
	t.rows = append(t.rows, table.Row{Key: k, Value: raw})
}

func (t *tx) fail(err error) {
	if t.err == nil && err != nil {
		t.err = err
	}
}

// newMeta is the meta of a record that this entry makes.
func (t *tx) newMeta() *mayflyv1.Meta {
	return &mayflyv1.Meta{Revision: t.index, CreatedAt: t.now, UpdatedAt: t.now}
}

// touched is a record's meta after this entry changed it.
func (t *tx) touched(m *mayflyv1.Meta) *mayflyv1.Meta {
	return &mayflyv1.Meta{Revision: t.index, CreatedAt: m.GetCreatedAt(), UpdatedAt: t.now}
}

// checkRevision refuses if a revision is expected and it is not the record's.
func checkRevision(what string, expected uint64, m *mayflyv1.Meta) error {
	if expected == 0 || expected == m.GetRevision() {
		return nil
	}
	return fault.New(codes.Aborted, mayflyv1.ErrorReason_ERROR_REASON_REVISION_CONFLICT,
		"%s was changed: expected revision %d, it has %d; read it again and repeat the change", what, expected, m.GetRevision())
}

// checkID refuses ids that could not be part of a key.
func checkID(what, id string) error {
	if id == "" {
		return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_NAME, "%s is empty: give one", what)
	}
	for i := range len(id) {
		if id[i] == 0 {
			return fault.Invalid(mayflyv1.ErrorReason_ERROR_REASON_INVALID_NAME, "%s %q contains a NUL byte: leave it out", what, id)
		}
	}
	return nil
}
