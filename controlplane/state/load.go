package state

import (
	"fmt"

	"github.com/hashicorp/go-memdb"
	"google.golang.org/protobuf/proto"

	"github.com/mayfly-faas/mayfly/controlplane/state/table"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
)

// loader builds what State keeps in memory from the rows of a table or snapshot.
type loader struct {
	mem       *memdb.MemDB
	txn       *memdb.Txn
	ledger    *ledger
	proposals *proposals
	applied   *statev1.SnapshotHeader
	cluster   *statev1.ClusterRecord
}

func newLoader(applied *statev1.SnapshotHeader) (*loader, error) {
	mem, err := newMirror()
	if err != nil {
		return nil, err
	}
	return &loader{
		mem: mem, txn: mem.Txn(true), ledger: newLedger(), proposals: newProposals(),
		applied: applied, cluster: &statev1.ClusterRecord{},
	}, nil
}

// add takes a row, in order of the keys. A row of an unknown kind is an error: it was written by a newer Mayfly, and
// applying on without knowing it would make this node's state differ from the others'.
func (l *loader) add(row table.Row) error {
	switch row.Key[0] {
	case prefixApplied:
		return l.message(row, l.applied)
	case prefixProposal:
		index, id, ok := splitProposalKey(row.Key)
		if !ok {
			return fmt.Errorf("row %q is no proposal", row.Key)
		}
		l.proposals.push(index, id)
		return nil
	}
	m := blank(row.Key[0])
	if m == nil {
		return fmt.Errorf("row %q is of a kind that this version of mayfly doesn't know: run a newer one", row.Key)
	}
	if err := l.message(row, m); err != nil {
		return err
	}
	if c, ok := m.(*statev1.ClusterRecord); ok {
		l.cluster = c
	}
	e := newEntry(m)
	if string(e.key) != string(row.Key) {
		return fmt.Errorf("row %q holds the record of row %q", row.Key, e.key)
	}
	if err := l.txn.Insert(memRows, e); err != nil {
		return fmt.Errorf("mirror row %q: %w", row.Key, err)
	}
	l.ledger.replace(l.txn, share{}, shareOf(m))
	return nil
}

func (l *loader) message(row table.Row, m proto.Message) error {
	if err := proto.Unmarshal(row.Value, m); err != nil {
		return fmt.Errorf("decode row %q: %w", row.Key, err)
	}
	return nil
}

func (l *loader) finish() error {
	if err := l.ledger.flush(l.txn); err != nil {
		return fmt.Errorf("mirror usage: %w", err)
	}
	l.txn.Commit()
	return nil
}
