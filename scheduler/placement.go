package scheduler

import "slices"

// Weights of the score. Room counts most, then code that needn't be fetched, then spreading a function over nodes.
const (
	weightMemory   = 100
	weightCPU      = 60
	weightCode     = 40
	weightSpread   = 15
	weightStarting = 10
	maxSpread      = 8
)

// Place finds the best node for a sandbox. Of nodes with room it takes the one with the highest score; if there
// is none it looks for one where idle sandboxes can make room. If neither is found, plan.Node is nil and the refusals
// say why. Of equal nodes the first in the snapshot wins, so the answer depends on nothing else.
func Place(s *Snapshot, r *Request) (Plan, Refusals) {
	var refused [WhyCPU + 1]int
	var best *Node
	bestScore := 0
	crowded := false
	for _, n := range s.Nodes {
		if why, ok := fits(s, n, r); !ok {
			refused[why]++
			crowded = crowded || why >= WhyMemory
			continue
		}
		if score := score(n, r); best == nil || score > bestScore {
			best, bestScore = n, score
		}
	}
	if best != nil {
		return Plan{Node: best}, nil
	}
	if crowded {
		if p, ok := placeByEviction(s, r); ok {
			return p, nil
		}
	}
	return Plan{}, refusals(refused[:])
}

func refusals(counts []int) Refusals {
	r := Refusals{}
	for why, n := range counts {
		if n > 0 {
			r[Why(why)] = n
		}
	}
	return r
}

// fits runs the filters, cheapest first among those of one kind.
func fits(s *Snapshot, n *Node, r *Request) (Why, bool) {
	switch {
	case !n.Up:
		return WhyDown, false
	case !slices.Contains(n.Runtimes, r.Runtime):
		return WhyNoRuntime, false
	case r.Egress && n.NoEgress:
		return WhyNoEgress, false
	case n.MemoryBytes < r.MemoryBytes, n.MilliCPUs < r.MilliCPUs:
		return WhyTooSmall, false
	case n.NotBefore.After(s.Now):
		return WhyPaused, false
	case n.Starting >= n.MaxStarting:
		return WhyStarting, false
	case n.MemoryBytes-n.UsedMemoryBytes < r.MemoryBytes:
		return WhyMemory, false
	case n.MilliCPUs-n.UsedMilliCPUs < r.MilliCPUs:
		return WhyCPU, false
	}
	return 0, true
}

func score(n *Node, r *Request) int {
	score := int(weightMemory * (n.MemoryBytes - n.UsedMemoryBytes - r.MemoryBytes) / n.MemoryBytes)
	if n.MilliCPUs > 0 {
		score += int(weightCPU * (n.MilliCPUs - n.UsedMilliCPUs - r.MilliCPUs) / n.MilliCPUs)
	}
	if n.Code[r.CodeDigest] > 0 {
		score += weightCode
	}
	return score - weightSpread*min(n.Functions[r.Function], maxSpread) - weightStarting*n.Starting
}

// placeByEviction takes the node that loses the fewest sandboxes, then the one with the higher score.
func placeByEviction(s *Snapshot, r *Request) (Plan, bool) {
	var best Plan
	bestScore := 0
	for _, n := range s.Nodes {
		if why, ok := fits(s, n, r); ok || why < WhyMemory {
			continue
		}
		evict, ok := MakeRoom(n.Idle, r.MemoryBytes-(n.MemoryBytes-n.UsedMemoryBytes), r.MilliCPUs-(n.MilliCPUs-n.UsedMilliCPUs))
		if !ok {
			continue
		}
		score := score(n, r) - weightMemory*len(evict)
		if best.Node == nil || score > bestScore {
			best, bestScore = Plan{Node: n, Evict: evict}, score
		}
	}
	return best, best.Node != nil
}
