package state

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/mayfly-faas/mayfly/controlplane/state/table"
	statev1 "github.com/mayfly-faas/mayfly/proto/mayfly/state/v1"
)

// ProposalWindow is how many of the last proposals keep their result: an id that comes again within it gets the first
// result and changes nothing. It is part of what entries mean: never change it without a new command.
const ProposalWindow = 65536

// proposals knows in memory which ids are in the window; their results are in the table only.
type proposals struct {
	byID map[string]uint64
	// ring holds the ids in order of their index, from first on.
	ring  []proposal
	first int
}

type proposal struct {
	index uint64
	id    string
}

func newProposals() *proposals { return &proposals{byID: map[string]uint64{}} }

func (p *proposals) len() int { return len(p.byID) }

// push adds the newest one and returns those that leave the window.
func (p *proposals) push(index uint64, id string) (gone []proposal) {
	p.byID[id] = index
	if len(p.ring) < ProposalWindow {
		p.ring = append(p.ring, proposal{index, id})
		return nil
	}
	old := p.ring[p.first]
	p.ring[p.first] = proposal{index, id}
	p.first = (p.first + 1) % ProposalWindow
	delete(p.byID, old.id)
	return []proposal{old}
}

// firstResult finds what a proposal answered the first time, nil if its id is unknown.
func (t *tx) firstResult(id string) (*statev1.Result, error) {
	index, ok := t.s.proposals.byID[id]
	if !ok || id == "" {
		return nil, nil
	}
	if r, ok := t.results[index]; ok {
		return r, nil
	}
	return t.s.readResult(index, id)
}

func (s *State) readResult(index uint64, id string) (*statev1.Result, error) {
	raw, err := s.table.Get(proposalKey(index, id))
	if err != nil {
		return nil, fmt.Errorf("read the result of proposal %s: %w", id, err)
	}
	if raw == nil {
		return nil, nil
	}
	r := &statev1.Result{}
	if err := proto.Unmarshal(raw, r); err != nil {
		return nil, fmt.Errorf("decode the result of proposal %s: %w", id, err)
	}
	return r, nil
}

// remember keeps the result of a proposal and forgets the oldest one.
func (t *tx) remember(id string, r *statev1.Result) {
	if id == "" {
		return
	}
	t.results[t.index] = r
	t.write(proposalKey(t.index, id), r)
	for _, old := range t.s.proposals.push(t.index, id) {
		t.rows = append(t.rows, table.Row{Key: proposalKey(old.index, old.id)})
	}
}

// Proposed answers the result of a proposal that has been applied, nil if its id is unknown or has left the window.
func (s *State) Proposed(id string) (*statev1.Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	index, ok := s.proposals.byID[id]
	if !ok {
		return nil, nil
	}
	return s.readResult(index, id)
}
