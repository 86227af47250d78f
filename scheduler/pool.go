package scheduler

import "slices"

// PoolPolicy says how many generic sandboxes (bootstrap running, no function yet) a node keeps ready. The zero policy
// keeps none.
type PoolPolicy struct {
	PerRuntime int
	// MemoryBytes is what one of them takes.
	MemoryBytes int64
}

// PoolTarget is how many generic sandboxes of a runtime a node shall have.
type PoolTarget struct {
	Runtime string
	Count   int
}

// PoolTargets divides the node's free memory over its runtimes, in order of their names, at most the policy's count
// each and never more than fits.
func PoolTargets(n *Node, p PoolPolicy) []PoolTarget {
	free := n.MemoryBytes - n.UsedMemoryBytes
	runtimes := slices.Sorted(slices.Values(n.Runtimes))
	targets := make([]PoolTarget, len(runtimes))
	for i, runtime := range runtimes {
		targets[i].Runtime = runtime
	}
	for range p.PerRuntime {
		for i := range targets {
			if free -= p.MemoryBytes; free < 0 {
				return targets
			}
			targets[i].Count++
		}
	}
	return targets
}
